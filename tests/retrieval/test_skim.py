"""Rows that may mean what a question asks without a word of it: told from single words, compared by meaning then."""

import re
from pathlib import Path

import numpy as np
import pytest

from retrieval.embedder import HashEmbedder, MiniLMEmbedder
from retrieval.prompt_archive import LIKELY_SHARE, PromptArchive
from retrieval.prompt_part import PromptPart
from retrieval.skim import Skim, Skims, likely_rows

# Pairs of words that mean the same, and some that say nothing. The last three are a little like all others.
VOCABULARY = ["[UNK]", "the", ".", "ship", "vessel", "captain", "skipper", "sank", "foundered", "lamp", "oil", "sea"]
SILENT = 3


class Speller(HashEmbedder):
    """Words and their likeness by ``VOCABULARY``; each pair of words has one vector. Counts the texts it embeds."""

    def __init__(self) -> None:
        super().__init__(dimension=64)
        self.num_embedded = 0

    def embed_passages(self, texts):
        self.num_embedded += len(texts)
        return super().embed_passages([re.sub(r"vessel", "ship", re.sub(r"foundered", "sank", text)) for text in texts])

    def word_pieces(self, texts):
        known = {word: number for number, word in enumerate(VOCABULARY)}
        return [[known.get(word, 0) for word in re.findall(r"\w+|\.", text.lower())] for text in texts]

    def likeness(self, pieces):
        pair = (np.arange(len(VOCABULARY)) + 1) // 2
        like = np.where(pair == pair[list(pieces), np.newaxis], 0.8, np.where(pair < pair[-3], 0.1, 0.4))
        like[np.arange(len(pieces)), list(pieces)] = 1.0
        return like.astype(np.float32)

    def silent_pieces(self):
        return np.arange(len(VOCABULARY)) < SILENT


def likely(question: str, *texts: list[str], most: int) -> list[list[int]]:
    embedder = Speller()
    return likely_rows(embedder, question, [Skim.of(embedder, rows) for rows in texts], most)


def test_rows_with_words_like_those_of_the_question_are_likely():
    first = ["The sea.", "The oil lamp.", "The vessel foundered.", "The sea.", "The sea."]
    second = ["The ship sank.", "The lamp.", "The sea."]
    assert likely("The ship sank", first, second, most=1) == [[], [0]]
    assert likely("The ship sank", first, second, most=2) == [[2], [0]]
    assert likely("The skipper of the vessel", first, second, most=2) == [[2], [0]]
    assert likely("The lamp", first, second, most=2) == [[1], [1]]
    # Equal ones in reading order, and as many as there are.
    assert likely("The captain", ["The sea."] * 4, most=3) == [[0, 1, 2]]
    assert likely("The ship", first, second, most=99) == [[0, 1, 2, 3, 4], [0, 1, 2]]
    assert likely("", first, second, most=2) == [[], []] and likely("ship", most=2) == []


def test_a_word_that_all_rows_have_tells_nothing():
    rows = ["The ship sank in the sea."] + ["The ship ship on the sea."] * 6 + ["The captain foundered."]
    assert likely("The ship foundered", rows, most=2) == [[0, 7]]


def test_a_rare_word_tells_more_than_a_common_one():
    assert likely("ship lamp", [*["The lamp."] * 5, "The ship."], most=1) == [[5]]


def test_a_word_that_is_meant_counts_for_more_than_several_a_little_like_it():
    rows = ["The oil.", "The vessel.", "The sea."]
    assert likely("The ship, the captain, sank", rows * 3, most=3) == [[1, 4, 7]]


@pytest.fixture
def archive(tmp_path: Path) -> PromptArchive:
    return PromptArchive(tmp_path / "prompts", Speller(), most_rows=20)


def test_a_prompt_is_skimmed_only_where_words_find_nothing(archive, monkeypatch):
    rows = [f"Paragraph {number} is of the lamp, of oil and of the weather there." for number in range(400)]
    rows[250] = "A vessel foundered, and nobody was seen of it for many days."
    embedder = archive._embedder
    # Nothing is said to be found by meaning alone, whatever the embedder.
    monkeypatch.setattr("retrieval.search.DENSE_FLOOR", 2.0)
    with archive.opened("acme", [PromptPart("messages.0", 0, "\n\n".join(rows))]) as prompt:
        before = prompt.index_bytes
        found = prompt.search("Tell of the lamp", 3)
        assert found.found and "of the question" in found.reason and prompt.texts[0].skim is None
        embedder.num_embedded = 0
        found = prompt.search("ship sank", 3)
        assert rows[250] in found.passages[0].text and found.reason.endswith("like those of the question)")
        assert embedder.num_embedded <= 400 // LIKELY_SHARE + 3
        skim = prompt.texts[0].skim
        assert skim is not None and prompt.index_bytes == before + skim.num_bytes
        again = prompt.search("ship sank", 3)
        assert again.passages == found.passages and prompt.texts[0].skim is skim
        held = archive.num_bytes
    assert held >= prompt.index_bytes


def test_an_embedder_that_cannot_skim_is_not_asked_to(tmp_path):
    assert not isinstance(HashEmbedder(), Skims) and isinstance(Speller(), Skims)
    archive = PromptArchive(tmp_path / "prompts", HashEmbedder(dimension=32), most_rows=20)
    with archive.opened("acme", [PromptPart("messages.0", 0, "The lamp hangs here. " * 200)]) as prompt:
        assert prompt.search("ship", 3).reason.endswith("(by meaning what has words of the question)")
        assert prompt.texts[0].skim is None


def test_word_pieces_of_minilm_are_like_those_of_like_meaning():
    minilm = MiniLMEmbedder()
    assert isinstance(minilm, Skims)
    ((ship,), (boat,), (tax,), silent) = minilm.word_pieces(["ship", "boat", "tax", "Who was it?"])
    like = minilm.likeness([ship, tax])
    assert like[0, ship] == pytest.approx(1.0, abs=1e-3) == like[1, tax]
    assert like[0, boat] > 0.3 > like[0, tax]
    assert minilm.silent_pieces()[silent].all() and not minilm.silent_pieces()[[ship, boat, tax]].any()
