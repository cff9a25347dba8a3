"""Sanity checks: layer order, what is randomised, similarity against SciPy, noise of known effect."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from driving_xai.explain.baselines import CentrePrior, RandomOrder
from driving_xai.explain.gradient import Gradient
from driving_xai.metrics.curves import rank
from driving_xai.metrics.randomisation import (
    ModelRandomisation,
    layers_in_order,
    map_correlation,
    max_sensitivity,
    randomise_,
    top_overlap,
)
from driving_xai.models.steering import SteeringConfig, SteeringModel
from driving_xai.targets import magnitude


class _Crossed(nn.Module):
    """Called in another order than it is defined; owns a weight itself, and a layer that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((3,), 2.0))
        self.last = nn.Linear(3, 1)
        self.idle = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(3)
        self.first = nn.Linear(2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(x)) * self.scale)


def test_layers_come_in_the_order_of_calls_from_the_output_back() -> None:
    model = _Crossed().eval()
    found = layers_in_order(model, lambda: model(torch.zeros(1, 2)))
    assert found == ["last", "norm", "first", "", "idle"]
    assert not any(module._forward_pre_hooks for module in model.modules()), "hooks are gone"
    with pytest.raises(RuntimeError):
        layers_in_order(model, lambda: model(torch.zeros(1, 5)))
    assert not any(module._forward_pre_hooks for module in model.modules())


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_only_the_named_layers_change_and_their_draw_is_their_own() -> None:
    one, two, three = _Crossed(), _Crossed(), _Crossed()
    for model in (two, three):
        model.load_state_dict(one.state_dict())
    one.norm.running_mean.fill_(5)
    before = _weights(one)
    state = torch.random.get_rng_state()
    randomise_(one, ["first", "norm"], seed=1)
    assert torch.equal(torch.random.get_rng_state(), state), "others' draws stay as they were"
    after = _weights(one)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"first.weight", "first.bias"}, "batch norm starts as it was made; its statistics stay"
    randomise_(two, ["last", "first"], seed=1)
    assert torch.equal(two.first.weight, one.first.weight), "a longer list repeats a shorter one"
    randomise_(three, ["first"], seed=2)
    assert not torch.equal(three.first.weight, one.first.weight)


def test_a_weight_without_a_rule_keeps_mean_and_spread() -> None:
    model = _Crossed()
    model.scale = nn.Parameter(torch.randn(4000, generator=torch.Generator().manual_seed(0)) * 3 + 7)
    before = model.scale.detach().clone()
    randomise_(model, [""], seed=0)
    assert not torch.equal(model.scale, before)
    assert model.scale.mean().item() == pytest.approx(before.mean().item(), abs=0.2)
    assert model.scale.std().item() == pytest.approx(before.std().item(), rel=0.05)


@given(values=st.lists(st.integers(-3, 3), min_size=12, max_size=12), seed=st.integers(0, 50))
def test_spearman_is_scipys_with_ties(values: list[int], seed: int) -> None:
    ours = torch.tensor(values, dtype=torch.float32).view(1, 3, 4)
    theirs = torch.rand(1, 3, 4, generator=torch.Generator().manual_seed(seed))
    (found,) = map_correlation(ours, theirs)
    if len(set(values)) == 1:
        assert np.isnan(found)
    else:
        expected = stats.spearmanr(ours.flatten(), theirs.flatten()).statistic
        assert found == pytest.approx(expected, abs=1e-12)


def test_overlap_of_equal_opposite_and_random_maps() -> None:
    maps = torch.rand(200, 10, 20, generator=torch.Generator().manual_seed(0))
    ranks, opposite = (rank(each, torch.Generator().manual_seed(0)) for each in (maps, -maps))
    others = rank(torch.rand(200, 10, 20, generator=torch.Generator().manual_seed(1)), torch.Generator())
    assert (top_overlap(ranks, ranks, 0.1) == 1).all()
    assert (top_overlap(ranks, opposite, 0.1) == 0).all()
    assert top_overlap(ranks, others, 0.1).mean() == pytest.approx(0.1, abs=0.01)


def _target(scores: torch.Tensor) -> torch.Tensor:
    return scores[:, 0]


def test_noise_moves_a_map_of_the_frame_by_as_much_as_itself() -> None:
    """A map that is a frame's red channel: its change is the noise, whose norm is known."""
    frames = torch.full((2, 3, 40, 40), 0.5)
    frames[1] = 0.25

    def red(model, given, target):
        return given[:, 0]

    found = max_sensitivity(red, None, frames, _target, frames[:, 0], radius=0.1, draws=3, seed=0)
    expected = 0.1 / np.sqrt(3) / np.array([0.5, 0.25])
    assert found == pytest.approx(expected, rel=0.05)


def test_what_ignores_the_frame_does_not_move_and_noise_is_each_frames_own() -> None:
    frames = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    prior, random = CentrePrior(), RandomOrder(seed=0)
    still = max_sensitivity(
        prior,
        torch.nn.Identity(),
        frames,
        _target,
        prior(torch.nn.Identity(), frames, _target),
        radius=0.1,
        draws=2,
        seed=0,
    )
    assert (still == 0).all()
    maps = random(torch.nn.Identity(), frames, _target)
    together = max_sensitivity(
        random, torch.nn.Identity(), frames, _target, maps, radius=0.1, draws=2, seed=0
    )
    alone = [
        max_sensitivity(
            random,
            torch.nn.Identity(),
            frames[n : n + 1],
            _target,
            maps[n : n + 1],
            radius=0.1,
            draws=2,
            seed=0,
        )
        for n in (2, 0, 1)
    ]
    assert together == pytest.approx(np.concatenate([alone[1], alone[2], alone[0]]))
    assert (together > 0.3).all()
    zeros = torch.zeros(3, 8, 8)
    assert np.isnan(
        max_sensitivity(prior, torch.nn.Identity(), frames, _target, zeros, radius=0.1, draws=1, seed=0)
    ).all()


def test_a_whole_model_of_a_drive_is_randomised_at_its_first_frame() -> None:
    torch.manual_seed(0)
    model = SteeringModel(SteeringConfig(hidden_size=4, attention="none")).eval()
    found = ModelRandomisation()(model, torch.rand(1, 3, 80, 160), Gradient(), magnitude)
    assert found.curve.shape[0] == 1
    assert found.curve.shape[1] > 2
    assert (found.curve[:, -1].abs() < 0.9).all()
