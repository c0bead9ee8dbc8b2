"""Texts to learn the ranking on: spans are true in texts and pieces, paraphrases share no word with the answer."""

import json
import lzma
import random

import pytest

from retrieval.embedder import HashEmbedder
from retrieval.lexical_index import stems
from retrieval.words import STOP_WORDS, words
from training import ranking_texts
from training.ranking_texts import Question, paraphrases, read_texts
from training.thesaurus import Thesaurus


class OneMeaning:
    """Every word is as near to every other."""

    dimension, fingerprint = 8, "one"

    def embed_passages(self, texts):
        return HashEmbedder(dimension=8).embed_passages(["same"] * len(texts))


def test_a_paraphrase_shares_only_names_with_the_sentence_of_its_answer():
    text = "It rained. Fenwick sold the old mill in Dunmarrow for ninety crowns. The geese left."
    start = text.index("ninety")
    question = Question(
        "squad1.1", "For how much money did old Fenwick sell his mill, Dunmarrow?", ((start, start + 13),)
    )
    thesaurus = Thesaurus(OneMeaning(), ["bargain lantern cheese bargain lantern cheese " * 5, "sell mill old " * 9])
    made = {each.wording: each for each in paraphrases(question, text, thesaurus, random.Random(0))}
    assert made.keys() == {"named", "wordless"}
    there = set(stems(words("Fenwick sold the old mill in Dunmarrow for ninety crowns"))) - STOP_WORDS
    left = {wording: there & set(stems(words(each.text))) for wording, each in made.items()}
    assert left == {"named": {"fenwick", "dunmarrow"}, "wordless": set()}
    assert all(each.spans == question.spans for each in made.values())


@pytest.fixture
def data(tmp_path):
    rows = []
    for number in range(60):
        context = f"The {number}th keeper was Anna Holm{number}. She lit it with oil. " + "Rain fell again. " * 30
        answer = f"Anna Holm{number}"
        rows.append({"source": "squad1.1", "title": f"Keeper_{number}", "context": context,
                     "question": f"Who was the {number}th keeper of the lamp?", "answers": [answer],
                     "answer_start": [context.index(answer)]})  # fmt: skip
    books = [{"text": "A ship went by.\n\n" * 2000}] * 3
    for name, lines in (("qa", rows), ("books", books)):
        with lzma.open(tmp_path / name, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    return tmp_path


def test_spans_hold_the_answers_in_whole_texts_and_in_pieces(data, monkeypatch):
    monkeypatch.setattr(ranking_texts, "PROSE_CHARACTERS", 20_000)
    parts = read_texts(data / "qa", data / "books", OneMeaning())
    asked = [(text.text, question) for texts in parts.values() for text in texts for question in text.questions]
    there = [(text, question) for text, question in asked if question.spans]
    assert len(there) > 100 and len(asked) > len(there)
    for text, question in there:
        assert all("Anna Holm" in text[start:end] for start, end in question.spans)
    assert any("## Keeper " in text for text, _ in asked)
    for text, question in asked:
        if not question.spans and question.wording == "as asked":
            number = next(word for word in question.text.split() if word.endswith("th"))
            assert f"The {number} keeper" not in text
