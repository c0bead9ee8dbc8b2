"""Law 4 with little room in the archive, and its promise: under any schedule of requests, interruptions, names and
states that come back, whoever was let in never lacks a block of it, and everybody comes to an end."""

from dataclasses import replace

import pytest
from fakes_archive import POLICY, Bench
from fakes_engine import write_tokenizer
from fakes_model import load
from fakes_runner import request
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from model.cache.snapshot import BlockContent, Snapshot
from model.engine.request import FinishReason, TokenEvent
from model.errors import ArchiveFull, HostBudgetExceeded, NeverFits, QueueFull
from model.hybrid import HybridLM
from model.policy import AttentionPolicy, PolicyName
from model.tokenizer import Tokenizer

INDEX = st.integers(0, 99)
WINDOW = AttentionPolicy(PolicyName.WINDOW, sinks=64, window=64)
TREE = ("a", POLICY)
MOST_STEPS = 3000


class ArchiveSchedules(RuleBasedStateMachine):
    """An engine with an archive of a few blocks. Texts begin alike, so that requests share what they hold."""

    model: HybridLM
    tokenizer: Tokenizer

    @initialize(
        num_blocks=st.integers(4, 14), num_spare_slots=st.sampled_from([0, 1, 6]), pool_blocks=st.sampled_from([14, 40])
    )
    def open(self, num_blocks: int, num_spare_slots: int, pool_blocks: int) -> None:
        self.bench = Bench(self.model, self.tokenizer, num_blocks, pool_blocks, num_spare_slots)
        self.engine = self.bench.engine
        self.texts = [self.bench.text(700) for _ in range(2)]
        self.prompts: dict[str, tuple[int, ...]] = {}
        self.open_ones: set[str] = set()

    def name(self, index: int) -> str:
        return sorted(self.prompts)[index % len(self.prompts)] if self.prompts else "nobody"

    def prompt(self, index: int) -> tuple[int, ...]:
        return self.prompts.get(self.name(index), (1, 2))

    @rule(
        text=st.integers(0, 1),
        num_common=st.sampled_from([0, 130, 300, 500]),
        num_more=st.integers(1, 300),
        max_tokens=st.sampled_from([1, 5, 70, 140]),
        num_choices=st.sampled_from([1, 1, 2, 3]),
        tenant=st.sampled_from("ab"),
        policy=st.sampled_from([POLICY, POLICY, POLICY, WINDOW]),
        is_background=st.booleans(),
    )
    def submit(
        self,
        text: int,
        num_common: int,
        num_more: int,
        max_tokens: int,
        num_choices: int,
        tenant: str,
        policy: AttentionPolicy,
        is_background: bool,
    ) -> None:
        prompt = (*self.texts[text][:num_common], *self.bench.text(num_more))
        name = f"{len(self.prompts):03d}"
        fields = {"tenant": tenant, "policy": policy, "num_choices": num_choices, "is_background": is_background}
        try:
            self.engine.submit(request(name, prompt, max_tokens=max_tokens, logit_bias=((2, -100.0),), **fields))
        except NeverFits as refusal:
            assert refusal.pool in ("kv_archive", "kv")
            return
        except QueueFull:
            return
        self.prompts[name] = prompt
        self.open_ones.add(name)

    @rule(num_steps=st.integers(1, 12))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            for event in self.engine.step():
                self.hear(event)

    def hear(self, event: TokenEvent) -> None:
        if event.usage is not None:
            self.open_ones.remove(event.request_id)
        if event.finish_reason is FinishReason.ERROR:
            assert isinstance(event.error, ArchiveFull) and event.usage is not None
            assert event.usage.prefix.reason == "not_begun", "who was let in lacked a block"
            assert self.engine.stats().num_archive_blocks_anchored > 0, "nobody else was in its way"

    @rule(index=INDEX)
    def abort(self, index: int) -> None:
        self.engine.abort(self.name(index))
        self.open_ones.discard(self.name(index))

    @rule(index=INDEX)
    def preempt(self, index: int) -> None:
        self.engine.preempt(self.name(index))

    @rule(index=INDEX, is_paused=st.booleans())
    def pause(self, index: int, is_paused: bool) -> None:
        (self.engine.pause if is_paused else self.engine.resume)(self.name(index))

    @rule(index=INDEX, key=st.integers(0, 1))
    def anchor(self, index: int, key: int) -> None:
        self.engine.checkpoints.anchor(key, TREE, self.prompt(index))
        self.engine.refresh()

    @rule(key=st.integers(0, 1), is_saved=st.booleans())
    def let_go(self, key: int, is_saved: bool) -> None:
        (self.engine.checkpoints.release if is_saved else self.engine.checkpoints.unanchor)(key)
        self.engine.refresh()

    @rule(index=INDEX)
    def move(self, index: int) -> None:
        """Save what was kept of a text, forget it all, and bring it back."""
        checkpoints, prompt = self.engine.checkpoints, self.prompt(index)
        saved = [_apart(checkpoints.snapshot(each)) for each in checkpoints.path(TREE, prompt)]
        checkpoints.forget(TREE, prompt, 0)
        try:
            checkpoints.admit(TREE, prompt, saved)
        except (ArchiveFull, HostBudgetExceeded):
            pass
        self.engine.refresh()

    @invariant()
    def is_conserved(self) -> None:
        if not hasattr(self, "bench"):
            return
        self.engine.check()
        archive, kept = self.bench.archive, self.engine.checkpoints.kept()
        live = {number for each in kept for number in each.archive_numbers if number >= 0}
        used = self.bench.runner.archive_numbers()
        assert (archive.num_used, archive.num_live) == (len(used), len(used | live)), "a block is nobody's"
        assert self.engine._scheduler.num_archive_blocks_promised >= 0

    def teardown(self) -> None:
        if not hasattr(self, "bench"):
            return
        for name in self.open_ones:
            self.engine.resume(name)
        for _ in range(MOST_STEPS):
            if not self.engine.has_work():
                break
            self.step(1)
        assert not self.open_ones, "somebody never came to an end"
        assert self.bench.archive.num_used == 0


def _apart(snapshot: Snapshot) -> Snapshot:
    """As one that comes from the disk."""
    return replace(
        snapshot, archive=tuple(BlockContent(each.keys.clone(), each.values.clone()) for each in snapshot.archive)
    )


@pytest.fixture(scope="module")
def machine(checkpoints, tmp_path_factory: pytest.TempPathFactory) -> type[ArchiveSchedules]:
    ArchiveSchedules.model = load(checkpoints["dense"].directory)
    ArchiveSchedules.tokenizer = Tokenizer(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))
    return ArchiveSchedules


def run(machine: type[ArchiveSchedules], num_examples: int, num_steps: int) -> None:
    quiet = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=num_examples, stateful_step_count=num_steps, deadline=None, suppress_health_check=quiet
        ),
    )


def test_who_is_let_in_never_lacks_a_block(machine: type[ArchiveSchedules]) -> None:
    run(machine, 8, 25)


@pytest.mark.slow
def test_who_is_let_in_never_lacks_a_block_in_many_schedules(machine: type[ArchiveSchedules]) -> None:
    run(machine, 400, 60)
