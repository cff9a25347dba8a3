"""Runs a model along perturbation curves: methods and curves of the same frames share forward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int, Int64, Shaped
from torch import Tensor

from driving_xai.models.declared import converts_pixels
from driving_xai.perturb import Fill, Mixture, blank, pixel_counts
from driving_xai.types import FrameModel, Frames, Scores

Edit: TypeAlias = Literal["deletion", "insertion"]
_FRAME: Literal["frame"] = "frame"
_Picture: TypeAlias = "Fill | Tensor | Literal['frame']"
"""An unmixed picture of the frames: the frame itself, or a fill."""


class PerturbationCurve(NamedTuple):
    """The edits of one curve, whatever the ranking.

    Args:
        edit: deletion removes the most salient places, insertion shows them on the fill.
        counts: how many places are edited at each point, rising.
        fill: what a removed place shows: a named fill, or a picture.
        patch_px: side of the square patches that are the places; 1 for pixels.

    Example:
        >>> PerturbationCurve("insertion", (0, 1, 3)).ends(places=4)
        ('black', None)
    """

    edit: Edit
    counts: tuple[int, ...]
    fill: Fill | Float[Tensor, "3 H W"] = "black"
    patch_px: int = 1

    @classmethod
    def of_pixels(
        cls,
        edit: Edit,
        fractions: Sequence[float],
        *,
        pixels: int,
        fill: Fill | Float[Tensor, "3 H W"] = "black",
    ) -> PerturbationCurve:
        """A curve of which each point edits a fraction of the pixels.

        Raises:
            ValueError: see `perturb.pixel_counts`.
        """
        return cls(edit, tuple(pixel_counts(fractions, pixels).tolist()), fill)

    @property
    def pictures(self) -> tuple[_Picture, _Picture]:
        """What is shown with no place edited, and with all."""
        return (_FRAME, self.fill) if self.edit == "deletion" else (self.fill, _FRAME)

    def ends(self, *, places: int) -> tuple[_Picture | None, _Picture | None]:
        """The unmixed pictures that are its first and its last point."""
        first, last = self.pictures
        return first if self.counts[0] == 0 else None, last if self.counts[-1] == places else None

    def mixed(self, *, places: int) -> Int64[Tensor, " v"]:
        """The counts of the points between."""
        return torch.tensor([count for count in self.counts if 0 < count < places], dtype=torch.int64)


@torch.no_grad()
def scores_along(
    model: FrameModel,
    frames: Frames,
    ranks: Int64[Tensor, "B *methods P"],
    curves: Sequence[PerturbationCurve],
    *,
    batch_size: int = 32,
    clean: Scores | None = None,
) -> list[Float[Tensor, "B *methods V K"]]:
    """The scores along each curve by each ranking, in as few forward passes as the edited frames fill.

    A pass that one ranking does not fill goes on with the next, and with the next curve. The frame and each fill
    are scored once for all of them: deletion ends where insertion starts.

    Args:
        ranks: of pixels, one ranking a frame or one for each method; see `curves.rank`.
        curves: that are wanted.
        batch_size: most edited frames in one forward pass, but never fewer than B: a recurrent model judges all
            frames of an instant's batch together. Changes scores by rounding only.
        clean: the scores of the unedited frames, where they are known.

    Example:
        >>> frames, ranks = torch.ones(1, 3, 1, 4), torch.arange(4)[None]
        >>> both = [PerturbationCurve("deletion", (0, 1, 4)), PerturbationCurve("insertion", (0, 1))]
        >>> removed, shown = scores_along(lambda x: x.sum((1, 2, 3))[:, None], frames, ranks, both)
        >>> removed.flatten().tolist(), shown.flatten().tolist()
        ([12.0, 9.0, 0.0], [0.0, 3.0])
    """
    size = (frames.shape[2], frames.shape[3])
    places = [patch_count(size, curve.patch_px) for curve in curves]
    ends = [curve.ends(places=each) for curve, each in zip(curves, places, strict=True)]
    # On the frames' device at once: a copy in every pass would wait for the passes before it.
    mixed = [curve.mixed(places=each).to(ranks.device) for curve, each in zip(curves, places, strict=True)]
    orders = ranks.int().reshape(len(ranks), -1, ranks.shape[-1]).unbind(1)
    known: dict[_Picture, Tensor] = {} if clean is None else {_FRAME: clean[:, None]}
    pictures, judge = _pictures(frames, curves), model
    if converts_pixels(model):
        converted = model.converted(torch.cat(list(pictures.values()))).split(len(frames))
        pictures = dict(zip(pictures, converted, strict=True))
        judge = model.of_converted
    # By hash, which of a tensor is its identity: comparing two pictures would compare their pixels.
    wanted = {end for each in ends for end in each}
    unmixed = [picture for picture in pictures if picture in wanted and picture not in known]

    def stretches() -> Iterator[Stretch]:
        for picture in unmixed:
            yield Stretch(1, partial(_whole, pictures[picture]))
        for curve, counts in zip(curves, mixed, strict=True):
            mixture = Mixture(*(pictures[picture] for picture in curve.pictures))
            for order in orders if len(counts) else ():
                yield Stretch(
                    len(counts), partial(_between, mixture, patch_ranks(order, size, curve.patch_px), counts)
                )

    found = iter(scores_of_stretches(judge, stretches(), frames=len(frames), batch_size=batch_size))
    at_ends = {**known, **{picture: next(found) for picture in unmixed}}
    scores = []
    for counts, (first, last) in zip(mixed, ends, strict=True):
        start, stop = ([] if end is None else [at_ends[end]] for end in (first, last))
        of_methods = [torch.cat([*start, *([next(found)] if len(counts) else []), *stop], 1) for _ in orders]
        scores.append(torch.stack(of_methods, 1).reshape(*ranks.shape[:-1], -1, of_methods[0].shape[-1]))
    return scores


class Stretch(NamedTuple):
    """Variants of every frame that follow one another along a curve."""

    length: int
    """How many of each frame."""
    variants: Callable[[int, int], Shaped[Tensor, "B v *input"]]
    """Makes those from one position to before another."""


def scores_of_stretches(
    model: Callable[[Shaped[Tensor, "N *input"]], Scores],
    stretches: Iterable[Stretch],
    *,
    frames: int,
    batch_size: int,
) -> list[Float[Tensor, "B length K"]]:
    """The scores of each stretch; a pass that a stretch does not fill takes the next one's first variants.

    Args:
        model: takes the variants that `stretches` make, frame by frame, as `RecurrentModel.at` does.
        stretches: asked for one after the other, so that what one is made of can be let go before the next.
        frames: B.
        batch_size: most variants in one pass, but never fewer than one of every frame.

    Example:
        >>> two = [Stretch(length, lambda a, b: torch.arange(a, b)[None, :, None] * 10.0) for length in (3, 2)]
        >>> [each.flatten().tolist() for each in scores_of_stretches(lambda x: x + 1, two, frames=1, batch_size=4)]
        [[1.0, 11.0, 21.0], [1.0, 11.0]]
    """
    lengths: list[int] = []

    def passes() -> Iterator[Tensor]:
        most = room = max(1, batch_size // frames)
        parts: list[Tensor] = []
        for stretch in stretches:
            lengths.append(stretch.length)
            start = 0
            while start < stretch.length:
                stop = min(stretch.length, start + room)
                parts.append(stretch.variants(start, stop))
                start, room = stop, room - (stop - start)
                if not room:
                    yield parts[0] if len(parts) == 1 else torch.cat(parts, 1)
                    parts, room = [], most
        if parts:
            yield parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    found = [model(variants.flatten(0, 1)).unflatten(0, (frames, -1)) for variants in passes()]
    return list(torch.cat(found, 1).split(lengths, 1)) if found else []


def patch_count(size: tuple[int, int], patch_px: int) -> int:
    """How many square patches cover a frame; those at the right and lower border may be cut.

    Args:
        size: height and width.

    Example:
        >>> patch_count((5, 8), 4)
        4
    """
    height, width = size
    return -(-height // patch_px) * -(-width // patch_px)


def patch_ranks(
    ranks: Int[Tensor, "B *methods P"], size: tuple[int, int], patch_px: int
) -> Int[Tensor, "B *methods P"]:
    """The position of each pixel's patch in the order of the patches, of which there are `patch_count`.

    A patch comes as early as its most salient pixel. Pixels have no ties (`curves.rank` settles them),
    so patches have none.

    Args:
        size: height and width; P is their product.

    Source: Iida et al. 2022, section 4.3: a patch scores as its maximum.
    """
    if patch_px == 1:
        return ranks
    height, width = size
    across = torch.arange(width, device=ranks.device) // patch_px
    down = torch.arange(height, device=ranks.device)[:, None] // patch_px
    patch = (down * -(-width // patch_px) + across).flatten().expand_as(ranks)
    first = ranks.new_full((*ranks.shape[:-1], patch_count(size, patch_px)), height * width)
    first = first.scatter_reduce(-1, patch, ranks, "amin")
    # The position in the order of first pixels: an order's order.
    return first.argsort(-1).argsort(-1).gather(-1, patch)


def _pictures(frames: Frames, curves: Sequence[PerturbationCurve]) -> dict[_Picture, Frames]:
    found: dict[_Picture, Frames] = {_FRAME: frames}
    for fill in dict.fromkeys(curve.fill for curve in curves):
        found[fill] = blank(frames, fill) if isinstance(fill, str) else fill.to(frames).expand_as(frames)
    return found


def _whole(picture: Frames, _start: int, _stop: int) -> Float[Tensor, "B 1 3 H W"]:
    # A copy: a network whose first layer works in place writes on what it is given, here on the caller's frames.
    return picture[:, None].clone()


def _between(
    mixture: Mixture, order: Int[Tensor, "B P"], counts: Int64[Tensor, " inner"], start: int, stop: int
) -> Float[Tensor, "B v 3 H W"]:
    return mixture(order, counts[start:stop]).unflatten(0, (len(order), -1))
