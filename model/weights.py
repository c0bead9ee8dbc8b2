"""Checkpoints in safetensors, local or from a hub, into the parameters of a model: each filled exactly once."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.errors import CheckpointNotFound, WeightsMismatch
from model.hybrid import HybridLayer, HybridLM
from model.layers.attention import SparseAttention
from model.layers.feed_forward import ExpertFeedForward, GatedFeedForward
from model.layers.mamba import MambaMixer
from model.layers.matrix import Matrix

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
HUB_PATTERNS = [
    "config.json",
    "generation_config.json",
    "*.safetensors",
    INDEX_FILE,
    "tokenizer*",
    "special_tokens_map.json",
    "*.jinja",
]


def resolve_checkpoint(path_or_hub_id: str | Path) -> Path:
    """The directory of a checkpoint: the local one of that name, else a snapshot of the hub repository.

    The hub's own environment variables apply (cache, token, offline). Raises CheckpointNotFound where neither is
    to be had, saying why.
    """
    local = Path(path_or_hub_id).expanduser()
    if local.is_dir():
        return local
    name = str(path_or_hub_id)
    if isinstance(path_or_hub_id, Path) or name.count("/") != 1 or name.startswith(("/", ".", "~")):
        raise CheckpointNotFound(
            f"{name!r} is not a directory here; name one that holds config.json and {SINGLE_FILE}, "
            "or a hub repository as 'owner/name'"
        )
    # Not above: the client brings an HTTP library with it, and few who start have no checkpoint at hand.
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=HUB_PATTERNS))
    # What the hub client raises for an unknown name, no network, offline mode and a full disk; all derive from these.
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointNotFound(
            f"{name!r} is neither a directory here nor could it be fetched from the hub ({type(error).__name__}: "
            f"{reason}); check the name and the network, or fetch it elsewhere and name the directory"
        ) from error


def load_weights(model: HybridLM, path_or_hub_id: str | Path) -> None:
    """Fill every parameter of ``model``, which is not packed, from the checkpoint, converting to the dtype of each.

    Fused parameters are filled from their parts, each part exactly once. Raises CheckpointNotFound where a file is
    absent, WeightsMismatch naming the tensor where one is missing, left over, there twice, of another shape or not
    of a float type, or where a file is damaged. After an error the parameters are undefined.
    """
    directory = resolve_checkpoint(path_or_hub_id)
    parts = dict(_parts(model))
    covered = sum(math.prod(part.shape) for part in parts.values())
    assert covered == model.config.num_parameters(), "the parts do not add up to the parameters"
    filled: set[str] = set()
    head_copy: Tensor | None = None
    for path in _files(directory):
        for name, tensor in _tensors(path):
            if name in filled:
                raise WeightsMismatch(f"{name} is in the checkpoint {directory} twice, the second time in {path.name}")
            if name == "lm_head.weight" and model.head is None:
                head_copy = tensor
            elif name in parts:
                _fill(parts[name], tensor, name, path)
            else:
                raise WeightsMismatch(
                    f"{name} in {path} belongs to no parameter of the model that config.json describes; "
                    "config.json and weights are of different checkpoints"
                )
            filled.add(name)
    missing = [name for name in parts if name not in filled]
    if missing:
        raise WeightsMismatch(
            f"{missing[0]} is missing in the checkpoint {directory}, as are {len(missing) - 1} more; "
            "fetch the checkpoint again"
        )
    # Some writers store a tied head beside the embedding; it must then be the same matrix.
    if head_copy is not None and not model.embedding.holds(head_copy):
        raise WeightsMismatch(
            f"lm_head.weight in {directory} differs from model.embed_tokens.weight, to which config.json ties it; "
            "set tie_word_embeddings to false there if they are meant to differ"
        )


@dataclass(frozen=True, slots=True)
class _Part:
    """Where one tensor of the checkpoint goes: the shape it has there, and who takes it over into a parameter."""

    shape: tuple[int, ...]
    fill: Callable[[Tensor], object]


def _plain(target: Tensor) -> _Part:
    return _Part(tuple(target.shape), target.copy_)


def _matrix(matrix: Matrix) -> _Part:
    return _Part((matrix.out_size, matrix.in_size), matrix.fill)


def _stacked(matrix: Matrix, sizes: Sequence[int]) -> list[_Part]:
    """Matrices of ``sizes`` outputs, one under the other in ``matrix``."""
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return [
        _Part((size, matrix.in_size), partial(matrix.fill, first=start))
        for size, start in zip(sizes, starts, strict=True)
    ]


def _parts(model: HybridLM) -> Iterator[tuple[str, _Part]]:
    """Every tensor name of the published layout with its place in the model."""
    yield "model.embed_tokens.weight", _matrix(model.embedding)
    yield "model.final_layernorm.weight", _plain(model.final_norm.weight)
    if model.head is not None:
        yield "lm_head.weight", _matrix(model.head)
    for index, layer in enumerate(model.layers):
        for name, part in _layer_parts(layer):
            yield f"model.layers.{index}.{name}", part


def _layer_parts(layer: HybridLayer) -> Iterator[tuple[str, _Part]]:
    yield "input_layernorm.weight", _plain(layer.mixer_norm.weight)
    yield "pre_ff_layernorm.weight", _plain(layer.ffn_norm.weight)
    yield from _mamba_parts(layer.mixer) if isinstance(layer.mixer, MambaMixer) else _attention_parts(layer.mixer)
    if isinstance(layer.ffn, ExpertFeedForward):
        yield from _expert_parts(layer.ffn)
    else:
        yield from _gated_parts(layer.ffn)


def _mamba_parts(mixer: MambaMixer) -> Iterator[tuple[str, _Part]]:
    num_taps, inner = mixer.conv_weight.shape
    yield "mamba.in_proj.weight", _matrix(mixer.in_proj)
    yield "mamba.out_proj.weight", _matrix(mixer.out_proj)
    for name, bias in (
        ("in_proj", mixer.in_proj.bias),
        ("out_proj", mixer.out_proj.bias),
        ("conv1d", mixer.conv_bias),
        ("dt_proj", mixer.dt_bias),
    ):
        if bias is not None:
            yield f"mamba.{name}.bias", _plain(bias)
    yield "mamba.conv1d.weight", _Part((inner, 1, num_taps), lambda tensor: mixer.conv_weight.copy_(tensor[:, 0].t()))
    yield "mamba.x_proj.weight", _matrix(mixer.x_proj)
    yield "mamba.dt_proj.weight", _matrix(mixer.dt_proj)
    yield "mamba.dt_layernorm.weight", _plain(mixer.dt_norm.weight)
    yield "mamba.b_layernorm.weight", _plain(mixer.b_norm.weight)
    yield "mamba.c_layernorm.weight", _plain(mixer.c_norm.weight)
    yield "mamba.A_log", _Part((inner, mixer.a.shape[0]), lambda log: mixer.a.copy_(-torch.exp(log.float()).t()))
    yield "mamba.D", _plain(mixer.d)


def _attention_parts(mixer: SparseAttention) -> Iterator[tuple[str, _Part]]:
    for name, part in zip("qkv", _stacked(mixer.qkv_proj, mixer.split), strict=True):
        yield f"self_attn.{name}_proj.weight", part
    yield "self_attn.o_proj.weight", _matrix(mixer.o_proj)


def _gated_parts(ffn: GatedFeedForward) -> Iterator[tuple[str, _Part]]:
    yield from _gate_parts("feed_forward", ffn.gate_up_proj, ffn.down_proj)


def _gate_parts(name: str, gate_up: Matrix, down: Matrix) -> Iterator[tuple[str, _Part]]:
    gate, up = _stacked(gate_up, [down.in_size] * 2)
    yield f"{name}.gate_proj.weight", gate
    yield f"{name}.up_proj.weight", up
    yield f"{name}.down_proj.weight", _matrix(down)


def _expert_parts(ffn: ExpertFeedForward) -> Iterator[tuple[str, _Part]]:
    yield "feed_forward.router.weight", _matrix(ffn.router)
    for expert, (gate_up, down) in enumerate(zip(ffn.gate_up, ffn.down, strict=True)):
        yield from _gate_parts(f"feed_forward.experts.{expert}", gate_up, down)


def _files(directory: Path) -> list[Path]:
    """The weight files of a checkpoint. Raises CheckpointNotFound where one is absent."""
    index = directory / INDEX_FILE
    if not index.is_file():
        names = {SINGLE_FILE}
    else:
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WeightsMismatch(f"{index} is not an index of safetensors files; fetch it again") from error
    for name in sorted(names):
        if not (directory / name).is_file():
            raise CheckpointNotFound(f"{directory / name} does not exist; fetch the checkpoint again")
    return [directory / name for name in sorted(names)]


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a file, one in memory at a time. Raises WeightsMismatch where the file is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                yield name, file.get_tensor(name)
    except SafetensorError as error:
        raise WeightsMismatch(f"{path} is damaged ({error}); fetch the checkpoint again") from error


def _fill(part: _Part, tensor: Tensor, name: str, path: Path) -> None:
    if tuple(tensor.shape) != part.shape:
        raise WeightsMismatch(
            f"{name} in {path} has the shape {tuple(tensor.shape)}, expected {part.shape} by config.json; "
            "config.json and weights are of different checkpoints"
        )
    if not tensor.is_floating_point():
        raise WeightsMismatch(
            f"{name} in {path} is {tensor.dtype}, expected a float type; quantised checkpoints cannot be loaded"
        )
    part.fill(tensor)
