from dataclasses import replace

import pytest
import torch

from training.export import load_directory
from training.model import Reader, Shape
from training.soup import main, soup

SHAPE = Shape(vocab=300, hidden=32, layers=2, period=2, offset=1, heads=2, kv_heads=1, feed_forward=32)


def filled(value):
    model = Reader(SHAPE)
    for parameter in model.parameters():
        parameter.data.fill_(value)
    return model


def test_every_weight_is_the_weighted_mean():
    mixed = soup([filled(1.0), filled(4.0)], [2, 1])
    assert all(torch.allclose(p, torch.tensor(2.0)) for p in mixed.parameters())


def test_the_command_writes_a_directory_that_can_be_read_again(tmp_path, monkeypatch):
    beside = tmp_path / "beside"
    beside.mkdir()
    for name in ("tokenizer.json", "chat_template.jinja", "config.json", "model.safetensors"):
        (beside / name).write_text("{}")
    for name, value in (("a", 1.0), ("b", 3.0)):
        torch.save(
            {"model": filled(value).state_dict(), "shape": SHAPE.to_dict(), "state": {}}, tmp_path / f"{name}.pt"
        )
    monkeypatch.setattr("sys.argv", ["soup", f"{tmp_path}/a.pt", f"{tmp_path}/b.pt", "--out", f"{tmp_path}/out",
                                     "--beside", str(beside)])  # fmt: skip
    main()
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "tokenizer.json", "chat_template.jinja", "config.json", "model.safetensors",
    }  # fmt: skip
    assert all(torch.allclose(p, torch.tensor(2.0)) for p in load_directory(tmp_path / "out").parameters())


def test_different_shapes_are_refused():
    with pytest.raises(ValueError, match="different shapes"):
        soup([Reader(SHAPE), Reader(replace(SHAPE, layers=4))], [1, 1])
