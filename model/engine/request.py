"""What goes into the engine and what comes out: requests, sampling, events, usage. No torch."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from model.engine.constraint import ConstraintMaker
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
    """How the next token is drawn. ``temperature == 0`` is greedy; ``top_k == 0`` keeps all tokens.

    ``min_p`` drops tokens less probable than this share of the most probable one. ``presence_penalty`` and
    ``frequency_penalty`` are subtracted once, and once per occurrence, from the logits of tokens of the completion
    (OpenAI); ``repetition_penalty`` divides positive and multiplies negative logits of every token of prompt or
    completion (arXiv 1909.05858, section 4.1). ``logit_bias`` are pairs of token id and what is added to its logit.
    Every ``seed`` from -2**63 to 2**64 - 1 has draws of its own; None draws anew each time.

    ``logprobs`` of None returns no log probabilities; k returns those of each drawn token and of the k most probable
    ones, of the model's own distribution before any of the above. ``prompt_logprobs`` does the same for the prompt.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Keep:
    """Where a checkpoint is worth having, beside the ends of prompt and turn.

    ``borders`` are numbers of tokens at which messages end. ``tail``: also some way before the prompt's end, ever
    further apart, so that another end of the same prompt costs little: for sessions with a name. With ``nothing`` not
    even the ends are kept, and nothing kept is used.
    """

    borders: tuple[int, ...] = ()
    tail: bool = False
    nothing: bool = False


@dataclass(frozen=True, slots=True)
class PrefixOutcome:
    """Whether a prompt's beginning was there already: ``hit`` with the place that was kept, ``miss`` with the reason,
    and the number of tokens that were not read again."""

    result: str
    reason: str
    num_tokens: int = 0


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt to continue, ``num_choices`` times; the prompt is read once, and not even that as far as a checkpoint
    of its beginning is there. A long prompt is best given as ``array("i")``, which is not copied token by token.

    ``evidence`` switches verbatim decoding on: the answer is then a span of one of these texts,
    or up to ``max_spans`` of them; with ``whole_evidence`` each span is one whole text. ``constraint`` makes for each
    choice what says which tokens may come; it does not go together with evidence. What ``continues`` the prompt's own
    text keeps the space that it begins with. ``policy`` of None takes the
    engine's own. ``tenant`` is whose share of the engine it uses. After ``max_seconds`` from its submission it ends
    with ``DeadlineExceeded``. With ``measure_information`` the surprisal of the prompt is summed up. With
    ``surprisals_from`` the usage has that of each token of the prompt from this place on, which is at least 1; no
    checkpoint behind the place is used then, so that nothing of it is missing.
    Under policy ``archive`` the tokens from position ``select_from`` on select blocks; those before, a document's, are
    read as under ``window``. ``is_background`` yields to everyone else, and with ``max_tokens`` 0 the prompt is only
    read: the one event has the usage and no token.
    """

    request_id: str
    prompt_ids: Sequence[int]
    sampling: SamplingParams
    evidence: tuple[str, ...] | None = None
    policy: AttentionPolicy | None = None
    max_spans: int = 1
    whole_evidence: bool = False
    num_choices: int = 1
    tenant: str = "default"
    max_seconds: float | None = None
    keep: Keep = Keep()
    measure_information: bool = False
    surprisals_from: int | None = None
    is_background: bool = False
    constraint: ConstraintMaker | None = None
    continues: bool = False
    select_from: int = 0


@dataclass(frozen=True, slots=True)
class EvidenceSpan:
    """``evidence[evidence_index][start:end]``, in code points."""

    evidence_index: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The natural log probability of one token, and of the most probable ones in its place, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class RequestUsage:
    """The bill of one finished request, all choices together. Bytes are those of the tensors it held: the most at
    the end of any of its choices, what choices share counted once; ``kv_archive_bytes`` and ``kv_summary_bytes`` are
    on the host, and not in ``state_capacity_bits``. ``surprisals`` are in bits, one for each token from
    ``surprisals_from`` on, if they were asked for; each is a multiple of 2**-24, as their sum ``information_bits`` is.
    """

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
    num_preemptions: int = 0
    prefix: PrefixOutcome = PrefixOutcome("miss", "empty")
    information_bits: float | None = None
    surprisals: "array[float] | None" = None
    kv_archive_bytes: int = 0
    kv_summary_bytes: int = 0


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """Text of one choice that is safe to show, and at its end the reason and the verbatim spans.

    A stop string never appears in ``text``; text that might become one is held back.
    Exactly one event of each choice has a ``finish_reason``, and it is the choice's last; the request's last event
    also has the ``usage``. With ``FinishReason.ERROR`` it is the request's last, whatever its other choices did, and
    has ``error``, the reason why this request alone could not go on.

    ``logprobs`` has one entry for each of ``token_ids`` if they were asked for. ``prompt_logprobs`` comes with the
    first event of choice 0: one entry for each token of the prompt, None for the first, before which there is
    nothing. ``gap_seconds`` is the time since the choice's token before; None for its first.
    """

    request_id: str
    text: str
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    usage: RequestUsage | None = None
    spans: tuple[EvidenceSpan, ...] = ()
    error: ModelError | None = None
    choice: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    gap_seconds: float | None = None
