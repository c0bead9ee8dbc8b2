"""The console: one page and its assets, with headers under which it can load nothing from anywhere else.

The page is the same for everyone and holds nothing of the server: every number and every text it shows it asks the API
for, with the key that was typed into it. So where `/` needs a key, a browser, which cannot send one when it opens a
page, gets the 401 that is due with the page itself as the body, and the page asks for the key. Nothing is ever
authorised by a cookie or by what a browser sends on its own, so no other site can make it act.
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import PurePath

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from server.dependencies import StateDep, watcher
from server.error_table import row_of
from server.errors import KeyRefused, KeysUnknown
from server.schemas import error_responses

PAGE = "index.html"
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Trusted types: a text that is taken for markup is an error in the page, not a script in it.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    # Asked again each time, and answered 304: a page of one version with a script of another would break.
    "Cache-Control": "no-cache",
}

router = APIRouter(tags=["console"])


@dataclass(frozen=True, slots=True)
class Asset:
    """A file of the console. ``tag`` is the hash of its bytes."""

    content: bytes
    media_type: str
    tag: str


@router.get("/", response_class=Response, responses={200: {"content": {"text/html": {}}}, **error_responses(401, 503)})
async def open_console(request: Request, state: StateDep) -> Response:
    """The console. Where it needs a key, a browser that brings none gets it with the 401, to type the key into."""
    try:
        await watcher(request, state)
    except (KeyRefused, KeysUnknown) as refused:
        if "text/html" not in request.headers.get("accept", ""):
            raise
        state.metrics.refused(row_of(refused).code)
        headers = {"WWW-Authenticate": "Bearer"} if isinstance(refused, KeyRefused) else {}
        return _reply(request, console_assets()[PAGE], row_of(refused).status, headers)
    return _reply(request, console_assets()[PAGE])


@router.get(
    "/console/{asset}",
    response_class=Response,
    responses={200: {"content": {"text/javascript": {}, "text/css": {}, "image/svg+xml": {}}}, **error_responses(404)},
)
async def read_asset(request: Request, asset: str) -> Response:
    """A script, style or picture of the console; anyone may have them."""
    found = None if asset == PAGE else console_assets().get(asset)
    if found is None:
        raise HTTPException(404)
    return _reply(request, found)


@cache
def console_assets() -> dict[str, Asset]:
    """All files of the console by name, read once."""
    assets = {}
    for file in files("server").joinpath("console").iterdir():
        media_type = MEDIA_TYPES.get(PurePath(file.name).suffix)
        if media_type is not None:
            content = file.read_bytes()
            assets[file.name] = Asset(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
    return assets


def _reply(request: Request, asset: Asset, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    told = {**HEADERS, **(headers or {})}
    if status == 200:
        told["ETag"] = asset.tag
        if asset.tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=told)
    else:
        told["Cache-Control"] = "no-store"
    return Response(asset.content, status, told, asset.media_type)
