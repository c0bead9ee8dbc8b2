import random

import pytest
from fakes_engine import CORPUS, write_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from model.engine.request import EvidenceSpan
from model.engine.token_trie import TokenTrie
from model.engine.verbatim import VerbatimConstraint
from model.engine.words import WordBorders, words
from model.tokenizer import Tokenizer

FAMILY = "👨\u200d👩\u200d👧"
PIECES = "$1,234.50|A-1234.5/x|the|rent|50%|größer|नि|中文|e\u0301|_a| | | |\n|.|,|(|)|\"|-|'|.5|1|2".split("|")
EVIDENCE = st.lists(
    st.lists(st.sampled_from([*PIECES, FAMILY]), max_size=14).map("".join)
    | st.text(max_size=12)
    | st.sampled_from(CORPUS),
    min_size=1,
    max_size=3,
)
WORDS = """
    A-1234.5/x foo_bar 12,345.67 $1,234.50 me@x.org 2024-01-02 50% -5 +49 #12 §12 it's parties’s http://x.org/a
    20°C C++ e\u0301te\u0301 नि 10–20 .5 -$3.50 5€ Köln 7B 12.3 U.S don’t a\u200db x²
""".split()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def trie(tokenizer: Tokenizer) -> TokenTrie:
    return TokenTrie(tokenizer.token_bytes, tokenizer.vocab_size, tokenizer.eos_ids)


def found(text: str) -> list[str]:
    return [text[start:end] for start, end in words(text)]


@pytest.mark.parametrize("word", WORDS)
def test_one_word(word: str) -> None:
    assert found(word) == [word]
    assert found(f" ({word}) ") == [word]
    assert found(f"the {word}, {word}") == ["the", word, word]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It ended in 1999. Then 12, 13 came...", ["It", "ended", "in", "1999", "Then", "12", "13", "came"]),
        ("- item", ["item"]),
        ("-item", ["item"]),
        ("red,blue", ["red", "blue"]),
        ("a-", ["a"]),
        ("中文x", ["中", "文", "x"]),
        (FAMILY, []),
        ("foo...5", ["foo", ".5"]),
        ("", []),
        (" .,!? ", []),
        ("a—b", ["a", "b"]),
        ("5%\u0301 x", ["5%\u0301", "x"]),
    ],
)
def test_words_of_a_text(text: str, expected: list[str]) -> None:
    assert found(text) == expected


def test_a_long_run_of_marks_is_one_word() -> None:
    text = "e" + "\u0301" * 50_000
    assert found(text) == [text]


def test_borders_take_the_punctuation_that_belongs_to_the_word() -> None:
    text = 'He said: "(Yes.)" twice.'
    borders = WordBorders(text)
    starts = [text[place:] for place in range(len(text) + 1) if borders.starts[place]]
    assert starts == [text, "said: " + text[9:], '"(Yes.)" twice.', '(Yes.)" twice.', 'Yes.)" twice.', "twice."]
    ends = [text[:place][-5:] for place in range(len(text) + 1) if borders.ends[place]]
    assert ends == ["He", " said", '"(Yes', "(Yes.", "Yes.)", 'es.)"', "twice", "wice."]


@given(texts=EVIDENCE)
@settings(deadline=None)
def test_no_border_is_inside_a_word(texts: list[str]) -> None:
    for text in texts:
        borders = WordBorders(text)
        for start, end in words(text):
            assert borders.starts[start] and borders.ends[end]
            assert not any(borders.starts[start + 1 : end]) and not any(borders.ends[start + 1 : end])


def has_word(texts: list[str]) -> bool:
    return any(found(text) for text in texts)


def assert_legal(texts: list[str], spans: list[EvidenceSpan]) -> list[str]:
    quotes = []
    for span in spans:
        text = texts[span.evidence_index]
        borders = WordBorders(text)
        assert borders.starts[span.start] and borders.ends[span.end] and span.start < span.end
        quotes.append(text[span.start : span.end])
    return quotes


@given(texts=EVIDENCE, seed=st.integers(0, 2**32), max_tokens=st.integers(1, 30), max_spans=st.integers(1, 3))
@settings(deadline=None, max_examples=300)
def test_any_model_writes_evidence(
    tokenizer: Tokenizer, trie: TokenTrie, texts: list[str], seed: int, max_tokens: int, max_spans: int
) -> None:
    dice = random.Random(seed)
    constraint = VerbatimConstraint(texts, trie, max_spans)
    taken: list[int] = []
    shown, ended = "", False
    for _ in range(max_tokens):
        allowed = constraint.allowed()
        assert allowed == sorted(set(allowed)) and allowed
        choice = dice.choice(allowed)
        if choice in tokenizer.eos_ids:
            ended = True
            break
        taken.append(choice)
        constraint.advance(choice)
        assert constraint.text.startswith(shown)
        shown = constraint.text
    spans = constraint.result()
    assert len(spans) <= max_spans
    answer = " ".join(assert_legal(texts, spans))
    assert constraint.answer() == answer
    assert answer.startswith(shown)
    assert bool(answer) == has_word(texts)
    decoded = tokenizer.decode(taken)
    if ended:
        assert answer == decoded
    elif shown:
        assert decoded.encode().startswith(answer.encode()) and answer == shown
    else:
        # Cut off inside the first word: the answer is that whole word.
        assert len(spans) == bool(answer)
        written = b"".join(map(tokenizer.token_bytes, taken)).removeprefix(b" ")
        assert answer.encode().startswith(written)


@given(texts=EVIDENCE, data=st.data())
@settings(deadline=None, max_examples=200)
def test_every_legal_span_can_be_written(
    tokenizer: Tokenizer, trie: TokenTrie, texts: list[str], data: st.DataObject
) -> None:
    legal = [
        (index, start, end)
        for index, text in enumerate(texts)
        for borders in [WordBorders(text)]
        for start in range(len(text) + 1)
        if borders.starts[start]
        for end in range(start + 1, len(text) + 1)
        if borders.ends[end]
    ]
    if not legal:
        return
    index, start, end = data.draw(st.sampled_from(legal))
    constraint = VerbatimConstraint(texts, trie)
    quote = texts[index][start:end]
    for token_id in tokenizer.encode(quote).ids:
        assert token_id in constraint.allowed()
        constraint.advance(token_id)
    assert tokenizer.eos_ids <= set(constraint.allowed())
    assert assert_legal(texts, constraint.result()) == [quote]
    assert constraint.text == quote


def write(constraint: VerbatimConstraint, tokenizer: Tokenizer, text: str) -> None:
    for token_id in tokenizer.encode(text).ids:
        constraint.advance(token_id)


def test_the_earliest_of_equal_places_is_taken(tokenizer: Tokenizer, trie: TokenTrie) -> None:
    constraint = VerbatimConstraint(["a rental car", "the rent, the rent"], trie)
    write(constraint, tokenizer, "rent")
    assert constraint.result() == [EvidenceSpan(1, 4, 8)]
    constraint = VerbatimConstraint(["x", "the rent, the rent."], trie)
    write(constraint, tokenizer, "the rent")
    assert constraint.result() == [EvidenceSpan(1, 0, 8)]


def test_the_end_is_not_allowed_inside_a_word_or_before_one(tokenizer: Tokenizer, trie: TokenTrie) -> None:
    constraint = VerbatimConstraint(["invoice A-1234.5/x is due"], trie)
    for text in ("", "A", "A-", "A-1234", "A-1234.5/"):
        constraint = VerbatimConstraint(["invoice A-1234.5/x is due"], trie)
        write(constraint, tokenizer, text)
        assert not tokenizer.eos_ids & set(constraint.allowed()), text
        assert constraint.text == ""
    write(constraint, tokenizer, "")
    assert constraint.answer() == "A-1234.5/x"


def test_a_cut_answer_ends_at_the_last_word_that_was_whole(tokenizer: Tokenizer, trie: TokenTrie) -> None:
    constraint = VerbatimConstraint(["the cat sat. the category"], trie)
    write(constraint, tokenizer, "the categ")
    assert constraint.text == "the cat"
    assert constraint.answer() == "the cat"
    assert constraint.result() == [EvidenceSpan(0, 0, 7)]


def test_nothing_runs_on_into_the_next_evidence(tokenizer: Tokenizer, trie: TokenTrie) -> None:
    constraint = VerbatimConstraint(["thirty days", "dayspring"], trie)
    write(constraint, tokenizer, "thirty days")
    assert set(constraint.allowed()) == tokenizer.eos_ids
    assert constraint.is_complete


def test_space_after_the_last_word_leads_nowhere(tokenizer: Tokenizer, trie: TokenTrie) -> None:
    constraint = VerbatimConstraint(["end   "], trie)
    write(constraint, tokenizer, "end")
    assert set(constraint.allowed()) == tokenizer.eos_ids


def test_spans_may_follow_one_another(tokenizer: Tokenizer, trie: TokenTrie) -> None:
    texts = ["rent is due", "on Monday only"]
    constraint = VerbatimConstraint(texts, trie, max_spans=2)
    write(constraint, tokenizer, "rent is Monday")
    assert constraint.result() == [EvidenceSpan(0, 0, 7), EvidenceSpan(1, 3, 9)]
    assert constraint.text == constraint.answer() == "rent is Monday"
    with pytest.raises(ValueError, match="not allowed"):
        write(constraint, tokenizer, "rent")


def test_fewest_spans_win(tokenizer: Tokenizer, trie: TokenTrie) -> None:
    constraint = VerbatimConstraint(["rent", "is", "rent is due"], trie, max_spans=3)
    write(constraint, tokenizer, "rent is")
    assert constraint.result() == [EvidenceSpan(2, 0, 7)]
    constraint = VerbatimConstraint(["rent", "is", "rent is", "due"], trie, max_spans=3)
    write(constraint, tokenizer, "rent is due")
    assert constraint.result() == [EvidenceSpan(2, 0, 7), EvidenceSpan(3, 0, 3)]


def test_evidence_without_a_word_gives_nothing(tokenizer: Tokenizer, trie: TokenTrie) -> None:
    for texts in ([], [""], ["...", " "]):
        constraint = VerbatimConstraint(texts, trie)
        assert set(constraint.allowed()) == tokenizer.eos_ids
        assert constraint.result() == [] and constraint.answer() == ""


def test_a_refused_token_changes_nothing(tokenizer: Tokenizer, trie: TokenTrie) -> None:
    constraint = VerbatimConstraint(["the rent"], trie)
    write(constraint, tokenizer, "the")
    before = constraint.allowed()
    with pytest.raises(ValueError, match="not allowed"):
        constraint.advance(tokenizer.encode("x").ids[-1])
    assert constraint.allowed() == before and constraint.text == "the"


def test_offsets_are_code_points(tokenizer: Tokenizer, trie: TokenTrie) -> None:
    texts = [f"größer {FAMILY}", f"{FAMILY} schöne Grüße"]
    constraint = VerbatimConstraint(texts, trie)
    write(constraint, tokenizer, "schöne Grüße")
    (span,) = constraint.result()
    assert span == EvidenceSpan(1, len(FAMILY) + 1, len(texts[1]))


def test_whole_evidence_is_never_cut(tokenizer: Tokenizer, trie: TokenTrie) -> None:
    texts = ["30 days", "30", "sixty-one days, in writing."]
    seen = set()
    for choice in range(2):
        constraint = VerbatimConstraint(texts, trie, is_whole=True)
        while not constraint.is_complete:
            ids = [token_id for token_id in constraint.allowed() if token_id not in trie.eos_ids]
            assert texts[constraint.result()[0].evidence_index] == constraint.answer()
            constraint.advance(ids[0 if choice == 0 else -1])
        seen.add(constraint.answer())
    assert seen <= set(texts) and seen - {"30"}
