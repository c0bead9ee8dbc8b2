"""Responses with the embedded model and a real library: turns are not read again, branches, a restart, a search."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
from fakes_server import serving

from server.app import create_app
from server.metrics import Metrics
from server.services import load_services
from server.settings import Settings

MODEL = "fano-reader"
WORDS = "harbour winter lantern ledger orchard captain river market signal copper meadow teacher engine".split()
STORY = " ".join(f"On day {day} the {WORDS[day % 13]} stood beside the {WORDS[day * 5 % 13]}." for day in range(40))
LEDGER = "\n".join(
    f"Invoice QX-{number}-B over {number * 7} euros was paid by {name} Oldenkamp on {number % 28 + 1} March 2024."
    for number, name in enumerate(("Margarethe", "Anselm", "Ottilie", "Burkhard", "Walburga"), start=7740)
)


@contextmanager
def opened(data_dir: Path) -> Iterator[openai.OpenAI]:
    """A client of a server of this process, with a model of its own."""
    settings = Settings(data_dir=data_dir, dtype="float32", max_sequences=2, threads=2)
    metrics = Metrics()
    app = create_app(settings, load_services(settings, metrics), metrics)
    with serving(app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        yield client


def say(client: openai.OpenAI, text: str, previous: Any = None, **more: Any) -> Any:
    body = {"max_output_tokens": 12, "temperature": 0, **more}
    previous_id = None if previous is None else previous.id
    return client.responses.create(model=MODEL, input=text, previous_response_id=previous_id, **body)


def cached(response: Any) -> int:
    number: int = response.usage.input_tokens_details.cached_tokens
    return number


def test_turns_are_read_once_and_survive_a_restart(tmp_path: Path) -> None:
    with opened(tmp_path) as client:
        first = say(client, f"{STORY} What stood beside the lantern?")
        assert cached(first) == 0 and first.usage.input_tokens > 300
        second = say(client, "And on which day was that?", first)
        # All that was read and drawn, but for the token drawn last.
        assert cached(second) >= first.usage.total_tokens - 1
        third = say(client, "Name another one.", second)
        assert cached(third) >= second.usage.total_tokens - 1
        branch = say(client, "Name another one.", first)
        assert cached(branch) >= first.usage.input_tokens - 40
        # Nothing of the other branch was read.
        anew = say(client, "Name another one.", first, store=False)
        assert anew.output_text == branch.output_text and anew.usage.input_tokens == branch.usage.input_tokens
    with opened(tmp_path) as client:
        again = say(client, "Name another one.", second)
        assert (again.output_text, again.usage.input_tokens) == (third.output_text, third.usage.input_tokens)
        after = say(client, "And then?", again)
        assert cached(after) >= again.usage.total_tokens - 1


def test_a_search_of_a_vector_store(tmp_path: Path) -> None:
    with opened(tmp_path) as client:
        store = client.vector_stores.create(name="ledger")
        file = client.vector_stores.files.upload_and_poll(
            vector_store_id=store.id, file=("ledger.txt", LEDGER.encode()), poll_interval_ms=50
        )
        assert file.status == "completed"
        tools: Any = [{"type": "file_search", "vector_store_ids": [store.id], "max_num_results": 3}]
        for recall in ("grounded", "verbatim"):
            response = client.responses.create(
                model=MODEL,
                input="Who paid invoice QX-7742-B?",
                tools=tools,
                include=["file_search_call.results"],
                extra_body={"fano": {"recall": recall}},
            )
            call, message = response.output
            assert call.type == "file_search_call" and message.type == "message" and call.results
            for result in call.results:
                told = result.model_dump()
                assert LEDGER[told["start_char"] : told["end_char"]] == told["text"] and 0 <= told["score"] <= 1
            assert "Ottilie Oldenkamp" in response.output_text
            annotations = [each.model_dump() for each in message.content[0].annotations]  # type: ignore[union-attr]
            assert annotations
            for each in annotations:
                assert LEDGER[each["start_char"] : each["end_char"]] == each["quote"]
                assert each["quote"] in response.output_text and each["file_id"] == file.id
            # The turn of the search is remembered as it was asked and answered.
            later = client.responses.create(
                model=MODEL, input="Who paid invoice QX-7743-B?", tools=tools, previous_response_id=response.id
            )
            assert "Burkhard" in later.output_text
