"""Configuration of an evaluation, checked before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol

from data_prep.values import Checked, Ge, Level, PositiveCount, Resamples, Seconds, Seed
from driving_xai.evaluation.fills import takes_fill, under_fills
from driving_xai.explain.base import Explainer
from driving_xai.explain.options import OptionsOf
from driving_xai.explain.registry import fitted, require_methods
from driving_xai.metrics.aupc import Masking
from driving_xai.metrics.masked_accuracy import require_followed
from driving_xai.metrics.registry import METRICS, metric_class
from driving_xai.models.steering_config import AttentionDerivative
from driving_xai.perturb import CurveFill
from driving_xai.targets import OF_PROBABILITY, ExplainedScore, hides_parts

WINDOW = "deletion-window"
"""The measure that edits whole windows."""
_WINDOW_FRAMES = 20
CONTROLS = ("random", "centre-prior")
"""Scored with every method."""
Split = Literal["held-out", "test", "val", "train", "all"]


@dataclass(frozen=True, kw_only=True)
class EvalConfig(Checked):
    """What every evaluation along a data set is asked for.

    Raises:
        ValueError: an option is out of range or unknown; the message says what is possible.
    """

    methods: tuple[str, ...] = ()
    """Names of `explain.registry.METHODS`, each perhaps with a label, `snna@literal`."""
    options: OptionsOf = field(default_factory=dict)
    """Of methods, and of the centre prior, by name: `{"snna": {"samples": 3}}`; see docs/methods.md."""
    target: str | None = None
    """What is explained; see `targets.by_name`. None is `magnitude` for steering, else `predicted`. For
    several labels `every-predicted` scores a frame once for each output over its threshold; for classes
    `true-class` takes the one that the image has."""
    split: Split = "held-out"
    """`held-out` is what this checkpoint did not train on; the others are the shards' own splits."""
    every: PositiveCount = 1
    """Takes every n-th frame; a recurrent model still sees them all."""
    batch_size: PositiveCount = 32
    """Most frames in one forward pass, edited ones included. It bounds memory, and changes results by
    rounding only; sign attention amplifies that where a feature is nearly zero."""
    seed: Seed = 0
    """Of ties, of the random control, of methods and metrics that draw, and of the intervals."""
    block_s: Seconds = 5.0
    """Length of the blocks that intervals are drawn from, in seconds of driving."""
    resamples: Resamples = 2000
    level: Level = 0.95


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(EvalConfig):
    """How explanations are scored. The controls are always scored too; methods may be empty where `maps` are given.

    Raises:
        ValueError: an option is out of range or unknown; the message says what is possible.

    Example:
        >>> ScoreConfig(methods=("grad-cam",), measures=("deletion", "insertion")).fill
        'black'
    """

    explained_score: ExplainedScore = "probability"
    """What RISE and LIME explain of an image: the output's probability, as their papers do, or its logit, as all
    other methods; see `targets.explained_by`."""
    attention_derivative: AttentionDerivative = "actual"
    """What gradients of a trained sign network are: `actual` leaves out attention inside a sign, which it cannot change
    (features keep the sign estimator's gradient); `straight-through` is the one that it was trained by."""
    maps: str | None = None
    """A file of maps that were computed elsewhere; its methods are scored too. See docs/results.md."""
    masks: str | None = None
    """A folder of PNGs or an .npz with the pixels that matter, for the metrics of localisation; see
    `maps_file.Masks`. None takes what synthetic shards know."""
    baseline_model: str | None = None
    """A checkpoint of the same outputs on which `lime-rank-correlation` fits LIME, of images; None is the scored one."""
    save_maps: bool = False
    """Keeps every map, the controls' excepted, with the results."""
    measures: tuple[str, ...] = ("deletion",)
    """Names of `metrics.registry.METRICS`, of entry points, or `module:Class` of one's own."""
    fill: CurveFill = "black"
    """What a removed pixel shows, but for metrics with a fill of their own; see docs/results.md. `bias-image` is the
    mean of the train split of the shards that are scored, of curves of images only; see docs/methods.md."""
    fills: tuple[CurveFill, ...] = ()
    """Several in one run, in place of `fill`: each measure that takes a fill is scored under each of them, as
    `deletion@black`, and each method has its smallest margin over the controls; see `fill_margins.headlines`."""
    masking: Masking = field(default_factory=Masking)
    """Of `aupc`, `log-odds` and their like alone, the fill included."""
    only_label: str | None = None
    """Of images, scores those alone that have this class or label."""
    window_frames: Annotated[int, Ge(2)] = _WINDOW_FRAMES
    """Of `deletion-window` alone: how many frames, the scored one the last, lose their most salient pixels."""
    truth: Literal["smoothed", "raw"] = "smoothed"
    """Which recorded angle the error is against; of steering only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_names()
        require_followed(self.masking, self.measures)
        if self.explained_score != "probability" and not self.hides_parts:
            raise ValueError(
                f"got explained_score {self.explained_score!r}, which no method of this run follows; "
                f"leave it out, or add any of: {', '.join(OF_PROBABILITY)}"
            )
        if self.window_frames != _WINDOW_FRAMES and not self.scores_windows:
            raise ValueError(
                f"got window_frames {self.window_frames}, which no measure of this run follows; leave it out, or add "
                f"{WINDOW}"
            )
        if self.baseline_model is not None and "lime-rank-correlation" not in self.measures:
            raise ValueError(
                "got baseline_model, which no measure of this run follows; leave it out, or add lime-rank-correlation"
            )

    def _check_names(self) -> None:
        require_methods(self.methods, self.options, least=0 if self.maps else 1, also=CONTROLS)
        require_measures(self.measures)
        self._check_fills()
        if self.fills and not any(takes_fill(name) for name in self.measures):
            raise ValueError(
                f"got fills {', '.join(self.fills)}, which no measure of this run takes; add deletion, or leave them out"
            )

    def _check_fills(self) -> None:
        if not self.fills:
            return
        if len(set(self.fills)) < len(self.fills) or len(self.fills) < 2:
            raise ValueError(f"got fills {', '.join(self.fills)}; expected two or more, each once")
        if self.fill != "black":
            raise ValueError(f"got fill {self.fill!r} and fills {', '.join(self.fills)}; give one of them")

    @property
    def shows_bias_image(self) -> bool:
        """Whether a fill of the run is the mean of the training images."""
        return "bias-image" in (self.fill, *self.fills)

    @property
    def scores_windows(self) -> bool:
        """Whether a measure edits the frames before the scored one too."""
        return WINDOW in self.measures

    @property
    def hides_parts(self) -> bool:
        """Whether a method follows `explained_score`."""
        return any(map(hides_parts, self.methods))

    @property
    def scored_measures(self) -> Mapping[str, tuple[str, CurveFill | None]]:
        """The names under which measures stand in results; see `fills.under_fills`."""
        return under_fills(self.measures, self.fills)


def require_measures(names: Sequence[str]) -> None:
    """Checks names of metrics.

    Args:
        names: see `ScoreConfig.measures`.

    Raises:
        ValueError: there is none, one is unknown, or one is named twice.
    """
    if not names:
        raise ValueError(f"got measure none, expected some of: {', '.join(METRICS)}")
    for name in names:
        if name not in METRICS:
            metric_class(name)
    if twice := [each for each in names if names.count(each) > 1]:
        raise ValueError(f"got measure {twice[0]!r} twice, expected each once")


class HasMethods(Protocol):
    """A configuration that says how explainers are built."""

    @property
    def options(self) -> OptionsOf: ...

    @property
    def seed(self) -> int: ...

    @property
    def batch_size(self) -> int: ...


def explainers_of(names: Sequence[str], model: Any, config: HasMethods) -> dict[str, Explainer]:
    """The explainers of these names, each of which fits a model.

    Args:
        names: of `explain.registry.METHODS`.
        model: the whole model, on the device that it will run on.
        config: their options, the seed and the batch size.

    Raises:
        UnsupportedModelError: the model lacks what a method needs.
    """
    return {
        name: fitted(
            name, model, seed=config.seed, batch_size=config.batch_size, options=config.options.get(name)
        )
        for name in names
    }
