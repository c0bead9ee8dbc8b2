import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models

from training.decode import Decoder
from training.examples import Encoder
from training.export import export, rounded
from training.forest import Forest, Tree
from training.model import Reader, Shape

SHAPE = Shape(vocab=300, hidden=32, layers=4, period=2, offset=1, heads=2, kv_heads=1, feed_forward=48)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return rounded(Reader(SHAPE)).eval()


@pytest.fixture
def ids():
    return torch.randint(300, (40,), generator=torch.Generator().manual_seed(1)).tolist()


def logits_of(model, ids):
    hidden, _ = model(Forest([Tree(ids, [])], np.random.default_rng(0)))
    return model.logits(hidden)


def test_the_exported_directory_is_a_jamba_of_transformers(model, ids, tmp_path):
    transformers = pytest.importorskip("transformers")
    export(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["fano"] == {"policy": "window", "sinks": 64, "window": 2048, "reads": "sentence"}
    theirs = transformers.JambaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = theirs(torch.tensor([ids]), use_cache=False).logits[0]
    assert (logits_of(model, ids) - expected).abs().max() < 1e-4 * expected.abs().max()


def test_one_token_at_a_time_gives_the_logits_of_the_whole(model, ids):
    whole = logits_of(model, ids)
    decoder = Decoder(model)
    logits, cache = decoder.read(ids[:30])
    assert torch.allclose(logits, whole[29], atol=1e-4)
    for place in range(30, 40):
        assert torch.allclose(decoder.step(ids[place], cache), whole[place], atol=1e-4)


def test_prompt_parts_joined_are_the_ids_of_the_joined_text():
    vocabulary = {c: i for i, c in enumerate(["<|unk|>", "<|user|>", "<|end|>", "<|assistant|>", *"▁[]1x\n:Question"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<|unk|>"))
    encoder = Encoder(tokenizer)
    assert encoder("x\n\nQuestion:") == encoder("x") + encoder.ask
    assert encoder.marker(1) == encoder("[1]")
