"""What one tenant of a server must see, in memory; and the server, whose clock can be put forward and which can be
started anew."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from fakes_server import WorldMaker, serving

from retrieval.embedder import HashEmbedder
from retrieval.library import Library
from server.keys import Keys

WAIT_SECONDS = 10.0
DAY_SECONDS = 86_400


class Server:
    """A server over a library as it is."""

    def __init__(self, new_world: WorldMaker, directory: Path) -> None:
        self._new_world = new_world
        self._directory = directory
        self._open = ExitStack()
        self.keys = Keys(directory / "data")
        self.forward_seconds = 0
        self.num_starts = 0
        self.failure: Exception | None = None
        self.url = ""
        self.start()

    def now(self) -> float:
        """The time by the server's clock."""
        return time.time() + self.forward_seconds

    def start(self) -> None:
        """Start it on what there is, after its end if it runs."""
        try:
            self._start()
        except Exception as failure:
            # Said to whoever comes next: hypothesis would only show that nobody is there.
            self.failure = failure
            raise
        self.num_starts += 1

    def _start(self) -> None:
        self._open.close()
        library = Library.open(self._directory / "library", HashEmbedder(dimension=16))
        world = self._new_world(library=library)
        self.url = self._open.enter_context(serving(world.app))
        world.app.state.fano.services.files._database.now = self.now

    def close(self) -> None:
        """End it."""
        self._open.close()


@dataclass
class Said:
    """A stored response: what it was asked, and after which other one."""

    asked: str
    previous: str | None


@dataclass
class Member:
    """A file in a store."""

    attributes: dict[str, Any]
    chunking: dict[str, Any]
    status: str = "completed"


@dataclass
class Store:
    """A vector store. It expires ``days`` after it was ``used``, if they are not None."""

    days: int | None
    used: float
    members: dict[str, Member] = field(default_factory=dict)
    batches: dict[str, set[str]] = field(default_factory=dict)

    def is_expired(self, now: float) -> bool:
        """Whether nobody used it for too long."""
        return self.days is not None and self.used + self.days * DAY_SECONDS <= now


@dataclass
class Upload:
    """A file that comes in parts, of which each has a few characters of the text."""

    text: str
    begun: float
    parts: dict[str, str] = field(default_factory=dict)
    status: str = "pending"
    joined: list[str] = field(default_factory=list)
    file: str = ""


@dataclass
class Tenant:
    """What one tenant must see. ``expiry`` has the time at which a file goes."""

    client: httpx.Client
    documents: dict[str, str] = field(default_factory=dict)  # id by text, of all there are
    posted: set[str] = field(default_factory=set)
    pins: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)  # by text, by id
    files: dict[str, str] = field(default_factory=dict)  # text by id
    expiry: dict[str, float] = field(default_factory=dict)
    uploads: dict[str, Upload] = field(default_factory=dict)
    stores: dict[str, Store] = field(default_factory=dict)
    sessions: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    responses: dict[str, Said] = field(default_factory=dict)

    def ask(self, method: str, path: str, *expected: int, **request: Any) -> Any:
        """The reply, which must have one of the statuses, or 200."""
        reply = self.client.request(method, f"/v1{path}", **request)
        assert reply.status_code in (expected or (200,)), (method, path, request, reply.status_code, reply.text)
        return reply.json()

    def every(self, path: str) -> list[Any]:
        """The whole list, in small pages."""
        data: list[Any] = []
        after: dict[str, str] = {}
        while True:
            page = self.ask("GET", path, params={"limit": 2, **after})
            data += page["data"]
            if not page["has_more"]:
                return data
            after = {"after": page["last_id"]}

    def learn(self) -> None:
        """The ids of the documents that were made of files."""
        for each in self.every("/documents"):
            if each["id"] not in self.documents.values():
                path = f"/documents/{each['id']}"
                until(lambda path=path: self.ask("GET", path)["status"] == "ready", each)  # type: ignore[misc]
                text = self.ask("GET", f"{path}/text")["text"]
                assert text in self.files.values() and text not in self.documents, each
                self.documents[text] = each["id"]

    def forget_document(self, text: str) -> None:
        """The document is gone."""
        del self.documents[text]
        self.pins.pop(text, None)
        self.posted.discard(text)

    def forget_file(self, file: str) -> None:
        """The file is gone: out of all stores, and with the last of its text the document, unless that was posted."""
        text = self.files.pop(file)
        self.expiry.pop(file, None)
        for store in self.stores.values():
            store.members.pop(file, None)
        if text in self.documents and text not in self.posted and text not in self.files.values():
            self.forget_document(text)

    def check(self) -> None:
        """All lists are those of the model."""

        def same_documents() -> bool:
            return {each["id"] for each in self.every("/documents")} == set(self.documents.values())

        until(same_documents, (self.documents, self.posted))
        for text, document in self.documents.items():
            assert self.ask("GET", f"/documents/{document}/text")["text"] == text
            pinned = [each for each in self.every(f"/documents/{document}/facts") if each["source"] == "user"]
            assert {each["id"]: (each["start"], each["end"]) for each in pinned} == self.pins.get(text, {})
        assert {each["id"] for each in self.every("/files")} == set(self.files)
        assert {each["id"] for each in self.every("/vector_stores")} == set(self.stores)
        for name, store in self.stores.items():
            self._check_store(name, store)
        mine = [each["name"] for each in self.every("/sessions") if ":" not in each["name"]]
        assert mine == sorted(self.sessions)

    def _check_store(self, name: str, store: Store) -> None:
        told = self.every(f"/vector_stores/{name}/files")
        shown = {each["id"]: (each["status"], each["attributes"], each["chunking_strategy"]) for each in told}
        assert shown == {file: (each.status, each.attributes, each.chunking) for file, each in store.members.items()}, (
            name,
            store,
        )
        counts = self.ask("GET", f"/vector_stores/{name}")["file_counts"]
        assert (counts["total"], counts["in_progress"]) == (len(store.members), 0)
        assert counts["completed"] == sum(each.status == "completed" for each in store.members.values())
        for batch, files in store.batches.items():
            of_batch = self.every(f"/vector_stores/{name}/file_batches/{batch}/files")
            assert {each["id"] for each in of_batch} == files & set(store.members), (batch, files)


def pick(values: Any, which: int) -> Any:
    """One of them, by any number."""
    ordered = list(values)
    return ordered[which % len(ordered)]


def until(condition: Callable[[], bool], what: object) -> None:
    """Wait until it holds."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def served(new_world: WorldMaker, directory: Path) -> Iterator[Server]:
    """A server, until it is not needed any more."""
    server = Server(new_world, directory)
    yield server
    server.close()
