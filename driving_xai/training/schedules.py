"""Learning rates over a training: a linear warm-up, then half a cosine down to a stated floor."""

from __future__ import annotations

import math
from typing import Literal

FLOOR = 0.01
"""The share of the learning rate that the cosine of steering, actions and classifiers falls to."""

DECAY, DECAY_STEPS = 0.96, 1000
"""By what the learning rate of the schedule `decay` is multiplied, and after how many steps each time."""

Schedule = Literal["constant", "cosine"]


def cosine(
    step: int,
    steps: int,
    start: float,
    end: float,
    *,
    warmup_steps: int = 0,
    warmup: Literal["from-zero", "above-zero"] = "from-zero",
) -> float:
    """A value that grows linearly to `start` in the warm-up, then falls along half a cosine to `end`.

    The first step after the warm-up has `start` itself; `end` would be reached one step after the last.

    Args:
        step: counted from 0.
        steps: of the whole training, the warm-up's included; a longer warm-up is cut to them.
        warmup: whether its first step has the value 0, as DINO's, or already a share of `start`, because
            an epoch with the rate 0 learns nothing. Its last step has `start`.

    Source: Caron et al. 2021, released code, for both ends and for a warm-up from zero.
    Deviation: a warm-up longer than the training is cut to it.

    Example:
        >>> [round(cosine(step, 6, 1.0, 0.0, warmup_steps=3), 2) for step in range(6)]
        [0.0, 0.5, 1.0, 1.0, 0.75, 0.25]
        >>> [round(cosine(step, 4, 1.0, 0.0, warmup_steps=2, warmup="above-zero"), 2) for step in range(4)]
        [0.5, 1.0, 1.0, 0.5]
    """
    warmup_steps = min(warmup_steps, steps)
    if step < warmup_steps:
        if warmup == "above-zero":
            return start * ((step + 1) / warmup_steps)
        return start * step / max(warmup_steps - 1, 1)
    done = (step - warmup_steps) / max(steps - warmup_steps, 1)
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * done))


def rate_share(epoch: int, epochs: int, schedule: Schedule, *, warmup_epochs: int = 0) -> float:
    """The share of the learning rate that an epoch trains with: from 1 to `FLOOR`, or 1 throughout.

    Args:
        epoch: counted from 0.
        epochs: of the whole training, the warm-up's included.
        schedule: after the warm-up, which both have.

    Example:
        >>> [round(rate_share(epoch, 4, "cosine"), 3) for epoch in range(5)]
        [1.0, 0.855, 0.505, 0.155, 0.01]
    """
    floor = FLOOR if schedule == "cosine" else 1.0
    return cosine(epoch, epochs, 1.0, floor, warmup_steps=warmup_epochs, warmup="above-zero")


def decayed(step: int) -> float:
    """The share of the learning rate that a step trains with: 0.96 times as much every 1,000 steps.

    Args:
        step: of the whole training, counted from 0.

    Source: Kim et al. 2018, "Textual explanations for self-driving vehicles", released code; Tashiro and Awano
    2023 name no schedule.

    Example:
        >>> decayed(999), decayed(1000)
        (1.0, 0.96)
    """
    return DECAY ** (step // DECAY_STEPS)
