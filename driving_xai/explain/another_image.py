"""A method's map of another image, laid on this one: a control that looks like an explanation and is of nothing here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from driving_xai.errors import OptionError
from driving_xai.explain.base import Explainer
from driving_xai.explain.cam import GradCAM
from driving_xai.explain.registry import build
from driving_xai.explain.seeding import generators
from driving_xai.types import FrameModel, Frames, Saliency, Target

SAMPLE = 64
"""Other images that a run draws from."""


@dataclass(frozen=True, kw_only=True)
class AnotherImage(Explainer):
    """Explains each frame by the map that a method gives of another image, for the same output.

    A map's own statistics, how smooth, how large and how central it is, are the method's; only what it has to do with
    the frame is gone. A method that does no better than this shows where such images have their evidence on average.

    Which image is drawn depends on the seed and on the frame's own pixels only; a frame is never given itself.

    Source: Baumhauer et al. 2021, section 4.4: the random explanations of their user study.
    Deviation: the target is the output that is explained of this frame, where theirs was the other image's own; bounded
    logit attention, which they showed, has no target.

    Args:
        explainer: whose maps are taken.
        others: the images to draw from, [N, 3, H, W], two or more of the frames' size. Scoring draws its own, from the
            images that it scores.
        seed: of the draw.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, 4), torch.nn.Flatten(), torch.nn.Linear(64, 2)).eval()
        >>> others, frames = torch.rand(5, 3, 16, 16), torch.rand(2, 3, 16, 16)
        >>> AnotherImage(others=others)(net, frames, lambda scores: scores[:, 0]).shape
        torch.Size([2, 16, 16])
    """

    explainer: Explainer = field(default_factory=GradCAM)
    others: Frames | None = None
    seed: int = 0

    def among(self, others: Frames) -> AnotherImage:
        """The same, drawing from these images."""
        return replace(self, others=others)

    @property
    def takes_one_instant(self) -> bool:
        """See `Explainer`."""
        return self.explainer.takes_one_instant

    def _check(self, model: object, frames: Frames) -> None:
        self.explainer.check(model, frames)

    def _explain(self, model: FrameModel, frames: Frames, target: Target) -> Saliency:
        return self.explainer(model, self._drawn(frames), target)

    def _drawn(self, frames: Frames) -> Frames:
        """Another image for each frame.

        Raises:
            OptionError: there are none to draw from, or all equal the frame.
        """
        if self.others is None or len(self.others) < 2 or self.others.shape[1:] != frames.shape[1:]:
            got = (
                "none"
                if self.others is None
                else f"{len(self.others)} of shape {tuple(self.others.shape[1:])}"
            )
            raise OptionError(
                f"another-image draws from other images, and has {got}; score two or more, or give others in Python"
            )
        others = self.others.to(frames)
        chosen = []
        for frame, draw in zip(frames, generators(frames, seed=self.seed), strict=True):
            order = torch.randperm(len(others), generator=draw)
            # The scored images are among those that are drawn from.
            drawn = next((at for at in order if not torch.equal(others[at], frame)), None)
            if drawn is None:
                raise OptionError(
                    "another-image draws from other images, and all there are equal one frame; give others"
                )
            chosen.append(others[drawn])
        return torch.stack(chosen)


def of_method(*, method: str, seed: int = 0, batch_size: int = 32, **options: object) -> AnotherImage:
    """The control of a method by name: `another-image:grad-cam`, with the method's own options."""
    return AnotherImage(explainer=build(method, seed=seed, batch_size=batch_size, **options), seed=seed)
