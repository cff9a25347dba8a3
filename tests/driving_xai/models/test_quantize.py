"""The quantiser and the signs against slow twins: forward values and straight-through gradients."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from driving_xai.models.quantize import Quantizer, gate, quantize, sign_of_weighted


def slow_quantize(x: float, high: float, bits: int) -> float:
    """Eq. 7 with a = 0, a level at a time."""
    levels = [high * k / (2**bits - 1) for k in range(2**bits)]
    clipped = min(max(x, 0.0), high)
    return min(levels, key=lambda level: abs(level - clipped))


@settings(max_examples=60, deadline=None)
@given(x=st.floats(-2, 9), high=st.floats(0.5, 8), bits=st.integers(1, 8))
def test_rounds_to_the_nearest_level(x: float, high: float, bits: int) -> None:
    rounded = quantize(torch.tensor(x, dtype=torch.float64), torch.tensor(high, dtype=torch.float64), bits)
    step = high / (2**bits - 1)
    # A value halfway between two levels may go to either.
    assert abs(float(rounded) - min(max(x, 0), high)) <= step / 2 + 1e-12
    assert abs(float(rounded) / step - round(float(rounded) / step)) < 1e-9
    assert abs(float(rounded) - slow_quantize(x, high, bits)) <= step + 1e-12


def test_gradient_is_one_inside_the_range_and_zero_outside() -> None:
    x = torch.tensor([-1.0, 0.0, 0.3, 5.9, 6.0, 6.1], requires_grad=True)
    quantize(x, torch.tensor(6.0), 4).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 0]


def test_learned_range_collects_the_gradient_of_clipped_values() -> None:
    quantizer = Quantizer(bits=4, range_rule="learned")
    x = torch.tensor([1.0, 7.0, 9.0])
    (quantizer(x) * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert quantizer.high.grad.item() == 5.0


def test_tracked_range_follows_training_and_freezes_in_eval() -> None:
    quantizer = Quantizer(bits=8, range_rule="ema-max", momentum=0.5)
    quantizer(torch.tensor([1.0, 3.0]))
    assert quantizer.high.item() == 3.0
    quantizer(torch.tensor([5.0]))
    assert quantizer.high.item() == 4.0
    quantizer.eval()
    assert quantizer(torch.tensor([9.0])).item() == pytest.approx(4.0)
    assert quantizer.high.item() == 4.0


def test_percentile_range_ignores_outliers() -> None:
    quantizer = Quantizer(bits=8, range_rule="percentile")
    quantizer(torch.cat((torch.linspace(0, 1, 9990), torch.full((10,), 1e6))))
    assert quantizer.high.item() == pytest.approx(1.0)


def test_sign_and_its_straight_through_gradient_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    x[0, 0, 0] = 0.0
    weight = torch.rand(2, 5, 1, generator=generator, dtype=torch.float64) * 3
    upstream = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    x.requires_grad_(), weight.requires_grad_()
    signs = sign_of_weighted(x, weight)
    (signs * upstream).sum().backward()
    to_x, to_weight = torch.zeros_like(x), torch.zeros_like(weight)
    for b in range(2):
        for i in range(5):
            for c in range(3):
                product = x[b, i, c].item() * weight[b, i, 0].item()
                assert signs[b, i, c] == (1.0 if product >= 0 else -1.0)
                if math.fabs(product) <= 1:
                    to_x[b, i, c] = upstream[b, i, c] * weight[b, i, 0].item()
                    to_weight[b, i, 0] += upstream[b, i, c] * x[b, i, c].item()
    torch.testing.assert_close(x.grad, to_x)
    torch.testing.assert_close(weight.grad, to_weight)


def test_gate_opens_above_the_mean() -> None:
    relative = torch.tensor([0.0, 0.9, 1.0, 1.1, 2.5], requires_grad=True)
    opened = gate(relative)
    opened.sum().backward()
    assert opened.tolist() == [0, 0, 0, 1, 1]
    assert relative.grad.tolist() == [1, 1, 1, 1, 0]
