"""Law 9 over HTTP with the embedded model: the plan of a request is its bill, and all bills tell the same bytes."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes_library import FakeLibrary
from fakes_server import open_client, scrape
from fastapi import FastAPI

from model.config import Dtype, EngineConfig, ModelConfig
from model.engine.engine import Engine
from model.engine.loader import load_engine
from model.engine.request import GenerationRequest, SamplingParams
from model.engine.stats import PoolCounts
from model.policy import AttentionPolicy, PolicyName
from server.answers.inquiry import ServedModel
from server.app import create_app
from server.bills.forecast import Forecaster
from server.metrics import Metrics
from server.services import Services, embedded_checkpoint
from server.settings import Settings

CONFIG = EngineConfig(
    num_slots=4,
    num_checkpoint_slots=4,
    max_context_tokens=4096,
    dtype=Dtype.FLOAT32,
    policy=AttentionPolicy(PolicyName.WINDOW, 64, 256),
    session_bytes=1 << 24,
)
# Prompts end within a block, at its end and at its beginning, before and after the window fills.
WORDS = "harbour winter lantern ledger orchard captain river market"


@pytest.fixture(scope="module")
def engine() -> Engine:
    return load_engine(embedded_checkpoint(), CONFIG)[0]


@pytest.fixture(scope="module")
def roomy_engine() -> Engine:
    """One that gives no session up to make room."""
    return load_engine(embedded_checkpoint(), replace(CONFIG, session_bytes=1 << 26))[0]


@pytest.fixture
def library() -> FakeLibrary:
    return FakeLibrary()


@pytest.fixture
async def client(engine: Engine, library: FakeLibrary, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with open_client(make_app(engine, library, tmp_path)) as client:
        yield client


def make_app(
    engine: Engine, library: FakeLibrary, data_dir: Path, config: EngineConfig = CONFIG, **changes: Any
) -> FastAPI:
    checkpoint = ModelConfig.from_pretrained(embedded_checkpoint())
    settings, metrics = Settings(data_dir=data_dir, information=True, **changes), Metrics()
    model = ServedModel("reader", 0, engine.policy, "float32", CONFIG.max_context_tokens, state_recall_bits=12.5)
    forecaster = Forecaster(checkpoint, config)
    services = Services(settings, metrics, library, engine, engine.tokenizer, model, forecaster)
    return create_app(settings, services, metrics)


def chat(num_words: int, max_tokens: int, n: int = 1, **fano: Any) -> dict[str, Any]:
    content = " ".join(WORDS.split()[place % 8] for place in range(num_words))
    body = {"model": "reader", "messages": [{"role": "user", "content": content}], "max_tokens": max_tokens, "n": n}
    return {**body, "fano": fano}


@pytest.mark.parametrize(
    ("num_words", "max_tokens", "n", "policy"),
    [
        (3, 1, 1, None),
        (3, 1, 3, None),
        (60, 70, 2, None),
        (200, 40, 3, None),
        (200, 130, 1, None),
        (90, 4, 4, {"name": "full"}),
        (190, 66, 2, {"name": "window", "sinks": 0, "window": 64}),
        # Nothing leaves the window; a prompt's blocks do; those of replies too, which share what was the prompt's.
        (40, 20, 2, {"name": "archive", "sinks": 64, "window": 256}),
        (300, 1, 3, {"name": "archive", "sinks": 64, "window": 128}),
        (300, 65, 1, {"name": "archive", "sinks": 64, "window": 128}),
        (150, 330, 3, {"name": "archive", "sinks": 0, "window": 64}),
        (3, 400, 2, {"name": "archive", "sinks": 128, "window": 64}),
    ],
)
async def test_the_plan_of_a_request_is_its_bill(
    client: httpx.AsyncClient, num_words: int, max_tokens: int, n: int, policy: dict[str, Any] | None
) -> None:
    body = chat(num_words, max_tokens, n, **({"policy": policy} if policy else {}))
    plan = (await client.post("/v1/plan", json=body)).raise_for_status().json()
    # No token ends the reply, so that it has as many as it may.
    biases = {"logit_bias": {"2": -100, "263": -100}}
    usage = (await client.post("/v1/chat/completions", json={**body, **biases})).raise_for_status().json()["usage"]
    assert usage["completion_tokens"] == n * max_tokens
    assert plan["resident_bytes"] == usage["fano"]["resident_bytes"]
    assert plan["archive_bytes"].items() <= usage["fano"]["archive_bytes"].items()
    assert set(plan["archive_bytes"]) == {"kv_archive", "kv_summaries"}
    assert plan["prompt_tokens"] == usage["prompt_tokens"]
    assert plan["state_capacity_bits"] == usage["fano"]["state_capacity_bits"] == 8 * plan["total_bytes"]
    assert plan["cached_tokens"] == usage["prompt_tokens_details"]["cached_tokens"]
    assert plan["policy"] == usage["fano"]["policy"] and plan["dtype"] == usage["fano"]["dtype"]
    assert plan["fits"] == {"now": True, "ever": True, "pool": None, "error": None}
    by_number = {"prompt_tokens": plan["prompt_tokens"], "max_tokens": max_tokens, "n": n, "fano": body["fano"]}
    told = (await client.post("/v1/plan", json=by_number)).json()
    # Since the first plan something was read, perhaps at another pace.
    assert told == {**plan, "cached_tokens": None, "reading_seconds": told["reading_seconds"]}


async def test_what_can_never_fit_is_told_with_the_reason(client: httpx.AsyncClient) -> None:
    too_long = (await client.post("/v1/plan", json={"prompt_tokens": 4000, "max_tokens": 97})).json()
    assert too_long["fits"]["ever"] is too_long["fits"]["now"] is False
    assert (
        too_long["fits"]["error"]["code"] == "context_length_exceeded"
        and "4096" in too_long["fits"]["error"]["message"]
    )
    many = (await client.post("/v1/plan", json={"prompt_tokens": 10, "n": 5})).json()
    assert many["fits"]["error"]["code"] == "never_fits" and many["fits"]["pool"] == "state"
    both = await client.post("/v1/plan", json={**chat(3, 1), "prompt_tokens": 5})
    assert both.status_code == 400 and "either messages or prompt_tokens" in both.json()["error"]["message"]


async def test_a_block_is_in_the_archive_from_the_token_on_that_does_not_see_it(client: httpx.AsyncClient) -> None:
    policy = {"name": "archive", "sinks": 64, "window": 128}
    body = chat(300, 1, policy=policy)
    plan = (await client.post("/v1/plan", json=body)).raise_for_status().json()
    before = (62 - plan["prompt_tokens"]) % 64 + 1
    held = []
    for max_tokens in (before, before + 1):
        plan, reply = await both(client, {**body, "max_tokens": max_tokens})
        agree(plan, reply)
        # The last token is not read.
        assert (plan["prompt_tokens"] + max_tokens - 1) % 64 == 62 + max_tokens - before
        held.append(plan["archive_bytes"]["kv_archive"])
    assert (
        held[1] - held[0]
        == ModelConfig.from_pretrained(embedded_checkpoint()).archive_bytes_per_block(Dtype.FLOAT32)[0]
    )


@pytest.mark.parametrize(
    ("free", "used", "cached", "anchored", "promised", "found", "pool"),
    [
        (6, 0, 0, 0, 0, 0, None),
        (2, 9, 4, 0, 0, 0, None),
        (2, 9, 3, 0, 0, 0, "kv_archive"),
        (0, 9, 0, 0, 0, 0, "kv_archive"),
        # What names alone hold is no room, and what was promised to those who run is not either.
        (9, 0, 9, 6, 6, 0, None),
        (9, 0, 9, 7, 6, 0, "kv_archive"),
        (9, 0, 9, 6, 7, 0, "kv_archive"),
        (2, 0, 9, 9, 0, 4, None),
        (2, 0, 9, 9, 0, 3, "kv_archive"),
    ],
)
def test_what_does_not_fit_into_the_archive_now_is_told_by_the_pool(
    engine: Engine, free: int, used: int, cached: int, anchored: int, promised: int, found: int, pool: str | None
) -> None:
    model = ModelConfig.from_pretrained(embedded_checkpoint())
    policy = AttentionPolicy(PolicyName.ARCHIVE, 64, 128)
    # After 575 tokens are read, the window begins at 448: six blocks lie between it and the sinks.
    request = GenerationRequest("one", [5] * 570, SamplingParams(max_tokens=6), policy=policy)
    kept = {"num_archive_blocks_anchored": anchored, "num_archive_blocks_promised": promised}
    stats = replace(engine.stats(), archive_blocks=PoolCounts(free, used, cached), **kept)
    forecast = Forecaster(model, CONFIG).forecast(request, stats, found)
    assert (forecast.fits_now, forecast.lacking, forecast.refusal) == (pool is None, pool, None)
    each, summary = model.archive_bytes_per_block(Dtype.FLOAT32)
    assert (forecast.kv_archive_bytes, forecast.kv_summary_bytes) == (6 * each, 6 * summary)
    windowed = replace(request, policy=replace(policy, name=PolicyName.WINDOW))
    assert Forecaster(model, CONFIG).forecast(windowed, stats).fits_now
    many = replace(request, num_choices=CONFIG.num_slots, sampling=SamplingParams(max_tokens=1))
    full = replace(stats, slots=PoolCounts(CONFIG.num_slots - 1, 1), archive_blocks=PoolCounts(0, 0))
    assert Forecaster(model, CONFIG).forecast(many, full).lacking == "state"


async def test_what_the_archive_can_never_hold_is_told_by_the_pool(library: FakeLibrary, tmp_path: Path) -> None:
    each = sum(ModelConfig.from_pretrained(embedded_checkpoint()).archive_bytes_per_block(Dtype.FLOAT32))
    config = replace(CONFIG, archive_bytes=10 * each, archive_disk_bytes=0)
    policy = {"policy": {"name": "archive", "sinks": 64, "window": 128}}
    engine = load_engine(embedded_checkpoint(), config)[0]
    async with open_client(make_app(engine, library, tmp_path, config)) as client:
        body = {"prompt_tokens": 830, "max_tokens": 2, "fano": policy}
        held = (await client.post("/v1/plan", json=body)).raise_for_status().json()
        assert held["fits"] == {"now": True, "ever": True, "pool": None, "error": None}
        assert sum(held["archive_bytes"].values()) == 10 * each
        more = (await client.post("/v1/plan", json={**body, "prompt_tokens": 895})).raise_for_status().json()
        assert sum(more["archive_bytes"].values()) == 11 * each
        assert (more["fits"]["now"], more["fits"]["ever"], more["fits"]["pool"]) == (False, False, "kv_archive")
        assert more["fits"]["error"]["code"] == "never_fits" and f"{10 * each}" in more["fits"]["error"]["message"]


async def test_what_is_remembered_of_a_text_that_selects_is_counted(
    client: httpx.AsyncClient, library: FakeLibrary, tmp_path: Path
) -> None:
    """By the plan, where what a prompt asks selects blocks; by the rule for streams, where all of it does."""
    policy = {"name": "archive", "sinks": 64, "window": 128}
    content = f"{WORDS} and the archive. " * 30
    for options in ({}, {"session": "selects"}):
        for is_known in (False, True):
            plan, reply = await both(client, asks(f"{content} {sorted(options)}", policy=policy, **options))
            agree(plan, reply)
            assert plan["archive_bytes"]["kv_archive"] > 0
            assert not is_known or plan["cached_tokens"] > plan["prompt_tokens"] - 16
    config = replace(CONFIG, policy=AttentionPolicy(PolicyName.ARCHIVE, 64, 128))
    engine = load_engine(embedded_checkpoint(), config)[0]
    async with open_client(make_app(engine, library, tmp_path, config, max_whole_prompt_tokens=256)) as client:
        for path, body in (
            ("completions", {"prompt": content}),
            ("chat/completions", {"messages": [{"role": "user", "content": content}]}),
        ):
            body = {"model": "reader", "max_tokens": 2, **body}
            refused = await client.post(f"/v1/{path}", json=body)
            assert refused.status_code == 400 and refused.json()["error"]["code"] == "stream_required"
            (await client.post(f"/v1/{path}", json={**body, "stream": True})).raise_for_status()
            (await client.post(f"/v1/{path}", json=body)).raise_for_status()


async def test_a_refused_chat_is_a_plan_that_does_not_fit(client: httpx.AsyncClient) -> None:
    body = chat(30, 4096)
    plan = (await client.post("/v1/plan", json=body)).raise_for_status().json()
    refusal = await client.post("/v1/chat/completions", json=body)
    assert refusal.status_code == 400
    assert plan["fits"]["error"] == {key: refusal.json()["error"][key] for key in ("code", "message")}


async def test_usage_tells_information_and_prefix(client: httpx.AsyncClient) -> None:
    # No other test begins like this one.
    body = {**chat(0, 2), "messages": [{"role": "user", "content": f"Unheard of: {WORDS} {WORDS} {WORDS}"}]}
    first, again = [(await client.post("/v1/chat/completions", json=body)).json()["usage"] for _ in range(2)]
    assert first["fano"]["prefix"]["result"] == "miss" and first["fano"]["context_information_bits"] > 50
    assert again["fano"]["prefix"] == {"result": "hit", "reason": "prompt"}
    assert again["prompt_tokens_details"]["cached_tokens"] == again["prompt_tokens"]
    assert again["fano"]["context_information_bits"] == pytest.approx(first["fano"]["context_information_bits"])
    assert first["fano"]["state_recall_bits"] == 12.5


async def test_all_bills_tell_the_same_bytes(client: httpx.AsyncClient, engine: Engine) -> None:
    for num_words in (40, 80, 120, 160, 200, 240):
        body = {**chat(0, 2), "messages": [{"role": "user", "content": f"{num_words} {WORDS * (num_words // 8)}"}]}
        await client.post("/v1/chat/completions", json=body)
    bill = (await client.get("/v1/memory")).raise_for_status().json()
    samples = await scrape(client)
    runner = engine._runner
    held = {pool: sizes["held_bytes"] for pool, sizes in bill["device"]["pools"].items()}
    planned = {pool: sizes["plan_bytes"] for pool, sizes in bill["device"]["pools"].items()}
    tensors = [runner._states.ssm, runner._states.conv, runner._blocks.keys, runner._blocks.values]  # type: ignore[attr-defined]
    ssm, conv, keys, values = (tensor.nbytes for tensor in tensors)
    model = runner._model  # type: ignore[attr-defined]
    weights = sum(weight.nbytes for weight in model.parameters())
    workspace = model.workspace_bytes
    recurrent = {"ssm_state": ssm, "conv_state": conv}
    assert held == {"weights": weights, **recurrent, "kv": keys + values, "workspace": workspace}
    assert planned | {"workspace": 0} == held | {"workspace": 0}
    assert 0 < held["workspace"] <= planned["workspace"]
    for pool in held:
        assert samples[f'fano_device_memory_bytes{{pool="{pool}"}}'] == held[pool]
        assert samples[f'fano_device_memory_plan_bytes{{pool="{pool}"}}'] == planned[pool]
    assert bill["device"]["held_bytes"] == sum(held.values()) and bill["device"]["plan_bytes"] == sum(planned.values())

    # More prompts were read than there are slots for checkpoints, so that some stand in host memory.
    checkpoints, host = engine.checkpoints, bill["host"]
    snapshots = [each.snapshot for each in checkpoints._host.checkpoints if each.snapshot is not None]
    assert bill["checkpoints"] == {"resident": checkpoints.num_resident, "host": len(snapshots), "lost": 0}
    assert snapshots and checkpoints.num_resident
    contents = {id(content): content.nbytes for each in snapshots for content in each.blocks.values()}
    tokens = 4 * sum(tree.num_tokens for tree in checkpoints._trees.values())
    assert host["checkpoint_bytes"] == sum(contents.values()) + sum(each.state_bytes for each in snapshots) + tokens
    assert host["pools"]["sessions"] == host["checkpoint_bytes"] + host["preempted_bytes"]
    assert samples['fano_host_memory_bytes{pool="sessions"}'] == host["pools"]["sessions"]
    assert host["bytes"] == sum(host["pools"].values()) and bill["disk"]["bytes"] == sum(bill["disk"]["pools"].values())

    for name, units, count in (("state_slots", "fano_state_slots", 8), ("kv_blocks", "fano_kv_blocks", None)):
        view = bill["device"][name]
        assert view["free"] + view["used"] + view["cached"] == view["total"] and count in (None, view["total"])
        assert view["cached"] > 0
        for status in ("free", "used", "cached"):
            assert samples[f'{units}{{status="{status}"}}'] == view[status]
    assert bill["device"]["kv_blocks"]["bytes_each"] * bill["device"]["kv_blocks"]["total"] == held["kv"]

    total = bill["device"]["held_bytes"] + host["bytes"] + bill["unaccounted_bytes"]
    assert total == bill["resident_set_bytes"] and bill["device_is_host"]
    assert bill["unaccounted_bytes"] > 0


async def test_metrics_tell_of_prefixes_and_contexts(client: httpx.AsyncClient) -> None:
    before = await scrape(client)
    body = {**chat(0, 3), "messages": [{"role": "user", "content": f"Twice asked {WORDS} {WORDS} {WORDS} {WORDS}"}]}
    bills = [(await client.post("/v1/chat/completions", json=body)).json()["usage"] for _ in range(2)]
    after = await scrape(client)

    def more(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    assert more('fano_prefix_total{reason="prompt",result="hit"}') == 1
    assert more('fano_tokens_total{kind="cached"}') == bills[1]["prompt_tokens_details"]["cached_tokens"] > 0
    assert more("fano_context_tokens_sum") == sum(bill["total_tokens"] for bill in bills)
    assert more("fano_context_information_bits_count") == 2
    assert more("fano_state_capacity_bits_sum") == sum(bill["fano"]["state_capacity_bits"] for bill in bills)
    assert more("fano_request_archive_bytes_count") == 2
    assert after["fano_state_recall_bits"] == 12.5
    assert after['fano_sessions{status="saved"}'] == 0 and after['fano_disk_bytes{pool="sessions"}'] == 0


async def test_sessions_are_told_by_tier(client: httpx.AsyncClient) -> None:
    body = {**chat(60, 3), "fano": {"session": "a-talk"}}
    (await client.post("/v1/chat/completions", json=body)).raise_for_status()
    assert (await scrape(client))['fano_sessions{status="resident"}'] == 1
    bill = (await client.get("/v1/memory")).json()
    assert bill["sessions"] == {"resident": 1, "host": 0, "saved": 0, "tokens": 0}
    assert bill["disk"]["pools"]["sessions"] > 0
    # Other texts push its state out to the host, which the bill sees and the metrics then tell.
    for number in range(8):
        other = {**chat(0, 1), "messages": [{"role": "user", "content": f"{number} {WORDS} {WORDS} {WORDS}"}]}
        await client.post("/v1/chat/completions", json=other)
    assert (await client.get("/v1/memory")).json()["sessions"]["host"] == 1
    assert (await scrape(client))['fano_sessions{status="host"}'] == 1


async def test_the_plan_of_a_question_about_documents_is_its_bill(
    client: httpx.AsyncClient, library: FakeLibrary
) -> None:
    document = library.put("The captain of the northern harbour keeps a copper lantern. Nobody else does.")
    question = {"role": "user", "content": "Which lantern does the captain of the harbour keep?"}
    plan = (
        await client.post("/v1/plan", json={"messages": [question], "max_tokens": 9, "documents": [document]})
    ).json()
    body = {"model": "reader", "messages": [question], "max_tokens": 9, "logit_bias": {"2": -100, "263": -100}}
    usage = (await client.post("/v1/chat/completions", json={**body, "fano": {"documents": [document]}})).json()[
        "usage"
    ]
    assert plan["prompt_tokens"] == usage["prompt_tokens"] > 0
    assert plan["resident_bytes"] == usage["fano"]["resident_bytes"]
    before = await scrape(client)
    unheard_of = {"messages": [{"role": "user", "content": "Penguins?"}], "documents": [document]}
    nothing = (await client.post("/v1/plan", json=unheard_of)).json()
    assert nothing["total_bytes"] == 0 and nothing["fits"]["now"]
    # To ask for a bill is not to ask the question.
    retrievals = [name for name in before if name.startswith("fano_retrieval_total")]
    after = await scrape(client)
    assert retrievals and all(after[name] == before[name] for name in retrievals)
    unknown = await client.post("/v1/plan", json={**unheard_of, "documents": ["doc_none"]})
    assert unknown.status_code == 404


async def test_a_plan_leaves_documents_alone_where_the_chat_would(
    client: httpx.AsyncClient, library: FakeLibrary
) -> None:
    document = library.put("Thanks are owed to the captain of the northern harbour.")
    thanks = {"messages": [{"role": "user", "content": "Thanks!"}], "max_tokens": 9}
    plan = (await client.post("/v1/plan", json={**thanks, "documents": [document]})).json()
    body = {"model": "reader", **thanks, "fano": {"documents": [document]}}
    usage = (await client.post("/v1/chat/completions", json=body)).json()["usage"]
    assert usage["fano"]["retrieval"]["reason"] == "small_talk"
    assert plan["prompt_tokens"] == usage["prompt_tokens"] > 0


def asks(content: str, *earlier: dict[str, str], **fano: Any) -> dict[str, Any]:
    """A request whose reply has as many tokens as it may, and whose plan is asked with the same words."""
    return {"messages": [*earlier, {"role": "user", "content": content}], "max_tokens": 9, "fano": fano}


async def both(client: httpx.AsyncClient, body: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The plan of a request, and the reply to it afterwards."""
    plan = (await client.post("/v1/plan", json=body)).raise_for_status().json()
    chat = {"model": "reader", "temperature": 0, "logit_bias": {"2": -100, "263": -100}, **body}
    return plan, (await client.post("/v1/chat/completions", json=chat)).raise_for_status().json()


def agree(plan: dict[str, Any], reply: dict[str, Any]) -> None:
    usage = reply["usage"]
    assert plan["prompt_tokens"] == usage["prompt_tokens"]
    assert plan["cached_tokens"] == usage["prompt_tokens_details"]["cached_tokens"]
    assert plan["resident_bytes"] == usage["fano"]["resident_bytes"]
    assert plan["archive_bytes"].items() <= usage["fano"]["archive_bytes"].items()
    assert plan["policy"] == usage["fano"]["policy"]


async def test_the_plan_of_a_request_with_facts_and_limits_is_its_bill(
    client: httpx.AsyncClient, library: FakeLibrary
) -> None:
    text = "The captain keeps a copper lantern. The teacher keeps a meadow. The lantern is of copper."
    document = library.put(text)
    question, fact = "Which lantern does the captain keep?", {"text": "The teacher keeps a meadow."}
    plain, _ = await both(client, asks(question, documents=[document]))
    told = [
        await both(client, asks(question, documents=[document], **options))
        for options in (
            {"facts": [fact]},
            {"max_passages": 1},
            {"within": [{"start": text.index("The teacher"), "end": len(text)}]},
            {"question_place": "both"},
        )
    ]
    for plan, reply in told:
        agree(plan, reply)
        assert plan["prompt_tokens"] != plain["prompt_tokens"]
    body = asks("Nothing", documents=[document], facts=[{"text": "nowhere"}])
    refusals = [
        await client.post(path, json={"model": "reader", **body}) for path in ("/v1/plan", "/v1/chat/completions")
    ]
    assert refusals[0].status_code == refusals[1].status_code == 400 and refusals[0].json() == refusals[1].json()


async def test_the_plan_of_a_session_s_next_turn_is_its_bill(
    roomy_engine: Engine, library: FakeLibrary, tmp_path: Path
) -> None:
    async with open_client(make_app(roomy_engine, library, tmp_path)) as client:
        await plan_each_turn(client, library)


async def plan_each_turn(client: httpx.AsyncClient, library: FakeLibrary) -> None:
    opening = f"Session of its own: {WORDS} {WORDS} {WORDS} {WORDS}"
    plan, reply = await both(client, asks(opening, session="plan"))
    agree(plan, reply)
    assert plan["cached_tokens"] == 0
    # A model's tokens for a text are not those that the tokenizer would choose: the session keeps its own.
    talk = [{"role": "user", "content": opening}, {**reply["choices"][0]["message"]}]
    talk = [{"role": one["role"], "content": one["content"]} for one in talk]
    before = (await client.get("/v1/sessions")).json()
    plan = (
        (await client.post("/v1/plan", json=asks("And the market?", *talk, session="plan"))).raise_for_status().json()
    )
    assert (await client.get("/v1/sessions")).json() == before
    assert plan["cached_tokens"] >= reply["usage"]["prompt_tokens"]
    plan, reply = await both(client, asks("And the market?", *talk, session="plan"))
    agree(plan, reply)
    document = library.put("The captain of the northern harbour keeps a copper lantern. Nobody else does.")
    talk += [{"role": "user", "content": "And the market?"}]
    talk += [{"role": "assistant", "content": reply["choices"][0]["message"]["content"]}]
    plan, reply = await both(
        client, asks("Which lantern has the captain?", *talk, session="plan", documents=[document])
    )
    agree(plan, reply)
    assert plan["cached_tokens"] > 0
    # One that goes another way goes on from the last that is equal.
    plan, reply = await both(client, asks("And the river?", *talk[:2], session="plan"))
    agree(plan, reply)
    other = await client.post("/v1/plan", json=asks("Well?", session="plan", policy={"name": "full"}))
    assert other.status_code == 409 and other.json()["error"]["code"] == "session_policy"


async def test_what_a_session_has_on_the_disk_would_come_back(
    roomy_engine: Engine, library: FakeLibrary, tmp_path: Path
) -> None:
    opening = f"Saved for later: {WORDS} {WORDS} {WORDS} {WORDS}"
    async with open_client(make_app(roomy_engine, library, tmp_path)) as client:
        _, reply = await both(client, asks(opening, session="saved"))
        (await client.post("/v1/sessions/saved/save")).raise_for_status()
    said = reply["choices"][0]["message"]["content"]
    talk = [{"role": "user", "content": opening}, {"role": "assistant", "content": said}]
    config = replace(CONFIG, session_bytes=1 << 26)
    async with open_client(make_app(load_engine(embedded_checkpoint(), config)[0], library, tmp_path)) as client:
        plan, reply = await both(client, asks("And now?", *talk, session="saved"))
        agree(plan, reply)
        assert plan["cached_tokens"] > 50 and reply["usage"]["fano"]["prefix"]["result"] == "hit"


async def test_a_saved_state_that_selected_elsewhere_does_not_come_back(
    roomy_engine: Engine, library: FakeLibrary, tmp_path: Path
) -> None:
    """What a long prompt asks selects blocks from another place in each turn, so the engine reads on from before it."""
    policy = {"name": "archive", "sinks": 64, "window": 64}
    opening = " ".join([f"Selected for later. {WORDS}."] * 40)
    async with open_client(make_app(roomy_engine, library, tmp_path)) as client:
        _, reply = await both(client, asks(opening, session="selected", policy=policy))
        (await client.post("/v1/sessions/selected/save")).raise_for_status()
    said = reply["choices"][0]["message"]["content"]
    talk = [{"role": "user", "content": opening}, {"role": "assistant", "content": said}]
    config = replace(CONFIG, session_bytes=1 << 26)
    async with open_client(make_app(load_engine(embedded_checkpoint(), config)[0], library, tmp_path)) as client:
        plan, reply = await both(client, asks("And now?", *talk, session="selected", policy=policy))
        agree(plan, reply)
        assert plan["cached_tokens"] < len(opening.split())


async def test_a_turn_waits_for_a_plan_and_a_plan_is_refused_beside_a_turn(client: httpx.AsyncClient) -> None:
    book = client._transport.app.state.fano.services.book  # type: ignore[attr-defined]
    chat = {"model": "reader", **asks("Who?", session="beside")}
    async with book._register.taken("default", "beside"):
        refused = await client.post("/v1/plan", json=asks("Who?", session="beside"))
    assert refused.status_code == 409 and refused.json()["error"]["code"] == "session_busy"
    plans = [client.post("/v1/plan", json=asks("Who?", session="beside")) for _ in range(8)]
    replies = await asyncio.gather(*plans, client.post("/v1/chat/completions", json=chat))
    assert replies[-1].status_code == 200
    assert {reply.status_code for reply in replies[:-1]} <= {200, 409}


async def test_what_a_plan_cannot_be_asked_is_refused_by_name(client: httpx.AsyncClient) -> None:
    for body, param in (
        ({"prompt_tokens": 5, "fano": {"session": "x"}}, "fano.session"),
        ({"prompt_tokens": 5, "documents": ["doc_1"]}, "documents"),
        ({**asks("Who?", documents=["doc_1"]), "documents": ["doc_1"]}, "documents"),
    ):
        reply = await client.post("/v1/plan", json=body)
        assert reply.status_code == 400 and reply.json()["error"]["param"] == param
    twice = await client.post("/v1/plan", json={**asks("Who?", session="twice"), "n": 2})
    assert twice.status_code == 400 and twice.json()["error"]["param"] == "n"
    assert "twice" not in str((await client.get("/v1/sessions")).json())
