"""Controls know nothing of the model and do not depend on how frames are batched."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch import nn

from driving_xai.explain.baselines import CentrePrior, RandomOrder


@pytest.fixture
def frames() -> torch.Tensor:
    return torch.rand(5, 3, 12, 20, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("control", [RandomOrder(seed=3), CentrePrior()])
def test_batch_and_order_change_nothing(control, frames):
    together = control(nn.Identity(), frames, None)
    assert torch.equal(together, torch.cat([control(nn.Identity(), frame[None], None) for frame in frames]))
    shuffled = [3, 1, 4, 0, 2]
    assert torch.equal(control(nn.Identity(), frames[shuffled], None), together[shuffled])
    channels_last = frames.contiguous(memory_format=torch.channels_last)
    assert torch.equal(control(nn.Identity(), channels_last, None), together)


def test_random_maps_are_uniform_and_differ_by_frame_and_seed(frames):
    maps = RandomOrder(seed=3)(nn.Identity(), frames, None)
    assert kstest(maps.flatten().numpy(), "uniform").pvalue > 0.01
    correlations = np.corrcoef(maps.flatten(1).numpy())[np.triu_indices(5, 1)]
    assert np.abs(correlations).max() < 4 / np.sqrt(240)
    assert not torch.equal(maps, RandomOrder(seed=4)(nn.Identity(), frames, None))
    assert torch.equal(maps, RandomOrder(seed=3)(nn.Identity(), frames, None))
    assert torch.equal(
        RandomOrder(seed=-1)(nn.Identity(), frames, None), RandomOrder(seed=-1)(nn.Identity(), frames, None)
    )


def test_centre_prior_is_a_gaussian_stretched_to_the_frame(frames):
    saliency = CentrePrior(spread=0.2)(nn.Identity(), frames, None)[0]
    for row, column in ((0, 0), (5, 9), (11, 4)):
        y, x = (row + 0.5) / 12 - 0.5, (column + 0.5) / 20 - 0.5
        assert saliency[row, column].item() == pytest.approx(np.exp(-(x * x + y * y) / 0.08), rel=1e-5)
    assert torch.allclose(saliency, saliency.flip(0))
    assert torch.allclose(saliency, saliency.flip(1))


def test_the_prior_can_look_at_the_road(frames):
    saliency = CentrePrior(row=0.75, column=0.25)(nn.Identity(), frames, None)[0]
    assert saliency.flatten().argmax().item() // 20 in (8, 9)
    assert saliency.flatten().argmax().item() % 20 in (4, 5)


def test_the_width_does_not_order_pixels(frames):
    narrow, wide = (
        CentrePrior(spread=spread)(nn.Identity(), frames, None)[0].double() for spread in (0.2, 0.5)
    )
    distance = -narrow.log() * 0.08
    torch.testing.assert_close(distance, -wide.log() * 0.5, rtol=1e-4, atol=1e-6)


def test_frames_of_half_precision_have_draws_too(frames):
    for dtype in (torch.bfloat16, torch.float16):
        drawn = RandomOrder(seed=3)(nn.Identity(), frames.to(dtype), None)
        assert torch.equal(drawn, RandomOrder(seed=3)(nn.Identity(), frames.to(dtype), None))
