"""Questions made from a passage's own sentences: a span is taken out and asked for with the words around it.

After Lewis et al. 2019 ("Unsupervised question answering by cloze translation"), without their translation model. Such
a question says nothing new, but which of a sentence's spans it asks for only its words and their order tell.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

SENTENCE = re.compile(r"[^.!?\s][^.!?\n]*(?:[.!?](?!\s+[A-Z\"(]|\s*$)[^.!?\n]*)*")
YEAR = re.compile(r"\b(?:1\d{3}|20[0-2]\d)s?\b")
NUMBER = re.compile(r"\$?\b\d[\d,.]*\d?(?: (?:million|billion|thousand|percent))?\b%?")
NAME = re.compile(r"\b[A-Z][\w-]*(?:(?: (?:of|the|and|de|von|van))* [A-Z][\w-]*)*")
PHRASE = re.compile(r"\b[a-z][a-z-]{2,}(?: [a-z][a-z-]{2,}){0,2}\b")
FUNCTION = frozenset(
    "the a an of in on at to for from by with as and or but nor is are was were be been being has have had do does did "
    "not no that which who whom whose this these those it its they their them he his him she her we our you your i my "
    "into onto over under after before between during through about against among also both than then there when "
    "where while such more most other some any all can could may might will would shall should must if so only very "
    "because since until although however often usually many much several each every one two".split()
)
ASKED = {
    "year": ("when", "when", "what year", "in what year", "which year"),
    "number": ("how many", "how many", "how much", "what"),
    "name": ("who", "who", "what", "which", "where", "whom"),
    "phrase": ("what", "what", "what", "which", "what kind of", "how"),
}


@dataclass(frozen=True, slots=True)
class Cloze:
    question: str
    start: int  # of the answer in the text
    end: int


def spans(sentence: str) -> list[tuple[str, int, int]]:
    """What can be asked for: (kind, start, end), none inside another."""
    found = [("year", *m.span()) for m in YEAR.finditer(sentence)]
    for kind, pattern in (("number", NUMBER), ("name", NAME), ("phrase", PHRASE)):
        for match in pattern.finditer(sentence):
            start, end = match.span()
            if kind == "name" and " " not in match[0] and (start == 0 or match[0].lower() in FUNCTION):
                continue  # a sentence's first word has a capital anyway
            for part in _content(match[0], start) if kind == "phrase" else [(start, end)]:
                if all(part[1] <= low or high <= part[0] for _, low, high in found):
                    found.append((kind, *part))
    return found


def _content(text: str, at: int) -> list[tuple[int, int]]:
    """The runs of words in `text` that are not function words."""
    runs: list[tuple[int, int]] = []
    open_run = False
    for match in re.finditer(r"\S+", text):
        if match[0] in FUNCTION:
            open_run = False
        elif open_run:
            runs[-1] = (runs[-1][0], at + match.end())
        else:
            runs.append((at + match.start(), at + match.end()))
            open_run = True
    return runs


def asked(rng: random.Random, sentence: str, kind: str, start: int, end: int) -> str:
    """The question: the words before and after the span, some left out, in one of three orders."""
    reach = rng.randint(3, 12)
    before, after = sentence[:start].split()[-reach:], sentence[end:].split()[:reach]
    while before and before[-1].lower() in {"the", "a", "an"}:
        before.pop()
    missing = rng.choice((0.0, 0.1, 0.25))
    before, after = ([w for w in words if rng.random() >= missing] for words in (before, after))
    word = rng.choice(ASKED[kind])
    order = rng.random()
    parts = (
        [*before, word, *after] if order < 0.3 else [word, *after, *before] if order < 0.65 else [word, *before, *after]
    )
    text = " ".join(parts).strip(" ,;:")
    return text[:1].upper() + text[1:] + "?"


def clozes(rng: random.Random, text: str, most: int) -> list[Cloze]:
    """Up to `most` questions about sentences of 6 to 50 words, names and numbers before other phrases."""
    found: list[tuple[float, int, str, str, int, int]] = []
    for match in SENTENCE.finditer(text):
        sentence, at = match[0], match.start()
        if 6 <= len(sentence.split()) <= 50:
            for kind, start, end in spans(sentence):
                found.append((rng.random() + (kind == "phrase") * 0.5, at, sentence, kind, start, end))
    found.sort(key=lambda each: each[0])
    return [Cloze(asked(rng, s, kind, a, b), at + a, at + b) for _, at, s, kind, a, b in found[:most]]
