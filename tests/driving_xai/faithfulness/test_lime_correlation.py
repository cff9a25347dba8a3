"""LIME by patch on models whose answer is known, and rank correlation against scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LinearRegression
from torch import nn

from driving_xai.contracts import Outputs
from driving_xai.explain.lime import Grid
from driving_xai.faithfulness.lime_correlation import lime_rank_correlation, patch_lime, patch_means
from driving_xai.targets import output


class WeighedPixels(nn.Module):
    """Linear in the frame: hiding a patch in black costs exactly its weighed sum."""

    outputs = Outputs(kind="multiclass", names=("a", "b"))

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(2, 3, height, width, generator=generator, dtype=torch.float64)

    def forward(self, frames):
        return torch.einsum("bchw,kchw->bk", frames, self.weight) + 5


@pytest.fixture
def frame() -> torch.Tensor:
    return torch.rand(3, 12, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_a_linear_model_gives_each_patch_its_own_sum(frame):
    """Ordinary least squares on a grid, whatever defaults LIME itself has."""
    model = WeighedPixels(12, 16)
    lime = patch_lime(grid=Grid(rows=3, columns=2), samples=60)
    (found,) = lime.fit(model, frame[None], output(1))
    for row in range(3):
        for column in range(2):
            part = (slice(None), slice(4 * row, 4 * row + 4), slice(8 * column, 8 * column + 8))
            expected = float((frame * model.weight[1])[part].sum())
            assert float(found.coefficients[2 * row + column]) == pytest.approx(expected, abs=1e-10)


def test_the_fit_is_least_squares_with_an_intercept():
    lime = patch_lime(seed=3)
    patterns = lime.patterns(49)
    scores = np.random.default_rng(2).random(1000) + patterns[:, 3].numpy()
    expected = LinearRegression().fit(patterns, scores).coef_
    np.testing.assert_allclose(lime.solver(patterns).numpy() @ scores, expected, atol=1e-12)


def test_patch_means_are_over_the_pixels_of_a_patch():
    maps = torch.rand(2, 10, 7, generator=torch.Generator().manual_seed(3))
    grid = Grid(rows=3, columns=2)
    found = patch_means(maps, grid=grid)
    for each, means in zip(maps, found, strict=True):
        pixels: dict[int, list[float]] = {patch: [] for patch in range(6)}
        for row in range(10):
            for column in range(7):
                pixels[row * 3 // 10 * 2 + column * 2 // 7].append(float(each[row, column]))
        np.testing.assert_allclose(means, [np.mean(values) for values in pixels.values()], rtol=1e-12)
    with pytest.raises(ValueError, match="maps are 10 x 7; expected at least 12 x 2"):
        patch_means(maps, grid=Grid(rows=12, columns=2))


def test_correlation_is_spearmans_with_mid_ranks():
    rng = np.random.default_rng(0)
    lime, maps = rng.normal(size=(20, 49)), rng.integers(0, 4, size=(20, 49)).astype(float)
    expected = [stats.spearmanr(a, b).statistic for a, b in zip(lime, maps, strict=True)]
    np.testing.assert_allclose(lime_rank_correlation(lime, maps), expected, atol=1e-12)
    np.testing.assert_allclose(lime_rank_correlation(lime, np.exp(lime)), 1, atol=1e-12)
    np.testing.assert_allclose(lime_rank_correlation(lime, -lime), -1, atol=1e-12)


def test_a_map_that_orders_nothing_has_no_correlation():
    lime = np.arange(12.0).reshape(2, 6)
    found = lime_rank_correlation(lime, np.stack([np.ones(6), np.arange(6.0)]))
    assert np.isnan(found[0])
    assert found[1] == pytest.approx(1)


def test_bad_input_says_what_was_expected():
    with pytest.raises(ValueError, match="got 49 samples for 49 segments without a ridge"):
        patch_lime(samples=49).patterns(49)
    # The tests check the signature's shapes before the function does.
    with pytest.raises((ValueError, TypeError)):
        lime_rank_correlation(np.zeros((1, 3)), np.zeros((1, 4)))
    with pytest.raises(ValueError, match="not finite"):
        lime_rank_correlation(np.array([[0.0, np.nan]]), np.zeros((1, 2)))
