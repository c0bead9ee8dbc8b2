"""Writes a training checkpoint as a Hugging Face JambaForCausalLM directory in bf16.

python -m training.export --run runs/reader --out weights/fano-reader
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from training.model import Reader, Shape


def load(checkpoint: Path) -> tuple[Reader, dict[str, float]]:
    """The model of a training checkpoint, and how far it had come (step, tokens, answers, seconds)."""
    saved = torch.load(checkpoint)
    model = Reader(Shape(**saved["shape"]))
    model.load_state_dict(saved["model"])
    return model.eval(), saved["state"]


def rounded(model: Reader) -> Reader:
    """In place: every weight to the nearest bf16 value, as the exported file holds it."""
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    return model


def export(model: Reader, out: Path) -> None:
    """model.safetensors and config.json; the tied output matrix is not stored twice."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().bfloat16().contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)
    (out / "config.json").write_text(json.dumps(model.shape.to_config(), indent=2) + "\n", encoding="utf-8")


def load_directory(directory: Path) -> Reader:
    """The model of an exported directory, in fp32; every weight is a bf16 value."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    model = Reader(Shape.from_config(config))
    tensors = {name: value.float() for name, value in load_file(directory / "model.safetensors").items()}
    model.load_state_dict(tensors)
    return model.eval()


def starting_point(path: Path) -> Reader:
    """The model of a training checkpoint, or of an exported directory: what a newcomer has."""
    return load_directory(path) if path.is_dir() else load(path)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/reader"))
    parser.add_argument("--out", type=Path, default=Path("weights/fano-reader"))
    arguments = parser.parse_args()
    model, state = load(arguments.run / "last.pt")
    export(model, arguments.out)
    print(f"{arguments.out}: {sum(p.numel() for p in model.parameters()):,} parameters, {state}")


if __name__ == "__main__":
    main()
