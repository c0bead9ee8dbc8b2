"""Two tenants do what they like, and a model in memory says what each of them must see: no 5xx, no divergence."""

import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from fakes_server import MODEL, WorldMaker
from fakes_store_rules import CHUNKING, TEXTS, WHICH, WHO, StoreRules
from fakes_tenant import Said, Tenant, pick, served, until
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule, run_state_machine_as_test

from server.files import files

NAMES = ["talk", "other", "third"]


class Machine(StoreRules):
    """All rules. Every run has tenants of its own on the one server."""

    serial: ClassVar[Iterator[int]] = count()
    num_steps: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        assert self.server.failure is None, f"a start has failed: {self.server.failure!r}"
        self.tenants = []
        for _ in range(2):
            name = f"tenant-{next(self.serial)}"
            headers = {"authorization": f"Bearer {self.server.keys.add(name, name)[1]}"}
            self.tenants.append(Tenant(httpx.Client(base_url=self.server.url, headers=headers, timeout=30)))

    def teardown(self) -> None:
        for tenant in self.tenants:
            self.check(tenant)
            tenant.client.close()

    def check(self, tenant: Tenant) -> None:
        """All lists are those of the model."""
        type(self).num_steps += 1
        tenant.check()

    # Documents and facts.

    @rule(who=WHO, which=WHICH)
    def post_document(self, who: int, which: int) -> None:
        tenant, text = self.tenants[who], pick(TEXTS, which)
        told = tenant.ask("POST", "/documents", 200, 202, json={"text": text, "name": "note.txt"})
        assert told["id"] == tenant.documents.setdefault(text, told["id"])
        tenant.posted.add(text)
        until(lambda: tenant.ask("GET", f"/documents/{told['id']}")["status"] == "ready", told)
        self.check(tenant)

    @precondition(lambda self: self.some("documents"))
    @rule(who=WHO, which=WHICH)
    def delete_document(self, who: int, which: int) -> None:
        tenant = self.tenants[who]
        if not tenant.documents:
            return
        text = pick(tenant.documents, which)
        tenant.ask("DELETE", f"/documents/{tenant.documents[text]}")
        tenant.ask("GET", f"/documents/{tenant.documents[text]}", 404)
        tenant.forget_document(text)
        for store in tenant.stores.values():
            for file, member in store.members.items():
                member.status = "failed" if tenant.files[file] == text else member.status
        self.check(tenant)

    @precondition(lambda self: self.some("documents"))
    @rule(who=WHO, which=WHICH, start=st.integers(0, 20), length=st.integers(1, 20))
    def pin(self, who: int, which: int, start: int, length: int) -> None:
        tenant = self.tenants[who]
        if not tenant.documents:
            return
        text = pick(tenant.documents, which)
        body = {"start": start, "end": start + length}
        path = f"/documents/{tenant.documents[text]}/facts"
        if not text[start : start + length].strip():
            tenant.ask("POST", path, 400, json=body)
            return
        told = tenant.ask("POST", path, 200, 201, json=body)
        assert told["text"] == text[start : start + length]
        tenant.pins.setdefault(text, {})[told["id"]] = (start, start + length)
        self.check(tenant)

    @precondition(lambda self: self.some("pins"))
    @rule(who=WHO, which=WHICH)
    def unpin(self, who: int, which: int) -> None:
        tenant = self.tenants[who]
        pins = [(text, fact) for text, facts in tenant.pins.items() for fact in facts]
        if pins:
            text, fact = pick(pins, which)
            tenant.ask("DELETE", f"/documents/{tenant.documents[text]}/facts/{fact}")
            del tenant.pins[text][fact]
            self.check(tenant)

    @rule(who=WHO, which=WHICH)
    def ask_documents(self, who: int, which: int) -> None:
        tenant, text = self.tenants[who], pick(TEXTS, which)
        number = text.split("QX-")[1][:6]
        if tenant.documents:
            body = {"question": f"Who paid invoice QX-{number}?", "documents": list(tenant.documents.values())}
            told = tenant.ask("POST", "/ask", json={**body, "recall": "verbatim"})
            assert (f"QX-{number}" in "".join(each["text"] for each in told["sources"])) is (text in tenant.documents)

    # Sessions and responses.

    @rule(who=WHO, name=st.sampled_from(NAMES), word=st.sampled_from(["One", "Two"]))
    def talk(self, who: int, name: str, word: str) -> None:
        tenant = self.tenants[who]
        history = [*tenant.sessions.get(name, []), {"role": "user", "content": word}]
        body = {"model": MODEL, "messages": history, "fano": {"session": name}}
        told = tenant.ask("POST", "/chat/completions", json=body)
        message = told["choices"][0]["message"]
        tenant.sessions[name] = [*history, {"role": "assistant", "content": message["content"]}]
        assert tenant.ask("GET", f"/sessions/{name}")["num_tokens"] > 0
        self.check(tenant)

    @rule(who=WHO, name=st.sampled_from(NAMES), to=st.sampled_from(NAMES))
    def fork(self, who: int, name: str, to: str) -> None:
        tenant = self.tenants[who]
        status = 404 if name not in tenant.sessions else 409 if to in tenant.sessions else 201
        tenant.ask("POST", f"/sessions/{name}/fork", status, json={"to": to})
        if status == 201:
            tenant.sessions[to] = tenant.sessions[name]
        self.check(tenant)

    @rule(who=WHO, name=st.sampled_from(NAMES))
    def save(self, who: int, name: str) -> None:
        tenant = self.tenants[who]
        tenant.ask("POST", f"/sessions/{name}/save", 200 if name in tenant.sessions else 404)

    @rule(who=WHO, name=st.sampled_from(NAMES))
    def delete_session(self, who: int, name: str) -> None:
        tenant = self.tenants[who]
        tenant.ask("DELETE", f"/sessions/{name}", 200 if name in tenant.sessions else 404)
        tenant.sessions.pop(name, None)
        self.check(tenant)

    @rule(who=WHO, which=WHICH, goes_on=st.booleans(), kind=st.sampled_from(["kept", "let go", "background"]))
    def respond(self, who: int, which: int, goes_on: bool, kind: str) -> None:
        tenant = self.tenants[who]
        is_stored = kind != "let go"
        body: dict[str, Any] = {"model": MODEL, "input": f"Word {which % 5}", "store": is_stored}
        if goes_on and tenant.responses:
            body["previous_response_id"] = pick(tenant.responses, which)
        told = tenant.ask("POST", "/responses", json=body | {"background": kind == "background"})
        if kind == "background":
            path = f"/responses/{told['id']}"
            until(lambda: tenant.ask("GET", path)["status"] == "completed", path)
            told = tenant.ask("POST", f"{path}/cancel")
            assert told["status"] == "completed"
        assert told["output"][0]["content"][0]["text"] == "ok"
        if is_stored:
            tenant.responses[told["id"]] = Said(body["input"], body.get("previous_response_id"))
        else:
            tenant.ask("GET", f"/responses/{told['id']}", 404)
        self.check(tenant)

    @precondition(lambda self: self.some("responses"))
    @rule(who=WHO, which=WHICH)
    def retrieve_response(self, who: int, which: int) -> None:
        tenant, stranger = self.tenants[who], self.tenants[1 - who]
        if tenant.responses:
            name = pick(tenant.responses, which)
            told = tenant.ask("GET", f"/responses/{name}")
            assert told["previous_response_id"] == tenant.responses[name].previous
            items = tenant.ask("GET", f"/responses/{name}/input_items")["data"]
            assert items[0]["content"][0]["text"] == tenant.responses[name].asked
            stranger.ask("GET", f"/responses/{name}", 404)

    @precondition(lambda self: self.some("responses"))
    @rule(who=WHO, which=WHICH)
    def delete_response(self, who: int, which: int) -> None:
        tenant = self.tenants[who]
        if tenant.responses:
            name = pick(tenant.responses, which)
            tenant.ask("DELETE", f"/responses/{name}")
            tenant.ask("GET", f"/responses/{name}", 404)
            body = {"model": MODEL, "input": "More", "previous_response_id": name}
            tenant.ask("POST", "/responses", 404, json=body)
            del tenant.responses[name]
            self.check(tenant)


@pytest.fixture
def machine(new_world: WorldMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Machine]]:
    # What expires takes its document along at the next upkeep.
    monkeypatch.setattr(files, "UPKEEP_SECONDS", 0.2)
    for server in served(new_world, tmp_path):
        yield type("Served", (Machine,), {"server": server, "num_steps": 0})


def run(machine: type[Machine], num_runs: int, num_steps: int, is_repeatable: bool) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=num_runs,
            stateful_step_count=num_steps,
            deadline=None,
            database=None,
            derandomize=is_repeatable,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        ),
    )


def test_a_few_lives_of_two_tenants(machine: type[Machine]) -> None:
    run(machine, num_runs=3, num_steps=20, is_repeatable=True)
    assert machine.num_steps > 20


def test_a_document_sent_after_its_file_stays_without_it(machine: type[Machine]) -> None:
    """One order of steps that chance seldom finds."""
    life = machine()
    life.post_file(0, 0, None)
    life.make_store(0, None)
    life.add_to_store(0, 0, 0, 0, None)
    life.post_document(0, 0)
    life.delete_file(0, 0)
    time.sleep(0.5)
    life.teardown()


def test_a_life_with_everything_that_expires_and_a_new_start(machine: type[Machine]) -> None:
    """Each of the rarer steps at least once, in an order in which they meet."""
    life = machine()
    life.post_file(0, 0, None)
    life.post_file(0, 1, 3600)
    life.make_store(0, 1)
    static = CHUNKING[1]
    life.add_batch(0, 0, [0, 1], 2, static, have_own=True)
    life.add_batch(0, 0, [0], 1, None, have_own=False)
    life.begin_upload(0, 2)
    life.complete_upload(0, 0, is_whole=True, names_md5=True)
    life.complete_upload(0, 0, is_whole=True, names_md5=True)
    life.begin_upload(0, 3)
    life.add_part(0, 1, 0, 30)
    life.complete_upload(0, 1, is_whole=False, names_md5=False)
    life.start_anew()
    for kind in ("gte", "lt", None):
        life.search_store(0, 0, 0, kind, 2)
    life.wait_long(2)
    assert len(life.tenants[0].files) == 2 and life.tenants[0].uploads
    life.add_part(0, 1, 0, 30)
    life.wait_long(30)
    life.search_store(0, 0, 0, None, 0)
    life.add_to_store(0, 0, 0, 0, static)
    life.teardown()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_lives_of_two_tenants(machine: type[Machine], tmp_path: Path) -> None:
    run(machine, num_runs=100, num_steps=40, is_repeatable=False)
    told = f"{machine.num_steps} states compared, {machine.server.num_starts} starts\n"
    (tmp_path / "counts.txt").write_text(told)
