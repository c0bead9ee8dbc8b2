"""Length by depth, as a picture: how often a needle in a book was found."""

from pathlib import Path

from bench.recall.archive import PRODUCT
from bench.recall.ledger import Ledger
from bench.recall.tally import NUM_DEPTHS

TITLES = {"named": "asked in other words, by name", "described": "asked with no word in common"}


def draw(ledger: Ledger, path: Path) -> None:
    """Write a png of the single needles, a panel for each kind of question."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cells = ledger.of("found", "single")
    figure, panels = pyplot.subplots(1, len(TITLES), figsize=(11, 3.6), layout="constrained")
    for panel, (group, title) in zip(panels, TITLES.items(), strict=True):
        shares = [
            [found / asked if asked else float("nan") for asked, found in cell["groups"][group][PRODUCT]["by_depth"]]
            for cell in cells
        ]
        image = panel.imshow(shares, vmin=0.0, vmax=1.0, cmap="RdYlGn", aspect="auto")
        for row, line in enumerate(shares):
            for column, share in enumerate(line):
                if share == share:
                    panel.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=8)
        panel.set_title(title, fontsize=10)
        panel.set_yticks(range(len(cells)), [f"{cell['tokens']:,}" for cell in cells])
        panel.set_xticks(range(NUM_DEPTHS), [f"{100 * n // NUM_DEPTHS}" for n in range(NUM_DEPTHS)])
        panel.set_xlabel("depth, percent (from)")
    panels[0].set_ylabel("tokens")
    figure.colorbar(image, ax=panels, label="found among the first five")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)
