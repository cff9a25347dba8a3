"""Class activation maps of pytorch-grad-cam (https://github.com/jacobgil/pytorch-grad-cam)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_grad_cam
import torch
from torch import Tensor, nn

from driving_xai.explain.adapters.containment import Adapter, Scored, checked, require_one_frame_of_a_view
from driving_xai.explain.capture import layer_gradient
from driving_xai.explain.grid import to_frame_grid
from driving_xai.explain.variants import ReferenceScores
from driving_xai.models.capabilities import feature_map_of, frame_model
from driving_xai.models.feature_maps import as_maps
from driving_xai.types import FrameModel, Frames, Saliency

METHODS = (
    *("GradCAM", "HiResCAM", "GradCAMElementWise", "GradCAMPlusPlus", "XGradCAM", "LayerCAM"),
    *("ScoreCAM", "EigenCAM", "EigenGradCAM", "RandomCAM"),
)
"""By the library's class names."""


class LibraryCAM(Adapter):
    """A method of pytorch-grad-cam, before it normalises.

    Quirks contained: the library stretches every map to [0, 1], so that maps of two frames cannot be compared;
    here its weighted sum is taken from before that, rectified as there, and upsampled as this project's
    maps are. It calls `zero_grad` and `backward` on the model's weights, whose gradients are put back; it
    shows progress bars, which are not.
    Stays as the library has it: Grad-CAM++ adds 1e-6 to a denominator; ScoreCAM computes its weights in float32.

    Source: Gildenblat et al., pytorch-grad-cam.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(196, 2)).eval()
        >>> LibraryCAM(method="LayerCAM")(net, torch.rand(2, 3, 16, 16), lambda scores: scores[:, 0]).shape
        torch.Size([2, 16, 16])
    """

    def __init__(self, *, method: str, layer: str | None = None, seed: int = 0, **options: Any) -> None:
        """Chooses a method.

        Args:
            method: a name of `METHODS`.
            layer: the dotted name of the layer whose maps are weighted; None is the last feature map. Channels last and
                tokens are rearranged as for `cam.GradCAM`.
            seed: of methods that draw.
            options: `eigen_smooth`.

        Raises:
            OptionError: there is no such option.
            ValueError: there is no such method.
        """
        if method not in METHODS:
            raise ValueError(f"grad-cam has no method {method!r} here; it has {', '.join(METHODS)}")
        self.name, self.seed, self.layer = f"grad-cam:{method}", seed, layer
        self._class = getattr(pytorch_grad_cam, method)
        (self._of_call,) = checked(
            self.name, options, self._class.__call__, taken=("input_tensor", "targets", "aug_smooth")
        )

    def _check(self, model: object, frames: Frames) -> None:
        at = feature_map_of(model, frames, layer=self.layer)
        layer_gradient(frame_model(model), frames, lambda scores: scores.sum(1), layer=at)

    def _attributed(
        self, model: FrameModel, network: nn.Module, frames: Frames, clean: ReferenceScores
    ) -> Saliency:
        require_one_frame_of_a_view(model, frames, self.name)
        at = feature_map_of(network, frames, layer=self.layer)
        raw: list[Tensor] = []
        with self._class(
            Scored(model, network), [at.layer], reshape_transform=lambda output: as_maps(output, at)
        ) as cam:
            weighted: Callable[..., Any] = cam.get_cam_image

            def remember(*inputs: Any, **options: Any) -> Any:
                image = weighted(*inputs, **options)
                raw.append(torch.as_tensor(image))
                return image

            cam.get_cam_image = remember
            with torch.no_grad():
                scores = model(frames)
            # Of a network whose weights are frozen, nothing else asks for a gradient.
            cam(
                frames.requires_grad_(),
                targets=[_Row(clean, scores, row) for row in range(len(frames))],
                **self._of_call,
            )
        (maps,) = raw
        return to_frame_grid(maps.to(frames).relu(), frames, at.cells)


class _Row:
    """The target of one frame, from its own scores alone, as the library asks for it."""

    def __init__(self, clean: ReferenceScores, scores: Tensor, row: int) -> None:
        self._clean, self._scores, self._row = clean, scores, row

    def __call__(self, scores: Tensor) -> Tensor:
        before, after = self._scores[: self._row], self._scores[self._row + 1 :]
        return self._clean.target(torch.cat([before, scores[None], after]))[self._row]
