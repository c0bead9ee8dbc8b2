"""Questions that people asked, over the texts they asked them of, joined into one corpus."""

import json
import lzma
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.recall.cases import Case, Corpus, Part
from bench.recall.haystack import CountTokens
from retrieval.passage import Span

SOURCES = ("squad1.1-dev", "nq-gold-eval", "fairytaleqa-val", "tatqa-dev", "afriqa-dev", "wikitablequestions-test")
MOST_OF_A_CORPUS = 120


class Questions:
    """Rows of ``qa_eval``: paragraphs, stories, report tables, Wikipedia tables, and what people asked of them."""

    def __init__(self, path: Path) -> None:
        with lzma.open(path, "rt", encoding="utf-8") as lines:
            rows = [row for row in map(json.loads, lines) if row["source"] in SOURCES]
        self._asked: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            self._asked.setdefault(row["context"], []).append(row)
        # Paragraphs of one title stand together and in their order, as in the document they were taken from.
        self._titles: dict[tuple[str, str], list[str]] = {}
        for context, asked in self._asked.items():
            self._titles.setdefault((asked[0]["source"], asked[0]["title"]), []).append(context)

    def corpora(
        self, count_tokens: CountTokens, num_tokens: int, num_cases: int, rng: random.Random
    ) -> Iterator[Corpus]:
        """Texts of about ``num_tokens`` with questions, evenly from all sources, whose answer stands in the text.

        A short text has few paragraphs, so several texts share the questions; the longest takes all there is.
        """
        num_left = num_cases
        while num_left > 0:
            chosen = self._choose(count_tokens, num_tokens, rng)
            text, starts = self._write(chosen, rng)
            share = num_left if num_tokens >= 65_536 else min(MOST_OF_A_CORPUS // 4, num_left)
            picked = _even_share(
                [row for context in starts for row in self._asked[context] if _stands(row)], share, rng
            )
            cases = [_case(row, starts[row["context"]], len(text)) for row in picked]
            num_left -= max(len(cases), 1)
            yield Corpus(text, tuple(cases))

    def _choose(self, count_tokens: CountTokens, num_tokens: int, rng: random.Random) -> set[str]:
        contexts = sorted(self._asked)
        rng.shuffle(contexts)
        chosen: set[str] = set()
        length = 0
        for context in contexts:
            size = count_tokens(context) + 8
            if length + size > num_tokens and chosen:
                continue
            chosen.add(context)
            length += size
            if length > 0.98 * num_tokens:
                break
        return chosen

    def _write(self, chosen: set[str], rng: random.Random) -> tuple[str, dict[str, int]]:
        titles = [title for title, contexts in self._titles.items() if not chosen.isdisjoint(contexts)]
        rng.shuffle(titles)
        pieces: list[str] = []
        starts: dict[str, int] = {}
        length = 0
        for source, title in titles:
            contexts = [context for context in self._titles[source, title] if context in chosen]
            if title and not contexts[0].startswith(title):
                pieces.append(f"## {title}\n\n")
                length += len(pieces[-1])
            for context in contexts:
                starts[context] = length
                pieces.append(f"{context}\n\n")
                length += len(pieces[-1])
        return "".join(pieces), starts


def _stands(row: dict[str, Any]) -> bool:
    return bool(row["answers"]) and any(start is not None and start >= 0 for start in row["answer_start"] or ())


def _even_share(rows: Sequence[dict[str, Any]], count: int, rng: random.Random) -> list[dict[str, Any]]:
    by_source: dict[str, list[dict[str, Any]]] = {}
    for row in rng.sample(rows, len(rows)):
        by_source.setdefault(row["source"], []).append(row)
    picked: list[dict[str, Any]] = []
    while len(picked) < count and any(by_source.values()):
        for waiting in by_source.values():
            if waiting and len(picked) < count:
                picked.append(waiting.pop())
    return picked


def _case(row: dict[str, Any], start: int, length: int) -> Case:
    places = tuple(
        Span(start + at, start + at + len(answer))
        for answer, at in zip(row["answers"], row["answer_start"], strict=True)
        if at is not None and at >= 0
    )
    return Case(row["question"], (Part(places, tuple(row["answers"])),), row["source"], places[0].start / length)
