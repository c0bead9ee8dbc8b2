"""Room in the archive is promised at admission: who is let in finds it to its end, who waits is let in in turn."""

import logging
from dataclasses import replace

import pytest
from fakes_archive import POLICY, Bench
from fakes_engine import write_tokenizer
from fakes_model import load
from fakes_runner import finish, ids_of, request

from model.cache.snapshot import BlockContent
from model.config import Dtype
from model.engine.request import FinishReason, TokenEvent
from model.errors import ArchiveFull, NeverFits
from model.hybrid import HybridLM
from model.tokenizer import Tokenizer

TREE = ("default", POLICY)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def model(checkpoints) -> HybridLM:
    return load(checkpoints["dense"].directory)


def steps(bench: Bench, num_steps: int) -> list[TokenEvent]:
    return [event for _ in range(num_steps) for event in bench.engine.step()]


def failures(events: list[TokenEvent]) -> list[TokenEvent]:
    return [event for event in events if event.finish_reason is FinishReason.ERROR]


def test_what_does_not_fit_beside_the_others_waits_and_then_says_what_it_says_alone(
    model: HybridLM, tokenizer: Tokenizer
) -> None:
    alone, bench = Bench(model, tokenizer, 40), Bench(model, tokenizer, 24)
    prompts = {name: alone.text(1300) for name in "abc"}
    for name, prompt in prompts.items():
        bench.engine.submit(request(name, prompt, max_tokens=20))
    # Each takes 18 blocks.
    events = steps(bench, 10)
    assert (bench.engine.stats().num_running, bench.engine.stats().num_waiting) == (1, 2)
    # What needs nothing of the archive waits behind them all the same: nobody overtakes.
    bench.engine.submit(request("short", bench.text(70), max_tokens=2))
    events += steps(bench, 1)
    assert bench.engine.stats().num_running == 1
    events += finish(bench.engine)
    bench.engine.check()
    assert not failures(events)
    # The short one is let in beside the third.
    assert [event.request_id for event in events if event.finish_reason] == ["a", "b", "short", "c"]
    for name, prompt in prompts.items():
        alone.engine.submit(request(name, prompt, max_tokens=20))
        assert ids_of(events, name) == ids_of(finish(alone.engine), name) != []
    stats = bench.engine.stats()
    assert (stats.archive_blocks.used, stats.num_archive_blocks_promised) == (0, 0)


def test_what_is_promised_is_what_is_still_to_come(model: HybridLM, tokenizer: Tokenizer) -> None:
    bench = Bench(model, tokenizer, 60)
    bench.engine.submit(request("a", bench.text(1000), max_tokens=130))
    told = set()
    while bench.engine.has_work():
        bench.engine.step()
        stats = bench.engine.stats()
        told.add(stats.num_archive_blocks_promised + stats.archive_blocks.used)
    # 1129 tokens are read; the window then begins at 1024, behind the block of the sinks.
    assert told == {15, 0}


def test_a_beginning_that_others_hold_is_counted_once(model: HybridLM, tokenizer: Tokenizer) -> None:
    bench = Bench(model, tokenizer, 30)
    document = bench.text(1280)
    bench.ask("read", document, 0, is_background=True, select_from=1280)
    for name in "ab":
        bench.engine.submit(request(name, document + bench.text(100), max_tokens=30, select_from=1280))
    steps(bench, 1)
    assert bench.engine.stats().num_running == 2, "of 2 * 20 blocks 18 are the document's"
    assert not failures(finish(bench.engine))


def test_a_name_that_fills_the_archive_can_still_be_talked_to(model: HybridLM, tokenizer: Tokenizer) -> None:
    bench = Bench(model, tokenizer, 22)
    talk = bench.text(1300)
    bench.ask("named", talk)
    bench.engine.checkpoints.anchor("talk", TREE, talk)
    assert bench.engine.stats().num_archive_blocks_anchored == 0, "nothing was published since"
    bench.engine.refresh()
    assert bench.engine.stats().num_archive_blocks_anchored == 18
    assert bench.ask("on", talk + bench.text(200)).error is None
    assert bench.engine.checkpoints.num_lost == 0


def test_who_waits_for_a_name_alone_is_refused_before_anything_is_read(model: HybridLM, tokenizer: Tokenizer) -> None:
    bench = Bench(model, tokenizer, 30)
    named, other, third = (bench.text(900) for _ in range(3))
    bench.ask("named", named)
    bench.engine.checkpoints.anchor("talk", TREE, named)
    for name, prompt in (("other", other), ("third", third)):
        assert bench.ask(name, prompt).error is None
    assert bench.engine.checkpoints.path(TREE, named), "it has a name and stands nowhere else"
    assert bench.engine.checkpoints.path(TREE, named)[-1].num_tokens >= 900
    assert bench.engine.checkpoints.path(TREE, other)[-1].num_tokens < 900, "nobody named it"
    # A second name, and there is no room for a third text of that length.
    bench.engine.checkpoints.anchor("chat", TREE, third)
    num_read = bench.engine.stats().num_prompt_tokens
    failed = bench.ask("late", bench.text(900))
    assert bench.engine.stats().num_prompt_tokens == num_read
    each = sum(model.config.archive_bytes_per_block(Dtype.FLOAT32))
    assert isinstance(failed.error, ArchiveFull)
    assert f"has {6 * each} of {30 * each} bytes free, {12 * each} more were needed" in str(failed.error)
    assert "kv_archive" in str(failed.error) and "FANO_ARCHIVE_BYTES" in str(failed.error)
    assert bench.engine.checkpoints.path(TREE, named) and bench.engine.checkpoints.path(TREE, third)
    # What comes after it is served.
    assert bench.ask("short", bench.text(300)).error is None
    bench.engine.checkpoints.release("talk")
    assert bench.ask("again", bench.text(900)).error is None, "what is on the disk may go"
    assert bench.engine.stats().num_checkpoints_lost == 0


def test_a_promise_is_kept_when_a_name_comes_after_it(
    model: HybridLM, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(model, tokenizer, 30)
    talk = bench.text(1000)
    bench.ask("talk", talk)
    bench.engine.submit(request("long", bench.text(1500), max_tokens=2))
    steps(bench, 2)
    bench.engine.checkpoints.anchor("name", TREE, talk)
    with caplog.at_level(logging.WARNING):
        assert not failures(finish(bench.engine))
    assert bench.engine.stats().num_checkpoints_lost == 1
    assert "promised to others" in caplog.text


def test_one_that_was_preempted_goes_on_while_another_waits_for_what_it_holds(
    model: HybridLM, tokenizer: Tokenizer
) -> None:
    bench = Bench(model, tokenizer, 30)
    bench.engine.submit(request("a", bench.text(1300), max_tokens=20, tenant="a"))
    steps(bench, 15)
    # The other tenant was served less, and is first in line.
    bench.engine.submit(request("b", bench.text(1300), max_tokens=2, tenant="b"))
    assert bench.engine.preempt("a")
    saved = bench.engine.stats()
    assert (saved.num_saved, saved.archive_blocks.used + saved.num_archive_blocks_promised) == (1, 18)
    events = finish(bench.engine)
    assert [event.request_id for event in events if event.finish_reason] == ["a", "b"] and not failures(events)


def test_a_state_from_the_disk_takes_nothing_that_was_promised(model: HybridLM, tokenizer: Tokenizer) -> None:
    bench = Bench(model, tokenizer, 30)
    talk, checkpoints = bench.text(1000), bench.engine.checkpoints
    bench.ask("talk", talk)
    snapshot = checkpoints.snapshot(checkpoints.path(TREE, talk)[-1])
    blocks = tuple(BlockContent(each.keys.clone(), each.values.clone()) for each in snapshot.archive)
    saved, snapshot = replace(snapshot, archive=blocks), None
    checkpoints.forget(TREE, talk, 0)
    bench.engine.submit(request("long", bench.text(1500), max_tokens=2))
    steps(bench, 2)
    with pytest.raises(ArchiveFull, match="'kv_archive'"):
        checkpoints.admit(TREE, talk, [saved])
    assert not failures(finish(bench.engine))
    checkpoints.admit(TREE, talk, [saved])
    assert bench.ask("talk", talk + bench.text(3)).usage.num_cached_tokens >= 1000


@pytest.mark.parametrize("interrupts", [False, True])
def test_choices_take_as_much_as_they_were_counted_for(model: HybridLM, tokenizer: Tokenizer, interrupts: bool) -> None:
    """Blocks of the prompt that leave the window after the choices part are one block of the archive for all."""
    # Of 1060 tokens 16 blocks are full; when 1060 + 139 are read 17 have left, of which one is the choice's own.
    each, num_blocks = sum(model.config.archive_bytes_per_block(Dtype.FLOAT32)), 15 + 3 * 1
    bench = Bench(model, tokenizer, num_blocks, pool_blocks=80)
    # No choice ends before its last token.
    prompt, asked = bench.text(1060), {"max_tokens": 140, "num_choices": 3, "logit_bias": ((2, -100.0),)}
    lacking = Bench(model, tokenizer, num_blocks - 1, pool_blocks=80)
    with pytest.raises(NeverFits, match=f"{num_blocks * each} bytes of pool 'kv_archive'.*{(num_blocks - 1) * each}"):
        lacking.engine.submit(request("a", prompt, **asked))
    bench.engine.submit(request("a", prompt, **asked))
    events = steps(bench, 25)
    if interrupts:
        assert {event.choice for event in events} == {0, 1, 2}
        assert bench.engine.preempt("a")
    events += finish(bench.engine)
    bench.engine.check()
    assert not failures(events)
    assert events[-1].usage.kv_archive_bytes + events[-1].usage.kv_summary_bytes == num_blocks * each
