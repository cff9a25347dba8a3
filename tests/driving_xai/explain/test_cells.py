"""The cells of a map are found where it is their picture, and nowhere else."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from driving_xai.explain.cells import cells_kept
from driving_xai.explain.grid import repeat_on_frame_grid, to_frame_grid

FRAMES = torch.zeros(2, 3, 12, 20)


def _cells(seed: int) -> torch.Tensor:
    return torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(seed))


def test_a_picture_of_cells_has_these_cells_and_a_changed_one_has_none():
    for upsample in (to_frame_grid, repeat_on_frame_grid):
        cells = _cells(0)
        with cells_kept() as kept:
            saliency = upsample(cells, FRAMES)
        assert torch.equal(kept.of(saliency), cells)
        assert torch.equal(kept.of(saliency.unsqueeze(1).squeeze(1)), cells), "the same values are enough"
        assert kept.of(saliency * 2) is None
        saliency[0, 0, 0] += 1
        assert kept.of(saliency) is None, "changed in place"


def test_the_last_upsampled_counts_and_nothing_is_kept_when_closed():
    with cells_kept() as kept:
        first, last = to_frame_grid(_cells(0), FRAMES), to_frame_grid(_cells(1), FRAMES)
    to_frame_grid(_cells(2), FRAMES)
    assert kept.of(first) is None
    assert torch.equal(kept.of(last), _cells(1))


def test_other_threads_upsample_unseen():
    with cells_kept() as kept, ThreadPoolExecutor(1) as pool:
        saliency = pool.submit(to_frame_grid, _cells(0), FRAMES).result()
    assert kept.of(saliency) is None
