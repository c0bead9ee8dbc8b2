"""The fast path: one native call takes the tokens of a step through the whole model."""

import ctypes
from array import array
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.batch import Batch
from model.cache.block_pool import BlockPool
from model.cache.state_pool import StatePool
from model.kernels import Step
from model.kernels.arguments import (
    WEIGHT_KINDS,
    AttendedSpan,
    DecodedSequence,
    NativeLayer,
    NativeModel,
    NativeStep,
    addresses_of,
    array_of,
    as_array,
    native_archive,
    native_span,
)
from model.kernels.crew import CrewSize
from model.layers.feed_forward import GatedFeedForward
from model.layers.mamba import MambaMixer
from model.policy import AttentionPolicy, PolicyName

if TYPE_CHECKING:
    from model.hybrid import HybridLayer, HybridLM


class WholeStep:
    """A model's weights by address. A step in torch spends much of its time between the products; this does not.

    A sequence's result does not depend on its neighbours in a single bit. A token that was drawn attends in another
    order of sums than one of a prompt; all else is the same for both.
    """

    def __init__(self, model: "HybridLM", step: Step) -> None:
        config = model.config
        self._model = model
        self._step = step
        # Held between steps: what is given back to the system comes back in pages that must be cleared.
        self._workspace = torch.empty(0)
        self._crew = CrewSize(model.kernels.num_threads)
        self._layers = (NativeLayer * config.num_layers)(*map(_layer, model.layers))
        self._weights = NativeModel(
            weight_kind=WEIGHT_KINDS[model.embedding.weight.itemsize],
            num_layers=config.num_layers,
            vocabulary=config.vocab_size,
            width=config.hidden_size,
            inner=config.inner_size,
            num_states=config.state_size,
            num_taps=config.conv_width,
            dt_rank=config.dt_rank,
            ffn=config.intermediate_size,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_width=config.head_width,
            eps=config.norm_eps,
            embedding=_address(model.embedding.weight),
            head=_address((model.embedding if model.head is None else model.head).weight),
            final_norm=_address(model.final_norm.weight),
            layers=ctypes.addressof(self._layers),
        )

    @staticmethod
    def of(model: "HybridLM") -> "WholeStep | None":
        """The fast path of ``model``, whose weights are loaded; None where its kernels or its layers have none.

        Experts and projections with a bias are left to the layers. Packs the weights.
        """
        step = model.kernels.step
        if step is None or model.config.proj_bias:
            return None
        if not all(isinstance(layer.ffn, GatedFeedForward) for layer in model.layers):
            return None
        model.pack()
        return WholeStep(model, step)

    @property
    def workspace_bytes(self) -> int:
        """Bytes that are held between steps."""
        return self._workspace.nbytes

    def __call__(self, batch: Batch, states: StatePool, blocks: BlockPool) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`model.hybrid.HybridLM.read`: logits and normed rows of ``batch.logits_rows``, and of the prompts'
        tokens the residual stream [T, D] at the end; all float32."""
        config = self._model.config
        num_tokens, num_logits, num_decodes = batch.num_tokens, batch.logits_rows.shape[0], batch.num_decodes
        logits = torch.empty((num_logits, config.vocab_size))
        hidden = torch.empty((num_logits, config.hidden_size))
        x = torch.empty((num_tokens, config.hidden_size))
        tables = [as_array(table) for table in batch.block_tables]
        places = list(zip(batch.first_positions, batch.policies, tables, strict=True))
        sequences = array_of(DecodedSequence, num_decodes)(*(_sequence(*place) for place in places[:num_decodes]))
        stands = tables, batch.first_positions, batch.policies
        archive = None
        if batch.archived:
            kept = blocks.archive
            archive = native_archive(*kept.keys_values, kept.summaries, batch.leaving, kept.plan)
            indexes = [addresses_of([index.native for index in each]) for each in batch.indexes]
            found = map(native_span, *stands, batch.archived, batch.select_from, indexes)
        else:
            found = map(native_span, *stands)
        spans = array_of(AttendedSpan, len(places))(*found)
        step = NativeStep(
            num_tokens=num_tokens,
            num_sequences=len(places),
            num_decodes=num_decodes,
            num_logits=num_logits,
            num_slots=states.num_slots,
            num_blocks=blocks.num_blocks,
            input_ids=_address(batch.input_ids),
            query_start=_address(batch.query_start),
            state_slots=_address(batch.state_slots),
            kv_rows=_address(batch.kv_rows),
            logits_rows=_address(batch.logits_rows),
            sequences=ctypes.addressof(sequences),
            spans=ctypes.addressof(spans),
            ssm=_address(states.ssm),
            conv=_address(states.conv),
            keys=_address(blocks.keys),
            values=_address(blocks.values),
            x=_address(x),
            hidden=_address(hidden),
            logits=_address(logits),
            archive=None if archive is None else ctypes.addressof(archive),
        )
        with self._crew.chosen(num_tokens) as num_threads:
            self._workspace = self._step(self._weights, step, num_threads, self._workspace)
        return logits, hidden, x


def _sequence(position: int, policy: AttentionPolicy, table: "array[int]") -> DecodedSequence:
    window_start = policy.window_start(position)
    is_full = policy.name is PolicyName.FULL or window_start <= policy.sinks
    starts, ends = ((0, 0), (0, position + 1)) if is_full else ((0, window_start), (policy.sinks, position + 1))
    return DecodedSequence(
        blocks=table.buffer_info()[0],
        num_blocks=len(table),
        range_start=(ctypes.c_int64 * 2)(*starts),
        range_end=(ctypes.c_int64 * 2)(*ends),
    )


def _layer(layer: "HybridLayer") -> NativeLayer:
    mixer = layer.mixer
    assert isinstance(layer.ffn, GatedFeedForward), "experts have no fast path"
    both = {
        "mixer_norm": layer.mixer_norm.weight,
        "ffn_norm": layer.ffn_norm.weight,
        "gate_up": layer.ffn.gate_up_proj.weight,
        "down": layer.ffn.down_proj.weight,
    }
    if isinstance(mixer, MambaMixer):
        own = {
            "in_proj": mixer.in_proj.weight,
            "out_proj": mixer.out_proj.weight,
            "x_proj": mixer.x_proj.weight,
            "dt_proj": mixer.dt_proj.weight,
            "conv_weight": mixer.conv_weight,
            "conv_bias": mixer.conv_bias,
            "dt_norm": mixer.dt_norm.weight,
            "b_norm": mixer.b_norm.weight,
            "c_norm": mixer.c_norm.weight,
            "dt_bias": mixer.dt_bias,
            "a": mixer.a,
            "d": mixer.d,
        }
    else:
        own = {"in_proj": mixer.qkv_proj.weight, "out_proj": mixer.o_proj.weight}
    addresses = {name: _address(tensor) for name, tensor in (both | own).items() if tensor is not None}
    return NativeLayer(is_attention=not isinstance(mixer, MambaMixer), **addresses)


def _address(tensor: Tensor) -> int:
    assert tensor.is_contiguous() and tensor.is_cpu, f"{tensor.stride()} on {tensor.device}"
    return tensor.data_ptr()
