"""Camera messages of ROS1: compressed images as JPEG or PNG, raw images by their encoding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data_prep.errors import DataError
from data_prep.geometry import MAX_PIXELS, Reduction, decode_image
from data_prep.readers.ros1_bag import MessageReader, Messages, OpenChunk
from data_prep.readers.ros1_messages import Layout
from data_prep.schema import Image

COMPRESSED, RAW = "sensor_msgs/CompressedImage", "sensor_msgs/Image"
FIELDS: Mapping[str, tuple[str, ...]] = {
    COMPRESSED: ("data",),
    RAW: ("height", "width", "encoding", "step", "data"),
}
"""What is needed of each of the two types of camera message."""

# Encoding to bytes per pixel and OpenCV's conversion to RGB. OpenCV names a Bayer pattern after the
# second row's second and third pixel, ROS after the first two rows' first two.
_ENCODINGS: Mapping[str, tuple[int, int | None]] = {
    "rgb8": (3, None),
    "bgr8": (3, cv2.COLOR_BGR2RGB),
    "8UC3": (3, cv2.COLOR_BGR2RGB),
    "rgba8": (4, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, cv2.COLOR_BGRA2RGB),
    "mono8": (1, cv2.COLOR_GRAY2RGB),
    "8UC1": (1, cv2.COLOR_GRAY2RGB),
    "bayer_rggb8": (1, cv2.COLOR_BayerBG2RGB),
    "bayer_bggr8": (1, cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg8": (1, cv2.COLOR_BayerGR2RGB),
    "bayer_grbg8": (1, cv2.COLOR_BayerGB2RGB),
}


@dataclass(frozen=True, kw_only=True)
class BagPart:
    """The camera messages that one bag adds to a drive. Picklable; holds no image."""

    path: Path
    layout: Layout
    messages: Messages

    def __len__(self) -> int:
        return len(self.messages)


@dataclass(frozen=True, kw_only=True)
class BagImages:
    """A drive's images in one bag or several: an `ImageSource` that opens the bag for every range."""

    parts: tuple[BagPart, ...]
    reduced: Reduction = 1
    _spare: dict[Path, OpenChunk] = field(default_factory=dict, init=False, compare=False, repr=False)
    """The last chunk inflated of each bag; taken out while it is in use, so threads never share one."""

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_spare": {}}

    def read(self, start: int, stop: int) -> Iterator[Image]:
        """Yields the RGB images of frames `start` to `stop` (exclusive) in order.

        Raises:
            DataError: an image's message or its bytes are damaged; the message names bag and frame.
        """
        first = 0
        for part in self.parts:
            rows = range(max(start - first, 0), min(stop - first, len(part)))
            if rows:
                with MessageReader(part.path, spare=self._spare) as reader:
                    for row in rows:
                        name = f"{part.path.name} frame {first + row}"
                        yield decode_message(
                            part.layout, reader.read(part.messages, row), name=name, reduced=self.reduced
                        )
            first += len(part)

    def files(self, start: int, stop: int) -> Iterator[tuple[str, str]]:
        """The bags that hold some of the frames."""
        firsts = accumulate((len(part) for part in self.parts), initial=0)
        for first, part in zip(firsts, self.parts, strict=False):
            if start < first + len(part) and stop > first:
                yield part.path.name, str(part.path)


def decode_message(layout: Layout, data: bytes, *, name: str, reduced: Reduction = 1) -> Image:
    """The RGB image of one camera message.

    Args:
        layout: of one of the types in `FIELDS`.
        data: the serialised message.
        name: what to call the image in an error.
        reduced: shrink while decoding; JPEG only.

    Raises:
        DataError: the message does not fit its definition, or its image cannot be decoded.
    """
    try:
        message = layout.read(data, FIELDS[layout.message_type])
    except DataError as fault:
        raise DataError(f"{name}: {fault}") from None
    if layout.message_type == COMPRESSED:
        return decode_image(message["data"], name=name, reduced=reduced)
    return raw_image(
        message["data"],
        height=message["height"],
        width=message["width"],
        step=message["step"],
        encoding=message["encoding"],
        name=name,
    )


def raw_image(data: bytes, *, height: int, width: int, step: int, encoding: str, name: str) -> Image:
    """The RGB image of the pixels of a `sensor_msgs/Image`.

    Args:
        data: rows of `step` bytes each, of which the first hold the pixels.
        height: rows.
        width: pixels in a row.
        step: bytes in a row, padding included.
        encoding: `rgb8`, `bgr8`, `rgba8`, `bgra8`, `mono8`, `8UC1`, `8UC3` or `bayer_*8`.
        name: what to call the image in an error.

    Raises:
        DataError: the encoding is not of 8 bits, the size is not credible, or bytes are missing.
    """
    if encoding not in _ENCODINGS:
        raise DataError(
            f"{name}: raw image of encoding {encoding[:30]!r}, expected one of {', '.join(_ENCODINGS)}; "
            "convert the topic when recording"
        )
    size, conversion = _ENCODINGS[encoding]
    if not 0 < height * width <= MAX_PIXELS:
        raise DataError(
            f"{name}: raw image of {width}x{height} pixels, expected 1 to {MAX_PIXELS:,}; drop it"
        )
    if encoding.startswith("bayer") and min(height, width) < 4:
        raise DataError(f"{name}: a Bayer mosaic of {width}x{height} pixels is too small to fill in; drop it")
    if step < width * size or len(data) < step * height:
        raise DataError(
            f"{name}: raw image of {width}x{height} {encoding} in rows of {step} bytes has {len(data)} bytes, "
            f"expected {max(step, width * size) * height}; the bag is damaged"
        )
    rows = np.frombuffer(data, np.uint8, count=step * height).reshape(height, step)[:, : width * size]
    pixels = np.ascontiguousarray(rows.reshape(height, width, size) if size > 1 else rows)
    return pixels if conversion is None else cv2.cvtColor(pixels, conversion)
