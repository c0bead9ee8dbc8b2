"""The harness of exact recall: needles stand where they should, questions keep their promise, counts are counted."""

import random
import re
from pathlib import Path

import pytest

from bench.recall.answers import Marks, even_sample
from bench.recall.cases import Case, Corpus, Part, num_found
from bench.recall.found import FoundStage
from bench.recall.haystack import Haystack, plant
from bench.recall.intervals import bootstrap, wilson
from bench.recall.ledger import Ledger
from bench.recall.lookalikes import CODE_WRITINGS, UUID_WRITINGS
from bench.recall.needles import FIRST_NAMES, PLACES, SURNAMES, TEMPLATES
from bench.recall.tally import Tally
from bench.recall.tasks import Tasks, made_up_prose, short_tasks
from bench.recall.vectors import KeptVectors
from retrieval.embedder import HashEmbedder, Vectors
from retrieval.keys import fold
from retrieval.passage import Span
from retrieval.words import content_words

# Words of neither class: they say nothing of what is asked.
EMPTY = {"had", "one", "two", "did", "get", "went", "use", "let", "old", "say", "time"}


def count_tokens(text: str) -> int:
    return len(text) // 4


def stems(text: str) -> set[str]:
    """Beginnings of the content words, slots aside: near enough to a stem, and stricter for short words."""
    words = (word for word in content_words(re.sub(r"\b[NFPV]\b", "", text)) if word not in EMPTY and len(word) > 2)
    return {word[:5] for word in words}


def test_enough_templates_each_of_its_own() -> None:
    assert len(TEMPLATES) >= 60 and len({template.sentence for template in TEMPLATES}) == len(TEMPLATES)
    for pool in (SURNAMES, FIRST_NAMES, PLACES):
        assert len(set(pool)) == len(pool)


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.sentence[:30])
def test_questions_use_other_words(template) -> None:
    assert set("NFP") & set(re.findall(r"\b[NFP]\b", template.named)), "a named question has the name"
    assert not re.search(r"\b[NFPV]\b", template.described), "a described question has no name"
    told = stems(template.sentence)
    for value in template.values.split("|"):
        told |= stems(value)
        assert not told & stems(template.named), value
        assert not told & stems(template.described), value
    assert len(set(template.values.split("|"))) >= 5


def test_planted_sentences_stand_at_their_depths() -> None:
    prose = made_up_prose(20_000, seed=1)
    text, starts = plant(prose, ["First one.", "Middle one.", "Last one."], [0.0, 0.5, 1.0])
    assert starts[0] == 0 and text[starts[1] :].startswith("Middle one. ") and text.endswith("Last one. ")
    assert 0.45 < starts[1] / len(text) < 0.55
    assert text.replace("First one. ", "").replace("Middle one. ", "").replace(" Last one. ", "") == prose


def test_a_stretch_has_its_length() -> None:
    haystack = Haystack([made_up_prose(60_000, seed) for seed in range(3)], count_tokens)
    text = haystack.stretch(8_000, random.Random(2))
    assert 0.9 * 8_000 < count_tokens(text) < 1.03 * 8_000
    assert text == haystack.stretch(8_000, random.Random(2)) != haystack.stretch(8_000, random.Random(3))


def test_every_task_says_where_its_answers_stand_and_draws_the_same_again() -> None:
    tasks = short_tasks(seed=4)
    for name in tasks.by_name:
        corpora = list(tasks.corpora(name, 4_096, 12))
        assert corpora == list(tasks.corpora(name, 4_096, 12))
        assert sum(len(corpus.cases) for corpus in corpora) >= 12
        for corpus in corpora:
            for case in corpus.cases:
                for part in case.parts:
                    assert part.answers[0] in corpus.text[part.places[0].start : part.places[0].end]


def test_rewritten_keys_are_the_same_key() -> None:
    for key, writings in (("29cb1c39-792a-4103-959d-1f6bb32ca044", UUID_WRITINGS), ("INV-2024-000123", CODE_WRITINGS)):
        for write in writings:
            assert write(key) != key and set(fold(write(key))) & set(fold(key)), write(key)


def test_found_means_all_parts_whole() -> None:
    case = Case("?", (Part((Span(10, 20),), ("a",)), Part((Span(50, 60), Span(80, 90)), ("b",))), "g", 0.95)
    assert num_found(case, [Span(11, 30)]) == 0
    assert num_found(case, [Span(10, 20), Span(80, 95)]) == 2
    tally = Tally()
    assert not tally.note(case, "way", [Span(0, 30)]) and tally.note(case, "way", [Span(0, 30), Span(0, 100)])
    assert tally.note(case, "way", [Span(0, 100)])
    hits = tally.as_json()["g"]["way"]
    assert (hits["asked"], hits["found"], hits["first"], hits["parts"], hits["parts_found"]) == (3, 2, 1, 6, 5)
    assert hits["by_depth"][9] == [3, 2] and sum(asked for asked, _ in hits["by_depth"]) == 3


def test_right_is_counted_apart_from_found() -> None:
    case = Case("?", (Part((Span(10, 20),), ("INV-1",)),), "g", 0.0)
    marks = Marks()
    marks.note(case, "It is INV-1.", [Span(0, 30)], True)
    marks.note(case, "INV-1", [Span(0, 5)], True)
    marks.note(case, "INV-12", [Span(0, 30)], True)
    marks.note(case, "INV-1", [Span(0, 30)], False)
    told = marks.as_json()
    assert (told["asked"], told["found"], told["right"], told["right_found"]) == (4, 3, 2, 1)
    assert (told["exact"], told["told_nothing"]) == (1, 1)


def test_samples_are_even_over_the_text() -> None:
    cases = [Case("?", (), f"{number % 2}", number / 100) for number in range(100)]
    chosen = even_sample(cases, 5)
    assert [case.depth for case in chosen if case.group == "0"] == [0.0, 0.2, 0.4, 0.6, 0.8]
    assert len(even_sample(cases[:4], 5)) == 4


def test_intervals() -> None:
    low, high = wilson(300, 300)
    assert low == pytest.approx(0.98736, abs=1e-4) and high == pytest.approx(1.0)
    assert wilson(0, 0) == (0.0, 1.0)
    low, high = bootstrap([0.0, 1.0] * 50)
    assert 0.35 < low < 0.45 < 0.55 < high < 0.65


class Counting(HashEmbedder):
    """Says how many texts it was given."""

    num_embedded = 0

    def embed_passages(self, texts) -> Vectors:
        self.num_embedded += len(texts)
        return super().embed_passages(texts)


def test_vectors_are_computed_once(tmp_path: Path) -> None:
    inner = Counting()
    kept = KeptVectors(inner, tmp_path / "vectors.sqlite3")
    first = kept.embed_passages(["a", "b", "a"])
    kept.close()
    again = KeptVectors(inner, tmp_path / "vectors.sqlite3")
    assert inner.num_embedded == 2
    assert (again.embed_passages(["b", "a"]) == first[1::1]).all() and inner.num_embedded == 2
    again.embed_passages(["c", "a"])
    assert inner.num_embedded == 3
    again.close()


def corpus_without(text: str, sentence: str) -> Corpus:
    """A case whose sentence stands in the text no more, so that it cannot be found."""
    place = Span(len(text), len(text) + len(sentence))
    return Corpus(text, (Case("What is the pass key?", (Part((place,), ("1",)),), "g", 1.0),))


def test_a_run_finds_keys_misses_what_is_not_there_and_is_not_run_again(tmp_path: Path) -> None:
    short = short_tasks(seed=5)
    by_name = {"uuids": short.by_name["uuids"]}
    by_name["absent"] = lambda tokens, cases, rng: iter([corpus_without(made_up_prose(8_000, 1), "The key is 1.")])
    tasks = Tasks(5, by_name)
    ledger = Ledger(tmp_path / "results.jsonl")
    stage = FoundStage(tasks, HashEmbedder(), count_tokens, tmp_path / "work", tmp_path / "misses.jsonl")
    stage.run(ledger, ["uuids", "absent"], [4_096], 10)
    uuids, absent = (ledger.of("found", name)[0]["groups"] for name in ("uuids", "absent"))
    assert uuids["as written"]["product"]["found"] == uuids["as written"]["product"]["asked"] == 10
    assert uuids["reformatted"]["product"]["found"] == 10
    assert absent["g"]["product"]["found"] == 0 and absent["g"]["product"]["asked"] == 1
    assert len((tmp_path / "misses.jsonl").read_text().splitlines()) == 1
    assert not any((tmp_path / "work").iterdir()), "libraries are removed"
    before = (tmp_path / "results.jsonl").read_text()
    stage.run(Ledger(tmp_path / "results.jsonl"), ["uuids", "absent"], [4_096], 10)
    assert (tmp_path / "results.jsonl").read_text() == before
