"""Around every request: an id, one log line, a place in the count, HEAD, and what a body may be."""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.error_table import respond
from server.errors import BodyEncoded, BodyTooLarge, HostRefused
from server.logs import log_event
from server.readiness import Readiness
from server.settings import is_loopback
from server.tenants import Tenants

logger = logging.getLogger(__name__)

CLIENT_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# Asked every few seconds by whoever watches the process.
WATCHED_PATHS = ("/healthz", "/readyz", "/metrics", "/v1/memory")
DISCARD_BYTES = 256 << 20
DISCARD_SECONDS = 5.0


class RequestScope:
    """Gives each request an id (the client's own, if it is plain), a log line and a place in ``num_requests``.

    The line names the tenant whose key came, where one was looked for. ``answered`` gets each one's method, the
    template of its route (None without one) and its status: 0 where nothing was answered, because the client left.
    """

    def __init__(self, app: ASGIApp, readiness: Readiness, answered: Callable[[str, str | None, int], None]) -> None:
        self.app = app
        self.readiness = readiness
        self.answered = answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        offered = Headers(scope=scope).get("x-request-id", "")
        request_id = offered if CLIENT_ID.fullmatch(offered) else f"req_{secrets.token_hex(12)}"
        scope["fano_request_id"] = request_id
        scope["fano_started"] = started = time.monotonic()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        self.readiness.num_requests += 1
        try:
            await self.app(scope, receive, send_with_id)
        except Exception:
            status = status or 500  # What replies to it stands outside all middleware.
            raise
        finally:
            self.readiness.num_requests -= 1
            self.answered(scope["method"], getattr(scope.get("route"), "path", None), status)
            log_event(
                logger,
                "request",
                level=logging.DEBUG if scope["path"] in WATCHED_PATHS else logging.INFO,
                request_id=request_id,
                method=scope["method"],
                path=scope["path"],
                tenant=scope.get("fano_tenant"),
                status=status,
                seconds=round(time.monotonic() - started, 4),
            )


class HeadOfGet:
    """Answers HEAD as GET, with no body (RFC 9110, section 9.3.2): monitors and balancers ask so.

    For whoever answers, the client leaves when the head is sent, so that no stream goes on for nobody.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return
        is_sent = asyncio.Event()

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                is_sent.set()

        async def receive_until_sent() -> Message:
            arriving, leaving = asyncio.ensure_future(receive()), asyncio.ensure_future(is_sent.wait())
            try:
                await asyncio.wait({arriving, leaving}, return_when=asyncio.FIRST_COMPLETED)
                return {"type": "http.disconnect"} if is_sent.is_set() else await arriving
            finally:
                for task in (arriving, leaving):
                    task.cancel()

        asked = {**scope, "method": "GET"}
        await self.app(asked, receive_until_sent, send_head)
        scope.update((key, asked[key]) for key in ("route", "fano_tenant") if key in asked)


class LocalOnly:
    """While there are no keys, serves only requests that name this machine, from no web page of another site.

    A server without a key trusts whoever can connect. A browser on this machine can, on behalf of any page:
    by a name of the page's own that resolves to 127.0.0.1, or by a form that posts across origins.
    """

    def __init__(self, app: ASGIApp, tenants: Tenants) -> None:
        self.app = app
        self.tenants = tenants

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] == "http" and not self.tenants.needs_key:
            headers = Headers(scope=scope)
            for header, value in (("Host", f"//{headers.get('host', '')}"), ("Origin", headers.get("origin", ""))):
                if value not in ("", "//") and not _is_local(value):
                    await respond(HostRefused(header, value.removeprefix("//")))(scope, receive, send)
                    return
        await self.app(scope, receive, send)


class PlainBodies:
    """Refuses a body with a ``Content-Encoding``, which nobody here undoes."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] == "http":
            encoding = Headers(scope=scope).get("content-encoding", "")
            if encoding.strip().lower() not in ("", "identity"):
                await respond(BodyEncoded(encoding))(scope, receive, send)
                return
        await self.app(scope, receive, send)


class BodyLimit:
    """Ends the reading of a body at ``max_bytes``, or before it where more is announced, except on
    ``own_limit_paths``, which count for themselves.

    A refusal on the way is answered although the client may still be sending: what is left is read and
    thrown away for a while, because a connection closed with unread data loses the answer.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, setting: str, own_limit_paths: Sequence[re.Pattern[str]]) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.setting = setting
        self.own_limit_paths = own_limit_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        is_announced = announced.isdecimal() and int(announced) > self.max_bytes
        limited = not any(path.fullmatch(scope["path"]) for path in self.own_limit_paths)
        num_bytes = 0
        more_to_come = True

        async def counted() -> Message:
            nonlocal num_bytes, more_to_come
            if limited and is_announced:
                raise BodyTooLarge("the request's body", self.max_bytes, self.setting)
            message = await receive()
            more_to_come = message["type"] == "http.request" and message.get("more_body", False)
            num_bytes += len(message.get("body", b""))
            if limited and num_bytes > self.max_bytes:
                raise BodyTooLarge("the request's body", self.max_bytes, self.setting)
            return message

        refused = False

        async def send_after_discarding(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start":
                refused = message["status"] >= 400
            last = message["type"] == "http.response.body" and not message.get("more_body", False)
            if last and refused and more_to_come and _is_sending(scope, num_bytes):
                await send({**message, "more_body": True})
                await _discard(receive)
                message = {"type": "http.response.body", "body": b"", "more_body": False}
            await send(message)

        await self.app(scope, counted, send_after_discarding)


def _is_local(url: str) -> bool:
    """Whether the host of ``url`` is this machine; the origin of a page without one is ``null``."""
    try:
        host = urlsplit(url).hostname
    except ValueError:
        return False
    return host is not None and is_loopback(host)


def _is_sending(scope: Scope, num_bytes_read: int) -> bool:
    """Whether the client has a body on the way; one that waits for `100 Continue` sends none after a refusal."""
    headers = Headers(scope=scope)
    if num_bytes_read == 0 and headers.get("expect", "").lower() == "100-continue":
        return False
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


async def _discard(receive: Receive) -> None:
    num_bytes = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_SECONDS):
            while num_bytes < DISCARD_BYTES:
                message = await receive()
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return
                num_bytes += len(message.get("body", b""))
