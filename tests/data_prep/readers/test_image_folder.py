"""Classes by folder, in one order, in the splits of the folder or seeded ones."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_prep.errors import DataError
from data_prep.prepare import PrepConfig, prepare
from data_prep.readers import recognise
from data_prep.readers.image_folder import image_set, recognises
from data_prep.shards.parquet import read_images, read_index
from tests.data_prep.readers.bag_writer import generated_jpegs


def write_class(folder: Path, count: int, *, suffix: str = ".jpg") -> None:
    folder.mkdir(parents=True)
    for n, jpeg in enumerate(generated_jpegs(count, height=16, width=16)):
        (folder / f"{n:03d}{suffix}").write_bytes(jpeg)


def test_classes_are_ordered_by_name_and_one_hot(tmp_path):
    for name in ("zebra", "Apple", "cat", "10", "9"):
        write_class(tmp_path / name, 2)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "empty").mkdir()
    images = image_set(tmp_path)
    assert images.label_names == ("10", "9", "Apple", "cat", "zebra")
    for item in images.items:
        assert images.label_names[item.labels.index(1)] == item.key.split("/")[0]
        assert sum(item.labels) == 1
    assert recognise(tmp_path) == "image-folder"


@pytest.mark.parametrize("names", [("train", "val", "test"), ("training", "valid", "testing")])
def test_splits_of_the_folder(tmp_path, names):
    for split, count in zip(names, (3, 2, 1), strict=True):
        for label in ("dog", "cat"):
            write_class(tmp_path / split / label, count)
    write_class(tmp_path / names[2] / "fox", 1)
    images = image_set(tmp_path)
    assert images.label_names == ("cat", "dog", "fox")
    assert Counter(item.split for item in images.items) == {"train": 6, "val": 4, "test": 3}
    assert all(item.key.split("/")[1] == images.label_names[item.labels.index(1)] for item in images.items)
    assert recognises(tmp_path)


def test_seeded_splits_are_of_each_class_and_do_not_move(tmp_path):
    write_class(tmp_path / "a", 50)
    write_class(tmp_path / "b", 10)

    def parts(**options) -> dict[str, str]:
        return {item.key: item.split for item in image_set(tmp_path, **options).items}

    chosen = parts(val_fraction=0.2, test_fraction=0.1)
    assert Counter((key[0], split) for key, split in chosen.items()) == {
        ("a", "train"): 35, ("a", "val"): 10, ("a", "test"): 5,
        ("b", "train"): 7, ("b", "val"): 2, ("b", "test"): 1,
    }  # fmt: skip
    assert parts(val_fraction=0.2, test_fraction=0.1) == chosen
    assert parts(val_fraction=0.2, test_fraction=0.1, seed=1) != chosen
    assert set(parts(val_fraction=0, test_fraction=0).values()) == {"train"}
    (tmp_path / "a" / "new.jpg").write_bytes(generated_jpegs(1)[0])
    after = parts(val_fraction=0.2, test_fraction=0.1)
    assert sum(after[key] != split for key, split in chosen.items()) <= 2


def test_every_format_and_depth(tmp_path):
    png = cv2.imencode(".png", np.arange(48, dtype=np.uint8).reshape(4, 4, 3))[1].tobytes()
    write_class(tmp_path / "a" / "deeper", 1)
    (tmp_path / "a" / "x.PNG").write_bytes(png)
    (tmp_path / "a" / "y.webp").write_bytes(b"")
    (tmp_path / "a" / ".z.jpg").write_bytes(b"")
    write_class(tmp_path / "b", 1, suffix=".jpeg")
    images = image_set(tmp_path, val_fraction=0, test_fraction=0)
    assert [item.key for item in images.items] == ["a/deeper/000.jpg", "a/x.PNG", "b/000.jpeg"]
    assert images.left_out == {"unsupported_format": ("a/y.webp",)}
    prepare(PrepConfig(reader="image-folder", source=tmp_path), tmp_path.parent / "out")
    index = read_index(tmp_path.parent / "out")
    assert index[["a", "b"]].to_numpy().tolist() == [[1, 0], [1, 0], [0, 1]]
    assert read_images(tmp_path.parent / "out" / index["shard"][0])[1].data == png


def test_what_is_no_image_folder(tmp_path):
    def check(message: str, **options) -> None:
        with pytest.raises(DataError, match=message):
            image_set(tmp_path, **options)

    check("found images in 0 class folders")
    write_class(tmp_path / "a", 1)
    check("found images in 1 class folders")
    assert not recognises(tmp_path)
    write_class(tmp_path / "image", 1)
    check("the class 'image' has the name of a column")
    (tmp_path / "image").rename(tmp_path / "train")
    check("has the split train/ beside a")
    (tmp_path / "a").rename(tmp_path / "training")
    check("train/ and training/ are both train")
    check("expected 0 or more, below 1 in all", val_fraction=0.5, test_fraction=0.5)
    check("expected 0 or more, below 1 in all", val_fraction=-0.1)
    check("expected 0 or more, below 1 in all", val_fraction=float("nan"))
    with pytest.raises(DataError, match="no such folder"):
        image_set(tmp_path / "nothing")


def test_links_out_of_the_folder_are_left_out(tmp_path):
    root = tmp_path / "root"
    write_class(root / "a", 1)
    write_class(root / "b", 1)
    write_class(tmp_path / "outside", 1)
    (root / "b" / "link.jpg").symlink_to(tmp_path / "outside" / "000.jpg")
    images = image_set(root)
    assert len(images) == 2
    assert images.left_out == {"leads_outside": ("b/link.jpg",)}
