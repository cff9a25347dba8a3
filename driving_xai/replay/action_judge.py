"""One frame judged for its actions: predicted, explained for each predicted one, each map scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from driving_xai.errors import NonFiniteError
from driving_xai.metrics.curves import deletion, rank
from driving_xai.perturb import Fill
from driving_xai.replay.action_source import Picture
from driving_xai.replay.background import StageTimes
from driving_xai.replay.scoring import FRACTIONS
from driving_xai.targets import output, probabilities
from driving_xai.types import Explainer, Frames, Scores, Target


class Explained(NamedTuple):
    """One predicted output of a frame."""

    saliency: Float32[np.ndarray, "h w"]
    curve: Float64[np.ndarray, " V"] | None
    """Its probability as the most salient pixels are removed; None where it was not scored."""
    random: Float64[np.ndarray, " V"] | None
    """The same in a random order; None where that was not scored."""


class JudgedPicture(NamedTuple):
    """What came of one frame."""

    seen: Picture
    probability: Float64[np.ndarray, " K"]
    explained: Mapping[int, Explained]
    """By the output's column: those over their thresholds, or the one that is highest."""


@dataclass(frozen=True, kw_only=True)
class ActionJudge:
    """Predicts, explains and scores single frames."""

    model: Any
    """A `types.FrameModel`, on its device."""
    method: Explainer
    control: Explainer
    thresholds: Float64[np.ndarray, " K"]
    """Probabilities from which an output counts as predicted; of several labels only."""
    fill: Fill
    seed: int
    """Of ties."""
    batch_size: int
    scored: bool
    times: StageTimes

    def __call__(self, seen: Picture, *, with_control: bool) -> JudgedPicture:
        """Judges one frame.

        Raises:
            NonFiniteError: a map is not finite.
        """
        device = next(self.model.parameters()).device
        frames = torch.from_numpy(seen.pixels.copy()).to(device).permute(2, 0, 1)[None].float() / 255
        with self.times.measure("model"), torch.no_grad():
            clean: Scores = self.model(frames)
        probability = probabilities(self.model.outputs, clean)[0].double().cpu().numpy()
        columns = self._predicted(probability)
        if not columns:
            return JudgedPicture(seen, probability, {})
        with self.times.measure("explain"):
            maps = explain_each(self.method, self.model, frames, [output(column) for column in columns])
        curves: Sequence[Any] = [None] * len(columns)
        random: Sequence[Any] = [None] * len(columns)
        if self.scored:
            with self.times.measure("score"):
                curves, random = self._curves(frames, clean, maps, columns, with_control)
        shown = maps[0].float().cpu().numpy()
        found = {c: Explained(shown[i], curves[i], random[i]) for i, c in enumerate(columns)}
        return JudgedPicture(seen, probability, found)

    def _predicted(self, probability: Float64[np.ndarray, " K"]) -> list[int]:
        if self.model.outputs.kind == "multilabel":
            return np.flatnonzero(probability > self.thresholds).tolist()
        return [int(probability.argmax())]

    def _curves(
        self,
        frames: Frames,
        clean: Scores,
        maps: Float[Tensor, "1 C H W"],
        columns: Sequence[int],
        with_control: bool,
    ) -> tuple[list[np.ndarray], list[np.ndarray | None]]:
        """The probability of each column along its own map's curve, and along a random one's."""
        orders = [maps[0]]
        if with_control:
            orders.append(self.control(self.model, frames, output(columns[0])))
        ranks = rank(torch.cat(orders).float(), torch.Generator().manual_seed(self.seed))
        scores = deletion(
            self.model,
            frames,
            ranks[None],
            FRACTIONS,
            fill=self.fill,
            batch_size=self.batch_size,
            clean=clean,
        )
        chances = probabilities(self.model.outputs, scores)[0].double().cpu().numpy()
        curves = [chances[at, :, column] for at, column in enumerate(columns)]
        random = [chances[-1, :, column] if with_control else None for column in columns]
        return curves, random


def explain_each(
    method: Explainer, model: Any, frames: Frames, targets: Sequence[Target]
) -> Float[Tensor, "B C H W"]:
    """One map for each target; methods that can share the forward pass do.

    Raises:
        NonFiniteError: a map is not finite.
    """
    together = getattr(method, "explain_each", None)
    if together is not None:
        maps = together(model, frames, targets)
    else:
        maps = torch.stack([method(model, frames, target) for target in targets], 1)
    if not maps.isfinite().all():
        raise NonFiniteError("got a map with NaN or infinity; check the weights")
    return maps.detach()
