"""Averages checkpoints that began from the same weights, into an exported directory.

    python -m training.soup runs/a/last.pt runs/b/last.pt --weights 1 2 --out runs/soup

After Wortsman et al. 2022 ("Model soups"): what runs from one beginning agree on adds up, what each learnt by heart
cancels out.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from training.export import export, starting_point
from training.model import Reader


def soup(models: list[Reader], weights: list[float]) -> Reader:
    """Every parameter's weighted mean; the first model's object, changed."""
    if len({model.shape for model in models}) != 1:
        raise ValueError("models of different shapes cannot be averaged")
    states = [model.state_dict() for model in models]
    total = sum(weights)
    mean = {
        name: sum(weight / total * state[name] for weight, state in zip(weights, states, strict=True))
        for name in states[0]
    }
    models[0].load_state_dict(mean)
    return models[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--weights", nargs="+", type=float, help="one for each checkpoint; else all count the same")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--beside", type=Path, default=Path("weights/fano-reader"), help="whose tokenizer is copied")
    arguments = parser.parse_args()
    weights = arguments.weights or [1.0] * len(arguments.checkpoints)
    export(soup([starting_point(path) for path in arguments.checkpoints], weights), arguments.out)
    for file in arguments.beside.glob("*[a-z].j*"):
        if file.name != "config.json":
            shutil.copy(file, arguments.out)


if __name__ == "__main__":
    main()
