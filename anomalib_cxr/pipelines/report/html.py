"""HTML as a tree of elements: whatever text comes from files is escaped when the tree is written, without exception."""

from collections.abc import Sequence
from xml.etree import ElementTree

Element = ElementTree.Element
Child = Element | str | None

#: Nothing may be fetched and nothing may be run, whatever stands in the file.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
#: Characters that HTML does not allow, even escaped.
_FORBIDDEN = dict.fromkeys([*range(9), 11, *range(14, 32), *range(127, 160)], "\ufffd")

STYLE = """
:root{color-scheme:light;--ink:#1d2733;--soft:#5b6875;--line:#dde3e9;--paper:#fff;--tint:#f5f7f9}
*{box-sizing:border-box}
body{margin:0 auto;padding:1rem;max-width:72rem;color:var(--ink);background:var(--paper);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;overflow-wrap:break-word}
h1{font-size:1.6rem;line-height:1.2;margin:.5rem 0}
h2{font-size:1.3rem;border-top:2px solid var(--ink);padding-top:.6rem;margin:2.2rem 0 .6rem}
h3{font-size:1.05rem;margin:1.4rem 0 .4rem}
h2,h3{overflow-wrap:anywhere}
p{margin:.4rem 0;max-width:48rem}
.note{color:var(--soft);font-size:.9rem}
.warning{border-left:4px solid #d55e00;background:#fdf3ec;padding:.4rem .7rem;max-width:48rem}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:.25rem .7rem .25rem 0;border-bottom:1px solid var(--line);white-space:nowrap;
vertical-align:top}
th{font-weight:600;color:var(--soft)}
th:first-child,td:first-child{text-align:left;white-space:normal;min-width:13rem}
td.text{text-align:left;white-space:normal;min-width:10rem}
.interval{color:var(--soft);display:block;font-size:.85em}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,20rem),1fr));gap:1rem}
figure{margin:0}
figcaption{font-size:.85rem;color:var(--soft)}
svg{width:100%;height:auto;display:block;max-width:34rem}
svg text{font-family:inherit;fill:var(--ink)}
.legend span{display:inline-block;margin-right:1rem;overflow-wrap:anywhere}
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,20rem),1fr));gap:1rem}
.gallery img,.sheet{width:100%;height:auto;display:block;background:#000;border-radius:3px}
.gallery figcaption{overflow-wrap:anywhere}
details{margin:.5rem 0}
summary{cursor:pointer;color:#0b5cad}
pre{background:var(--tint);padding:.7rem;overflow-x:auto;font-size:.8rem;line-height:1.4;max-height:30rem}
nav ul{padding-left:1.2rem;margin:.3rem 0}
nav li{overflow-wrap:anywhere}
a{color:#0b5cad}
dl{display:grid;grid-template-columns:minmax(7rem,max-content) 1fr;gap:.15rem 1rem;font-size:.9rem;margin:.5rem 0}
dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere}
@media (max-width:30rem){body{padding:.7rem}th:first-child,td:first-child{min-width:8rem}
dl{grid-template-columns:1fr}dd{margin-bottom:.3rem}}
@media print{details:not([open])>:not(summary){display:none}figure{break-inside:avoid}}
"""


def tag(kind: str, /, *children: Child, **attributes: str | float) -> Element:
    """Make an element.

    Args:
        kind: Its tag.
        *children: Elements and texts, in order; None is left out.
        **attributes: Its attributes; ``_`` stands for ``-``, and a closing ``_`` is taken off (``class_``).

    Returns:
        The element.
    """
    names = {key: key.rstrip("_").replace("_", "-") for key in attributes}
    element = Element(kind, {names[key]: _text(value) for key, value in attributes.items()})
    for child in children:
        if child is None:
            continue
        if isinstance(child, Element):
            element.append(child)
        elif len(element):
            element[-1].tail = (element[-1].tail or "") + _text(child)
        else:
            element.text = (element.text or "") + _text(child)
    return element


def breakable(name: str) -> list[Child]:
    """Let a line break within the name of a run: after each slash, and so not within a word.

    Args:
        name: Folders, joined by slashes.

    Returns:
        Texts and elements, to be children of one element.
    """
    first, *rest = name.split("/")
    return [first, *(child for part in rest for child in ("/", tag("wbr"), part))]


def table(head: Sequence[str], rows: Sequence[Sequence[Child]]) -> Element:
    """Make a table that scrolls sideways where the page is narrow.

    Args:
        head: Names of the columns.
        rows: Cells; an element of the tag ``td`` is taken as it is.

    Returns:
        The element.
    """

    def cell(child: Child) -> Element:
        return child if isinstance(child, Element) and child.tag == "td" else tag("td", child)

    body = [tag("tr", *(cell(child) for child in row)) for row in rows]
    return tag(
        "div",
        tag("table", tag("thead", tag("tr", *(tag("th", name, scope="col") for name in head))), tag("tbody", *body)),
        class_="scroll",
    )


def page(title: str, *children: Child) -> str:
    """Write a page that needs nothing but itself.

    Args:
        title: Title of the page.
        *children: What stands on it.

    Returns:
        HTML 5.
    """
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", STYLE),
    )
    root = tag("html", head, tag("body", *children), lang="en")
    return f"<!DOCTYPE html>\n{ElementTree.tostring(root, encoding='unicode', method='html')}\n"


def _text(value: str | float) -> str:
    return str(value).translate(_FORBIDDEN)
