"""Clocks, synchronisation, smoothing and curvature against slow twins and known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from data_prep.errors import DataError
from data_prep.schema import VEHICLES, Signal
from data_prep.signals import (
    clean,
    clock_faults,
    inverse_turning_radius,
    segments,
    smooth,
    steering_wheel_rad,
    synchronise,
)
from tests.data_prep.recordings import START_NS

STAMPS = st.lists(st.integers(0, 40), max_size=25).map(lambda s: np.array(s, dtype=np.int64))
MKZ = VEHICLES["lincoln-mkz"]


def longest_increasing_length(values: list[int]) -> int:
    best: list[int] = []
    for position, value in enumerate(values):
        best.append(1 + max((best[i] for i in range(position) if values[i] < value), default=0))
    return max(best, default=0)


@given(STAMPS)
def test_what_is_kept_increases_and_is_as_much_as_possible(time_ns):
    faults = clock_faults(time_ns)
    kept = time_ns[~faults.any]
    assert np.all(np.diff(kept) > 0)
    assert len(kept) == longest_increasing_length(time_ns.tolist())
    assert not np.any(faults.duplicate & faults.out_of_order)
    assert set(time_ns[faults.duplicate]) <= set(kept)


def test_each_fault_is_named():
    ms = np.array([0, 50, 50, 100, 90, 150, 3_600_000, 200, 250, -5_000_000, 300])
    faults = clock_faults(START_NS + ms * 1_000_000)
    assert np.flatnonzero(faults.duplicate).tolist() == [2]
    # Of 100 and 90 either may go; one does.
    assert faults.out_of_order.sum() == 1
    assert np.flatnonzero(faults.clock_jump).tolist() == [6, 9]


def test_a_clock_set_back_costs_the_shorter_part():
    before, after = np.arange(30) * 50, np.arange(100) * 50 - 1_000_000
    faults = clock_faults(np.concatenate([before, after]).astype(np.int64) * 1_000_000)
    assert np.flatnonzero(faults.any).tolist() == list(range(30))


def naive_synchronise(signal: Signal, time_ns: list[int], tolerance_ns: int) -> list[float]:
    samples = list(zip(signal.time_ns.tolist(), signal.value.tolist(), strict=True))
    result = []
    for now in time_ns:
        exact = [value for stamp, value in samples if stamp == now]
        before = [sample for sample in samples if sample[0] < now]
        after = [sample for sample in samples if sample[0] > now]
        if exact:
            result.append(exact[0])
        elif before and after and now - before[-1][0] <= tolerance_ns and after[0][0] - now <= tolerance_ns:
            (t0, v0), (t1, v1) = before[-1], after[0]
            result.append(v0 + (v1 - v0) * (now - t0) / (t1 - t0))
        else:
            result.append(math.nan)
    return result


@given(
    stamps=st.lists(st.integers(0, 10**9), unique=True, max_size=12).map(sorted),
    now=st.lists(st.integers(-(10**8), 11 * 10**8), max_size=12),
    tolerance_ms=st.integers(1, 400),
    seed=st.integers(0, 99),
)
def test_synchronisation_equals_its_definition(stamps, now, tolerance_ms, seed):
    value = np.random.default_rng(seed).normal(size=len(stamps))
    signal = Signal(time_ns=np.array(stamps, dtype=np.int64) + START_NS, value=value)
    made = synchronise(signal, np.array(now, dtype=np.int64) + START_NS, tolerance_s=tolerance_ms / 1e3)
    shifted = Signal(time_ns=np.array(stamps, dtype=np.int64), value=value)
    np.testing.assert_allclose(made, naive_synchronise(shifted, now, tolerance_ms * 1_000_000), atol=1e-12)


def test_nanoseconds_since_1970_keep_their_last_digit():
    # As float64 the three stamps would be one and the same.
    signal = Signal(time_ns=np.array([START_NS, START_NS + 10]), value=np.array([0.0, 1.0]))
    assert synchronise(signal, np.array([START_NS + 3]), tolerance_s=1.0)[0] == pytest.approx(0.3, abs=1e-15)


def test_cleaning_drops_unknown_swapped_and_repeated_samples():
    time_ns = np.array([0, 10, 10, 30, 20, 40], dtype=np.int64)
    value = np.array([0.0, 1.0, 9.0, 3.0, 2.0, np.nan])
    cleaned = clean(Signal(time_ns=time_ns, value=value))
    assert cleaned.dropped == 3
    assert np.all(np.diff(cleaned.signal.time_ns) > 0)
    with pytest.raises(DataError, match="6 times and 5 values"):
        clean(Signal(time_ns=time_ns, value=value[:5]))


def test_a_hole_starts_a_segment_and_one_lost_frame_does_not():
    ms = [0, 50, 100, 200, 250, 300, 350, 480, 530]  # 100 ms is one frame lost, 130 ms more
    assert segments(np.array(ms) * 1_000_000, hole_periods=2.5).tolist() == [0] * 7 + [1] * 2
    assert segments(np.array(ms) * 1_000_000, hole_periods=1.5).tolist() == [0] * 3 + [1] * 4 + [2] * 2
    assert segments(np.array([], dtype=np.int64), hole_periods=2.5).tolist() == []


@given(
    hnp.arrays(np.float64, st.integers(0, 40), elements=st.one_of(st.floats(-5, 5), st.just(math.nan))),
    st.floats(0.01, 1.0),
)
def test_smoothing_equals_the_recursion_and_restarts_after_unknown_values(values, alpha):
    expected: list[float] = []
    for position, value in enumerate(values):
        first = position == 0 or math.isnan(values[position - 1]) or math.isnan(value)
        expected.append(value if first else alpha * value + (1 - alpha) * expected[-1])
    np.testing.assert_allclose(smooth(values, alpha), expected, atol=1e-12)


def test_a_ramp_is_followed_with_the_known_lag():
    # A first-order smoother lags a ramp by (1 - alpha) / alpha samples once it has settled.
    for alpha in (0.1, 0.2, 0.5):
        ramp = np.arange(400.0)
        assert (ramp - smooth(ramp, alpha))[-1] == pytest.approx((1 - alpha) / alpha)


@pytest.mark.parametrize("alpha", [0.0, -1.0, 1.1, math.nan])
def test_smoothing_out_of_range_is_refused(alpha):
    with pytest.raises(DataError, match="over 0 and at most 1"):
        smooth(np.zeros(3), alpha)


@given(
    hnp.arrays(np.float64, 20, elements=st.floats(-9, 9)),
    hnp.arrays(np.float64, 20, elements=st.one_of(st.floats(0, 60), st.just(math.nan))),
    st.sampled_from(sorted(VEHICLES)),
)
def test_curvature_and_back_is_the_same_angle(angle, speed, name):
    vehicle = VEHICLES[name]
    curvature = inverse_turning_radius(angle, speed, vehicle)
    np.testing.assert_allclose(steering_wheel_rad(curvature, speed, vehicle), angle, rtol=1e-14, atol=1e-15)


def test_curvature_by_hand():
    # 0.4218 rad at 10 m/s: 0.4218 / (2.85 * 14.8 * (1 + 0.0014 * 100)) = 0.4218 / 48.0852
    made = inverse_turning_radius(np.array([0.4218, 0.4218]), np.array([10.0, math.nan]), MKZ)
    np.testing.assert_allclose(made, [0.4218 / 48.0852, 0.01], rtol=1e-12)
