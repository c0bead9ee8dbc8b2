"""What is asked, and what comes back: an inquiry, and the events of its answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from model.config import ReadingUnit
from model.engine.constraint import ConstraintMaker
from model.engine.request import FinishReason, RequestUsage, TokenLogprob
from model.policy import AttentionPolicy
from retrieval.passage import Cutting, FactKind
from retrieval.scope import Scope
from server.answers.citations import Citation
from server.answers.form import AnswerForm, AnswerStart
from server.answers.gate import Decision, Reason
from server.answers.prompt import Turn
from server.schemas import Recall


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What answers: its name, and what prompts must respect.

    ``state_recall_bits`` is what its state alone recalled when that was measured, else None.
    """

    name: str
    created: int
    policy: AttentionPolicy
    dtype: str
    max_context_tokens: int
    reads: ReadingUnit = ReadingUnit.PASSAGES
    state_recall_bits: float | None = None


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a client wants its tokens drawn, and what it wants to know of them; None leaves it to the server.

    The fields are those of ``SamplingParams``; ``num_choices`` is how many replies.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    num_choices: int = 1
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class GivenFact:
    """A text that must be in the prompt, the key that it is the value under, and its ``param`` in the request."""

    text: str
    key: str | None
    param: str


@dataclass(frozen=True, slots=True)
class AskedPart:
    """A part of a document as the request names it, by characters, pages or heading, and its ``param`` there."""

    param: str
    document: str | None = None
    start: int | None = None
    end: int | None = None
    first_page: int | None = None
    last_page: int | None = None
    heading: str | None = None


@dataclass(frozen=True, slots=True)
class Inquiry:
    """A conversation whose last turn wants an answer, from ``documents`` if there are any.

    ``started`` is the monotonic time of the request's arrival. ``policy`` of None is the engine's own, or that of the
    ``session`` which the conversation goes on. With ``may_skip`` the gate may leave the documents alone;
    ``decision`` is what it decided. Of a document that ``within`` names only the part is searched, and keys lead to
    facts of ``fact_kinds`` alone, if there are any. Passages that score less than ``min_score`` are left out;
    ``cuttings`` says of documents how these are cut, where not for the question alone.
    ``constraint`` says of each reply which tokens may come, ``tools`` are the functions that the model is told of.
    ``searches_nothing``: documents are to be searched, and there are none, as in a vector store without files or where
    none passes the filters. ``needs_search`` is a field of the request that means something only where documents or a
    long prompt are searched, ``needs_long`` one that does only where the prompt is long. ``question_param`` is the
    field that is the question and brings no text along; None where messages may.
    ``is_streamed`` is whether the reply is sent as it comes, ``tells_progress`` whether how far the prompt is read is
    sent as well; None where the prompt is longer than the window.
    """

    request_id: str
    tenant: str
    turns: tuple[Turn, ...]
    documents: tuple[str, ...]
    recall: Recall
    sampling: Sampling
    max_passages: int
    started: float
    policy: AttentionPolicy | None = None
    session: str | None = None
    form: AnswerForm = field(default_factory=AnswerForm)
    may_skip: bool = False
    decision: Decision | None = None
    facts: tuple[GivenFact, ...] = ()
    within: tuple[AskedPart, ...] = ()
    fact_kinds: tuple[FactKind, ...] = ()
    min_score: float = 0.0
    cuttings: Mapping[str, Sequence[Cutting | None]] = field(default_factory=dict)
    constraint: ConstraintMaker | None = None
    tools: tuple[Mapping[str, object], ...] = ()
    searches_nothing: bool = False
    needs_search: str | None = None
    needs_long: str | None = None
    question_param: str | None = None
    is_streamed: bool = True
    tells_progress: bool | None = None


@dataclass(frozen=True, slots=True)
class RetrievalBill:
    """What was searched, how much of it stands in the prompt, and with what memory the prompt begins.

    ``note`` says how it was searched and what was left out; ``query`` is what was searched for where that is more than
    the last turn; ``scope`` what the search was limited to.
    """

    used: bool
    reason: Reason
    num_passages: int = 0
    num_facts: int = 0
    seconds: float = 0.0
    text_bytes: int = 0
    index_bytes: int = 0
    start: AnswerStart = AnswerStart.FRESH
    note: str | None = None
    query: str | None = None
    scope: Scope = field(default_factory=Scope)


@dataclass(frozen=True, slots=True)
class AnswerProgress:
    """How far the prompt is read before anything is said: ``num_processed`` of ``num_tokens``, of which ``num_cached``
    were there already, ``seconds`` after the request came."""

    num_tokens: int
    num_cached: int
    num_processed: int
    seconds: float


@dataclass(frozen=True, slots=True)
class AnswerText:
    """A piece of one choice. ``logprobs`` has one entry per token that came with it, if they were asked for; the
    text may be empty while its tokens are half a character or might become a stop string."""

    text: str
    choice: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class ChoiceDone:
    """One choice is complete: ``text`` is all its pieces together."""

    choice: int
    text: str
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class AnswerDone:
    """The whole answer; ``choices`` by index. ``usage`` is None when no model was asked. ``beside`` is how far a prompt
    is by now that is read beside the answer, and not for it."""

    choices: tuple[ChoiceDone, ...]
    found: bool
    citations: tuple[Citation, ...]
    usage: RequestUsage | None
    retrieval: RetrievalBill
    ttft_seconds: float | None
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    beside: AnswerProgress | None = None

    @property
    def text(self) -> str:
        """The first choice's text."""
        return self.choices[0].text

    @property
    def finish_reason(self) -> FinishReason:
        """The first choice's."""
        return self.choices[0].finish_reason


AnswerEvent = AnswerProgress | AnswerText | Citation | ChoiceDone | AnswerDone


@dataclass(frozen=True, slots=True)
class Limits:
    """Tokens of an answer whose request names none, of a chat and from documents, and seconds that any may take.

    ``measure_information`` is whether the surprisal of prompts is summed up, ``always_retrieve`` whether no turn that
    names documents is left without a search, ``certain_from`` how certain the model must be of an answer without
    documents to be taken at its word, None if it is not asked. Prompts of which more than ``max_whole_prompt_tokens``
    are to be read are answered in streams alone.
    """

    chat_max_tokens: int
    answer_max_tokens: int
    max_request_seconds: float | None = None
    measure_information: bool = False
    always_retrieve: bool = False
    certain_from: float | None = None
    max_whole_prompt_tokens: int = 100_000
