"""Ranking, deletion, insertion and area: closed forms, slow twins, invariances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from driving_xai.cli.console import exit_code
from driving_xai.errors import NonFiniteError
from driving_xai.metrics.curves import area, areas, deletion, insertion, rank
from driving_xai.metrics.quantities import PROBABILITY, STEERING_ERROR
from driving_xai.models.steering import SteeringConfig, SteeringModel
from driving_xai.perturb import blank
from driving_xai.types import Outputs

HEIGHT, WIDTH = 4, 5
PIXELS = HEIGHT * WIDTH
FRACTIONS = [k / PIXELS for k in range(PIXELS + 1)]


class Linear:
    """u = sum of weight x pixel value, with whole numbers, so that sums are exact in any order."""

    outputs = Outputs(kind="regression", names=("u",))

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight, self.batches = weight, []

    def __call__(self, frames):
        self.batches.append(len(frames))
        return (frames * self.weight).sum((1, 2, 3))[:, None]


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _whole(*shape: int, seed: int) -> torch.Tensor:
    return torch.randint(-9, 10, shape, generator=_generator(seed)).double()


@pytest.fixture
def model() -> Linear:
    return Linear(_whole(3, HEIGHT, WIDTH, seed=1))


@pytest.fixture
def frames() -> torch.Tensor:
    return _whole(3, 3, HEIGHT, WIDTH, seed=2)


@pytest.fixture
def ranks() -> torch.Tensor:
    return rank(torch.rand(3, HEIGHT, WIDTH, generator=_generator(3)), _generator())


# -- ranking


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(
        st.sampled_from([-np.inf, -1e30, -1.0, -1e-42, -0.0, 0.0, 1e-42, 0.5, 1.0, 3e38]).filter(np.isfinite),
        min_size=6,
        max_size=6,
    ),
    seed=st.integers(0, 99),
)
def test_rank_sorts_by_value_and_then_by_the_draw(values, seed):
    saliency = torch.tensor(values, dtype=torch.float32).view(1, 2, 3)
    ranks = rank(saliency, _generator(seed))[0].tolist()
    drawn = torch.randperm(6, generator=_generator(seed)).tolist()
    twin = sorted(range(6), key=lambda pixel: (-saliency.flatten()[pixel].item(), drawn.index(pixel)))
    assert [ranks[pixel] for pixel in twin] == [0, 1, 2, 3, 4, 5]


def test_rank_of_large_maps_is_a_permutation_in_falling_order():
    saliency = torch.randn(3, 40, 50, generator=_generator(5))
    ranks = rank(saliency, _generator())
    assert torch.equal(ranks.sort(1).values, torch.arange(2000).expand(3, -1))
    in_order = torch.empty(3, 2000).scatter_(1, ranks, saliency.flatten(1))
    assert (in_order.diff(dim=1) <= 0).all()


def test_rank_does_not_depend_on_the_batch():
    saliency = torch.randint(0, 3, (4, 6, 6), generator=_generator(1)).float()
    together = rank(saliency, _generator(7))
    alone = torch.cat([rank(each[None], _generator(7)) for each in saliency])
    assert torch.equal(together, alone)


def test_a_constant_map_is_ranked_by_the_draw_alone():
    flat = torch.zeros(1, 8, 8)
    assert not torch.equal(rank(flat, _generator(0)), rank(flat, _generator(1)))
    assert torch.equal(rank(flat, _generator(1)), rank(flat + 5, _generator(1)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_map_that_is_not_finite_is_refused(bad):
    saliency = torch.zeros(1, 2, 2)
    saliency[0, 1, 0] = bad
    with pytest.raises(NonFiniteError, match="expected finite values") as caught:
        rank(saliency, _generator())
    assert exit_code(caught.value) == 1, "one line on the command line, no traceback"


# -- curves


def _contributions(model: Linear, frames: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
    """What each pixel adds to the score, in the order of its rank."""
    added = (frames * model.weight).sum(1).flatten(1)
    return torch.zeros_like(added).scatter_(1, ranks, added)


def test_linear_deletion_is_the_total_less_what_was_removed(model, frames, ranks):
    added = _contributions(model, frames, ranks)
    expected = added.sum(1, keepdim=True) - torch.cat([torch.zeros(3, 1), added.cumsum(1)], 1)
    assert torch.equal(deletion(model, frames, ranks, FRACTIONS)[..., 0], expected)


def test_linear_insertion_is_what_was_shown(model, frames, ranks):
    added = _contributions(model, frames, ranks)
    expected = torch.cat([torch.zeros(3, 1, dtype=torch.float64), added.cumsum(1)], 1)
    assert torch.equal(insertion(model, frames, ranks, FRACTIONS)[..., 0], expected)


def test_linear_areas_meet():
    """On black, deletion and insertion of a linear model add up to the clean score at every point."""
    model, frames = Linear(_whole(3, HEIGHT, WIDTH, seed=8)), _whole(2, 3, HEIGHT, WIDTH, seed=9)
    ranks = rank(torch.rand(2, HEIGHT, WIDTH, generator=_generator(3)), _generator())
    together = deletion(model, frames, ranks, FRACTIONS) + insertion(model, frames, ranks, FRACTIONS)
    assert torch.equal(together, model(frames)[:, None].expand_as(together))


class Convolutional(nn.Module):
    outputs = Outputs(kind="multiclass", names=("a", "b"))

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 2 * 3, 2))

    def forward(self, frames):
        return self.layers(frames)


@pytest.mark.parametrize("fill", ["black", "mean", "blur"])
def test_endpoints_are_the_clean_frame_and_the_fill(fill):
    model, frames = Convolutional().double(), torch.rand(3, 3, HEIGHT, WIDTH, dtype=torch.float64)
    ranks = rank(torch.rand(3, HEIGHT, WIDTH), _generator())
    deleted, inserted = (
        curve(model, frames, ranks, [0, 0.3, 1], fill=fill) for curve in (deletion, insertion)
    )
    clean, filled = model(frames).detach(), model(blank(frames, fill)).detach()
    torch.testing.assert_close(deleted[:, 0], clean, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(inserted[:, -1], clean, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(deleted[:, -1], filled, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(inserted[:, 0], filled, rtol=1e-12, atol=1e-14)
    assert not deleted.requires_grad


def _slow_deletion(model, frames, ranks, fractions, fill):
    """One frame, one fraction, one forward pass at a time."""
    rows = []
    for frame, order in zip(frames, ranks, strict=True):
        points = []
        for fraction in fractions:
            edited = frame.clone()
            removed = (order < round(fraction * PIXELS)).view(HEIGHT, WIDTH)
            edited[:, removed] = blank(frame[None], fill)[0][:, removed]
            points.append(model(edited[None])[0])
        rows.append(torch.stack(points))
    return torch.stack(rows).detach()


@pytest.mark.parametrize("fill", ["black", "mean", "blur"])
def test_deletion_equals_its_slow_twin(fill):
    model, frames = Convolutional().double(), torch.rand(3, 3, HEIGHT, WIDTH, dtype=torch.float64)
    ranks = rank(torch.rand(3, HEIGHT, WIDTH), _generator())
    fractions = [0.1, 0.25, 0.6]
    expected = _slow_deletion(model, frames, ranks, fractions, fill)
    found = deletion(model, frames, ranks, fractions, fill=fill)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("curve", [deletion, insertion])
@pytest.mark.parametrize("batch_size", [1, 4, 7, 64])
def test_chunks_batches_and_order_change_nothing(model, frames, ranks, curve, batch_size):
    expected = curve(model, frames, ranks, FRACTIONS, batch_size=1000)
    model.batches.clear()
    assert torch.equal(curve(model, frames, ranks, FRACTIONS, batch_size=batch_size), expected)
    assert max(model.batches) <= max(batch_size, len(frames))
    shuffled = [2, 0, 1]
    assert torch.equal(curve(model, frames[shuffled], ranks[shuffled], FRACTIONS), expected[shuffled])
    alone = [curve(model, frames[b : b + 1], ranks[b : b + 1], FRACTIONS) for b in range(3)]
    assert torch.equal(torch.cat(alone), expected)


@pytest.mark.parametrize("curve", [deletion, insertion])
def test_methods_together_are_methods_alone_and_share_the_ends(model, frames, curve):
    ranks = rank(torch.rand(6, HEIGHT, WIDTH, generator=_generator(3)), _generator()).view(3, 2, PIXELS)
    together = curve(model, frames, ranks, FRACTIONS, clean=model(frames), batch_size=6)
    for method in range(2):
        assert torch.equal(together[:, method], curve(model, frames, ranks[:, method], FRACTIONS))
    model.batches.clear()
    curve(model, frames, ranks, FRACTIONS, clean=model(frames), batch_size=1000)
    # The clean pass above, the fill once, and the 19 points between for each method.
    assert sum(model.batches) == 3 + 3 + 2 * 19 * 3


def test_variants_stand_by_frame_as_a_recurrent_view_takes_them(frames, ranks):
    """A view of B states judges the N / B frames of a block with one state."""
    offsets = torch.tensor([0.0, 1000.0, 2000.0], dtype=torch.float64)
    plain = Linear(_whole(3, HEIGHT, WIDTH, seed=1))

    def with_state(batch):
        return plain(batch) + offsets.repeat_interleave(len(batch) // 3)[:, None]

    for curve in (deletion, insertion):
        found = curve(with_state, frames, ranks, FRACTIONS, batch_size=9)
        expected = curve(plain, frames, ranks, FRACTIONS) + offsets[:, None, None]
        assert torch.equal(found, expected)


def test_inputs_are_not_written_on(model, frames, ranks):
    kept = [tensor.clone() for tensor in (frames, ranks, model.weight)]
    for curve in (deletion, insertion):
        curve(model, frames, ranks, FRACTIONS)
    assert all(torch.equal(now, then) for now, then in zip((frames, ranks, model.weight), kept, strict=True))


# -- area


def test_area_of_straight_lines_by_hand():
    """The paper's check: a line from 4.67 to 8.35 degrees over 25 percent has 162.75 degree x percent."""
    fractions = [percent / 100 for percent in range(26)]
    line = torch.linspace(4.67, 8.35, 26, dtype=torch.float64)
    assert 100 * area(fractions, line).item() == pytest.approx((4.67 + 8.35) / 2 * 25, rel=1e-12)


def test_area_uses_the_steps_there_are():
    values = torch.tensor([[1.0, 3.0, 2.0], [0.0, 0.0, 4.0]], dtype=torch.float64)
    expected = [0.1 * 2.0 + 0.4 * 2.5, 0.4 * 2.0]
    torch.testing.assert_close(area([0.0, 0.1, 0.5], values), torch.tensor(expected, dtype=torch.float64))


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=30))
def test_area_in_equal_steps_is_rises(values):
    steps = len(values) - 1
    found = area([step / steps for step in range(steps + 1)], torch.tensor(values, dtype=torch.float64))
    rise = (sum(values) - values[0] / 2 - values[-1] / 2) / steps
    assert found.item() == pytest.approx(rise, abs=1e-9)


@pytest.mark.parametrize("quantity", [STEERING_ERROR, PROBABILITY], ids=lambda each: each.unit)
def test_areas_of_arrays_are_those_of_tensors(quantity):
    """And each formula as it is printed, point by point."""
    fractions = [0.0, 0.05, 0.2, 0.25]
    curves = np.random.default_rng(0).random((2, 3, 4))
    unedited = curves[..., 0] / 2
    ours = areas(fractions, curves, unedited, quantity=quantity)
    theirs = areas(fractions, torch.from_numpy(curves), torch.from_numpy(unedited), quantity=quantity)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other.numpy(), rtol=1e-14)
    curve = curves[1, 2]
    under = sum(
        (b - a) * (y + z) / 2 for a, b, y, z in zip(fractions, fractions[1:], curve, curve[1:], strict=False)
    )
    factor = 100 if quantity is STEERING_ERROR else 4
    expected = (factor * under, under / 0.25, factor * (under - 0.25 * unedited[1, 2]))
    assert [each[1, 2] for each in ours] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("fill", ["black", "blur"])
def test_pixels_are_converted_once_and_not_in_each_edited_frame(fill):
    """The scores are those of a model whose conversion is hidden, to the last bit."""
    torch.manual_seed(0)
    instant = SteeringModel(SteeringConfig(hidden_size=8)).eval().at(None)
    frames, ranks = torch.rand(2, 3, 80, 160), rank(torch.rand(2, 80, 160), _generator())
    hidden = deletion(lambda taken: instant(taken), frames, ranks, [0.0, 0.1, 0.5, 1.0], fill=fill)
    converted, convert = [], instant.converted
    instant.converted = lambda taken: converted.append(len(taken)) or convert(taken)
    found = deletion(instant, frames, ranks, [0.0, 0.1, 0.5, 1.0], fill=fill)
    assert torch.equal(found, hidden)
    assert converted == [4]
