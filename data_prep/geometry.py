"""Decode, crop, resize and encode. Images are RGB uint8 [H, W, 3]; a mask is bool [H, W]."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Bool, UInt8, UInt16

from data_prep.errors import DataError
from data_prep.schema import Image

MAX_PIXELS = 100_000_000
"""An image whose header claims more is refused before anything is allocated for it."""
MAX_IMAGE_BYTES = 256 * 2**20
"""A larger image file is refused unread."""

Reduction = Literal[1, 2, 4, 8]
"""The JPEG decoder's own shrinking: 2 halves each side while decoding, faster and not exact."""

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"
_END_OF_IMAGE = b"\xff\xd9"
_START_OF_SCAN = 0xDA
_REDUCED_FLAGS: dict[int, int] = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
# From OpenCV 4.11 on the decoder itself writes RGB, which saves a pass over the image.
_RGB_FLAG: int | None = getattr(cv2, "IMREAD_COLOR_RGB", None)


class MissingImageError(DataError):
    """An image that a recording names and that is not there."""


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """A crop in fractions of the source image, then a resize.

    The crop comes first, so that sky and bonnet never reach the model. Fractions keep one setting
    valid for every resolution of the same camera.

    Example:
        >>> Geometry(crop_top=1 / 3).region(240, 320)
        (80, 240, 0, 320)
    """

    crop_top: float = 0.0
    crop_bottom: float = 0.0
    crop_left: float = 0.0
    crop_right: float = 0.0
    height: int = 80
    width: int = 160

    def __post_init__(self) -> None:
        crops = (self.crop_top, self.crop_bottom, self.crop_left, self.crop_right)
        if not all(0.0 <= crop < 1.0 for crop in crops):
            raise DataError(f"crops are {crops}; each is a fraction of the image, 0 up to but not 1")
        if self.crop_top + self.crop_bottom >= 1.0 or self.crop_left + self.crop_right >= 1.0:
            raise DataError(f"crops {crops} leave nothing of the image; opposite sides must sum below 1")
        if self.height < 1 or self.width < 1:
            raise DataError(f"output size is {self.height}x{self.width}; both sides must be 1 or more")
        if self.height * self.width > MAX_PIXELS:
            raise DataError(
                f"output size is {self.height}x{self.width}; expected at most {MAX_PIXELS:,} pixels"
            )

    def region(self, height: int, width: int) -> tuple[int, int, int, int]:
        """The part of an image that is kept: (top, bottom, left, right) in source pixels."""
        top, bottom = round(self.crop_top * height), height - round(self.crop_bottom * height)
        left, right = round(self.crop_left * width), width - round(self.crop_right * width)
        if bottom <= top or right <= left:
            raise DataError(f"the crop leaves nothing of a {height}x{width} image; crop less")
        return top, bottom, left, right

    def apply(self, image: Image) -> UInt8[np.ndarray, "h w 3"]:
        """Crops and resizes: by area where the image shrinks, linearly where it grows."""
        top, bottom, left, right = self.region(*image.shape[:2])
        kept = image[top:bottom, left:right]
        if kept.shape[:2] == (self.height, self.width):
            return np.ascontiguousarray(kept)
        if kept.shape[0] < self.height or kept.shape[1] < self.width:
            return cv2.resize(kept, (self.width, self.height), interpolation=cv2.INTER_LINEAR)
        return _shrink(kept, self.height, self.width)

    def apply_mask(self, mask: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "h w"]:
        """The mask on the output grid: a pixel is set where at least half of its source is."""
        top, bottom, left, right = self.region(*mask.shape)
        kept = mask[top:bottom, left:right].astype(np.float32)
        shrinks = kept.shape[0] >= self.height and kept.shape[1] >= self.width
        how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        return cv2.resize(kept, (self.width, self.height), interpolation=how) >= 0.5


def _shrink(image: Image, height: int, width: int) -> Image:
    """`cv2.resize` by area, to the last bit, in half to two thirds of its time where factors are whole.

    OpenCV adds up each block pixel by pixel; adding whole rows first uses the processor's vectors.
    """
    down, rest_down = divmod(image.shape[0], height)
    across, rest_across = divmod(image.shape[1], width)
    # Halving has a fast path of its own with another rounding; above 256 pixels 16 bits overflow.
    if rest_down or rest_across or not 4 < down * across <= 256:
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    rows = np.ascontiguousarray(image).reshape(height, down, -1)
    total = rows[:, 0].astype(np.uint16)
    for row in range(1, down):
        total += rows[:, row]
    if across in (4, 8, 16):
        sums = _sums_of_neighbours(total, across).reshape(height, width, 4)
        return cv2.cvtColor(cv2.convertScaleAbs(sums, alpha=1 / (down * across)), cv2.COLOR_RGBA2RGB)
    # The mean of `across` values that many times too large is their sum, exactly.
    total *= np.uint16(across)
    sums = cv2.resize(total.reshape(height, -1, 3), (width, height), interpolation=cv2.INTER_AREA)
    return cv2.convertScaleAbs(sums, alpha=1 / (down * across))


def _sums_of_neighbours(rows: UInt16[np.ndarray, "h n"], across: int) -> UInt16[np.ndarray, " m"]:
    """The sum of every `across` neighbouring pixels, four values each: red, green, blue, and one that is noise.

    Sums of two, of four, and so on are taken at every place, in whole vectors; one place in `across` is kept.
    """
    flat, span = rows.reshape(-1), 3
    while span < 3 * across:
        doubled = np.empty_like(flat)
        np.add(flat[:-span], flat[span:], out=doubled[:-span])
        flat, span = doubled, 2 * span
    # Four values are eight bytes, and so are copied as one number.
    return np.ascontiguousarray(flat.view(np.uint64)[:: 3 * across // 4]).view(np.uint16)


def encode_jpeg(image: Image, *, quality: int) -> bytes:
    """The bytes of a JPEG file.

    Args:
        image: RGB.
        quality: 1 to 100.

    Example:
        >>> decode_image(encode_jpeg(np.full((8, 8, 3), 77, np.uint8), quality=95), name="grey")[0, 0].tolist()
        [77, 77, 77]
    """
    return _encode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])


def encode_png(image: UInt8[np.ndarray, "H W *channels"]) -> bytes:
    """The bytes of a PNG file: of RGB, or of one grey channel."""
    return _encode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 6])


def _encode(suffix: str, image: UInt8[np.ndarray, "H W *channels"], parameters: list[int]) -> bytes:
    blue_first = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    written, data = cv2.imencode(suffix, blue_first, parameters)
    assert written
    return data.tobytes()


def decode_image(data: bytes, *, name: str, reduced: Reduction = 1) -> Image:
    """Decodes a whole JPEG or PNG file.

    Args:
        data: the file's bytes.
        name: what to call the image in an error.
        reduced: shrink while decoding; JPEG only, ignored for PNG.

    Raises:
        DataError: not an image, cut short, damaged, or larger than `MAX_PIXELS`.
    """
    if data.startswith(_JPEG):
        return decode_jpeg(data, name=name, reduced=reduced)
    if not data.startswith(_PNG):
        raise DataError(
            f"{name}: {len(data)} bytes that are neither JPEG nor PNG; remove or replace the file"
        )
    if len(data) < 24:
        raise DataError(f"{name}: a PNG cut short; copy the file again")
    _refuse_oversized(*_png_size(data), name)
    return _decode(data, cv2.IMREAD_COLOR, name)


def decode_jpeg(data: bytes, *, name: str = "JPEG", reduced: Reduction = 1) -> Image:
    """Decodes a JPEG to RGB. Exact at `reduced=1`.

    Raises:
        DataError: not a JPEG, cut short, damaged, or larger than `MAX_PIXELS`.
    """
    _refuse_oversized(*jpeg_size(data, name=name), name)
    # Some OpenCV versions fill the missing part of a cut JPEG with grey instead of failing.
    if _is_cut(data):
        raise DataError(f"{name}: a JPEG cut short after {len(data)} bytes; copy the file again")
    return _decode(data, _REDUCED_FLAGS[reduced], name)


def image_size(data: bytes, *, name: str) -> tuple[int, int]:
    """(height, width) from the header of a JPEG or PNG file, without decoding.

    Raises:
        DataError: neither a JPEG nor a PNG header is found, or it claims over `MAX_PIXELS`.
    """
    is_png = data.startswith(_PNG) and len(data) >= 24
    height, width = _png_size(data) if is_png else jpeg_size(data, name=name)
    _refuse_oversized(height, width, name)
    return height, width


def _png_size(data: bytes) -> tuple[int, int]:
    return int.from_bytes(data[20:24]), int.from_bytes(data[16:20])


def jpeg_size(data: bytes, *, name: str = "JPEG") -> tuple[int, int]:
    """(height, width) from a JPEG's header, without decoding.

    Raises:
        DataError: no JPEG header is found.
    """
    for marker, start, length in _segments(data):
        # Start of frame, C0 to CF, is the size; C4, C8 and CC are other tables in that range.
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and length >= 7:
            height = int.from_bytes(data[start + 3 : start + 5])
            return height, int.from_bytes(data[start + 5 : start + 7])
    raise DataError(f"{name}: {len(data)} bytes without a JPEG header; remove or replace the file")


def read_image(path: Path, *, reduced: Reduction = 1) -> Image:
    """Reads and decodes one JPEG or PNG file.

    Raises:
        MissingImageError: there is no such file.
        DataError: it cannot be decoded.
    """
    return decode_image(read_bytes(path), name=path.name, reduced=reduced)


def read_bytes(path: Path | str) -> bytes:
    """An image file's bytes.

    Raises:
        MissingImageError: there is no such file.
        DataError: it cannot be read, or is over `MAX_IMAGE_BYTES`.
    """
    try:
        # Three system calls: a file object costs as much again as reading, on every frame.
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(file).st_size
            if size > MAX_IMAGE_BYTES:
                raise DataError(
                    f"{Path(path).name}: over the {MAX_IMAGE_BYTES:,} bytes that are read; remove it"
                )
            data = os.read(file, size)
            while len(data) < size and (more := os.read(file, size - len(data))):
                data += more  # some network file systems give less than asked for
        finally:
            os.close(file)
    except FileNotFoundError:
        raise MissingImageError(f"{Path(path).name}: no such image; restore it or drop its row") from None
    except OSError as error:
        raise DataError(f"{Path(path).name}: cannot be read ({error.strerror}); check the file") from None
    return data


@dataclass(frozen=True, kw_only=True)
class ImageFiles:
    """A drive's images as one file per frame: an `ImageSource`.

    The pipeline asks several threads for neighbouring ranges; OpenCV decodes without the
    interpreter's lock, so a source needs no threads of its own.
    """

    folder: Path
    names: tuple[str, ...]
    """Paths below `folder`, one per frame, already checked to stay inside it."""
    reduced: Reduction = 1

    def read(self, start: int, stop: int) -> Iterator[Image]:
        """Yields the RGB images of frames `start` to `stop` (exclusive) in order.

        Raises:
            DataError: an image is missing or cannot be decoded; the message names the file.
        """
        root = str(self.folder)
        for name in self.names[start:stop]:
            # Path arithmetic on every frame would cost a tenth of its decoding.
            yield decode_image(read_bytes(f"{root}/{name}"), name=name, reduced=self.reduced)

    def files(self, start: int, stop: int) -> Iterator[tuple[str, str]]:
        """The images themselves."""
        root = str(self.folder)
        return ((name, f"{root}/{name}") for name in self.names[start:stop])


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start of its length field, length) of each JPEG header segment up to the start of the pixels."""
    at = 2
    while data.startswith(_JPEG) and at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # padding before a marker
            at += 1
            continue
        length = int.from_bytes(data[at + 2 : at + 4])
        if length < 2 or at + 2 + length > len(data):
            return
        yield marker, at + 2, length
        if marker == _START_OF_SCAN:
            return
        at += 2 + length


def _is_cut(data: bytes) -> bool:
    """Whether a JPEG's pixels have no end: an end of a thumbnail does not count, nor what lies behind the end.

    Between the start of a scan and the end of the image a byte FF of the pixels is always followed by 00.
    """
    start = next((start for marker, start, _ in _segments(data) if marker == _START_OF_SCAN), None)
    return start is None or data.rfind(_END_OF_IMAGE, start) < 0


def _refuse_oversized(height: int, width: int, name: str) -> None:
    if height * width > MAX_PIXELS:
        raise DataError(
            f"{name}: its header claims {width}x{height} pixels, over the {MAX_PIXELS:,} that are read; remove it"
        )


def _decode(data: bytes, flag: int, name: str) -> Image:
    if _RGB_FLAG is not None:
        # The bit of IMREAD_COLOR means BGR, the bits of the reduction stay.
        flag = (flag & ~cv2.IMREAD_COLOR) | _RGB_FLAG
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error:
        image = None
    if image is None:
        raise DataError(f"{name}: {len(data)} bytes that cannot be decoded; copy the file again")
    return image if _RGB_FLAG is not None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)
