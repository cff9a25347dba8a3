"""A path from a recording never leads out of the source folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.errors import DataError
from data_prep.readers import ENTRIES, READERS, entry, recognise
from data_prep.readers.paths import (
    MOST_NAME_BYTES,
    drive_name,
    existing_folder,
    file_name,
    inside,
    printable,
    visible,
)
from data_prep.readers.tables import listed_images


@pytest.mark.parametrize(
    ("untrusted", "expected"),
    [
        ("center/1.jpg", "center/1.jpg"),
        ("center\\1.jpg", "center/1.jpg"),
        (" 1.jpg ", "1.jpg"),
        ("/home/somebody/IMG/1.jpg", "1.jpg"),
        ("C:\\data\\IMG\\1.jpg", "1.jpg"),
        ("c:/data/1.jpg", "1.jpg"),
        ("\\\\server\\share\\1.jpg", "1.jpg"),
        ("a/../1.jpg", "1.jpg"),
    ],
)
def test_where_a_named_file_is_looked_for(untrusted, expected, tmp_path):
    assert inside(tmp_path, untrusted) == tmp_path.resolve() / expected


@pytest.mark.parametrize(
    "untrusted",
    ["../1.jpg", "a/../../1.jpg", "..", ".", "./", "a/..", "", "  ", "/", "C:\\", "a\0b", "..\\x"],
)
def test_what_leads_outside_or_nowhere_is_refused(untrusted, tmp_path):
    with pytest.raises(DataError, match=r"leads outside|names no file") as error:
        inside(tmp_path, untrusted)
    assert "\n" not in str(error.value)


@given(st.text(alphabet="ab./\\:C \0~", max_size=20))
def test_no_text_leads_outside(text):
    root = Path("/tmp/some/root")
    try:
        found = inside(root, text)
    except DataError:
        return
    assert found.is_relative_to(root)
    assert found != root


def test_links_do_not_lead_outside(tmp_path):
    source, secret = tmp_path / "source", tmp_path / "secret"
    source.mkdir()
    secret.mkdir()
    (secret / "1.jpg").write_bytes(b"x")
    (source / "file.jpg").symlink_to(secret / "1.jpg")
    (source / "folder").symlink_to(secret)
    (source / "own.jpg").write_bytes(b"x")
    (source / "near.jpg").symlink_to(source / "own.jpg")
    for name in ("file.jpg", "folder/1.jpg"):
        with pytest.raises(DataError, match="leads outside source/"):
            inside(source, name)
        with pytest.raises(DataError, match="leads outside source/"):
            listed_images(source, [name])
    assert listed_images(source, ["own.jpg", "near.jpg", "gone.jpg"]).names == ("own.jpg", "own.jpg")


def test_names(tmp_path):
    (tmp_path / "CH2 001 (test)").mkdir()
    assert drive_name(tmp_path / "CH2 001 (test)") == "CH2-001-test"
    (tmp_path / "clip.one.mp4").write_bytes(b"")
    assert drive_name(tmp_path / "clip.one.mp4") == "clip.one"
    (tmp_path / "---").mkdir()
    assert re.fullmatch("drive-[0-9a-f]{8}", drive_name(tmp_path / "---"))
    assert file_name("C:\\a\\b.jpg ") == "b.jpg"
    with pytest.raises(DataError, match="a file, expected a folder"):
        existing_folder(tmp_path / "clip.one.mp4")


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("行车记录.mkv", "行车记录"),
        ("画像", "画像"),
        ("Fahrt über Köln.mp4", "Fahrt-über-Köln"),
        ("रिकॉर्डिंग 1.mp4", "रिकॉर्डिंग-1"),
        ("cafe\u0301.mkv", "caf\u00e9"),
        ("поездка №1.mkv", "поездка-1"),
    ],
)
def test_names_of_any_alphabet_stay(file, expected, tmp_path):
    (tmp_path / file).write_bytes(b"")
    assert drive_name(tmp_path / file) == expected


def test_names_that_are_no_text_or_too_long_are_told_by_a_hash(tmp_path):
    latin = tmp_path / os.fsdecode(b"stra\xdfe.mkv")
    latin.write_bytes(b"")
    assert drive_name(latin) == "stra-e"
    assert printable(latin.name) == "stra\\xdfe.mkv"
    names = {drive_name(tmp_path / name) for name in ("🚗.mkv", "🚙.mkv")}
    assert len(names) == 2
    long = drive_name(tmp_path / ("道" * 84))
    assert len(long.encode()) <= MOST_NAME_BYTES
    assert long != drive_name(tmp_path / ("道" * 83))


def test_what_systems_leave_in_folders_is_not_listed(tmp_path):
    for name in (".DS_Store", "._a.mkv", "Thumbs.db", "desktop.ini", "a.mkv", "b"):
        (tmp_path / name).write_bytes(b"")
    for name in ("__MACOSX", ".git", "c"):
        (tmp_path / name).mkdir()
    assert [path.name for path in visible(tmp_path)] == ["a.mkv", "b", "c"]


def test_the_table_of_readers(tmp_path):
    assert set(READERS) == set(ENTRIES)
    assert "spark" not in READERS
    with pytest.raises(
        DataError, match="reader 'spark' is unknown; choose one of synthetic, synthetic-actions, udacity-bag"
    ):
        entry("spark")
    with pytest.raises(DataError, match="no such file or folder"):
        recognise(tmp_path / "nowhere")
