"""Edited frames: exactly the pixels asked for, bit for bit, and the fills by their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from driving_xai.perturb import FILLS, Mixture, blank, pixel_counts


def _frames(seed: int, count: int = 2, height: int = 5, width: int = 7, dtype=torch.float32) -> torch.Tensor:
    return torch.rand(count, 3, height, width, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def _ranks(seed: int, count: int, pixels: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(pixels, generator=generator) for _ in range(count)])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    dtype=st.sampled_from([torch.float16, torch.float32, torch.float64]),
    counts=st.lists(st.integers(0, 35), min_size=1, max_size=5, unique=True).map(sorted),
    channels_last=st.booleans(),
)
def test_a_mixture_takes_the_first_ranked_pixels_bit_for_bit(seed, dtype, counts, channels_last):
    frames, other = _frames(seed, dtype=dtype), -_frames(seed + 1, dtype=dtype)
    if channels_last:
        frames = frames.contiguous(memory_format=torch.channels_last)
    ranks = _ranks(seed, 2, 35)
    given_frames, given_other, given_ranks = frames.clone(), other.clone(), ranks.clone()
    mixed = Mixture(frames, other)(ranks, torch.tensor(counts))
    expected = []
    for b in range(2):
        for k in counts:
            variant = frames[b].clone()
            for pixel in range(35):
                if ranks[b, pixel] < k:
                    variant[:, pixel // 7, pixel % 7] = other[b, :, pixel // 7, pixel % 7]
            expected.append(variant)
    assert torch.equal(mixed, torch.stack(expected))
    assert torch.equal(frames, given_frames)
    assert torch.equal(other, given_other)
    assert torch.equal(ranks, given_ranks)


def test_mixing_with_expanded_fills_reads_them_right():
    frames = _frames(0)
    fill = blank(frames, "mean")
    assert torch.equal(Mixture(frames, fill)(_ranks(0, 2, 35), torch.tensor([35])), fill)


def test_black_and_mean():
    frames = _frames(3)
    assert torch.equal(blank(frames, "black"), frames * 0)
    for frame, filled in zip(frames, blank(frames, "mean"), strict=True):
        for channel in range(3):
            mean = sum(frame[channel].flatten().tolist()) / 35
            torch.testing.assert_close(filled[channel], torch.full((5, 7), mean), rtol=1e-6, atol=0)


def _rise_kernel() -> list[float]:
    """A Gaussian of sigma 5, cut at 20, its tails mirrored into 11 pixels at each end."""
    weights = [math.exp(-(offset**2) / 50) for offset in range(-20, 21)]
    kernel = [0.0] * 11
    for offset, weight in zip(range(-20, 21), weights, strict=True):
        position = (5 + offset) % 22
        kernel[position if position < 11 else 21 - position] += weight / sum(weights)
    return kernel


def test_blur_is_rises_kernel_with_repeated_borders():
    frames = _frames(4, count=1, height=13, width=12, dtype=torch.float64)
    blurred, kernel = blank(frames, "blur"), _rise_kernel()
    for y, x in ((6, 6), (0, 0), (12, 3)):
        expected = 0.0
        for i, down in enumerate(kernel):
            for j, along in enumerate(kernel):
                row, column = min(max(y + i - 5, 0), 12), min(max(x + j - 5, 0), 11)
                expected += down * along * frames[0, 1, row, column].item()
        assert blurred[0, 1, y, x].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("fill", FILLS)
def test_fills_stay_in_range_and_leave_the_frames(fill):
    frames = _frames(5, height=20, width=30)
    given_frames = frames.clone()
    filled = blank(frames, fill)
    assert filled.shape == frames.shape
    assert filled.min() >= 0
    assert filled.max() <= 1 + 1e-6
    assert torch.equal(frames, given_frames)


def test_a_flat_frame_is_its_own_mean_and_blur():
    frames = torch.full((1, 3, 16, 16), 0.3, dtype=torch.float64)
    for fill in ("mean", "blur"):
        torch.testing.assert_close(blank(frames, fill), frames, rtol=1e-12, atol=0)


def test_percents_of_a_frame_are_whole_pixels():
    counts = pixel_counts([percent / 100 for percent in range(26)], 80 * 160)
    assert counts.tolist() == [128 * percent for percent in range(26)]


@pytest.mark.parametrize("fractions", [[], [0.0, 0.0], [0.5, 0.4], [-0.1, 0.5], [0.5, 1.1], [0.0, 0.01]])
def test_steps_that_are_none_are_refused(fractions):
    with pytest.raises(ValueError, match="expected rising steps of a pixel or more"):
        pixel_counts(fractions, 20)
