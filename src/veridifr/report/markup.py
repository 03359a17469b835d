"""HTML that escapes by construction: text becomes markup only through `element`, never by formatting strings."""

from __future__ import annotations

import html
from collections.abc import Iterable

from veridifr.report.words import pieces, visible

_VOID = frozenset({"meta", "br", "hr", "circle", "line", "rect", "path", "col"})


class Html(str):
    """Text that is already markup: made by this module, or from fixed text only."""

    __slots__ = ()


Child = str | Html | None


def element(name: str, /, *children: Child, **attributes: str | float | None) -> Html:
    """One element. Plain strings are escaped and made visible, `Html` is kept, None is left out.

    In attribute names ``_`` stands for ``-``, and a closing ``_`` is dropped (``class_``).
    """
    marks = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_attribute(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID and not children:
        return Html(f"<{name}{marks}/>" if name in ("circle", "line", "rect", "path") else f"<{name}{marks}>")
    return Html(f"<{name}{marks}>{join(children)}</{name}>")


def join(children: Iterable[Child]) -> Html:
    """Children one after the other; see `element`."""
    return Html("".join(c if isinstance(c, Html) else escape(c) for c in children if c is not None))


def escape(text: str) -> Html:
    """Text made visible (see `words.visible`) and escaped."""
    return Html(html.escape(visible(text), quote=True))


def token(text: str | None, token_id: int | None, *, name: str = "span", class_: str, limit: int = 160) -> Html:
    """A decoded token or a piece of context, isolated from the reading direction around it.

    Marks of unseen characters are set apart from characters of the text. Unknown text is shown as its id.
    """
    if text is None:
        return element(name, UNKNOWN_TEXT if token_id is None else f"id {token_id}", class_=f"{class_} noid")
    if not text:
        return element(name, "(empty)", class_=f"{class_} noid")
    shown = pieces(text, limit)
    parts = [element("span", mark, class_="ctl") if ours else Html(html.escape(mark)) for mark, ours in shown]
    return element(name, *parts, class_=class_, dir="ltr")


UNKNOWN_TEXT = "text not known"


def style(sheet: str) -> Html:
    """The style element around our own style sheet, which must not close it."""
    if "</" in sheet:
        raise ValueError("style sheet: holds '</', which would end the style element")
    return Html(f"<style>{sheet}</style>")


def document(language: str, head: Html, body: Html) -> Html:
    """A whole HTML5 document."""
    return Html(f"<!doctype html>\n{element('html', head, body, lang=language)}\n")


def _attribute(value: str | float) -> str:
    if isinstance(value, str):
        return escape(value)
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
