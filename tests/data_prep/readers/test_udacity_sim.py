"""The simulator's log: signs, units, foreign paths, with and without a header."""

from __future__ import annotations

import math

import numpy as np
import pytest

from data_prep.errors import DataError
from data_prep.geometry import read_image
from data_prep.prepare import PrepConfig, read_job
from data_prep.readers import recognise
from data_prep.readers.udacity_sim import drives
from tests.data_prep.recordings import simulator


@pytest.mark.parametrize("root", ["/Users/somebody/sim/IMG/", "C:\\Users\\somebody\\sim\\IMG\\", "IMG/", ""])
@pytest.mark.parametrize("separator", [",", ", "])
@pytest.mark.parametrize("header", [False, True])
def test_every_form_of_the_log_reads_the_same(root, separator, header, tmp_path):
    source = simulator(tmp_path / "sim", [0.0, 1.0, -0.5], root=root, separator=separator, header=header)
    assert recognise(source) == "udacity-sim"
    (drive,) = drives(source)
    # Steering 1 is 25 degrees of the road wheel to the right; here positive is left.
    np.testing.assert_allclose(drive.steering_wheel.value, np.radians([0.0, -25.0, 12.5]))
    assert math.copysign(1, drive.steering_wheel.value[0]) == 1
    np.testing.assert_allclose(drive.speed.value, 8.9408)
    assert np.diff(drive.time_ns).tolist() == [100_000_000] * 2
    assert drive.time_ns[0] == 1532036160_000_000_000  # 2018-07-19 21:36:00 read as UTC
    assert drive.vehicle.steering_ratio == 1.0
    assert np.array_equal(
        next(drive.images.read(1, 2)), read_image(source / "IMG" / "center_2018_07_19_21_36_00_100.jpg")
    )


def test_a_side_camera(tmp_path):
    source = simulator(tmp_path / "sim", [0.0, 0.0])
    (source / "IMG" / "left_2018_07_19_21_36_00_000.jpg").unlink()
    (drive,) = drives(source, camera="left")
    assert (drive.name, drive.camera, len(drive)) == ("sim-left", "left", 1)
    assert drive.left_out == {"missing_image": ("IMG/left_2018_07_19_21_36_00_000.jpg",)}


def test_all_cameras_carry_the_published_correction(tmp_path):
    """Seen from the left the road asks for more to the right: 0.2 of full lock, 5 degrees of the road wheel."""
    source = simulator(tmp_path / "sim", [0.0, 1.0, -0.5])
    found = drives(source, camera="all")
    assert [(d.name, d.camera, d.recording) for d in found] == [
        ("sim", "center", "sim"),
        ("sim-left", "left", "sim"),
        ("sim-right", "right", "sim"),
    ]
    for drive, offset_deg in zip(found, (0.0, -5.0, 5.0), strict=True):
        np.testing.assert_allclose(
            np.degrees(drive.steering_wheel.value), np.array([0, -25, 12.5]) + offset_deg
        )
        assert drive.time_ns.tolist() == found[0].time_ns.tolist()
        name = f"{drive.camera}_2018_07_19_21_36_00_100.jpg"
        assert np.array_equal(next(drive.images.read(1, 2)), read_image(source / "IMG" / name))
    (plain,) = drives(source, camera="left", side_camera_correction_rad=0.0)
    assert plain.steering_wheel.value.tolist() == found[0].steering_wheel.value.tolist()
    with pytest.raises(DataError, match="below pi"):
        drives(source, side_camera_correction_rad=4.0)


def test_three_cameras_of_the_real_log_stay_together(shared_data):
    job = read_job(
        PrepConfig(reader="udacity-sim", source=shared_data / "udacity_sim", reader_options={"camera": "all"})
    )
    assert sum(len(kept) for kept in job.aligned) == 4050
    parts = [division.part for division in job.split.divide(job.timelines)]
    assert parts[0].tolist() == parts[1].tolist() == parts[2].tolist()
    assert set(parts[0]) == {"train", "val", "test", "gap"}


@pytest.mark.parametrize(
    ("find", "replace", "message"),
    [
        (",0.25,", ",7.5,", "steering reaches 7.5, expected -1 to 1"),
        (",0.25,", ",east,", "steering is 'east', expected a number"),
        ("center_2018_07", "center_2018_13", "holds no time"),
        ("_000.jpg", ".jpg", "holds no time"),
    ],
)
def test_a_malformed_log_is_one_clear_line(find, replace, message, tmp_path):
    source = simulator(tmp_path / "sim", [0.25, 0.25])
    log = source / "driving_log.csv"
    log.write_text(log.read_text().replace(find, replace))
    with pytest.raises(DataError, match=message) as error:
        drives(source)
    assert "\n" not in str(error.value)


def test_a_missing_or_empty_log(tmp_path):
    source = simulator(tmp_path / "sim", [0.0])
    (source / "driving_log.csv").write_text("")
    with pytest.raises(DataError, match="empty"):
        drives(source)
    (source / "driving_log.csv").unlink()
    with pytest.raises(DataError, match=r"no such log; expected driving_log\.csv beside IMG/"):
        drives(source)


def test_the_real_recording(shared_data):
    (drive,) = drives(shared_data / "udacity_sim")
    assert len(drive) == 1350
    assert not drive.left_out
    assert np.median(np.diff(drive.time_ns)) / 1e6 == pytest.approx(77, abs=2)
    assert next(drive.images.read(0, 1)).shape == (160, 320, 3)
    # The log's second row steers -0.05, to the left.
    assert drive.steering_wheel.value[1] == pytest.approx(math.radians(1.25))


def test_a_speed_that_no_car_has_is_unknown(tmp_path):
    source = simulator(tmp_path / "sim", [0.0, 0.1, 0.2])
    log = source / "driving_log.csv"
    rows = log.read_text().splitlines()
    log.write_text(
        "\n".join([rows[0], rows[1].removesuffix("20") + "1e300", rows[2].removesuffix("20") + "335"])
    )
    (drive,) = drives(source)
    np.testing.assert_allclose(drive.speed.value, [8.9408, np.nan, 335 * 0.44704])


def test_a_log_without_a_header_and_with_another_number_of_cells_is_refused(tmp_path):
    source = simulator(tmp_path / "sim", [0.0, 0.1])
    log = source / "driving_log.csv"
    log.write_text("".join(f"{row},9\n" for row in log.read_text().splitlines()))
    with pytest.raises(DataError, match="rows of 8 cells, expected 7: center, left, right") as error:
        drives(source)
    assert "\n" not in str(error.value)
