"""The objects of OpenAI's older completions, whole and in pieces."""

import math
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from model.engine.request import FinishReason, TokenLogprob
from server.answers.inquiry import AnswerDone, AnswerProgress, AnswerText, ChoiceDone, ServedModel
from server.answers.prompt import ChatTokenizer
from server.completions.completing import Continuation
from server.completions.schema import CompletionRequest
from server.rendering import progress_view, usage_view
from server.schemas import Usage
from server.token_view import TokenLines


class CompletionShape:
    """The objects of one completion. Its choices are those of the first prompt, then those of the next."""

    def __init__(self, model: ServedModel, tokenizer: ChatTokenizer, body: CompletionRequest) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._body = body
        self._lines: dict[int, TokenLines] = {}
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model.name,
        }

    def index(self, prompt: int, choice: int) -> int:
        """The choice's place among all."""
        return prompt * self._body.num_choices + choice

    def completion(
        self,
        continuations: Sequence[Continuation],
        done: Sequence[AnswerDone],
        logprobs: Sequence[Mapping[int, Sequence[TokenLogprob]]],
    ) -> dict[str, Any]:
        """The whole reply; ``logprobs`` of the tokens drawn, by choice."""
        choices = [
            self._whole(self.index(place, rank), continuation, end, each, told.get(each.choice, ()))
            for place, (continuation, end, told) in enumerate(zip(continuations, done, logprobs, strict=True))
            for rank, each in enumerate(self._best(end, told))
        ]
        return {**self._head, "choices": choices, "usage": self._usage(done)}

    def echo(self, prompt: int, choice: int, text: str) -> dict[str, Any]:
        """The piece with the prompt itself."""
        return self._chunk(self.index(prompt, choice), text)

    def progress(self, prompt: int, progress: AnswerProgress) -> dict[str, Any]:
        """The piece that says how far a prompt is read, and nothing else."""
        return {**self._chunk(self.index(prompt, 0), ""), "prompt_progress": progress_view(progress)}

    def piece(self, prompt: int, text: AnswerText) -> dict[str, Any]:
        """A piece of a streamed choice, with its tokens."""
        index = self.index(prompt, text.choice)
        lines = self._lines.setdefault(index, TokenLines(self._tokenizer))
        return self._chunk(index, text.text, logprobs=self._told(lines, _drawn(text.logprobs)))

    def closing(self, prompt: int, done: ChoiceDone) -> dict[str, Any]:
        """The last piece of a streamed choice."""
        return self._chunk(self.index(prompt, done.choice), "", done.finish_reason.value)

    def billed(self, done: Sequence[AnswerDone]) -> dict[str, Any]:
        """The last piece of all, which has no choice."""
        return {**self._head, "choices": [], "usage": self._usage(done)}

    def _whole(
        self,
        index: int,
        continuation: Continuation,
        end: AnswerDone,
        done: ChoiceDone,
        logprobs: Sequence[TokenLogprob],
    ) -> dict[str, Any]:
        is_silent = self._body.max_tokens == 0
        text, reason = ("", FinishReason.LENGTH) if is_silent else (done.text, done.finish_reason)
        drawn: Iterable[tuple[int, TokenLogprob | None]] = () if is_silent else _drawn(logprobs)
        strips_space = False
        if self._body.echo:
            text = continuation.text + text
            strips_space = self._tokenizer.adds_leading_space
            if end.prompt_logprobs is not None:
                drawn = [*zip(continuation.ids, end.prompt_logprobs, strict=True), *drawn]
        lines = TokenLines(self._tokenizer, strips_space=strips_space)
        return {
            "index": index,
            "text": text,
            "logprobs": self._told(lines, drawn),
            "finish_reason": reason.value,
        }

    def _best(self, done: AnswerDone, logprobs: Mapping[int, Sequence[TokenLogprob]]) -> list[ChoiceDone]:
        """Those that are sent: all, or of more the ones whose tokens are the most probable on average."""
        if not self._body.is_chosen:
            return list(done.choices)

        def score(each: ChoiceDone) -> float:
            drawn = [told.logprob for told in logprobs.get(each.choice, ())]
            return sum(drawn) / len(drawn) if drawn else -math.inf

        return sorted(done.choices, key=score, reverse=True)[: self._body.num_choices]

    def _told(self, lines: TokenLines, said: Iterable[tuple[int, TokenLogprob | None]]) -> dict[str, Any] | None:
        num_top = self._body.logprobs
        return None if num_top is None else lines.add(said, num_top)

    def _chunk(
        self, index: int, text: str, finish_reason: str | None = None, logprobs: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        only = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
        return {**self._head, "choices": [only]}

    def _usage(self, done: Sequence[AnswerDone]) -> dict[str, Any]:
        usages = [usage_view(each, self._model) for each in done]
        if self._body.max_tokens == 0:  # the token that was drawn all the same is not the client's
            usages = [
                each.model_copy(update={"completion_tokens": 0, "total_tokens": each.prompt_tokens}) for each in usages
            ]
        return summed(usages).model_dump()


def summed(usages: Sequence[Usage]) -> Usage:
    """The bills of requests that ran side by side as one: tokens, bytes and bits are added up."""
    first, *others = usages
    for each in others:
        fano, more = first.fano, each.fano
        held = {pool: size + getattr(more.resident_bytes, pool) for pool, size in fano.resident_bytes}
        kept = {pool: size + getattr(more.archive_bytes, pool) for pool, size in fano.archive_bytes}
        bits = [fano.context_information_bits, more.context_information_bits]
        times = [seconds for seconds in (fano.ttft_seconds, more.ttft_seconds) if seconds is not None]
        update = {
            "resident_bytes": fano.resident_bytes.model_copy(update=held),
            "archive_bytes": fano.archive_bytes.model_copy(update=kept),
            "state_capacity_bits": fano.state_capacity_bits + more.state_capacity_bits,
            "context_information_bits": None if None in bits else sum(filter(None, bits)),
            "ttft_seconds": min(times, default=None),
            "prefix": None,
        }
        cached = first.prompt_tokens_details.cached_tokens + each.prompt_tokens_details.cached_tokens
        first = first.model_copy(
            update={
                "prompt_tokens": first.prompt_tokens + each.prompt_tokens,
                "completion_tokens": first.completion_tokens + each.completion_tokens,
                "total_tokens": first.total_tokens + each.total_tokens,
                "prompt_tokens_details": first.prompt_tokens_details.model_copy(update={"cached_tokens": cached}),
                "fano": fano.model_copy(update=update),
            }
        )
    return first


def _drawn(logprobs: Iterable[TokenLogprob]) -> list[tuple[int, TokenLogprob | None]]:
    return [(each.token_id, each) for each in logprobs]
