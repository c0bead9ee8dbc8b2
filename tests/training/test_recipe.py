"""The whole recipe on a made-up corpus: tokenizer, packed tokens, training, the checkpoint, its figures."""

import json
import lzma
import random
import subprocess
import sys

import pytest
import torch

from model.config import ModelConfig
from model.tokenizer import Tokenizer
from training import synthetic
from training.corpus import is_held_out


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with lzma.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def question_rows(rng, number, source="squad1.1", prefix=""):
    rows = []
    for index in range(number):
        made = synthetic.sentences(rng, 4)
        context = " ".join(each.text for each in made)
        at = 0
        for each in made:
            answer = each.text[each.start : each.end]
            rows.append(
                {"source": source, "id": f"{prefix}{index}", "title": f"{prefix}T{index}", "context": context,
                 "question": each.questions[0], "answers": [answer], "answer_start": [at + each.start]}
            )  # fmt: skip
            at += len(each.text) + 1
    return rows


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    rng = random.Random(0)
    prose = []
    for index in range(420):
        text = "\n".join(" ".join(m.text for m in synthetic.sentences(rng, 5)) for _ in range(3))
        prose.append({"source": "made", "title": f"Article {index}", "text": text})
    assert any(is_held_out(row["title"]) for row in prose)
    lines(root / "pretrain" / "wiki.jsonl.xz", prose[:300])
    lines(root / "pretrain" / "books.jsonl.xz", prose[300:])
    lines(root / "qa_train.jsonl.xz", question_rows(rng, 60))
    lines(root / "qa_train_synth.jsonl.xz", question_rows(rng, 30, "simplewiki-synth", "s"))
    held = question_rows(rng, 8, "squad1.1-dev", "e")
    lines(root / "qa_eval.jsonl.xz", held)
    (root / "haystack").mkdir()
    book = "\n".join(" ".join(m.text for m in synthetic.sentences(rng, 6)) for _ in range(40))
    (root / "haystack" / "book.txt").write_text(book)
    return root


# Each command as `python -m` runs it, one after the other in one process of their own: the import of torch, six times
# over, was most of the time that all of them took.
COMMANDS = """
import contextlib, io, json, runpy, sys

for line in sys.stdin:
    sys.argv = json.loads(line)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    print(json.dumps(said.getvalue()), flush=True)
"""


@pytest.fixture
def run(tmp_path):
    """Runs a module with arguments, to its end; what it printed."""
    with (tmp_path / "stderr").open("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", COMMANDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )

        def run(*words):
            process.stdin.write(json.dumps([str(word) for word in words]) + "\n")
            process.stdin.flush()
            said = process.stdout.readline()
            assert said, (tmp_path / "stderr").read_text()[-3000:]
            return json.loads(said)

        with process:
            yield run
            process.stdin.close()


def test_every_command_of_the_recipe_works_on_what_the_one_before_it_made(data, tmp_path, run):
    transformers = pytest.importorskip("transformers")
    out, packed, reader = tmp_path / "weights", tmp_path / "packed", tmp_path / "run"
    tokenizer = ["--tokenizer", out / "tokenizer.json"]
    assert "800 tokens" in run("training.tokenizer", "--data", data, "--out", out, "--vocab-size", 800)
    said = run("training.prepare", "--data", data, "--out", packed, *tokenizer, "--reading-tokens", 60_000,
               "--shard-tokens", 50_000, "--longest", 800)  # fmt: skip
    assert "held_out_bytes" in said
    manifest = json.loads((packed / "manifest.json").read_text())
    assert {entry["kind"] for entry in manifest["shards"]} == {"prose", "held", "reading"}
    run("training.pretrain", "--packed", packed, "--run", reader, *tokenizer, "--steps", 25, "--rows", 2,
        "--row-tokens", 128, "--hidden", 64, "--layers", 4, "--period", 2, "--offset", 1, "--heads", 2, "--kv-heads", 1,
        "--feed-forward", 64, "--threads", 1, "--log-every", 5, "--held-out-tokens", 500)  # fmt: skip
    log = [json.loads(line) for line in (reader / "log.jsonl").read_text().splitlines()]
    assert log[-1]["loss"] < log[0]["loss"]
    run("training.train", "--data", data, "--run", tmp_path / "tuned", *tokenizer, "--start", reader / "last.pt",
        "--minutes", 0.05, "--threads", 1, "--step-tokens", 256, "--log-every", 1)  # fmt: skip
    run("training.export", "--run", tmp_path / "tuned", "--out", out)
    config = ModelConfig.from_dict(json.loads((out / "config.json").read_text()))
    assert config.num_layers == 4
    ids = Tokenizer(out).encode_chat([{"role": "user", "content": "[1] The gate is red.\n\nQuestion: Which gate?"}])
    said = run(
        "training.evaluate", "--data", data, "--checkpoint", out, "--out", tmp_path / "figures", "--number", 6,
        "--positions", 600, "--prose-characters", 2000, "--suites", "prose", "position", "gold", "chat",
    )  # fmt: skip
    assert said.count("## ") == 4
    assert "best sentence, no model" in (tmp_path / "figures" / "figures.md").read_text()
    theirs = transformers.JambaForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    assert theirs(torch.tensor([ids])).logits.isfinite().all()
