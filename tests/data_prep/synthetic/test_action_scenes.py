"""Synthetic action scenes: the labels follow the rules, and the masks hold what decides them."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_prep.causes import decode_causes
from data_prep.errors import DataError
from data_prep.geometry import Geometry, decode_image
from data_prep.prepare import PrepConfig, prepare
from data_prep.readers import recognise
from data_prep.shards.parquet import read_images, read_index
from data_prep.shards.verify import verify
from data_prep.synthetic.action_scenes import (
    Scenes,
    Situation,
    SyntheticScenes,
    draw_moment,
    draw_situation,
    image_set,
)
from data_prep.synthetic.street import Street, StreetLines
from data_prep.synthetic.view import Camera

FREE = Situation(
    ahead="nothing",
    signal="none",
    lines=StreetLines(left="dashed", right="dashed"),
    left="free",
    right="free",
)
FORWARD, STOP, LEFT, RIGHT = range(4)


@pytest.fixture(scope="module")
def street() -> Street:
    return Street(Camera(height=96, width=160), scenery_seed=(0, 0), light_seed=(0, 1))


def picture_of(street: Street, situation: Situation, *, seed: int = 5, moment=None):
    """The situation with everything else drawn from the seed, and the bits of its causes."""
    moment = moment or draw_moment(np.random.default_rng(seed), situation)
    found = street.picture(moment, np.random.default_rng(99))
    return found, situation.causes(found)


@pytest.mark.parametrize(
    ("changed", "labels"),
    [
        ({}, (1, 0, 1, 1)),
        ({"ahead": "far-car"}, (1, 0, 1, 1)),
        ({"ahead": "slow-car"}, (1, 1, 1, 1)),
        ({"ahead": "near-car"}, (0, 1, 1, 1)),
        ({"ahead": "walker"}, (0, 1, 1, 1)),
        ({"ahead": "barrier"}, (0, 1, 1, 1)),
        ({"signal": "red"}, (0, 1, 1, 1)),
        ({"signal": "green"}, (1, 0, 1, 1)),
        ({"left": "near-car"}, (1, 0, 0, 1)),
        ({"left": "far-car"}, (1, 0, 1, 1)),
        ({"right": "barrier"}, (1, 0, 1, 0)),
        ({"lines": StreetLines(left="solid", right="dashed")}, (1, 0, 0, 1)),
        ({"lines": StreetLines(left="dashed", right="solid"), "right": "near-car"}, (1, 0, 1, 0)),
    ],
)
def test_labels_follow_the_rules(changed, labels) -> None:
    assert replace(FREE, **changed).labels == labels


@pytest.mark.parametrize(
    ("before", "after", "action"),
    [
        ({"ahead": "walker"}, {"ahead": "nothing"}, FORWARD),
        ({"ahead": "barrier"}, {"ahead": "nothing"}, STOP),
        ({"left": "barrier"}, {"left": "free"}, LEFT),
        ({"right": "barrier"}, {"right": "free"}, RIGHT),
        ({"signal": "red"}, {"signal": "green"}, FORWARD),
        (
            {"lines": StreetLines(left="solid", right="dashed")},
            {"lines": StreetLines(left="dashed", right="dashed")},
            LEFT,
        ),
    ],
    ids=["walker", "barrier", "left", "right", "signal", "line"],
)
def test_what_flips_a_label_changes_no_pixel_outside_its_mask(street, before, after, action) -> None:
    """The same moment with and without what forbids; only a border pixel, half covered, may lie outside."""
    forbidden, allowed = replace(FREE, **before), replace(FREE, **after)
    assert forbidden.labels[action] != allowed.labels[action]
    moment = draw_moment(np.random.default_rng(5), forbidden)
    gone = {"walker": "ahead", "barrier": "ahead"}.get(before.get("ahead"), next(iter(before)))
    things = tuple(
        replace(t, kind="green") if t.name == "signal" else t
        for t in moment.things
        if t.name != gone or gone == "signal"
    )
    other = replace(moment, things=things, lines=allowed.lines)
    seen, bits = picture_of(street, forbidden, moment=moment)
    unseen, _ = picture_of(street, allowed, moment=other)
    # At the horizon, where a pixel sees 100 m of road, its lines reach far by a level or two.
    changed = (np.abs(seen.image.astype(int) - unseen.image) > 2).any(2)
    mask = (bits >> action & 1).astype(np.uint8)
    assert changed.sum() > 8
    outside = changed & ~cv2.dilate(mask, np.ones((3, 3), np.uint8)).astype(bool)
    assert not outside.any()


def test_a_near_car_decides_with_its_body_and_its_shadow_does_not(street) -> None:
    seen, bits = picture_of(street, replace(FREE, ahead="near-car"))
    forward = bits >> FORWARD & 1 > 0
    assert np.array_equal(forward, seen.seen["ahead"])
    assert forward.mean() > 0.02


def test_what_hides_a_cause_takes_its_pixels(street) -> None:
    """A bystander's pixels are not the line's behind him, and the near car's are not the free lane's."""
    situation = replace(FREE, ahead="near-car", left="near-car")
    seen, bits = picture_of(street, situation)
    assert not (seen.seen["ahead"] & seen.seen["left"]).any()
    assert not (seen.lane("own", 0, 30) & seen.seen["ahead"]).any()
    assert not ((bits >> FORWARD & 1) & (bits >> RIGHT & 1)).any()


@pytest.mark.parametrize("seed", range(25))
def test_every_action_of_every_scene_has_a_visible_cause(street, seed) -> None:
    rng = np.random.default_rng(seed)
    situation = draw_situation(rng)
    found = street.picture(draw_moment(rng, situation), rng)
    bits = situation.causes(found)
    for action in range(4):
        assert (bits >> action & 1).sum() >= 12, (situation.words, action)


def test_scenes_depend_on_their_seed_and_number_alone() -> None:
    options = Scenes(images=200, height=96, width=160)
    first, again = SyntheticScenes(scenes=options), SyntheticScenes(scenes=options)
    later = [first.read(position) for position in (3, 25)]
    earlier = [again.read(position) for position in (25, 3)][::-1]
    for (image, bits), (image_again, bits_again) in zip(later, earlier, strict=True):
        assert np.array_equal(image, image_again)
        assert np.array_equal(bits, bits_again)
    other = SyntheticScenes(scenes=replace(options, seed=1)).read(3)
    assert not np.array_equal(later[0][0], other[0])


def test_places_are_never_divided_and_no_label_is_nearly_constant() -> None:
    scenes = image_set("-", images=2000)
    splits: dict[str, set[str]] = {}
    for item in scenes.items:
        splits.setdefault(item.group, set()).add(item.split)
    assert all(len(found) == 1 for found in splits.values())
    assert {split: sum(i.split == split for i in scenes.items) for split in ("train", "val", "test")} == {
        "train": 1400,
        "val": 200,
        "test": 400,
    }
    share = np.mean([item.labels for item in scenes.items], axis=0)
    assert (np.maximum(share, 1 - share) < 0.65).all()
    assert {item.split for item in image_set("-", images=10).items} == {"train", "val", "test"}


def test_shards_hold_the_causes(tmp_path: Path) -> None:
    options = {"images": 4, "height": 96, "width": 160}
    config = PrepConfig(reader="synthetic-actions", source=Path("-"), reader_options=options)
    prepare(config, tmp_path / "s")
    assert verify(tmp_path / "s").ok
    index = read_index(tmp_path / "s")
    rows = read_images(tmp_path / "s" / index["shard"][0])
    rendered = image_set("-", **options).rendered
    for position in (0, 3):
        image, bits = rendered.read(position)
        masks = decode_causes(rows[position].causes, labels=4, name="row")
        assert np.array_equal(masks, [bits >> k & 1 > 0 for k in range(4)])
        stored = decode_image(rows[position].data, name="row").astype(int)
        assert np.abs(stored - image).mean() < 4  # JPEG
        assert rows[position].labels == tuple(index.loc[position, ["forward", "stop", "left", "right"]])


def test_masks_follow_the_geometry(tmp_path: Path) -> None:
    options = {"images": 3, "height": 96, "width": 160}
    geometry = Geometry(crop_top=0.25, height=36, width=80)
    config = PrepConfig(
        reader="synthetic-actions", source=Path("-"), reader_options=options, geometry=geometry
    )
    prepare(config, tmp_path / "s")
    (row, *_) = read_images(next((tmp_path / "s" / "shards").iterdir()))
    _, bits = image_set("-", **options).rendered.read(0)
    masks = decode_causes(row.causes, labels=4, name="row")
    assert decode_image(row.data, name="row").shape == (36, 80, 3)
    for action in range(4):
        assert np.array_equal(masks[action], geometry.apply_mask(bits >> action & 1 > 0))


def test_causes_that_are_no_png_are_refused() -> None:
    with pytest.raises(DataError, match="its causes are no PNG"):
        decode_causes(b"no image", labels=4, name="row")


def test_options_come_from_a_file_and_wrong_ones_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "scenes.toml"
    file.write_text("images = 30\nseed = 4\n")
    assert recognise(file) == "synthetic-actions"
    assert image_set(file).name == "synthetic-actions-4"
    file.write_text("images = 30\nseconds = 4.0\n")
    with pytest.raises(DataError, match="unknown key 'seconds'"):
        image_set(file)
    for wrong in ({"images": 0}, {"height": 8}, {"seed": -1}):
        with pytest.raises(DataError, match="expected an integer from"):
            image_set("-", **wrong)
    with pytest.raises(DataError, match="No such file"):
        image_set(tmp_path / "none.toml")
