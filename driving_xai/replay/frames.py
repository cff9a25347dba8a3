"""The frames of a replay's source: one instant, the part that is played, the source as a whole.

Frames are RGB and come one at a time, so memory does not grow with the drive. Controls are on the
frames' clock, as prep puts them into shards: the steering wheel in rad, positive to the left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64

from data_prep.schema import Frame, Image, Vehicle
from data_prep.shards.manifest import Manifest
from driving_xai.errors import DataError

SLOWEST_HZ, FASTEST_HZ = 0.01, 1000.0


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


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which part of a source is played.

    Raises:
        DataError: it ends before it starts.
    """

    reader: str | None = None
    """Forces a reader's name; None recognises the source from its files."""
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
    """The frames that are played, in order; iterate as often as needed."""

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
    segment: Int32[np.ndarray, " T"]
    begins: Bool[np.ndarray, " T"]
    split: np.ndarray
    controls: Mapping[str, Float64[np.ndarray, " T"]]
    """By the column names of shards; NaN where unknown."""
    lead_s: float
    """How long after a frame its controls are taken: what the driver does then, the model says now."""
    pictures: Callable[[], Iterator[Image]]
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

    def __iter__(self) -> Iterator[SourceFrame]:
        """Yields the frames.

        Raises:
            DataError: an image cannot be read, or has another size than the first.
        """
        size = None
        for at, image in enumerate(self.pictures()):
            size = size or image.shape
            if image.shape != size:
                raise DataError(
                    f"frame {self.index[at]} of {self.drives[at]} is {image.shape[1]}x{image.shape[0]}, the "
                    f"first {size[1]}x{size[0]}; a replay needs one size"
                )
            yield self._frame(at, image)

    def _frame(self, at: int, image: Image) -> SourceFrame:
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
            begins=bool(self.begins[at]),
            split=str(self.split[at]),
            time_s=float(self.time_s[at]),
            drive=str(self.drives[at]),
            camera=self.camera,
            key="" if self.keys is None else str(self.keys[at]),
            labels=None if self.labels is None else self.labels[at],
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
