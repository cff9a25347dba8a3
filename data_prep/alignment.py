"""A drive on one clock: which frames are kept, with which controls, and what was wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64

from data_prep.errors import DataError
from data_prep.policy import NO_LATER_CONTROL
from data_prep.schema import Drive, Signal
from data_prep.signals import clean, clock_faults, inverse_turning_radius, segments, smooth, synchronise
from data_prep.values import Checked, Interval


@dataclass(frozen=True, kw_only=True)
class Alignment(Checked, error=DataError):
    """How a recording's signals are put on the camera's clock, in preparation and in replay."""

    smoothing: Annotated[float, Interval(gt=0, le=1), "where 1 is off"] = 0.2
    """alpha of eq. 2, over 0 up to 1. On Udacity's drive 0.2 lags 3 frames; 1 is off."""
    lead_s: Annotated[float, Interval(ge=0, le=5)] = 0.0
    """How long after a frame its controls are taken. A driver acts on what was seen before: at 20 Hz
    on Udacity's drive, models of single frames are right about 0.4 s early."""
    tolerance_s: Annotated[float, Interval(gt=0, le=1e6)] = 0.1
    """How far from a frame the control samples around it may be."""
    hole_periods: Annotated[float, Interval(gt=0, le=1e6)] = 2.5
    """A hole longer than this many usual frame periods starts a new segment."""


@dataclass(frozen=True, kw_only=True)
class AlignedDrive:
    """The kept frames of a drive, in time, each with its controls; NaN where unknown."""

    frame: Int64[np.ndarray, " T"]
    """Index in the source drive."""
    columns: Mapping[str, np.ndarray]
    """By the names of `shards.hdf5.COLUMNS`."""
    dropped: Mapping[str, Int64[np.ndarray, " _"]]
    """Reason to the source frames that were left out for it."""
    signal_samples_dropped: Mapping[str, int]
    """Signal to how many of its samples were unknown, doubled, swapped or off the clock."""

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def time_ns(self) -> Int64[np.ndarray, " T"]:
        return self.columns["time_ns"]


def align(drive: Drive, settings: Alignment) -> AlignedDrive:
    """Repairs the camera's clock and gives every frame that is kept its controls and its label.

    A frame is dropped where its stamp is a duplicate, out of order or behind a clock jump, and
    where the drive records a control that is not known within the tolerance at its time, or `lead_s`
    after it: with a lead, a frame's controls are those that follow it by so much, and the drive's last
    frames, behind which nothing is recorded for so long, have a reason of their own.

    Raises:
        DataError: no frame is left; the message says what the frames were dropped for.
    """
    time_ns = np.asarray(drive.time_ns, dtype=np.int64)
    faults = clock_faults(time_ns)
    dropped = {name: np.flatnonzero(which) for name, which in faults._asdict().items()}
    frame = np.flatnonzero(~faults.any)
    control_ns = time_ns[frame] + round(settings.lead_s * 1e9)
    steering = _controls(drive.steering_wheel, control_ns, settings.tolerance_s)
    speed = _controls(drive.speed, control_ns, settings.tolerance_s)
    known = steering.known & speed.known
    ends_ns = min(steering.ends_ns, speed.ends_ns)
    expected = ~known & (control_ns > ends_ns) & (time_ns[frame] <= ends_ns)
    dropped["no_control"] = frame[~known & ~expected]
    dropped[NO_LATER_CONTROL] = frame[expected]
    frame = frame[known]
    if not len(frame):
        raise _nothing_left(drive, dropped)
    columns = _columns(time_ns[frame], steering.value[known], speed.value[known], drive, settings)
    lost = {"steering_wheel": steering.dropped, "speed": speed.dropped}
    return AlignedDrive(frame=frame, columns=columns, dropped=dropped, signal_samples_dropped=lost)


def _nothing_left(drive: Drive, dropped: Mapping[str, Int64[np.ndarray, " _"]]) -> DataError:
    lost = {reason: len(frames) for reason, frames in dropped.items()}
    lost |= {reason: len(rows) for reason, rows in drive.left_out.items()}
    counts = ", ".join(f"{count} {reason}" for reason, count in lost.items() if count)
    return DataError(f"drive {drive.name}: no usable frame ({counts or 'it is empty'}); check the source")


class _Control(NamedTuple):
    """One control at the times it was asked for."""

    value: Float64[np.ndarray, " T"]
    known: Bool[np.ndarray, " T"]
    """True throughout where the drive does not record it."""
    dropped: int
    ends_ns: float
    """Time of its last sample."""


def _controls(signal: Signal | None, time_ns: Int64[np.ndarray, " T"], tolerance_s: float) -> _Control:
    if signal is None:
        return _Control(np.full(len(time_ns), np.nan), np.ones(len(time_ns), dtype=bool), 0, math.inf)
    cleaned = clean(signal)
    value = synchronise(cleaned.signal, time_ns, tolerance_s=tolerance_s)
    ends_ns = int(cleaned.signal.time_ns[-1]) if len(cleaned.signal.time_ns) else -math.inf
    return _Control(value, ~np.isnan(value), cleaned.dropped, ends_ns)


def _columns(
    time_ns: Int64[np.ndarray, " T"],
    steering: Float64[np.ndarray, " T"],
    speed: Float64[np.ndarray, " T"],
    drive: Drive,
    settings: Alignment,
) -> dict[str, np.ndarray]:
    segment = segments(time_ns, hole_periods=settings.hole_periods)
    steering_smoothed = _smooth_runs(steering, segment, settings.smoothing)
    speed_smoothed = _smooth_runs(speed, segment, settings.smoothing)
    return {
        "time_ns": time_ns,
        "steering_wheel_rad": steering,
        "steering_wheel_rad_smoothed": steering_smoothed,
        "speed_mps": speed,
        "speed_mps_smoothed": speed_smoothed,
        "inverse_turning_radius": inverse_turning_radius(steering_smoothed, speed_smoothed, drive.vehicle),
    }


def _smooth_runs(
    values: Float64[np.ndarray, " T"], segment: Int32[np.ndarray, " T"], alpha: float
) -> Float64[np.ndarray, " T"]:
    starts = np.flatnonzero(np.diff(segment)) + 1
    return np.concatenate([smooth(run, alpha) for run in np.split(values, starts)])
