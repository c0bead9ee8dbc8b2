"""What training reads: shards, the check against evaluation texts, readings, and rows of a mixture."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from training.contamination import Evaluation, Words, runs
from training.examples import NOT_FOUND, Encoder
from training.readings import Readings
from training.rows import KINDS
from training.shards import FULL, Document, Pack, ShardWriter, look_row, write_manifest
from training.streams import Deck, Streams

TEN = "one two three four five six seven eight nine ten"


def test_twelve_words_in_a_row_are_found_whatever_their_case_and_punctuation():
    evaluation = Evaluation([f"Start. {TEN} eleven, twelve thirteen"])
    assert f"and One, two three: {TEN[14:].upper()} -- eleven twelve!" in evaluation
    assert f"{TEN} eleven thirteen twelve" not in evaluation
    assert TEN not in evaluation


def test_the_paragraphs_that_share_a_run_are_dropped_and_no_others():
    evaluation = Evaluation([f"{TEN} eleven twelve"])
    text = f"kept\n{TEN}\neleven twelve and more\n\nkept too {TEN}"
    assert evaluation.clean(text) == ("kept\n\nkept too " + TEN, 2)
    assert evaluation.clean("nothing here") == ("nothing here", 0)
    assert Evaluation([]).clean(text) == (text, 0)


@given(st.lists(st.integers(0, 3), min_size=12, max_size=40), st.integers(0, 28), st.integers(0, 28))
def test_equal_runs_have_equal_numbers_and_different_ones_do_not(words, first, second):
    text = [f"w{word}" for word in words]
    first, second = (min(at, len(words) - 12) for at in (first, second))
    numbers = runs(Words()(" ".join(text)))
    assert len(numbers) == len(words) - 11
    assert (numbers[first] == numbers[second]) == (text[first : first + 12] == text[second : second + 12])


def document(size, looks=()):
    return Document(np.arange(size) + 5, np.full(size, 10), np.array(looks, dtype=np.int64).reshape(-1, 5))


def test_documents_come_out_of_shards_as_they_went_in_and_a_changed_shard_is_refused(tmp_path):
    writer = ShardWriter(tmp_path, "reading", 50)
    before = [document(30, [look_row(3, 0, 2, "pointer")]), document(40), document(7, [look_row(6, 1, 2, "evidence")])]
    for each in before:
        writer.add(each)
    writer.flush()
    write_manifest(tmp_path, [writer], {"vocab": 100})
    pack = Pack.open(tmp_path)
    assert [entry["documents"] for entry in pack.entries("reading")] == [2, 1]
    for given_, read in zip(before, pack.documents("reading"), strict=True):
        for name in ("ids", "weights", "looks"):
            assert (getattr(given_, name) == getattr(read, name)).all()
    (tmp_path / "reading-001.npz").unlink()
    assert len(pack.documents("reading")) == 2
    (tmp_path / "reading-000.npz").write_bytes(b"other")
    with pytest.raises(SystemExit, match="not the content the manifest names"):
        pack.documents("reading")
    with pytest.raises(SystemExit, match=r"training\.prepare"):
        Pack.open(tmp_path / "elsewhere")


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=6), rows=st.integers(1, 3), tokens=st.integers(1, 40))
def test_streams_lay_whole_documents_end_to_end_and_predict_each_token_but_the_first(lengths, rows, tokens):
    documents = [
        Document(np.arange(n) + 100 * k, np.arange(n) + 1, np.array([look_row(n - 1, 0, 1, "pointer")]))
        for k, n in enumerate(lengths)
    ]
    deck = Deck(documents, 1000, np.random.default_rng(0))
    streams = Streams({"reading": deck}, rows, tokens, np.random.default_rng(0), torch.device("cpu"))
    steps = [streams.step({"reading": 1.0}) for _ in range(4)]
    ids, numbers, targets, weights = (
        torch.cat([getattr(step, name) for step in steps], 1) for name in ("ids", "documents", "targets", "weights")
    )
    looks = {(x.row, x.column + i * tokens): x for i, step in enumerate(steps) for x in step.looks}
    for row in range(rows):
        for number in range(int(numbers[row, -1])):  # the last may go on beyond these steps
            here = (numbers[row] == number).nonzero()[:, 0]
            kind, size = int(ids[row, here[0]]) // 100, len(here)
            assert size == lengths[kind]
            assert ids[row, here].tolist() == list(range(100 * kind, 100 * kind + size))
            assert targets[row, here[:-1]].tolist() == ids[row, here[1:]].tolist()
            assert weights[row, here].tolist() == pytest.approx([(i + 2) / FULL for i in range(size - 1)] + [0.0])
            assert looks[row, int(here[-1])].low == 0


def test_a_mixture_has_the_shares_of_tokens_asked_for_and_no_document_comes_twice_before_all_did():
    rng = np.random.default_rng(1)
    decks = {
        "prose": Deck([Document(np.full(300, 1)) for _ in range(5)], 100, rng),
        "reading": Deck([document(20) for _ in range(50)], 100, rng),
    }
    streams = Streams(decks, 4, 256, rng, torch.device("cpu"))
    taken = torch.cat([streams.step({"prose": 0.7, "reading": 0.3}).ids for _ in range(40)])
    assert 0.62 < (taken == 1).float().mean() < 0.78
    assert (streams.step({"prose": 0.0, "reading": 1.0}).ids[:, 100:] > 1).all()
    deck = Deck([Document(np.array([n])) for n in range(9)], 100, rng)
    assert sorted(int(deck.draw().ids[0]) for _ in range(9)) == list(range(9))


@pytest.fixture(scope="module")
def shipped():
    return Tokenizer.from_file("weights/fano-reader/tokenizer.json")


def contexts(encoder):
    found = []
    for index in range(12):
        name = f"Anlo {index}"
        text = f"{name} is a village near the river Soth. It was founded in {1700 + index}. Its mayor is Kim {index}."
        context, starts = encoder.context("simplewiki-synth", name, text)
        for question, answer in (("When was it founded?", str(1700 + index)), ("Who is the mayor?", f"Kim {index}")):
            context.questions.append(encoder.question(context, starts, question, answer, text.index(answer)))
        found.append(context)
    return found


def test_an_answer_at_the_begin_of_its_context_is_read_there_and_not_before(shipped):
    encoder = Encoder(shipped)
    context, starts = encoder.context("", "", "Anders Brandt leads the project.")
    question = encoder.question(context, starts, "Who leads it?", "Anders Brandt", 0)
    assert [context.ids[place] for place in question.pointers] == question.answer


def test_readings_have_the_servers_prompt_format_and_point_at_what_is_copied(shipped):
    from server.answers.prompt import document_question

    readings = Readings(contexts(Encoder(shipped)), Encoder(shipped), 3, longest=1500)
    kinds = set()
    unanswered = turns = 0
    answered_after = False
    for _ in range(60):
        before = dict(readings.tokens)
        made = readings.document()
        kind = next(kind for kind in readings.tokens if readings.tokens[kind] != before.get(kind, 0))
        kinds.add(kind)
        ids = made.ids.tolist()
        text = shipped.decode(ids, skip_special_tokens=False)
        assert text.startswith("<|startoftext|><|user|>")
        # Tokenised as one text turn by turn, it is the same ids.
        parts = [part for part in text.replace("<|startoftext|>", "").split("<|end|>") if part]
        again = [1]
        for part in parts:
            role, content = part.removeprefix("<|").split("|>", 1)
            encoded = shipped.encode(content.removeprefix(" "), add_special_tokens=False).ids
            again += [shipped.token_to_id(f"<|{role}|>"), *encoded, shipped.token_to_id("<|end|>")]
        assert again == ids
        turns += len(parts) // 2
        pointers = made.looks[made.looks[:, 3] == KINDS.index("pointer")]
        for token, low, high, _, _ in pointers[pointers[:, 4] == FULL].tolist():
            assert high == low + 1 < token
            # The first answer token may differ by the space before it; what it spells does not.
            wanted, found = (shipped.id_to_token(ids[i]).strip("▁") for i in (token + 1, low))
            assert wanted == found or not wanted or found.startswith(wanted) or wanted.startswith(found)
        counted = np.flatnonzero(made.weights == FULL)
        assert ids[counted[-1]] == shipped.token_to_id("<|end|>")
        unanswered += text.count(NOT_FOUND)
        answered_after = answered_after or NOT_FOUND in " ".join(parts[:-1])
        if kind == "turns" and len(parts) == 2:
            asked = parts[0].removeprefix("<|user|> ")
            body, question = asked.rsplit("\n\nQuestion: ", 1)
            assert body.startswith("[1]")
            assert document_question(question, []) in asked
    assert kinds == {"turns", "conversation", "long", "lookalikes", "summary"}
    assert turns > 60
    assert unanswered
    assert answered_after  # what the passages do not answer may be asked at any turn
    shares = np.array(list(readings.tokens.values()))
    assert len(shares) == 5
    assert json.dumps(dict(readings.tokens))
