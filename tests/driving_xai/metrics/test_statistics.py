"""The block bootstrap: its slow twin, its coverage, and why blocks are needed."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driving_xai.metrics import statistics
from driving_xai.metrics.statistics import BlockBootstrap


def _drive(seed: int, count: int, memory: float) -> np.ndarray:
    """An AR(1) series with mean 0 and variance 1."""
    generator = np.random.default_rng(seed)
    noise = generator.normal(size=count) * np.sqrt(1 - memory**2)
    values = np.empty(count)
    values[0] = generator.normal()
    for t in range(1, count):
        values[t] = memory * values[t - 1] + noise[t]
    return values


@settings(max_examples=40, deadline=None)
@given(count=st.integers(4, 40), block=st.integers(1, 20), seed=st.integers(0, 99))
def test_means_equal_drives_put_together_block_by_block(count, block, seed):
    if block > count:
        return
    values = np.random.default_rng(seed).normal(size=count)
    bootstrap = BlockBootstrap(block=block, resamples=7, seed=seed)
    for mean, starts in zip(bootstrap.means(values), bootstrap.starts(count), strict=True):
        drive = [values[start + step] for start in starts for step in range(block)][:count]
        assert len(drive) == count
        assert mean == pytest.approx(np.mean(drive), abs=1e-12)


def test_interval_is_the_percentiles_of_the_means():
    values = _drive(1, 60, 0.5)
    bootstrap = BlockBootstrap(block=6, resamples=500, level=0.9, seed=3)
    found, means = bootstrap.interval(values), np.sort(bootstrap.means(values))
    assert found.mean == pytest.approx(values.mean())
    assert (means < found.low).mean() == pytest.approx(0.05, abs=0.003)
    assert (means > found.high).mean() == pytest.approx(0.05, abs=0.003)


def test_blocks_cover_where_single_frames_do_not():
    """Of 95 % intervals on drives whose frames resemble their neighbours, how many hold the mean."""
    covered = {1: 0, 60: 0}
    drives = 150
    for seed in range(drives):
        values = _drive(seed, 1200, memory=0.9)
        for block in covered:
            found = BlockBootstrap(block=block, resamples=300, seed=seed).interval(values)
            covered[block] += found.low <= 0 <= found.high
    assert covered[1] / drives < 0.5
    assert 0.85 < covered[60] / drives <= 0.99


def test_few_blocks_cover_too_little():
    """Why there is no interval below eight blocks: of two, percentiles hold the mean half of the time."""
    drives = [_drive(seed, 160, memory=0.9) for seed in range(200)]
    covered = {}
    for block in (80, 20):
        means = [BlockBootstrap(block=block, resamples=200, seed=0).means(values) for values in drives]
        ends = np.quantile(means, [0.025, 0.975], axis=1)
        covered[block] = ((ends[0] <= 0) & (ends[1] >= 0)).mean()
    assert covered[80] < 0.65 < 0.75 < covered[20]


def test_pairing_narrows_a_difference():
    """Two methods that share a drive's ups and downs differ more certainly than each is known."""
    shared, generator = _drive(0, 1000, 0.9), np.random.default_rng(1)
    ours, theirs = (shared + generator.normal(scale=0.1, size=1000) + mean for mean in (0.1, 0.0))
    bootstrap = BlockBootstrap(block=50)
    paired, alone = bootstrap.interval(ours - theirs), bootstrap.interval(ours)
    assert paired.low > 0
    assert paired.high - paired.low < 0.1 * (alone.high - alone.low)


def test_the_seed_decides_and_a_constant_has_no_width():
    values = _drive(2, 100, 0.5)
    assert BlockBootstrap(block=5, seed=1).interval(values) == BlockBootstrap(block=5, seed=1).interval(
        values
    )
    assert BlockBootstrap(block=5, seed=1).interval(values) != BlockBootstrap(block=5, seed=2).interval(
        values
    )
    constant = BlockBootstrap(block=5).interval(np.full(40, 0.25))
    assert (constant.low, constant.mean, constant.high) == (0.25, 0.25, 0.25)


def test_too_few_frames_have_no_interval_and_bad_ones_are_refused():
    assert BlockBootstrap(block=10).interval(np.zeros(79)) is None
    assert BlockBootstrap(block=10).interval(np.zeros(80)) is not None
    with pytest.raises(ValueError, match="not finite; drop the frames"):
        BlockBootstrap(block=1).interval(np.array([1.0, np.nan]))


def _at_once(bootstrap: BlockBootstrap, values: np.ndarray) -> np.ndarray:
    """All resampled drives in memory together."""
    blocks = -(-len(values) // bootstrap.block)
    size = (bootstrap.resamples, blocks)
    starts = np.random.default_rng(bootstrap.seed).integers(0, len(values) - bootstrap.block + 1, size=size)
    lengths = np.full(blocks, bootstrap.block)
    lengths[-1] = len(values) - (blocks - 1) * bootstrap.block
    sums = np.concatenate(([0.0], np.cumsum(values)))
    return (sums[starts + lengths] - sums[starts]).sum(1) / len(values)


@pytest.mark.parametrize("block", [1, 7, 50])
@pytest.mark.parametrize("together", [1, 333, 2**20])
def test_drives_that_are_drawn_in_parts_are_those_of_one_draw_to_the_bit(monkeypatch, block, together):
    monkeypatch.setattr(statistics, "_DRAWN_TOGETHER", together)
    values = np.random.default_rng(0).normal(size=(403, 3))
    bootstrap = BlockBootstrap(block=block, resamples=31, seed=5)
    expected = np.stack([_at_once(bootstrap, column) for column in values.T], 1)
    assert (bootstrap.means(values) == expected).all()
    assert (bootstrap.means(values[:, 1]) == expected[:, 1]).all()


def test_memory_of_an_interval_does_not_grow_with_its_resamples():
    peaks = []
    values = np.random.default_rng(0).normal(size=50_000)
    for resamples in (40, 160):
        tracemalloc.start()
        BlockBootstrap(block=1, resamples=resamples).interval(values)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] < 40e6
