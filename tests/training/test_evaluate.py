import json
import lzma
import math
import random
import shutil

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from training import cases, prose_loss
from training.cases import Case, f1, interval, scores
from training.evaluate import Bench, Checkpoint, chat, gold, made, prose, shown, tables, unanswerable
from training.export import export, load_directory
from training.forest import Forest, Tree
from training.model import Reader, Shape
from training.span_reader import Example, cut

TOKENIZER = "weights/fano-reader/tokenizer.json"


@pytest.fixture(autouse=True)
def one_thread(threads):
    torch.set_num_threads(1)


def test_scores_forgive_articles_and_punctuation_and_find_the_value_in_a_sentence():
    case = Case(["..."], "Who?", ["the Old Gate", "gate"])
    assert scores("Old gate.", case) == (1.0, 1.0, True)
    assert scores("It was near the old gate, they say", case) == (0.0, pytest.approx(4 / 9), True)
    assert f1("red door", "blue door") == 0.5
    assert scores("Not found in the passages.", Case([], "Who?", []))[0] == 1.0
    assert interval(np.ones(5)) == (100.0, 100.0, 100.0)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A checkpoint that has learnt nothing, with the real tokenizer, and a data directory of made-up texts."""
    root = tmp_path_factory.mktemp("evaluated")
    torch.manual_seed(0)
    shape = Shape(vocab=16_384, hidden=32, layers=2, period=2, offset=1, heads=2, kv_heads=1, feed_forward=32)
    model = Reader(shape)
    model.model.final_layernorm.weight.data.zero_()
    model.model.final_layernorm.weight.data.add_(1e-6)  # all logits alike: the loss is that of a uniform guess
    export(model, root / "weights")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(f"weights/fano-reader/{name}", root / "weights" / name)
    rows = [
        {"source": "squad1.1-dev", "title": "T", "context": f"The mast of boat {n} is {9 + n} feet high. It is old.",
         "question": f"How high is the mast of boat {n}?", "answers": [f"{9 + n} feet"], "answer_start": [21]}
        for n in range(8)
    ]  # fmt: skip
    rows += [dict(row, source="squad2.0-dev-unanswerable", answers=[], answer_start=None) for row in rows]
    pairs = [[f"key-{n}", f"value-{n}"] for n in range(5)]
    files = {
        "qa_train": rows[:1], "qa_eval": rows,
        "pretrain/wiki": [{"title": f"A {n}", "text": "It rains. " * 60} for n in range(600)],
        "kv_retrieval_dev_75": [{"pairs": pairs, "key": "key-3", "value": "value-3"}],
    }  # fmt: skip
    (root / "pretrain").mkdir()
    (root / "haystack").mkdir()
    (root / "haystack" / "book.txt").write_text("The sea was calm that day. Nobody spoke on deck. " * 200)
    for name, content in files.items():
        with lzma.open(root / f"{name}.jsonl.xz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in content)
    return root


@pytest.fixture
def bench(directory, tmp_path):
    checkpoint = Checkpoint.open(directory / "weights")
    return Bench(
        directory, tmp_path, checkpoint, None, None, 6, 3000, 2000, best=lambda passages, question: passages[0]
    )


def test_a_perfect_answerer_gets_full_marks_and_a_wrong_one_none(bench):
    right = {case.question: case.answers[0] for case in cases.gold(bench.data, "squad1.1-dev", 8)}
    ways = {"right": lambda case: right[case.question], "wrong": lambda case: "a cloud"}
    rows = bench.answered("x", cases.gold(bench.data, "squad1.1-dev", 8, distractors=2), ways)
    assert [row["f1"][0] for row in rows] == [100.0, 0.0]
    assert [row["exact"][0] for row in rows] == [100.0, 0.0]
    for chosen in (cases.lookalikes(5), cases.key_values(6), cases.identifiers(bench.data, 3)):
        assert chosen
        assert all(case.answers[0] in case.passages[0] for case in chosen)
    for case in cases.needles(bench.data, 4):
        assert sum(case.answers[0] in passage for passage in case.passages) == 1


def test_every_suite_without_a_server_gives_rows_and_a_table(bench):
    results = {"prose": prose(bench), "gold": gold(bench), "made": made(bench), "chat": chat(bench),
               "unanswerable": unanswerable(bench)}  # fmt: skip
    uniform = math.log(16_384)
    assert results["prose"][0]["nats_per_token"] == pytest.approx(uniform, rel=1e-3)
    bits, low, high = results["prose"][0]["bits_per_byte"]
    assert low <= bits <= high
    answers = {row["answer"] for row in results["gold"]}
    assert answers == {"best sentence, no model", "verbatim", "verbatim within the best sentence", "free"}
    best = next(row for row in results["gold"] if row["answer"] == "best sentence, no model")
    assert best["value"][0] == 100.0
    assert best["f1"][0] < 50
    assert len({row["passages"] for row in results["made"]}) == 4
    assert not results["chat"][0]["ended"]  # a model that has learnt nothing does not end
    assert results["unanswerable"][0]["recall"][0] == 0.0
    text = tables(results)
    assert text.count("## ") == 5
    assert "| gold paragraph alone | best sentence, no model | 6 |" in text
    assert shown([1.0, 0.5, 2.0]) == "1.0 (0.5 to 2.0)"


def test_loss_by_position_covers_every_token_once_in_constant_memory(directory, bench):
    found = prose_loss.by_position(
        load_directory(directory / "weights"),
        bench.checkpoint.encoder.tokenizer,
        bench.data,
        2000,
        bench.checkpoint.policy,
    )
    rows = found["rows"]
    assert found["num_tokens"] == rows[-1]["to"] == 2000
    assert [row["from"] for row in rows[1:]] == [row["to"] for row in rows[:-1]]
    assert all(row["nats_per_token"][0] == pytest.approx(math.log(16_384), rel=1e-3) for row in rows)
    prose_loss.plot_positions(rows, bench.out / "p.png")
    assert (bench.out / "p.png").stat().st_size > 1000


def test_the_loss_of_a_carried_reading_is_that_of_one_pass():
    torch.manual_seed(1)
    model = Reader(
        Shape(vocab=60, hidden=32, layers=4, period=2, offset=1, heads=2, kv_heads=1, feed_forward=32)
    ).eval()
    ids = np.random.default_rng(0).integers(0, 60, 90).tolist()
    policy = prose_loss.Policy(4, 200)
    cut_up = torch.cat(list(prose_loss.losses(model, ids, policy, width=17)))
    with torch.no_grad():
        hidden, _ = model(Forest([Tree(ids, [])], np.random.default_rng(0)))
        whole = torch.nn.functional.cross_entropy(model.logits(hidden[:-1]), torch.tensor(ids[1:]), reduction="none")
    assert torch.allclose(cut_up, whole, atol=1e-4)


def test_a_suite_is_not_run_again_for_the_same_weights_and_is_for_others(directory, tmp_path, monkeypatch):
    from training import evaluate as module

    runs = []
    monkeypatch.setitem(module.SUITES, "chat", lambda bench: runs.append(1) or [{"prompt": "x"}])
    monkeypatch.setattr(module, "BestSentence", object)
    (tmp_path / "again").mkdir()

    def run(number):
        arguments = module.argparse.Namespace(
            data=str(directory), checkpoint=directory / "weights", previous=None, span=None, out=tmp_path / "again",
            suites=["chat"], number=number, positions=1, prose_characters=1, threads=1,
        )  # fmt: skip
        return module.evaluate(arguments)

    assert run(5) == run(5) == {"chat": [{"prompt": "x"}]}
    assert len(runs) == 1
    run(6)
    assert len(runs) == 2
    assert (tmp_path / "again" / "figures.md").read_text().startswith("## chat")


def test_a_cut_context_still_holds_its_answer():
    context = "word " * 400 + "the answer is here " + "word " * 400
    at = context.index("here")
    for seed in range(20):
        made_up = cut(Example("q", context, at, at + 4), random.Random(seed))
        assert made_up.context[made_up.start : made_up.end] == "here"
        assert len(made_up.context) <= 705


def test_the_prompt_is_the_servers(directory):
    from server.answers.prompt import document_question
    from training.evaluate import prompt
    from training.examples import Encoder

    encoder = Encoder(Tokenizer.from_file(TOKENIZER))
    ids = prompt(encoder, ["One.", "Two."], "Which?")
    assert ids[2:-2] == encoder(document_question("Which?", ["One.", "Two."]))
