"""Turns a matplotlib figure into SVG that can live inside a page, in light and in dark."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradex.reporting.names import one_line

# Mid-tones, readable on white and on black alike: the page replaces them by its own variables,
# and a figure taken out of the page still shows.
INK = "#6f7782"
GRID = "#b4bac2"
ACCENT = "#1f8a91"
FAINT = "#93a4b0"
AS_IN_PAGE = {
    INK: f"var(--figure-ink, {INK})",
    GRID: f"var(--figure-grid, {GRID})",
    ACCENT: f"var(--figure-accent, {ACCENT})",
    FAINT: f"var(--figure-faint, {FAINT})",
    "'DejaVu Sans'": "system-ui",
}

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "gradex",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 12,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.formatter.useoffset": False,
    "xtick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.color": GRID,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "grid.alpha": 0.6,
}

# A user may have more fine-tunes than a page should hold as shapes.
MOST_SHAPES = 2000
REFERENCE = re.compile(r"(^|url\()#([\w-]+)")
UNIT = 72  # matplotlib writes SVG at 72 units an inch: one unit is one CSS pixel here


@contextmanager
def drawing(width: int, height: int) -> Iterator[tuple[Figure, Axes]]:
    """A transparent figure of this many CSS pixels with one pair of axes, in the page's style."""
    with matplotlib.rc_context(STYLE):
        size = (width / UNIT, height / UNIT)
        figure = Figure(figsize=size, layout="constrained", facecolor="none")
        yield figure, figure.subplots()


def inline_svg(
    figure: Figure, name: str, *, title: str, description: str, tooltips: dict | None = None
) -> str:
    """The figure as an <svg> element; `name` keeps its ids apart from those of other figures.

    `tooltips` gives, for the gid of a group of marks, one text for each mark in turn.
    """
    root = ElementTree.fromstring(_saved(figure))
    _forget_namespaces(root)
    _drop_what_a_page_has_no_use_for(root)
    for gid, texts in (tooltips or {}).items():
        _add_tooltips(root, gid, texts=texts)
    _keep_ids_apart(root, name)
    _describe(root, name, title=title, description=description)
    text = ElementTree.tostring(root, encoding="unicode")
    for own, in_page in AS_IN_PAGE.items():
        text = text.replace(own, in_page)
    return text


def _saved(figure: Figure) -> str:
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # Letters that matplotlib's own font lacks are drawn by the browser's fonts.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        undated = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=undated, dpi=2 * UNIT)
    return buffer.getvalue()


def _forget_namespaces(root: ElementTree.Element) -> None:
    """An HTML parser knows SVG by its tags, and the page stays free of addresses."""
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {key.rpartition("}")[2]: text for key, text in element.attrib.items()}


def _drop_what_a_page_has_no_use_for(root: ElementTree.Element) -> None:
    for parent in list(root.iter()):
        for child in list(parent):
            # A <style> inside an SVG would style the whole page.
            if child.tag in ("metadata", "style") or (child.tag == "defs" and not _content(child)):
                parent.remove(child)
    for attribute in ("height", "version"):
        root.attrib.pop(attribute, None)
    root.set("width", root.get("viewBox").split()[2])
    root.set("stroke-linejoin", "round")


def _content(defs: ElementTree.Element) -> list[ElementTree.Element]:
    return [child for child in defs if child.tag != "style"]


def _add_tooltips(root: ElementTree.Element, gid: str, *, texts: list[str]) -> None:
    group = next((element for element in root.iter("g") if element.get("id") == gid), None)
    if group is None:
        return
    for mark, text in zip(group.iter("use"), texts, strict=False):
        ElementTree.SubElement(mark, "title").text = one_line(text)


def _keep_ids_apart(root: ElementTree.Element, name: str) -> None:
    """Ids count for the whole page: those in use get the figure's name, the others go."""
    used = set()
    for element in root.iter():
        for attribute in ("href", "clip-path", "style"):  # a hatch is a fill in the style
            value = element.get(attribute, "")
            used.update(id_ for _, id_ in REFERENCE.findall(value))
            if value:
                element.set(attribute, REFERENCE.sub(rf"\1#{name}-\2", value))
    for element in root.iter():
        own = element.attrib.pop("id", None)
        if own in used:
            element.set("id", f"{name}-{own}")


def _describe(root: ElementTree.Element, name: str, *, title: str, description: str) -> None:
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-desc")
    for place, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(tag, id=f"{name}-{tag}")
        element.text = one_line(text)
        root.insert(place, element)
