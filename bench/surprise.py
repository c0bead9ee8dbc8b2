"""Of what kind the words are that surprise the model, and whether answers stand in them, against words at random.

Each file has JSON lines with a ``text``, or with a ``context``, a ``question`` and ``answers`` with their places; of
these the contexts under one title are a document. A word is told by its form: with a digit, with signs or capitals
inside, under a fact that a recogniser finds, with a capital though no sentence begins there; all else is a plain word.
Answers are met where a surprising span touches one.

    python -m bench.surprise FILE.jsonl.xz [FILE ...] [--documents 6] [--characters 40000] [--show 5]
"""

import argparse
import json
import lzma
import random
import re
import time
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from model.config import EngineConfig
from model.engine.engine import Engine
from model.engine.loader import load_engine
from model.engine.request import GenerationRequest, SamplingParams
from model.policy import AttentionPolicy, PolicyName
from retrieval.passage import FactKind, Span
from retrieval.recognisers import recognise
from retrieval.surprises import Surprise
from server.documents.reading import PIECE_TOKENS, document_ids
from server.documents.surprise import Placement, SurpriseFinder
from server.services import embedded_checkpoint

MARKED = re.compile(r"[@/_.]|(?<=[a-z])[A-Z]|^[A-Z]{2,}$")
SENTENCE_START = re.compile(r"(?:^|[.!?:\n\"“])\s*$")
VALUES = (
    FactKind.IDENTIFIER,
    FactKind.AMOUNT,
    FactKind.DATE,
    FactKind.DURATION,
    FactKind.ORGANISATION,
    FactKind.PERSON,
)


class Text(NamedTuple):
    """A document, and where the answers to questions about it stand."""

    text: str
    answers: Sequence[Span] = ()


def texts_of(path: Path, number: int, characters: int, rng: random.Random) -> list[Text]:
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    if "text" in rows[0]:
        long = [row["text"] for row in rows if len(row["text"]) > 4000]
        return [Text(text[:characters]) for text in rng.sample(long, min(number, len(long)))]
    titled: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["title"] and row["answer_start"]:
            titled[row["title"]][row["context"]].append(row)
    long_titles = sorted(title for title, contexts in titled.items() if sum(map(len, contexts)) > 4000)
    return [joined(titled[title]) for title in rng.sample(long_titles, min(number, len(long_titles)))]


def joined(contexts: dict[str, list[dict[str, Any]]]) -> Text:
    """Contexts one after another, with the answers where they now stand."""
    parts: list[str] = []
    answers: list[Span] = []
    position = 0
    for context, rows in contexts.items():
        for row in rows:
            start = row["answer_start"][0]
            if start >= 0:
                answers.append(Span(position + start, position + start + len(row["answers"][0])))
        parts.append(context)
        position += len(context) + 2
    return Text("\n\n".join(parts), answers)


def surprises(engine: Engine, text: str, name: str) -> list[Surprise]:
    """What the server would keep of ``text``."""
    ids = document_ids(engine.tokenizer, text)
    placement = Placement.of(engine.tokenizer, text)
    assert placement is not None, "the prompt says another text"
    finder = SurpriseFinder(engine.tokenizer, placement, lambda start, end: text[start:end])
    found: list[Surprise] = []
    for first in range(0, len(ids), PIECE_TOKENS):
        read = ids[: first + PIECE_TOKENS]
        sampling = SamplingParams(max_tokens=0)
        request = GenerationRequest(
            f"{name}.{first}", read, sampling, tenant=name, is_background=True, surprisals_from=max(1, first)
        )
        engine.submit(request)
        while engine.has_work():
            for event in engine.step():
                assert event.usage is not None and event.usage.surprisals is not None
                bits = list(event.usage.surprisals)
                found += finder.find(read[first:], [0.0] * (len(read) - first - len(bits)) + bits)
    return found


def kind(text: str, span: Span, facts: Sequence[Span]) -> str:
    word = text[span.start : span.end]
    if any(char.isdigit() for char in word):
        return "number or code"
    if MARKED.search(word):
        return "signs or capitals"
    at = bisect_right(facts, span.start, key=lambda fact: fact.start)
    if any(fact.start <= span.start and span.end <= fact.end for fact in facts[max(0, at - 3) : at]):
        return "recognised"
    if word[0].isupper() and not SENTENCE_START.search(text[max(0, span.start - 4) : span.start]):
        return "name"
    return "word"


def told(name: str, counts: Counter[str], met: int, answers: int, characters: int) -> None:
    total = sum(counts.values())
    kinds = ", ".join(f"{each} {100 * count / total:.1f}" for each, count in counts.most_common())
    useful = 100 * (1 - counts["word"] / total)
    meets = f"; {met} of {answers} answers met" if answers else ""
    print(f"{name:34} {total:6} spans of {characters:7} characters, no plain words {useful:5.1f} % ({kinds}){meets}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--documents", type=int, default=6, help="of each file")
    parser.add_argument("--characters", type=int, default=40_000, help="most of each document")
    parser.add_argument("--show", type=int, default=0, help="so many of the most surprising of each document")
    parser.add_argument("--seed", type=int, default=5)
    arguments = parser.parse_args()
    policy = AttentionPolicy(PolicyName.WINDOW)
    engine, _ = load_engine(
        embedded_checkpoint(), EngineConfig(num_slots=2, max_context_tokens=1_000_000, policy=policy)
    )
    rng = random.Random(arguments.seed)
    for path in arguments.files:
        both: dict[str, Counter[str]] = {"surprising": Counter(), "words at random": Counter()}
        met, characters = Counter[str](), Counter[str]()
        answers, begun, num_characters = 0, time.process_time(), 0
        for place, document in enumerate(texts_of(path, arguments.documents, arguments.characters, rng)):
            text = document.text
            found = surprises(engine, text, f"{path.name}.{place}")
            facts = sorted(fact.span for fact in recognise(text) if fact.kind in VALUES)
            words = [Span(*match.span()) for match in re.finditer(r"\w[^\s—…]*\w", text)]
            spans = {
                "surprising": [each.span for each in found],
                "words at random": rng.sample(words, min(len(words), len(found))),
            }
            for name, chosen in spans.items():
                both[name].update(kind(text, span, facts) for span in chosen)
                characters[name] += sum(map(len, chosen))
                met[name] += sum(
                    any(span.start < answer.end and answer.start < span.end for span in chosen)
                    for answer in document.answers
                )
            answers += len(document.answers)
            num_characters += len(text)
            for each in sorted(found, key=lambda each: -each.bits)[: arguments.show]:
                print(f"    {each.bits:6.1f}  {text[each.span.start : each.span.end]!r}")
        print(f"{path.name}: {num_characters} characters, {time.process_time() - begun:.1f} s of CPU")
        for name, counts in both.items():
            told(f"  {name}", counts, met[name], answers, characters[name])


if __name__ == "__main__":
    main()
