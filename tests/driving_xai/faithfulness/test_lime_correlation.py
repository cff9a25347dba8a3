"""LIME by patch on models whose answer is known, and rank correlation against scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LinearRegression
from torch import nn

from driving_xai.contracts import Outputs
from driving_xai.faithfulness.lime_correlation import PatchLIME, lime_rank_correlation
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
    model = WeighedPixels(12, 16)
    worth = PatchLIME(grid=(3, 2), patterns=60)(model, frame, output(1))
    for row in range(3):
        for column in range(2):
            part = (slice(None), slice(4 * row, 4 * row + 4), slice(8 * column, 8 * column + 8))
            assert worth[row, column] == pytest.approx(
                float((frame * model.weight[1])[part].sum()), abs=1e-10
            )


def test_a_fill_is_what_hides(frame):
    """Hidden by its own value nothing changes, so that no patch is worth anything."""
    grey = torch.full_like(frame, 0.3)
    worth = PatchLIME(grid=(3, 2), patterns=60, fill=0.3)(WeighedPixels(12, 16), grey, output(0))
    np.testing.assert_allclose(worth, 0, atol=1e-10)


def test_the_fit_is_least_squares_with_an_intercept():
    lime = PatchLIME(patterns=1000, seed=3)
    scores = np.random.default_rng(2).random((4, 1000)) + lime.left[:, 3]
    for ours, each in zip(lime.fit(scores), scores, strict=True):
        np.testing.assert_allclose(ours, LinearRegression().fit(lime.left, each).coef_, atol=1e-12)


def test_patches_that_do_not_divide_the_frame_cover_it_once():
    lime = PatchLIME(grid=(3, 2), patterns=40)
    frame = torch.ones(3, 10, 7)
    shown = torch.cat(list(lime.occlusions(frame, batch_size=7)))
    assert shown.shape == (40, 3, 10, 7)
    for pattern, picture in zip(lime.left, shown, strict=True):
        for row in range(10):
            for column in range(7):
                expected = pattern[(row * 3 // 10) * 2 + column * 2 // 7]
                assert bool(picture[0, row, column]) == expected


def test_batch_size_and_calls_change_nothing(frame):
    model, lime = WeighedPixels(12, 16), PatchLIME(grid=(3, 4), patterns=50, seed=2)
    given = frame.clone()
    whole = lime(model, frame, output(0), batch_size=50)
    np.testing.assert_allclose(lime(model, frame, output(0), batch_size=7), whole, rtol=1e-10)
    again = PatchLIME(grid=(3, 4), patterns=50, seed=2)(model, frame, output(0), batch_size=50)
    np.testing.assert_array_equal(again, whole)
    assert torch.equal(frame, given)


def test_patterns_keep_about_as_many_patches_as_asked():
    kept = PatchLIME(patterns=4000, kept=0.3).left
    assert kept.mean() == pytest.approx(0.3, abs=4 * np.sqrt(0.21 / kept.size))


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
    with pytest.raises(ValueError, match="expected more than the 49 patches"):
        PatchLIME(patterns=49)
    with pytest.raises(ValueError, match=r"got worths of shape \(1, 3\) and maps of \(1, 4\)"):
        lime_rank_correlation(np.zeros((1, 3)), np.zeros((1, 4)))
    with pytest.raises(ValueError, match="not finite"):
        lime_rank_correlation(np.array([[0.0, np.nan]]), np.zeros((1, 2)))
