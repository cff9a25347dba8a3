"""Verify finds every kind of damage, names the file, and finds nothing in a sound output."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.errors import DataError
from data_prep.shards.atomic import sha256_of
from data_prep.shards.manifest import Manifest
from data_prep.shards.parquet import SEQUENCE_INDEX, read_index, write_index
from data_prep.shards.verify import verify
from tests.data_prep.recordings import challenge
from tests.data_prep.test_pipeline import config, prepare


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("verify")
    prepare(config(challenge(root / "drive")), root / "out")
    return root / "out"


@pytest.fixture
def out(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "out"))


def problems(root: Path) -> dict[str, str]:
    return dict(verify(root).problems)


def test_a_sound_output_is_sound(sound):
    report = verify(sound)
    assert (report.ok, report.shards, report.rows) == (True, 6, 60)


def test_one_changed_bit_anywhere_is_found(out):
    shard = out / "shards/drive-00002.h5"
    data = shard.read_bytes()
    for at in range(0, len(data), len(data) // 7):
        shard.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert "not those of the manifest's hash" in problems(out)["shards/drive-00002.h5"]


def test_missing_cut_and_unlisted_files_are_named(out):
    (out / "shards/drive-00000.h5").unlink()
    cut = out / "shards/drive-00001.h5"
    cut.write_bytes(cut.read_bytes()[:-1])
    (out / "shards/drive-00099.h5").write_bytes(b"left over")
    found = problems(out)
    assert list(found) == ["shards/drive-00000.h5", "shards/drive-00001.h5", "shards/drive-00099.h5"]
    assert found["shards/drive-00000.h5"].startswith("missing;")
    assert "bytes, the manifest says" in found["shards/drive-00001.h5"]
    assert "not in the manifest" in found["shards/drive-00099.h5"]


def test_an_index_that_skips_a_row_is_found(out):
    manifest = Manifest.load(out)
    index = read_index(out).drop(index=13)
    write_index(out / "index.parquet", index, SEQUENCE_INDEX)
    path = out / "index.parquet"
    entry = replace(manifest.index, sha256=sha256_of(path), bytes=path.stat().st_size, rows=59)
    replace(manifest, index=entry).save(out)
    assert problems(out) == {"index.parquet": "does not list the 10 rows of shards/drive-00001.h5 in order"}


def test_a_row_count_that_the_shard_contradicts_is_found(out):
    manifest = Manifest.load(out)
    shards = [replace(manifest.shards[0], rows=11), *manifest.shards[1:]]
    replace(manifest, shards=shards).save(out)
    assert "10 rows, the manifest says 11" in problems(out)["shards/drive-00000.h5"]


def test_damage_that_the_manifest_s_hash_fits_is_named_too(out):
    def rehashed(entry):
        path = out / entry.path
        path.write_bytes(path.read_bytes()[:-40] + b"x" * 40)
        return replace(entry, sha256=sha256_of(path))

    manifest = Manifest.load(out)
    shards = [rehashed(manifest.shards[0]), replace(manifest.shards[1], rows=10**15), *manifest.shards[2:]]
    replace(manifest, shards=shards, index=rehashed(manifest.index)).save(out)
    found = problems(out)
    assert "damaged" in found["index.parquet"]
    assert "10 rows, the manifest says 1000000000000000" in found["shards/drive-00001.h5"]


def test_a_shard_that_is_a_link_to_elsewhere_is_not_followed(out, tmp_path):
    shard = out / "shards/drive-00000.h5"
    shard.rename(tmp_path / "elsewhere.h5")
    shard.symlink_to(tmp_path / "elsewhere.h5")
    assert problems(out)["shards/drive-00000.h5"].startswith("lies outside the folder")


def test_an_output_without_a_manifest_cannot_be_checked(out):
    (out / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"no manifest\.json"):
        verify(out)
    (out / "manifest.json").write_text(json.dumps({"schema": 1}))
    with pytest.raises(DataError, match="schema 1"):
        verify(out)
