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
