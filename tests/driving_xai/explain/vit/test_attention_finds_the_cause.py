"""A ViT trained for seconds on pictures whose one deciding patch is known: do the maps find that patch?"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from driving_xai.explain.registry import fitted
from driving_xai.metrics.curves import rank
from driving_xai.metrics.localisation import pointing_game
from driving_xai.targets import output
from tests.driving_xai.explain.transformers import TappedViT

CELLS, PATCH_PX = 6, 8


def _pictures(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Grey noise with two plain squares, and one square of stripes or checks that alone says the class."""
    side = CELLS * PATCH_PX
    frames = torch.rand(count, 3, side, side, generator=generator) * 0.5 + 0.25
    row, column = torch.meshgrid(torch.arange(PATCH_PX), torch.arange(PATCH_PX), indexing="ij")
    patterns = torch.stack(
        [column % 4 < 2, row % 4 < 2, (row + column) % 4 < 2, (row // 2 + column // 2) % 2 == 0]
    )
    classes = torch.randint(4, (count,), generator=generator)
    causes = torch.zeros(count, side, side, dtype=torch.bool)
    for frame, cause, kind in zip(frames, causes, classes, strict=True):
        *plain, told = torch.randperm(CELLS**2, generator=generator)[:3].tolist()
        for cell in plain:
            frame[:, *_square(cell)] = torch.rand((), generator=generator)
        frame[:, *_square(told)] = patterns[kind] * 0.9 + 0.05
        cause[_square(told)] = True
    return frames, classes, causes


def _square(cell: int) -> tuple[slice, slice]:
    row, column = PATCH_PX * (cell // CELLS), PATCH_PX * (cell % CELLS)
    return slice(row, row + PATCH_PX), slice(column, column + PATCH_PX)


@pytest.fixture(scope="module")
def trained() -> TappedViT:
    torch.manual_seed(0)
    generator, steps = torch.Generator().manual_seed(0), 80
    model = TappedViT(img_size=(48, 48), embed_dim=48, depth=3).float()
    model.vit.init_weights()
    model.head.reset_parameters()
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    for _ in range(steps):
        frames, classes, _ = _pictures(64, generator)
        optimiser.zero_grad()
        nn.functional.cross_entropy(model.train()(frames), classes).backward()
        optimiser.step()
        schedule.step()
    return model.eval()


@pytest.fixture(scope="module")
def unseen() -> tuple[Tensor, Tensor, Tensor]:
    return _pictures(64, torch.Generator().manual_seed(9))


def _hits(saliency: Tensor, causes: Tensor) -> float:
    ranks = rank(saliency, torch.Generator().manual_seed(0))
    return pointing_game(saliency, ranks, causes, tolerance_px=0).value.mean().item()


METHODS = (
    *("raw-attention", "rollout", "norm-attention", "attention-gradient", "generic-attention"),
    *("attention-ig", "snna"),
)


@pytest.mark.parametrize("name", METHODS)
def test_the_most_salient_pixel_lies_on_the_deciding_patch(name, trained, unseen):
    frames, classes, causes = unseen
    assert (trained(frames).argmax(1) == classes).float().mean() > 0.95
    explainer = fitted(name, trained)
    saliency = torch.cat(
        [explainer(trained, frames[classes == kind], output(kind)).detach() for kind in range(4)]
    )
    causes = torch.cat([causes[classes == kind] for kind in range(4)])
    chance = 1 / CELLS**2
    assert _hits(torch.rand(saliency.shape, generator=torch.Generator().manual_seed(0)), causes) < 5 * chance
    assert _hits(saliency, causes) > 10 * chance
