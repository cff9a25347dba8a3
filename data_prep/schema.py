"""What a reader hands over: drives or image sets, their frames, controls and vehicle.

Units are in the names.

One sign convention holds behind the readers: a positive steering angle turns left
(counter-clockwise), and angles are of the steering wheel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8

Image = UInt8[np.ndarray, "H W 3"]
"""One RGB image."""


@dataclass(frozen=True, kw_only=True)
class Vehicle:
    """The constants that turn a steering-wheel angle into a curvature (eq. 3).

    Source: Tashiro and Awano 2023, eq. 3.
    """

    name: str
    wheelbase_m: float
    steering_ratio: float
    """Steering-wheel angle over road-wheel angle, K_s."""
    slip_s2_per_m2: float
    """K_slip, the understeer term's factor of the squared speed."""


VEHICLES: Mapping[str, Vehicle] = {
    vehicle.name: vehicle
    for vehicle in (
        # The Udacity car; ratio and wheelbase from the public dbw_mkz_ros code, slip from comma.ai's formula.
        Vehicle(name="lincoln-mkz", wheelbase_m=2.85, steering_ratio=14.8, slip_s2_per_m2=0.0014),
        # comma.ai's public steering formula.
        Vehicle(name="acura-ilx", wheelbase_m=2.67, steering_ratio=15.3, slip_s2_per_m2=0.0014),
        # The Udacity simulator logs the road wheel, so its ratio is one; its vehicle does not slip.
        Vehicle(name="udacity-simulator", wheelbase_m=2.85, steering_ratio=1.0, slip_s2_per_m2=0.0),
    )
}


@dataclass(frozen=True, kw_only=True)
class Signal:
    """A quantity sampled at its own times, strictly increasing after synchronisation, raw before."""

    time_ns: Int64[np.ndarray, " N"]
    value: Float64[np.ndarray, " N"]


class ImageSource(Protocol):
    """Random access to a drive's images by range; picklable, so that any worker can read its part."""

    def read(self, start: int, stop: int) -> Iterator[Image]:
        """Yields the RGB images of frames `start` to `stop` (exclusive) in order.

        Raises:
            DataError: an image is missing or cannot be decoded; the message names the file.
        """
        ...

    def files(self, start: int, stop: int) -> Iterator[tuple[str, str]]:
        """The files that those frames are read from: the name of each in the source, and where it lies."""
        ...


class MaskSource(Protocol):
    """As `ImageSource`, for masks of the pixels that cause the label, on the image's own grid."""

    def read(self, start: int, stop: int) -> Iterator[Bool[np.ndarray, "H W"]]: ...


@dataclass(frozen=True, kw_only=True)
class Drive:
    """One uninterrupted recording of one camera, with the controls in their own time."""

    name: str
    """Safe as a file name: letters, digits, `-`, `_`, `.`."""
    source: str
    """The reader's name, as on the command line."""
    camera: str
    recording: str | None = None
    """What the cameras of one recording share, so that a split keeps them together; None: its name."""
    vehicle: Vehicle
    time_ns: Int64[np.ndarray, " T"]
    """Camera time of each frame, as recorded: it may still hold gaps or steps backwards."""
    images: ImageSource
    steering_wheel: Signal | None = None
    """rad, positive to the left; None where the recording has no steering."""
    speed: Signal | None = None
    """m/s; None where the recording has no speed."""
    causes: MaskSource | None = None
    """Which pixels cause the label, known for synthetic drives only."""
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Rows of the recording that are no frames: reason (`missing_image`, ...) to what names them."""
    sorted_rows: int = 0
    """Rows of a table that the reader had to put into the order of their times."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Where it came from: file names, sizes, licence. JSON values only, no absolute paths."""

    def __len__(self) -> int:
        return len(self.time_ns)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One instant of a drive as a player needs it."""

    index: int
    time_ns: int
    image: Image
    steering_wheel_rad: float
    """Measured, NaN where unknown."""
    speed_mps: float
    """Measured, NaN where unknown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageItem:
    """One labelled image of an image set."""

    path: Path | None
    """The image file, already resolved inside the source folder; None where the set renders its images."""
    key: str
    """Unique in its set, stable across machines: the file's name or id in the data set."""
    labels: tuple[int, ...]
    """0 or 1 for each name in `ImageSet.label_names`."""
    split: str
    """`train`, `val` or `test`, as the data set's authors divided it."""
    group: str
    """What must not be divided between splits, for example the video the image was taken from."""


class RenderedImages(Protocol):
    """Makes the images of a set by their position; picklable, so that any worker can make its part."""

    def read(self, position: int) -> tuple[Image, UInt8[np.ndarray, "H W"]]:
        """An RGB image, and which labels each of its pixels causes: bit k for label k."""
        ...


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Labelled single images: what readers of action and class data return."""

    name: str
    """Safe as a file name: letters, digits, `-`, `_`, `.`."""
    source: str
    """The reader's name, as on the command line."""
    label_names: tuple[str, ...]
    items: list[ImageItem]
    rendered: RenderedImages | None = None
    """Where images come from that are no files."""
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Rows of the source that are no images: reason (`missing_image`, ...) to what names them."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Where it came from. JSON values only, no absolute paths."""

    def __len__(self) -> int:
        return len(self.items)
