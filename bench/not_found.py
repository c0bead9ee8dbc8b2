"""Whether what is not in a document is told so, end to end: by the search's confidence and by the reader's own words.

Documents are articles of SQuAD, three to one, and all of them as one text. Each is asked its own questions, questions
of articles it has not, and, apart, the adversarial ones of SQuAD 2.0. Thresholds come from training articles alone.

    python -m bench.not_found --train QA_TRAIN.jsonl.xz --eval QA_EVAL.jsonl.xz --work DIRECTORY [--short]
"""

import argparse
import json
import lzma
import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers import Child
from bench.recall.archive import FIRST, TENANT, Archive
from bench.recall.intervals import wilson
from bench.recall.machine import describe, embedded_tokenizer, fano_command, open_embedder
from server.answers.citations import Source
from server.answers.groundwork import nearest_reading
from server.answers.prompt import NOT_FOUND, document_question
from training.cases import normalised

ARTICLES = 3
MAX_TOKENS = 32
KINDS = ("answerable", "absent", "adversarial")
Rows = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Asked:
    """One question: ``confidence`` of the search, whether it says found, probability that the reader begins to say that
    it is not, whether it did, and whether its answer is right."""

    size: str
    kind: str
    confidence: float
    found: bool
    probability: float
    said_not: bool
    right: bool


class Asker:
    """Searches in this process, and has the served model read what the server would give it."""

    def __init__(self, archive: Archive, child: Child) -> None:
        self._archive = archive
        self._child = child
        self._model = child.client.get("/v1/models").json()["data"][0]["id"]
        tokenizer = embedded_tokenizer()
        self._not = tokenizer.decode(tokenizer.encode_ids(NOT_FOUND)[:1]).strip()

    def ask(self, document: str, size: str, kind: str, question: str, answers: Sequence[str]) -> Asked:
        result = self._archive.library.search(TENANT, question, [document], FIRST)
        if not result.passages:
            return Asked(size, kind, result.confidence, False, 1.0, True, False)
        sources = [Source(number, passage) for number, passage in enumerate(result.passages, start=1)]
        turn = document_question(question, [nearest_reading(sources).passage.text])
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": turn}],
            "max_tokens": MAX_TOKENS,
            "temperature": 0.0,
            "logprobs": True,
            "top_logprobs": 20,
        }
        choice = self._child.client.post("/v1/chat/completions", json=body).raise_for_status().json()["choices"][0]
        answer = choice["message"]["content"] or ""
        first = (choice["logprobs"]["content"] or [{"top_logprobs": []}])[0]["top_logprobs"]
        probability = sum(math.exp(each["logprob"]) for each in first if each["token"].strip() == self._not)
        given = f" {normalised(answer)} "
        right = any(f" {normalised(wanted)} " in given for wanted in answers)
        said_not = answer.strip() in ("", NOT_FOUND)
        return Asked(size, kind, result.confidence, result.found, min(1.0, probability), said_not, right)


def articles(path: Path, source: str) -> dict[str, Rows]:
    """The rows of each title."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            if row["source"] == source:
                found[row["title"]].append(row)
    return dict(found)


def text_of(chosen: Sequence[Rows]) -> str:
    """Their paragraphs, each once."""
    contexts = dict.fromkeys(row["context"] for rows in chosen for row in rows)
    return "\n\n".join(contexts)


def ask_all(
    asker: Asker,
    archive: Archive,
    name: str,
    titles: dict[str, Rows],
    adversarial: dict[str, Rows],
    foreign: Rows,
    num_documents: int,
    num_each: int,
    rng: random.Random,
) -> list[Asked]:
    """Single documents of three articles, and all of them as one; ``foreign`` are questions of no article at all."""
    order = sorted(titles)
    rng.shuffle(order)
    groups = [order[first : first + ARTICLES] for first in range(0, ARTICLES * num_documents, ARTICLES)]
    used = [title for group in groups for title in group]
    asked: list[Asked] = []

    def some(rows: Rows, count: int) -> Rows:
        return rng.sample(list(rows), min(count, len(rows)))

    own: list[dict[str, Any]] = []
    for number, group in enumerate(groups):
        document = archive.add(text_of([titles[title] for title in group]), f"{name}-{number}.txt")
        here = some([row for title in group for row in titles[title]], num_each)
        own += here
        elsewhere = some([row for title in used if title not in group for row in titles[title]], num_each)
        trick = some([row for title in group for row in adversarial.get(title, ())], num_each)
        for kind, rows in zip(KINDS, (here, elsewhere, trick), strict=True):
            asked += [asker.ask(document, "single", kind, row["question"], row["answers"]) for row in rows]
        print(f"{name} {number + 1}/{num_documents}: {archive.num_tokens(document):,} tokens", flush=True)
    whole = archive.add(text_of([titles[title] for title in order]), f"{name}-whole.txt")
    print(f"{name} joined: {archive.num_tokens(whole):,} tokens", flush=True)
    trick = some([row for title in used for row in adversarial.get(title, ())], len(own))
    for kind, rows in zip(KINDS, (own, some(foreign, len(own)), trick), strict=True):
        asked += [asker.ask(whole, "joined", kind, row["question"], row["answers"]) for row in rows]
    return asked


def fit(cases: Sequence[Asked]) -> tuple[float, float, float]:
    """Weights of a logistic regression on the two log odds, and the bias: how sure it is that the answer is there."""
    rows = np.array([[_odds(case.confidence), -_odds(case.probability), 1.0] for case in cases])
    labels = np.array([float(case.kind == "answerable") for case in cases])
    weights = np.zeros(3)
    for _ in range(50):  # Newton's method; the penalty keeps separable data finite
        sure = 1.0 / (1.0 + np.exp(-rows @ weights))
        gradient = rows.T @ (labels - sure) - 0.01 * weights
        hessian = (rows * (sure * (1 - sure))[:, None]).T @ rows + 0.01 * np.eye(3)
        weights += np.linalg.solve(hessian, gradient)
    return float(weights[0]), float(weights[1]), float(weights[2])


def _odds(share: float) -> float:
    share = min(max(share, 1e-6), 1 - 1e-6)
    return math.log(share / (1 - share))


def threshold(sure: Callable[[Asked], float], cases: Sequence[Asked], lost: float) -> float:
    """What at most a share ``lost`` of the right answers is below."""
    scores = sorted(sure(case) for case in cases if case.kind == "answerable" and case.right)
    return scores[math.floor(lost * len(scores))] if scores else 0.0


def report(name: str, is_told: Callable[[Asked], bool], cases: Sequence[Asked]) -> dict[str, Any]:
    """Rates in percent with Wilson's intervals: told so, by kind; and points of right answers that are lost for it."""
    told: dict[str, Any] = {"rule": name}
    for kind in KINDS:
        of_kind = [case for case in cases if case.kind == kind]
        if not of_kind:
            continue
        count = sum(is_told(case) or case.said_not for case in of_kind)
        told[kind] = [round(100 * x, 1) for x in (count / len(of_kind), *wilson(count, len(of_kind)))]
        if kind == "answerable":
            lost = sum(case.right and is_told(case) for case in of_kind)
            told["right_before"] = round(100 * sum(case.right for case in of_kind) / len(of_kind), 1)
            told["lost_points"] = [round(100 * x, 1) for x in (lost / len(of_kind), *wilson(lost, len(of_kind)))]
        told[f"num_{kind}"] = len(of_kind)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--eval", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--vectors", type=Path, help="cache of vectors, good for other runs too")
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--each", type=int, default=8, help="questions of each kind over each document")
    parser.add_argument("--lost", type=float, default=0.02, help="share of the right answers given up in training")
    parser.add_argument("--short", action="store_true", help="a minute: three documents, five questions of each kind")
    arguments = parser.parse_args()
    if arguments.short:
        arguments.documents, arguments.each = 3, 5
    run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Ask, calibrate, print; every question's numbers go to ``asked.jsonl``."""
    arguments.work.mkdir(parents=True, exist_ok=True)
    embedder = open_embedder(arguments.vectors or arguments.work / "vectors.sqlite3", arguments.threads)
    child = Child(arguments.work / "fano.log")
    serve = [*fano_command(), "serve", "--data-dir", str(arguments.work / "served")]
    child.start(serve, "/readyz", {"FANO_READ_DOCUMENTS": "false", "FANO_THREADS": str(arguments.threads)})
    sets: dict[str, list[Asked]] = {}
    try:
        with Archive(arguments.work, embedder, embedded_tokenizer().count, keep=True) as archive:
            asker = Asker(archive, child)
            rng = random.Random(arguments.seed)
            train = articles(arguments.train, "squad1.1")
            chosen = rng.sample(sorted(train), min(len(train), 2 * ARTICLES * arguments.documents))
            num_used = ARTICLES * arguments.documents
            foreign = [row for title in chosen[num_used:] for row in train[title]]
            size = (arguments.documents, arguments.each, rng)
            sets["train"] = ask_all(
                asker, archive, "train", {title: train[title] for title in chosen[:num_used]}, {}, foreign, *size
            )
            tested = articles(arguments.eval, "squad1.1-dev")
            tricks = articles(arguments.eval, "squad2.0-dev-unanswerable")
            foreign = [row for rows in articles(arguments.eval, "nq-gold-eval").values() for row in rows]
            sets["eval"] = ask_all(asker, archive, "eval", tested, tricks, foreign, *size)
    finally:
        child.kill()
        embedder.close()
    with (arguments.work / "asked.jsonl").open("w") as lines:
        for name, cases in sets.items():
            lines.writelines(json.dumps({"set": name, **asdict(case)}) + "\n" for case in cases)
    print(json.dumps({**describe(arguments.threads, arguments.seed), "bench": "not_found"}))
    judge(sets["train"], sets["eval"], arguments.lost)


def judge(train: Sequence[Asked], tested: Sequence[Asked], lost: float) -> None:
    """The rules, by size of text; every number of a rule is of the training set."""
    for size in ("single", "joined"):
        known = [case for case in train if case.size == size]
        cases = [case for case in tested if case.size == size]
        first, second, bias = fit(known)

        def both(case: Asked, weights: tuple[float, float, float] = (first, second, bias)) -> float:
            return weights[0] * _odds(case.confidence) - weights[1] * _odds(case.probability) + weights[2]

        by_search = threshold(lambda case: case.confidence, known, lost)
        by_both = threshold(both, known, lost)
        rules: list[tuple[str, Callable[[Asked], bool]]] = [
            ("no threshold", lambda _: False),
            ("as shipped", lambda case: not case.found),
            ("confidence", lambda case, least=by_search: case.confidence < least),  # type: ignore[misc]
            ("confidence and reader", lambda case, least=by_both: both(case) < least),  # type: ignore[misc]
        ]
        for name, is_told in rules:
            told = report(name, is_told, cases)
            weights = [round(number, 3) for number in (first, second, bias, by_both)]
            line = {"size": size, **told, "least_confidence": round(by_search, 4), "weights": weights}
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
