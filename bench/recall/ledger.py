"""The file of results: one JSON line for each cell, written as it is measured; what is there is not run again."""

import json
from pathlib import Path
from typing import Any

Cell = dict[str, Any]


class Ledger:
    """Lines of ``path``. A cell is known by what was measured, the task and the length (and the way, if any)."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.cells: list[Cell] = []
        if path is not None and path.exists():
            self.cells = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]

    def has(self, kind: str, task: str, tokens: int, way: str | None = None) -> bool:
        """Whether the cell was measured."""
        return any(
            (cell["kind"], cell["task"], cell["tokens"], cell.get("way")) == (kind, task, tokens, way)
            for cell in self.cells
        )

    def add(self, cell: Cell) -> None:
        """Write a cell down, durably enough for a run that is killed."""
        self.cells.append(cell)
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(cell) + "\n")

    def of(self, kind: str, task: str | None = None) -> list[Cell]:
        """Cells by kind and task, by length."""
        chosen = [cell for cell in self.cells if cell["kind"] == kind and task in (None, cell["task"])]
        return sorted(chosen, key=lambda cell: (cell["task"], cell["tokens"], cell.get("way") or ""))
