"""Random checkpoints that can chat, and prompts of an exact number of tokens for them."""

import functools
import json
import random
import re
import shutil
from pathlib import Path

import tokenizers

TOKENIZER = Path(__file__).parents[1] / "weights" / "fano-reader"
# Special tokens and bytes come first in that vocabulary.
NUM_WORDLESS = 264


def make_chat_checkpoint(directory: Path, geometry: dict[str, int], seed: int) -> int:
    """Random weights with the embedded checkpoint's tokenizer; the number of weights.

    The embeddings of special tokens and bytes are zero. They are the output's weights too, so the best of the other
    logits is always higher: a greedy reply neither ends early nor holds back text until a character is complete.
    """
    # Not above: the prompts alone should not wait for torch.
    import torch
    from safetensors.torch import load_file, save_file

    from bench.sides import make_checkpoint

    num_weights = make_checkpoint(directory, geometry, seed)
    file = directory / "model.safetensors"
    weights = load_file(file)
    with torch.no_grad():
        weights["model.embed_tokens.weight"][:NUM_WORDLESS] = 0.0
    save_file(weights, file, metadata={"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TOKENIZER / name, directory)
    return num_weights


@functools.cache
def words_of_one_token() -> list[str]:
    """Words that are one token each where they stand between spaces, whatever stands beside them."""
    vocabulary = json.loads((TOKENIZER / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    words = [entry[1:] for entry in vocabulary if re.fullmatch("\u2581[a-z]{3,}", entry)]
    tokenizer = tokenizers.Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))
    return [word for word in words if len(tokenizer.encode(word, add_special_tokens=False).ids) == 1]


def random_text(words: list[str], num_tokens: int, dice: random.Random) -> str:
    """Text of ``num_tokens`` tokens."""
    return " ".join(dice.choices(words, k=num_tokens))
