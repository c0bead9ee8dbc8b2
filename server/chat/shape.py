"""The objects of a chat completion as OpenAI shapes them, whole and in pieces."""

import secrets
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from model.engine.request import FinishReason, TokenLogprob
from server.answers.citations import Citation, Source
from server.answers.inquiry import AnswerDone, AnswerProgress, AnswerText, ChoiceDone, ServedModel
from server.answers.prompt import ChatTokenizer
from server.chat.tool_calls import CallArguments, CallBegins, CallReader, Piece
from server.files.nouns import StoreDocument
from server.long_prompts.asking import MESSAGE_PREFIX, message_number
from server.rendering import progress_view, usage_view
from server.token_view import TokenView


class ChatShape:
    """The objects of one completion: they share id, time and model.

    ``has_logprobs`` says that they were asked for: then they are an object, if an empty one, and else null.
    """

    def __init__(
        self,
        model: ServedModel,
        tokenizer: ChatTokenizer,
        sources: Sequence[Source],
        has_logprobs: bool,
        files: Sequence[StoreDocument] = (),
        has_tools: bool = False,
    ) -> None:
        self._has_tools = has_tools
        self._readers: defaultdict[int, CallReader] = defaultdict(CallReader)
        self._model = model
        self._tokens = TokenView(tokenizer)
        self._has_logprobs = has_logprobs
        self._names = {
            source.passage.document_id: (source.passage.document_id, source.passage.document_name) for source in sources
        }
        # A document that came as a file is told by the file's id and name.
        self._names |= {file.document_id: (file.file_id, file.filename) for file in files}
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model.name}

    def completion(self, done: AnswerDone, logprobs: Mapping[int, Sequence[TokenLogprob]]) -> dict[str, Any]:
        """The whole reply; ``logprobs`` of its tokens by choice."""
        choices = [self._choice(each, done.citations, logprobs.get(each.choice, ())) for each in done.choices]
        reply = {
            **self._head,
            "object": "chat.completion",
            "choices": choices,
            "usage": usage_view(done, self._model).model_dump(),
        }
        if done.prompt_logprobs is not None:
            reply["prompt_logprobs"] = [self._tokens.ranked(each) for each in done.prompt_logprobs]
        return reply

    def opening(self, choice: int) -> dict[str, Any]:
        """The first piece of a streamed choice."""
        return self._chunk(choice, {"role": "assistant", "content": ""})

    def piece(self, text: AnswerText) -> dict[str, Any]:
        """A piece of a streamed choice, with its tokens."""
        logprobs = self._logprobs(text.logprobs) if text.logprobs else None
        return self._chunk(text.choice, {"content": text.text}, logprobs=logprobs)

    def progress(self, progress: AnswerProgress) -> dict[str, Any]:
        """The piece that says how far the prompt is read, and nothing else."""
        return {**self._chunk(0, {}), "prompt_progress": progress_view(progress)}

    def cited(self, choice: int, citations: Sequence[Citation]) -> dict[str, Any]:
        """The piece with the citations."""
        return self._chunk(choice, {"annotations": self._annotations(citations)})

    def pieces(self, text: AnswerText) -> list[dict[str, Any]]:
        """As ``piece``, where the text may call functions: a piece for each part, the first one with the tokens."""
        if not self._has_tools:
            return [self.piece(text)]
        deltas = [_delta(each) for each in self._readers[text.choice].push(text.text)]
        logprobs = self._logprobs(text.logprobs) if text.logprobs else None
        if logprobs is not None and not deltas:
            deltas = [{}]
        return [
            self._chunk(text.choice, delta, logprobs=None if place else logprobs) for place, delta in enumerate(deltas)
        ]

    def closing(self, done: ChoiceDone) -> list[dict[str, Any]]:
        """The last pieces of a streamed choice."""
        rest = self._readers[done.choice].push("", is_last=True) if self._has_tools else []
        reason = _reason(done, self._readers[done.choice].num_calls)
        return [*(self._chunk(done.choice, _delta(each)) for each in rest), self._chunk(done.choice, {}, reason)]

    def billed(self, done: AnswerDone) -> dict[str, Any]:
        """The last piece of all, which has no choice."""
        usage = usage_view(done, self._model).model_dump()
        return {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage}

    def _choice(
        self, done: ChoiceDone, citations: Sequence[Citation], logprobs: Sequence[TokenLogprob]
    ) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": done.text, "refusal": None}
        num_calls = 0
        if self._has_tools:
            text, calls = _calls(done.text)
            num_calls = len(calls)
            message["content"] = text if text or not calls else None
            if calls:
                message["tool_calls"] = calls
        if citations:
            message["annotations"] = self._annotations(citations)
        return {
            "index": done.choice,
            "message": message,
            "logprobs": self._logprobs(logprobs) if self._has_logprobs else None,
            "finish_reason": _reason(done, num_calls),
        }

    def _chunk(
        self,
        choice: int,
        delta: dict[str, Any],
        finish_reason: str | None = None,
        logprobs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        only = {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return {**self._head, "object": "chat.completion.chunk", "choices": [only]}

    def _logprobs(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        return {"content": self._tokens.entries(logprobs), "refusal": None}

    def _annotations(self, citations: Sequence[Citation]) -> list[dict[str, Any]]:
        """OpenAI's file citations (``index`` is where in the reply the quote ends), with the place in the document."""
        return [
            {
                "type": "file_citation",
                "file_id": self._names[citation.document][0],
                "filename": self._names[citation.document][1],
                "index": citation.answer_end,
                "quote": citation.quote,
                "start_char": citation.start,
                "end_char": citation.end,
                "page": citation.page,
                **_message(citation),
            }
            for citation in citations
        ]


def _message(citation: Citation) -> dict[str, int]:
    """Which message of the request a citation of a long prompt points into; nothing for one of a document."""
    is_said = citation.document.startswith(MESSAGE_PREFIX)
    return {"message": message_number(citation.document)} if is_said else {}


def _delta(piece: Piece) -> dict[str, Any]:
    """A part of a reply as the delta of a chunk."""
    match piece:
        case str():
            return {"content": piece}
        case CallBegins():
            function = {"name": piece.name, "arguments": ""}
            return {"tool_calls": [{"index": piece.index, "id": piece.id, "type": "function", "function": function}]}
        case CallArguments():
            return {"tool_calls": [{"index": piece.index, "function": {"arguments": piece.text}}]}


def _calls(text: str) -> tuple[str, list[dict[str, Any]]]:
    """The text before any call, and the calls. One that was cut has the arguments as far as they go."""
    before = ""
    calls: list[dict[str, Any]] = []
    for piece in CallReader().push(text, is_last=True):
        match piece:
            case str():
                before += piece
            case CallBegins():
                calls.append({"id": piece.id, "type": "function", "function": {"name": piece.name, "arguments": ""}})
            case CallArguments():
                calls[-1]["function"]["arguments"] += piece.text
    return before, calls


def _reason(done: ChoiceDone, num_calls: int) -> str:
    """A reply that calls functions stops for that."""
    return "tool_calls" if num_calls and done.finish_reason is FinishReason.STOP else done.finish_reason.value
