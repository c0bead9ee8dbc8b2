"""Sentences written by hand, and what is in them: how much the recognisers find, and that they find nothing else."""

from collections import Counter
from pathlib import Path

import pytest

from retrieval.recognisers import recognise

LAW = (
    "This Agreement binds the Parties hereto. Section 1 and Section 2 hereof apply. The Licensee accepts this "
    "Agreement pursuant to Section 3 hereof.\n\n"
)
LAW_AFTER = "\n\nThis Agreement is made hereunder. The Licensor and the Licensee signed it. Section 4 hereof follows."


def cases() -> list[tuple[str, list[str]]]:
    """Each sentence with what is to be found in it."""
    found = []
    for line in (Path(__file__).parent / "labelled_sentences.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            sentence, _, expected = line.rpartition("|")
            labels = [label.strip() for label in expected.split(";;") if label.strip()]
            found.append((sentence.rstrip().replace("\\n", "\n"), labels))
    return found


def labels_of(sentence: str) -> list[str]:
    """What is found in the sentence, in the same form."""
    start, text = 0, sentence
    if sentence.startswith("law "):
        start, text = len(LAW), LAW + sentence.removeprefix("law ") + LAW_AFTER
    end = len(text) - (len(LAW_AFTER) if start else 0)
    return [
        "obligation" if fact.source == "obligation" else f"{fact.source}={fact.text}"
        for fact in recognise(text)
        if start <= fact.span.start < end
    ]


CASES = cases()


@pytest.mark.parametrize(("sentence", "expected"), CASES, ids=[sentence[:40] for sentence, _ in CASES])
def test_what_a_sentence_holds(sentence, expected):
    assert Counter(labels_of(sentence)) == Counter(expected)
