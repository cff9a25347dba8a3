"""A path from a recording never leads out of the source folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.errors import DataError
from data_prep.readers import ENTRIES, READERS, entry, recognise
from data_prep.readers.paths import drive_name, existing_folder, file_name, inside
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
    with pytest.raises(DataError, match="rename it"):
        drive_name(tmp_path / "---")
    assert file_name("C:\\a\\b.jpg ") == "b.jpg"
    with pytest.raises(DataError, match="a file, expected a folder"):
        existing_folder(tmp_path / "clip.one.mp4")


def test_the_table_of_readers(tmp_path):
    assert set(READERS) == set(ENTRIES)
    assert "spark" not in READERS
    with pytest.raises(
        DataError, match="reader 'spark' is unknown; choose one of synthetic, synthetic-actions, udacity-bag"
    ):
        entry("spark")
    with pytest.raises(DataError, match="no such file or folder"):
        recognise(tmp_path / "nowhere")
