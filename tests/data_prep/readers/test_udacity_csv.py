"""Udacity's two CSV layouts: exact times, the right camera, and damage that is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data_prep.alignment import Alignment, align
from data_prep.errors import DataError
from data_prep.geometry import read_image
from data_prep.prepare import PrepConfig, prepare
from data_prep.readers import READERS, recognise
from data_prep.readers.udacity_csv import drives, recognises
from tests.data_prep.recordings import PERIOD_NS, START_NS, challenge, interpolated

CSV = "CH2_final_evaluation.csv"


def rewrite(path: Path, change) -> None:
    path.write_text(change(path.read_text()))


def test_the_challenge_layout(tmp_path):
    source = challenge(tmp_path / "CH2 001", 5, angles=[0.5, -0.25, 0.0, 1.0, -1.0])
    assert recognise(source) == "udacity-csv"
    (drive,) = READERS["udacity-csv"](source)
    assert (drive.name, drive.camera, drive.vehicle.name) == ("CH2-001", "center", "lincoln-mkz")
    assert drive.time_ns.tolist() == [START_NS + i * PERIOD_NS for i in range(5)]
    assert drive.steering_wheel.value.tolist() == [0.5, -0.25, 0.0, 1.0, -1.0]
    assert drive.speed is None
    images = list(drive.images.read(1, 4))
    for image, stamp in zip(images, drive.time_ns[1:4], strict=True):
        assert np.array_equal(image, read_image(source / "center" / f"{stamp}.jpg"))


@pytest.mark.parametrize(("camera", "first"), [("left", 0), ("center", 1), ("right", 2)])
def test_the_interpolated_layout_by_camera(camera, first, tmp_path):
    source = interpolated(tmp_path / "HMB_1", 4)
    assert recognises(source)
    (drive,) = drives(source, camera=camera)
    rows = [first + 3 * i for i in range(4)]
    assert drive.name == ("HMB_1" if camera == "center" else f"HMB_1-{camera}")
    assert drive.time_ns.tolist() == [START_NS + n * PERIOD_NS // 3 for n in rows]
    aligned = align(drive, Alignment(smoothing=1.0))
    np.testing.assert_allclose(aligned.columns["steering_wheel_rad"], [n / 100 for n in rows])
    np.testing.assert_allclose(aligned.columns["speed_mps"], [10 + n for n in rows])
    image = next(drive.images.read(2, 3))
    assert np.array_equal(image, read_image(source / camera / f"{drive.time_ns[2]}.jpg"))


def test_all_cameras_are_drives_of_one_recording(tmp_path):
    found = drives(interpolated(tmp_path / "HMB_1", 4), camera="all", side_camera_correction_rad=0.25)
    assert [(d.name, d.camera, d.recording) for d in found] == [
        ("HMB_1", "center", "HMB_1"),
        ("HMB_1-left", "left", "HMB_1"),
        ("HMB_1-right", "right", "HMB_1"),
    ]
    for drive, first, offset in zip(found, (1, 0, 2), (0.0, -0.25, 0.25), strict=True):
        expected = np.array([first + 3 * i for i in range(4)]) / 100 + offset
        np.testing.assert_allclose(drive.steering_wheel.value, expected)
        assert drive.provenance["side_camera_correction_rad"] == offset
    with pytest.raises(DataError, match="challenge 2 has no left camera"):
        drives(challenge(tmp_path / "CH2_001", 3), camera="all")


def test_a_folder_of_recordings_gives_a_drive_for_each(tmp_path):
    for name in ("HMB_2", "HMB_1"):
        interpolated(tmp_path / name, 2)
    (tmp_path / "notes").mkdir()
    assert [drive.name for drive in drives(tmp_path)] == ["HMB_1", "HMB_2"]


@pytest.mark.parametrize("stamp", ["1.479425441182878e18", "1479425441182877952.0", "1.47942544118288E+18"])
def test_a_time_written_by_a_float_is_refused(stamp, tmp_path):
    source = challenge(tmp_path / "drive", 3)
    rewrite(source / CSV, lambda text: text.replace(str(START_NS + PERIOD_NS), stamp))
    with pytest.raises(DataError, match=r"line 3: frame_id .* damaged by a float") as error:
        drives(source)
    assert "\n" not in str(error.value)


def test_times_rounded_to_a_floats_spacing_are_refused(tmp_path):
    source = interpolated(tmp_path / "drive", 10)
    rounded = {str(n): str(int(float(n))) for n in (START_NS + i * PERIOD_NS // 3 for i in range(30))}

    def damage(text: str) -> str:
        for exact, damaged in rounded.items():
            text = text.replace(f"x,{exact}", f"x,{damaged}")
        return text

    rewrite(source / "interpolated.csv", damage)
    with pytest.raises(DataError, match="every timestamp is a multiple of 256"):
        drives(source)


def test_rows_without_their_image_are_left_out_by_name(tmp_path):
    source = challenge(tmp_path / "drive", 6)
    gone = source / "center" / f"{START_NS + 2 * PERIOD_NS}.jpg"
    gone.unlink()
    (drive,) = drives(source)
    assert len(drive) == 5
    assert drive.left_out == {"missing_image": (f"center/{gone.name}",)}
    assert START_NS + 2 * PERIOD_NS not in drive.time_ns
    # The angle of the lost frame still helps to interpolate.
    assert START_NS + 2 * PERIOD_NS in drive.steering_wheel.time_ns


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found neither"),
        ("frame_id,steering_angle,public\n", "a header without rows"),
        ("frame_id,steering_angle\n12,0.1\n", r"line 2: frame_id is '12', expected 19 digits"),
        (
            f"frame_id,steering_angle\n{START_NS},left\n",
            "line 2: steering_angle is 'left', expected a number",
        ),
        (
            f"frame_id,steering_angle\n{START_NS},0.1\n{START_NS + 9},0.1,2,3\n",
            "line 3: 4 cells, expected at most 2",
        ),
        (f"frame_id,steering_angle\n{START_NS},0.1,2\n", "line 2: 3 cells, expected at most 2"),
        (f'frame_id,steering_angle\n{START_NS},"0.1\n', "not a CSV"),
        (
            f"frame_id,steering_angle, steering_angle\n{START_NS},1,2\n",
            "has the column steering_angle twice",
        ),
        (f"frame_id,steering_angle\n{'7' * 5000},0.1\n", r"'7{60}'\.\.\. \(5000 characters\)"),
        (f"frame_id,steering_angle\n1.{'7' * 5000},0.1\n", r"\(5002 characters\) was damaged by a float"),
        (f"frame_id,steering_angle\n{START_NS},{'x' * 5000}\n", r"'x{60}'\.\.\. \(5000 characters\)"),
        (f"frame_id,steering_angle\n{START_NS},0.1\n14794", "line 3: frame_id is '14794'"),
    ],
)
def test_a_malformed_csv_is_one_clear_line(text, message, tmp_path):
    source = challenge(tmp_path / "drive", 2)
    (source / CSV).write_text(text)
    with pytest.raises(DataError, match=message) as error:
        drives(source)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_a_fault_is_named_by_its_line_in_the_file(tmp_path):
    source = interpolated(tmp_path / "hmb", 4)
    lines = (source / "interpolated.csv").read_text().splitlines()
    lines[8] = lines[8].replace(",0.07,", ",?,")  # the third row of the centre camera
    (source / "interpolated.csv").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"interpolated.csv line 9: angle is '\?'"):
        drives(source)


def test_a_column_of_unknown_speeds_is_no_speed(tmp_path):
    source = interpolated(tmp_path / "hmb", 2)
    table = pd.read_csv(source / "interpolated.csv", dtype=str).assign(speed="")
    table.to_csv(source / "interpolated.csv", index=False)
    assert drives(source)[0].speed is None


def test_the_example_with_random_steering_is_not_taken(tmp_path):
    source = challenge(tmp_path / "drive", 2)
    (source / CSV).rename(source / "final_example.csv")
    assert not recognises(source)


def test_other_refusals(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        drives(tmp_path / "nowhere")
    with pytest.raises(DataError, match="challenge 2 has no left camera"):
        drives(challenge(tmp_path / "ch2", 2), camera="left")
    source = interpolated(tmp_path / "hmb", 2)
    rewrite(source / "interpolated.csv", lambda text: text.replace("right_camera", "rear_camera"))
    with pytest.raises(
        DataError, match="no row of right_camera, there are 'center_camera, left_camera, rear_camera'"
    ):
        drives(source, camera="right")
    rewrite(source / "interpolated.csv", lambda text: text.replace(",left/", ",left/../../"))
    with pytest.raises(DataError, match="leads outside hmb/"):
        drives(source, camera="left")
    rewrite(source / "interpolated.csv", lambda text: text.replace("speed", "velocity"))
    with pytest.raises(DataError, match="expected also speed"):
        drives(source)
    (source / "again_interpolated.csv").write_text("x")
    with pytest.raises(DataError, match=r"again_interpolated\.csv, interpolated\.csv; expected one"):
        drives(source)


def test_the_real_recordings(shared_data):
    (whole,) = drives(shared_data / "udacity_ch2_001")
    assert len(whole) == 5614
    assert (whole.steering_wheel.value.min(), whole.steering_wheel.value.max()) == pytest.approx(
        (-0.878, 0.950), abs=1e-3
    )
    (part,) = drives(shared_data / "udacity_ch2_001_640x480")
    assert len(part) == 400
    assert len(part.left_out["missing_image"]) == 5214
    assert next(part.images.read(399, 400)).shape == (480, 640, 3)
    (without,) = drives(shared_data / "udacity_ch2_002_csv", camera="left")
    assert len(without.left_out["missing_image"]) == 4401
    with pytest.raises(DataError, match=r"no usable frame \(4401 missing_image\)"):
        align(without, Alignment())


def test_values_that_no_car_has_are_unknown_and_counted(tmp_path):
    source = interpolated(tmp_path / "HMB_1", 12)
    table = pd.read_csv(source / "interpolated.csv", dtype=str)
    centre = table.index[table["frame_id"] == "center_camera"]
    table.loc[centre[3], "speed"] = "1e300"
    table.loc[centre[5], "speed"] = "-150.5"
    table.loc[centre[7], "angle"] = "20.5"
    table.loc[centre[9], "angle"] = "-19.5"
    table.to_csv(source / "interpolated.csv", index=False)
    (drive,) = drives(source)
    assert np.flatnonzero(np.isnan(drive.speed.value)).tolist() == [3, 5]
    assert np.flatnonzero(np.isnan(drive.steering_wheel.value)).tolist() == [7]
    how = PrepConfig(reader="udacity-csv", source=source, split="test")
    report = prepare(how, tmp_path / "out").quality["HMB_1"]
    assert report["signal_samples_dropped"] == {"speed": 2, "steering_wheel": 1}
    assert report["kept"] + sum(report["dropped"].values()) == report["read"] == 12


def test_a_speed_of_which_nothing_is_credible_is_damage_and_not_absence(tmp_path):
    source = interpolated(tmp_path / "HMB_1", 4)
    table = pd.read_csv(source / "interpolated.csv", dtype=str).assign(speed="1e300")
    table.to_csv(source / "interpolated.csv", index=False)
    (drive,) = drives(source)
    assert drive.speed is not None
    assert np.isnan(drive.speed.value).all()
