"""Edited frames: exactly k pixels taken from another picture, all variants of a frame in one batch.

Everything happens in the space of the contract, RGB in [0, 1], before a model's own colour
conversion and normalisation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int64
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from driving_xai.fills import CurveFill, Fill
from driving_xai.models.backbone import IMAGENET_MEAN
from driving_xai.types import Frames

_BLUR_TAPS, _BLUR_SIGMA_PX = 11, 5.0  # RISE's kernel.


def blank(frames: Frames, fill: Fill) -> Frames:
    """The frames with everything removed: what an edited pixel shows.

    Args:
        fill: `black` is 0; `mean` the mean colour of each frame; `blur` the frame under RISE's
            Gaussian of 11 x 11 pixels and sigma 5; `imagenet-mean` the mean colour of ImageNet, which is 0 after
            the normalisation that most pre-trained networks start with.

    Source: black, Tashiro and Awano 2023 do not say, so 0; mean, Zhu et al. 2024, whose code has
    0 after normalisation; blur, Petsiuk et al. 2018 (RISE).
    Deviation: the blur repeats the border pixels, where RISE's pads with zeros.
    """
    return FILLS[fill](frames)


def _black(frames: Frames) -> Frames:
    return torch.zeros_like(frames)


def _mean(frames: Frames) -> Frames:
    return frames.mean((2, 3), keepdim=True).expand_as(frames)


def _blur(frames: Frames) -> Frames:
    kernel = torch.tensor(_blur_kernel(), dtype=frames.dtype, device=frames.device).expand(3, 1, 1, -1)
    margin = _BLUR_TAPS // 2
    padded = F.pad(frames, (margin,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel, groups=3), kernel.transpose(2, 3), groups=3)


def _imagenet_mean(frames: Frames) -> Frames:
    return frames.new_tensor(IMAGENET_MEAN).view(3, 1, 1).expand_as(frames)


@cache
def _blur_kernel() -> tuple[float, ...]:
    """RISE takes SciPy's response to an impulse on 11 pixels, mirrored at the ends, not a cut Gaussian."""
    impulse = np.zeros(_BLUR_TAPS)
    impulse[_BLUR_TAPS // 2] = 1
    return tuple(gaussian_filter1d(impulse, _BLUR_SIGMA_PX))


FILLS: Mapping[Fill, Callable[[Frames], Frames]] = {
    "black": _black,
    "mean": _mean,
    "blur": _blur,
    "imagenet-mean": _imagenet_mean,
}
CURVE_FILLS: tuple[CurveFill, ...] = (*FILLS, "bias-image")


def pixel_counts(fractions: Sequence[float], pixels: int) -> Int64[Tensor, " V"]:
    """How many of the pixels each fraction means, to the nearest.

    Raises:
        ValueError: fractions leave [0, 1], or two of them mean the same number of pixels or fall.
    """
    counts = torch.tensor([round(fraction * pixels) for fraction in fractions])
    if len(counts) == 0 or counts[0] < 0 or counts[-1] > pixels or (counts.diff() <= 0).any():
        raise ValueError(
            f"got fractions {list(fractions)} of {pixels} pixels; expected rising steps of a pixel or more in [0, 1]"
        )
    return counts


def batches(variants: int, *, frames: int, batch_size: int) -> Iterator[slice]:
    """Which variants of every frame run together, in their order.

    Args:
        variants: of each frame.
        batch_size: most edited frames in one forward pass, but never fewer than one of every frame:
            a recurrent model judges all frames of an instant's batch together.
    """
    step = max(1, batch_size // frames)
    for start in range(0, variants, step):
        yield slice(start, min(start + step, variants))


_INTEGER_OF_SIZE = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Mixture:
    """Two pictures of the same frames, B of them, mixed pixel by pixel in the order of a ranking.

    Deletion mixes the blank into the frame, insertion the frame into the blank. Values are copied bit
    for bit.

    Example:
        >>> frames = torch.rand(1, 3, 2, 2)
        >>> mixed = Mixture(frames, blank(frames, "black"))(torch.tensor([[0, 1, 2, 3]]), torch.tensor([0, 1, 4]))
        >>> (mixed == 0).all(1).flatten(1).sum(1)
        tensor([0, 1, 4])
    """

    def __init__(self, start: Frames, end: Frames) -> None:
        # Blending the bits under a mask of all ones or all zeros takes one vectorised pass over the
        # variants; torch.where takes 2.5 times as long on a CPU.
        self._dtype = start.dtype
        self._integer = _INTEGER_OF_SIZE[start.element_size()]
        self._start, end = (part.contiguous().view(self._integer).unsqueeze(1) for part in (start, end))
        self._change = self._start ^ end

    def __call__(self, ranks: Int[Tensor, "B P"], counts: Int64[Tensor, " V"]) -> Float[Tensor, "N 3 H W"]:
        """Each frame V times over, variant v with its `counts[v]` first-ranked pixels from the end picture.

        The B * V variants stand frame by frame, as `RecurrentModel.at` takes them.

        Args:
            ranks: the position of each pixel in its frame's order, 0 first; see `curves.rank`. Int32
                saves a conversion.
        """
        count, _, channels, height, width = self._start.shape
        places, limits = ranks.int()[:, None], counts.int().to(ranks.device)[None, :, None]
        # A negative difference, shifted over its sign bit, is all ones.
        first = (places - limits).bitwise_right_shift_(31).to(self._integer)
        first = first.view(count, len(counts), 1, height, width)
        mixed = torch.bitwise_and(first, self._change).bitwise_xor_(self._start)
        return mixed.view(self._dtype).view(-1, channels, height, width)
