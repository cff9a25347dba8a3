"""What a scoring run is asked for, checked before any work."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from driving_xai.evaluation.data import Split
from driving_xai.explain.options import OptionsOf
from driving_xai.explain.registry import require_methods
from driving_xai.metrics.aupc import Masking
from driving_xai.metrics.masked_accuracy import require_followed
from driving_xai.metrics.registry import MEASURES
from driving_xai.perturb import FILLS, Fill

CONTROLS = ("random", "centre-prior")
"""Scored beside every method."""


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """How explanations are scored. The controls are always scored too.

    Raises:
        ValueError: an option is out of range or unknown; the message says what is possible.
    """

    methods: tuple[str, ...] = ()
    """Names of `explain.METHODS`, each perhaps with a label, `snna@literal`; may be empty where `maps` are
    given."""
    options: OptionsOf = field(default_factory=dict)
    """Of methods, and of the centre prior, by name: `{"snna": {"samples": 3}}`; see docs/methods.md."""
    maps: str | None = None
    """A file of maps that were computed elsewhere; its methods are scored too. See docs/results.md."""
    masks: str | None = None
    """A folder of PNGs or an .npz with the pixels that matter, for the measures of localisation; see
    `masks.Masks`. None takes what synthetic shards know."""
    save_maps: bool = False
    """Keeps every map, the controls' excepted, beside the results."""
    measures: tuple[str, ...] = ("deletion",)
    """Names of `registry.MEASURES`."""
    target: str | None = None
    """What is explained; see `targets.by_name`. None is `magnitude` for steering, else `predicted`. For
    several labels `every-predicted` scores a frame once for each output over its threshold."""
    fill: Fill = "black"
    """What a removed pixel shows, but for measures with a fill of their own; see docs/results.md."""
    masking: Masking = field(default_factory=Masking)
    """Of `aupc`, `log-odds` and their like alone, the fill included."""
    truth: Literal["smoothed", "raw"] = "smoothed"
    """Which recorded angle the error is against; of steering only."""
    split: Split = "held-out"
    """`held-out` is what this checkpoint did not train on; the others are the shards' own splits."""
    every: int = 1
    """Scores every n-th frame; a recurrent model still sees them all."""
    batch_size: int = 32
    """Most frames in one forward pass, edited ones included. It bounds memory, and changes results by
    rounding only; sign attention amplifies that where a feature is nearly zero."""
    seed: int = 0
    """Of ties, of the random control, of methods and measures that draw, and of the intervals."""
    block_s: float = 5.0
    """Length of the blocks that intervals are drawn from, in seconds of driving."""
    resamples: int = 2000
    level: float = 0.95

    def __post_init__(self) -> None:
        require_methods(self.methods, self.options, least=0 if self.maps else 1, also=CONTROLS)
        for name, given, known in (("measure", self.measures, MEASURES), ("fill", (self.fill,), FILLS)):
            if not given or (unknown := [each for each in given if each not in known]):
                got = repr(unknown[0]) if given else "none"
                raise ValueError(f"got {name} {got}, expected some of: {', '.join(known)}")
            if twice := [each for each in given if given.count(each) > 1]:
                raise ValueError(f"got {name} {twice[0]!r} twice, expected each once")
        require_followed(self.masking, self.measures)
        if self.seed < 0:
            raise ValueError(f"got seed {self.seed}, expected 0 or more")
        for name in ("every", "batch_size", "resamples"):
            if getattr(self, name) < 1:
                raise ValueError(f"got {name} {getattr(self, name)}, expected 1 or more")
        if self.block_s <= 0 or not 0 < self.level < 1:
            raise ValueError(
                f"got block_s {self.block_s}, level {self.level}; expected > 0 and within (0, 1)"
            )
