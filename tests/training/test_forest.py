import numpy as np
import pytest
import torch

from training.forest import Branch, Forest, Tree
from training.model import Reader, Shape

SHAPE = Shape(vocab=50, hidden=32, layers=4, period=2, offset=1, heads=2, kv_heads=1, feed_forward=32)


@pytest.fixture(autouse=True, params=[0, 320])
def small_root(request, monkeypatch):
    """Both ways of attention: the root apart, and the whole tree at once."""
    monkeypatch.setattr("training.forest.SMALL_ROOT", request.param)
    return request.param


def forest(trees):
    return Forest(trees, np.random.default_rng(0))


def test_a_branch_is_computed_as_if_its_prompt_stood_alone():
    torch.manual_seed(0)
    model = Reader(SHAPE)
    rng = np.random.default_rng(1)
    root, first, second = (rng.integers(1, 50, size).tolist() for size in (21, 9, 6))
    other = rng.integers(1, 50, 13).tolist()
    packed = forest([Tree(other, []), Tree(root, [Branch(first, 6), Branch(second, 5)]), Tree(other, [])])
    hidden, _ = model(packed)
    alone, _ = model(forest([Tree(root + second, [])]))
    assert torch.allclose(hidden[13 + 21 + 9 : 13 + 21 + 15], alone[21:], atol=1e-5)
    assert torch.allclose(hidden[13 + 36 :], hidden[:13], atol=1e-5)


def test_answer_rows_predict_the_answer_and_its_end():
    packed = forest([Tree([1, 2, 3], [Branch([10, 11, 12, 13, 14, 20, 21, 22], 5)])])
    assert packed.targets[packed.is_answer].tolist() == [20, 21, 22]
    assert packed.rows[packed.is_answer].tolist() == [7, 8, 9]


def test_pointer_loss_looks_at_the_row_before_each_answer_token(small_root):
    tree = Tree([1, 2, 3], [Branch([9, 9], 1), Branch([10, 11, 12, 13, 14, 20, 22], 5, [[2]], (1, 3))])
    place = forest([tree]).places[0]
    assert place.pointer_rows.tolist() == [(3 if small_root else 0) + 2 + 4]
    assert place.pointer_targets.tolist() == [[False, False, True]]
    assert place.evidence_targets[0].tolist() == [False, True, True]


def test_a_few_steps_learn_to_copy_a_value():
    torch.manual_seed(0)
    model = Reader(SHAPE)
    rng = np.random.default_rng(2)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    first = last = 0.0
    for step in range(40):
        trees = []
        for _ in range(8):
            keys, values = rng.permutation(20)[:3] + 10, rng.integers(30, 50, 3)
            root = [1, *np.stack([keys, values], 1).flatten().tolist()]
            branches = [
                Branch([2, 3, 4, int(keys[i]), 5, int(values[i]), 6], 5, [[2 + 2 * i]], (1 + 2 * i, 3 + 2 * i))
                for i in range(3)
            ]
            trees.append(Tree(root, branches))
        packed = forest(trees)
        hidden, extra = model(packed)
        logits = model.logits(hidden[packed.rows])
        loss = torch.nn.functional.cross_entropy(logits, packed.targets) + extra["pointer"] + extra["evidence"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first, last = (loss.item(), last) if step == 0 else (first, loss.item())
    assert last < 0.6 * first
