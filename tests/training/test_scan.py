import torch

from training.scan import Segments, causal_conv, selective_scan, selective_scan_reference

FOREST = [(0, 37, -1), (37, 5, 0), (42, 18, 0), (60, 20, -1), (80, 3, 3)]


def leaves(segments, inner, dtype):
    generator = torch.Generator().manual_seed(3)
    tokens = int(segments.rows[:, 1].sum())

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    values = [
        normal(tokens, inner),
        torch.nn.functional.softplus(normal(tokens, inner) - 2),
        -torch.exp(0.5 * normal(inner, 16)),
        normal(tokens, 16),
        normal(tokens, 16),
        normal(inner),
    ]
    return [value.to(dtype).requires_grad_() for value in values]


def test_scan_and_its_gradients_equal_a_float64_loop_over_tokens():
    segments = Segments(FOREST)
    fast, exact = leaves(segments, 48, torch.float32), leaves(segments, 48, torch.float64)
    y = selective_scan(*fast, segments)
    expected = selective_scan_reference(*exact, segments)
    weights = torch.randn(*y.shape, generator=torch.Generator().manual_seed(4))
    (y * weights).sum().backward()
    (expected * weights.double()).sum().backward()
    assert (y.double() - expected).abs().max() < 1e-4
    for value, reference in zip(fast, exact, strict=True):
        scale = reference.grad.abs().max()
        assert (value.grad.double() - reference.grad).abs().max() / scale < 1e-5


def test_convolution_continues_from_the_parent_and_its_gradients_are_those_of_torch():
    segments = Segments(FOREST)
    generator = torch.Generator().manual_seed(5)
    x, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((83, 32), (4, 32), (32,)))
    given = [value.clone().requires_grad_() for value in (x, weight, bias)]
    twin = [value.double().requires_grad_() for value in (x, weight, bias)]
    y = causal_conv(*given, segments)
    padded = torch.cat([twin[0], torch.zeros(1, 32, dtype=torch.float64)])
    taps = padded[torch.from_numpy(segments.history)]
    expected = torch.nn.functional.silu((taps * twin[1]).sum(1) + twin[2])
    weights = torch.randn(*y.shape, generator=generator)
    (y * weights).sum().backward()
    (expected * weights.double()).sum().backward()
    assert (y.double() - expected).abs().max() < 1e-5
    for value, reference in zip(given, twin, strict=True):
        assert (value.grad.double() - reference.grad).abs().max() / reference.grad.abs().max() < 1e-5


def test_history_of_a_branch_begins_with_the_end_of_its_parent():
    history = Segments(FOREST).history
    assert history[37].tolist() == [34, 35, 36, 37]
    assert history[44].tolist() == [36, 42, 43, 44]
    assert history[60].tolist() == [-1, -1, -1, 60]
