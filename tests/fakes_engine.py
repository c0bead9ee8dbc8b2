"""An engine that says what it is told to, and a small tokenizer made from text of our own.

``FakeEngine`` has the Engine's API and obeys the same promises: one final event per request, abort
idempotent, refusals raised by ``submit``. Without a script a request is answered with ``"ok"``.
"""

import json
import re
import threading
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path

from model.engine.request import EvidenceSpan, FinishReason, GenerationRequest, RequestUsage, TokenEvent
from model.engine.stats import BuildInfo, EngineStats, PoolCounts, StepRecord
from model.errors import InvalidRequest, ModelError
from model.policy import AttentionPolicy

NUM_SLOTS = 8
NUM_BLOCKS = 64


@dataclass
class Script:
    """What one request will say: pieces of text, one per step, then the end."""

    pieces: list[str]
    finish_reason: FinishReason = FinishReason.STOP
    spans: tuple[EvidenceSpan, ...] = ()
    error: ModelError | None = None
    sent: list[str] = field(default_factory=list)


class FakeEngine:
    """Scripted stand-in for ``model.engine.engine.Engine``. ``stall``, ``resume`` and the lists are for any thread."""

    def __init__(self) -> None:
        self.requests: list[GenerationRequest] = []
        self.aborted: list[str] = []
        self._scripts: deque[Script] = deque()
        self._refusals: deque[ModelError] = deque()
        self._running: dict[str, tuple[GenerationRequest, Script]] = {}
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
        *,
        pieces: list[str] | None = None,
        finish_reason: FinishReason = FinishReason.STOP,
        spans: tuple[EvidenceSpan, ...] = (),
        error: ModelError | None = None,
    ) -> None:
        """Script the next request: ``text`` in words (or ``pieces``), then the end, or ``error`` after the text."""
        words = pieces if pieces is not None else re.findall(r"\s*\S+|\s+$", text)
        self._scripts.append(Script(words, finish_reason, spans, error))

    def refuse(self, refusal: ModelError) -> None:
        """Raise ``refusal`` from the next submit."""
        self._refusals.append(refusal)

    def crash(self, failure: Exception) -> None:
        """Raise ``failure`` from the next step, as a defect outside any one request would."""
        self._crash = failure

    def stall(self) -> None:
        """Let the next step return nothing until ``resume``, as a long prefill does."""
        self._may_step.clear()

    def resume(self) -> None:
        """End a stall."""
        self._may_step.set()

    def submit(self, request: GenerationRequest) -> None:
        if self._refusals:
            raise self._refusals.popleft()
        if request.request_id in self._running:
            raise InvalidRequest("request_id", request.request_id, "an id that is not in use")
        self.requests.append(request)
        script = self._scripts.popleft() if self._scripts else Script(["ok"])
        self._running[request.request_id] = (request, script)
        self._publish()

    def abort(self, request_id: str) -> bool:
        if self._running.pop(request_id, None) is None:
            return False
        self.aborted.append(request_id)
        self._publish()
        return True

    def has_work(self) -> bool:
        return bool(self._running)

    def step(self) -> list[TokenEvent]:
        if not self._may_step.wait(timeout=0.005):
            return []
        if self._crash is not None:
            raise self._crash
        events = [self._advance(request, script) for request, script in list(self._running.values())]
        self._stats = replace(
            self._stats, num_steps=self._stats.num_steps + 1, last_step=StepRecord("decode", len(events), 0.001)
        )
        self._publish()
        return events

    def stats(self) -> EngineStats:
        return self._stats

    def _advance(self, request: GenerationRequest, script: Script) -> TokenEvent:
        text = script.pieces.pop(0) if script.pieces else ""
        script.sent.append(text)
        stats = self._stats
        self._stats = replace(stats, num_completion_tokens=stats.num_completion_tokens + 1)
        if script.pieces:
            return TokenEvent(request.request_id, text, (len(script.sent),))
        del self._running[request.request_id]
        self._stats = replace(
            self._stats,
            num_finished=stats.num_finished + 1,
            num_prompt_tokens=stats.num_prompt_tokens + len(request.prompt_ids),
        )
        if script.error is not None:
            return TokenEvent(request.request_id, text, finish_reason=FinishReason.ERROR, error=script.error)
        usage = usage_of(request, num_completion_tokens=len(script.sent))
        return TokenEvent(request.request_id, text, (len(script.sent),), script.finish_reason, usage, script.spans)

    def _publish(self) -> None:
        used = len(self._running)
        self._stats = replace(
            self._stats,
            num_running=used,
            num_aborted=len(self.aborted),
            slots=PoolCounts(free=NUM_SLOTS - used, used=used),
            blocks=PoolCounts(free=NUM_BLOCKS - used, used=used),
        )


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
