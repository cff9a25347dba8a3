"""A removed region against a pixel-by-pixel twin, and its control: the same area, elsewhere, inside the frame."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter1d

from driving_xai.errors import NonFiniteError
from driving_xai.metrics.region_removal import moved, other_places, remove_region


def masks() -> st.SearchStrategy[np.ndarray]:
    return st.builds(
        lambda height, width, seed, share: np.random.default_rng(seed).random((height, width)) < share,
        st.integers(1, 9),
        st.integers(1, 9),
        st.integers(0, 999),
        st.sampled_from([0.03, 0.1, 0.3, 0.6]),
    ).filter(lambda mask: mask.any())


def places_by_hand(mask: np.ndarray) -> set[tuple[int, int]]:
    """Every offset is tried, pixel by pixel."""
    height, width = mask.shape
    pixels = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    found = set()
    for down in range(-height, height + 1):
        for right in range(-width, width + 1):
            there = {(y + down, x + right) for y, x in pixels}
            inside = all(0 <= y < height and 0 <= x < width for y, x in there)
            if inside and not there & pixels:
                found.add((down, right))
    return found


@settings(max_examples=150, deadline=None)
@given(masks())
def test_other_places_are_all_that_fit_without_touching_the_region(mask: np.ndarray) -> None:
    found = other_places(mask, most=10**6)
    assert {tuple(each) for each in found.tolist()} == places_by_hand(mask)
    for offset in found:
        there = moved(mask, offset)
        assert there.sum() == mask.sum()
        assert not (there & mask).any()


def test_some_places_are_drawn_evenly_and_by_the_seed() -> None:
    mask = np.zeros((6, 6), bool)
    mask[2:4, 2:4] = True
    all_places = places_by_hand(mask)
    drawn = [tuple(each) for seed in range(600) for each in other_places(mask, most=4, seed=seed).tolist()]
    counts = [drawn.count(place) for place in all_places]
    assert sum(counts) == len(drawn) == 2400
    assert min(counts) > 0.6 * 2400 / len(all_places)
    assert max(counts) < 1.4 * 2400 / len(all_places)
    np.testing.assert_array_equal(other_places(mask, seed=3), other_places(mask, seed=3))


def weighted(frames: torch.Tensor) -> torch.Tensor:
    """A linear model: two sums of pixels with known weights."""
    weights = torch.arange(2 * frames[0].numel(), dtype=frames.dtype).view(2, -1) / 100
    return frames.flatten(1) @ weights.T


def without_by_hand(frame: np.ndarray, mask: np.ndarray, fill: str) -> np.ndarray:
    """One pixel after the other."""
    edited = frame.copy()
    smooth = frame
    if fill == "blur":
        kernel = np.zeros(11)
        kernel[5] = 1
        kernel = gaussian_filter1d(kernel, 5.0)
        padded = np.pad(frame, ((0, 0), (5, 5), (5, 5)), mode="edge")
        height, width = mask.shape
        smooth = np.zeros_like(frame)
        for down in range(11):
            for right in range(11):
                shifted = padded[:, down : down + height, right : right + width]
                smooth += kernel[down] * kernel[right] * shifted
    for y, x in np.argwhere(mask):
        for channel in range(3):
            edited[channel, y, x] = {
                "black": 0.0,
                "mean": frame[channel].mean(),
                "blur": smooth[channel, y, x],
            }[fill]
    return edited


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_scores_are_those_of_frames_edited_by_hand(batch_size: int) -> None:
    rng = np.random.default_rng(5)
    frame, mask = rng.random((3, 7, 9)), np.zeros((7, 9), bool)
    mask[1:3, 2:5] = True
    mask[3, 2] = True
    found = remove_region(weighted, torch.from_numpy(frame)[None], mask, places=6, batch_size=batch_size)
    assert found.offsets.shape == (6, 2)
    for fill in ("black", "mean", "blur"):
        expected = [
            weighted(torch.from_numpy(without_by_hand(frame, there, fill))[None])[0]
            for there in (mask, *(moved(mask, offset) for offset in found.offsets))
        ]
        torch.testing.assert_close(found.removed[fill], expected[0])
        torch.testing.assert_close(found.elsewhere[fill], torch.stack(expected[1:]))
    torch.testing.assert_close(found.clean, weighted(torch.from_numpy(frame)[None])[0])


def test_only_what_the_model_looks_at_has_an_effect() -> None:
    """Analytic: a model that sees one pixel changes where that pixel is removed, and nowhere else."""
    frames = torch.full((1, 3, 8, 8), 0.5)
    frames[..., 4, 4] = 1.0
    mask = np.zeros((8, 8), bool)
    mask[4, 4] = True
    found = remove_region(lambda each: each[:, 0, 4, 4][:, None], frames, mask, fills=["black", "mean"])
    assert found.removed["black"].item() == 0.0
    assert found.removed["mean"].item() == pytest.approx((63 * 0.5 + 1) / 64)
    assert found.elsewhere["black"].flatten().tolist() == [1.0] * 19


def test_a_region_without_room_has_no_control() -> None:
    frames = torch.rand(1, 3, 4, 6)
    found = remove_region(weighted, frames, np.ones((4, 6), bool))
    assert found.elsewhere["black"].shape == (0, 2)
    assert found.removed["black"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    "mask", [np.ones((3, 4), bool), np.ones((4, 3), np.uint8), np.ones((1, 4, 3), bool)], ids=str
)
def test_a_mask_that_does_not_fit_is_refused(mask: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected one frame, and a mask of bool"):
        remove_region(weighted, torch.rand(1, 3, 4, 3), mask)


def test_an_empty_region_and_a_broken_model_are_refused() -> None:
    with pytest.raises(ValueError, match="empty region"):
        remove_region(weighted, torch.rand(1, 3, 4, 3), np.zeros((4, 3), bool))
    mask = np.eye(4, 3, dtype=bool)
    with pytest.raises(NonFiniteError, match="check the weights"):
        remove_region(lambda frames: weighted(frames) / 0, torch.zeros(1, 3, 4, 3), mask)
