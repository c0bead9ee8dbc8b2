"""An engine that says what it is told to, and a small tokenizer made from text of our own.

``FakeEngine`` has the Engine's API and obeys the same promises: one last event per choice and per
request, abort idempotent, refusals raised by ``submit``. Without a script a request is answered with ``"ok"``.
"""

import json
import re
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fakes_checkpoints import FakeCheckpoints, FakeHolding

from model.engine.request import (
    EvidenceSpan,
    FinishReason,
    GenerationRequest,
    RequestUsage,
    TokenEvent,
    TokenLogprob,
)
from model.engine.stats import BuildInfo, EngineStats, PoolCounts, StepRecord
from model.errors import DeadlineExceeded, InvalidRequest, ModelError, NeverFits
from model.fingerprint import Fingerprint
from model.policy import AttentionPolicy, PolicyName

WINDOW = AttentionPolicy(PolicyName.WINDOW, 64, 2048)
NUM_SLOTS = 8
NUM_BLOCKS = 64


@dataclass
class Script:
    """What one request will say: pieces of text for each choice, one per step, then the end.

    The tokens of a choice are numbered from 1, or are ``token_ids`` in their order.
    """

    choices: list[list[str]]
    finish_reason: FinishReason = FinishReason.STOP
    spans: tuple[EvidenceSpan, ...] = ()
    error: ModelError | None = None
    token_ids: list[int] | None = None


@dataclass
class Running:
    """A request that is under way; ``num_sent`` pieces of each choice that has not ended."""

    request: GenerationRequest
    script: Script
    num_sent: dict[int, int]
    deadline: float | None
    drawn: list[int] = field(default_factory=list)
    is_paused: bool = False


class FakeEngine:
    """Scripted stand-in for ``model.engine.engine.Engine``. ``stall``, ``go_on`` and the lists are for any thread."""

    def __init__(self, policy: AttentionPolicy = WINDOW) -> None:
        self.policy = policy
        self.requests: list[GenerationRequest] = []
        self.aborted: list[str] = []
        self.paused: list[str] = []
        self.resumed: list[str] = []
        self.num_calls = 0
        self.num_read = self.num_cached = 0
        self.checkpoints = FakeCheckpoints()
        self.parts = {"weights": "w", "tokenizer": "t", "dtype": "float32", "kernels": "fake"}
        self._scripts: deque[Script] = deque()
        self._refusals: deque[ModelError] = deque()
        self._running: dict[str, Running] = {}
        self._crash: Exception | None = None
        self._may_step = threading.Event()
        self._may_step.set()
        self._stats = EngineStats(
            build=BuildInfo("fake", "cpu", "reference", "float32", "full"),
            slots=PoolCounts(free=NUM_SLOTS, used=0),
            blocks=PoolCounts(free=NUM_BLOCKS, used=0),
            pool_bytes={"weights": 1000, "ssm_state": 800, "conv_state": 80, "kv": 6400, "workspace": 10},
            plan_bytes={"weights": 1000, "ssm_state": 800, "conv_state": 80, "kv": 6400, "workspace": 10},
            max_context_tokens=100_000,
        )

    def enqueue(
        self,
        text: str,
        *others: str,
        pieces: list[str] | None = None,
        finish_reason: FinishReason = FinishReason.STOP,
        spans: tuple[EvidenceSpan, ...] = (),
        error: ModelError | None = None,
        token_ids: list[int] | None = None,
    ) -> None:
        """Script the next request: ``text`` in words (or ``pieces``), then the end, or ``error`` after the text.

        ``others`` are the texts of choices 1 and on; a choice without one says what the first says.
        """
        first = pieces if pieces is not None else _words(text)
        self._scripts.append(Script([first, *map(_words, others)], finish_reason, spans, error, token_ids))

    def refuse(self, refusal: ModelError) -> None:
        """Raise ``refusal`` from the next submit."""
        self._refusals.append(refusal)

    def crash(self, failure: Exception) -> None:
        """Raise ``failure`` from the next step, as a defect outside any one request would."""
        self._crash = failure

    def stall(self) -> None:
        """Let the next step return nothing until ``go_on``, as a long prefill does."""
        self._may_step.clear()

    def go_on(self) -> None:
        """End a stall."""
        self._may_step.set()

    def tell(self, **changes: object) -> None:
        """Change what ``stats`` says."""
        self._stats = replace(self._stats, **changes)  # type: ignore[arg-type]

    def fingerprint(self, policy: AttentionPolicy) -> Fingerprint:
        return Fingerprint(policy=str(policy), **self.parts)

    def holding(self, tenant: str, policy: AttentionPolicy, token_ids: Sequence[int]) -> FakeHolding:
        return self.checkpoints.holding((tenant, policy), token_ids)

    def forget(self, tenant: str, policy: AttentionPolicy, token_ids: Sequence[int], num_general: int) -> int:
        return self.checkpoints.forget((tenant, policy), token_ids, num_general)

    def reading(self, request_id: str) -> tuple[int, int]:
        running = self._running.get(request_id)
        return (0, 0) if running is None else (self.num_read, self.num_cached)

    def submit(self, request: GenerationRequest) -> None:
        if self._refusals:
            raise self._refusals.popleft()
        if request.request_id in self._running:
            raise InvalidRequest("request_id", request.request_id, "an id that is not in use")
        if request.num_choices > NUM_SLOTS:
            raise NeverFits("n", "state", request.num_choices, NUM_SLOTS, "ask for fewer choices")
        self.requests.append(request)
        script = self._scripts.popleft() if self._scripts else Script([["ok"]])
        deadline = None if request.max_seconds is None else time.monotonic() + request.max_seconds
        self._running[request.request_id] = Running(
            request, script, dict.fromkeys(range(request.num_choices), 0), deadline
        )
        self._publish()

    def abort(self, request_id: str) -> bool:
        if self._running.pop(request_id, None) is None:
            return False
        self.aborted.append(request_id)
        self._publish()
        return True

    def pause(self, request_id: str) -> None:
        self.paused.append(request_id)
        if request_id in self._running:
            self._running[request_id].is_paused = True

    def resume(self, request_id: str) -> None:
        self.resumed.append(request_id)
        if request_id in self._running:
            self._running[request_id].is_paused = False

    def has_work(self) -> bool:
        self.num_calls += 1
        return any(not running.is_paused for running in self._running.values())

    def next_deadline(self) -> float | None:
        deadlines = [running.deadline for running in self._running.values() if running.deadline is not None]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def step(self) -> list[TokenEvent]:
        overdue = self._end_overdue()
        if not self._may_step.wait(timeout=0.005):
            return overdue
        if self._crash is not None:
            raise self._crash
        going = [running for running in self._running.values() if not running.is_paused]
        events = [event for running in going for event in self._advance(running)]
        if going:
            step = StepRecord("decode", len(events), 0.001)
            self._stats = replace(self._stats, num_steps=self._stats.num_steps + 1, last_step=step)
        self._publish()
        return overdue + events

    def stats(self) -> EngineStats:
        return self._stats

    def refresh(self) -> None:
        pass

    def _end_overdue(self) -> list[TokenEvent]:
        now = time.monotonic()
        late = [each for each in self._running.values() if each.deadline is not None and each.deadline <= now]
        return [self._fail(each, "", DeadlineExceeded(each.request.max_seconds or 0)) for each in late]

    def _advance(self, running: Running) -> list[TokenEvent]:
        if running.request.sampling.max_tokens == 0:
            return [self._read(running)]
        events: list[TokenEvent] = []
        for choice in list(running.num_sent):
            events.append(self._say(running, choice))
            if events[-1].error is not None:
                break
        return events

    def _say(self, running: Running, choice: int) -> TokenEvent:
        request, script = running.request, running.script
        pieces = script.choices[choice] if choice < len(script.choices) else script.choices[0]
        place = running.num_sent[choice]
        text, is_end = pieces[place] if pieces else "", place + 1 >= len(pieces)
        running.num_sent[choice] += 1
        if is_end and script.error is not None:
            return self._fail(running, text, script.error)
        self._stats = replace(self._stats, num_completion_tokens=self._stats.num_completion_tokens + 1)
        token_id = script.token_ids[place] if script.token_ids is not None else place + 1
        running.drawn.append(token_id)
        event = TokenEvent(
            request.request_id,
            text,
            (token_id,),
            choice=choice,
            logprobs=() if request.sampling.logprobs is None else (logprob_of(token_id, request.sampling.logprobs),),
            gap_seconds=None if place == 0 else 0.002,
        )
        if place == choice == 0 and request.sampling.prompt_logprobs is not None:
            said = [logprob_of(each, request.sampling.prompt_logprobs) for each in request.prompt_ids[1:]]
            event = replace(event, prompt_logprobs=(None, *said))
        if not is_end:
            return event
        del running.num_sent[choice]
        event = replace(event, finish_reason=script.finish_reason, spans=script.spans)
        if running.num_sent:
            return event
        num_tokens = sum(
            max(1, len(script.choices[each] if each < len(script.choices) else script.choices[0]))
            for each in range(request.num_choices)
        )
        # The token drawn last is not read.
        self.checkpoints.keep(self._tree(request), [*request.prompt_ids, *running.drawn[:-1]])
        self._finish(request, "num_finished")
        return replace(event, usage=usage_of(request, num_tokens))

    def _read(self, running: Running) -> TokenEvent:
        request = running.request
        self.checkpoints.keep(self._tree(request), request.prompt_ids)
        self._finish(request, "num_finished")
        return TokenEvent(request.request_id, "", finish_reason=FinishReason.STOP, usage=usage_of(request, 0))

    def _tree(self, request: GenerationRequest) -> tuple[str, AttentionPolicy]:
        return request.tenant, request.policy or self.policy

    def _fail(self, running: Running, text: str, error: ModelError) -> TokenEvent:
        request = running.request
        self._finish(request, "num_failed")
        usage = usage_of(request, max(running.num_sent.values()))
        return TokenEvent(request.request_id, text, (), FinishReason.ERROR, usage, error=error)

    def _finish(self, request: GenerationRequest, counter: str) -> None:
        del self._running[request.request_id]
        num_prompt_tokens = self._stats.num_prompt_tokens + len(request.prompt_ids)
        changes = {counter: getattr(self._stats, counter) + 1, "num_prompt_tokens": num_prompt_tokens}
        self._stats = replace(self._stats, **changes)
        self._publish()

    def _publish(self) -> None:
        used = len(self._running)
        self._stats = replace(
            self._stats,
            num_running=used,
            num_aborted=len(self.aborted),
            slots=PoolCounts(free=NUM_SLOTS - used, used=used),
            blocks=PoolCounts(free=NUM_BLOCKS - used, used=used),
        )


def logprob_of(token_id: int, num_top: int) -> TokenLogprob:
    """A log probability that tells its token, and the most probable ones: the token itself, then its successors."""
    return TokenLogprob(
        token_id, -token_id / 1024, tuple((token_id + rank, -(token_id + rank) / 1024) for rank in range(num_top))
    )


def _words(text: str) -> list[str]:
    return re.findall(r"\s*\S+|\s+$", text)


def usage_of(request: GenerationRequest, num_completion_tokens: int) -> RequestUsage:
    """A bill with round numbers."""
    return RequestUsage(
        num_prompt_tokens=len(request.prompt_ids),
        num_cached_tokens=0,
        num_completion_tokens=num_completion_tokens,
        policy=request.policy or AttentionPolicy(),
        dtype="float32",
        kv_bytes=100,
        ssm_state_bytes=100,
        conv_state_bytes=10,
        state_capacity_bits=8 * 210,
        queue_seconds=0.001,
        ttft_seconds=0.002,
        total_seconds=0.003,
    )


CHAT_TEMPLATE = (
    "<|startoftext|>{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CONTROL_TOKENS = ("<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|unk|>")
CHAT_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
CORPUS = (
    "The parties agree that the rent of flat 7B is due on the first day of each month.",
    "Question: which clause names the notice period? Answer: clause 12.3 names thirty days.",
    "[1] The engine weighs 412 kilograms and was delivered on 2024-01-02 to the northern yard.",
    "Not found in the passages. The passages name no such thing, and nothing else was searched.",
    "Invoice A-1234.5/x amounts to $1,234.50 and is payable to accounts@example.org within a week.",
    "Kein Satz ohne Umlaute: schöne Grüße aus Köln, größer als zuvor. Ein naïve café, déjà vu.",
    "A window of the most recent tokens is kept on the device, and older tokens go to the archive.",
)


def write_tokenizer(directory: Path, vocab_size: int = 600) -> Path:
    """Train a byte-fallback BPE on a few sentences and write tokenizer.json and its config; returns the directory."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<|unk|>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("▁", "merged_with_next"), pre_tokenizers.Digits(individual_digits=True)]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[*CONTROL_TOKENS, *byte_tokens], show_progress=False),
    )
    # Training marks byte tokens as special; they are ordinary, or decoding would skip them.
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] in CONTROL_TOKENS]
    tokenizer = Tokenizer.from_str(json.dumps(data))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CHAT_TOKENS])
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "chat_template": CHAT_TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    ids = [tokenizer.token_to_id("<|endoftext|>"), tokenizer.token_to_id("<|end|>")]
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}), encoding="utf-8")
    return directory
