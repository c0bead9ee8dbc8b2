"""The objects of a response as OpenAI shapes them."""

from collections.abc import Mapping, Sequence
from typing import Any

from model.engine.request import TokenLogprob
from server.answers.citations import Citation, Source
from server.answers.inquiry import AnswerDone, ServedModel
from server.files.nouns import StoreDocument
from server.rendering import usage_view
from server.responses.items import new_id
from server.responses.schema import ResponseRequest
from server.token_view import TokenView


class ResponseShape:
    """The response object of one request. ``temperature`` is the one in use where the request names none."""

    def __init__(
        self, body: ResponseRequest, model: ServedModel, created_at: int, temperature: float, max_passages: int
    ) -> None:
        self.id = new_id("resp")
        self.created_at = created_at
        self._model = model
        tools = [tool.view(max_passages) for tool in body.tools]
        self._head: dict[str, Any] = {
            "id": self.id,
            "object": "response",
            "created_at": created_at,
            "background": body.background is True,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": body.max_tool_calls,
            "metadata": dict(body.metadata or {}),
            "model": model.name,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "prompt_cache_key": None,
            "reasoning": {"effort": None, "summary": None},
            "safety_identifier": None,
            "service_tier": "default",
            "store": body.is_stored,
            "temperature": temperature if body.temperature is None else body.temperature,
            "text": {"format": body.form.view(), "verbosity": "medium"},
            "tool_choice": body.tool_choice or "auto",
            "tools": tools,
            "top_logprobs": body.top_logprobs or 0,
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": body.truncation or "disabled",
            "user": None,
        }

    def view(
        self,
        status: str,
        output: Sequence[Mapping[str, Any]],
        usage: dict[str, Any] | None = None,
        error: dict[str, Any] | None = None,
        completed_at: int | None = None,
    ) -> dict[str, Any]:
        """The response as it stands."""
        return {
            **self._head,
            "status": status,
            "completed_at": completed_at,
            "error": error,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": list(output),
            "usage": usage,
        }

    def usage(self, done: AnswerDone) -> dict[str, Any]:
        """Tokens and the bill."""
        usage = usage_view(done, self._model)
        return {
            "input_tokens": usage.prompt_tokens,
            # What is kept may be given up at any time, so no token counts as written to a cache.
            "input_tokens_details": {
                "cached_tokens": usage.prompt_tokens_details.cached_tokens,
                "cache_write_tokens": 0,
            },
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.total_tokens,
            "fano": usage.fano.model_dump(),
        }


class FileSearch:
    """The call of the tool ``file_search``, and what each document is called: by its file where it has one."""

    def __init__(self, query: str | None, of_stores: Sequence[StoreDocument], others: Sequence[StoreDocument]) -> None:
        """``query`` is None where the tool is not used."""
        self.id = new_id("fs")
        self._query = query
        self._files: dict[str, list[StoreDocument]] = {}
        for each in of_stores:
            files = self._files.setdefault(each.document_id, [])
            if all((file.file_id, file.cutting) != (each.file_id, each.cutting) for file in files):
                files.append(each)
        self._names = {each.document_id: each for each in reversed((*others, *of_stores))}

    @property
    def is_used(self) -> bool:
        """Whether there is such a call."""
        return self._query is not None

    def view(self, status: str, sources: Sequence[Source] | None = None) -> dict[str, Any]:
        """The call as an item; with what was found once that is known."""
        results = None if sources is None else [each for source in sources for each in self._results(source)]
        return {
            "id": self.id,
            "type": "file_search_call",
            "status": status,
            "queries": [self._query],
            "results": results,
        }

    def annotation(self, citation: Citation, sources: Sequence[Source]) -> dict[str, Any]:
        """OpenAI's file citation (``index`` is where in the text the quote ends), with its place in the document."""
        file = self._names.get(citation.document)
        names = {source.passage.document_id: source.passage.document_name for source in sources}
        return {
            "type": "file_citation",
            "file_id": file.file_id if file else citation.document,
            "filename": file.filename if file else names[citation.document],
            "index": citation.answer_end,
            "quote": citation.quote,
            "start_char": citation.start,
            "end_char": citation.end,
            "page": citation.page,
        }

    def _results(self, source: Source) -> list[dict[str, Any]]:
        passage = source.passage
        return [
            {
                "file_id": file.file_id,
                "filename": file.filename,
                "score": min(1.0, max(0.0, passage.score)),
                "text": passage.text,
                "attributes": dict(file.attributes),
                "start_char": passage.span.start,
                "end_char": passage.span.end,
                "page": passage.page,
            }
            for file in self._files.get(passage.document_id, ())
            if file.cutting == passage.cutting
        ]


def token_views(view: TokenView, logprobs: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """Tokens with their log probabilities. Where a chat has null for the bytes of a control token, here are none."""

    def own(token: dict[str, Any]) -> dict[str, Any]:
        return token | {"bytes": token["bytes"] or []}

    return [
        own(token) | {"top_logprobs": [own(top) for top in token["top_logprobs"]]} for token in view.entries(logprobs)
    ]


def included(response: Mapping[str, Any], include: Sequence[str]) -> dict[str, Any]:
    """A stored response with no more than was asked to be included."""
    output = []
    for item in response["output"]:
        if item["type"] == "file_search_call" and "file_search_call.results" not in include:
            item = item | {"results": None}
        if item["type"] == "message" and "message.output_text.logprobs" not in include:
            item = item | {"content": [part | {"logprobs": []} for part in item["content"]]}
        output.append(item)
    return {**response, "output": output}
