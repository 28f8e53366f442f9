"""HTML by construction: elements whose text is always escaped, and one self-contained document."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path

PNG_SIZE = slice(16, 24)
"""Where a PNG states its width and height, as two big-endian 32-bit numbers."""


class Html(str):
    """Text that is markup already; everything else is escaped on its way into an element."""

    __slots__ = ()


Content = str | Html


def element(tag: str, *children: Content, **attributes: str | int | None) -> Html:
    """Return an element; children that are not `Html` are escaped, attributes always are.

    Parameters
    ----------
    tag
        Its name.
    children
        Its content, in order.
    attributes
        Its attributes; ``class_`` stands for ``class``, None leaves one out.
    """
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in ("img", "meta", "br", "line", "circle"):
        return Html(f"<{tag}{written} />")  # drawings are XML: there, an unclosed element would hold the next
    return Html(f"<{tag}{written}>{join(children)}</{tag}>")


def join(children: Iterable[Content]) -> Html:
    """Return contents one after the other, text escaped."""
    return Html("".join(child if isinstance(child, Html) else html.escape(child) for child in children))


def table(
    head: Sequence[Content], rows: Iterable[Sequence[Content]], *, label: str, numeric: bool = True, caption: str = ""
) -> Html:
    """Return a table that scrolls sideways where it is too wide; the first cell of a row is its heading.

    Parameters
    ----------
    head, rows
        Cells.
    label
        What the table holds, for those who cannot see it.
    numeric
        Whether the cells after the first are numbers, set to the right.
    caption
        A line under the table.
    """
    header = element("tr", *(element("th", cell, scope="col") for cell in head))
    body = [
        element("tr", element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:])) for row in rows
    ]
    grid = element("table", element("thead", header), element("tbody", *body), class_="numbers" if numeric else None)
    scroll = element("div", grid, class_="scroll", role="region", aria_label=label, tabindex=0)
    return join([scroll, element("p", caption, class_="note")]) if caption else scroll


def definitions(items: Iterable[tuple[str, Content]]) -> Html:
    """Return names and what they stand for, in two columns."""
    return element("dl", *(join([element("dt", name), element("dd", value)]) for name, value in items))


def picture(path: Path, *, alt: str) -> Html:
    """Return a PNG, embedded, at half its pixel size.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    content = path.read_bytes()
    width, height = (int.from_bytes(content[PNG_SIZE][i : i + 4], "big") for i in (0, 4))
    source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    return element("img", src=source, alt=alt, width=width // 2, height=height // 2)


def whisker(low: float, value: float, high: float, *, left: float, right: float, best: bool) -> Html:
    """Return an interval as a small drawing on the axis from `left` to `right`."""
    width, middle, margin = 140, 9, 6

    def place(number: float) -> str:
        share = (number - left) / (right - left) if right > left else 0.5
        return f"{margin + share * (width - 2 * margin):.1f}"

    return element(
        "svg",
        element("line", x1=margin, x2=width - margin, y1=middle, y2=middle, class_="axis"),
        element("line", x1=place(low), x2=place(high), y1=middle, y2=middle, class_="interval"),
        element("circle", cx=place(value), cy=middle, r=4.5 if best else 3.5, class_="dot"),  # type: ignore[arg-type]
        width=width,
        height=2 * middle,
        viewBox=f"0 0 {width} {2 * middle}",
        aria_hidden="true",
    )


def document(title: str, body: Content) -> str:
    """Return the whole page. It may load nothing from anywhere, which its content policy enforces."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element(
            "meta",
            http_equiv="Content-Security-Policy",
            content="default-src 'none'; img-src data:; style-src 'unsafe-inline'",
        ),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Html(_STYLE)),
    )
    return f"<!doctype html>\n{element('html', head, element('body', element('main', body)), lang='en')}\n"


_STYLE = """
:root {
  --ink: #1f2328; --soft: #59636e; --line: #d1d9e0; --faint: #f4f6f8; --page: #ffffff; --link: #0a5a92;
  --accent: #0072b2; --warn: #9a3b00; --warn-page: #fff6ec; --warn-line: #e8b88a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e6edf3; --soft: #9aa6b2; --line: #353c44; --faint: #1a2027; --page: #0f1419; --link: #79b8e8;
    --accent: #56b4e9; --warn: #ffb77c; --warn-page: #2b1d10; --warn-line: #6b4420;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
}
main { max-width: 1160px; margin: 0 auto; padding: 36px 28px 72px; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0 0 .4rem; letter-spacing: -.01em; text-wrap: balance; }
h2 { font-size: 1.3rem; margin: 3rem 0 .4rem; padding-top: 1.4rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.02rem; margin: 2rem 0 .5rem; }
p { margin: .4rem 0; max-width: 75ch; }
a { color: var(--link); }
a:focus-visible, summary:focus-visible, .scroll:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.lead { font-size: 1.05rem; color: var(--soft); }
.note { font-size: .86rem; color: var(--soft); }
.warnings {
  margin: 1.2rem 0; padding: .7rem 1rem; border: 1px solid var(--warn-line); border-left-width: 5px;
  border-radius: 6px; background: var(--warn-page);
}
.warnings strong { color: var(--warn); }
.warnings ul { margin: .3rem 0 0; padding-left: 1.2rem; }
.scroll { overflow-x: auto; margin: .5rem 0; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .34rem .9rem .34rem 0; text-align: left; border-bottom: 1px solid var(--line); }
th:not(:first-child), td { padding-left: .5rem; }
thead th { font-size: .82rem; font-weight: 600; color: var(--soft); vertical-align: bottom; }
tbody th { font-weight: 500; }
tbody tr:hover { background: var(--faint); }
.numbers th[scope=row] { white-space: nowrap; }
.numbers th:not(:first-child), .numbers td { text-align: right; white-space: nowrap; }
td .interval, .ci { color: var(--soft); }
.best { font-weight: 700; }
dl {
  display: grid; grid-template-columns: minmax(9rem, max-content) 1fr; gap: .2rem 1.4rem;
  margin: .5rem 0; font-size: .92rem;
}
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; font-size: .86em; }
pre {
  background: var(--faint); border: 1px solid var(--line); border-radius: 6px; padding: .7rem .9rem; overflow-x: auto;
}
pre.command { white-space: pre-wrap; overflow-wrap: anywhere; }
.plots { display: flex; flex-wrap: wrap; gap: 16px; margin: .8rem 0; align-items: flex-start; }
figure {
  margin: 0; background: #ffffff; border: 1px solid var(--line); border-radius: 8px; padding: 8px; max-width: 100%;
}
figure img { display: block; max-width: 100%; height: auto; }
details { margin: .7rem 0; }
summary { cursor: pointer; color: var(--link); width: fit-content; }
nav { margin: 1rem 0; font-size: .92rem; }
nav a { margin-right: 1.1rem; white-space: nowrap; }
svg { display: block; }
svg .axis { stroke: var(--line); stroke-width: 1; }
svg .interval { stroke: var(--accent); stroke-width: 2.5; stroke-linecap: round; }
svg .dot { fill: var(--accent); }
@media print {
  :root {
    --ink: #000; --soft: #444; --line: #bbb; --faint: #f6f6f6; --page: #fff; --link: #000; --accent: #0072b2;
    --warn: #7a2e00; --warn-page: #fff; --warn-line: #999;
  }
  main { max-width: none; padding: 0; }
  body { font-size: 10.5pt; }
  figure, table, .warnings { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  .scroll, pre { overflow: visible; white-space: pre-wrap; }
}
"""
