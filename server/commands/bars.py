"""Bars of shares for a terminal."""

from collections.abc import Sequence

from rich.text import Text

BAR_CELLS = 28
HELD, FREE = "cyan", "bright_black"

Part = tuple[float, str]


def bar(parts: Sequence[Part], cells: int = BAR_CELLS) -> Text:
    """Shares of a whole, side by side; what of it is above nothing has a cell, and the rest of the bar is left free."""
    text, drawn = Text(), 0
    for share, style in parts:
        num_cells = min(cells - drawn, max(round(share * cells), 1 if share > 0 else 0))
        text.append("█" * num_cells, style)
        drawn += num_cells
    return text.append("░" * (cells - drawn), FREE)
