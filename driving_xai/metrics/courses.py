"""Runs a model along curves between two pictures of a frame: several curves and methods share forward passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from driving_xai.perturb import Mixture, batches
from driving_xai.types import FrameModel, Frames, Scores


class Course(NamedTuple):
    """A curve between two pictures of the same frames."""

    start: str
    """The picture at the count 0."""
    end: str
    """The picture when all places are edited."""
    counts: Int64[Tensor, " V"]
    """How many places show the end picture at each point, rising."""
    places: int
    """How many there are: pixels or patches."""

    @property
    def ends(self) -> tuple[str | None, str | None]:
        """The unmixed pictures among its points: its first and its last, where they are."""
        first, last = int(self.counts[0]), int(self.counts[-1])
        return self.start if first == 0 else None, self.end if last == self.places else None

    @property
    def mixed(self) -> Int64[Tensor, " v"]:
        """The counts of the points between."""
        return self.counts[(self.counts > 0) & (self.counts < self.places)]


_Variants = Callable[[int, int], Frames]
"""The points from one to another of a stretch of a curve, frame by frame."""


@torch.no_grad()
def scores_between(
    model: FrameModel,
    pictures: Mapping[str, Frames],
    courses: Sequence[Course],
    ranks: Int64[Tensor, "B *methods P"],
    *,
    known: Mapping[str, Scores],
    batch_size: int = 32,
) -> list[Float[Tensor, "B *methods V K"]]:
    """The scores along several curves of each ranking, in as few forward passes as their frames fill.

    A pass goes on from one ranking or curve to the next. An unmixed picture is scored once for all of them.

    Args:
        pictures: by name, each of the B frames.
        courses: the curves, all by the same rankings.
        ranks: one ranking a frame, or one for each method.
        known: the scores of pictures that need not be scored.
        batch_size: most edited frames in one forward pass, but never fewer than B; changes no score.

    Example:
        >>> frames = torch.ones(1, 3, 1, 4)
        >>> pictures = {"frame": frames, "black": torch.zeros_like(frames)}
        >>> away = Course("frame", "black", torch.tensor([0, 1, 4]), places=4)
        >>> (scores,) = scores_between(lambda x: x.sum((1, 2, 3))[:, None], pictures, [away], torch.arange(4)[None], known={})
        >>> scores.flatten().tolist()
        [12.0, 9.0, 0.0]
    """
    count = len(ranks)
    orders = ranks.int().reshape(count, -1, ranks.shape[-1]).unbind(1)
    wanted = [name for course in courses for name in course.ends if name is not None and name not in known]
    unmixed = list(dict.fromkeys(wanted))
    stretches: list[tuple[int, _Variants]] = [(1, _whole(pictures[name])) for name in unmixed]
    for course in courses:
        mixture = Mixture(pictures[course.start], pictures[course.end])
        if len(course.mixed):
            stretches += [(len(course.mixed), _stretch(mixture, order, course.mixed)) for order in orders]
    found = iter(_scored(model, stretches, frames=count, batch_size=batch_size))
    ends = {name: scores[:, None] for name, scores in known.items()}
    ends |= {name: next(found) for name in unmixed}
    curves = []
    for course in courses:
        first, last = ([] if name is None else [ends[name]] for name in course.ends)
        middles = [[next(found)] if len(course.mixed) else [] for _ in orders]
        scores = torch.stack([torch.cat([*first, *middle, *last], 1) for middle in middles], 1)
        curves.append(scores.reshape(*ranks.shape[:-1], *scores.shape[2:]))
    return curves


def _whole(picture: Frames) -> _Variants:
    return lambda _start, _stop: picture


def _stretch(mixture: Mixture, order: Int[Tensor, "B P"], counts: Int64[Tensor, " v"]) -> _Variants:
    return lambda start, stop: mixture(order, counts[start:stop])


def _scored(
    model: FrameModel, stretches: Sequence[tuple[int, _Variants]], *, frames: int, batch_size: int
) -> list[Float[Tensor, "B _ K"]]:
    """The scores of each stretch's points; a batch that a stretch does not fill takes the next one's first."""
    points = [(number, place) for number, (length, _) in enumerate(stretches) for place in range(length)]
    if not points:
        return []
    found = []
    for part in batches(len(points), frames=frames, batch_size=batch_size):
        found.append(model(_pictures_at(stretches, points[part], frames)).unflatten(0, (frames, -1)))
    return list(torch.cat(found, 1).split([length for length, _ in stretches], 1))


def _pictures_at(
    stretches: Sequence[tuple[int, _Variants]], points: Sequence[tuple[int, int]], frames: int
) -> Frames:
    """The pictures of these points, frame by frame."""
    made = []
    for number, group in groupby(points, key=itemgetter(0)):
        places = [place for _, place in group]
        made.append(stretches[number][1](places[0], places[-1] + 1))
    if len(made) == 1:
        return made[0]
    return torch.cat([part.unflatten(0, (frames, -1)) for part in made], 1).flatten(0, 1)
