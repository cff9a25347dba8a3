"""The roles of the sign against slow twins, values and gradients, and what attention may change."""

import math

import pytest
import torch

from driving_xai.models.quantize import sign_of_weighted
from driving_xai.models.sign_path import (
    SignPath,
    centred_sign,
    expected_sign,
    stochastic_sign,
    ternary_sign,
)

SHARPNESS, THRESHOLD = 1.7, 0.4


def case(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features, relative attention and a gradient from above, in float64."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, relative, upstream = draw(2, 6, 4), draw(2, 6, 1).exp(), draw(2, 6, 4)
    return x.requires_grad_(), relative.requires_grad_(), upstream


# Each role of one number: its value, and its derivative by the product p = r * x.
def slow_clipped(p: float, u: float) -> tuple[float, float]:
    return (1.0 if p >= 0 else -1.0), float(abs(p) <= 1)


def slow_identity(p: float, u: float) -> tuple[float, float]:
    return (1.0 if p >= 0 else -1.0), 1.0


def slow_tanh(p: float, u: float) -> tuple[float, float]:
    return (1.0 if p >= 0 else -1.0), 1 / math.cosh(p) ** 2


def slow_ternary(p: float, u: float) -> tuple[float, float]:
    return (0.0 if abs(p) <= THRESHOLD else math.copysign(1.0, p)), float(abs(p) <= 1)


def slow_centred(p: float, u: float) -> tuple[float, float]:
    return (1.0 if p - THRESHOLD >= 0 else -1.0), float(abs(p - THRESHOLD) <= 1)


def slow_expected(p: float, u: float) -> tuple[float, float]:
    positive = 1 / (1 + math.exp(-SHARPNESS * p))
    return 2 * positive - 1, 2 * SHARPNESS * positive * (1 - positive)


def slow_stochastic(p: float, u: float) -> tuple[float, float]:
    positive = 1 / (1 + math.exp(-SHARPNESS * p))
    return (1.0 if u < positive else -1.0), 2 * SHARPNESS * positive * (1 - positive)


UNIFORM = torch.rand(6, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
ROLES = {
    "clipped": (lambda x, r: sign_of_weighted(x, r, "clipped"), slow_clipped),
    "identity": (lambda x, r: sign_of_weighted(x, r, "identity"), slow_identity),
    "tanh": (lambda x, r: sign_of_weighted(x, r, "tanh"), slow_tanh),
    "ternary": (lambda x, r: ternary_sign(x, r, threshold=THRESHOLD), slow_ternary),
    "centred": (lambda x, r: centred_sign(x, r, threshold=THRESHOLD), slow_centred),
    "expected": (lambda x, r: expected_sign(x, r, sharpness=SHARPNESS), slow_expected),
    "stochastic": (
        lambda x, r: stochastic_sign(x, r, sharpness=SHARPNESS, uniform=UNIFORM),
        slow_stochastic,
    ),
}


@pytest.mark.parametrize("role", ROLES)
def test_values_and_gradients_are_those_of_the_slow_twin(role: str) -> None:
    fast, slow = ROLES[role]
    x, relative, upstream = case()
    signs = fast(x, relative)
    signs.backward(upstream)
    values, to_x, to_relative = (torch.zeros_like(part) for part in (x, x, relative))
    for b, i, c in torch.cartesian_prod(torch.arange(2), torch.arange(6), torch.arange(4)).tolist():
        at_x, at_r = x[b, i, c].item(), relative[b, i, 0].item()
        value, slope = slow(at_x * at_r, UNIFORM[i, c].item())
        values[b, i, c] = value
        to_x[b, i, c] = upstream[b, i, c].item() * slope * at_r
        to_relative[b, i, 0] += upstream[b, i, c].item() * slope * at_x
    torch.testing.assert_close(signs, values)
    torch.testing.assert_close(x.grad, to_x)
    torch.testing.assert_close(relative.grad, to_relative)


def path(role: str, **keywords) -> SignPath:
    defaults = {
        "estimator": "clipped",
        "threshold": 0.5,
        "sharpness": 2.0,
        "evaluation": "expectation",
        "positions": 6,
        "channels": 4,
    }
    return SignPath(role=role, **{**defaults, **keywords}).double()


@pytest.mark.parametrize("role", ["training", "gate", "multiplicative", "ternary", "stochastic", "centred"])
def test_only_the_papers_role_ignores_attention(role: str) -> None:
    x, relative, _ = case()
    sign_path, order = path(role).eval(), torch.tensor([3, 0, 5, 1, 2, 4])
    signs, permuted = (sign_path(x, r, r) for r in (relative, relative[:, order]))
    assert torch.equal(signs, permuted) == (role == "training")


@pytest.mark.parametrize("estimator", ["clipped", "identity", "tanh"])
def test_in_eval_mode_attention_has_the_derivative_of_a_difference_quotient(estimator) -> None:
    """Zero: no step of attention moves a sign. The features' gradient stays, and training keeps its own."""
    for mode, derivative in (("eval", "actual"), ("eval", "straight-through"), ("train", "actual")):
        x, relative, upstream = case()
        signs = path("training", estimator=estimator).train(mode == "train")
        found = signs(x, relative, relative, derivative=derivative)
        found.backward(upstream)
        twin_x, twin_relative, _ = case()
        sign_of_weighted(twin_x, twin_relative, estimator).backward(upstream)
        torch.testing.assert_close(x.grad, twin_x.grad)
        step = torch.full_like(relative, 1e-3)
        slope = (
            signs(x, relative + step, relative + step) - signs(x, relative - step, relative - step)
        ) / 2e-3
        assert slope.abs().max() == 0
        if (mode, derivative) == ("eval", "actual"):
            assert relative.grad is None
        else:
            torch.testing.assert_close(relative.grad, twin_relative.grad)


def test_sampled_signs_average_to_their_expectation() -> None:
    """10,000 draws of each sign: within 4.5 standard deviations of the mean everywhere."""
    x, relative, _ = case()
    generator = torch.Generator().manual_seed(4)
    uniform = torch.rand(10_000, 2, 6, 4, generator=generator)
    drawn = stochastic_sign(x, relative, sharpness=SHARPNESS, uniform=uniform).mean(0)
    assert (drawn - expected_sign(x, relative, sharpness=SHARPNESS)).abs().max() < 4.5 / 100


def test_sampled_evaluation_draws_once_and_alike_for_every_frame() -> None:
    x, relative, _ = case()
    sampled = path("stochastic", evaluation="sampled").eval()
    together = sampled(x, relative, relative)
    assert set(together.unique().tolist()) == {-1.0, 1.0}
    torch.testing.assert_close(sampled(x, relative, relative), together)
    torch.testing.assert_close(sampled(x[1:], relative[1:], relative[1:]), together[1:])
    sampled.train()
    assert not torch.equal(sampled(x, relative, relative), sampled(x, relative, relative))
