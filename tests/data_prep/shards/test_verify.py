"""Verify finds every kind of damage, names the file, and finds nothing in a sound output."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from data_prep.causes import encode_causes
from data_prep.errors import DataError
from data_prep.geometry import Geometry
from data_prep.prepare import PrepConfig
from data_prep.shards.atomic import sha256_of
from data_prep.shards.manifest import Manifest
from data_prep.shards.parquet import (
    SEQUENCE_INDEX,
    image_index,
    read_images,
    read_index,
    write_images,
    write_index,
)
from data_prep.shards.verify import verify
from tests.data_prep.recordings import challenge, jpeg
from tests.data_prep.test_prepare import config, prepare


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
    entry = replace(manifest.index[0], sha256=sha256_of(path), bytes=path.stat().st_size, rows=59)
    replace(manifest, index=[entry]).save(out)
    assert problems(out) == {
        "index.parquet": "does not list the 10 rows of shards/drive-00001.h5 in order",
        "manifest.json": "its quality report counts {'drive': 60} rows, the index has {'drive': 59}",
    }


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
    replace(manifest, shards=shards, index=[*map(rehashed, manifest.index)]).save(out)
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


def rehash(root: Path) -> None:
    """Gives the manifest the hashes of files that were changed, so that only their content can tell."""
    manifest = Manifest.load(root)

    def fresh(entry):
        path = root / entry.path
        return replace(entry, sha256=sha256_of(path), bytes=path.stat().st_size)

    replace(manifest, shards=[*map(fresh, manifest.shards)], index=[*map(fresh, manifest.index)]).save(root)


def change_columns(root: Path, **changes: tuple[int, float]) -> None:
    """Sets one row of columns of the second shard, and of the index where it has them."""
    index = read_index(root)
    with h5py.File(root / "shards/drive-00001.h5", "r+") as file:
        for name, (row, value) in changes.items():
            file[name][row] = value
            index.loc[10 + row, name] = value
    write_index(root / "index.parquet", index, SEQUENCE_INDEX)
    rehash(root)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (
            {"steering_wheel_rad": (3, 25.0)},
            "steering_wheel_rad is 25 at row 3, expected at most 20 to either side",
        ),
        ({"speed_mps": (4, math.inf)}, "speed_mps is inf at row 4, expected at most 150 to either side"),
        (
            {"inverse_turning_radius": (5, 0.01)},
            "the label at row 5 does not follow from the angle, the speed and the vehicle",
        ),
    ],
)
def test_values_that_cannot_be_are_found_in_their_shard(changes, what, out):
    change_columns(out, **changes)
    assert problems(out) == {"shards/drive-00001.h5": what}


def test_time_that_turns_back_is_found_in_shard_and_index(out):
    change_columns(out, time_ns=(7, 0))
    found = problems(out)
    assert found["shards/drive-00001.h5"] == "time does not increase at row 7"
    assert found["index.parquet"] == "time does not increase along drive drive"


def test_an_index_that_contradicts_a_shard_names_the_shard(out):
    index = read_index(out)
    index.loc[34, "steering_wheel_rad"] += 1e-9
    index.loc[41, "speed_mps"] = 3.0  # NaN in the shard
    write_index(out / "index.parquet", index, SEQUENCE_INDEX)
    rehash(out)
    assert problems(out) == {
        "shards/drive-00003.h5": "the index has another steering_wheel_rad for row 4",
        "shards/drive-00004.h5": "the index has another speed_mps for row 1",
    }


def test_frames_of_another_size_or_drive_are_found(out):
    with h5py.File(out / "shards/drive-00002.h5", "r+") as file:
        frames = file["frames"][:, :, ::2]
        del file["frames"]
        file["frames"] = frames
        file.attrs["drive"] = np.bytes_(b"another")
    rehash(out)
    found = [p.what for p in verify(out).problems]
    assert found == [
        "frames of 12x8 pixels, the manifest says 12x16",
        "its drive is 'another', the manifest says 'drive'",
    ]


def test_parts_that_touch_are_found(out):
    index = read_index(out)
    assert set(index["split"]) == {"train", "val", "test", "gap"}
    index["split"] = index["split"].replace("gap", "train")
    index.loc[0, "split"] = "exam"
    write_index(out / "index.parquet", index, SEQUENCE_INDEX)
    rehash(out)
    found = [p.what for p in verify(out).problems]
    assert "has the split 'exam', expected one of train, val, test, gap" in found
    assert sum("frames are less than 0.1 s from those of another part" in what for what in found) == 3


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number in range(6):
        folder = tmp_path / "source" / ("cat" if number % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
    source = PrepConfig(
        reader="image-folder", source=tmp_path / "source", geometry=Geometry(height=8, width=8)
    )
    prepare(source, tmp_path / "images")
    return tmp_path / "images"


def rewrite_images(root: Path, change) -> None:
    (path,) = (root / "shards").iterdir()
    write_images(path, [change(image) for image in read_images(path)], ("cat", "dog"))
    rehash(root)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda image: image._replace(data=jpeg(0)), "the image at row 0 has 48x64 pixels, unlike"),
        (lambda image: image._replace(labels=(1, 2)), r"labels at row 0 are \(1, 2\), expected 0 and 1"),
        (lambda image: image._replace(labels=(1, 1)), "the index has another (cat|dog) for row"),
        (lambda image: image._replace(split="val"), "the index has another split for row"),
        (lambda image: image._replace(data=b"text"), "row 0: 4 bytes without a JPEG header"),
    ],
)
def test_images_that_cannot_be_are_found_in_their_shard(change, what, images):
    assert verify(images).ok
    rewrite_images(images, change)
    found = verify(images).problems
    assert {problem.path for problem in found} == {"shards/source-00000.parquet"}
    assert re.match(what, found[0].what)


def test_an_image_that_is_listed_twice_is_found(images):
    rewrite_images(images, lambda image: image._replace(key="cat/1.jpg"))
    index = read_index(images).assign(key="cat/1.jpg")
    write_index(images / "index.parquet", index, image_index(("cat", "dog")))
    rehash(images)
    assert problems(images) == {"index.parquet": "has the image 'cat/1.jpg' twice"}


@pytest.mark.parametrize("name", ["smoothing", "vehicle_wheelbase_m", "geometry_crop_top"])
def test_attributes_that_contradict_the_manifest_are_found(name, out):
    with h5py.File(out / "shards/drive-00002.h5", "r+") as file:
        file.attrs[name] = 0.77
    rehash(out)
    (problem,) = verify(out).problems
    assert problem.path == "shards/drive-00002.h5"
    assert problem.what.startswith(f"its {name} is '0.77', the manifest says")


@pytest.mark.parametrize(
    ("causes", "what"),
    [
        (np.zeros((10, 12, 16), np.uint8), None),
        (np.full((10, 12, 16), 2, np.uint8), "a cause at row 0 is 2, expected 0 and 1"),
        (np.zeros((10, 12, 8), np.uint8), "causes of 12x8 pixels, unlike its frames"),
    ],
)
def test_causes_of_frames_that_cannot_be_are_found(causes, what, out):
    with h5py.File(out / "shards/drive-00002.h5", "r+") as file:
        file["cause"] = causes
    rehash(out)
    assert problems(out) == ({} if what is None else {"shards/drive-00002.h5": what})


def test_causes_of_images_that_cannot_be_are_found(images):
    for size, whole in (((8, 8), True), ((8, 4), False)):
        causes = encode_causes(np.ones(size, np.uint8))
        (path,) = (images / "shards").iterdir()
        changed = [image._replace(causes=causes) for image in read_images(path)]
        write_images(path, changed, ("cat", "dog"), with_causes=True)
        rehash(images)
        assert verify(images).ok == whole
    assert "the causes at row 0 have 8x4 pixels" in verify(images).problems[0].what
    rewritten = [image._replace(causes=b"no picture") for image in changed]
    write_images(path, rewritten, ("cat", "dog"), with_causes=True)
    rehash(images)
    assert "row 0, causes: 10 bytes without" in verify(images).problems[0].what
