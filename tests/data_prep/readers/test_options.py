"""Options of readers: what fits their signature passes, and anything else is one clear line."""

from __future__ import annotations

from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Literal

import pytest

from data_prep.errors import DataError, quoted
from data_prep.prepare import PrepConfig, prepare
from data_prep.readers import ENTRIES, READERS, checked_options, entry, option_types
from data_prep.values import BareText
from tests.data_prep.recordings import challenge


def reader(
    source: Path,
    *,
    camera: Literal["center", "left"] = "center",
    reduced: Literal[1, 2, 4] = 1,
    radius_m: float = 0.3,
    seed: int = 0,
    joined: bool = False,
    topic: str | None = None,
) -> None:
    """Has an option of every type."""


EVERY = {
    "camera": "left",
    "reduced": 4,
    "radius_m": 0.25,
    "seed": -1,
    "joined": True,
    "topic": "/camera",
}


@pytest.mark.parametrize(
    ("options", "taken"),
    [
        ({}, {}),
        (EVERY, EVERY),
        ({"radius_m": 1, "topic": None}, {"radius_m": 1.0, "topic": None}),
        ({"radius_m": BareText(".5"), "topic": "none"}, {"radius_m": 0.5, "topic": None}),
    ],
)
def test_what_fits_is_taken(options, taken):
    found = checked_options("r", reader, options)
    assert found == taken
    assert [type(each) for each in found.values()] == [type(each) for each in taken.values()]


def test_an_unknown_name_is_told_the_nearest():
    with pytest.raises(
        DataError, match=r"r: radius is no option; it has camera, .*; did you mean radius_m\?"
    ):
        checked_options("r", reader, {"radius": 1})
    with pytest.raises(DataError, match=r"'udacity-cvs' is unknown; .*; did you mean udacity-csv\?"):
        entry("udacity-cvs")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("camera", "rear", "camera is 'rear'; expected one of center, left"),
        ("camera", 1, "camera is 1; expected one of center, left"),
        ("reduced", 3, "reduced is 3; expected one of 1, 2, 4"),
        ("reduced", "3", "reduced is '3'; expected one of 1, 2, 4"),
        ("reduced", True, "reduced is True; expected one of 1, 2, 4"),
        ("reduced", [1], "reduced is [1]; expected one of 1, 2, 4"),
        ("radius_m", "big", "radius_m is 'big'; expected a number"),
        ("radius_m", True, "radius_m is True; expected a number"),
        ("radius_m", float("nan"), "radius_m is nan; expected a number"),
        ("seed", 1.0, "seed is 1.0; expected a whole number"),
        ("seed", True, "seed is True; expected a whole number"),
        ("joined", 1, "joined is 1; expected true or false"),
        ("topic", 7, "topic is 7; expected text or none"),
        ("topic", {"a": 1}, "topic is {'a': 1}; expected text or none"),
    ],
)
def test_another_type_says_got_expected_and_what_to_do(name, value, expected):
    with pytest.raises(DataError) as error:
        checked_options("r", reader, {name: value})
    assert str(error.value) == f"reader r: {expected}; correct --option NAME=VALUE"


def test_a_number_given_as_text_is_that_choice():
    assert checked_options("r", reader, {"reduced": "2"})["reduced"] == 2


@pytest.mark.parametrize("name", ENTRIES)
def test_every_reader_s_own_defaults_fit_and_an_object_never_does(name):
    read = READERS[name]
    defaults = {}
    for option, value in (read.__kwdefaults__ or {}).items():
        defaults |= asdict(value) if is_dataclass(value) else {option: value}
    assert option_types(read).keys() == defaults.keys()
    assert checked_options(name, read, defaults) == (read.__kwdefaults__ or {})
    for option in defaults:
        with pytest.raises(DataError, match=f"{option} is .*; expected "):
            checked_options(name, read, {option: ["\n" * 9000]})


@pytest.mark.parametrize("options", [{"reduced": 3}, {"camera": 5}, {"reduced": "big"}, {"colour": "red"}])
def test_a_wrong_option_stops_before_anything_is_written(options, tmp_path):
    config = PrepConfig(reader="udacity-csv", source=challenge(tmp_path / "drive", 3), reader_options=options)
    with pytest.raises(DataError, match="option") as error:
        prepare(config, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_what_is_quoted_is_one_short_line():
    assert quoted("12,5") == "'12,5'"
    assert quoted("a\nb") == "'a\\nb'"
    assert quoted("a" * 5000) == f"'{'a' * 60}'... (5000 characters)"
    assert quoted([1, 2]) == "[1, 2]"
    assert len(quoted(["x" * 5000])) < 100
