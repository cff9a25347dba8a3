"""Labelled images to shards: originals untouched, resized on request, bad ones counted."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import replace

import cv2
import numpy as np
import pytest

from data_prep.errors import DataError
from data_prep.geometry import Geometry, decode_jpeg
from data_prep.image_job import ImageJob
from data_prep.jobs import versions
from data_prep.output import Output
from data_prep.policy import Policy
from data_prep.schema import ImageItem, ImageSet
from data_prep.shards.manifest import Manifest, canonical_json
from data_prep.shards.parquet import read_images, read_index
from data_prep.shards.verify import verify
from tests.data_prep.recordings import jpeg

CONFIG = {"reader": "test", "source": "set"}


@pytest.fixture
def images(tmp_path) -> ImageSet:
    items = []
    for n in range(25):
        path = tmp_path / "source" / f"{n:02d}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(jpeg(n))
        split = ("train", "val", "test")[n // 10]
        items.append(
            ImageItem(
                path=path, key=path.name, labels=(n % 2, int(n % 5 == 0)), split=split, group=f"g{n // 5}"
            )
        )
    return ImageSet(name="set", source="test", label_names=("stop", "left"), items=items)


DROP = Policy()


def run(images: ImageSet, root, *, geometry=None, policy=DROP, threads=1) -> Manifest:
    job = ImageJob.plan(images, config=CONFIG, geometry=geometry, policy=policy, images_per_shard=10)
    with Output.open(
        root, fingerprint=job.fingerprint, source=job.source, resume=False, overwrite=False
    ) as output:
        work = job.work(root=output.root, scratch=output.scratch, threads=threads)
        return output.commit(job, {unit.path: work(unit) for unit in job.units})


def test_originals_are_kept_byte_for_byte(images, tmp_path):
    manifest = run(images, tmp_path / "out", threads=3)
    index = read_index(tmp_path / "out")
    assert manifest.kind == "images"
    assert [shard.rows for shard in manifest.shards] == [10, 10, 5]
    stored = [image for shard in manifest.shards for image in read_images(tmp_path / "out" / shard.path)]
    assert [image.data for image in stored] == [item.path.read_bytes() for item in images.items]
    assert [image.labels for image in stored] == [item.labels for item in images.items]
    assert list(zip(index["stop"], index["left"], strict=True)) == [item.labels for item in images.items]
    assert manifest.quality["set"]["by_split"] == {"test": 5, "train": 10, "val": 10}
    assert manifest.quality["set"]["labels"]["stop"] == {"0": 13, "1": 12}
    assert verify(tmp_path / "out").ok


def test_threads_change_no_byte(images, tmp_path):
    geometry = Geometry(height=12, width=16)
    one = run(images, tmp_path / "one", geometry=geometry)
    assert run(images, tmp_path / "three", geometry=geometry, threads=3).sha256 == one.sha256


def test_resized_images_are_jpegs_of_the_asked_size(images, tmp_path):
    geometry = Geometry(crop_top=0.25, height=12, width=16)
    manifest = run(images, tmp_path / "out", geometry=geometry)
    stored = read_images(tmp_path / "out" / manifest.shards[0].path)
    expected = geometry.apply(decode_jpeg(jpeg(3)))
    written, data = cv2.imencode(".jpg", expected[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    assert written
    assert stored[3].data == data.tobytes()
    assert np.abs(decode_jpeg(stored[3].data).astype(int) - expected).mean() < 8


def test_unusable_images_are_dropped_and_counted_or_refused(images, tmp_path):
    items = images.items
    items[3].path.write_bytes(jpeg(3)[:-30])
    items[12].path.write_bytes(b"")
    manifest = run(images, tmp_path / "out", threads=2)
    assert manifest.quality["set"]["dropped"] == {"undecodable_image": 2}
    index = read_index(tmp_path / "out")
    assert index["key"].tolist() == [item.key for n, item in enumerate(items) if n not in (3, 12)]
    for row in index.itertuples():
        (image,) = read_images(tmp_path / "out" / row.shard, [row.row])
        assert image.key == row.key
    assert verify(tmp_path / "out").ok
    with pytest.raises(DataError, match=r"03\.jpg: a JPEG cut short"):
        run(images, tmp_path / "refused", policy=Policy(on_bad="refuse"))


def test_an_image_that_has_gone_since_planning_stops_the_run(images, tmp_path):
    """A worker that does not see the source must not leave its images out."""
    images.items[12].path.unlink()
    with pytest.raises(DataError, match=r"12\.jpg was there when the run was planned"):
        run(images, tmp_path / "out")


def test_a_set_that_contradicts_itself_is_refused(images, tmp_path):
    def refused(changed: list[ImageItem], message: str, **left_out) -> None:
        one = ImageSet(name="set", source="test", label_names=("stop", "left"), items=changed, **left_out)
        with pytest.raises(DataError, match=message):
            run(one, tmp_path / "out", policy=Policy(on_bad="refuse"))

    first = images.items[0]
    refused([], r"no image is left \(2 missing_image\)", left_out={"missing_image": ("a", "b")})
    refused([first], "missing_image, first a;", left_out={"missing_image": ("a", "b")})
    refused([first, first], "several images have the key 00.jpg")
    short = ImageItem(path=first.path, key="x", labels=(1,), split="train", group="g")
    refused([short], "x has 1 labels, expected 2")
    assert not (tmp_path / "out").exists()


def test_a_set_without_one_usable_image_is_refused(images, tmp_path):
    for item in images.items:
        item.path.write_bytes(b"")
    with pytest.raises(DataError, match="none of its 25 images can be decoded"):
        run(images, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_the_fingerprint_is_the_hash_of_the_whole_plan(images):
    """Its items are hashed one by one, with the same bytes: outputs of earlier versions resume."""
    awkward = ['a "b"\\c,\n[', "\u00e9\u4e2d", "\u2028", ""]
    items = [replace(item, key=f"{n}{awkward[n % 4]}", group="\t") for n, item in enumerate(images.items)]
    for some in (items, items[:1]):
        changed = replace(images, items=some, provenance={"licence": "\x00items\x01", "list": []})
        job = ImageJob.plan(changed, config=CONFIG, geometry=None, policy=DROP, images_per_shard=10)
        rows = [[i.key, list(i.labels), i.split, i.group] for i in some]
        told = [dict(changed.provenance), job.source.files]
        plan = [CONFIG, versions(), job.unit_paths, list(images.label_names), rows, told]
        assert job.fingerprint == hashlib.sha256(canonical_json(plan)).hexdigest()


def test_a_worker_gets_its_unit_and_not_the_whole_set(images, tmp_path):
    many = [replace(images.items[0], key=f"{number:06d}") for number in range(5000)]
    few = {}
    for count in (50, 5000):
        changed = replace(images, items=many[:count])
        job = ImageJob.plan(changed, config=CONFIG, geometry=None, policy=DROP, images_per_shard=10)
        work = job.work(root=tmp_path, scratch=tmp_path, threads=1)
        few[count] = len(pickle.dumps(work)), len(pickle.dumps(job.units[0]))
    assert few[50] == few[5000]
