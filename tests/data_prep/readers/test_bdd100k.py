"""The test images must never be swallowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.errors import DataError
from data_prep.prepare import PrepConfig, prepare
from data_prep.readers import recognise
from data_prep.readers.bdd100k import image_set, recognises
from data_prep.shards.parquet import read_index
from tests.data_prep.readers.bag_writer import generated_jpegs


@pytest.fixture
def root(tmp_path) -> Path:
    """A download with every split, and things that lie about."""
    folder = tmp_path / "bdd100k"
    for split, count in (("train", 5), ("val", 2), ("test", 3)):
        (folder / "images" / "100k" / split).mkdir(parents=True)
        for n, jpeg in enumerate(generated_jpegs(count, height=16, width=16, seed=count)):
            (folder / "images" / "100k" / split / f"{split}-{n}.jpg").write_bytes(jpeg)
    (folder / "images" / "100k" / "train" / "._train-0.jpg").write_bytes(b"a Mac's shadow")
    (folder / "images" / "100k" / "train" / "notes.txt").write_text("")
    (folder / "images" / "100k" / "train" / "old.bmp").write_bytes(b"")
    return folder


@pytest.mark.parametrize("below", [".", "..", "images", "images/100k"])
def test_only_the_training_split_by_default(root, below):
    images = image_set(root / below)
    assert [item.key for item in images.items] == [f"train/train-{n}.jpg" for n in range(5)]
    assert {item.split for item in images.items} == {"train"}
    assert images.label_names == ()
    assert images.left_out == {"unsupported_format": ("train/old.bmp",)}
    assert recognise(root / below) == "bdd100k"


def test_other_splits_by_name_only(root):
    images = image_set(root, splits="test, val")
    assert [item.split for item in images.items] == ["val"] * 2 + ["test"] * 3
    assert images.items[0].group == "val-0"


def test_shards_without_labels(root, tmp_path):
    config = PrepConfig(reader="bdd100k", source=root, frames_per_shard=3)
    manifest = prepare(config, tmp_path / "out")
    assert read_index(tmp_path / "out")["key"].tolist() == [f"train/train-{n}.jpg" for n in range(5)]
    assert manifest.signals == {"labels": []}


def test_what_cannot_be_met(root, tmp_path):
    with pytest.raises(DataError, match="split 'all' is unknown"):
        image_set(root, splits="train,all")
    for path in (root / "images" / "100k" / "val").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="holds no image"):
        image_set(root, splits="val")
    (root / "images" / "100k" / "val").rmdir()
    with pytest.raises(DataError, match="has no val/"):
        image_set(root, splits="val")
    empty = tmp_path / "empty"
    (empty / "train").mkdir(parents=True)
    assert not recognises(empty)
    with pytest.raises(DataError, match="found no images/100k/"):
        image_set(empty)


def test_links_out_of_the_folder_are_left_out(root, tmp_path):
    outside = tmp_path / "outside.jpg"
    outside.write_bytes(generated_jpegs(1)[0])
    train = root / "images" / "100k" / "train"
    (train / "link.jpg").symlink_to(outside)
    (train / "circle").symlink_to(train)
    images = image_set(root)
    assert len(images) == 5
    assert images.left_out["leads_outside"] == ("train/link.jpg",)
