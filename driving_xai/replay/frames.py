"""The frames of a replay's source: one instant, the part that is played, the source as a whole.

Frames are RGB and come one at a time, so memory does not grow with the drive. Controls are on the
frames' clock, as prep puts them into shards: the steering wheel in rad, positive to the left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64

from data_prep.decoding import Dropped
from data_prep.policy import Policy
from data_prep.schema import Frame, Image, Vehicle
from data_prep.shards.manifest import Manifest
from data_prep.video import FASTEST_HZ, SLOWEST_HZ
from driving_xai.errors import DataError

Pictures = Callable[[Dropped], Iterator[tuple[int, Image]]]
"""Reads the frames that are played: each one's place among them, and its image. Those that cannot be read are noted."""


class SourceFrame(NamedTuple):
    """One instant of a source."""

    frame: Frame
    steering_wheel_rad_smoothed: float
    """What the label was made of; NaN where unknown."""
    speed_mps_smoothed: float
    segment: int
    """Number of the unbroken run of camera frames."""
    begins: bool
    """Whether frames are missing before this one: what a model remembers ends there."""
    split: str
    """train, val, test or gap, where the model's shards say; otherwise empty."""
    time_s: float = 0.0
    """Since the drive's first frame; of unrelated images, since the first one is shown."""
    drive: str = ""
    camera: str = ""
    key: str = ""
    """Name of a labelled image; empty for frames of a drive."""
    labels: Float64[np.ndarray, " K"] | None = None
    """0 or 1 for each of the model's outputs, NaN where unknown; None where the source has none."""
    shown_at_ns: int = 0
    """In the replay's video; see `FrameSource.shown_ns`."""
    shown_for_ns: int = 0


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which part of a source is played.

    Raises:
        DataError: it ends before it starts.
    """

    reader: str | None = None
    """Forces a reader's name; None recognises the source from its files."""
    reader_options: Mapping[str, Any] = field(default_factory=dict)
    drive: str | None = None
    """Needed where the source holds several; of labelled images, their group."""
    split: Literal["all", "train", "val", "test"] = "all"
    """Of shards: as the model saw them, where they are those it was trained on."""
    start_s: float = 0.0
    """In the drive's own time."""
    end_s: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.start_s < (math.inf if self.end_s is None else self.end_s):
            raise DataError(f"got start {self.start_s} s, end {self.end_s} s; expected 0 <= start < end")


@dataclass(frozen=True, kw_only=True)
class FrameSource:
    """The frames that are played, in order; read as often as needed."""

    name: str
    """Base name of what was opened."""
    kind: str
    """`shards`, a reader's name, or `image-folder`."""
    reader: str
    """What read the recording, also where shards were made of it."""
    camera: str
    vehicle: Vehicle
    cropped: bool
    """Whether frames are cut to a model's geometry already, as shards hold them, or the camera's."""
    follow: bool
    """Whether frames follow one another in time; labelled images do not."""
    shards: Manifest | None
    frame_rate: Fraction
    """Frames a second: known, or the median of the camera's times."""
    drives: np.ndarray
    """Name of each frame's drive; of labelled images, their group."""
    index: Int64[np.ndarray, " T"]
    """Of each frame in the source drive, or of the row in the image shards."""
    time_ns: Int64[np.ndarray, " T"]
    time_s: Float64[np.ndarray, " T"]
    """Since the drive's first frame, also where it is not played: the time that is shown."""
    shown_ns: Int64[np.ndarray, " edges"]
    """When each frame appears in the replay's video, and when the last one ends: the source's own time, without the
    holes of a recording."""
    segment: Int32[np.ndarray, " T"]
    begins: Bool[np.ndarray, " T"]
    split: np.ndarray
    controls: Mapping[str, Float64[np.ndarray, " T"]]
    """By the column names of shards; NaN where unknown."""
    lead_s: float
    """How long after a frame its controls are taken: what the driver does then, the model says now."""
    pictures: Pictures
    policy: Policy = field(default_factory=Policy)
    """What is done about frames that cannot be read."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Reason to how many frames of the source it had cost before any was read."""
    keys: np.ndarray | None = None
    """Names of labelled images."""
    labels: Float64[np.ndarray, "T K"] | None = None
    """Of labelled images."""

    def __len__(self) -> int:
        return len(self.index)

    @property
    def drive(self) -> str:
        """Name of the drive; of labelled images, the first one's group."""
        return str(self.drives[0])

    @property
    def labelled(self) -> bool:
        """Whether the steering is known anywhere."""
        return bool(np.isfinite(self.controls["steering_wheel_rad"]).any())

    @property
    def speed_known(self) -> bool:
        return bool(np.isfinite(self.controls["speed_mps"]).any())

    @property
    def constant(self) -> bool:
        """Whether every frame is shown for one period of the frame rate."""
        return bool(np.array_equal(self.shown_ns, regular_times(self.frame_rate, len(self))))

    def __iter__(self) -> Iterator[SourceFrame]:
        """The frames, as `read` yields them."""
        return self.read(Dropped(self.policy))

    def read(self, dropped: Dropped) -> Iterator[SourceFrame]:
        """Yields the frames that can be read; the one after a frame that cannot begins a run.

        Args:
            dropped: takes the frames that cannot be read.

        Raises:
            DataError: the policy refuses a frame that cannot be read, none can be read, or one has another size than
                the first.
        """
        size, expected = None, 0
        for at, image in self.pictures(dropped):
            size = size or image.shape
            if image.shape != size:
                raise DataError(
                    f"frame {self.index[at]} of {self.drives[at]} is {image.shape[1]}x{image.shape[0]}, the "
                    f"first {size[1]}x{size[0]}; a replay needs one size"
                )
            yield self._frame(at, image, begins=bool(self.begins[at]) or at != expected)
            expected = at + 1

    def _frame(self, at: int, image: Image, *, begins: bool) -> SourceFrame:
        value = {name: float(column[at]) for name, column in self.controls.items()}
        return SourceFrame(
            frame=Frame(
                index=int(self.index[at]),
                time_ns=int(self.time_ns[at]),
                image=image,
                steering_wheel_rad=value["steering_wheel_rad"],
                speed_mps=value["speed_mps"],
            ),
            steering_wheel_rad_smoothed=value["steering_wheel_rad_smoothed"],
            speed_mps_smoothed=value["speed_mps_smoothed"],
            segment=int(self.segment[at]),
            begins=begins,
            split=str(self.split[at]),
            time_s=float(self.time_s[at]),
            drive=str(self.drives[at]),
            camera=self.camera,
            key="" if self.keys is None else str(self.keys[at]),
            labels=None if self.labels is None else self.labels[at],
            shown_at_ns=int(self.shown_ns[at]),
            shown_for_ns=int(self.shown_ns[at + 1] - self.shown_ns[at]),
        )


def shown_times(duration_ns: Int64[np.ndarray, " T"], frame_rate: Fraction) -> Int64[np.ndarray, " edges"]:
    """When each frame appears in a video, and when the last one ends.

    Frames that all lie within half a period of a constant rate have that rate: stamps are rounded, and clocks of
    cameras jitter.

    Args:
        duration_ns: how long each is shown.
        frame_rate: the usual one.

    Example:
        >>> shown_times(np.array([51, 49, 50]) * 10**6, Fraction(20)).tolist()
        [0, 50000000, 100000000, 150000000]
        >>> shown_times(np.array([50, 100, 50]) * 10**6, Fraction(20)).tolist()
        [0, 50000000, 150000000, 200000000]
    """
    own = np.concatenate([[0], np.cumsum(duration_ns)]).astype(np.int64)
    regular = regular_times(frame_rate, len(duration_ns))
    return regular if np.abs(own - regular).max() < 10**9 / (2 * frame_rate) else own


def regular_times(frame_rate: Fraction, count: int) -> Int64[np.ndarray, " edges"]:
    """When each of `count` frames of a constant rate appears, and when the last one ends.

    Example:
        >>> regular_times(Fraction(30000, 1001), 3).tolist()
        [0, 33366667, 66733333, 100100000]
    """
    # One by one and exactly, so that an odd rate does not drift.
    over, under = frame_rate.numerator, frame_rate.denominator
    return np.array(
        [(2 * at * 10**9 * under + over) // (2 * over) for at in range(count + 1)], dtype=np.int64
    )


def measured_rate(time_ns: Int64[np.ndarray, " N"]) -> Fraction:
    """Frames a second: one over the median time between frames, at least two.

    Raises:
        DataError: no video has such a rate.

    Example:
        >>> measured_rate(np.arange(10) * 33_366_667)
        Fraction(30000, 1001)
    """
    apart_ns = int(np.median(np.diff(time_ns)))
    if not 10**9 / FASTEST_HZ <= apart_ns <= 10**9 / SLOWEST_HZ:
        raise DataError(
            f"frames are {apart_ns / 1e9:g} s apart; a replay needs {SLOWEST_HZ:g} to {FASTEST_HZ:g} a second"
        )
    return Fraction(10**9, apart_ns).limit_denominator(1001)
