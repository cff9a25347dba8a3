"""L2X's samples against their definition, and the model that blackens what it did not select."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from driving_xai.models.frozen_cnn import FrozenCNN
from driving_xai.models.subset_sampling import L2XConfig, L2XModel, top_k, union_of_samples

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0, 0.5, 0.5], [0.0, 0.0, 0.0, 3.0, -9.0, 1.0]], dtype=torch.float64)


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("temperature", ["divide", "multiply"])
def test_union_is_the_maximum_of_gumbel_softmax_samples(temperature):
    """A slow twin: one number at a time, from the same uniform draws."""
    uniform = torch.rand(3, 2, 6, generator=seeded(), dtype=torch.float64)
    found = union_of_samples(LOGITS, samples=3, tau=0.4, temperature=temperature, generator=seeded())
    for row in range(2):
        best = [0.0] * 6
        for sample in range(3):
            noisy = [
                float(LOGITS[row, i]) - math.log(-math.log(float(uniform[sample, row, i]))) for i in range(6)
            ]
            scaled = [value / 0.4 if temperature == "divide" else value * 0.4 for value in noisy]
            total = sum(math.exp(value) for value in scaled)
            best = [max(old, math.exp(value) / total) for old, value in zip(best, scaled, strict=True)]
        torch.testing.assert_close(found[row], torch.tensor(best, dtype=torch.float64), rtol=1e-12, atol=0)


def test_cold_samples_draw_cells_with_the_softmax_probability():
    """At tau near 0 a cell is in the union of k draws with probability 1 - (1 - p)^k."""
    draws, k = 20_000, 3
    logits = LOGITS[:1].expand(draws, -1)
    found = union_of_samples(logits, samples=k, tau=1e-3, generator=seeded()) > 0.5
    expected = 1 - (1 - torch.softmax(LOGITS[0], 0)) ** k
    error = (expected * (1 - expected) / draws).sqrt()
    assert ((found.double().mean(0) - expected).abs() < 4 * error).all()


def test_a_union_has_at_most_as_many_cells_as_samples():
    logits = torch.randn(500, 49, generator=seeded(), dtype=torch.float64)
    found = union_of_samples(logits, samples=8, tau=1e-3, generator=seeded(6))
    sizes = (found > 0.5).sum(1)
    assert sizes.max() <= 8
    assert sizes.min() >= 1
    assert (sizes < 8).any(), "samples are independent, so that some cells are drawn twice"
    assert found.sum(1).max() <= 8 + 1e-6


def test_the_multiplying_temperature_makes_nearly_uniform_masks():
    """Why it is not the default: logits of spread 3, 49 cells, tau 0.1 as in the paper."""
    logits = 3 * torch.randn(400, 49, generator=seeded(), dtype=torch.float64)
    mass = {
        rule: float(
            union_of_samples(logits, samples=8, tau=0.1, temperature=rule, generator=seeded(7)).sum(1).mean()
        )
        for rule in ("divide", "multiply")
    }
    assert mass["divide"] == pytest.approx(3.8, abs=0.3)
    assert mass["multiply"] == pytest.approx(1.2, abs=0.1)


def test_a_draw_of_zero_leaves_the_samples_finite(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.zeros(shape))
    assert union_of_samples(torch.zeros(1, 4), samples=2, tau=0.1).isfinite().all()


def test_samples_let_gradients_through():
    logits = LOGITS.clone().requires_grad_()
    (union_of_samples(logits, samples=2, tau=1.0, generator=seeded())[:, 0]).sum().backward()
    assert (logits.grad[:, 0] > 0).all()
    torch.testing.assert_close(logits.grad.sum(1), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)


def test_top_k_takes_the_first_of_equal_cells():
    ties = torch.tensor([[1.0, 2.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    assert top_k(ties, k=2).tolist() == [[1, 1, 0, 0], [1, 1, 0, 0]]
    assert top_k(ties, k=9).tolist() == [[1, 1, 1, 1], [1, 1, 1, 1]]


@pytest.fixture
def model() -> L2XModel:
    torch.manual_seed(2)
    return L2XModel(L2XConfig(classes=("three", "eight"), channels=(4, 4, 4), kernel=3)).double()


def test_a_hard_prediction_sees_the_selected_patches_only(model):
    model.eval()
    frames = torch.rand(3, 3, 16, 20, generator=seeded(), dtype=torch.float64)
    patches = model.selection(frames)
    assert patches.sum((1, 2)).tolist() == [4, 4, 4]
    blackened = torch.zeros_like(frames)
    for b, row, column in patches.nonzero().tolist():
        square = (b, slice(None), slice(4 * row, 4 * row + 4), slice(4 * column, 4 * column + 4))
        blackened[square] = frames[square]
    expected = model.classify(model.backbone(blackened).mean((2, 3)))
    torch.testing.assert_close(model(frames), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        model.attention(frames).sum((1, 2)), torch.ones(3, dtype=torch.float64), rtol=1e-12, atol=0
    )


def test_training_samples_and_trains_both_stacks(model):
    frames = torch.rand(2, 3, 16, 16, generator=seeded(), dtype=torch.float64)
    first, again = (model.train()(frames, generator=seeded(1)) for _ in range(2))
    other = model(frames, generator=seeded(2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.allclose(first, other)
    first.sum().backward()
    assert all(float(weight.grad.abs().sum()) > 0 for weight in model.explainer.parameters())
    assert float(model.explain.weight.grad.abs().sum()) > 0


def test_bad_settings_and_sizes_say_what_was_expected(model):
    with pytest.raises(ValueError, match="subset_size is 0"):
        replace(model.config, subset_size=0)
    with pytest.raises(ValueError, match="frames are 18 x 16; expected multiples of 4"):
        model(torch.zeros(1, 3, 18, 16, dtype=torch.float64))


def test_two_given_stacks_keep_their_weights_and_cut_the_frame_by_their_grid():
    """Patches of a stack that is no small CNN are as large as its stride, here 32 px of timm's."""
    torch.manual_seed(0)
    stacks = FrozenCNN("resnet10t"), FrozenCNN("resnet10t")
    before = stacks[1].state_dict()["trunk.conv1.0.weight"].clone()
    model = L2XModel(L2XConfig(classes=("cat", "dog"), subset_size=2), stacks=stacks).eval()
    assert torch.equal(model.backbone.state_dict()["trunk.conv1.0.weight"], before)
    frames = torch.rand(2, 3, 64, 96, generator=seeded())
    chosen = model.selection(frames)
    assert chosen.shape == (2, 2, 3)
    shown = torch.zeros_like(frames)
    for b, row, column in chosen.nonzero().tolist():
        square = (b, slice(None), slice(32 * row, 32 * row + 32), slice(32 * column, 32 * column + 32))
        shown[square] = frames[square]
    expected = model.classify(model.backbone(shown).mean((2, 3)))
    torch.testing.assert_close(model(frames), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="frames are 64 x 80; expected multiples of 32, a patch"):
        model(torch.zeros(1, 3, 64, 80))
