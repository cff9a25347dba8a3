"""Images by rows: what is decoded, at which size, in which order, with which masks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep.prepare import PrepConfig, prepare
from data_prep.synthetic.action_scenes import image_set
from driving_xai.data.images import LabelledImages
from driving_xai.errors import DataError

OPTIONS = {"images": 140, "height": 48, "width": 80}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards, of two row groups and of one."""
    out = tmp_path_factory.mktemp("images") / "s"
    config = PrepConfig(
        reader="synthetic-actions", source=Path("-"), reader_options=OPTIONS, frames_per_shard=100
    )
    prepare(config, out)
    return out


def test_rows_give_their_own_images_and_labels_in_any_order(shards) -> None:
    images, source = LabelledImages(shards), image_set("-", **OPTIONS)
    rows = np.array([139, 0, 99, 100, 64])
    found = images.pixels(rows).permute(0, 2, 3, 1).numpy().astype(int)
    for row, image in zip(rows, found, strict=True):
        assert np.abs(image - source.rendered.read(row)[0]).mean() < 6  # JPEG
    wanted = [source.items[row].labels for row in rows]
    assert images.labels(("forward", "stop", "left", "right"))[rows].tolist() == [list(w) for w in wanted]
    assert images.labels(("right",)).shape == (140, 1)


def test_keeping_images_and_batches_change_nothing(shards) -> None:
    rows = np.arange(0, 140, 7)
    plain = LabelledImages(shards).frames(rows)
    kept = LabelledImages(shards, keep_mib=1, threads=3)
    for _ in range(2):
        batches = list(kept.batches(rows, 6))
        assert torch.equal(torch.cat([batch.frames for batch in batches]), plain)
        assert np.concatenate([batch.rows for batch in batches]).tolist() == rows.tolist()
    assert 0 <= plain.min() < 0.2 < 0.8 < plain.max() <= 1


def test_memory_that_may_be_kept_is_a_limit(shards) -> None:
    images = LabelledImages(shards, keep_mib=1)
    images.pixels(np.arange(140))
    assert sum(image.nbytes for image in images._kept.values()) <= 2**20
    assert len(images._kept) == 2**20 // (48 * 80 * 3)


def test_resizing_is_torchvisions(shards) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    whole = LabelledImages(shards).pixels(np.array([3]))[0].permute(1, 2, 0).numpy()
    resize = transforms.Resize(25, interpolation=transforms.InterpolationMode.BICUBIC)
    expected = np.asarray(resize(Image.fromarray(whole)))
    found = LabelledImages(shards, short_side_px=25).pixels(np.array([3]))[0].permute(1, 2, 0).numpy()
    assert expected.shape == (25, 41, 3)
    assert np.array_equal(found, expected)


def test_an_order_is_a_permutation_that_reads_few_groups_at_a_time(shards) -> None:
    images = LabelledImages(shards)
    rows = images.rows("train")
    first = images.shuffled(rows, torch.Generator().manual_seed(0))
    assert sorted(first) == rows.tolist()
    assert first.tolist() != rows.tolist()
    assert np.array_equal(first, images.shuffled(rows, torch.Generator().manual_seed(0)))
    assert not np.array_equal(first, images.shuffled(rows, torch.Generator().manual_seed(1)))


def test_blocks_of_groups_follow_one_another(shards, monkeypatch) -> None:
    monkeypatch.setattr("driving_xai.data.images._BLOCK_GROUPS", 1)
    images = LabelledImages(shards)
    order = images.shuffled(np.arange(140), torch.Generator().manual_seed(0))
    group = np.where(order < 64, 0, np.where(order < 100, 1, 2))
    assert (np.diff(group) != 0).sum() == 2


def test_masks_are_those_of_the_labels_on_the_resized_grid(shards) -> None:
    rows = np.array([5, 120])
    whole = LabelledImages(shards).causes(rows)
    for mask, row in zip(whole, rows, strict=True):
        bits = image_set("-", **OPTIONS).rendered.read(row)[1]
        assert np.array_equal(mask, [bits >> k & 1 > 0 for k in range(4)])
    half = LabelledImages(shards, short_side_px=24).causes(rows)
    mean = whole.reshape(2, 4, 24, 2, 40, 2).mean((3, 5))
    assert np.array_equal(half, mean >= 0.5)


def test_labels_that_are_not_there_are_named(shards) -> None:
    with pytest.raises(DataError, match="no label 'slow'; it has 4 labels: forward, stop, left, right"):
        LabelledImages(shards).labels(("forward", "slow"))


def test_sequences_are_no_images(tmp_path) -> None:
    options = {"seconds": 2.0, "height": 96, "width": 160}
    config = PrepConfig(reader="synthetic", source=Path("-"), reader_options=options, split="test")
    prepare(config, tmp_path / "s")
    with pytest.raises(DataError, match="holds sequences; expected labelled images"):
        LabelledImages(tmp_path / "s")


def test_images_of_several_sizes_ask_for_a_geometry(tmp_path) -> None:
    for name, size in (("a", (30, 20)), ("b", (40, 20))):
        (tmp_path / "in" / name).mkdir(parents=True)
        Image.new("RGB", size, "red").save(tmp_path / "in" / name / "x.png")
    prepare(PrepConfig(reader="image-folder", source=tmp_path / "in"), tmp_path / "s")
    images = LabelledImages(tmp_path / "s")
    with pytest.raises(DataError, match="several sizes"):
        images.pixels(np.arange(len(images)))
