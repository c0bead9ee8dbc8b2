"""Measures the reader on held-out questions beside "best sentence, no model".

    python -m training.evaluate --data DATA --run runs/reader --number 300

Passages and questions come from qa_eval, which is never trained on. Printed: exact match, F1 and value accuracy (the
right answer stands in what was answered) with 95 % bootstrap intervals, as lines for people and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import string
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
import torch

from model.tokenizer import Tokenizer
from training.corpus import data_directory, records
from training.decode import Answerer
from training.examples import NOT_FOUND, Encoder
from training.export import load, rounded
from training.warm_start import minilm_directory

SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(\[])|\n+")


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
    """(exact match, F1, value accuracy), best over the alternatives."""
    wanted = case.answers or [NOT_FOUND]
    inside = any(f" {normalised(w)} " in f" {normalised(given)} " for w in wanted)
    return max(float(normalised(given) == normalised(w)) for w in wanted), max(f1(given, w) for w in wanted), inside


def cases(data: Path, source: str, number: int, distractors: int, seed: int = 1) -> list[Case]:
    """Questions of `source` with their gold passage at a random place among other passages of the same title."""
    rng = random.Random(seed)
    pool = [r for r in records(data / "qa_eval.jsonl.xz") if r["source"] == source]
    same_title: dict[str, list[str]] = defaultdict(list)
    for r in pool:
        if r["context"] not in same_title[r["title"]]:
            same_title[r["title"]].append(r["context"])
    chosen = []
    for r in rng.sample(pool, number):
        others = [c for c in same_title[r["title"]] if c != r["context"]]
        passages = [r["context"], *rng.sample(others, min(distractors, len(others)))]
        rng.shuffle(passages)
        chosen.append(Case(passages, r["question"], r["answers"]))
    return chosen


def needle_cases(file: Path, words: int = 150) -> list[Case]:
    """Made-up long contexts with a needle (one JSON object per line), cut at sentences into passages."""
    result = []
    for line in file.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        passages = [""]
        for sentence in SENTENCE_END.split(record["context"]):
            if len(passages[-1].split()) >= words:
                passages.append("")
            passages[-1] = f"{passages[-1]} {sentence}".strip()
        result.append(Case(passages, record["question"], record["answers"]))
    return result


def prompt(encoder: Encoder, passages: list[str], question: str) -> list[int]:
    numbered = "\n\n".join(f"[{i}] {passage}" for i, passage in enumerate(passages, 1))
    text = f"{numbered}\n\nQuestion: {question}"
    return [*encoder.begin, *encoder(text), encoder.end, encoder.assistant]


def best_sentence(all_cases: list[Case]) -> list[tuple[str, str]]:
    """For each case the sentence whose MiniLM embedding lies nearest the question's, and its passage."""
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(minilm_directory()), device="cpu")
    result = []
    for case in all_cases:
        sentences = [(s, passage) for passage in case.passages for s in SENTENCE_END.split(passage) if s.strip()]
        texts = [case.question, *(sentence for sentence, _ in sentences)]
        vectors = encoder.encode(texts, normalize_embeddings=True, show_progress_bar=False)
        result.append(sentences[int((vectors[1:] @ vectors[0]).argmax())])
    return result


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and 95 % bootstrap interval, in percent."""
    rng = np.random.default_rng(0)
    means = values[rng.integers(0, len(values), (2000, len(values)))].mean(1)
    return tuple(round(100 * float(x), 1) for x in (values.mean(), *np.percentile(means, [2.5, 97.5])))


def report(name: str, all_cases: list[Case], answers: list[str], seconds: float) -> dict[str, object]:
    table = np.array([scores(a, c) for a, c in zip(answers, all_cases, strict=True)], dtype=float)
    row: dict[str, object] = {"what": name, "n": len(all_cases), "seconds": round(seconds, 1)}
    for column, key in enumerate(("exact", "f1", "value")):
        row[key] = interval(table[:, column])
    row["words"] = round(sum(len(a.split()) for a in answers) / len(answers), 1)
    print(f"{name:48} " + "  ".join(f"{k} {v}" for k, v in row.items() if k != "what"), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data")
    parser.add_argument("--run", type=Path, default=Path("runs/reader"))
    parser.add_argument("--tokenizer", type=Path, default=Path("weights/fano-reader/tokenizer.json"))
    parser.add_argument("--number", type=int, default=300)
    parser.add_argument("--distractors", type=int, nargs="*", default=[0, 4])
    parser.add_argument("--needles", type=Path, nargs="*", default=[], help="JSON-lines files of made-up contexts")
    parser.add_argument("--source", default="squad1.1-dev")
    parser.add_argument("--show", type=int, default=0, help="print so many answers")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = data_directory(arguments.data)
    model, state = load(arguments.run / "last.pt")
    encoder = Encoder(tokenizers.Tokenizer.from_file(str(arguments.tokenizer)))
    answerer = Answerer(rounded(model), Tokenizer(arguments.tokenizer.parent))
    rows = []
    sets = {
        f"{arguments.source}, {distractors} distractors": cases(data, arguments.source, arguments.number, distractors)
        for distractors in arguments.distractors
    }
    sets |= {file.stem: needle_cases(file) for file in arguments.needles}
    for setting, chosen in sets.items():
        best = dict(zip(map(id, chosen), best_sentence(chosen), strict=True))

        def in_best_sentence(case: Case, best: dict[int, tuple[str, str]] = best) -> str:
            sentence, passage = best[id(case)]
            return answerer.verbatim(prompt(encoder, [passage], case.question), [sentence]).text

        ways: dict[str, Callable[[Case], str]] = {
            "best sentence, no model": lambda c, best=best: best[id(c)][0],
            "verbatim": lambda c: answerer.verbatim(prompt(encoder, c.passages, c.question), c.passages).text,
            "verbatim within the best sentence": in_best_sentence,
            "free greedy": lambda c: answerer.free(prompt(encoder, c.passages, c.question)).text,
        }
        for way, answer in ways.items():
            began = time.monotonic()
            answers = [answer(case) for case in chosen]
            rows.append(report(f"{setting}: {way}", chosen, answers, time.monotonic() - began))
            for case, given in list(zip(chosen, answers, strict=True))[: arguments.show]:
                print(f"    {case.question!r} -> {given!r}  wanted {case.answers}")
    print(json.dumps({"state": state, "rows": rows}))


if __name__ == "__main__":
    main()
