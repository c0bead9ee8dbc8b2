import json

import numpy as np
import pytest
import torch

from training.model import Reader, Shape
from training.pretrain import held_out_loss, next_token_losses, operations_per_token, parser, pretrain, step_loss
from training.shards import Document, ShardWriter, look_row, write_manifest
from training.streams import Deck, Streams

SMALL = ["--hidden", "32", "--layers", "2", "--period", "2", "--offset", "1", "--heads", "2", "--kv-heads", "1",
         "--feed-forward", "32"]  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread(threads):
    torch.set_num_threads(1)


@pytest.fixture
def packed(tmp_path):
    """Prose that counts upwards, which is soon learnt, and readings that repeat their first token."""
    rng = np.random.default_rng(0)
    writers = {kind: ShardWriter(tmp_path / "packed", kind, 4000) for kind in ("prose", "held", "reading")}
    (tmp_path / "packed").mkdir()
    for number in range(120):
        first, size = int(rng.integers(0, 50)), int(rng.integers(20, 120))
        counting = Document((first + np.arange(size)) % 50)
        writers["held" if number % 20 == 0 else "prose"].add(counting)
        ids = rng.integers(0, 50, 40)
        ids[-1] = ids[0]
        weights = np.where(np.arange(40) == 39, 100, 10)
        writers["reading"].add(Document(ids, weights, np.array([look_row(38, 0, 1, "pointer")])))
    for writer in writers.values():
        writer.flush()
    write_manifest(tmp_path / "packed", writers.values(), {"vocab": 50})
    return tmp_path


def arguments(packed, steps, *more):
    return parser().parse_args(
        ["--packed", str(packed / "packed"), "--run", str(packed / "run"), "--steps", str(steps), "--cold",
         "--device", "cpu", "--rows", "2", "--row-tokens", "64", "--log-every", "5", "--threads", "1",
         "--held-out-tokens", "300", "--reading", "0.2", "0.2", *SMALL, *more]
    )  # fmt: skip


def test_a_run_learns_writes_what_it_does_and_goes_on_from_its_weights(packed, capsys):
    first = pretrain(arguments(packed, 120))
    log = [json.loads(line) for line in (packed / "run" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["held_out_loss"] < np.log(50) - 1  # counting is learnt
    assert {"pointer", "tokens_per_second", "share_of_bf16_rate", "rate"} <= set().union(*log)
    assert (packed / "run" / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert list((packed / "run" / "tensorboard").iterdir())
    kept = torch.load(packed / "run" / "last.pt")
    assert set(kept) == {"model", "shape", "state"}
    second = pretrain(arguments(packed, 150))
    assert second["step"] > first["step"]
    log = [json.loads(line) for line in (packed / "run" / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in log] == list(range(5, 155, 5))
    assert log[24]["rate"] == pytest.approx(5 / 50)  # warmed up anew
    other = pretrain(arguments(packed, 10, "--start", str(packed / "run" / "last.pt"), "--run", str(packed / "b")))
    assert other["loss"] < log[0]["loss"] - 0.5
    assert other["step"] == 10


def test_a_run_over_an_empty_pack_says_what_is_missing(packed):
    for shard in (packed / "packed").glob("*.npz"):
        shard.unlink()
    with pytest.raises(SystemExit, match="prepare them, or copy them"):
        pretrain(arguments(packed, 1))


def small():
    torch.manual_seed(0)
    return Reader(Shape(vocab=50, hidden=32, layers=4, period=2, offset=1, heads=2, kv_heads=1, feed_forward=32))


def test_the_loss_of_a_step_is_the_weighted_mean_over_its_targets(monkeypatch):
    monkeypatch.setattr("training.pretrain.LOGIT_ROWS", 7)
    model = small()
    deck = Deck([Document(np.arange(19), np.arange(19), np.zeros((0, 5), int))], 99, np.random.default_rng(0))
    step = Streams({"reading": deck}, 2, 23, np.random.default_rng(0), torch.device("cpu")).step({"reading": 1})
    loss, parts, carried = step_loss(model, step, None)
    loss.backward()
    assert model.model.embed_tokens.weight.grad.abs().sum() > 0
    assert carried.documents.shape[0] == 2
    hidden = torch.randn(23, 32)
    with torch.no_grad():
        each = next_token_losses(model, hidden, step.targets[0])
        logits = model.logits(hidden)
    assert torch.allclose(each, torch.nn.functional.cross_entropy(logits, step.targets[0], reduction="none"), atol=0.05)
    assert parts["loss"] == loss.detach()


def test_the_held_out_loss_does_not_depend_on_the_width_it_is_read_in():
    model = small()
    documents = [Document(np.random.default_rng(n).integers(0, 50, 90)) for n in range(2)]
    whole, cut = (held_out_loss(model, documents, 170, width, torch.device("cpu")) for width in (89, 30))
    assert whole == pytest.approx(cut, rel=2e-3)


def test_operations_are_six_for_each_weight_a_token_meets():
    model = small()
    shape = model.shape
    one_layer = sum(p.numel() for p in model.model.layers[0].parameters() if p.ndim == 2)
    assert operations_per_token(shape, model, 0) > 6 * (one_layer + 50 * 32)
    with_keys = operations_per_token(shape, model, 100) - operations_per_token(shape, model, 0)
    assert with_keys == 6 * 2 * 100 * 32 * 2
