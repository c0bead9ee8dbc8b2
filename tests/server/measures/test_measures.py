"""The definitions of all metrics are what the server exposes, and docs/metrics.md is made of them."""

import ast
import re
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from fakes_server import MODEL, World, WorldMaker, open_client
from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from model.engine.stats import StepRecord
from model.errors import QueueFull
from server.app import create_app
from server.error_table import refusal_codes
from server.measures.exposition import exposition
from server.measures.measure import Kind, Measure
from server.measures.page import measures, page
from server.metrics import Metrics
from server.readiness import Readiness
from server.settings import Settings

ROOT = Path(__file__).parents[3]
TEXT = "The vault opens at noon. Invoice QX-7741-B was paid by Margarethe Oldenkamp."
HELLO = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
# Only for a model of which somebody measured it.
CONDITIONAL = {"fano_state_recall_bits"}
DESIGNED = {
    "fano_device_memory_bytes": ("pool", "weights ssm_state conv_state kv workspace"),
    "fano_device_memory_plan_bytes": ("pool", "weights ssm_state conv_state kv workspace"),
    "fano_host_memory_bytes": ("pool", "kv_archive kv_summaries index embeddings sessions unaccounted"),
    "fano_disk_bytes": ("pool", "store sessions index"),
    "fano_state_slots": ("status", "free used cached"),
    "fano_kv_blocks": ("status", "free used cached"),
    "fano_sessions": ("status", "resident host saved"),
    "fano_requests": ("status", "running waiting"),
    "fano_tokens_total": ("kind", "prompt cached completion"),
    "fano_documents": ("status", "queued parsing indexing reading ready failed"),
}


async def exposed(client: httpx.AsyncClient) -> dict[str, Metric]:
    """Families by the name they have on the wire."""
    families = text_string_to_metric_families((await client.get("/metrics")).text)
    return {f"{each.name}_total" if each.type == "counter" else each.name: each for each in families}


async def busy(client: httpx.AsyncClient, world: World) -> None:
    """A little of everything that is counted."""
    document = world.library.put(TEXT)
    for question in ("Who paid invoice QX-7741-B?", "Penguins?"):
        await client.post("/v1/ask", json={"documents": [document], "question": question})
    chat = {**HELLO, "fano": {"documents": [document]}}
    for words in ("Thanks!", "Who paid?", "Invoice QX-7741-B", "What did I just ask?", "Margarethe"):
        await client.post("/v1/chat/completions", json={**chat, "messages": [{"role": "user", "content": words}]})
    await client.post("/v1/chat/completions", json={**HELLO, "fano": {"session": "talk"}})
    world.engine.refuse(QueueFull(1, 1, 1))
    await client.post("/v1/chat/completions", json=HELLO)
    await client.post("/v1/chat/completions", json={**HELLO, "audio": 1})
    await client.get("/nowhere")
    await client.request("BREW", "/v1/models")
    await client.get(f"/v1/documents/{document}/facts")
    for phase in ("prefill", "decode", "mixed"):
        world.engine.tell(last_step=StepRecord(phase, 1, 0.01))
        world.app.state.fano.metrics.stepped(world.engine.stats())
    world.engine.tell(
        num_prefixes={("hit", "prompt"): 2, ("miss", "empty"): 1}, num_checkpoints={"resident": 1, "host": 0}
    )


async def test_what_is_exposed_is_what_is_defined(client: httpx.AsyncClient, world: World) -> None:
    await busy(client, world)
    families = await exposed(client)
    defined = {measure.name: measure for measure in measures()}
    assert families.keys() == defined.keys() - CONDITIONAL
    for name, family in families.items():
        measure = defined[name]
        assert (family.type, family.documentation) == (measure.kind.value, measure.what) or name.startswith("process_")
        assert family.type == measure.kind.value
        assert family.samples, name
        for sample in family.samples:
            labels = {label: value for label, value in sample.labels.items() if label != "le"}
            assert list(labels) == sorted(measure.labels), name
            for label, value in labels.items():
                values = measure.labels[label]
                assert isinstance(values, str) or value in values, (name, label, value)


async def test_the_text_is_what_the_library_would_write(client: httpx.AsyncClient, world: World) -> None:
    await busy(client, world)
    world.engine.tell(build=replace(world.engine.stats().build, model='a "quoted" \\\\ name\nof two lines'))
    registry = world.app.state.fano.metrics.registry

    def still(text: bytes) -> list[str]:
        """But for what changes between two looks."""
        lines = text.decode().split("\n")
        return [line for line in lines if not re.match(r"process_|fano_(stage_seconds|host_mem|disk_free)", line)]

    assert still(exposition(registry)) == still(generate_latest(registry))


async def test_what_was_designed_is_exposed(client: httpx.AsyncClient) -> None:
    families = await exposed(client)
    for name, (label, values) in DESIGNED.items():
        assert set(values.split()) <= {sample.labels[label] for sample in families[name].samples}, name


async def test_how_many_series_there_are_does_not_depend_on_what_clients_make(
    client: httpx.AsyncClient, world: World
) -> None:
    async def num_series() -> int:
        return len([line for line in (await client.get("/metrics")).text.splitlines() if line[:1] != "#"])

    await busy(client, world)
    before = await num_series()
    for number in range(20):
        await client.post("/v1/chat/completions", json={**HELLO, "fano": {"session": f"talk-{number}"}})
        await client.get(f"/v1/documents/doc_{number}/facts")
        await client.get(f"/nowhere/{number}")
        await client.request(f"BREW{number}", "/v1/models")
        await client.post(f"/v1/sessions/talk-{number}/save", headers={"x-request-id": f"own-{number}"})
        world.library.put(f"{TEXT} {number}", tenant=f"tenant-{number}")
    # Routes that were called for the first time, with one status each: no more.
    assert await num_series() - before <= 2
    assert before < 700


async def test_each_response_is_counted_by_route_and_status(new_world: WorldMaker) -> None:
    world = new_world(api_key="a-long-random-string")
    async with open_client(world) as client:
        key = {"authorization": "Bearer a-long-random-string"}
        for headers in (key, {}):
            await client.get("/v1/documents/doc_none", headers=headers)
        await client.get("/nowhere")

        def broken(*_: object) -> None:
            raise ZeroDivisionError

        world.library.get = broken
        assert (await client.get("/v1/documents/doc_1", headers=key)).status_code == 500
        families = await exposed(client)
        counts = {
            (sample.labels["method"], sample.labels["route"], sample.labels["status"]): sample.value
            for sample in families["fano_http_requests_total"].samples
        }
        route = "/v1/documents/{document_id}"
        assert counts["GET", route, "404"] == counts["GET", route, "401"] == counts["GET", route, "500"] == 1
        assert counts["GET", "none", "404"] == 1
        codes = {sample.labels["code"]: sample.value for sample in families["fano_refusals_total"].samples}
        assert codes["internal_error"] == codes["document_not_found"] == codes["invalid_api_key"] == 1
        (open_requests,) = families["fano_http_requests_open"].samples
        assert open_requests.value == 1


async def test_the_stage_is_told_from_loading_to_draining(client: httpx.AsyncClient, world: World) -> None:
    readiness: Readiness = world.app.state.fano.readiness

    async def stages() -> tuple[dict[str, float], float]:
        families = await exposed(client)
        (seconds,) = families["fano_stage_seconds"].samples
        return {sample.labels["stage"]: sample.value for sample in families["fano_stage"].samples}, seconds.value

    nothing = dict.fromkeys(("loading", "ready", "draining", "failed"), 0.0)
    told, _ = await stages()
    assert told == nothing | {"ready": 1}
    readiness.changed_at -= 100
    assert (await stages())[1] >= 100
    readiness.drain()
    told, seconds = await stages()
    assert told == nothing | {"draining": 1} and seconds < 5
    readiness.drain()  # a second order changes nothing
    readiness.changed_at -= 100
    readiness.drain()
    assert (await stages())[1] >= 100
    (limit,) = (await exposed(client))["fano_drain_limit_seconds"].samples
    assert limit.value == world.settings.drain_seconds == 30


async def test_an_engine_that_stopped_is_a_failed_stage(client: httpx.AsyncClient, world: World) -> None:
    world.app.state.fano.services.bridge.stop()
    families = await exposed(client)
    assert [s.labels["stage"] for s in families["fano_stage"].samples if s.value] == ["failed"]


def test_before_the_model_stands_there_is_a_stage_and_no_bill(tmp_path: Path) -> None:
    metrics = Metrics()
    create_app(Settings(data_dir=tmp_path), metrics=metrics)
    families = {each.name: each for each in text_string_to_metric_families(metrics.expose().decode())}
    assert "fano_refusals" in families and "fano_device_memory_bytes" not in families
    assert [s.labels["stage"] for s in families["fano_stage"].samples if s.value] == ["loading"]


def test_the_page_is_made_of_the_definitions() -> None:
    written = (ROOT / "docs" / "metrics.md").read_text()
    assert written == page(), "run: python -m server.measures.page > docs/metrics.md"
    for measure in measures():
        assert f"`{measure.name}" in written


@pytest.mark.parametrize("measure", measures(), ids=lambda measure: measure.name)
def test_names_follow_the_conventions(measure: Measure) -> None:
    assert re.fullmatch(r"(fano_|process_|vllm:)[a-z_]+", measure.name)
    assert measure.name.endswith("_total") == (measure.kind is Kind.COUNTER)
    if measure.unit:
        assert f"_{measure.unit}" in measure.name
    assert bool(measure.buckets) == (measure.kind is Kind.HISTOGRAM)
    assert measure.what.endswith(".") and (measure.bad == "" or measure.bad.endswith("."))


def test_every_code_that_the_source_names_is_a_label() -> None:
    """A code that an error is given where it is raised is the last argument of ``RequestInvalid``, or is named so."""
    named = set()
    for path in (ROOT / "server").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or "RequestInvalid" not in ast.unparse(node.func):
                continue
            given = node.args[2:3] + [keyword.value for keyword in node.keywords if keyword.arg == "code"]
            named |= {each.value for each in given if isinstance(each, ast.Constant)}
    assert "unsupported_file" in named
    assert named <= set(refusal_codes())
