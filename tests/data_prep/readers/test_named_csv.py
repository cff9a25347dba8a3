"""Any CSV by named columns: units, sides, rows without images, and what is missing named."""

from __future__ import annotations

import math

import numpy as np
import pytest

from data_prep.errors import DataError
from data_prep.geometry import read_image
from data_prep.prepare import PrepConfig, prepare
from data_prep.readers import read
from data_prep.shards.parquet import read_index
from tests.data_prep.recordings import jpeg

OPTIONS = {"time": "t", "steering": "wheel", "time_unit": "s"}


def drives(source, **options):
    return read("csv", source, options)


def log(folder, rows, header="t,file,wheel,v"):
    """A CSV and the images that its second column names."""
    folder.mkdir(parents=True)
    for number, row in enumerate(rows):
        if row[1]:
            (folder / row[1]).parent.mkdir(parents=True, exist_ok=True)
            (folder / row[1]).write_bytes(jpeg(number))
    path = folder / "log.csv"
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows), ""]))
    return path


def rows(count, *, period=0.05):
    return [(f"{n * period:.3f}", f"img/{n}.jpg", round(math.sin(n / 7), 6), 36 + n) for n in range(count)]


def test_times_angles_and_images_are_those_of_the_rows(tmp_path):
    path = log(tmp_path / "in", rows(6))
    (drive,) = drives(path, **OPTIONS, speed="v", speed_unit="km/h")
    assert (drive.name, drive.camera, drive.vehicle.name) == ("log", "file", "lincoln-mkz")
    assert drive.time_ns.tolist() == [n * 50_000_000 for n in range(6)]
    np.testing.assert_allclose(drive.steering_wheel.value, np.sin(np.arange(6) / 7), atol=1e-6)
    np.testing.assert_allclose(drive.speed.value, (36 + np.arange(6)) / 3.6)
    (image,) = drive.images.read(4, 5)
    assert np.array_equal(image, read_image(tmp_path / "in" / "img" / "4.jpg"))


@pytest.mark.parametrize(
    ("options", "value", "expected_deg"),
    [
        ({"steering_unit": "deg"}, 10, 10),
        ({"steering_unit": "deg", "positive": "right"}, 10, -10),
        ({"steering_unit": "deg", "steering_of": "road"}, 2, 2 * 14.8),
        ({"steering_unit": "fraction", "full_lock_deg": 450}, -0.5, -225),
        ({"steering_unit": "rad"}, 0.1, math.degrees(0.1)),
        (
            {
                "steering_unit": "fraction",
                "full_lock_deg": 25,
                "steering_of": "road",
                "vehicle": "udacity-simulator",
            },
            1,
            25,
        ),
    ],
)
def test_units_and_sides(options, value, expected_deg, tmp_path):
    path = log(tmp_path / "in", [("0", "a.jpg", value, 1)])
    (drive,) = drives(path, **OPTIONS, **options)
    assert math.degrees(drive.steering_wheel.value[0]) == pytest.approx(expected_deg)


def test_rows_without_an_image_are_samples_of_the_controls_only(tmp_path):
    content = rows(9)
    for number in (1, 2, 4, 5, 7, 8):
        content[number] = (content[number][0], "", *content[number][2:])
    (drive,) = drives(log(tmp_path / "in", content), **OPTIONS)
    assert len(drive) == 3
    assert len(drive.steering_wheel.value) == 9
    assert drive.left_out == {}


def test_shards_of_a_csv_with_unix_times_and_joined_sessions(tmp_path):
    content = [(f"{1_600_000_000 + float(t):.3f}", *rest) for t, *rest in rows(40)]
    path = log(tmp_path / "in", [*content[25:], *content[:25]])
    options = {"time": "t", "steering": "wheel"}
    config = PrepConfig(reader="csv", source=path, reader_options=options, split="train", smoothing=1.0)
    manifest = prepare(config, tmp_path / "out")
    index = read_index(tmp_path / "out")
    assert manifest.quality["log"]["sorted_rows"] == 40
    np.testing.assert_allclose(index["steering_wheel_rad"], np.sin(np.arange(40) / 7), atol=1e-6)
    assert manifest.signals["clock"] == {"log": "unix"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"name the columns, as --option time=COLUMN .* it has 't, file, wheel, v'"),
        ({"time": "t", "steering": "angle"}, "expected also angle"),
        ({"time": "t"}, "t is '0.000', expected 19 digits of nanoseconds since 1970"),
        (OPTIONS | {"image": "wheel"}, "none of its 3 images is in"),
        (OPTIONS | {"images": "elsewhere"}, "no such folder; correct --option images=elsewhere"),
        (OPTIONS | {"steering_unit": "fraction"}, "needs --option steering_unit=fraction and --option full"),
        (OPTIONS | {"full_lock_deg": 25.0}, "other units need neither"),
        (OPTIONS | {"vehicle": "tank"}, "vehicle 'tank' is unknown; choose one of"),
        (
            {
                "time": "t",
                "time_unit": "s",
                "steering": "v",
                "steering_unit": "fraction",
                "full_lock_deg": 25.0,
            },
            "steering reaches 38, expected -1 to 1",
        ),
    ],
)
def test_what_is_missing_or_contradicts_itself_is_one_line(options, message, tmp_path):
    path = log(tmp_path / "in", rows(3))
    with pytest.raises(DataError, match=message) as error:
        drives(path, **options)
    assert "\n" not in str(error.value)


def test_which_table_and_which_column_of_images(tmp_path):
    path = log(tmp_path / "in", rows(3))
    assert len(drives(tmp_path / "in", **OPTIONS)[0]) == 3
    path.with_name("second.csv").write_text("x")
    with pytest.raises(DataError, match=r"holds 2 tables \(log.csv, second.csv\); pass the path of one"):
        drives(tmp_path / "in", **OPTIONS)
    path.write_text("t,wheel\n0,1\n")
    with pytest.raises(DataError, match=r"no column names images; add --option image=COLUMN, of 't, wheel'"):
        drives(path, **OPTIONS)
    path.write_text("t,a,b,wheel\n0,1.jpg,2.jpg,1\n")
    with pytest.raises(DataError, match="a, b all name images"):
        drives(path, **OPTIONS)
    path.write_text("t,file,wheel\n0,../../etc/x.jpg,1\n")
    with pytest.raises(DataError, match="leads outside"):
        drives(path, **OPTIONS)


def test_columns_are_listed_as_the_file_is_written(tmp_path):
    path = log(tmp_path / "in", rows(3), header="Zeit,Bild,Größe,v")
    path.write_bytes(path.read_text().encode("cp1252"))
    with pytest.raises(DataError, match="it has 'Zeit, Bild, Größe, v'"):
        drives(path)


def test_a_character_cut_at_the_end_of_the_sample_decides_no_encoding(tmp_path):
    path = log(tmp_path / "in", rows(3), header="t,file,wheel,größe")
    text = path.read_bytes()
    odd = text + b"x" * (1 - len(text) % 2)  # The sample has an even number of bytes.
    path.write_bytes(odd + "é".encode() * 40_000)
    with pytest.raises(DataError, match="it has 't, file, wheel, größe'"):
        drives(path)


def test_a_name_that_two_columns_have_is_no_column_of_images(tmp_path):
    path = log(tmp_path / "in", rows(3), header="t,file,wheel,file")
    with pytest.raises(DataError, match="no column names images"):
        drives(path, **OPTIONS)
    with pytest.raises(DataError, match="has the column file twice"):
        drives(path, **OPTIONS, image="file")
