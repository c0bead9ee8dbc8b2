"""The readable text of an HTML page."""

import re

from selectolax.lexbor import LexborHTMLParser, LexborNode

_DROPPED = frozenset("script style noscript template head svg math iframe object canvas select datalist dialog".split())
_LINES = frozenset(
    "address body caption center dd details div dt fieldset figcaption footer form header hr html legend li main nav "
    "option summary tbody tfoot thead video audio".split()
)
_PARAGRAPHS = frozenset("p h1 h2 h3 h4 h5 h6 ul ol dl table pre blockquote article aside section figure".split())
_BLANKS = re.compile(r"[ \t\n\r\f\u00a0]+")
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0e-\x1f]")

# Borders, and blanks that must stay, travel as control characters, which no text node may hold, until
# neighbours have been merged.
_LINE, _PARAGRAPH, _BREAK, _KEPT_BLANK = "\x01", "\x02", "\x03", "\x04"
_BORDERS = re.compile(r" *[\x01-\x03][\x01-\x03 ]*")


def readable_text(markup: str) -> str:
    """Return what a reader sees, one block a line, entities decoded; paragraphs, lists and tables stand apart.

    Headings become ``# `` to ``###### `` lines, list items ``- `` lines, table rows ``| a | b |`` lines (a bar
    inside a cell is written ``\\|``), preformatted text keeps its line ends. Scripts, styles and what is not shown
    are left out. The title stands first when the page repeats it nowhere. Never raises: any markup has a reading.
    """
    tree = LexborHTMLParser(markup)
    text = _Walk().text(tree.body) if tree.body is not None else ""
    title_node = tree.css_first("title")
    title = _flowing(title_node.text() if title_node is not None else "").strip()
    if title and title not in text:
        text = f"# {title}\n\n{text}"
    return text


class _Walk:
    """One pass over a tree without recursion: pages may nest thousands deep."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        # Rows that are open: the pieces outside of them, and the cells closed so far.
        self._outer: list[list[str]] = []
        self._rows: list[list[str]] = []

    def text(self, root: LexborNode) -> str:
        stack: list[LexborNode | tuple[str, str]] = [root]
        while stack:
            node = stack.pop()
            if isinstance(node, tuple):
                self._leave(*node)
                continue
            tag = node.tag or ""
            if tag == "-text":
                self._pieces.append(_flowing(node.text_content or ""))
            elif tag in _DROPPED or not tag[:1].isalpha() or "hidden" in node.attributes:
                continue
            elif tag == "br":
                self._pieces.append(_BREAK)
            elif tag == "pre":
                kept = _CONTROLS.sub("", node.text(deep=True)).strip("\n").replace(" ", _KEPT_BLANK)
                self._pieces.append(_PARAGRAPH + kept + _PARAGRAPH)
            else:
                stack.append((tag, self._enter(tag)))
                stack.extend(reversed(list(node.iter(include_text=True))))
        return _merged("".join(self._pieces)).replace(_KEPT_BLANK, " ")

    def _enter(self, tag: str) -> str:
        """Write what stands before the element's text; return what stands after it."""
        if tag in ("tr", "td", "th"):
            self._outer.append(self._pieces)
            self._pieces = []
            if tag == "tr":
                self._rows.append([])
            return ""
        border = _PARAGRAPH if tag in _PARAGRAPHS else _LINE if tag in _LINES else ""
        mark = "- " if tag == "li" else "#" * int(tag[1]) + " " if re.fullmatch("h[1-6]", tag) else ""
        self._pieces.append(border + mark)
        return border

    def _leave(self, tag: str, after: str) -> None:
        if tag not in ("tr", "td", "th"):
            self._pieces.append(after)
            return
        inner = "".join(self._pieces)
        self._pieces = self._outer.pop()
        if tag != "tr":
            cell = _merged(inner)
            if self._rows:
                self._rows[-1].append(cell)
            else:
                self._pieces.append(_LINE + cell + _LINE)
            return
        cells = self._rows.pop()
        if any("\n| " in f"\n{cell}" or "\n\n" in cell for cell in cells):
            # A table used for layout: its cells are blocks, not values.
            row = _PARAGRAPH.join(cells)
        else:
            row = "| " + " | ".join(_flowing(cell).replace("|", "\\|") for cell in cells) + " |" if any(cells) else ""
        self._pieces.append(_LINE + row + inner.strip() + _LINE)


def _flowing(text: str) -> str:
    return _BLANKS.sub(" ", _CONTROLS.sub("", text))


def _merged(text: str) -> str:
    """Write each run of borders as one line end, or as one blank line where paragraphs meet."""

    def line_ends(run: re.Match[str]) -> str:
        return "\n\n" if _PARAGRAPH in run[0] or run[0].count(_BREAK) > 1 else "\n"

    return _BORDERS.sub(line_ends, text).strip("\n ")
