"""Augmentations keep the label true."""

import torch

from driving_xai.training.augment import Augmentation, augment

NOTHING = Augmentation(flip=False, brightness=0, contrast=0)


def windows(batch: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    frames = torch.rand(batch, 2, 3, 8, 12, generator=generator)
    return frames, torch.randn(batch, 2, generator=generator)


def test_nothing_asked_nothing_changed() -> None:
    frames, target = windows()
    changed, label = augment(frames, target, NOTHING, torch.Generator().manual_seed(1))
    assert torch.equal(changed, frames)
    assert torch.equal(label, target)


def test_a_mirrored_window_turns_the_other_way() -> None:
    frames, target = windows()
    flip = Augmentation(flip=True, brightness=0, contrast=0)
    changed, label = augment(frames, target, flip, torch.Generator().manual_seed(1))
    mirrored = (label != target).any(1)
    assert 0 < mirrored.sum() < len(frames)
    assert torch.equal(changed[mirrored], frames[mirrored].flip(-1))
    assert torch.equal(label[mirrored], -target[mirrored])
    assert torch.equal(changed[~mirrored], frames[~mirrored])


def test_a_shift_moves_all_frames_of_a_window_alike_and_repeats_the_edge() -> None:
    frames, target = windows()
    shift = Augmentation(flip=False, brightness=0, contrast=0, shift=3)
    changed, _ = augment(frames, target, shift, torch.Generator().manual_seed(1))
    found = set()
    for before, after in zip(frames, changed, strict=True):
        columns = torch.arange(12)
        matches = [m for m in range(-3, 4) if torch.equal(after, before[..., (columns - m).clamp(0, 11)])]
        assert len(matches) == 1
        found.add(matches[0])
    assert len(found) > 3


def test_light_changes_stay_in_range_and_depend_on_the_generator_alone() -> None:
    frames, target = windows()
    light = Augmentation(flip=False, brightness=0.8, contrast=0.5, saturation=1.0, shadow=1.0, pitch=2)
    first, _ = augment(frames, target, light, torch.Generator().manual_seed(1))
    again, _ = augment(frames, target, light, torch.Generator().manual_seed(1))
    other, _ = augment(frames, target, light, torch.Generator().manual_seed(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.min() >= 0
    assert first.max() <= 1
    assert not torch.equal(first, frames)


def _ramps(batch: int) -> torch.Tensor:
    """A channel that rises to the right, one that rises downwards, by 1 / 100 a pixel; and one of nothing."""
    down, across = torch.meshgrid(torch.arange(40.0), torch.arange(60.0), indexing="ij")
    return (torch.stack((across, down, 0 * down)) / 100).expand(batch, 1, -1, -1, -1).clone()


def _slopes(changed: torch.Tensor) -> torch.Tensor:
    """What a step to the right and one downwards change in either ramp's coordinate, in the middle of the frame."""
    middle = changed[:, 0, :2, 12:28, 18:42] * 100
    right, below = middle.diff(dim=-1).mean((2, 3)), middle.diff(dim=-2).mean((2, 3))
    return torch.stack((right, below), 2)


def test_a_turn_is_a_rotation_in_pixels_by_at_most_the_angle() -> None:
    frames, target = _ramps(24), torch.zeros(24, 1)
    turn = Augmentation(flip=False, brightness=0, contrast=0, rotation_deg=5)
    changed, label = augment(frames, target, turn, torch.Generator().manual_seed(1))
    slopes = _slopes(changed)
    torch.testing.assert_close(slopes @ slopes.mT, torch.eye(2).expand(24, 2, 2), rtol=0, atol=1e-4)
    angles = torch.rad2deg(torch.atan2(slopes[:, 1, 0], slopes[:, 0, 0]))
    assert angles.abs().max() <= 5.001
    assert angles.min() < -2 < 2 < angles.max()
    assert torch.equal(label, target)


def test_a_crop_shows_a_part_of_the_frame_of_the_area_and_shape_asked_for() -> None:
    frames, target = _ramps(40), torch.zeros(40, 1)
    crop = Augmentation(flip=False, brightness=0, contrast=0, crop=0.3)
    changed, _ = augment(frames, target, crop, torch.Generator().manual_seed(1))
    slopes = _slopes(changed)
    torch.testing.assert_close(slopes[:, 0, 1], torch.zeros(40), rtol=0, atol=1e-4)
    wide, high = slopes[:, 0, 0], slopes[:, 1, 1]
    assert (wide <= 1.0001).all()
    assert (high <= 1.0001).all()
    # Where neither side is cut to the frame's, area and shape are what was drawn.
    whole = (wide < 0.999) & (high < 0.999)
    assert ((wide * high)[whole] >= 0.6999).all()
    assert ((wide / high)[whole] >= 0.7499).all()
    assert ((wide / high)[whole] <= 1.3334).all()
    assert (wide * high).std() > 0.02


def test_upside_down_leaves_the_label_and_an_erased_rectangle_shows_the_mean() -> None:
    frames, target = windows(200)
    flip = Augmentation(flip=False, brightness=0, contrast=0, flip_rows=True)
    changed, label = augment(frames, target, flip, torch.Generator().manual_seed(1))
    turned = (changed != frames).flatten(1).any(1)
    assert 70 < turned.sum() < 130
    assert torch.equal(changed[turned], frames[turned].flip(-2))
    assert torch.equal(label, target)

    erase = Augmentation(flip=False, brightness=0, contrast=0, erase=0.25)
    changed, _ = augment(frames, target, erase, torch.Generator().manual_seed(1))
    erased = 0
    for before, after in zip(frames, changed, strict=True):
        places = (before != after).any(0).any(0)
        if not places.any():
            continue
        erased += 1
        rows, columns = (places.any(axis).nonzero().flatten() for axis in (1, 0))
        inside = after[..., rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert places.sum() == len(rows) * len(columns) == inside[0, 0].numel()
        assert 0.01 <= places.float().mean() <= 0.36
        expected = before.mean((-2, -1))[..., None, None].expand_as(inside)
        torch.testing.assert_close(inside, expected)
    assert 30 < erased < 70
