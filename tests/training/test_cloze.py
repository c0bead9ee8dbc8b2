import itertools
import random

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from training.cloze import clozes, spans
from training.examples import Context, Encoder, Mixture, TreeSampler

TEXT = (
    "The bridge at Elverton was built by Anna Kerr in 1871 for 300 people. Nobody in the town ever crossed it at night."
)


def test_what_is_asked_for_stands_in_the_text_and_no_longer_in_the_question():
    found = clozes(random.Random(0), TEXT, 20)
    answers = {TEXT[c.start : c.end] for c in found}
    assert {"Elverton", "Anna Kerr", "1871", "300"} <= answers
    assert all(c.question.endswith("?") for c in found)
    for each in found:
        assert TEXT[each.start : each.end] not in each.question


def test_spans_do_not_overlap_and_years_are_no_numbers():
    sentence = TEXT.split(". ")[0]
    found = sorted(spans(sentence), key=lambda span: span[1])
    assert all(one[2] <= other[1] for one, other in itertools.pairwise(found))
    kinds = {sentence[a:b]: kind for kind, a, b in found}
    assert kinds["1871"] == "year"
    assert kinds["300"] == "number"


@pytest.fixture
def encoder():
    special = ["<|unk|>", "<|user|>", "<|assistant|>", "<|end|>"]
    words = [*special, *dict.fromkeys((TEXT + " x Question: [1] ? Not found in the passages.").split())]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<|unk|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Encoder(tokenizer)


def test_a_tree_points_at_the_answers_of_its_made_questions(encoder):
    context, starts = encoder.context("squad1.1", "Bridges", TEXT)
    context.questions = [encoder.question(context, starts, "who built it ?", "Anna Kerr", TEXT.index("Anna"))]
    sampler = TreeSampler([context], encoder, 0, Mixture(cloze=1.0, unanswerable=0.0))
    plain = TreeSampler([context], encoder, 0, Mixture(unanswerable=0.0))
    assert isinstance(context, Context)
    piece = sampler._cut(context, 0, "paragraph")
    assert len(piece.questions) > len(plain._cut(context, 0, "paragraph").questions)
    for question in piece.questions:
        assert [piece.ids[p] for p in question.pointers] == question.answer
