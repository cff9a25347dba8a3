"""LIME against the lime package and scikit-learn, given the same patterns, and on a linear model."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression, Ridge

from driving_xai.explain.lime import LIME, Grid, Quickshift, Slic
from driving_xai.targets import left

GRID = Grid(rows=3, columns=4)


def _values(model, frame: torch.Tensor, patterns: torch.Tensor, segments: torch.Tensor) -> np.ndarray:
    """The model's output for each pattern, one at a time, hidden segments black."""
    values = []
    for pattern in patterns:
        edited = frame.clone()
        for segment, shown in enumerate(pattern):
            if not shown:
                edited[:, segments == segment] = 0
        with torch.no_grad():
            values.append(model(edited[None])[0, 0].item())
    return np.array(values)


@pytest.mark.parametrize(("width", "ridge"), [(0.25, 1.0), (0.25, 0.0), (0.5, 3.0), (None, 0.0), (None, 2.0)])
def test_coefficients_are_scikit_learns(smooth, frames, width, ridge):
    explain = LIME(segmentation=GRID, samples=60, kernel_width=width, ridge=ridge, seed=4)
    patterns = explain.patterns(12)
    weights = None
    if width is not None:
        shown = patterns.numpy().astype(float)
        cosine = shown.sum(1) / np.maximum(np.linalg.norm(shown, axis=1) * np.sqrt(12), 1e-12)
        weights = np.sqrt(np.exp(-((1 - cosine) ** 2) / width**2))
    for b, found in enumerate(explain.fit(smooth, frames, left)):
        values = _values(smooth, frames[b], patterns, found.segments)
        model = Ridge(alpha=ridge, tol=1e-12) if ridge else LinearRegression()
        model.fit(patterns.numpy(), values, sample_weight=weights)
        np.testing.assert_allclose(found.coefficients, model.coef_, rtol=1e-8, atol=1e-11)


class Scripted(np.random.RandomState):
    """Gives the lime package our patterns in place of its own draw."""

    def __init__(self, patterns: np.ndarray) -> None:
        super().__init__(0)
        self.patterns = patterns

    def randint(self, low, high=None, size=None, dtype=int):
        assert (low, high, size) == (0, 2, self.patterns.size)
        return self.patterns.ravel().astype(int)


@pytest.mark.parametrize("which", ["linear", "smooth"])
def test_equals_the_lime_package(request, frames, which):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lime.lime_image import LimeImageExplainer
    model = request.getfixturevalue(which)
    model = model(bias=2.0) if which == "linear" else model
    explain = LIME(segmentation=GRID, samples=50, seed=1)
    patterns = explain.patterns(12).numpy()
    found = explain.fit(model, frames[:1], left)[0]

    def judge(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()

    peer = LimeImageExplainer(feature_selection="none", random_state=Scripted(patterns)).explain_instance(
        frames[0].permute(1, 2, 0).numpy(),
        judge,
        labels=(0,),
        top_labels=None,
        hide_color=0,
        num_samples=50,
        segmentation_fn=GRID,
        random_seed=0,
    )
    expected = np.array([weight for _, weight in sorted(peer.local_exp[0])])
    np.testing.assert_allclose(found.coefficients, expected, rtol=1e-8, atol=1e-11)


def test_least_squares_finds_what_each_segment_of_a_linear_model_adds(linear, frames):
    model = linear(bias=-4.0)
    saliency = LIME(segmentation=GRID, samples=40, kernel_width=None, ridge=0)(model, frames, left)
    shares = (model.weight.detach() * frames).sum(1)
    segments = torch.from_numpy(GRID(frames[0].permute(1, 2, 0).numpy()))
    for b in range(3):
        for segment in range(12):
            inside = segments == segment
            torch.testing.assert_close(
                saliency[b][inside],
                shares[b][inside].sum().expand(int(inside.sum())),
                rtol=1e-9,
                atol=1e-10,
            )


def test_superpixels_that_differ_in_number_are_fitted_frame_by_frame(linear):
    """Two colours make two segments, three make three; each adds exactly its weights."""
    frames = torch.zeros(2, 3, 12, 16, dtype=torch.float64)
    frames[0, 0, :, 8:] = 1
    frames[1, 1, :6], frames[1, 2, 6:, 8:], frames[1, 0, 6:, :8] = 0.9, 0.8, 1

    def colours(frame: np.ndarray) -> np.ndarray:
        return np.unique(frame.reshape(-1, 3), axis=0, return_inverse=True)[1].reshape(frame.shape[:2]) * 7

    model = linear()
    explain = LIME(segmentation=colours, samples=30, kernel_width=None, ridge=0)
    found = explain.fit(model, frames, left)
    assert [len(each.coefficients) for each in found] == [2, 3]
    shares = (model.weight.detach() * frames).sum(1)
    for each, share in zip(found, shares, strict=True):
        for segment, coefficient in enumerate(each.coefficients):
            torch.testing.assert_close(
                coefficient, share[each.segments == segment].sum(), rtol=1e-9, atol=1e-10
            )


@pytest.mark.parametrize("segmentation", [Slic(segments=6), Quickshift(kernel_size=2, max_dist=8)])
def test_superpixels_follow_the_frames_colours(segmentation):
    """A white square on black: no segment holds both."""
    frame = np.zeros((24, 32, 3))
    frame[6:18, 10:22] = 1
    labels = segmentation(frame)
    inside = frame[..., 0] == 1
    assert not set(labels[inside]) & set(labels[~inside])
    assert np.array_equal(labels, segmentation(frame))


def test_a_grid_divides_the_frame_evenly():
    labels = Grid(rows=3, columns=4)(np.zeros((10, 16, 3)))
    sizes = np.bincount(labels.ravel())
    assert len(sizes) == 12
    assert sorted(set(sizes.tolist())) == [3 * 4, 4 * 4]
    assert labels[0, 0] == 0
    assert labels[-1, -1] == 11


def test_too_few_samples_for_least_squares_are_refused(smooth, frames):
    with pytest.raises(ValueError, match="got 12 samples for 12 segments without a ridge"):
        LIME(segmentation=GRID, samples=12, ridge=0)(smooth, frames, left)
