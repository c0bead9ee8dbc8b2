"""The checkpoints that are compared: random Jamba weights that every engine here can load."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from bench.llama import LlamaBuild
from bench.peers.engines import LLAMA, Side

ROOT = Path(__file__).parents[2]
EMBEDDED = ROOT / "weights" / "fano-reader"
# Above the embedded tokenizer's; 270.6 million parameters.
LARGE = {
    "vocab_size": 32768,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "attn_layer_period": 8,
    "attn_layer_offset": 4,
}
NAMES = ("28M", "270M")


def random_checkpoint(directory: Path, name: str, seed: int) -> Path:
    """The checkpoint called ``name`` below ``directory``, made where it is not there; with a tokenizer of its size."""
    checkpoint = directory / f"{name}-seed{seed}"
    done = checkpoint / "done.json"
    if not done.is_file():
        # Not above: its libraries take seconds to load, and a comparison that goes on needs none of them.
        from bench.sides import SMALL, TINY, make_checkpoint

        geometry = {"28M": SMALL, "270M": LARGE, "tiny": TINY | {"vocab_size": SMALL["vocab_size"]}}[name]
        shutil.rmtree(checkpoint, ignore_errors=True)
        num_parameters = make_checkpoint(checkpoint, geometry, seed)
        copy_tokenizer(checkpoint, geometry["vocab_size"])
        done.write_text(json.dumps({"num_parameters": num_parameters}), encoding="utf-8")
    return checkpoint


def copy_tokenizer(checkpoint: Path, vocab_size: int) -> None:
    """The embedded one, filled up with words that no text has: llama.cpp wants as many tokens as embeddings."""
    shutil.copy(EMBEDDED / "tokenizer_config.json", checkpoint)
    tokenizer = json.loads((EMBEDDED / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary |= {f"<filler {number}>": number for number in range(len(vocabulary), vocab_size)}
    (checkpoint / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")


def embedded_copy(directory: Path) -> Path:
    """The embedded checkpoint, where files may be put beside it."""
    checkpoint = directory / EMBEDDED.name
    shutil.copytree(EMBEDDED, checkpoint, dirs_exist_ok=True)
    return checkpoint


def convert_missing(checkpoint: Path, sides: Sequence[Side], library: Path) -> None:
    """GGUF files for the sides of llama.cpp, of whole conversions only."""
    build = LlamaBuild(library)
    for side in sides:
        gguf = build.gguf(checkpoint, side.dtype)
        if side.engine == LLAMA and build.has_library and not gguf.with_suffix(".done").is_file():
            build.convert(checkpoint, side.dtype)
            gguf.with_suffix(".done").touch()
