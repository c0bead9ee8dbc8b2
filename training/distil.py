"""Lets the reader's states foretell MiniLM's: a signal for every token, at training time only.

A linear map from the residual stream before the last layer to the hidden state that MiniLM (all-MiniLM-L6-v2,
Apache-2.0) has for the word piece that ends where the token ends. The map is no part of the checkpoint.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator

import torch
import transformers
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from training.forest import Tree
from training.model import Reader
from training.warm_start import minilm_directory

LAYER = 4  # of six; the last ones serve the vector of the whole sentence
PIECES = 128  # word pieces MiniLM reads at a time
BATCH = 4096  # word pieces of one forward pass, padding included


class Distiller(nn.Module):
    """loss(trees): how far the reader's states of the step that has just been computed are from MiniLM's."""

    def __init__(self, model: Reader, tokenizer: Tokenizer) -> None:
        super().__init__()
        directory = minilm_directory()
        teacher = transformers.AutoModel.from_pretrained(str(directory), add_pooling_layer=False).eval()
        teacher.encoder.layer = teacher.encoder.layer[:LAYER]
        self.teacher = [teacher.requires_grad_(False)]  # in a list: no parameter of this module
        self.pieces = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self.pieces.no_padding()
        self.pieces.no_truncation()
        self.first, self.last = self.pieces.token_to_id("[CLS]"), self.pieces.token_to_id("[SEP]")
        width = teacher.config.hidden_size
        self.proj = nn.Linear(model.shape.hidden, width)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.zeros(width))
        names = {index: token for token, index in tokenizer.get_vocab().items()}
        self.texts = [_text(names[index]) for index in range(len(names))]
        self.states: Tensor | None = None
        model.model.layers[-1].input_layernorm.register_forward_pre_hook(self._keep)

    def _keep(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.states = inputs[0]

    def loss(self, trees: list[Tree]) -> Tensor:
        """Mean squared error against MiniLM's states, each dimension of them scaled to variance 1."""
        assert self.states is not None
        rows, wanted = self.targets(trees)
        if not self.scale.any():
            self.mean.copy_(wanted.mean(0))
            self.scale.copy_(wanted.std(0))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            given = self.proj(F.rms_norm(self.states[rows], self.states.shape[-1:]))
        return F.mse_loss(given.float(), (wanted - self.mean) / self.scale)

    def targets(self, trees: list[Tree]) -> tuple[Tensor, Tensor]:
        """Rows of the step that have a state in MiniLM, and these states [rows, 384]."""
        windows = sorted(self._windows(trees), key=lambda window: len(window[0]))
        rows: list[int] = []
        found: list[Tensor] = []
        while windows:
            count = max(1, BATCH // len(windows[-1][0]))
            batch, windows = windows[-count:], windows[:-count]
            longest = len(batch[-1][0])
            ids = torch.tensor([pieces + [0] * (longest - len(pieces)) for pieces, _ in batch])
            mask = torch.tensor([[1] * len(pieces) + [0] * (longest - len(pieces)) for pieces, _ in batch])
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
                hidden = self.teacher[0](input_ids=ids, attention_mask=mask).last_hidden_state
            places = [(n, piece) for n, (_, pairs) in enumerate(batch) for _, piece in pairs]
            rows += [row for _, pairs in batch for row, _ in pairs]
            owner, piece = torch.tensor(places).T
            found.append(hidden[owner, piece].float())
        return torch.tensor(rows), torch.cat(found)

    def _windows(self, trees: list[Tree]) -> Iterator[tuple[list[int], list[tuple[int, int]]]]:
        """Word pieces as MiniLM reads them, and pairs (row of the step, place among the pieces)."""
        at = 0
        for tree in trees:
            yield from self._sequence(tree.root, at)
            at += len(tree.root)
            for branch in tree.branches:
                yield from self._sequence(branch.ids[: branch.answer - 2], at)
                at += len(branch.ids)

    def _sequence(self, ids: list[int], at: int) -> Iterator[tuple[list[int], list[tuple[int, int]]]]:
        texts = [self.texts[i] for i in ids]
        ends, length = [], 0
        for text in texts:
            length += len(text)
            ends.append(length)
        encoding = self.pieces.encode("".join(texts), add_special_tokens=False)
        last = [end for _, end in encoding.offsets]
        pairs = []
        for row, (text, end) in enumerate(zip(texts, ends, strict=True)):
            piece = bisect.bisect_left(last, end)
            if text.strip() and piece < len(last) and last[piece] == end:
                pairs.append((at + row, piece))
        for low in range(0, len(last), PIECES - 2):
            inside = [(row, piece - low + 1) for row, piece in pairs if low <= piece < low + PIECES - 2]
            if inside:
                yield [self.first, *encoding.ids[low : low + PIECES - 2], self.last], inside


def _text(token: str) -> str:
    """What a token adds to the text; nothing for special tokens and bytes, but a space for a new line."""
    if token == "<0x0A>":
        return " "
    special = len(token) > 1 and token.startswith("<") and token.endswith(">")
    return "" if special else token.replace("▁", " ")
