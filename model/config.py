"""What a checkpoint is (``ModelConfig``) and how an engine runs it (``EngineConfig``). No torch."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from model.errors import CheckpointNotFound, ConfigInvalid
from model.index_plan import IndexPlan
from model.policy import BLOCK_TOKENS, AttentionPolicy, PolicyName
from model.tiles import padded_shape, summary_shape

FLOAT32_BYTES = 4


class Dtype(StrEnum):
    """Number format of weights, matrix products and the key/value pool.

    Under ``int8`` weights share a scale by groups, and keys and values are bfloat16. For native kernels alone.
    """

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"

    @property
    def num_bytes(self) -> int:
        """Bytes of one number, without the scale of its group."""
        return {Dtype.FLOAT32: 4, Dtype.BFLOAT16: 2, Dtype.INT8: 1}[self]

    @property
    def kept(self) -> "Dtype":
        """As what keys, values and other activations are held."""
        return Dtype.BFLOAT16 if self is Dtype.INT8 else self


class ReadingUnit(StrEnum):
    """What a checkpoint reads best when it answers from evidence: several passages, or the one nearest sentence."""

    PASSAGES = "passages"
    SENTENCE = "sentence"


class LayerKind(StrEnum):
    """Which mixer a layer has."""

    MAMBA = "mamba"
    ATTENTION = "attention"


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The architecture of a checkpoint in the Jamba layout, as its ``config.json`` states it.

    ``policy`` is the attention policy the checkpoint was made for and ``reads`` the evidence it reads best: what its
    ``fano`` entry says, else ``full`` and passages. ``state_recall_bits`` is what the state alone recalled when it was
    measured, None where it was not.
    ``num_experts == 1`` means that no layer has experts.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    attn_layer_period: int
    attn_layer_offset: int
    state_size: int
    conv_width: int
    expand: int
    dt_rank: int
    norm_eps: float
    num_experts: int = 1
    num_experts_per_token: int = 1
    expert_layer_period: int = 1
    expert_layer_offset: int = 0
    conv_bias: bool = True
    proj_bias: bool = False
    tie_word_embeddings: bool = False
    max_position_embeddings: int | None = None
    policy: AttentionPolicy = field(default_factory=AttentionPolicy)
    reads: ReadingUnit = ReadingUnit.PASSAGES
    state_recall_bits: float | None = None

    @staticmethod
    def from_pretrained(directory: Path) -> "ModelConfig":
        """Read ``config.json`` in ``directory``.

        Raises CheckpointNotFound where the file is absent, ConfigInvalid where it is not JSON or cannot be used.
        """
        path = directory / "config.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise CheckpointNotFound(f"{path} does not exist; name a directory that holds a checkpoint") from None
        except ValueError as error:
            raise ConfigInvalid(str(path), str(error), "a JSON object", "fetch the checkpoint again") from error
        if not isinstance(values, dict):
            raise ConfigInvalid(str(path), type(values).__name__, "a JSON object", "fetch the checkpoint again")
        return ModelConfig.from_dict(values)

    @staticmethod
    def from_dict(values: Mapping[str, object]) -> "ModelConfig":
        """Build from the keys of transformers' ``JambaConfig``. Raises ConfigInvalid naming the key at fault."""
        _require_jamba(values)
        hidden_size = _integer(values, "hidden_size")
        num_heads = _integer(values, "num_attention_heads")
        num_experts = _integer(values, "num_experts", default=1)
        policy, reads = _fano_entry(values)
        routed = num_experts > 1
        config = ModelConfig(
            vocab_size=_integer(values, "vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=_integer(values, "intermediate_size"),
            num_layers=_integer(values, "num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=_integer(values, "num_key_value_heads", default=num_heads),
            head_width=_integer(values, "head_dim", default=hidden_size // num_heads),
            attn_layer_period=_integer(values, "attn_layer_period"),
            attn_layer_offset=_integer(values, "attn_layer_offset", least=0),
            state_size=_integer(values, "mamba_d_state"),
            conv_width=_integer(values, "mamba_d_conv", least=2),
            expand=_integer(values, "mamba_expand"),
            dt_rank=-(-hidden_size // 16)
            if values.get("mamba_dt_rank") == "auto"
            else _integer(values, "mamba_dt_rank"),
            norm_eps=_positive(values, "rms_norm_eps"),
            num_experts=num_experts,
            num_experts_per_token=_integer(values, "num_experts_per_tok") if routed else 1,
            expert_layer_period=_integer(values, "expert_layer_period") if routed else 1,
            expert_layer_offset=_integer(values, "expert_layer_offset", least=0) if routed else 0,
            conv_bias=_boolean(values, "mamba_conv_bias", default=True),
            proj_bias=_boolean(values, "mamba_proj_bias", default=False),
            tie_word_embeddings=_boolean(values, "tie_word_embeddings", default=False),
            max_position_embeddings=_integer(values, "max_position_embeddings", default=0, least=0) or None,
            policy=policy,
            reads=reads,
            state_recall_bits=_recall_bits(values),
        )
        config._require_consistency()
        return config

    @property
    def layer_kinds(self) -> tuple[LayerKind, ...]:
        """The mixer of each layer, first to last."""
        return tuple(
            LayerKind.ATTENTION if index % self.attn_layer_period == self.attn_layer_offset else LayerKind.MAMBA
            for index in range(self.num_layers)
        )

    @property
    def num_attention_layers(self) -> int:
        """Layers that keep keys and values."""
        return sum(kind is LayerKind.ATTENTION for kind in self.layer_kinds)

    @property
    def num_mamba_layers(self) -> int:
        """Layers that keep a recurrent state."""
        return self.num_layers - self.num_attention_layers

    def has_experts(self, layer: int) -> bool:
        """Whether the feed-forward of ``layer`` is routed among experts."""
        return self.num_experts > 1 and layer % self.expert_layer_period == self.expert_layer_offset

    @property
    def num_expert_layers(self) -> int:
        """Layers whose feed-forward is routed among experts."""
        return sum(self.has_experts(layer) for layer in range(self.num_layers))

    @property
    def inner_size(self) -> int:
        """I: channels inside a Mamba mixer."""
        return self.expand * self.hidden_size

    @property
    def query_size(self) -> int:
        """H * E: width of all query heads together."""
        return self.num_heads * self.head_width

    @property
    def kv_size(self) -> int:
        """G * E: width of all key heads together."""
        return self.num_kv_heads * self.head_width

    @property
    def matrices(self) -> Sequence[tuple[int, int, int]]:
        """(how many, outputs, inputs) of the matrices that are held in the weight dtype."""
        width, inner = self.hidden_size, self.inner_size
        num_forwards = self.num_layers + self.num_expert_layers * (self.num_experts - 1)
        return (
            (1 if self.tie_word_embeddings else 2, self.vocab_size, width),
            (self.num_attention_layers, self.query_size + 2 * self.kv_size, width),
            (self.num_attention_layers, width, self.query_size),
            (self.num_mamba_layers, 2 * inner, width),
            (self.num_mamba_layers, self.dt_rank + 2 * self.state_size, inner),
            (self.num_mamba_layers, width, inner),
            (num_forwards, 2 * self.intermediate_size, width),
            (num_forwards, width, self.intermediate_size),
        )

    @property
    def float32_matrices(self) -> Sequence[tuple[int, int, int]]:
        """As ``matrices``, of those that stay float32 under every weight dtype: time steps and routers."""
        routers = (self.num_expert_layers, self.num_experts, self.hidden_size)
        return (self.num_mamba_layers, self.inner_size, self.dt_rank), routers

    @property
    def num_vector_parameters(self) -> int:
        """Parameters that are no matrices, and float32: norms, biases, and what steers the recurrence."""
        width, inner, state, rank = self.hidden_size, self.inner_size, self.state_size, self.dt_rank
        convolution = self.conv_width * inner + (inner if self.conv_bias else 0)
        projection_bias = 2 * inner + width if self.proj_bias else 0
        mamba = convolution + inner + state * inner + inner + rank + 2 * state + projection_bias
        return width * (2 * self.num_layers + 1) + self.num_mamba_layers * mamba

    def num_parameters(self) -> int:
        """Parameters of the checkpoint; tied ones count once."""
        matrices = (*self.matrices, *self.float32_matrices)
        return self.num_vector_parameters + sum(count * rows * columns for count, rows, columns in matrices)

    def weight_bytes(self, dtype: Dtype) -> int:
        """Bytes of the weights as the model holds them: matrices in whole strips, with their groups' scales."""
        num_bytes = FLOAT32_BYTES * self.num_vector_parameters
        for matrices, item_bytes in ((self.matrices, dtype.num_bytes), (self.float32_matrices, FLOAT32_BYTES)):
            for count, rows, columns in matrices:
                num_bytes += count * item_bytes * math.prod(padded_shape(rows, columns, item_bytes))
        return num_bytes

    def kv_bytes_per_token(self, dtype: Dtype) -> int:
        """Bytes of keys and values that one token leaves in all attention layers."""
        return 2 * self.num_attention_layers * self.kv_size * dtype.kept.num_bytes

    def archive_bytes_per_block(self, dtype: Dtype, index: IndexPlan | None = None) -> tuple[int, int]:
        """Bytes of the keys and values, and of the summary, of one block that left the window; where it shares an
        ``index``, the latter with its part of what that takes at most."""
        item_bytes = dtype.kept.num_bytes
        numbers = math.prod(summary_shape(self.head_width, item_bytes))
        summary = self.num_attention_layers * self.num_kv_heads * numbers * item_bytes
        if index is not None:
            summary += -(-self.index_bytes(dtype, index) // index.num_blocks)
        return BLOCK_TOKENS * self.kv_bytes_per_token(dtype), summary

    def index_bytes(self, dtype: Dtype, index: IndexPlan) -> int:
        """Most bytes of one index over the archive."""
        return index.most_bytes(self.num_attention_layers, self.num_kv_heads, self.head_width, dtype.kept.num_bytes)

    def num_archive_blocks(
        self, dtype: Dtype, memory_bytes: int, disk_bytes: int, index: IndexPlan | None = None
    ) -> tuple[int, int]:
        """Blocks in memory, and on the disk: as many as there can be where the former and the summaries of all, which
        every token that selects reads, take ``memory_bytes``, and the latter ``disk_bytes``."""
        block, summary = self.archive_bytes_per_block(dtype, index)
        if not block:
            return 0, 0
        num_on_disk = min(disk_bytes // block, memory_bytes // summary)
        return (memory_bytes - num_on_disk * summary) // (block + summary), num_on_disk

    @property
    def ssm_state_bytes(self) -> int:
        """Bytes of the scan state of one sequence (float32), whatever its length."""
        return self.num_mamba_layers * self.state_size * self.inner_size * FLOAT32_BYTES

    @property
    def conv_state_bytes(self) -> int:
        """Bytes of the convolution state of one sequence (float32), whatever its length."""
        return self.num_mamba_layers * (self.conv_width - 1) * self.inner_size * FLOAT32_BYTES

    @property
    def state_bytes(self) -> int:
        """Bytes of the recurrent state of one sequence."""
        return self.ssm_state_bytes + self.conv_state_bytes

    def _require_consistency(self) -> None:
        if self.num_heads % self.num_kv_heads:
            expected = f"a divisor of num_attention_heads = {self.num_heads}"
            raise ConfigInvalid("num_key_value_heads", self.num_kv_heads, expected, "correct config.json")
        for key, offset, period in (
            ("attn_layer_offset", self.attn_layer_offset, self.attn_layer_period),
            ("expert_layer_offset", self.expert_layer_offset, self.expert_layer_period),
        ):
            if offset >= period:
                raise ConfigInvalid(key, offset, f"less than its period {period}", "correct config.json")
        if self.num_experts_per_token > self.num_experts:
            expected = f"at most num_experts = {self.num_experts}"
            raise ConfigInvalid("num_experts_per_tok", self.num_experts_per_token, expected, "correct config.json")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How an engine runs a model. ``None`` means: take the checkpoint's own, or derive it.

    ``num_blocks`` of None gives every slot enough blocks for ``max_context_tokens`` under the policy.
    ``kernels`` of None takes the fastest that work; ``prefill_chunk_tokens`` is a multiple of the block size.

    A step reads at most ``prefill_chunk_tokens`` of prompts. Beside streams it reads ``mixed_chunk_tokens`` at most,
    and no more often than leaves the streams all but ``prefill_share`` of the time. ``saved_bytes`` is the host memory
    that preempted requests may take, ``session_bytes`` what checkpoints and named sessions may;
    ``num_checkpoint_slots`` more state slots hold checkpoints on the device. Under policy ``archive`` what leaves the
    windows may take ``archive_bytes`` of host memory, the summaries of all of it included, and
    ``archive_disk_bytes`` of a file without a name in ``archive_directory``, or where temporary files go.
    ``archive_index_blocks`` of a text that left the window share an index, so that a token reads a part of their
    summaries; 0: it reads them all.
    """

    num_slots: int = 8
    num_checkpoint_slots: int = 16
    max_context_tokens: int = 32768
    num_blocks: int | None = None
    dtype: Dtype = Dtype.FLOAT32
    policy: AttentionPolicy | None = None
    prefill_chunk_tokens: int = 512
    mixed_chunk_tokens: int = 64
    prefill_share: float = 0.5
    saved_bytes: int = 1 << 30
    session_bytes: int = 1 << 30
    archive_bytes: int = 2 << 30
    archive_disk_bytes: int = 8 << 30
    archive_directory: Path | None = None
    archive_index_blocks: int = 0
    max_waiting: int = 64
    device: str = "cpu"
    num_threads: int = 1
    kernels: str | None = None

    def num_fetched_blocks(self, model: ModelConfig) -> int:
        """Blocks of the archive that a device has room for beside those of the windows: what every sequence selects for
        a token. None on the CPU, where they are read in place."""
        budgets = self.archive_bytes, self.archive_disk_bytes
        if self.device == "cpu" or not any(model.num_archive_blocks(self.dtype, *budgets)):
            return 0
        return self.num_slots * self.policy_for(model).select

    @property
    def archive_index(self) -> IndexPlan | None:
        """How the archive is indexed, if it is."""
        if not self.archive_index_blocks:
            return None
        return IndexPlan.of(self.archive_index_blocks, self.prefill_chunk_tokens)

    def policy_for(self, model: ModelConfig) -> AttentionPolicy:
        """The attention policy requests run under unless they choose their own."""
        return model.policy if self.policy is None else self.policy

    def __post_init__(self) -> None:
        for key in ("num_slots", "max_context_tokens", "prefill_chunk_tokens", "num_threads"):
            if getattr(self, key) < 1:
                raise ConfigInvalid(key, getattr(self, key), "at least 1", f"raise {key}")
        if self.prefill_chunk_tokens % BLOCK_TOKENS:
            expected = f"a multiple of {BLOCK_TOKENS} tokens"
            raise ConfigInvalid("prefill_chunk_tokens", self.prefill_chunk_tokens, expected, "round it")
        if not BLOCK_TOKENS <= self.mixed_chunk_tokens <= self.prefill_chunk_tokens:
            expected = f"{BLOCK_TOKENS} to prefill_chunk_tokens = {self.prefill_chunk_tokens}"
            raise ConfigInvalid("mixed_chunk_tokens", self.mixed_chunk_tokens, expected, "change one of them")
        if not 0 < self.prefill_share < 1:
            raise ConfigInvalid("prefill_share", self.prefill_share, "more than 0 and less than 1", "0.5 is fair")
        sizes = ("saved_bytes", "session_bytes", "archive_bytes", "archive_disk_bytes", "archive_index_blocks")
        for key in ("max_waiting", "num_checkpoint_slots", *sizes):
            if getattr(self, key) < 0:
                raise ConfigInvalid(key, getattr(self, key), "at least 0", f"raise {key}")
        if self.num_blocks is not None and self.num_blocks < 1:
            raise ConfigInvalid("num_blocks", self.num_blocks, "at least 1", "raise num_blocks or leave it out")


def _require_jamba(values: Mapping[str, object]) -> None:
    remedy = "only checkpoints in the Jamba layout can be run"
    if values.get("model_type") != "jamba":
        raise ConfigInvalid("model_type", values.get("model_type"), "'jamba'", remedy)
    for key, expected in (("hidden_act", "silu"), ("mamba_inner_layernorms", True), ("sliding_window", None)):
        if values.get(key, expected) != expected:
            raise ConfigInvalid(key, values[key], repr(expected), remedy)


def _fano_entry(values: Mapping[str, object]) -> tuple[AttentionPolicy, ReadingUnit]:
    entry = values.get("fano")
    if entry is None:
        return AttentionPolicy(), ReadingUnit.PASSAGES
    if not isinstance(entry, Mapping):
        expected = "an object with policy, sinks, window, select and reads"
        raise ConfigInvalid("fano", entry, expected, "correct config.json")
    unknown = sorted(set(entry) - {"policy", "sinks", "window", "select", "reads", "recall_bits"})
    if unknown:
        raise ConfigInvalid(f"fano.{unknown[0]}", entry[unknown[0]], "no such key", "remove it from config.json")
    name = entry.get("policy")
    if name not in [*PolicyName]:
        raise ConfigInvalid("fano.policy", name, f"one of {[*map(str, PolicyName)]}", "correct config.json")
    reads = entry.get("reads", ReadingUnit.PASSAGES)
    if reads not in [*ReadingUnit]:
        raise ConfigInvalid("fano.reads", reads, f"one of {[*map(str, ReadingUnit)]}", "correct config.json")
    default = AttentionPolicy()
    sinks = _integer(entry, "sinks", default=default.sinks, least=0)
    window = _integer(entry, "window", default=default.window)
    select = _integer(entry, "select", default=default.select)
    try:
        return AttentionPolicy(PolicyName(str(name)), sinks, window, select), ReadingUnit(str(reads))
    except ValueError as error:
        raise ConfigInvalid("fano", dict(entry), str(error), "correct config.json") from error


def _recall_bits(values: Mapping[str, object]) -> float | None:
    """What ``fano.recall_bits`` says, once ``_fano_entry`` has looked at the entry."""
    entry = values.get("fano")
    bits = entry.get("recall_bits") if isinstance(entry, Mapping) else None
    if bits is None:
        return None
    if not isinstance(bits, int | float) or isinstance(bits, bool) or not 0 <= bits < math.inf:
        raise ConfigInvalid("fano.recall_bits", bits, "a number of bits, 0 or more", "correct config.json")
    return float(bits)


def _integer(values: Mapping[str, object], key: str, default: int | None = None, least: int = 1) -> int:
    value = values.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigInvalid(key, values.get(key), f"a whole number of at least {least}", "correct config.json")
    return value


def _positive(values: Mapping[str, object], key: str) -> float:
    value = values.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        raise ConfigInvalid(key, value, "a positive number", "correct config.json")
    return float(value)


def _boolean(values: Mapping[str, object], key: str, default: bool) -> bool:
    value = values.get(key, default)
    if not isinstance(value, bool):
        raise ConfigInvalid(key, value, "true or false", "correct config.json")
    return value
