"""Measures a checkpoint directory beside its baselines; every figure of the model card comes from here.

    python -m training.evaluate --data DATA --checkpoint weights/fano-reader --out runs/figures

`figures.json` is written as it goes: a suite that stands there for the same weights and arguments is not run again.
`figures.md` has the tables. Texts are those training leaves out. Answers are greedy. Values are percent with 95 %
bootstrap intervals: exact match, F1, and value (the right answer stands in what was answered). `--previous` is another
checkpoint directory, `--span` a run of training.span_reader; both answer the same questions.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tokenizers
import torch

from model.tokenizer import Tokenizer
from training import cases, prose_loss, served
from training.cases import SENTENCE_END, Case, interval, scores
from training.corpus import data_directory
from training.decode import Answerer
from training.examples import NOT_FOUND, Encoder
from training.export import load_directory
from training.span_reader import SpanReader
from training.span_reader import load as load_span_reader
from training.warm_start import minilm_directory

Row = dict[str, object]
CHATS = ("Hello!", "Thank you very much.", "Who are you?", "What is the capital of France?", "Tell me a joke.")
OTHER_SOURCES = (
    "fairytaleqa-val", "qamr", "wikitablequestions-test", "nq-gold-eval", "tatqa-dev", "afriqa-dev",
    "factbook-templ-eval",
)  # fmt: skip


def prompt(encoder: Encoder, passages: list[str], question: str) -> list[int]:
    """Token ids of the server's document question."""
    numbered = "\n\n".join(f"[{i}] {passage}" for i, passage in enumerate(passages, 1))
    text = f"{numbered}\n\nQuestion: {question}"
    return [*encoder.begin, *encoder(text), encoder.end, encoder.assistant]


class BestSentence:
    """The sentence whose MiniLM embedding lies nearest the question's: an answer without a model."""

    def __init__(self) -> None:
        from sentence_transformers import SentenceTransformer

        self.encoder = SentenceTransformer(str(minilm_directory()), device="cpu")
        self.chosen: dict[tuple[str, ...], str] = {}  # several ways to answer ask for the same sentence

    def __call__(self, passages: list[str], question: str) -> str:
        key = (question, *passages)
        if key not in self.chosen:
            self.chosen[key] = self._choose(passages, question)
        return self.chosen[key]

    def _choose(self, passages: list[str], question: str) -> str:
        sentences = [s for passage in passages for s in SENTENCE_END.split(passage) if s.strip()]
        vectors = self.encoder.encode([question, *sentences], normalize_embeddings=True, show_progress_bar=False)
        return sentences[int((vectors[1:] @ vectors[0]).argmax())]


@dataclass
class Checkpoint:
    """A checkpoint directory, ready to answer."""

    directory: Path
    answerer: Answerer
    encoder: Encoder
    policy: prose_loss.Policy

    @classmethod
    def open(cls, directory: Path) -> Checkpoint:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))["fano"]
        answerer = Answerer(load_directory(directory), Tokenizer(directory))
        encoder = Encoder(tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json")))
        return cls(directory, answerer, encoder, prose_loss.Policy(config["sinks"], config["window"]))

    def sha256(self) -> str:
        return hashlib.sha256((self.directory / "model.safetensors").read_bytes()).hexdigest()

    def verbatim(self, passages: list[str], question: str) -> str:
        return self.answerer.verbatim(prompt(self.encoder, passages, question), passages).text

    def free(self, passages: list[str], question: str) -> str:
        return self.answerer.free(prompt(self.encoder, passages, question)).text


@dataclass
class Bench:
    """What the suites measure, and with what."""

    data: Path
    out: Path
    checkpoint: Checkpoint
    previous: Checkpoint | None
    span: SpanReader | None
    number: int
    positions: int
    prose_characters: int
    best: Callable[[list[str], str], str] = field(default_factory=BestSentence)

    def ways(self) -> dict[str, Callable[[Case], str]]:
        """All ways to answer a case, by name."""
        best, now = self.best, self.checkpoint
        ways: dict[str, Callable[[Case], str]] = {"best sentence, no model": lambda c: best(c.passages, c.question)}
        if self.span is not None:
            span = self.span
            ways["MiniLM span reader"] = lambda c: span.answer(c.passages, c.question)
        for name, reader in (("previous: ", self.previous), ("", now)):
            if reader is not None:
                ways[f"{name}verbatim"] = lambda c, r=reader: r.verbatim(c.passages, c.question)
                ways[f"{name}verbatim within the best sentence"] = lambda c, r=reader: r.verbatim(
                    [best(c.passages, c.question)], c.question
                )
        ways["free"] = lambda c: now.free(c.passages, c.question)
        return ways

    def answered(
        self, setting: str, chosen: list[Case], ways: dict[str, Callable[[Case], str]] | None = None
    ) -> list[Row]:
        rows = []
        for name, way in (ways or self.ways()).items():
            began = time.monotonic()
            rows.append(table_row(setting, name, chosen, [way(case) for case in chosen], time.monotonic() - began))
        return rows


def table_row(setting: str, way: str, chosen: list[Case], answers: list[str], seconds: float) -> Row:
    table = np.array([scores(a, c) for a, c in zip(answers, chosen, strict=True)], dtype=float)
    row: Row = {"passages": setting, "answer": way, "n": len(chosen)}
    for column, key in enumerate(("exact", "f1", "value")):
        row[key] = interval(table[:, column])
    row["words"] = round(sum(len(a.split()) for a in answers) / len(answers), 1)
    row["seconds"] = round(seconds, 1)
    print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    return row


def prose(bench: Bench) -> list[Row]:
    texts = prose_loss.held_out(bench.data, bench.prose_characters)
    rows = []
    for name, one in (("this", bench.checkpoint), ("previous", bench.previous)):
        if one is not None:
            found = prose_loss.bits_per_byte(one.answerer.decoder.model, one.encoder.tokenizer, texts, one.policy)
            rows.append({"checkpoint": name, **found})
    return rows


def position(bench: Bench) -> list[Row]:
    now = bench.checkpoint
    found = prose_loss.by_position(
        now.answerer.decoder.model, now.encoder.tokenizer, bench.data, bench.positions, now.policy
    )
    rows = found["rows"]
    assert isinstance(rows, list)
    prose_loss.plot_positions(rows, bench.out / "loss_by_position.png")
    return rows


def gold(bench: Bench) -> list[Row]:
    rows = bench.answered("gold paragraph alone", cases.gold(bench.data, "squad1.1-dev", bench.number))
    four = cases.gold(bench.data, "squad1.1-dev", max(1, bench.number * 2 // 3), distractors=4)
    return rows + bench.answered("with 4 other paragraphs of the article", four)


def sources(bench: Bench) -> list[Row]:
    rows = []
    for source in OTHER_SOURCES:
        chosen = cases.gold(bench.data, source, max(1, bench.number // 6))
        if chosen:
            rows += bench.answered(source, chosen)
    return rows


def retrieved(bench: Bench) -> list[Row]:
    """Through a server: what it finds in a corpus of more than a million tokens, and what it answers."""
    chosen = cases.gold(bench.data, "squad1.1-dev", bench.number)
    texts = served.corpus(bench.data)
    num_tokens = sum(len(bench.checkpoint.encoder(text)) for text in texts)
    setting = f"retrieved from {num_tokens:,} tokens"
    rows: list[Row] = []
    found: list[Case] = []
    with served.server(bench.checkpoint.directory, bench.out / "library") as client:
        documents = served.upload(client, texts)
        for recall in ("verbatim", "grounded"):
            began = time.monotonic()
            answers = []
            for case in chosen:
                answer, passages = served.ask(client, documents, case, recall)
                answers.append(answer)
                if recall == "verbatim":
                    found.append(Case(passages, case.question, case.answers))
            rows.append(table_row(setting, f"the server, {recall}", chosen, answers, time.monotonic() - began))
    whole = ["\n".join(case.passages) for case in found]
    rows.append(table_row(setting, "all that was retrieved (is it there?)", chosen, whole, 0.0))
    usable = [case if case.passages else Case([""], case.question, case.answers) for case in found]
    ways = {name: way for name, way in bench.ways().items() if "no model" in name or "span" in name}
    return rows + bench.answered(setting, usable, ways)


def unanswerable(bench: Bench) -> list[Row]:
    """Precision and recall of saying that the passage does not answer."""
    chosen = cases.unanswerable(bench.data, bench.number)
    rows = []
    for name, one in (("this", bench.checkpoint), ("previous", bench.previous)):
        if one is None:
            continue
        said = np.array([NOT_FOUND.rstrip(".") in one.free(case.passages, case.question) for case in chosen])
        truly = np.array([not case.answers for case in chosen])
        recall = said[truly].astype(float)
        precision = truly[said].astype(float) if said.any() else np.zeros(1)
        rows.append(
            {"checkpoint": name, "n": len(chosen), "said": int(said.sum()), "precision": interval(precision),
             "recall": interval(recall)}
        )  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def made(bench: Bench) -> list[Row]:
    """Facts that only copying gets right: look-alikes, forms and tables, random identifiers, a sentence in a book."""
    number = max(1, bench.number // 3)
    sets = {
        "12 look-alike sentences": cases.lookalikes(number),
        "key-value lines and tables": cases.key_values(number),
        "75 pairs of identifiers": cases.identifiers(bench.data, max(1, bench.number // 10)),
        "a planted sentence in about 600 words of a book": cases.needles(bench.data, number),
    }
    return [row for setting, chosen in sets.items() if chosen for row in bench.answered(setting, chosen)]


def chat(bench: Bench) -> list[Row]:
    """Whether it ends, says anything and does not turn in circles. What it says is printed, not judged."""
    now, rows = bench.checkpoint, list[Row]()
    for said in CHATS:
        answer = now.answerer.free([*now.encoder.begin, *now.encoder(said), now.encoder.end, now.encoder.assistant])
        words = answer.text.split()
        pairs = list(itertools.pairwise(words))
        circles = len(pairs) - len(set(pairs))
        rows.append({"prompt": said, "reply": answer.text, "ended": answer.finished, "repeated_pairs": circles})
        print(rows[-1], flush=True)
    return rows


SUITES: dict[str, Callable[[Bench], list[Row]]] = {
    "prose": prose, "position": position, "gold": gold, "unanswerable": unanswerable, "made": made, "chat": chat,
    "sources": sources, "retrieved": retrieved,
}  # fmt: skip


def shown(value: object) -> str:
    """A cell of a table: a mean with its interval in brackets."""
    if isinstance(value, (list, tuple)) and len(value) == 3:
        return f"{value[0]} ({value[1]} to {value[2]})"
    return str(value).replace("|", "\\|").replace("\n", " ")


def tables(results: dict[str, list[Row]]) -> str:
    """Markdown, one table a suite."""
    parts = []
    for suite, rows in results.items():
        columns = [name for name in rows[0] if name != "seconds"]
        lines = [f"## {suite}", "", f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
        lines += [f"| {' | '.join(shown(row.get(column, '')) for column in columns)} |" for row in rows]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def evaluate(arguments: argparse.Namespace) -> dict[str, list[Row]]:
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    checkpoint = Checkpoint.open(arguments.checkpoint)
    previous = None if arguments.previous is None else Checkpoint.open(arguments.previous)
    span = None if arguments.span is None else load_span_reader(arguments.span)[0].eval()
    bench = Bench(
        data_directory(arguments.data), arguments.out, checkpoint, previous, span, arguments.number,
        arguments.positions, arguments.prose_characters,
    )  # fmt: skip
    file = arguments.out / "figures.json"
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    weights = {"sha256": checkpoint.sha256(), "previous": previous and previous.sha256(), "span": str(arguments.span)}
    own = {"position": "positions", "prose": "prose_characters"}
    results: dict[str, list[Row]] = {}
    for suite in arguments.suites:
        size = own.get(suite, "number")
        asked = weights | {size: getattr(arguments, size)}
        entry = kept.get(suite)
        if entry is None or entry["asked"] != asked:
            print(f"-- {suite}", flush=True)
            kept[suite] = {"asked": asked, "rows": SUITES[suite](bench)}
            file.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        results[suite] = kept[suite]["rows"]
        (arguments.out / "figures.md").write_text(tables(results), encoding="utf-8")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--checkpoint", type=Path, default=Path("weights/fano-reader"))
    parser.add_argument("--previous", type=Path)
    parser.add_argument("--span", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/figures"))
    parser.add_argument("--suites", nargs="+", choices=tuple(SUITES), default=tuple(SUITES))
    parser.add_argument("--number", type=int, default=300)
    parser.add_argument("--positions", type=int, default=65_536)
    parser.add_argument("--prose-characters", type=int, default=400_000)
    parser.add_argument("--threads", type=int, default=1)
    # oneDNN keeps a program for every shape it has seen; prompts differ in length, and memory would not end.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    print(tables(evaluate(parser.parse_args())))


if __name__ == "__main__":
    main()
