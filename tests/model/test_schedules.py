"""Laws 1 to 4 and 9 over whole schedules: whatever is admitted, cut, paused, preempted, forked and aborted, every pool
is conserved after every action, and every sequence says what it says alone, to the last bit of its probabilities."""

import logging
import random
from dataclasses import replace
from pathlib import Path

import pytest
from fakes_runner import MAX_CONTEXT, WINDOW
from fakes_world import NUM_REQUESTS, Said, Times, World, ask_the_referee, drawn_request, hear, make_world

from model.cache.snapshot import BlockContent, Snapshot
from model.config import EngineConfig
from model.engine.request import FinishReason, GenerationRequest
from model.errors import ArchiveFull, HostBudgetExceeded, NeverFits
from model.kernels import REFERENCE, choose
from model.policy import BLOCK_TOKENS, AttentionPolicy

logger = logging.getLogger(__name__)

NUM_FAST, NUM_SLOW, NUM_REFERENCE = 130, 1000, 15
# Share of the schedules that run on two threads, which are slow where they lack a core of their own.
THREADED = 0.04
POOLS = ("weights", "ssm_state", "conv_state", "kv")


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> World:
    kernels, reason = choose("cpu", 1)
    if kernels is REFERENCE:
        pytest.skip(f"no native kernels here: {reason}")
    return make_world(tmp_path_factory.mktemp("world"), {1: kernels, 2: choose("cpu", 2)[0]})


class Schedule:
    """One engine with little room, actions on it, and what the requests have said so far."""

    def __init__(self, world: World, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world = world
        self.dice = dice = random.Random(seed)
        times, room = Times(random.Random(seed)), random.Random(seed)
        monkeypatch.setattr("model.engine.engine.time", times)
        self.config = EngineConfig(
            num_slots=dice.randint(3, 5),
            num_blocks=dice.choice([20, 26, 40]),
            max_context_tokens=MAX_CONTEXT,
            prefill_chunk_tokens=dice.choice([64, 128, 256]),
            prefill_share=dice.choice([0.1, 0.5, 0.9]),
            saved_bytes=dice.choice([0, 300_000, 2_000_000]),
            num_checkpoint_slots=dice.choice([0, 1, 6]),
            session_bytes=dice.choice([0, 150_000, 5_000_000]),
            max_waiting=99,
            # Of blocks of 18 KB: for a few, with and without a file for some more, and for all.
            archive_bytes=room.choice([40_000, 150_000, 5_000_000]),
            archive_disk_bytes=room.choice([0, 100_000]),
            num_threads=max(world.models) if dice.random() < THREADED else 1,
        )
        self.engine, self.runner = world.engine(self.config, times.monotonic)
        self.requests: dict[str, GenerationRequest] = {}
        self.said: dict[tuple[str, int], Said] = {}
        self.ended: set[tuple[str, int]] = set()
        self.aborted: set[str] = set()
        self.starved: set[str] = set()
        self.num_forced = 0
        # Few, so that the same text comes again.
        self.numbers = dice.sample(range(NUM_REQUESTS), 9)

    def run(self) -> None:
        """Any actions; then everybody goes on to the end."""
        actions = {"submit": 5, "step": 14, "abort": 1, "pause": 1, "resume": 2, "preempt": 2}
        actions |= {"anchor": 1, "let_go": 1, "move": 1, "forget": 1}
        for _ in range(self.dice.randint(20, 60)):
            (action,) = self.dice.choices([*actions], [*actions.values()])
            getattr(self, action)(self.dice.choice([*self.requests]) if self.requests else "nobody")
            self.assert_conserved()
        for name in self.requests:
            self.engine.resume(name)
        for _ in range(20_000):
            if not self.engine.has_work():
                break
            self.step()
            self.assert_conserved()
        self.world.happened["schedule on several threads"] += self.config.num_threads > 1
        self.world.happened["preemption of its own"] += self.engine.stats().num_preemptions - self.num_forced
        assert (self.runner.slots.used, self.runner.blocks.used, self.runner.saved_bytes) == (0, 0, 0)
        assert len(self.aborted) == self.engine.stats().num_aborted
        expected = {
            (name, choice)
            for name, request in self.requests.items()
            if name not in self.aborted | self.starved
            for choice in range(request.num_choices)
        }
        assert expected <= self.ended, "somebody never ended"

    def submit(self, _: str) -> None:
        request = drawn_request(str(len(self.requests)), self.dice, self.world, self.numbers)
        worst = request.num_choices * -(-(len(request.prompt_ids) + request.sampling.max_tokens) // BLOCK_TOKENS)
        if request.num_choices <= self.config.num_slots and worst <= (self.config.num_blocks or 0):
            try:
                self.engine.submit(request)
            except NeverFits as refusal:
                assert refusal.pool == "kv_archive"
                self.world.happened["never fits into the archive"] += 1
                return
            self.requests[request.request_id] = request
            self.world.happened["submit"] += 1

    def step(self, _: str = "") -> None:
        before = self.engine.stats()
        for event in self.engine.step():
            if event.finish_reason is FinishReason.ERROR:
                assert isinstance(event.error, ArchiveFull), event.error
                assert event.usage is not None and event.usage.prefix.reason == "not_begun", (
                    "it was let in, and starved"
                )
                self.starved.add(event.request_id)
                self.world.happened["refused for what names hold"] += 1
                continue
            assert event.request_id not in self.starved, "nothing comes after the end"
            key = event.request_id, event.choice
            assert key not in self.ended and event.request_id not in self.aborted, "nothing comes after the end"
            if key not in self.said:
                self.world.happened["fork"] += event.choice > 0
            hear(self.said.setdefault(key, Said()), event)
            if event.finish_reason is not None:
                self.ended.add(key)
                self.world.happened["choice ended"] += 1
            if event.usage is not None:
                self.world.happened[f"{event.usage.prefix.result}: {event.usage.prefix.reason}"] += 1
            if event.usage is not None and event.usage.num_preemptions:
                several = self.requests[event.request_id].num_choices > 1
                self.world.happened["several choices came back" if several else "one choice came back"] += 1
        stats = self.engine.stats()
        if stats.last_step is not None and stats.num_steps > before.num_steps:
            self.world.happened[f"{stats.last_step.phase} step"] += 1
        self.world.happened["step with shared blocks"] += stats.num_blocks_shared > 0

    def abort(self, name: str) -> None:
        before = self.engine.stats()
        if not self.engine.abort(name):
            return
        self.aborted.add(name)
        after = self.engine.stats()
        where = "of a saved request" if after.num_saved < before.num_saved else "in the line"
        if after.num_running < before.num_running:
            where = "in the answer" if (name, 0) in self.said else "before the answer"
        self.world.happened[f"abort {where}"] += 1

    def pause(self, name: str) -> None:
        self.engine.pause(name)
        self.world.happened["pause"] += 1

    def resume(self, name: str) -> None:
        self.engine.resume(name)

    def preempt(self, name: str) -> None:
        if self.engine.preempt(name):
            self.num_forced += 1
            self.world.happened["forced preemption"] += 1

    def tree(self, name: str) -> tuple[tuple[str, AttentionPolicy], GenerationRequest] | None:
        """Where checkpoints of a request's prompt are."""
        request = self.requests.get(name)
        return None if request is None else ((request.tenant, request.policy or WINDOW), request)

    def anchor(self, name: str) -> None:
        if found := self.tree(name):
            self.engine.checkpoints.anchor(self.dice.randrange(3), found[0], found[1].prompt_ids)

    def let_go(self, _: str) -> None:
        act = self.dice.choice([self.engine.checkpoints.unanchor, self.engine.checkpoints.release])
        act(self.dice.randrange(3))

    def move(self, name: str) -> None:
        """Save what was kept of a text, forget it all, and bring it back."""
        if not (found := self.tree(name)):
            return
        (tree, request), checkpoints = found, self.engine.checkpoints
        snapshots = [apart(checkpoints.snapshot(each)) for each in checkpoints.path(tree, request.prompt_ids)]
        checkpoints.forget(tree, request.prompt_ids, 0)
        try:
            checkpoints.admit(tree, request.prompt_ids, snapshots)
        except (ArchiveFull, HostBudgetExceeded):
            self.world.happened["no room for what was saved"] += 1
        self.world.happened["saved and brought back"] += len(snapshots)

    def forget(self, name: str) -> None:
        if found := self.tree(name):
            (tenant, policy), request = found
            self.world.happened["forgotten"] += self.engine.forget(tenant, policy, request.prompt_ids, 20)

    def assert_conserved(self) -> None:
        """Law 4, and law 9 for the pools."""
        self.engine.check()
        stats = self.engine.stats()
        num_states = self.config.num_slots + self.config.num_checkpoint_slots
        assert (stats.slots.total, stats.blocks.total) == (num_states, self.config.num_blocks)
        archive, checkpoints = self.runner.archive_blocks, self.engine.checkpoints
        self.world.happened["step with an archive on the disk"] += stats.archive_disk_bytes > 0
        kept = {number for each in checkpoints.kept() for number in each.archive_numbers if number >= 0}
        assert archive.used + archive.cached == len(kept | self.runner.archive_numbers()), "a block is nobody's"
        num_bytes = sum(self.runner.archive_bytes.values()) + self.runner.archive_disk_bytes
        assert num_bytes == (archive.used + archive.cached) * (16_384 + 2048)
        self.world.happened["step with room promised"] += stats.num_archive_blocks_promised > 0
        self.world.happened["step with room that names hold"] += self.runner.archive_room.num_anchored > 0
        assert self.runner.archive_room.num_anchored <= archive.cached
        assert stats.saved_bytes == self.runner.saved_bytes <= self.config.saved_bytes
        for pool in POOLS:
            assert self.runner.pool_bytes[pool] == stats.pool_bytes[pool] == stats.plan_bytes[pool], pool


def apart(snapshot: Snapshot) -> Snapshot:
    """As one that comes from the disk."""
    return replace(
        snapshot, archive=tuple(BlockContent(each.keys.clone(), each.values.clone()) for each in snapshot.archive)
    )


def run_natively(world: World, seeds: range, monkeypatch: pytest.MonkeyPatch) -> None:
    world.happened.clear()
    world.alone.clear()
    for seed in seeds:
        schedule = Schedule(world, seed, monkeypatch)
        schedule.run()
        for name, request in schedule.requests.items():
            for choice, alone in world.said_alone(request).items():
                found = schedule.said.get((name, choice), Said())
                if name in schedule.aborted | schedule.starved:
                    alone = alone.first(len(found.token_ids))
                    found.information_bits = alone.information_bits
                assert found == alone, f"schedule {seed}, request {name}, choice {choice}"
    logger.info("%d schedules: %s", len(seeds), dict(world.happened))
    kinds = ["choice ended", "fork", "pause", "forced preemption", "preemption of its own", "step with shared blocks"]
    kinds += ["one choice came back", "several choices came back", "prefill step", "decode step", "mixed step"]
    kinds += ["never fits into the archive", "step with an archive on the disk"]
    kinds += ["step with room promised", "step with room that names hold"]
    kinds += [f"abort {where}" for where in ("in the line", "before the answer", "in the answer", "of a saved request")]
    kinds += ["schedule on several threads", "saved and brought back", "no room for what was saved", "forgotten"]
    places = ("prompt", "message", "tail", "interval", "restored")
    reasons = ("empty", "different", "not_kept", "evicted", "not_wanted", "prompt_logprobs", "no_information")
    kinds += [f"hit: {place}" for place in places] + [f"miss: {reason}" for reason in reasons]
    kinds += [f"{what} refereed" for what in ("greedy choice", "prompt probabilities", "probability")]
    assert [kind for kind in kinds if not world.happened[kind]] == []


def test_any_schedule_says_what_each_says_alone(native: World, monkeypatch: pytest.MonkeyPatch) -> None:
    run_natively(native, range(NUM_FAST), monkeypatch)


@pytest.mark.slow
def test_a_thousand_schedules_say_what_each_says_alone(native: World, monkeypatch: pytest.MonkeyPatch) -> None:
    run_natively(native, range(NUM_FAST, NUM_FAST + NUM_SLOW), monkeypatch)


def test_any_schedule_of_the_reference_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their sums may differ in the last bits with the company, and so may what is drawn; each is judged by itself."""
    world = make_world(tmp_path, {1: REFERENCE})
    for seed in range(NUM_REFERENCE):
        schedule = Schedule(world, seed, monkeypatch)
        schedule.run()
        for (name, _), said in schedule.said.items():
            if name not in schedule.aborted | schedule.starved:
                ask_the_referee(world, schedule.requests[name], said)
    assert all(world.happened[kind] for kind in ("fork", "forced preemption", "greedy choice refereed"))
