"""Questions to measure a reader with: passages, what is asked, and the answers that count as right.

All come from texts that training leaves out: qa_eval, the key-value sets, and made-up facts of a seed of their own.
"""

from __future__ import annotations

import random
import re
import string
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training import synthetic
from training.corpus import records
from training.examples import NOT_FOUND

SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(\[])|\n+")
MADE_SEED = 977_001  # training draws its made-up facts from small seeds


@dataclass(frozen=True, slots=True)
class Case:
    passages: list[str]
    question: str
    answers: list[str]  # empty: not answerable from the passages


def normalised(text: str) -> str:
    """As the SQuAD script does: lower case, no punctuation, no articles, single spaces."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def f1(given: str, wanted: str) -> float:
    a, b = normalised(given).split(), normalised(wanted).split()
    common = sum((Counter(a) & Counter(b)).values())
    return 2 * common / (len(a) + len(b)) if common else float(a == b)


def scores(given: str, case: Case) -> tuple[float, float, float]:
    """(exact match, F1, value accuracy: the answer stands in what was given), best over the alternatives."""
    wanted = case.answers or [NOT_FOUND]
    inside = any(f" {normalised(w)} " in f" {normalised(given)} " for w in wanted)
    return max(float(normalised(given) == normalised(w)) for w in wanted), max(f1(given, w) for w in wanted), inside


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and 95 % bootstrap interval, in percent."""
    rng = np.random.default_rng(0)
    means = values[rng.integers(0, len(values), (2000, len(values)))].mean(1)
    return tuple(round(100 * float(x), 1) for x in (values.mean(), *np.percentile(means, [2.5, 97.5])))


def gold(data: Path, source: str, number: int, distractors: int = 0, seed: int = 1) -> list[Case]:
    """Questions of `source` with their passage at a random place among other passages of the same title."""
    rng = random.Random(seed)
    pool = [r for r in records(data / "qa_eval.jsonl.xz") if r["source"] == source]
    same_title: dict[str, list[str]] = defaultdict(list)
    for r in pool:
        if r["context"] not in same_title[r["title"]]:
            same_title[r["title"]].append(r["context"])
    chosen = []
    for r in rng.sample(pool, min(number, len(pool))):
        others = [c for c in same_title[r["title"]] if c != r["context"]]
        passages = [r["context"], *rng.sample(others, min(distractors, len(others)))]
        rng.shuffle(passages)
        chosen.append(Case(passages, r["question"], r["answers"]))
    return chosen


def unanswerable(data: Path, number: int) -> list[Case]:
    """As many questions that the passage does not answer as ones that it does, mixed."""
    half = number // 2
    chosen = gold(data, "squad2.0-dev-unanswerable", half, seed=2) + gold(data, "squad1.1-dev", half, seed=3)
    random.Random(4).shuffle(chosen)
    return chosen


def lookalikes(number: int) -> list[Case]:
    """Twelve made-up sentences of two frames: only a name tells the right one from the others."""
    rng = random.Random(MADE_SEED)
    return [_made_case(rng, synthetic.sentences(rng, 12), " ") for _ in range(number)]


def key_values(number: int) -> list[Case]:
    """A form of key and value lines, or a table: one value is asked for."""
    rng = random.Random(MADE_SEED + 1)
    chosen = []
    for index in range(number):
        header, statements = ("", synthetic.key_value_lines(rng)) if index % 2 else synthetic.table_rows(rng)
        chosen.append(_made_case(rng, statements, "\n", header))
    return chosen


def _made_case(rng: random.Random, statements: list[synthetic.Made], between: str, header: str = "") -> Case:
    asked = rng.choice(statements)
    passage = between.join([header] * bool(header) + [made.text for made in statements])
    return Case([passage], rng.choice(asked.questions), [asked.text[asked.start : asked.end]])


def identifiers(data: Path, number: int) -> list[Case]:
    """75 pairs of random identifiers as JSON lines; the value of one is asked for (Liu et al. 2023, section 3)."""
    chosen = []
    for record in records(data / "kv_retrieval_dev_75.jsonl.xz"):
        if len(chosen) == number:
            break
        passage = "\n".join(f'"{key}": "{value}"' for key, value in record["pairs"])
        chosen.append(Case([passage], f'What is the value of "{record["key"]}"?', [record["value"]]))
    return chosen


def needles(data: Path, number: int, words: int = 600) -> list[Case]:
    """A made-up sentence between the sentences of a book, in passages of 150 words."""
    rng = random.Random(MADE_SEED + 2)
    books = [file.read_text(encoding="utf-8") for file in sorted((data / "haystack").glob("*.txt"))]
    chosen = []
    for _ in range(number):
        book = rng.choice(books)
        start = rng.randrange(max(1, len(book) - 8 * words))
        sentences = [s for s in SENTENCE_END.split(book[start : start + 8 * words]) if s.strip()][1:-1]
        made = synthetic.sentences(rng, 1)[0]
        sentences.insert(rng.randrange(len(sentences) + 1), made.text)
        chosen.append(Case(in_passages(sentences), made.questions[0], [made.text[made.start : made.end]]))
    return chosen


def in_passages(sentences: list[str], words: int = 150) -> list[str]:
    passages = [""]
    for sentence in sentences:
        if len(passages[-1].split()) >= words:
            passages.append("")
        passages[-1] = f"{passages[-1]} {sentence}".strip()
    return passages
