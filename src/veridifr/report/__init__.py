"""Findings for people and for programs: text, JSON (with a schema), and one self-contained HTML file."""

from veridifr.report.compared import (
    comparison_schema,
    comparison_to_html,
    comparison_to_json,
    comparison_to_text,
    write_comparison_html,
    write_comparison_json,
)
from veridifr.report.html import to_html, write_html
from veridifr.report.jsonout import from_json, read_json, schema, to_json, write_json
from veridifr.report.text import to_text

__all__ = [
    "comparison_schema",
    "comparison_to_html",
    "comparison_to_json",
    "comparison_to_text",
    "from_json",
    "read_json",
    "schema",
    "to_html",
    "to_json",
    "to_text",
    "write_comparison_html",
    "write_comparison_json",
    "write_html",
    "write_json",
]
