"""What Prometheus gets: pools from snapshots, counters where things happen, laws of the numbers."""

import re

import httpx
import pytest
from fakes_server import MODEL, World, WorldMaker, open_client, scrape
from prometheus_client.parser import text_string_to_metric_families

from model.engine.stats import StepRecord
from model.errors import QueueFull
from server.bills import bill

TEXT = "The vault opens at noon. Invoice QX-7741-B was paid by Margarethe Oldenkamp."
HELLO = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}


async def test_pools_are_the_engines_and_the_librarys_own_numbers(client: httpx.AsyncClient) -> None:
    samples = await scrape(client)
    device = {"weights": 1000, "ssm_state": 800, "conv_state": 80, "kv": 6400, "workspace": 10}
    for pool, size in device.items():
        assert samples[f'fano_device_memory_bytes{{pool="{pool}"}}'] == size
        assert samples[f'fano_device_memory_plan_bytes{{pool="{pool}"}}'] == size
    assert samples['fano_host_memory_bytes{pool="index"}'] == 1000
    assert samples['fano_host_memory_bytes{pool="embeddings"}'] == 500
    assert samples['fano_disk_bytes{pool="store"}'] == 4000
    assert samples['fano_disk_bytes{pool="index"}'] == 2000
    assert samples["fano_index_vectors"] == 7 and samples["fano_facts"] == 3
    assert samples['fano_state_slots{status="free"}'] == 8 and samples['fano_state_slots{status="used"}'] == 0


async def test_all_pools_and_the_unaccounted_are_the_process(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bill, "resident_set_bytes", lambda: 123_456_789)
    samples = await scrape(client)
    # On a CPU the device's pools lie in the same memory.
    pools = ("fano_host_memory_bytes{", "fano_device_memory_bytes{")
    total = sum(value for name, value in samples.items() if name.startswith(pools))
    assert total == 123_456_789


async def test_a_request_is_counted_where_it_happens(client: httpx.AsyncClient, world: World) -> None:
    document = world.library.put(TEXT)
    world.engine.enqueue("Margarethe Oldenkamp paid it.")
    await client.post("/v1/ask", json={"documents": [document], "question": "Who paid invoice QX-7741-B?"})
    await client.post("/v1/ask", json={"documents": [document], "question": "Penguins?"})
    await client.post("/v1/chat/completions", json=HELLO)
    world.engine.refuse(QueueFull(1, 1, 1))
    await client.post("/v1/chat/completions", json=HELLO)
    await client.post("/v1/chat/completions", json={**HELLO, "audio": {"voice": "ash", "format": "wav"}})
    samples = await scrape(client)
    assert samples['fano_requests_finished_total{reason="stop"}'] == 2
    assert samples['fano_requests_finished_total{reason="abort"}'] == 0
    assert samples['fano_retrieval_total{decision="retrieved",reason="question"}'] == 1
    assert samples['fano_retrieval_total{decision="nothing",reason="question"}'] == 1
    assert samples['fano_retrieval_total{decision="skipped",reason="no_documents"}'] == 2
    assert samples['fano_refusals_total{code="queue_full"}'] == 1
    assert samples['fano_refusals_total{code="unsupported_field"}'] == 1
    assert samples["fano_time_to_first_token_seconds_count"] == 2
    # As the engine made them: three of the four tokens of one answer, none of the other's only one.
    assert samples["fano_inter_token_seconds_count"] == 3
    assert samples["fano_inter_token_seconds_sum"] == pytest.approx(3 * 0.002)
    assert samples["fano_queue_seconds_count"] == 2 and samples["fano_queue_seconds_sum"] == pytest.approx(0.002)
    assert samples["fano_request_seconds_count"] == 2
    assert samples["fano_request_kv_bytes_sum"] == 200 and samples["fano_request_state_bytes_sum"] == 220
    assert samples['fano_retrieval_seconds_count{stage="total"}'] == 2
    assert samples['fano_step_seconds_count{phase="decode"}'] >= 5
    assert samples['fano_tokens_total{kind="completion"}'] == 5
    assert samples['fano_documents{status="ready"}'] == 1 and samples['fano_documents{status="failed"}'] == 0
    assert samples['fano_requests{status="running"}'] == 0 and samples["vllm:num_requests_running"] == 0


async def test_choices_share_one_prompt_in_the_counts(client: httpx.AsyncClient, world: World) -> None:
    world.engine.enqueue("one two", "three", "four five six")
    usage = (await client.post("/v1/chat/completions", json={**HELLO, "n": 3})).json()["usage"]
    samples = await scrape(client)
    assert samples['fano_tokens_total{kind="completion"}'] == usage["completion_tokens"] == 6
    assert samples['fano_tokens_total{kind="prompt"}'] == usage["prompt_tokens"]
    assert samples['fano_requests_finished_total{reason="stop"}'] == samples["fano_request_seconds_count"] == 1
    assert samples["fano_inter_token_seconds_count"] == 3


async def test_what_the_scheduler_does_shows(
    client: httpx.AsyncClient, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bill, "resident_set_bytes", lambda: 123_456_789)
    world.engine.tell(num_waiting=5, num_saved=2, num_preemptions=3, num_blocks_shared=4, saved_bytes=7000)
    reply = await client.get("/metrics")
    families = {family.name: family for family in text_string_to_metric_families(reply.text)}
    by_status = {sample.labels["status"]: sample.value for sample in families["fano_requests"].samples}
    assert by_status == {"running": 0, "waiting": 3, "saved": 2}
    assert families["fano_preemptions"].type == "counter"
    assert [(s.name, s.value) for s in families["fano_preemptions"].samples] == [("fano_preemptions_total", 3)]
    assert [s.value for s in families["fano_kv_blocks_shared"].samples] == [4]
    host = {sample.labels["pool"]: sample.value for sample in families["fano_host_memory_bytes"].samples}
    assert host["sessions"] == 7000
    device = sum(sample.value for sample in families["fano_device_memory_bytes"].samples)
    assert sum(host.values()) + device == 123_456_789
    assert (await scrape(client))["vllm:num_requests_waiting"] == 5


async def test_a_step_is_counted_by_what_it_did(world: World) -> None:
    metrics = world.app.state.fano.metrics
    for phase in ("prefill", "decode", "mixed", "mixed"):
        world.engine.tell(last_step=StepRecord(phase, 3, 0.25))
        metrics.stepped(world.engine.stats())
    families = {family.name: family for family in text_string_to_metric_families(metrics.expose().decode())}
    counts = {s.labels["phase"]: s.value for s in families["fano_step_seconds"].samples if s.name.endswith("_count")}
    assert counts == {"prefill": 1, "decode": 1, "mixed": 2}


async def test_running_requests_show_in_gauges(client: httpx.AsyncClient, world: World) -> None:
    import asyncio

    world.engine.stall()
    running = asyncio.create_task(client.post("/v1/chat/completions", json=HELLO))
    while (await scrape(client))['fano_requests{status="running"}'] == 0:
        await asyncio.sleep(0.01)
    samples = await scrape(client)
    assert samples['fano_state_slots{status="used"}'] == 1 and samples["vllm:kv_cache_usage_perc"] == 1 / 64
    world.engine.go_on()
    await running


async def test_two_apps_share_nothing(new_world: WorldMaker) -> None:
    first, second = new_world(), new_world()
    async with open_client(first) as one, open_client(second) as other:
        await one.post("/v1/chat/completions", json=HELLO)
        assert (await scrape(one))['fano_requests_finished_total{reason="stop"}'] == 1
        assert (await scrape(other))['fano_requests_finished_total{reason="stop"}'] == 0


async def test_no_label_holds_an_id(client: httpx.AsyncClient, world: World) -> None:
    document = world.library.put(TEXT)
    await client.post(f"/v1/documents/{document}/ask", json={"question": "Who paid invoice QX-7741-B?"})
    text = (await client.get("/metrics")).text
    assert "doc_" not in text and "req_" not in text
    labels = set(re.findall(r'([a-z_]+)="', text))
    assert labels <= {"pool", "status", "kind", "code", "decision", "reason", "stage", "phase", "le", "version",
                      "model", "device", "kernels", "dtype", "policy", "method", "route", "result", "tier"}  # fmt: skip
