"""What a dry run says: counts that come true, sizes that are near, and the losses of a damaged source."""

from __future__ import annotations

import pytest

from data_prep.errors import DataError
from data_prep.forecast import forecast
from data_prep.prepare import PrepConfig, prepare, read_job
from tests.data_prep.recordings import challenge, jpeg


def test_losses_are_named_before_the_run_and_come_true(tmp_path):
    source = challenge(tmp_path / "in", 60)
    for image in sorted((source / "center").glob("*.jpg"))[10:13]:
        image.unlink()
    config = PrepConfig(reader="udacity-csv", source=source, split="train", frames_per_shard=25)
    found = forecast(read_job(config))
    manifest = prepare(config, tmp_path / "out")
    (report,) = manifest.quality.values()
    assert found.left_out == {"missing_image": 3}
    assert (found.read, found.kept, found.shards) == (60, manifest.rows, len(manifest.shards))
    assert found.megabytes == pytest.approx(sum(each.bytes for each in manifest.shards) / 1e6, rel=0.1)
    assert "57 kept (left out: 3 missing_image); 3 shards" in found.sentence("frames")
    assert report["kept"] == 57


def images(folder, data):
    for number, each in enumerate(data):
        path = folder / ("left", "right")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(each)
    return PrepConfig(reader="image-folder", source=folder)


def test_images_are_measured_as_they_are_stored(tmp_path):
    config = images(tmp_path / "in", [jpeg(level) for level in range(0, 200, 20)])
    found = forecast(read_job(config))
    manifest = prepare(config, tmp_path / "out")
    assert (found.read, found.kept, found.shards) == (10, manifest.rows, 1)
    stored = sum(path.stat().st_size for path in (tmp_path / "in").rglob("*.jpg"))
    assert found.megabytes == pytest.approx(stored / 1e6)


def test_a_source_without_one_image_that_can_be_decoded_is_said_at_once(tmp_path):
    config = images(tmp_path / "in", [jpeg(1)[:200] for _ in range(4)])
    with pytest.raises(DataError, match="none of 4 images"):
        forecast(read_job(config))
