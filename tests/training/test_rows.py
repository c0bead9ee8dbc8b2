import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.forest import Forest, Tree
from training.model import Reader, Shape
from training.rows import NONE, Look, Rows

SHAPE = Shape(vocab=50, hidden=32, layers=4, period=2, offset=1, heads=4, kv_heads=2, feed_forward=32)


@pytest.fixture(autouse=True)
def one_thread(threads):
    torch.set_num_threads(1)


def model(seed=0):
    torch.manual_seed(seed)
    reader = Reader(SHAPE)
    for layer in reader.model.layers:
        if hasattr(layer, "mamba"):
            layer.mamba.dt_proj.bias.data.sub_(2)  # slow decay, so that a lost state shows
    return reader.eval()


def streams(lengths, rows, seed):
    """ids and documents [rows, sum(lengths)]: the documents of `lengths`, in another order in each row."""
    generator = torch.Generator().manual_seed(seed)
    total, numbers = sum(lengths), []
    for row in range(rows):
        turned = lengths[row % len(lengths) :] + lengths[: row % len(lengths)]
        numbers.append(torch.repeat_interleave(torch.arange(len(turned)), torch.tensor(turned)))
    return torch.randint(0, 50, (rows, total), generator=generator), torch.stack(numbers)


@torch.no_grad()
def read(reader, ids, documents, cuts, **policy):
    carried, out = None, []
    for first, last in zip([0, *cuts], [*cuts, ids.shape[1]], strict=True):
        if first < last:
            layout = Rows(ids[:, first:last], documents[:, first:last], carried, **policy)
            out.append(reader(layout)[0])
            carried = layout.left
    return torch.cat(out, 1)


@settings(max_examples=12, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    rows=st.integers(1, 3),
    cuts=st.lists(st.integers(0, 200), max_size=6),
    seed=st.integers(0, 99),
)
def test_wherever_rows_are_cut_each_document_is_read_as_if_it_stood_alone(lengths, rows, cuts, seed):
    reader = model()
    ids, documents = streams(lengths, rows, seed)
    cuts = sorted(min(cut, ids.shape[1]) for cut in cuts)
    hidden = read(reader, ids, documents, cuts, sinks=3, window=200)
    for row in range(rows):
        for number in documents[row].unique():
            own = documents[row] == number
            alone = Forest([Tree(ids[row][own].tolist(), [])], np.random.default_rng(0))
            with torch.no_grad():
                assert torch.allclose(hidden[row][own], reader(alone)[0], atol=2e-5)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    sinks=st.integers(0, 6),
    window=st.integers(1, 12),
    cuts=st.lists(st.integers(1, 12), min_size=1, max_size=8),
)
def test_a_token_sees_the_first_and_the_last_of_its_document_wherever_rows_are_cut(lengths, sinks, window, cuts):
    ids, documents = streams(lengths, 2, 0)
    at, step, carried = 0, 0, None
    while at < ids.shape[1]:
        width = min(cuts[step % len(cuts)], window, ids.shape[1] - at)
        layout = Rows(ids[:, at : at + width], documents[:, at : at + width], carried, sinks=sinks, window=window)
        for row in range(2):
            for column in range(width):
                now = at + column
                own = (documents[row, : now + 1] == documents[row, now]).nonzero()[:, 0]
                position = int(now - own[0])
                wanted = [p for p in range(position + 1) if p < sinks or p > position - window]
                assert layout.positions[row, column] == position
                seen = layout.seen[row, column]
                assert sorted(layout.key_positions[row, seen].tolist()) == wanted
                assert (layout.key_documents[row, seen] == documents[row, now]).all()
        carried, at, step = layout.left, at + width, step + 1


def test_the_carried_keys_are_those_of_the_places_they_are_listed_under():
    reader = model()
    ids, documents = streams([37, 11, 5], 2, 1)
    read_at_once = read(reader, ids, documents, [], sinks=4, window=60)
    assert torch.allclose(
        read(reader, ids, documents, [9, 10, 26, 41, 52], sinks=4, window=60), read_at_once, atol=2e-5
    )
    narrow = read(reader, ids, documents, [8, 16, 24, 32, 40, 48], sinks=4, window=8)
    other = read(reader, ids, documents, [5, 10, 15, 20, 25, 30, 35, 40, 45, 50], sinks=4, window=8)
    assert torch.allclose(narrow, other, atol=2e-5)
    assert not torch.allclose(narrow, read_at_once, atol=1e-2)


def test_gradients_stop_at_the_rows_begin_and_no_carried_tensor_keeps_a_graph():
    reader = model().train()
    ids, documents = streams([30], 1, 2)
    first = Rows(ids[:, :15], documents[:, :15])
    reader(first)[0].sum().backward()
    second = Rows(ids[:, 15:], documents[:, 15:], first.left)
    reader(second)[0].sum().backward()
    left = second.left
    for kept in (left.keys, left.values, left.states, left.tails):
        assert kept
        assert not any(tensor.requires_grad for tensor in kept.values())


def test_looking_at_the_right_place_costs_little_and_what_is_out_of_sight_is_not_asked_for():
    ids, documents = streams([10], 1, 3)
    looks = [Look(0, 9, 2, 4, "pointer"), Look(0, 3, 5, 6, "pointer"), Look(0, 9, 0, 3, "evidence")]
    layout = Rows(ids, documents, looks=looks, sinks=1, window=20)
    q = torch.zeros(1, 10, 2, 4)
    k = torch.zeros(1, 10, 1, 4)
    q[0, 9, 0, 0], k[0, 2:4, 0, 0] = 40.0, 1.0
    _, [(loss, weight)] = layout.attend(0, q, k, k, "pointer")
    assert weight == 1  # the second look's place comes after it
    assert loss.item() == pytest.approx(0, abs=1e-3)
    _, [(loss, _)] = layout.attend(1, q, k, k, "evidence")
    assert loss.item() == pytest.approx(torch.tensor(2.0).log().item(), abs=1e-3)
    assert layout.attend(2, q, k, k, None)[1] == []


def test_rows_wider_than_the_window_are_refused():
    ids, documents = streams([30], 1, 0)
    with pytest.raises(ValueError, match="at most the attention window, 20"):
        Rows(ids, documents, sinks=1, window=20)
    assert (Rows(ids[:, :20], documents[:, :20], sinks=1, window=20).before.documents == NONE).all()
