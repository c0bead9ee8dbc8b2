"""A quick look at checkpoints, to choose between runs, on questions that `evaluate` leaves alone.

    python -m training.development runs/a runs/b/last.pt

Of SQuAD's development set: exact match and F1 with the gold paragraph, within the sentence nearest to the question and
with four other paragraphs; the loss on the answers, which moves before F1 does; how often "Not found" is said, rightly
and wrongly.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import tokenizers
import torch
from torch.nn import functional as F

from model.tokenizer import Tokenizer
from training import cases
from training.cases import Case, interval, scores
from training.corpus import data_directory
from training.decode import Answerer
from training.evaluate import BestSentence, prompt
from training.examples import NOT_FOUND, Encoder
from training.export import rounded, starting_point
from training.forest import Branch, Forest, Tree
from training.model import Reader

SEED = 11  # evaluate has 1 to 3


def questions(data: Path, number: int) -> tuple[list[Case], list[Case]]:
    """Questions with their paragraph, and the same with four others; none that the card's tables ask."""
    asked = {
        case.question
        for seed, most in ((1, 300), (1, 200), (3, 150))
        for case in cases.gold(data, "squad1.1-dev", most, seed=seed)
    }
    alone = cases.gold(data, "squad1.1-dev", 2 * number, seed=SEED)
    among = cases.gold(data, "squad1.1-dev", 2 * number, distractors=4, seed=SEED)
    pairs = [(a, b) for a, b in zip(alone, among, strict=True) if a.question not in asked][:number]
    return [a for a, _ in pairs], [b for _, b in pairs]


def in_best_sentence(chosen: list[Case], cache: Path) -> list[Case]:
    """The cases with nothing but the sentence nearest to the question; the choice is kept in `cache`."""
    kept = json.loads(cache.read_text(encoding="utf-8")) if cache.exists() else {}
    missing = [case for case in chosen if case.question not in kept]
    if missing:
        best = BestSentence()
        kept |= {case.question: best(case.passages, case.question) for case in missing}
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.write_text(json.dumps(kept), encoding="utf-8")
    return [replace(case, passages=[kept[case.question]]) for case in chosen]


@torch.no_grad()
def answer_loss(model: Reader, encoder: Encoder, chosen: list[Case]) -> float:
    """Nats a token of the first right answer, the end among them."""
    total, count = 0.0, 0
    for case in chosen:
        ids = prompt(encoder, case.passages, case.question)
        answer = [*encoder(case.answers[0]), encoder.end]
        forest = Forest([Tree(ids[:2], [Branch(ids[2:] + answer, len(ids) - 2)])], np.random.default_rng(0))
        hidden, _ = model(forest)
        rows = model.logits(hidden[forest.rows])[forest.is_answer]
        total += float(F.cross_entropy(rows, forest.targets[forest.is_answer], reduction="sum"))
        count += len(rows)
    return total / count


def report(model: Reader, directory: Path, data: Path, number: int, cache: Path) -> dict[str, object]:
    encoder = Encoder(tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json")))
    answerer = Answerer(model, Tokenizer(directory))
    alone, among = questions(data, number)
    result: dict[str, object] = {"loss": round(answer_loss(model, encoder, alone), 3)}
    for name, chosen in (("gold", alone), ("sentence", in_best_sentence(alone, cache)), ("five", among)):
        table = np.array(
            [scores(answerer.verbatim(prompt(encoder, c.passages, c.question), c.passages).text, c) for c in chosen],
            dtype=float,
        )
        result[name] = interval(table[:, 1])
        result[f"{name} exact"] = interval(table[:, 0])[0]
    empty = cases.gold(data, "squad2.0-dev-unanswerable", number // 2, seed=SEED)
    for name, chosen in (("not found, rightly", empty), ("not found, wrongly", alone[: number // 2])):
        said = [answerer.free(prompt(encoder, c.passages, c.question)).text == NOT_FOUND for c in chosen]
        result[name] = round(100 * sum(said) / len(said), 1)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path, help="directories or files of training.train")
    parser.add_argument("--data")
    parser.add_argument("--tokenizer", type=Path, default=Path("weights/fano-reader"), help="a checkpoint directory")
    parser.add_argument("--number", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=Path("runs/best_sentences.json"))
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for path in arguments.checkpoints:
        model = rounded(starting_point(path))
        found = report(model, arguments.tokenizer, data_directory(arguments.data), arguments.number, arguments.cache)
        print(json.dumps({"checkpoint": str(path)} | found), flush=True)


if __name__ == "__main__":
    main()
