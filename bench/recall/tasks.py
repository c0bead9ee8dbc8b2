"""Which tasks there are, and the texts and questions of each at a length. Every draw comes from the seed."""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.recall import lookalikes, prose
from bench.recall.cases import Corpus
from bench.recall.haystack import CountTokens, Haystack
from bench.recall.questions import Questions

LENGTHS = (4_096, 32_768, 131_072, 524_288, 1_000_000)
# InfiniteBench's needles lie alone in a text, so that each case is an index of its own: fewer of the long ones.
LONE_TEXTS = {4_096: 300, 32_768: 100, 131_072: 50, 524_288: 20, 1_000_000: 10}
NUM_RECORDS = 10_000
NUM_RECORDS_ASKED = 500

Corpora = Callable[[int, int, random.Random], Iterator[Corpus]]


@dataclass(frozen=True)
class Tasks:
    """Name of a task -> a function of tokens, number of cases and draws."""

    seed: int
    by_name: Mapping[str, Corpora]

    def corpora(self, name: str, num_tokens: int, num_cases: int) -> Iterator[Corpus]:
        """The texts of a cell with their questions, the same ones whenever it is asked for."""
        return self.by_name[name](num_tokens, num_cases, random.Random(f"{self.seed}/{name}/{num_tokens}"))

    def lengths(self, name: str, lengths: list[int]) -> list[int]:
        """At which lengths a task is measured."""
        return [max(lengths)] if name == "records" else lengths


def real_tasks(data: Path, count_tokens: CountTokens, seed: int) -> Tasks:
    """Over books and questions of ``data`` (``haystack/*.txt``, ``qa_eval.jsonl.xz``, the key-value sets)."""
    haystack = Haystack.of(data / "haystack", count_tokens)
    pairs = lookalikes.pairs_of(data / "kv_retrieval_dev_75.jsonl.xz")
    asked = Questions(data / "qa_eval.jsonl.xz")
    by_name = _over(haystack, count_tokens)
    by_name["kv"] = lambda tokens, cases, rng: lookalikes.key_values(pairs, count_tokens, tokens, cases, rng)
    by_name["questions"] = lambda tokens, cases, rng: asked.corpora(
        count_tokens, tokens, 3 * cases if tokens >= LENGTHS[-1] else cases, rng
    )
    by_name["records"] = lambda tokens, _, rng: iter(
        [lookalikes.records(haystack, tokens - 35 * NUM_RECORDS, NUM_RECORDS, NUM_RECORDS_ASKED, rng)]
    )
    return Tasks(seed, by_name)


def short_tasks(seed: int) -> Tasks:
    """Made-up prose; needs no data and no tokenizer. A token is taken for four characters."""

    def count_tokens(text: str) -> int:
        return len(text) // 4

    haystack = Haystack([made_up_prose(400_000, seed)], count_tokens)
    by_name = _over(haystack, count_tokens)
    by_name["records"] = lambda tokens, cases, rng: iter([lookalikes.records(haystack, tokens, 400, cases, rng)])
    return Tasks(seed, by_name)


def _over(haystack: Haystack, count_tokens: CountTokens) -> dict[str, Corpora]:
    return {
        "single": lambda tokens, cases, rng: prose.single(haystack, tokens, cases, rng),
        "uuids": lambda tokens, cases, rng: lookalikes.uuids(count_tokens, tokens, cases, rng),
        "keyed": lambda tokens, cases, rng: prose.keyed(haystack, tokens, cases, rng),
        "chains": lambda tokens, cases, rng: prose.chains(haystack, tokens, cases, rng),
        "lone": lambda tokens, cases, rng: prose.lone(haystack, tokens, min(cases, LONE_TEXTS.get(tokens, 10)), rng),
    }


def made_up_prose(num_characters: int, seed: int) -> str:
    """Sentences of made-up words in paragraphs."""
    rng = random.Random(seed)
    syllables = [a + b for a in "bcdfgklmnprst" for b in ("a", "e", "i", "o", "u", "ar", "en", "il")]
    vocabulary = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(5_000)]
    sentences: list[str] = []
    length = 0
    while length < num_characters:
        end = "\n\n" if rng.random() < 0.15 else " "
        sentences.append(" ".join(rng.choices(vocabulary, k=rng.randint(5, 25))).capitalize() + "." + end)
        length += len(sentences[-1])
    return "".join(sentences)
