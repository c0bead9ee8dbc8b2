"""The forward pass of a BERT sentence encoder, as plain torch functions over its safetensors file.

Written out instead of loading the model class: the import of transformers and its weight loader cost seconds
at start and hundreds of megabytes, for six layers of encoder. tests/retrieval/test_embedder.py holds it to
sentence-transformers in fp32 (cosine >= 0.999).
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

_MAX_TOKENS = 256  # sentence_bert_config.json of the checkpoint
_NUM_BORDERS = 2
# A product with fewer rows is not quicker.
_FEWEST_ROWS = 8
_BLOCK_ROWS = 4096


class Encoder:
    """Tokenizer and weights of one checkpoint directory in ``dtype`` ("auto", "bfloat16", "float32").

    "auto" is bfloat16 where the CPU multiplies it natively, else float32: emulated bfloat16 is slower than float32.
    """

    def __init__(self, directory: Path, dtype: str = "auto") -> None:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        self._num_layers = int(config["num_hidden_layers"])
        self._num_heads = int(config["num_attention_heads"])
        self._epsilon = float(config["layer_norm_eps"])
        self._width = int(config["hidden_size"])
        if dtype == "auto":
            dtype = "bfloat16" if _multiplies_bfloat16() else "float32"
        self._dtype = torch.bfloat16 if dtype == "bfloat16" else torch.float32
        weights = load_file(directory / "model.safetensors")
        self._weights = {name: weight.to(self._dtype) for name, weight in weights.items() if weight.is_floating_point()}
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(_MAX_TOKENS)
        with (directory / "model.safetensors").open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self.fingerprint = f"all-MiniLM-L6-v2/{digest[:16]}/{dtype}/{_MAX_TOKENS}"

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Word piece ids with the borders [CLS] and [SEP], at most 256 each."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]

    def count(self, texts: Sequence[str]) -> list[int]:
        """Word pieces of each whole text, with one pair of borders: what was cut off is counted, not read."""
        return [
            len(encoding.ids) + sum(len(rest.ids) - _NUM_BORDERS for rest in encoding.overflowing)
            for encoding in self._tokenizer.encode_batch(list(texts))
        ]

    def token_ids(self, words: Sequence[str]) -> list[int]:
        """The ids of those of ``words`` that are one token each."""
        known = (self._tokenizer.token_to_id(word) for word in words)
        return [number for number in known if number is not None]

    @torch.inference_mode()
    def likeness(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Cosines [len(token_ids), vocabulary] of the vectors that tokens come in with, less what all of them share."""
        table = self._weights["embeddings.word_embeddings.weight"]
        mean = table.mean(dim=0, dtype=torch.float32)
        wanted = F.normalize(table[torch.tensor(token_ids)].float() - mean, dim=1)
        # Block by block: in single precision all of it would be twice what the weights are.
        blocks = [
            wanted @ F.normalize(table[first : first + _BLOCK_ROWS].float() - mean, dim=1).T
            for first in range(0, len(table), _BLOCK_ROWS)
        ]
        cosines: NDArray[np.float32] = torch.cat(blocks, dim=1).numpy()
        return cosines

    @property
    def num_tokens(self) -> int:
        """Size of the vocabulary."""
        return len(self._weights["embeddings.word_embeddings.weight"])

    @torch.inference_mode()
    def encode(self, token_ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Mean of the last layer over the real tokens, scaled to length one: float32 [len(token_ids), width]."""
        lengths = torch.tensor([len(ids) for ids in token_ids])
        longest = int(lengths.max())
        padded = torch.zeros((len(token_ids), longest), dtype=torch.int64)
        for row, ids in enumerate(token_ids):
            padded[row, : len(ids)] = torch.tensor(ids)
        real = torch.arange(longest) < lengths[:, None]
        hidden = self._layers(padded, None if bool(real.all()) else real[:, None, None, :])
        summed = (hidden.float() * real[:, :, None]).sum(dim=1)
        vectors: NDArray[np.float32] = F.normalize(summed / lengths[:, None], dim=1).numpy()
        return vectors

    def _layers(self, token_ids: Tensor, mask: Tensor | None) -> Tensor:
        weights = self._weights
        num_rows, length = token_ids.shape
        num_tokens = token_ids.numel()
        embedded = F.embedding(token_ids, weights["embeddings.word_embeddings.weight"])
        embedded = embedded + weights["embeddings.position_embeddings.weight"][:length]
        embedded = embedded + weights["embeddings.token_type_embeddings.weight"][0]
        num_rows_multiplied = num_padded_tokens(num_tokens) if self._dtype is torch.bfloat16 else num_tokens
        hidden = embedded.new_zeros(num_rows_multiplied, self._width)
        hidden[:num_tokens] = self._norm(embedded, "embeddings.LayerNorm").view(num_tokens, self._width)
        mixed = torch.zeros_like(hidden)
        by_head = mixed[:num_tokens].view(num_rows, length, self._num_heads, -1).transpose(1, 2)
        for layer in range(self._num_layers):
            name = f"encoder.layer.{layer}"
            query, key, value = (
                self._linear(hidden, f"{name}.attention.self.{part}")[:num_tokens]
                .view(num_rows, length, self._num_heads, -1)
                .transpose(1, 2)
                for part in ("query", "key", "value")
            )
            by_head.copy_(F.scaled_dot_product_attention(query, key, value, attn_mask=mask))
            attended = self._linear(mixed, f"{name}.attention.output.dense")
            hidden = self._norm(hidden + attended, f"{name}.attention.output.LayerNorm")
            inner = F.gelu(self._linear(hidden, f"{name}.intermediate.dense"))
            hidden = self._norm(hidden + self._linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")
        return hidden[:num_tokens].view(num_rows, length, self._width)

    def _linear(self, rows: Tensor, name: str) -> Tensor:
        return F.linear(rows, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _norm(self, rows: Tensor, name: str) -> Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return F.layer_norm(rows, (self._width,), weight, bias, self._epsilon)


def num_padded_tokens(num_tokens: int) -> int:
    """Rows of the products for a batch of ``num_tokens``, an eighth more at most and one of eight counts an octave.

    oneDNN compiles a program for every count of rows it meets, a fifth of a megabyte, and keeps the last thousand.
    """
    step = max(_FEWEST_ROWS, 1 << max(0, (num_tokens - 1).bit_length() - 4))
    return -(-num_tokens // step) * step


def _multiplies_bfloat16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("arm_bf16"))
