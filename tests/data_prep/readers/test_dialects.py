"""Logs as spreadsheets of other countries write them: the same drives, or one line that names the dialect."""

from __future__ import annotations

import codecs

import numpy as np
import pytest

from data_prep.errors import DataError
from data_prep.prepare import PrepConfig, prepare
from data_prep.readers import recognise
from data_prep.readers.udacity_csv import drives as car_drives
from data_prep.readers.udacity_sim import drives as sim_drives
from tests.data_prep.recordings import challenge, interpolated, simulator

STEERING = [0.05, -0.1, 0.25, 0.0, 0.125, -0.5, 1.0, 0.3]


def sim(folder, change, **layout):
    source = simulator(folder, STEERING, **layout)
    log = source / "driving_log.csv"
    log.write_bytes(change(log.read_text()))
    return source


def with_decimal_commas(text: str) -> str:
    """Numbers as 0,05; the dots of file names stay."""
    lines = [line.split(",") for line in text.splitlines()]
    cells = [[c if c.endswith("jpg") else c.replace(".", "\0") for c in line] for line in lines]
    return "\n".join("|".join(line) for line in cells)


SIM_DIALECTS = {
    "byte-order mark": (lambda text: codecs.BOM_UTF8 + text.encode(), {}),
    "byte-order mark and header": (lambda text: codecs.BOM_UTF8 + text.encode(), {"header": True}),
    "UTF-16 with tabs": (lambda text: text.replace(",", "\t").encode("utf-16"), {"header": True}),
    "semicolons": (lambda text: text.replace(",", ";").encode(), {}),
    "semicolons and decimal commas": (
        lambda text: with_decimal_commas(text).replace("|", ";").replace("\0", ",").encode(),
        {},
    ),
    "the same with a header": (
        lambda text: with_decimal_commas(text).replace("|", ";").replace("\0", ",").encode(),
        {"header": True},
    ),
    "decimal commas, cells end at comma and space": (
        lambda text: with_decimal_commas(text).replace("|", ", ").replace("\0", ",").encode(),
        {},
    ),
    "cp1252": (lambda text: text.encode("cp1252"), {"root": "C:\\Users\\Zoé\\IMG\\"}),
}


@pytest.mark.parametrize("name", SIM_DIALECTS)
def test_a_log_in_another_dialect_gives_the_same_drive(name, tmp_path):
    change, layout = SIM_DIALECTS[name]
    source = sim(tmp_path / "other", change, **layout)
    assert recognise(source) == "udacity-sim"
    (found,), (expected,) = sim_drives(source), sim_drives(simulator(tmp_path / "plain", STEERING))
    np.testing.assert_array_equal(found.steering_wheel.value, expected.steering_wheel.value)
    np.testing.assert_array_equal(found.speed.value, expected.speed.value)
    assert found.images.names == expected.images.names


def test_decimal_commas_between_commas_are_named_and_no_row_is_blamed(tmp_path):
    source = sim(
        tmp_path / "sim",
        lambda text: with_decimal_commas(text).replace("|", ",").replace("\0", ",").encode(),
        header=True,
    )
    with pytest.raises(DataError, match="decimal commas") as error:
        sim_drives(source)
    assert "row" not in str(error.value)


@pytest.mark.parametrize("dialect", ["mark", "semicolons", "tabs"])
@pytest.mark.parametrize("make", [challenge, interpolated])
def test_the_cars_tables_in_other_dialects(make, dialect, tmp_path):
    source = make(tmp_path / "drive", 6)
    (expected,) = car_drives(source)
    (table,) = source.glob("*.csv")
    data = table.read_bytes()
    table.write_bytes(
        {
            "mark": codecs.BOM_UTF8 + data,
            "semicolons": data.replace(b",", b";"),
            "tabs": data.replace(b",", b"\t"),
        }[dialect]
    )
    (found,) = car_drives(source)
    np.testing.assert_array_equal(found.time_ns, expected.time_ns)
    np.testing.assert_array_equal(found.steering_wheel.value, expected.steering_wheel.value)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["1,234", "5,678"], "may be decimal or of thousands"),
        (["0,5", "1.5"], "may be decimal or of thousands"),
    ],
)
def test_a_comma_that_may_mean_two_things_is_named(cells, message, tmp_path):
    source = challenge(tmp_path / "drive", 2)
    (table,) = source.glob("*.csv")
    lines = table.read_text().replace(",", ";").splitlines()
    rows = [";".join([line.split(";")[0], cell, "0"]) for line, cell in zip(lines[1:], cells, strict=True)]
    table.write_text("\n".join([lines[0], *rows]))
    with pytest.raises(DataError, match=message) as error:
        car_drives(source)
    assert "decimal points" in str(error.value)


def test_a_real_surplus_cell_is_still_a_fault_of_its_row(tmp_path):
    source = simulator(tmp_path / "sim", STEERING, header=True)
    log = source / "driving_log.csv"
    lines = log.read_text().splitlines()
    lines[3] += ",9,9"
    log.write_text("\n".join(lines))
    with pytest.raises(DataError, match="line 4: 9 cells, expected at most 7"):
        sim_drives(source)


def test_hidden_files_of_other_systems_are_passed_over(tmp_path):
    source = interpolated(tmp_path / "in" / "drive", 6)
    (source / "._interpolated.csv").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    (tmp_path / "in" / "__MACOSX" / "drive").mkdir(parents=True)
    (tmp_path / "in" / "__MACOSX" / "drive" / "interpolated.csv").write_bytes(b"\0\5\x16\7")
    assert [drive.name for drive in car_drives(tmp_path / "in")] == ["drive"]


def test_two_recordings_of_one_name_are_refused_with_both_places(tmp_path):
    for name in ("a b", "a-b"):
        interpolated(tmp_path / name, 6)
    config = PrepConfig(reader="udacity-csv", source=tmp_path, split="test")
    with pytest.raises(
        DataError, match=r"2 drives would be named a-b \(.*/a b/.* and .*/a-b/.*rename one"
    ) as error:
        prepare(config, tmp_path / "out")
    assert "\n" not in str(error.value)
