"""What a step must cost on a device at least: bytes that it moves, products that it takes; and what is predicted."""

from dataclasses import dataclass

from bench.sides import SMALL, TINY
from model.config import Dtype, ModelConfig
from model.kernels.triton.tables import num_visible_blocks
from model.policy import BLOCK_TOKENS, AttentionPolicy, PolicyName

# Of about the shape of the published 3B model.
LARGE = SMALL | {
    "vocab_size": 65536,
    "hidden_size": 2560,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 20,
    "num_key_value_heads": 1,
    "attn_layer_period": 14,
    "attn_layer_offset": 7,
}
GEOMETRIES = {"tiny": TINY, "28M": SMALL, "3B": LARGE}
# Targets of the design, from which numbers are predicted: seconds of a decode step over those of the floor, and what
# part of the matrix rate prefill reaches.
DECODE_OVER_FLOOR, PREFILL_OF_RATE = 1.25, 0.5
WINDOW = AttentionPolicy(PolicyName.WINDOW, 64, 2048)
ARCHIVE = AttentionPolicy(PolicyName.ARCHIVE, 64, 2048, 16)


@dataclass(frozen=True)
class Case:
    """One step of ``batch`` sequences: ``num_tokens`` each, the last of which stands at ``length - 1``."""

    phase: str
    policy: AttentionPolicy
    batch: int
    length: int
    num_tokens: int = 1

    @property
    def first_position(self) -> int:
        return self.length - self.num_tokens


@dataclass(frozen=True)
class Rates:
    """What the device does when it does nothing else."""

    copied_bytes_per_second: float
    multiplied_flops_per_second: float
    # What the host reads of its own memory in the threads that choose.
    host_bytes_per_second: float = float("inf")


@dataclass
class Row:
    """A case with what was predicted and measured; no seconds and a reason where it was not measured."""

    side: str
    phase: str
    policy: str
    batch: int
    length: int
    limit_seconds: float
    predicted_seconds: float
    seconds: float | None = None
    reason: str = ""

    @property
    def cell(self) -> str:
        if self.seconds is None:
            return f"not measured: {self.reason}"
        ratio = self.seconds / self.limit_seconds
        told = f"{ratio:.2f} x floor" if self.phase == "decode" else f"{1 / ratio:.0%} of rate"
        return f"{self.seconds * 1e3:10.3f} ms   {told}"


def values_of(geometry: str) -> dict[str, object]:
    """The ``config.json`` of a geometry, as ``bench.sides`` makes its checkpoints."""
    fixed = {"model_type": "jamba", "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_dt_rank": "auto"}
    return fixed | {"rms_norm_eps": 1e-6, "tie_word_embeddings": True} | GEOMETRIES[geometry]


def num_archived(case: Case) -> int:
    """Blocks of the archive among which the case's tokens select."""
    return case.policy.num_archived(case.length - 1)


def step_bytes(config: ModelConfig, dtype: Dtype, case: Case) -> int:
    """Bytes that a decode step must move on the device: the weights, each sequence's states there and back, and what it
    sees, which includes what it selects."""
    visible = num_visible_blocks(case.length - 1, case.policy) + min(case.policy.select, num_archived(case))
    per_sequence = 2 * config.state_bytes + visible * BLOCK_TOKENS * config.kv_bytes_per_token(dtype)
    return config.weight_bytes(dtype) + case.batch * per_sequence


def chunk_flops(config: ModelConfig, case: Case) -> int:
    """Multiplications and additions of a prefill step's products: matrices, scores and weighted values. The logits are
    those of one token a sequence; scan and convolution, which are no products, are not counted."""
    num_tokens = case.batch * case.num_tokens
    matrices = sum(count * rows * columns for count, rows, columns in (*config.matrices, *config.float32_matrices))
    head = config.vocab_size * config.hidden_size
    every = matrices - head * (1 if config.tie_word_embeddings else 2)
    seen = sum(
        min(position + 1, case.policy.sinks + position + 1 - case.policy.window_start(position))
        for position in range(case.first_position, case.length)
    )
    attention = 4 * config.num_attention_layers * config.query_size * seen * case.batch
    return 2 * (num_tokens * every + case.batch * head) + attention


def scanned_bytes(config: ModelConfig, dtype: Dtype, case: Case) -> int:
    """Bytes of summaries that the host must read in a decode step, for which each sequence is asked alone."""
    return case.batch * num_archived(case) * config.archive_bytes_per_block(dtype)[1]


def limit_seconds(config: ModelConfig, dtype: Dtype, case: Case, rates: Rates) -> float:
    """Seconds below which the step cannot come on this device."""
    if case.phase == "decode":
        scanned = scanned_bytes(config, dtype, case) / rates.host_bytes_per_second
        return step_bytes(config, dtype, case) / rates.copied_bytes_per_second + scanned
    return chunk_flops(config, case) / rates.multiplied_flops_per_second


def predicted(case: Case, limit: float) -> float:
    """Seconds that the targets of the design come to."""
    return limit * (DECODE_OVER_FLOOR if case.phase == "decode" else 1 / PREFILL_OF_RATE)


def cases(lengths: list[int], batches: list[int], chunk_tokens: int) -> list[Case]:
    """Decode and prefill under both policies; a prompt's last chunk, which reads all that comes before it."""
    made = []
    for policy in (WINDOW, AttentionPolicy()):
        for length in lengths:
            made += [Case("decode", policy, batch, length) for batch in batches]
            made += [Case("prefill", policy, batch, length, min(length, chunk_tokens // batch)) for batch in batches]
    return [case for case in made if case.num_tokens]


def archive_cases(lengths: list[int], batches: list[int], policy: AttentionPolicy) -> list[Case]:
    """Decode under policy ``archive``, where there is something to select."""
    made = [Case("decode", policy, batch, length) for length in lengths for batch in batches]
    return [case for case in made if num_archived(case)]
