"""How a response comes to be: from its request, past everything that can refuse it, to the events that tell it."""

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from typing import Any

import anyio.to_thread
from starlette.requests import Request

from model.errors import PromptTooLong
from server.answers.gate import decide
from server.answers.groundwork import is_unanswerable
from server.answers.inquiry import Inquiry
from server.answers.replies import Answer
from server.chat.fields import FieldRefused
from server.chat.tooling import untaught, with_functions
from server.documents.inline_files import inline_document
from server.errors import UnknownModel
from server.files.errors import FilesError
from server.files.nouns import StoreDocument
from server.responses.conversations import Claim
from server.responses.events import ResponseEvents
from server.responses.inquiry import Asked, conversation, response_inquiry, shortened
from server.responses.schema import CountRequest, ResponseInput, ResponseRequest
from server.responses.shape import FileSearch, ResponseShape
from server.responses.store import StoredResponse
from server.services import Services
from server.sessions.errors import SessionDamaged, SessionError
from server.sessions.refusals import SessionBusy, SessionFingerprint, SessionPolicy
from server.settings import Settings
from server.streams.delivery import while_connected

# The session is there and cannot be gone on with: what was said is read again.
UNUSABLE = (SessionDamaged, SessionFingerprint, SessionPolicy, SessionBusy)


class Admission:
    """One request for a response, or for the number of its tokens."""

    def __init__(
        self,
        request: Request,
        services: Services,
        tenant: str,
        settings: Settings,
        request_id: str,
        arrival: float,
    ) -> None:
        self._request = request
        self._services = services
        self._tenant = tenant
        self._settings = settings
        self._request_id = request_id
        self._arrival = arrival

    @asynccontextmanager
    async def respond(self, body: ResponseRequest) -> AsyncIterator[ResponseEvents]:
        """An accepted response, ready to be told; what it holds is given back on leaving.

        Raises on entry whatever refuses it: what is wrong with the request, ``UnknownResponse``, what files and stores
        refuse, and as ``Answering.answer``.
        """
        services, conversations = self._services, self._services.conversations
        self._check_model(body)
        await conversations.sweep()
        before = await conversations.before(self._tenant, body.previous_response_id)
        asked = await self._asked(body, before)
        whole = self._inquiry(body, before, asked)
        inquiry = services.answering.decided(whole)
        if services.answering.is_in_doubt(inquiry):
            inquiry = await while_connected(self._request, services.answering.weighed(inquiry))
        if (form := body.form.schema_asked) is not None:
            constraint = await anyio.to_thread.run_sync(services.grammars.of_json, *form)
            inquiry = replace(inquiry, constraint=constraint)
        inquiry = await self._with_functions(inquiry, body, body.parallel_tool_calls is not False)
        query = _query(body, whole, inquiry)
        inquiry = _without_files(inquiry, query)
        search = FileSearch(query, asked.of_stores, asked.brought)
        async with AsyncExitStack() as stack:
            claim: Claim | None = None
            if body.is_stored:
                last = before[-1] if before else None
                claim = await stack.enter_async_context(conversations.claimed(self._tenant, last))
                inquiry = replace(inquiry, session=claim.session)
            answer, inquiry = await self._answer(stack, body, inquiry)
            created_at = int(time.time())
            shape = ResponseShape(body, services.model, created_at, 0.0 if whole.documents else 1.0, whole.max_passages)
            items = [item.view() for item in body.input]

            async def keep(response: dict[str, Any]) -> None:
                if claim is None:
                    return
                # The turn of one that did not come to its end is not in the session.
                session = inquiry.session if response["status"] in ("completed", "incomplete") else None
                stored = StoredResponse(
                    shape.id, body.previous_response_id, session, created_at, response, items, asked.brought
                )
                await conversations.keep(self._tenant, stored)
                if not stored.is_under_way:
                    claim.release()

            events = ResponseEvents(
                shape, answer, search, body.include or (), services.tokenizer, keep, bool(inquiry.tools)
            )
            if body.background:
                await keep(events.opening())
            yield events

    async def count(self, body: CountRequest) -> int:
        """How many tokens the prompt of such a response would have; 0 where no model would be asked.

        Raises as ``respond``, but for what is too long.
        """
        services, answering = self._services, self._services.answering
        self._check_model(body)
        before = await services.conversations.before(self._tenant, body.previous_response_id)
        whole = self._inquiry(body, before, await self._asked(body, before))
        inquiry = answering.decided(await self._with_functions(whole, body))
        inquiry, history = await answering.begin(_without_files(inquiry, _query(body, whole, inquiry)))
        if before and before[-1].session is not None:
            with suppress(SessionError):
                preview = await services.book.preview(self._tenant, before[-1].session, inquiry.policy)
                inquiry, history = answering.go_on(inquiry, preview)
        try:
            found = await answering.groundwork(inquiry, is_asked=False, history=history)
        except PromptTooLong as refusal:
            refusal.param = "input"
            raise
        if is_unanswerable(inquiry, found):
            return 0
        return len(found.prompt.ids) + (len(found.to_read.ids) if found.to_read else 0)

    def _check_model(self, body: CountRequest | ResponseRequest) -> None:
        if body.model not in (None, self._services.model.name):
            raise UnknownModel(str(body.model), self._services.model.name)

    async def _with_functions(self, inquiry: Inquiry, body: ResponseInput, several: bool = True) -> Inquiry:
        """The inquiry with the functions that the model may call. Raises ``RequestInvalid``; ``FieldRefused`` where
        this model cannot be told of any."""
        functions = replace(body.functions, several=several)
        if (reason := untaught(self._services.tokenizer)) is not None:
            for path, _ in functions.specs:
                raise FieldRefused(f"{path}.type", reason)
            for place, item in enumerate(body.input):
                if item.type in ("function_call", "function_call_output"):
                    raise FieldRefused(f"input.{place}.type", reason)
        return await anyio.to_thread.run_sync(
            with_functions, inquiry, functions, self._services.grammars, "text.format"
        )

    def _inquiry(self, body: ResponseInput, before: Sequence[StoredResponse], asked: Asked) -> Inquiry:
        return response_inquiry(
            body,
            conversation(body, before),
            asked,
            self._tenant,
            self._request_id,
            self._arrival,
            self._settings,
            self._services.model,
        )

    async def _asked(self, body: ResponseInput, before: Sequence[StoredResponse]) -> Asked:
        """What may be searched, ready to be. Raises what files and stores refuse, with the path of the field."""
        parts = [
            (f"input.{place}.content.{number}", part)
            for place, item in enumerate(body.input)
            for number, part in enumerate(item.content or ())
        ]
        # None is read for nothing.
        for path, part in parts:
            if part.file_id is not None:
                table = self._services.files.table
                await anyio.to_thread.run_sync(table.get, self._tenant, part.file_id, f"{path}.file_id")
        of_stores: list[StoreDocument] = []
        if (tool := body.file_search) is not None:
            with _blaming("tools.0.vector_store_ids"):
                of_stores = await self._services.files.documents_of_stores(
                    self._tenant, tool.vector_store_ids, tool.filters
                )
        now: list[StoreDocument] = []
        for path, part in parts:
            if part.file_data is not None:
                name = part.filename or ""
                work = inline_document(self._services, self._tenant, name, part.file_data, f"{path}.file_data")
                now.append(await while_connected(self._request, work))
            elif part.file_id is not None:
                with _blaming(f"{path}.file_id"):
                    found = self._services.files.document_of_file(self._tenant, part.file_id)
                    now.append(await while_connected(self._request, found))
        earlier = [each for response in before for each in response.documents]
        brought = {each.file_id: each for each in (*earlier, *now)}
        return Asked(tuple(of_stores), tuple(brought.values()), bool(now))

    async def _answer(self, stack: AsyncExitStack, body: ResponseRequest, inquiry: Inquiry) -> tuple[Answer, Inquiry]:
        """The answer, and the inquiry as it was accepted: perhaps without its earliest turns, or its session."""
        tried_anew = False
        while True:
            try:
                return await stack.enter_async_context(self._services.answering.answer(inquiry)), inquiry
            except PromptTooLong as refusal:
                refusal.param = "input"
                if body.truncation != "auto":
                    raise
                tokenizer = self._services.tokenizer
                inquiry = await anyio.to_thread.run_sync(shortened, inquiry, tokenizer, refusal)
            except UNUSABLE:
                if tried_anew or inquiry.session is None:
                    raise
                tried_anew = True
                inquiry = replace(inquiry, session=self._services.conversations.new_session())


@contextmanager
def _blaming(param: str) -> Iterator[None]:
    """A refusal of files or stores inside gets the path of the field that named them."""
    try:
        yield
    except FilesError as error:
        error.param = param
        raise


def _without_files(inquiry: Inquiry, query: str | None) -> Inquiry:
    """The inquiry that knows whether there is nothing to search for ``query``: a model would only invent an answer.

    What is to have a form is written all the same, and so is what may call functions.
    """
    has_form = inquiry.constraint is not None or bool(inquiry.tools)
    return replace(inquiry, searches_nothing=query is not None and not inquiry.documents and not has_form)


def _query(body: ResponseInput, whole: Inquiry, decided: Inquiry) -> str | None:
    """What the tool is asked, None where it is not used; a store without files is asked, too, and finds nothing."""
    if body.file_search is None:
        return None
    decision = decided.decision or decide(whole.turns)
    is_used = bool(decided.documents) if whole.documents else (body.must_search or decision.is_searched)
    return decision.query if is_used else None
