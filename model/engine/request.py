"""What goes into the engine and what comes out: requests, sampling, events, usage. No torch."""

from dataclasses import dataclass
from enum import StrEnum

from model.errors import ModelError
from model.policy import AttentionPolicy


class FinishReason(StrEnum):
    """Why a sequence ended; ``stop`` and ``length`` in the words of the OpenAI schema."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is drawn. ``temperature == 0`` is greedy; ``top_k == 0`` keeps all tokens."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt to continue.

    ``evidence`` switches verbatim decoding on: the answer is then a span of one of these texts,
    or up to ``max_spans`` of them. ``policy`` of None takes the engine's own.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    evidence: tuple[str, ...] | None = None
    policy: AttentionPolicy | None = None
    max_spans: int = 1


@dataclass(frozen=True, slots=True)
class EvidenceSpan:
    """``evidence[evidence_index][start:end]``, in code points."""

    evidence_index: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class RequestUsage:
    """The bill of one finished request. Bytes are those of the tensors the sequence held at its end."""

    num_prompt_tokens: int
    num_cached_tokens: int
    num_completion_tokens: int
    policy: AttentionPolicy
    dtype: str
    kv_bytes: int
    ssm_state_bytes: int
    conv_state_bytes: int
    state_capacity_bits: int
    queue_seconds: float
    ttft_seconds: float | None
    total_seconds: float


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """Text that is safe to show, and at the end the reason, the usage and the verbatim spans.

    A stop string never appears in ``text``; text that might become one is held back.
    Exactly one event of a request has a ``finish_reason``, and it is the last. With
    ``FinishReason.ERROR`` it has ``error``, the reason why this request alone could not go on.
    """

    request_id: str
    text: str
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    usage: RequestUsage | None = None
    spans: tuple[EvidenceSpan, ...] = ()
    error: ModelError | None = None
