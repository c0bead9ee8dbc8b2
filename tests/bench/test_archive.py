"""The archive's benches: the attention they put in place is exact, and summaries say what they are said to say."""

import json
import math
import random
from dataclasses import replace

import pytest
import torch

from bench import archive_summaries, archive_worth
from bench.archive_reading import ArchiveAttention, EngineReading, LongReading, attend_chosen, attend_fully
from bench.archive_tasks import Needles
from bench.block_summaries import SUMMARIES
from bench.recall.haystack import Haystack
from bench.recall.tasks import made_up_prose
from model.kernels import reference
from model.policy import BLOCK_TOKENS, AttentionPolicy, PolicyName
from model.tokenizer import Tokenizer
from server.services import embedded_checkpoint

POLICY = AttentionPolicy(PolicyName.WINDOW, 64, 128)


def drawn(num_tokens: int, length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    dice = torch.Generator().manual_seed(3)
    shapes = (num_tokens, 4, 16), (length, 2, 16), (length, 2, 16)
    queries, keys, values = (torch.randn(shape, generator=dice) for shape in shapes)
    return queries, keys, values


def of_the_kernel(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, policy: AttentionPolicy
) -> torch.Tensor:
    length = len(keys)
    num_blocks = -(-length // BLOCK_TOKENS)
    pools = [torch.zeros(num_blocks * BLOCK_TOKENS, 2, 16) for _ in range(2)]
    for pool, rows in zip(pools, (keys, values), strict=True):
        pool[:length] = rows
    keys, values = (pool.unflatten(0, (-1, BLOCK_TOKENS)) for pool in pools)
    # The kernel scales.
    queries = queries * 16**0.5
    start = torch.tensor([0, len(queries)])
    return reference.attend(queries, keys, values, start, [length - len(queries)], [range(num_blocks)], [policy])


@pytest.mark.parametrize(("num_tokens", "length"), [(1, 700), (70, 700), (70, 130), (3, 64 * 9)])
def test_with_every_block_it_is_full_attention_and_with_none_the_window(num_tokens: int, length: int) -> None:
    told = drawn(num_tokens, length)
    full = of_the_kernel(*told, AttentionPolicy(PolicyName.FULL))
    torch.testing.assert_close(attend_fully(*told)[0], full)
    num_blocks = POLICY.window_start(length - 1) // BLOCK_TOKENS
    every = torch.ones(2, num_tokens, num_blocks, dtype=torch.bool)
    torch.testing.assert_close(attend_chosen(*told, POLICY, every), full)
    window = of_the_kernel(*told, POLICY)
    torch.testing.assert_close(attend_chosen(*told, POLICY, None), window)
    torch.testing.assert_close(attend_chosen(*told, POLICY, ~every), window)


def test_each_token_and_key_head_sees_its_own_blocks() -> None:
    queries, keys, values = drawn(2, 700)
    chosen = torch.zeros(2, 2, 8, dtype=torch.bool)
    chosen[0, 0, 3] = chosen[1, 1, 4] = True
    without = attend_chosen(queries, keys, values, POLICY, None)
    changed = (attend_chosen(queries, keys, values, POLICY, chosen) - without).abs().amax(-1) > 1e-6
    assert changed.tolist() == [[True, True, False, False], [False, False, True, True]]


def test_the_archive_with_every_block_answers_as_full_attention() -> None:
    reading = LongReading(embedded_checkpoint(), 1024)
    ids = random.Random(5).choices(range(300, 9000), k=900)
    reading.read(ids[:880], POLICY)
    attention = ArchiveAttention(SUMMARIES["mean"], "max", POLICY, 1000)
    full, archive, window = (
        reading.ask(ids[880:], way) for way in (AttentionPolicy(PolicyName.FULL), attention, POLICY)
    )
    off, apart = ((other - full).abs().max() / full.std() for other in (archive, window))
    # Both round to bfloat16, at other places.
    assert off < 0.1 < apart
    assert attention.found(range(2, 3)) and not attention.found(range(0, 1))


def test_the_engine_answers_as_the_twin_in_plain_torch() -> None:
    tokenizer = Tokenizer(embedded_checkpoint())
    needles = Needles(Haystack([made_up_prose(100_000, 1)], tokenizer.count), tokenizer, 128, seed=3)
    corpus = next(needles.corpora("lone", 1024, 1))
    prompt = archive_summaries.prompt_of(tokenizer, corpus.text, corpus.cases[0].question)
    border = len(prompt) - 16
    reading = LongReading(embedded_checkpoint(), 2048)
    reading.read(prompt[:border], POLICY)
    answers = {}
    for select in (1, 1000):
        engine = EngineReading(embedded_checkpoint(), 2048, replace(POLICY, name=PolicyName.ARCHIVE, select=select))
        engine.start(prompt[:border])
        summary, _, combined = archive_worth.PRODUCT.rpartition("/")
        twin = ArchiveAttention(archive_worth.CHOICES[summary], combined, POLICY, select)
        answers[select] = engine.answer(prompt[border:], 6)
        assert answers[select] == reading.answer(prompt[border:], twin, 6, tokenizer.eos_ids)
    full = reading.answer(prompt[border:], AttentionPolicy(PolicyName.FULL), 6, tokenizer.eos_ids)
    near = reading.answer(prompt[border:], POLICY, 6, tokenizer.eos_ids)
    assert answers[1] == answers[1000] == full != near, "one block is enough, for it is the one with the needle"


@pytest.mark.parametrize("name", [*SUMMARIES])
def test_of_blocks_of_one_key_each_every_summary_knows_the_score(name: str) -> None:
    dice = torch.Generator().manual_seed(1)
    keys = torch.randn(8, 1, 16, generator=dice)
    queries = torch.randn(3, 2, 16, generator=dice)
    summary = SUMMARIES[name]
    scores = summary.score(queries, summary.of(keys.expand(8, BLOCK_TOKENS, 16)))
    exact = torch.einsum("the,be->thb", queries, keys[:, 0])
    assert scores.shape == exact.shape
    if summary.bits == 16:  # off by what is the same for all blocks
        off = scores - exact
        assert float(off.max() - off.min()) < 0.05
    together = torch.stack((scores.flatten(), exact.flatten()))
    assert float(together.corrcoef()[0, 1]) > 0.8


def test_what_a_summary_says_of_a_block_of_many() -> None:
    dice = torch.Generator().manual_seed(2)
    keys = torch.randn(7, BLOCK_TOKENS, 16, generator=dice)
    query = torch.randn(1, 16, generator=dice) / 4  # scaled
    logits = torch.einsum("te,bpe->tbp", query, keys)
    said = {name: summary.score(query, summary.build(keys)) for name, summary in SUMMARIES.items()}
    assert (said["box (min, max)"] >= logits.amax(-1)).all(), "no key of the block may be above its bound"
    assert (said["mean"] <= logits.logsumexp(-1) - math.log(BLOCK_TOKENS)).all(), "Jensen"
    assert (said["4 longest"] <= logits.amax(-1)).all() and (said["mean"] <= said["4 runs"]).all()
    assert (said["4 runs"] <= said["16 runs"]).all() and (said["16 runs"] <= logits.amax(-1)).all()
    mass = logits.logsumexp(-1)

    def off(name: str) -> float:
        return float((said[name] - mass).std())

    assert off("keys in 2 bits") < off("keys in 1 bit")
    assert off("mean + variance") < off("mean")
    # Four different keys, sixteen times each in turn, are four clusters and nothing else.
    four = keys[:, :4].repeat(1, 16, 1)
    clusters = SUMMARIES["4 clusters"]
    exact = torch.einsum("te,bpe->tbp", query, four).logsumexp(-1)
    torch.testing.assert_close(clusters.score(query, clusters.build(four)), exact, atol=1e-3, rtol=1e-3)


def test_bytes_of_a_summary() -> None:
    told = {name: summary.num_bytes(64) for name, summary in SUMMARIES.items()}
    assert told["mean"] == 2 * 64 and told["16 runs"] == 2 * 16 * 64 and told["box (min, max)"] == 2 * 2 * 64
    assert told["4 clusters"] == 2 * 4 * 65 and told["keys in 1 bit"] == BLOCK_TOKENS * 64 // 8


def test_needles_lie_before_the_window_and_are_the_same_each_time() -> None:
    tokenizer = Tokenizer(embedded_checkpoint())
    needles = Needles(Haystack([made_up_prose(100_000, 1)], tokenizer.count), tokenizer, 512, seed=3)
    for task, count in (("lone", 2), ("one", 1), ("many 16", 16), ("named", 8)):
        first, second = ([*needles.corpora(task, 4096, 2)] for _ in range(2))
        assert first == second and first[0].text != first[1].text
        for corpus in first:
            assert len(corpus.cases) == count
            for case in corpus.cases:
                start = case.parts[0].places[0].end
                assert tokenizer.count(corpus.text[start:]) > 512
    with pytest.raises(AssertionError, match="lies in the window"):
        next(needles.corpora("one", 512, 1))


def last_line(module: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> dict:
    monkeypatch.setattr("sys.argv", ["bench", "--short"])
    module.main()
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_summaries_are_measured_against_the_true_blocks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_summaries, "TEXT_QUERIES", 8)
    told = last_line(archive_summaries, capsys, monkeypatch)
    assert told["block_bytes"]["box (min, max)"] == 256
    rows = told["rows"]
    by_way = {
        way: archive_summaries.mean_of([row for row in rows if row["way"] == way], "recall")
        for way in ("true", "mean/max", "random")
    }
    assert by_way["true"] == 1.0 and by_way["random"] < by_way["mean/max"] < 1.0
    assert {row["kind"] for row in rows} == {"text", "question"}
    assert all(row["mass"] <= row["most_mass"] + 1e-4 for row in rows)


def test_each_way_is_asked_the_same(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    cells = last_line(archive_worth, capsys, monkeypatch)["cells"]
    assert [cell["task"] for cell in cells] == [*archive_worth.TASKS]
    for cell in cells:
        assert {*cell["ways"]} == {*archive_worth.WAYS, f"by {archive_worth.PRODUCT}"}
        assert len({way["asked"] for way in cell["ways"].values()}) == 1
        assert cell["ways"]["window"]["found"] == 0 and cell["ways"]["all blocks"]["found"] > 0
