"""A drive on one clock: which frames stay, and with which controls."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from data_prep.alignment import Alignment, align
from data_prep.errors import DataError
from data_prep.geometry import ImageFiles
from data_prep.prepare import PrepConfig
from data_prep.schema import VEHICLES, Drive, Signal
from data_prep.signals import smooth
from tests.data_prep.recordings import START_NS

MS = 1_000_000


def drive(ms, *, steering=None, speed=None) -> Drive:
    """A drive of frames at some milliseconds, with controls as (milliseconds, values)."""

    def signal(samples) -> Signal | None:
        if samples is None:
            return None
        stamps, values = (np.array(part) for part in samples)
        return Signal(time_ns=START_NS + stamps.astype(np.int64) * MS, value=values.astype(np.float64))

    return Drive(
        name="drive",
        source="test",
        camera="center",
        vehicle=VEHICLES["lincoln-mkz"],
        time_ns=START_NS + np.array(ms, dtype=np.int64) * MS,
        images=ImageFiles(folder=None, names=()),  # type: ignore[arg-type]
        steering_wheel=signal(steering),
        speed=signal(speed),
    )


def aligned(given: Drive, **changes):
    return align(given, Alignment(**({"smoothing": 1.0} | changes)))


def test_controls_at_other_times_are_interpolated():
    steering, speed = ([0, 80, 160], [0.0, 0.8, 1.6]), ([40, 120, 200], [10, 30, 50])
    made = aligned(drive([50, 100, 150], steering=steering, speed=speed))
    np.testing.assert_allclose(made.columns["steering_wheel_rad"], [0.5, 1.0, 1.5])
    np.testing.assert_allclose(made.columns["speed_mps"], [12.5, 25.0, 37.5])
    curvature = np.array([0.5, 1.0, 1.5]) / (2.85 * 14.8 * (1 + 0.0014 * np.array([12.5, 25.0, 37.5]) ** 2))
    np.testing.assert_allclose(made.columns["inverse_turning_radius"], curvature)


def test_with_a_lead_a_frame_gets_the_controls_that_follow_it():
    frames = range(0, 1000, 50)
    given = drive(frames, steering=(frames, np.arange(20.0)), speed=(frames, np.arange(20.0)))
    made, led = aligned(given), aligned(given, lead_s=0.4)
    assert led.frame.tolist() == list(range(12))  # Of the others nothing is recorded so much later.
    assert led.dropped["no_later_control"].tolist() == list(range(12, 20))
    assert len(led.dropped["no_control"]) == 0
    for name in ("steering_wheel_rad", "speed_mps", "inverse_turning_radius"):
        np.testing.assert_allclose(led.columns[name], made.columns[name][8:])
    assert led.columns["time_ns"].tolist() == made.columns["time_ns"][:12].tolist()


def test_frames_without_a_recorded_control_are_dropped():
    given = drive(
        [0, 50, 100, 150, 200], steering=([0, 60, 190], [0, 1, 2]), speed=(range(0, 201, 20), range(11))
    )
    made = aligned(given)
    # 100 and 150 ms lie within 100 ms of both steering samples around them; 200 is past the last.
    assert made.frame.tolist() == [0, 1, 2, 3]
    assert made.dropped["no_control"].tolist() == [4]
    narrow = aligned(given, tolerance_s=0.05)
    assert narrow.frame.tolist() == [0, 1]
    assert narrow.dropped["no_control"].tolist() == [2, 3, 4]


def test_a_control_that_was_never_recorded_is_unknown_and_drops_nothing():
    made = aligned(drive([0, 50, 100], steering=([0, 50, 100], [0.1, 0.2, 0.3])))
    assert len(made) == 3
    assert np.isnan(made.columns["speed_mps"]).all()
    np.testing.assert_allclose(
        made.columns["inverse_turning_radius"], np.array([0.1, 0.2, 0.3]) / (2.85 * 14.8)
    )
    unlabelled = aligned(drive([0, 50, 100]))
    assert len(unlabelled) == 3
    assert np.isnan(unlabelled.columns["inverse_turning_radius"]).all()


def test_smoothing_starts_anew_behind_a_hole():
    ms = [0, 50, 100, 1000, 1050, 1100]
    angle = np.array([0.0, 1.0, 1.0, 5.0, 6.0, 6.0])
    made = aligned(drive(ms, steering=(ms, angle)), smoothing=0.2)
    expected = np.concatenate([smooth(angle[:3], 0.2), smooth(angle[3:], 0.2)])
    np.testing.assert_array_equal(made.columns["steering_wheel_rad_smoothed"], expected)
    assert expected[3] == 5.0


def test_every_frame_is_kept_or_dropped_for_one_reason():
    given = drive([0, 50, 50, 100, 150, 60, 9_000_000, 200, 250], steering=([0, 100, 200], [0, 1, 2]))
    made = aligned(given)
    reasons = {reason: frames.tolist() for reason, frames in made.dropped.items()}
    assert reasons == {
        "duplicate": [2],
        "out_of_order": [5],
        "clock_jump": [6],
        "no_control": [8],
        "no_later_control": [],
    }
    assert sorted(chain(made.frame, *reasons.values())) == list(range(9))


def test_a_drive_without_a_usable_frame_is_refused():
    with pytest.raises(DataError, match=r"no usable frame \(2 no_control\)"):
        aligned(drive([0, 50], steering=([5000], [0.1])))
    with pytest.raises(DataError, match="it is empty"):
        aligned(drive([]))


def test_a_lead_that_reaches_over_the_gap_is_refused():
    with pytest.raises(DataError, match="reaches over gap_s"):
        PrepConfig(reader="synthetic", source=Path("-"), lead_s=2.0, gap_s=2.0)
