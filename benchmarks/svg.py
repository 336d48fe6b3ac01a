"""What all SVGs of the benchmarks have in common.

They are written by hand, as they are a few bars or lines: the text stays text, the colours follow the
reader's light or dark mode, the same figures give the same file, and nothing but the standard library is
needed.
"""

from xml.etree import ElementTree

__all__ = ["add", "begin", "text_of"]

_LIGHT = """\
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600 }
.note { fill: #59636e }
.number { font-variant-numeric: tabular-nums }
"""

_DARK = """\
  text { fill: #f0f6fc }
  .note { fill: #9198a1 }
"""


def begin(title: str, width: int, height: int, *, light: str, dark: str) -> ElementTree.Element:
    """Return an empty SVG of so many pixels.

    ``light`` and ``dark``: rules, one a line, beside those for text and for its classes ``title``, ``note``
    and ``number``; those of ``dark`` hold in the dark mode.
    """
    svg = ElementTree.Element(
        "svg",
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width} {height}",
        width=str(width),
        role="img",
    )
    add(svg, "title", title)
    add(svg, "style", f"\n{_LIGHT}{light}@media (prefers-color-scheme: dark) {{\n{_DARK}{dark}}}\n")
    return svg


def add(parent: ElementTree.Element, tag: str, text: str | None = None, **attributes: object) -> None:
    """Add an element; attributes that Python has a word of its own for end in an underscore."""
    named = {name.rstrip("_").replace("_", "-"): str(value) for name, value in attributes.items()}
    ElementTree.SubElement(parent, tag, named).text = text


def text_of(svg: ElementTree.Element) -> str:
    """Return the file's text."""
    ElementTree.indent(svg)
    return ElementTree.tostring(svg, encoding="unicode") + "\n"
