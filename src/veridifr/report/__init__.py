"""Findings for people and for programs: text, JSON (with a schema), and one self-contained HTML file."""

from veridifr.report.html import to_html, write_html
from veridifr.report.jsonout import from_json, read_json, schema, to_json, write_json
from veridifr.report.text import to_text

__all__ = ["from_json", "read_json", "schema", "to_html", "to_json", "to_text", "write_html", "write_json"]
