"""What surprised the model in a document is listed as facts, and they are its text. With the embedded model."""

import asyncio
import random
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes_server import open_client

from model.config import Dtype, EngineConfig, ModelConfig
from model.engine.engine import Engine
from model.engine.loader import load_engine
from model.policy import AttentionPolicy, PolicyName
from model.tokenizer import Tokenizer
from retrieval.embedder import HashEmbedder
from retrieval.library import Library
from retrieval.passage import Span
from server.answers.inquiry import ServedModel
from server.app import create_app
from server.bills.forecast import Forecaster
from server.documents.reading import document_ids
from server.documents.surprise import Placement, SurpriseFinder, surprising
from server.metrics import Metrics
from server.services import Services, embedded_checkpoint
from server.settings import Settings

TENANT = "default"
PIECE = 256
WINDOW = AttentionPolicy(PolicyName.WINDOW, 64, 256)
CONFIG = EngineConfig(
    num_slots=4, num_checkpoint_slots=8, max_context_tokens=4096, dtype=Dtype.FLOAT32, policy=WINDOW,
    prefill_chunk_tokens=128,
)  # fmt: skip
# Plain sentences, and among them what nobody can foretell; characters of one to four bytes.
PLANTED = {
    7: "Zq81-Kvorplax",
    23: "Übergrößenträger 🙂 Ωmegatron-17",
    41: "Fjodorowitsch Krzyżanowski",
    55: "9f3e77b2c1d4",
}
TEXT = "\n".join(
    f"On day {day} the captain of the ship bought oil and bread for the men."
    + (f" The name on the crate was {PLANTED[day]}, he said." if day in PLANTED else "")
    for day in range(70)
)


class Place:
    """One data directory, and the server over it as often as it is started."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.engine: Engine | None = None
        self.services: Services | None = None

    def start(self, **changes: Any) -> open_client:
        settings = Settings(data_dir=self.data_dir, **changes)
        self.engine = load_engine(embedded_checkpoint(), CONFIG)[0]
        library = Library.open(self.data_dir, HashEmbedder(dimension=16), has_reader=True)
        model = ServedModel("m", 1, WINDOW, "float32", CONFIG.max_context_tokens)
        forecaster = Forecaster(ModelConfig.from_pretrained(embedded_checkpoint()), EngineConfig(policy=WINDOW))
        metrics = Metrics()
        self.services = Services(settings, metrics, library, self.engine, self.engine.tokenizer, model, forecaster)
        self.services.reader._piece_tokens = PIECE
        return open_client(create_app(settings, self.services, metrics))


@pytest.fixture
def new_place(tmp_path: Path) -> Iterator[Callable[[str], Place]]:
    yield lambda name: Place(tmp_path / name)


async def ready(client: httpx.AsyncClient, text: str = TEXT) -> str:
    """The document, once it is read."""
    reply = await client.post("/v1/documents", json={"text": text, "name": "log.txt"})
    url = f"/v1/documents/{reply.json()['id']}"
    async with asyncio.timeout(60):
        while (await client.get(url)).json()["status"] != "ready":
            await asyncio.sleep(0.01)
    return url


async def surprises(client: httpx.AsyncClient, url: str, **query: Any) -> list[dict[str, Any]]:
    reply = await client.get(f"{url}/facts", params={"kind": "surprising", "limit": 1000, **query})
    assert reply.status_code == 200, reply.text
    found: list[dict[str, Any]] = reply.json()["data"]
    return found


async def test_surprises_are_listed_with_true_places_and_outlive_a_restart(new_place: Callable[[str], Place]) -> None:
    place = new_place("data")
    async with place.start() as client:
        url = await ready(client)
        found = await surprises(client, url)
        text = (await client.get(f"{url}/text")).json()["text"]
        assert text == TEXT
        assert all(text[each["start"] : each["end"]] == each["text"] for each in found)
        assert {each["source"] for each in found} == {"reading"} and min(each["score"] for each in found) >= 12
        for planted in PLANTED.values():
            mine = [each for each in found if each["text"] in planted]
            assert mine, f"nothing of {planted!r} among {[each['text'] for each in found]}"
            for each in mine:
                sentence = text[each["evidence"]["start"] : each["evidence"]["end"]]
                assert sentence == f"The name on the crate was {planted}, he said."
        # Whole words, without the signs at their ends, none across a line.
        for each in found:
            assert re.fullmatch(r"\w.*\w", each["text"]), each
            assert not re.match(r"\w", text[each["end"]]) and not re.match(
                r"\w", text[each["start"] - 1 : each["start"]]
            )
        assert [each["text"] for each in await surprises(client, url, key="zq81 kvorplax")] == ["Zq81-Kvorplax"]
        assert await surprises(client, url, source="code") == []
        # The other facts are where they were.
        codes = (await client.get(f"{url}/facts", params={"kind": "identifier"})).json()["data"]
        assert "9f3e77b2c1d4" in [each["text"] for each in codes]
    async with place.start() as client:
        assert await surprises(client, url) == found
        assert await ready(client) == url
        assert await surprises(client, url) == found
        assert (await client.delete(url)).status_code == 200
        assert (await client.get(f"{url}/facts")).status_code == 404
        services = place.services
        assert services is not None and services.library.stats().num_facts == 0
        again = await ready(client)
        assert [(each["text"], each["score"]) for each in await surprises(client, again)] == [
            (each["text"], each["score"]) for each in found
        ]


@pytest.mark.parametrize(
    ("finds", "save_seconds"),
    [(True, 0.0), (True, 1e9), (False, 0.0)],
    ids=["told and saved", "told and not saved", "saved and not told"],
)
async def test_a_reading_that_was_cut_off_finds_the_rest_and_nothing_twice(
    new_place: Callable[[str], Place], finds: bool, save_seconds: float
) -> None:
    place = new_place("cut")
    async with place.start(surprises=finds) as client:
        services, engine = place.services, place.engine
        assert services is not None and engine is not None
        services.reader._save_seconds = save_seconds
        reply = await client.post("/v1/documents", json={"text": TEXT, "name": "log.txt"})
        document_id = reply.json()["id"]
        async with asyncio.timeout(60):
            while engine.stats().num_prompt_tokens < 3 * PIECE:
                await asyncio.sleep(0.002)
    async with place.start() as client:
        services, engine = place.services, place.engine
        assert services is not None and engine is not None
        url = await ready(client)
        assert url.endswith(document_id)
        cut = await surprises(client, url)
        num_tokens = len(document_ids(engine.tokenizer, TEXT))
        assert (engine.stats().num_prompt_tokens < num_tokens) is (finds and not save_seconds)
        assert services.library.surprises.num_told(document_id) == num_tokens
        # As it is found in one go.
        await client.delete(url)
        whole = await surprises(client, await ready(client))
        places = [[(each["start"], each["end"], each["score"]) for each in found] for found in (cut, whole)]
        assert places[0] == places[1] and len(cut) > len(PLANTED)


async def test_surprises_can_be_left_out(new_place: Callable[[str], Place]) -> None:
    place = new_place("data")
    async with place.start(surprises=False) as client:
        url = await ready(client)
        assert await surprises(client, url) == []
        assert place.services is not None and place.services.library.surprises.num_told(url.rpartition("/")[2]) == 0


@pytest.fixture(scope="module")
def reader_tokenizer() -> Tokenizer:
    return Tokenizer(embedded_checkpoint())


def finder_of(tokenizer: Tokenizer, text: str) -> SurpriseFinder:
    placement = Placement.of(tokenizer, text)
    assert placement is not None
    return SurpriseFinder(tokenizer, placement, lambda start, end: text[start:end])


@pytest.mark.parametrize("seed", range(12))
def test_places_are_true_wherever_the_pieces_end(reader_tokenizer: Tokenizer, seed: int) -> None:
    rng = random.Random(seed)
    alphabet = [
        "the",
        "Ärger",
        "🙂🙂",
        "日本語",
        "e\u0301te\u0301",
        "x9-\u00ad7",
        "\u200b",
        "“quoted”",
        "well-known--so",
        "\t",
        "\r\n",
        "  ",
        "…",
        "<|end|>",
    ]
    text = "".join(rng.choice(alphabet) + rng.choice(["", " ", "\n", ". "]) for _ in range(200))
    ids = document_ids(reader_tokenizer, text)
    bits = [rng.random() * (40 if rng.random() < 0.1 else 3) for _ in ids]
    borders = sorted({0, len(ids), *rng.sample(range(len(ids)), 9)})
    finder = finder_of(reader_tokenizer, text)
    num_found, words = 0, {match.start(): match.end() for match in re.finditer(r"(?:(?!--|[—…])\S)+", text)}
    for first, last in pairwise(borders):
        for each in finder.find(ids[first:last], bits[first:last]):
            num_found += 1
            said = text[each.span.start : each.span.end]
            assert said and said == said.strip()
            # It begins in the first of whole words and ends in the last.
            start = max(place for place in words if place <= each.span.start)
            assert text[start : each.span.start].strip(_SIGNS) == ""
            end = min(place for place in words.values() if place >= each.span.end)
            assert text[each.span.end : end].strip(_SIGNS) == ""
    assert num_found > 3


_SIGNS = ".,;:!?\"'“”‘’«»()[]{}<>*_`|#-–—…/\\"


@pytest.mark.parametrize(
    "text", ["Box7 there", " Box7 there", "\n\n  Box7 there \n", "🙂 Box7", "▁Box7", "<|user|>Box7", "  \t Box7"]
)
def test_the_text_is_found_in_its_prompt(reader_tokenizer: Tokenizer, text: str) -> None:
    longer = text + " and more words" * 30
    ids = document_ids(reader_tokenizer, longer)
    dear = [60.0 if reader_tokenizer.token_bytes(token_id).endswith(b"7") else 0.5 for token_id in ids]
    assert dear.count(60.0) == 1
    (found,) = finder_of(reader_tokenizer, longer).find(ids, dear)
    assert longer[found.span.start : found.span.end].endswith("Box7")


class Templated(Tokenizer):
    """A tokenizer whose template does ``change`` to each text."""

    def __init__(self, change: Callable[[str], str]) -> None:
        super().__init__(embedded_checkpoint())
        self._change = change

    def chat_parts(self, *asked: Any, **named: Any) -> tuple[int | str, ...]:
        parts = super().chat_parts(*asked, **named)
        return tuple(part if isinstance(part, int) else self._change(part) for part in parts)


def test_a_template_may_put_words_before_a_text_and_trim_it_but_not_change_it() -> None:
    text = "  \n Box7 there" + " and more words" * 30 + "\n"
    for change in (str.strip, lambda part: f"user: {part.strip()} [end]", lambda part: f" {part}"):
        tokenizer = Templated(change)
        ids = document_ids(tokenizer, text)
        dear = [60.0 if tokenizer.token_bytes(token_id).endswith(b"7") else 0.5 for token_id in ids]
        (found,) = finder_of(tokenizer, text).find(ids, dear)
        assert text[found.span.start : found.span.end] == "Box7"
    assert Placement.of(Templated(str.upper), text) is None
    assert Placement.of(Templated(str), " \n ") is None


def test_a_word_is_told_by_all_its_bytes(reader_tokenizer: Tokenizer) -> None:
    text = "plain words here " * 40 + "boat🙂 " + "plain words here " * 40
    ids = document_ids(reader_tokenizer, text)
    last = [place for place, each in enumerate(ids) if reader_tokenizer.token_bytes(each) == "🙂".encode()[-1:]]
    assert len(last) == 1, "the sign is no token of its own"
    bits = [60.0 if place == last[0] else 0.5 for place in range(len(ids))]
    (found,) = finder_of(reader_tokenizer, text).find(ids, bits)
    assert text[found.span.start : found.span.end] == "boat🙂"


def test_nothing_is_said_of_a_text_that_the_tokens_do_not_say(reader_tokenizer: Tokenizer) -> None:
    text = "plain words here " * 40 + "Zq81-Kvorplax " + "plain words here " * 40
    ids = document_ids(reader_tokenizer, text)
    placement = Placement.of(reader_tokenizer, text)
    assert placement is not None
    bits = [1.0 + 50 * (index == len(ids) // 2) for index in range(len(ids))]
    assert SurpriseFinder(reader_tokenizer, placement, lambda a, b: text[a:b]).find(ids, bits)
    other = text.replace("plain", "plaim", 1)
    finder = SurpriseFinder(reader_tokenizer, placement, lambda a, b: other[a:b])
    half = len(ids) // 4
    assert finder.find(ids[:half], bits[:half]) == [] and finder.find(ids[half:], bits[half:]) == []


def test_what_is_usual_is_measured_by_the_length_and_neighbours_stand_together() -> None:
    text = "a bb ccc dddd eeeee " * 20 + "Anna Kvorplax, Zed\nMoon end"
    words = [Span(*match.span()) for match in re.finditer(r"\w+", text)]
    bits = [2.0 * len(word) for word in words]

    def found(*dear: tuple[str, float]) -> list[tuple[str, float]]:
        told = [
            usual + dict(dear).get(text[word.start : word.end], 0.0) for word, usual in zip(words, bits, strict=True)
        ]
        said = surprising(words, told, lambda gap: text[gap.start : gap.end])
        return [(text[each.span.start : each.span.end], each.bits) for each in said]

    assert found() == []
    assert found(("Anna", 11.9)) == [] and found(("Anna", 12.0)) == [("Anna", 12.0)]
    # Two in a hundred and rounded up: three of 105.
    assert found(("Anna", 20.0), ("Kvorplax", 30.0), ("end", 12.5)) == [("Anna Kvorplax", 50.0), ("end", 12.5)]
    assert found(("Kvorplax", 20.0), ("Zed", 30.0), ("Moon", 25.0)) == [
        ("Kvorplax", 20.0),
        ("Zed", 30.0),
        ("Moon", 25.0),
    ]
    assert found(("Anna", 20.0), ("Kvorplax", 30.0), ("end", 15.5), ("Zed", 99.0)) == [
        ("Anna Kvorplax", 50.0),
        ("Zed", 99.0),
    ]
