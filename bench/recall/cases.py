"""What is asked of a text, and what must be found and answered."""

from collections.abc import Sequence
from dataclasses import dataclass

from retrieval.passage import Span


@dataclass(frozen=True)
class Part:
    """One thing that must be found: any of these places of the text, and any of these answers is right."""

    places: tuple[Span, ...]
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """A question. It is found when every part is; ``group`` is what kinds of one task are told apart by.

    ``depth`` is where in the text the first part stands, 0 to 1.
    """

    question: str
    parts: tuple[Part, ...]
    group: str
    depth: float

    @classmethod
    def of(cls, text: str, question: str, wanted: Sequence[tuple[int, str, str]], group: str) -> "Case":
        """Of (start, sentence, answer) triples of ``text``."""
        parts = []
        for start, sentence, answer in wanted:
            assert text.startswith(sentence, start), f"{sentence!r} does not stand at {start}"
            assert answer in sentence, f"{answer!r} is not in {sentence!r}"
            parts.append(Part((Span(start, start + len(sentence)),), (answer,)))
        return cls(question, tuple(parts), group, wanted[0][0] / max(len(text), 1))


@dataclass(frozen=True)
class Corpus:
    """A text and what is asked of it."""

    text: str
    cases: tuple[Case, ...]


def num_found(case: Case, spans: Sequence[Span]) -> int:
    """How many parts of ``case`` stand whole in one of ``spans``."""
    return sum(
        any(span.start <= place.start and place.end <= span.end for place in part.places for span in spans)
        for part in case.parts
    )
