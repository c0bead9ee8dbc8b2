"""Clients of a server as it is used: people who ask about documents, talks that go on, sessions, and mistakes.

What they do is drawn from a seed, and is of every kind that a server tells about.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import httpx

WORDS = "harbour winter lantern ledger orchard captain river market signal copper meadow teacher engine".split()
MOST_KEPT = 6
NUM_SESSIONS = 5
NUM_TURNS = 4
PAUSE_SECONDS = 0.3
# What a client may be told that is no fault: it is at its limit, or somebody else has deleted what was asked for.
FINE = frozenset({200, 201, 202, 204, 404, 409, 429})
Message = Mapping[str, str]


class Load:
    """``num_clients`` clients of each kind at ``url``, from ``start`` to ``stop``. ``counts`` and ``wrong`` say what
    came of it."""

    def __init__(self, url: str, key: str = "any", seed: int = 0, num_clients: int = 1) -> None:
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._http = httpx.Client(base_url=url, timeout=120, headers={"Authorization": f"Bearer {key}"})
        self._model: str = self._http.get("/v1/models").raise_for_status().json()["data"][0]["id"]
        self._documents: list[tuple[str, str, int]] = []
        self._over = threading.Event()
        kinds = (self._post, self._ask, self._chat, self._converse, self._keep_sessions, self._err)
        self._threads = [
            threading.Thread(target=self._repeat, args=(kind, random.Random(f"{seed}.{kind.__name__}.{number}")))
            for kind in kinds
            for number in range(num_clients)
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End; what was begun is waited for."""
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._http.close()

    def _repeat(self, kind: Callable[[random.Random], None], dice: random.Random) -> None:
        while not self._over.is_set():
            try:
                kind(dice)
            except httpx.HTTPError as error:
                if not self._over.is_set():
                    self.wrong.append(f"{kind.__name__}: {type(error).__name__}: {error}")
            self._over.wait(PAUSE_SECONDS * dice.random())

    def _say(
        self,
        method: str,
        path: str,
        what: str,
        json: Mapping[str, Any] | None = None,
        files: Mapping[str, tuple[str, bytes, str]] | None = None,
    ) -> httpx.Response:
        reply = self._http.request(method, path, json=json, files=files)
        self.counts[what] += 1
        if reply.status_code not in FINE and not what.startswith("mistake"):
            self.wrong.append(f"{method} {path}: {reply.status_code} {reply.text[:200]}")
        return reply

    def _post(self, dice: random.Random) -> None:
        """Send a document; keep a few, and delete the oldest."""
        code, rows = f"q{dice.randrange(16**8):08x}", dice.choice([10, 60, 400])
        file = {"file": (f"{code}.txt", text_of(code, rows).encode(), "text/plain")}
        reply = self._say("POST", "/v1/documents", "document", files=file)
        if reply.status_code in (200, 202):
            self._documents.append((reply.json()["id"], code, rows))
        if len(self._documents) > MOST_KEPT:
            self._say("DELETE", f"/v1/documents/{self._documents.pop(0)[0]}", "deletion")
        self._over.wait(2)

    def _ask(self, dice: random.Random) -> None:
        """By key, in words, and what no document has."""
        if not self._documents:
            return
        document, code, rows = dice.choice(self._documents)
        row = dice.randrange(rows)
        question = dice.choice([
            f"Who holds berth TW-{code}-{row}?",
            f"Who holds berth TW-{code}-{row}?",
            f"What did {code.title()} see on day {row}?",
            "What does the treaty of Ghent say about penguins?",
        ])  # fmt: skip
        body = {"documents": [document], "question": question, "recall": dice.choice(["verbatim", "grounded"]),
                "max_tokens": 24}  # fmt: skip
        self._say("POST", "/v1/ask", "question", json=body)

    def _chat(self, dice: random.Random) -> None:
        """One message, of some length, sometimes with documents and sometimes about nothing; read as a stream."""
        documents = [dice.choice(self._documents)[0]] if self._documents and dice.random() < 0.4 else []
        words = " ".join(dice.choices(WORDS, k=dice.choice([10, 80, 300] if documents else [10, 80, 400, 1500])))
        said = dice.choice([words, words, "Thanks a lot!"])
        body = self._body([{"role": "user", "content": said}], dice.choice([8, 30, 90]), documents=documents)
        with self._http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as reply:
            self.counts["chat"] += 1
            if reply.status_code != httpx.codes.OK:
                reply.read()
                if reply.status_code not in FINE:
                    self.wrong.append(f"chat: {reply.status_code} {reply.text[:200]}")
                return
            leaves_after = dice.choice([5, 10_000, 10_000])
            for number, _ in enumerate(reply.iter_lines()):
                if number > leaves_after:
                    self.counts["left"] += 1
                    break

    def _converse(self, dice: random.Random) -> None:
        """A conversation without a name: each turn has all before it, as it was said."""
        messages: list[Message] = [{"role": "system", "content": " ".join(dice.choices(WORDS, k=120))}]
        for _ in range(NUM_TURNS):
            messages = [*messages, {"role": "user", "content": " ".join(dice.choices(WORDS, k=30))}]
            reply = self._say("POST", "/v1/chat/completions", "turn", json=self._body(messages, 20))
            if reply.status_code != httpx.codes.OK or self._over.is_set():
                return
            messages = [*messages, {"role": "assistant", "content": reply.json()["choices"][0]["message"]["content"]}]

    def _keep_sessions(self, dice: random.Random) -> None:
        """Named sessions that are saved, restored, forked and deleted."""
        name = f"talk-{dice.randrange(NUM_SESSIONS)}"
        messages = [{"role": "user", "content": " ".join(dice.choices(WORDS, k=200))}]
        with suppress(httpx.HTTPError):
            self._say("DELETE", f"/v1/sessions/{name}", "session deleted")
        self._say("POST", "/v1/chat/completions", "session", json=self._body(messages, 12, session=name))
        if dice.random() < 0.6:
            self._say("POST", f"/v1/sessions/{name}/save", "session saved")
            self._say("POST", f"/v1/sessions/{name}/restore", "session restored")
        if dice.random() < 0.3:
            self._say("DELETE", f"/v1/sessions/{name}-copy", "session deleted")
            self._say("POST", f"/v1/sessions/{name}/fork", "session forked", json={"to": f"{name}-copy"})

    def _err(self, dice: random.Random) -> None:
        """What a client does wrong, and is told so."""
        mistakes: list[tuple[str, str, dict[str, Any] | None]] = [
            ("POST", "/v1/chat/completions", {"model": "gpt-9", "messages": []}),
            ("POST", "/v1/chat/completions", {"model": self._model, "messages": [], "nonsense": 1}),
            ("POST", "/v1/ask", {"documents": ["doc_missing"], "question": "Who?"}),
            ("GET", "/v1/nothing/here", None),
        ]
        method, path, body = dice.choice(mistakes)
        reply = self._say(method, path, "mistake", json=body)
        if reply.status_code < httpx.codes.BAD_REQUEST:
            self.wrong.append(f"{method} {path} was answered with {reply.status_code}")
        self._over.wait(1)

    def _body(self, messages: Sequence[Message], max_tokens: int, **extension: object) -> dict[str, Any]:
        given = {name: value for name, value in extension.items() if value}
        return {"model": self._model, "messages": messages, "max_tokens": max_tokens, "fano": given}


def text_of(code: str, rows: int) -> str:
    """A document of which every row can be asked for by its key."""
    dice = random.Random(code)
    return "".join(
        f"{code.title()} saw the {dice.choice(WORDS)} near the {dice.choice(WORDS)} on day {row}. "
        f"Berth TW-{code}-{row} is held by keeper {code}{row:04d}.\n\n"
        for row in range(rows)
    )


def wait_until_ready(url: str, seconds: float = 120) -> None:
    """Raises ``TimeoutError`` where the server does not take questions in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz", timeout=2).status_code == httpx.codes.OK:
                return
        time.sleep(0.2)
    raise TimeoutError(f"{url} is not ready after {seconds:g} s")
