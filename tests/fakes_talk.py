"""A made-up story, three turns of a conversation about it, and how they are said to a server in this process."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from fakes_server import serving

from server.app import create_app
from server.metrics import Metrics
from server.services import load_services
from server.settings import Settings

MODEL = "fano-reader"
WORDS = "harbour winter lantern ledger orchard captain river market signal copper meadow teacher engine".split()
SECOND = {"role": "user", "content": "And on which day was that?"}
THIRD = {"role": "user", "content": "Name another one."}


def story(num_days: int) -> str:
    return " ".join(
        f"On day {day} the {WORDS[day % 13]} stood beside the {WORDS[day * 5 % 13]}." for day in range(num_days)
    )


def first(num_days: int) -> dict[str, str]:
    """The turn that tells the story."""
    return {"role": "user", "content": f"{story(num_days)} What stood beside the lantern?"}


@contextmanager
def server(settings: Settings) -> Iterator[str]:
    """A server of this process, with a model of its own; its URL."""
    metrics = Metrics()
    with serving(create_app(settings, load_services(settings, metrics), metrics)) as url:
        yield url


def say(url: str, messages: list[dict[str, str]], session: str, **more: Any) -> dict[str, Any]:
    fano = {"session": session, "documents": more.pop("fano_documents", [])}
    body = {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 12, "fano": fano}
    reply = httpx.post(f"{url}/v1/chat/completions", json={**body, **more}, timeout=60)
    assert reply.status_code == 200, reply.text
    told: dict[str, Any] = reply.json()
    return told


def text_of(reply: dict[str, Any]) -> str:
    text: str = reply["choices"][0]["message"]["content"]
    return text


def cached(reply: dict[str, Any]) -> int:
    number: int = reply["usage"]["prompt_tokens_details"]["cached_tokens"]
    return number
