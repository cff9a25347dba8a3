"""From recorded signals to the label: repair clocks, synchronise, smooth, turn into curvature.

Angles are of the steering wheel in rad, positive to the left; speeds are in m/s; NaN is unknown.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64

from data_prep.errors import DataError
from data_prep.schema import Signal, Vehicle

CLOCK_JUMP_NS = 1_000_000_000
"""A stamp this far or farther from its neighbours is a clock that jumped, not packets that swapped."""


MOST_STEERING_RAD = 20.0
"""About three turns of the wheel; the Lincoln's reports reach 10.5."""
MOST_SPEED_MPS = 150.0


def credible(value: Float64[np.ndarray, " N"], *, most: float) -> Float64[np.ndarray, " N"]:
    """The values, those beyond `most` to either side unknown (NaN): no car has them, so they are damage.

    Example:
        >>> credible(np.array([12.0, -1e300]), most=MOST_SPEED_MPS).tolist()
        [12.0, nan]
    """
    with np.errstate(invalid="ignore"):  # damaged bytes may be a NaN that signals
        return np.where(np.abs(value) <= most, value, np.nan)


class ClockFaults(NamedTuple):
    """Which stamps were left out to make a clock increase, by reason. The three never overlap."""

    duplicate: Bool[np.ndarray, " N"]
    out_of_order: Bool[np.ndarray, " N"]
    clock_jump: Bool[np.ndarray, " N"]

    @property
    def any(self) -> Bool[np.ndarray, " N"]:
        return self.duplicate | self.out_of_order | self.clock_jump


def clock_faults(time_ns: Int64[np.ndarray, " N"]) -> ClockFaults:
    """Finds the fewest stamps to leave out so that the rest strictly increases.

    Keeping a longest increasing run survives every fault the same way: one stamp from the future
    costs one frame, not all that follow, and after a clock set back the longer part is kept. A
    forward jump that stays is no fault here: it is a hole, and a hole starts a new segment.

    Example:
        >>> faults = clock_faults(np.array([0, 50, 50, 100, 150, 60, 200]))
        >>> np.flatnonzero(faults.duplicate).tolist(), np.flatnonzero(faults.out_of_order).tolist()
        ([2], [5])
    """
    nothing = np.zeros(len(time_ns), dtype=bool)
    if np.all(np.diff(time_ns) > 0):
        return ClockFaults(nothing, nothing, nothing)
    kept = _longest_increasing(time_ns)
    bad = np.ones(len(time_ns), dtype=bool)
    bad[kept] = False
    duplicate = bad & np.isin(time_ns, time_ns[kept])
    position = np.arange(len(time_ns))
    after = np.clip(np.searchsorted(kept, position), 0, len(kept) - 1)
    before = np.clip(after - 1, 0, None)
    distance = np.minimum(np.abs(time_ns - time_ns[kept[before]]), np.abs(time_ns - time_ns[kept[after]]))
    jumped = bad & ~duplicate & (distance >= CLOCK_JUMP_NS)
    return ClockFaults(duplicate, bad & ~duplicate & ~jumped, jumped)


def _longest_increasing(values: Int64[np.ndarray, " N"]) -> Int64[np.ndarray, " K"]:
    """Positions of a longest strictly increasing subsequence; the earliest of equal stamps stays."""
    tails: list[int] = []
    tail_positions: list[int] = []
    previous = np.full(len(values), -1, dtype=np.int64)
    for position, value in enumerate(values.tolist()):
        length = bisect_left(tails, value)
        if length:
            previous[position] = tail_positions[length - 1]
        if length == len(tails):
            tails.append(value)
            tail_positions.append(position)
        elif value < tails[length]:
            tails[length], tail_positions[length] = value, position
    chain = []
    position = tail_positions[-1] if tail_positions else -1
    while position >= 0:
        chain.append(position)
        position = int(previous[position])
    return np.array(chain[::-1], dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class CleanSignal:
    """A signal fit to interpolate, and how many samples had to go."""

    signal: Signal
    dropped: int


def clean(signal: Signal) -> CleanSignal:
    """The signal without unknown values, duplicates, swapped samples and clock jumps.

    Raises:
        DataError: times and values differ in number.
    """
    if len(signal.time_ns) != len(signal.value):
        raise DataError(
            f"a signal has {len(signal.time_ns)} times and {len(signal.value)} values; expected one value a time"
        )
    finite = np.isfinite(signal.value)
    time_ns, value = signal.time_ns[finite], signal.value[finite]
    good = ~clock_faults(time_ns).any
    cleaned = Signal(time_ns=time_ns[good], value=value[good])
    return CleanSignal(signal=cleaned, dropped=len(signal.value) - int(good.sum()))


def synchronise(
    signal: Signal, time_ns: Int64[np.ndarray, " T"], *, tolerance_s: float
) -> Float64[np.ndarray, " T"]:
    """The signal at each camera time, interpolated linearly between its two neighbours.

    A time is known where both neighbouring samples lie within the tolerance, or where a sample has
    that very time; elsewhere, and outside the recording, it is NaN. Nothing is extrapolated.

    Args:
        signal: strictly increasing times, as `clean` returns.
        time_ns: camera times, in any order.
        tolerance_s: how far away a neighbour may be, in seconds.

    Example:
        >>> ramp = Signal(time_ns=np.array([0, 100]) * 10**6, value=np.array([0.0, 1.0]))
        >>> synchronise(ramp, np.array([25, 400]) * 10**6, tolerance_s=0.1).tolist()
        [0.25, nan]
    """
    result = np.full(len(time_ns), np.nan)
    count = len(signal.time_ns)
    if count == 0:
        return result
    after = np.searchsorted(signal.time_ns, time_ns)
    exact = (after < count) & (signal.time_ns[np.minimum(after, count - 1)] == time_ns)
    result[exact] = signal.value[after[exact]]
    between = np.flatnonzero(~exact & (after > 0) & (after < count))
    right = after[between]
    left = right - 1
    # Differences first: nanoseconds since 1970 do not fit a float64.
    since = (time_ns[between] - signal.time_ns[left]).astype(np.float64)
    until = (signal.time_ns[right] - time_ns[between]).astype(np.float64)
    value = signal.value[left] + (signal.value[right] - signal.value[left]) * since / (since + until)
    near = np.maximum(since, until) <= tolerance_s * 1e9
    result[between[near]] = value[near]
    return result


def segments(time_ns: Int64[np.ndarray, " T"], *, hole_periods: float) -> Int32[np.ndarray, " T"]:
    """Numbers the unbroken runs of frames: a hole longer than `hole_periods` usual periods ends one.

    Args:
        time_ns: strictly increasing.
        hole_periods: in units of the median time between frames.
    """
    if len(time_ns) < 2:
        return np.zeros(len(time_ns), dtype=np.int32)
    steps = np.diff(time_ns)
    holes = steps > hole_periods * np.median(steps)
    return np.concatenate([[0], np.cumsum(holes)]).astype(np.int32)


def smooth(values: Float64[np.ndarray, " T"], alpha: float) -> Float64[np.ndarray, " T"]:
    """Exponential smoothing, s_t = alpha x_t + (1 - alpha) s_{t-1}; NaN stays NaN and starts anew.

    Args:
        values: one unbroken run.
        alpha: over 0, up to 1; 1 changes nothing.

    Raises:
        DataError: alpha is out of range.

    Source: Tashiro and Awano 2023, eq. 2.
    Deviation: eq. 2 as printed lacks the hats that make the angle's part recursive; they are meant.

    Example:
        >>> smooth(np.array([0.0, 1.0, 1.0]), 0.5).tolist()
        [0.0, 0.5, 0.75]
    """
    if not 0.0 < alpha <= 1.0:
        raise DataError(f"smoothing is {alpha}; expected over 0 and at most 1, where 1 is off")
    result = np.empty(len(values))
    state = np.nan
    for position, value in enumerate(values.tolist()):
        known = state == state and value == value
        state = alpha * value + (1.0 - alpha) * state if known else value
        result[position] = state
    return result


def inverse_turning_radius(
    steering_wheel_rad: Float64[np.ndarray, " T"], speed_mps: Float64[np.ndarray, " T"], vehicle: Vehicle
) -> Float64[np.ndarray, " T"]:
    """u = angle / (wheelbase ratio (1 + slip speed^2)), in 1/m, positive to the left.

    Unknown speed (NaN) turns the slip term off: the factor is 1.

    Source: Tashiro and Awano 2023, eq. 3.
    """
    return steering_wheel_rad / _radians_per_curvature(speed_mps, vehicle)


def steering_wheel_rad(
    inverse_turning_radius: Float64[np.ndarray, " T"], speed_mps: Float64[np.ndarray, " T"], vehicle: Vehicle
) -> Float64[np.ndarray, " T"]:
    """The steering-wheel angle of a curvature at a speed: the exact inverse of eq. 3.

    Source: Tashiro and Awano 2023, eq. 3.
    """
    return inverse_turning_radius * _radians_per_curvature(speed_mps, vehicle)


def _radians_per_curvature(
    speed_mps: Float64[np.ndarray, " T"], vehicle: Vehicle
) -> Float64[np.ndarray, " T"]:
    slip = np.where(np.isnan(speed_mps), 0.0, vehicle.slip_s2_per_m2 * np.square(speed_mps))
    return vehicle.wheelbase_m * vehicle.steering_ratio * (1.0 + slip)
