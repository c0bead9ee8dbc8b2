"""Texts to learn the ranking of retrieval on: contexts of questions joined as documents are, long and short, each asked
what stands in it and what does not, in the words of the text and in others.

Paraphrases are made from the questions themselves: what a question shares with the sentence of its answer is said in
other words or left out, all but the names (``named``) or everything (``wordless``).
"""

import json
import lzma
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from retrieval.embedder import Embedder
from retrieval.lexical_index import stems
from retrieval.words import STOP_WORDS, words
from training.thesaurus import Thesaurus

SEED = 1
# The parts of the titles of each source, none in two. The second makes the long text.
PARTS = (("first", 0.2), ("second", 0.6), ("development", 0.2))
# Characters of contexts, and of prose that nothing is asked about, in a text of size 1; how many times that a part has.
CHARACTERS = {
    "squad1.1": 600_000,
    "fairytaleqa": 250_000,
    "wikitablequestions": 250_000,
    "afriqa": 200_000,
    "nq-gold": 80_000,
    "nq-qed": 20_000,
}
PROSE_CHARACTERS = 400_000
SIZES = {"first": 1.0, "second": 3.0, "development": 1.0}
QUESTIONS = {
    "squad1.1": 400,
    "fairytaleqa": 200,
    "wikitablequestions": 300,
    "afriqa": 300,
    "nq-gold": 250,
    "nq-qed": 50,
}
# Pieces of a text: how many, of so many characters; and how many of its own and of other questions each is asked.
PIECES = ((60, 5_000), (30, 20_000), (12, 150_000))
QUESTIONS_OF_PIECE = 10
# This share of the articles stands under its title.
HEADED = 0.5
PARAPHRASES_OF = 0.5
_WORD = re.compile(r"[^\s?,;:\"()]+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s|\n")


@dataclass(frozen=True)
class Question:
    """``spans`` are where its answers stand, none where the text lacks them; ``wording`` how it was made."""

    source: str
    text: str
    spans: tuple[tuple[int, int], ...]
    wording: str = "as asked"


@dataclass(frozen=True)
class Text:
    """A text and what it is asked."""

    text: str
    questions: list[Question]


def read_texts(path: Path, prose: Path, embedder: Embedder) -> Mapping[str, list[Text]]:
    """For each part its whole text first, then pieces of it. ``path`` has questions, ``prose`` documents, as JSON lines
    in xz."""
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        rows = [row for row in map(json.loads, lines) if row["source"] in CHARACTERS]
    with lzma.open(prose, "rt", encoding="utf-8") as lines:
        books = [json.loads(line)["text"] for line in lines]
    thesaurus = Thesaurus(embedder, (row["question"] for row in rows))
    parts: dict[str, list[dict]] = {name: [] for name, _ in PARTS}
    for source in CHARACTERS:
        titles = sorted({row["title"] for row in rows if row["source"] == source})
        random.Random(f"{SEED}{source}").shuffle(titles)
        first, part_of = 0, {}
        for name, part in PARTS:
            last = len(titles) if name == PARTS[-1][0] else first + round(part * len(titles))
            part_of |= dict.fromkeys(titles[first:last], name)
            first = last
        for row in rows:
            if row["source"] == source:
                parts[part_of[row["title"]]].append(row)
    whole = {
        name: _join(chosen, books[number :: len(parts)], SIZES[name], thesaurus, random.Random(f"{SEED}{name}"))
        for number, (name, chosen) in enumerate(parts.items())
    }
    made = {}
    for name, text in whole.items():
        draw = random.Random(f"{SEED}{name} pieces")
        others = [q for other, one in whole.items() if other != name for q in one.questions]
        absent = [replace(q, spans=()) for q in draw.sample(others, min(len(others), len(text.questions) // 2))]
        made[name] = [Text(text.text, text.questions + absent), *_pieces(text, draw)]
    return made


def _pieces(text: Text, draw: random.Random) -> Iterator[Text]:
    """Stretches of ``text``; what is absent from one is asked of the rest, so that the subject alone does not tell."""
    for count, size in PIECES:
        for _ in range(count):
            border = text.text.rfind("\n\n", 0, draw.randrange(max(1, len(text.text) - size)))
            start = border + 2 if border >= 0 else 0
            end = max(text.text.rfind("\n\n", start, start + size), start + size // 2)
            inside = [q for q in text.questions if all(start <= a and b <= end for a, b in q.spans)]
            outside = [q for q in text.questions if all(b <= start or end <= a for a, b in q.spans)]
            asked = [
                replace(q, spans=tuple((a - start, b - start) for a, b in q.spans))
                for q in draw.sample(inside, min(len(inside), QUESTIONS_OF_PIECE))
            ]
            absent = [replace(q, spans=()) for q in draw.sample(outside, min(len(outside), len(asked)))]
            yield Text(text.text[start:end], asked + absent)


def _join(rows: Sequence[dict], books: Sequence[str], size: float, thesaurus: Thesaurus, draw: random.Random) -> Text:
    articles: list[tuple[str, list[str]]] = []
    for source, limit in CHARACTERS.items():
        contexts: dict[str, dict[str, None]] = {}
        for row in rows:
            if row["source"] == source:
                contexts.setdefault(row["title"], {})[row["context"]] = None
        titles, length = sorted(contexts), 0
        draw.shuffle(titles)
        for title in titles:
            if length < limit * size:
                articles.append((title, [*contexts[title]]))
                length += sum(map(len, contexts[title]))
    chapter, length = 20_000, 0
    while length < PROSE_CHARACTERS * size:
        book = draw.choice(books)
        start = draw.randrange(max(1, len(book) - chapter))
        articles.append(("", [book[start : start + chapter]]))
        length += chapter
    draw.shuffle(articles)
    offsets: dict[str, int] = {}
    pieces: list[str] = []
    length = 0
    for title, contexts_of in articles:
        if title and draw.random() < HEADED:
            pieces.append(f"## {title.replace('_', ' ')}")
            length += len(pieces[-1]) + 2
        for context in contexts_of:
            if context not in offsets:
                offsets[context] = length
                pieces.append(context)
                length += len(context) + 2
    text = "\n\n".join(pieces)
    questions: list[Question] = []
    for source, count in QUESTIONS.items():
        asked = [row for row in rows if row["source"] == source and row["context"] in offsets and row["answer_start"]]
        asked = [row for row in asked if max(row["answer_start"]) >= 0]
        for row in draw.sample(asked, min(round(count * size), len(asked))):
            begin, places = offsets[row["context"]], zip(row["answer_start"], row["answers"], strict=True)
            spans = tuple((begin + place, begin + place + len(answer)) for place, answer in places if place >= 0)
            question = Question(source, row["question"], spans)
            questions.append(question)
            questions += [q for q in paraphrases(question, text, thesaurus, draw) if draw.random() < PARAPHRASES_OF]
    return Text(text, questions)


def paraphrases(question: Question, text: str, thesaurus: Thesaurus, draw: random.Random) -> Iterator[Question]:
    """``question`` in words that the sentence of its answer in ``text`` lacks, with the names it has and without; none
    where too little would be left to ask by."""
    there = frozenset(stems(words(_sentence(text, *question.spans[0]))))
    kept: dict[str, list[str]] = {"named": [], "wordless": []}
    num_names = num_said = num_left_out = 0
    for number, match in enumerate(_WORD.finditer(question.text)):
        word = match[0]
        own = [part for part in words(word) if part not in STOP_WORDS]
        if not own:
            kept["named"].append(word)
            kept["wordless"].append(word)
        elif not there.intersection(stems(own)):
            num_said += 1
            kept["named"].append(word)
            kept["wordless"].append(word)
        elif number > 0 and (word[:1].isupper() or any(map(str.isdigit, word))):
            num_names += 1
            kept["named"].append(word)
        elif other := thesaurus.other(word, there, draw):
            num_said += 1
            kept["named"].append(other)
            kept["wordless"].append(other)
        else:
            num_left_out += 1
    if num_said > num_left_out and num_names:
        yield replace(question, text=" ".join(kept["named"]) + "?", wording="named")
    if num_said >= 2 and num_said > num_left_out + num_names:
        yield replace(question, text=" ".join(kept["wordless"]) + "?", wording="wordless")


def _sentence(text: str, start: int, end: int) -> str:
    before = max((match.end() for match in _SENTENCE_END.finditer(text, max(0, start - 400), start)), default=start)
    after = _SENTENCE_END.search(text, end)
    return text[before : after.start() if after else len(text)]
