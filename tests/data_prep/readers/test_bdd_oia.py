"""Labels must follow the image they belong to, however the lists are ordered."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from data_prep.errors import DataError
from data_prep.prepare import PrepConfig, prepare
from data_prep.readers import recognise
from data_prep.readers.bdd_oia import ACTIONS, REASONS, image_set, recognises
from data_prep.shards.parquet import read_images, read_index
from tests.data_prep.readers.bag_writer import generated_jpegs

Annotations = dict[str, list[int]]


def write_official(
    folder: Path, split: str, annotations: Annotations, *, seed: int | None = None, key: str = "id"
) -> None:
    """One split; with a seed, ids are drawn and the two lists are shuffled apart."""
    names = list(annotations)
    generator = random.Random(seed)
    ids = generator.sample(range(1000), len(names)) if seed is not None else list(range(len(names)))
    images = [{"id": i, "file_name": name} for i, name in zip(ids, names, strict=True)]
    rows = [
        {"id": 5000 + n, key: i, "category": annotations[name]}
        for n, (i, name) in enumerate(zip(ids, names, strict=True))
    ]
    if seed is not None:
        generator.shuffle(images)
        generator.shuffle(rows)
    content = {"images": images, "annotations": rows}
    (folder / f"{split}_25k_images_actions.json").write_text(json.dumps(content))


def write_images(folder: Path, names: list[str]) -> None:
    (folder / "data").mkdir(parents=True, exist_ok=True)
    jpegs = generated_jpegs(len(names), height=16, width=16)
    for name, jpeg in zip(names, jpegs, strict=True):
        (folder / "data" / name).write_bytes(jpeg)


def drawn(count: int, seed: int = 0) -> Annotations:
    generator = random.Random(seed)
    return {f"video{n // 2}_{n}.jpg": [generator.randint(0, 1) for _ in range(4)] + [0] for n in range(count)}


@pytest.mark.parametrize("key", ["id", "image_id", "img_id"])
def test_labels_are_joined_by_id_and_never_by_position(tmp_path, key):
    annotations = drawn(40)
    write_images(tmp_path, list(annotations))
    write_official(tmp_path, "train", annotations, seed=1, key=key)
    items = image_set(tmp_path).items
    assert {item.key: list(item.labels) for item in items} == {k: v[:4] for k, v in annotations.items()}
    assert [item.key for item in items] == sorted(annotations)


def test_the_order_of_the_lists_changes_nothing(tmp_path):
    annotations = drawn(20)
    write_images(tmp_path, list(annotations))
    sets = []
    for seed in (1, 2):
        write_official(tmp_path, "train", annotations, seed=seed)
        sets.append(image_set(tmp_path))
    assert sets[0] == sets[1]


def test_real_labels_agree_between_the_layouts(shared_data):
    folder = shared_data / "bdd_oia_100"
    official, snna = (image_set(folder, layout=layout) for layout in ("official", "snna"))
    assert image_set(folder).provenance["layout"] == "official"
    assert recognise(folder) == "bdd-oia"
    assert official.items == snna.items
    assert official.label_names == ACTIONS == ("forward", "stop", "left", "right")
    splits = [item.split for item in official.items]
    assert [splits.count(split) for split in ("train", "val", "test")] == [68, 9, 23]
    by_name = json.loads((folder / "test.json").read_text())
    assert {i.key: list(i.labels) for i in official.items if i.split == "test"} == by_name
    [first] = [item for item in official.items if item.key == "01d3a4d7-e7384cb9_1.jpg"]
    assert first.group == "01d3a4d7-e7384cb9"


def test_real_images_reach_the_shards_unchanged(shared_data, tmp_path):
    folder = shared_data / "bdd_oia_100"
    prepare(PrepConfig(reader="bdd-oia", source=folder, frames_per_shard=60), tmp_path / "out")
    index = read_index(tmp_path / "out")
    assert len(index) == 100
    row = index.iloc[70]
    [stored] = read_images(tmp_path / "out" / row["shard"], [int(row["row"])])
    assert stored.data == (folder / "data" / row["key"]).read_bytes()
    assert stored.labels == tuple(row[list(ACTIONS)])
    assert stored.split == row["split"] == "val"


def test_confused_annotations_are_dropped_and_counted(tmp_path):
    annotations = {"a_1.jpg": [1, 0, 0, 0, 1], "b_1.jpg": [1, 0, 0, 0, 0], "c_1.jpg": [0, 1, 0, 0]}
    write_images(tmp_path, list(annotations))
    write_official(tmp_path, "val", annotations)
    images = image_set(tmp_path)
    assert [item.key for item in images.items] == ["b_1.jpg", "c_1.jpg"]
    assert images.left_out == {"confuse": ("val/a_1.jpg",)}


def test_what_is_missing_is_counted_and_refused_on_request(tmp_path):
    annotations = drawn(6)
    names = list(annotations)
    write_images(tmp_path, names)
    write_official(tmp_path, "train", annotations)
    path = tmp_path / "train_25k_images_actions.json"
    content = json.loads(path.read_text())
    content["annotations"].pop(2)
    content["images"].pop(4)
    path.write_text(json.dumps(content))
    (tmp_path / "data" / names[0]).unlink()
    images = image_set(tmp_path)
    assert [item.key for item in images.items] == [names[1], names[3], names[5]]
    assert images.left_out == {
        "missing_image": ("train/annotation 4", f"train/{names[0]}"),
        "no_annotation": (f"train/{names[2]}",),
    }
    manifest = prepare(PrepConfig(reader="bdd-oia", source=tmp_path), tmp_path / "out")
    assert manifest.quality[images.name]["left_out"]["missing_image"]["count"] == 2
    with pytest.raises(DataError, match="missing_image, first"):
        prepare(PrepConfig(reader="bdd-oia", source=tmp_path, on_bad="refuse"), tmp_path / "refused")


def test_an_image_in_two_splits_stays_where_it_tests(tmp_path):
    write_images(tmp_path, ["a_1.jpg", "b_1.jpg"])
    both = {"a_1.jpg": [1, 0, 0, 0], "b_1.jpg": [0, 1, 0, 0]}
    write_official(tmp_path, "train", both)
    write_official(tmp_path, "test", {"a_1.jpg": [1, 0, 0, 0]})
    images = image_set(tmp_path)
    assert {item.key: item.split for item in images.items} == {"a_1.jpg": "test", "b_1.jpg": "train"}
    assert images.left_out == {"in_two_splits": ("train/a_1.jpg",)}


def test_reasons_are_joined_by_name(tmp_path):
    annotations = drawn(12)
    names = list(annotations)
    write_images(tmp_path, names)
    write_official(tmp_path, "train", annotations, seed=3)
    reasons = [
        {"file_name": name, "reason": [int(k == n) for k in range(21)]} for n, name in enumerate(names)
    ]
    random.Random(4).shuffle(reasons)
    dropped = next(row for row in reasons if row["file_name"] == names[7])
    reasons.remove(dropped)
    path = tmp_path / "train_25k_images_reasons.json"
    path.write_text(json.dumps(reasons))
    images = image_set(tmp_path, labels="actions-and-reasons")
    assert images.label_names == ACTIONS + REASONS
    for item in images.items:
        assert list(item.labels[:4]) == annotations[item.key][:4]
        assert images.label_names[4 + names.index(item.key)] == REASONS[item.labels[4:].index(1)]
    assert images.left_out == {"no_reason": (f"train/{names[7]}",)}
    assert len(image_set(tmp_path).items) == 12
    path.unlink()
    with pytest.raises(DataError, match=r"train_25k_images_reasons.json: no such file"):
        image_set(tmp_path, labels="actions-and-reasons")


def test_snna_layout_alone(tmp_path):
    annotations = {name: flags[:4] for name, flags in drawn(5).items()}
    write_images(tmp_path, list(annotations))
    (tmp_path / "train.json").write_text(json.dumps(annotations))
    assert recognises(tmp_path)
    images = image_set(tmp_path)
    assert {item.key: list(item.labels) for item in images.items} == annotations
    with pytest.raises(DataError, match="found neither"):
        image_set(tmp_path, layout="official")


def one_annotation(**changes) -> dict:
    row = {"id": 0, "category": [1, 0, 0, 0]} | changes
    return {"images": [{"id": 0, "file_name": "a_1.jpg"}], "annotations": [row]}


TWO_IDS = {
    "images": [{"id": 0, "file_name": "a_1.jpg"}, {"id": 0, "file_name": "b_1.jpg"}],
    "annotations": [{"id": 0, "category": [1, 0, 0, 0]}],
}
DIFFERENT = one_annotation() | {
    "annotations": [{"id": 0, "category": [1, 0, 0, 0]}, {"id": 0, "category": [0, 1, 0, 0]}]
}
BAD = {
    "empty": (b"", "not the JSON expected"),
    "cut": (b'{"images": [', "not the JSON expected"),
    "binary": (b"\xff\xfe\x00\xd8", "not the JSON expected"),
    "deep": (b"[" * 100_000, "not the JSON expected"),
    "long number": (b'{"images": [' + b"9" * 9000 + b"]}", "not the JSON expected"),
    "list": (b"[]", "holds a list, expected images and annotations"),
    "no images": (json.dumps({"annotations": []}).encode(), "images is no list of records"),
    "numbers": (json.dumps({"images": [1], "annotations": []}).encode(), "images is no list of records"),
    "no id": (json.dumps(one_annotation(id=None)).encode(), "cannot be joined"),
    "two ids": (json.dumps(TWO_IDS).encode(), "two images have the id 0"),
    "different": (json.dumps(DIFFERENT).encode(), "image 0 has two different annotations"),
    "six": (json.dumps(one_annotation(category=[0] * 6)).encode(), "expected 4 or 5 of 0 and 1"),
    "two": (json.dumps(one_annotation(category=[0, 0, 0, 2])).encode(), "expected 4 or 5 of 0 and 1"),
    "text": (json.dumps(one_annotation(category="forward")).encode(), "expected 4 or 5 of 0 and 1"),
    "no name": (
        json.dumps(one_annotation() | {"images": [{"id": 0, "file_name": 7}]}).encode(),
        "image 0 has no file_name",
    ),
    "outside": (
        json.dumps(one_annotation() | {"images": [{"id": 0, "file_name": "../secret.jpg"}]}).encode(),
        "leads outside",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_malformed_files_are_one_line(tmp_path, name):
    content, message = BAD[name]
    write_images(tmp_path, ["a_1.jpg"])
    (tmp_path / "secret.jpg").write_bytes(b"")
    (tmp_path / "train_25k_images_actions.json").write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        image_set(tmp_path)
    assert "\n" not in str(error.value)


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    folder = tmp_path / "set"
    write_images(folder, ["a_1.jpg"])
    (tmp_path / "b_1.jpg").write_bytes((folder / "data" / "a_1.jpg").read_bytes())
    (folder / "data" / "b_1.jpg").symlink_to(tmp_path / "b_1.jpg")
    write_official(folder, "train", {"b_1.jpg": [1, 0, 0, 0]})
    with pytest.raises(DataError, match="leads outside"):
        image_set(folder)


@pytest.mark.parametrize("options", [{"layout": "coco"}, {"labels": "all"}])
def test_unknown_options(tmp_path, options):
    with pytest.raises(DataError, match="choose"):
        image_set(tmp_path, **options)


def snna(folder: Path, *, seeds: dict[str, int]) -> dict[str, Annotations]:
    """SNNA's layout as its authors publish it: `test/` with the images beside `test.json`."""
    labels = {}
    for split, seed in seeds.items():
        drawn_labels = {f"{split}-{name}": flags[:4] for name, flags in drawn(6, seed).items()}
        (folder / split).mkdir(parents=True)
        for name, data in zip(drawn_labels, generated_jpegs(6, height=16, width=16), strict=True):
            (folder / split / name).write_bytes(data)
        (folder / f"{split}.json").write_text(json.dumps(drawn_labels))
        labels[split] = drawn_labels
    return labels


def test_images_in_a_folder_of_the_splits_name_are_found(tmp_path):
    labels = snna(tmp_path / "in", seeds={"train": 1, "test": 2})
    assert recognise(tmp_path / "in") == "bdd-oia"
    items = image_set(tmp_path / "in").items
    assert len(items) == 12
    assert {item.key: list(item.labels) for item in items if item.split == "test"} == labels["test"]
    below = tmp_path / "below"
    below.mkdir()
    (tmp_path / "in").rename(below / "labels")
    assert [item.key for item in image_set(below).items] == [item.key for item in items]


def test_a_set_without_its_images_says_where_it_looked(tmp_path):
    snna(tmp_path / "in", seeds={"test": 2})
    (tmp_path / "in" / "test").rename(tmp_path / "in" / "pictures")
    with pytest.raises(
        DataError, match=r"none of the images that test.json list is there; looked in data/"
    ) as error:
        image_set(tmp_path / "in")
    assert "beside its JSON file" in str(error.value)
