"""The configuration of a replay: which part of which source, by which method, drawn how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Annotated, Any, Literal

from data_prep.policy import Fault, OnBad, Policy
from data_prep.values import Checked, Interval, PositiveCount, Seconds, Seed
from driving_xai.explain.options import OptionsOf
from driving_xai.explain.registry import require_methods
from driving_xai.perturb import Fill
from driving_xai.replay.frames import FASTEST_HZ, SLOWEST_HZ, Selection
from driving_xai.replay.sink import Encoding, Preset
from driving_xai.viz.heat import Colormap, HeatLook

Layout = Literal["overlay", "grid", "cycle", "portrait", "compact"]
Reference = Literal["clean", "truth"]
_CONTROL = "random"
LEAST_PX, MOST_PX = 120, 8192
"""Sides of a video: below nothing can be seen, above browsers do not play it."""
FILM_ONLY = frozenset({"compared", "layout", "original", "size", "cards", "title", "mb"})
"""How the film is put together, which changes no score."""


@dataclass(frozen=True, kw_only=True)
class ReplayConfig(Checked):
    """What is played, how it is explained and scored, and how it is drawn.

    Some options are for models of one task; `tasks.base.Task.only` lists them, and a model of another task
    refuses them.

    Raises:
        ValueError: an option is out of range or unknown; the message says what is possible.
        DataError: the part that is played ends before it starts.
    """

    method: str | None = None
    """A name of `explain.registry.METHODS`; None is the model's own attention, `snna` for transformers,
    otherwise `grad-cam`."""
    compared: tuple[str, ...] = ()
    """More methods, shown side by side with the first and scored on the same frames."""
    options: OptionsOf = field(default_factory=dict)
    """Of the methods, by name: `{"snna": {"samples": 3}}`; see docs/methods.md."""
    target: str = "magnitude"
    """What is explained of steering; see `targets.by_name`."""
    layout: Layout | None = None
    """Of steering `overlay`, instruments over the frame; of actions and classes `grid`, a tile for each output, or
    `cycle`, one whose map changes from one predicted output to the next. For phones, `portrait` has everything one
    below the other and `compact` little more than the frame. None is the first of the task's."""
    original: bool = False
    """Shows the camera's frame too, before what is drawn on."""
    size: tuple[int, int] | None = None
    """Width and height of the video in pixels; what is drawn has its room inside. None goes by the source."""
    cards: bool = False
    """Begins with what is shown, and ends with what it showed: the verdict in a sentence."""
    title: str = ""
    """Of the card at the beginning; without one, the drive's name."""
    mb: Annotated[float, Interval(gt=0, le=1e6)] | None = None
    """Megabytes that the video stays below, at lower quality where it must; None: as large as `crf` makes it."""
    cycle_s: Seconds = 1.5
    """How long each predicted output is shown, in `cycle`."""
    score: bool = True
    fill: Fill = "black"
    """What takes a removed pixel's place."""
    control_every: PositiveCount = 10
    """Scores a random order too on every n-th frame of those that are scored."""
    batch_size: PositiveCount = 32
    """Most frames in one forward pass, edited ones included."""
    reference: Reference = "clean"
    """Whose curve of steering is drawn: the change from the unmodified prediction, or the error against the
    driver (`truth`), which contains the model's own error. Both are saved."""
    seed: Seed = 0
    """Of ties, of the random order, of methods that draw and of the intervals."""
    block_s: Seconds = 5.0
    """Length of the blocks that intervals are drawn from; of unrelated images one image."""
    reader: str | None = None
    reader_options: Mapping[str, Any] = field(default_factory=dict)
    """The reader's own, as prep takes them: `{"rate": 20}` for a raw stream, which has no times."""
    on_bad: OnBad = "drop"
    """What to do about frames that cannot be used: leave them out and count them, or stop."""
    refuse: tuple[Fault, ...] = ()
    """Faults to stop at even so, as in prep."""
    drive: str | None = None
    """Of labelled images, their group."""
    split: Literal["all", "train", "val", "test"] = "all"
    start_s: float = 0.0
    end_s: float | None = None
    frame_rate: Annotated[float, Interval(ge=SLOWEST_HZ, le=FASTEST_HZ)] | None = None
    """Of folders of images, which have no times, 20 a second unless given; of labelled images, 2."""
    path: bool = True
    """Draws the projected paths of steering, where the camera is known or `horizon` is given."""
    horizon: float | None = None
    """Row of the horizon for them, as a fraction of the height; None goes by the reader."""
    colormap: Colormap = "inferno"
    """Of the evidence; maps with evidence against the prediction are red and blue in any case."""
    opacity: Annotated[float, Interval(gt=0, le=1)] = 0.72
    """Of the strongest evidence, over 0 and at most 1."""
    heat_s: Seconds = 2.0
    """How slowly the heat map's scale and the curve's axis follow, in seconds."""
    preset: Preset = "veryfast"
    crf: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        require_methods([*([self.method] if self.method else []), *self.compared], self.options, least=0)
        if self.compared and _CONTROL in (self.method, *self.compared):
            raise ValueError("random is what every method is compared with; leave it out of the methods")
        if self.horizon is not None and not 0 <= self.horizon < 1:
            raise ValueError(f"got horizon {self.horizon}, expected 0 to below 1, a fraction of the height")
        if self.size is not None and not all(LEAST_PX <= side <= MOST_PX for side in self.size):
            raise ValueError(
                f"got size {self.size[0]}x{self.size[1]}, expected {LEAST_PX} to {MOST_PX} pixels each way"
            )
        Encoding(preset=self.preset, crf=self.crf)  # Says what is wrong with them.
        self.selection  # noqa: B018 - says what is wrong with the times.
        self.policy  # noqa: B018 - and with the faults.

    @property
    def selection(self) -> Selection:
        """The part of a source that is played."""
        return Selection(
            reader=self.reader,
            reader_options=self.reader_options,
            drive=self.drive,
            split=self.split,
            start_s=self.start_s,
            end_s=self.end_s,
        )

    @property
    def policy(self) -> Policy:
        """What is done about frames that cannot be used."""
        return Policy(on_bad=self.on_bad, refuse=self.refuse)

    @property
    def look(self) -> HeatLook:
        """How evidence is coloured."""
        return HeatLook(self.colormap, self.opacity)

    @property
    def rate(self) -> Fraction | None:
        """Frames a second for a source that does not say; None for the usual one."""
        return None if self.frame_rate is None else Fraction(str(self.frame_rate)).limit_denominator(1001)

    def changed(self) -> list[str]:
        """Names of the options that differ from their defaults."""
        usual = type(self)()
        return [each.name for each in fields(self) if getattr(self, each.name) != getattr(usual, each.name)]
