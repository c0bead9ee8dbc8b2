"""The fast path of decoding: one native call takes one token of each sequence through the whole model."""

import ctypes
from array import array
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.batch import Batch
from model.cache.block_pool import BlockPool
from model.cache.state_pool import StatePool
from model.kernels import Decode
from model.kernels.arguments import DecodedLayer, DecodedModel, DecodedSequence, DecodedStep, as_array
from model.kernels.crew import CrewSize
from model.layers.feed_forward import GatedFeedForward
from model.layers.mamba import MambaMixer
from model.policy import AttentionPolicy, PolicyName

if TYPE_CHECKING:
    from model.hybrid import HybridLayer, HybridLM


class Decoder:
    """A model's weights by address. Decoding in torch spends most of its time between the products; this does not.

    A sequence's result does not depend on its neighbours in a single bit. Activations stay float32 between
    bfloat16 products, so a token decoded here differs from one read in a prompt chunk by the rounding of bfloat16.
    """

    def __init__(self, model: "HybridLM", decode: Decode) -> None:
        config = model.config
        self._model = model
        self._decode = decode
        self._crew = CrewSize(model.kernels.num_threads)
        self._layers = (DecodedLayer * config.num_layers)(*map(_layer, model.layers))
        self._weights = DecodedModel(
            is_bf16=model.embedding.dtype == torch.bfloat16,
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
            embedding=_address(model.embedding),
            head=_address(model.embedding if model.head is None else model.head),
            final_norm=_address(model.final_norm.weight),
            layers=ctypes.addressof(self._layers),
        )

    @staticmethod
    def of(model: "HybridLM") -> "Decoder | None":
        """The decoder of ``model``, whose weights are loaded; None where its kernels or its layers have no fast path.

        Experts and projections with a bias are left to torch.
        """
        decode = model.kernels.decode
        if decode is None or model.config.proj_bias:
            return None
        return Decoder(model, decode) if all(isinstance(x.ffn, GatedFeedForward) for x in model.layers) else None

    def __call__(self, batch: Batch, states: StatePool, blocks: BlockPool) -> Tensor:
        """As :meth:`model.hybrid.HybridLM.__call__`, for a batch of one token per sequence."""
        config = self._model.config
        num_sequences, num_logits = batch.num_tokens, batch.logits_rows.shape[0]
        logits = torch.empty((num_logits, config.vocab_size))
        tables = [as_array(table) for table in batch.block_tables]
        sequences = (DecodedSequence * num_sequences)(*map(_sequence, batch.first_positions, batch.policies, tables))
        step = DecodedStep(
            num_sequences=num_sequences,
            num_logits=num_logits,
            num_slots=states.num_slots,
            num_blocks=blocks.num_blocks,
            input_ids=_address(batch.input_ids),
            query_start=_address(batch.query_start),
            state_slots=_address(batch.state_slots),
            kv_rows=_address(batch.kv_rows),
            logits_rows=_address(batch.logits_rows),
            sequences=ctypes.addressof(sequences),
            ssm=_address(states.ssm),
            conv=_address(states.conv),
            keys=_address(blocks.keys),
            values=_address(blocks.values),
            logits=_address(logits),
        )
        with self._crew.chosen(num_sequences) as num_threads:
            self._decode(self._weights, step, num_threads)
        return logits


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


def _layer(layer: "HybridLayer") -> DecodedLayer:
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
            "conv_weight": mixer.conv_weight,
            "conv_bias": mixer.conv_bias,
            "dt_norm": mixer.dt_norm.weight,
            "b_norm": mixer.b_norm.weight,
            "c_norm": mixer.c_norm.weight,
            "dt_weight": mixer.dt_weight,
            "dt_bias": mixer.dt_bias,
            "a": mixer.a,
            "d": mixer.d,
        }
    else:
        own = {"in_proj": mixer.qkv_proj.weight, "out_proj": mixer.o_proj.weight}
    addresses = {name: _address(tensor) for name, tensor in (both | own).items() if tensor is not None}
    return DecodedLayer(is_attention=not isinstance(mixer, MambaMixer), **addresses)


def _address(tensor: Tensor) -> int:
    assert tensor.is_contiguous() and tensor.device.type == "cpu", f"{tensor.stride()} on {tensor.device}"
    return tensor.data_ptr()
