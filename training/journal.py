"""What a training run writes down: log.jsonl, TensorBoard events and plot.png in the run's directory."""

from __future__ import annotations

import json
from pathlib import Path


class Journal:
    """Appends; a run that goes on after a stop goes on in the same files. `step` orders the records."""

    def __init__(self, directory: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.events = SummaryWriter(str(directory / "tensorboard"))

    def write(self, record: dict[str, float]) -> None:
        line = json.dumps({name: round(value, 6) for name, value in record.items()})
        with (self.directory / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(line + "\n")
        print(line, flush=True)
        for name, value in record.items():
            if name != "step":
                self.events.add_scalar(name, value, int(record["step"]))
        self.events.flush()

    def records(self) -> list[dict[str, float]]:
        file = self.directory / "log.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        return [json.loads(line) for line in lines]

    def plot(self, panels: dict[str, tuple[str, ...]]) -> Path:
        """plot.png: a panel for each label with the named values, all against tokens."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        records = self.records()
        figure, axes = pyplot.subplots(len(panels), 1, figsize=(8, 2.6 * len(panels)), sharex=True, squeeze=False)
        for axis, (label, names) in zip(axes[:, 0], panels.items(), strict=True):
            for name in names:
                points = [(r["tokens"] / 1e6, r[name]) for r in records if name in r]
                if points:
                    axis.plot(
                        *zip(*points, strict=True), label=name, linewidth=1, marker="." if len(points) < 9 else ""
                    )
            axis.set_ylabel(label)
            axis.grid(alpha=0.3)
            if axis.has_data():
                axis.legend(fontsize=8)
        axes[-1, 0].set_xlabel("million tokens")
        figure.tight_layout()
        path = self.directory / "plot.png"
        figure.savefig(path, dpi=110)
        pyplot.close(figure)
        return path

    def close(self) -> None:
        self.events.close()
