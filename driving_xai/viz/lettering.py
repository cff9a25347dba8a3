"""Text and layers drawn into RGB pictures in place: anti-aliased, legible at 11 pixels, cached.

OpenCV's stroke fonts break up below 20 pixels, so the letters are Pillow's built-in typeface.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple, cast

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont

from data_prep.schema import Image

Colour = tuple[int, int, int]
"""RGB, 0 to 255."""
MUTED: Colour = (170, 176, 184)
PANEL: Colour = (12, 14, 18)
PANEL_OPACITY = 0.66
Anchor = Literal["left", "middle", "right"]

_PROBE_PX, _NO_LETTER = 20, "\uffff"


class _Mask(NamedTuple):
    coverage: UInt8[np.ndarray, "h w"]
    advance: int


class Lettering:
    """One typeface at one size.

    Texts are put together from letters that were rasterised once: numbers change with every frame.

    Example:
        >>> picture = np.zeros((40, 200, 3), dtype=np.uint8)
        >>> Lettering(14).draw(picture, "12.5°", (10, 30), (255, 255, 255))
        >>> bool(picture.any())
        True
    """

    def __init__(self, size_px: int) -> None:
        self.size_px = size_px
        self._font = cast(ImageFont.FreeTypeFont, ImageFont.load_default(size_px))
        self._ascent, descent = self._font.getmetrics()
        self._height = self._ascent + descent
        self._letter = lru_cache(maxsize=512)(self._rasterise)
        self._mask = lru_cache(maxsize=512)(self._assemble)

    def width(self, text: str) -> int:
        """The advance of a text in pixels."""
        return self._mask(text).advance

    def draw(
        self, picture: Image, text: str, at: tuple[int, int], colour: Colour, anchor: Anchor = "left"
    ) -> None:
        """Draws one line of text; what lies outside the picture is cut off.

        Args:
            at: (x, y) of the baseline's left end, middle or right end, as `anchor` says.
        """
        mask = self._mask(text)
        height, width = mask.coverage.shape
        shift = {"left": 0, "middle": mask.advance // 2, "right": mask.advance}[anchor]
        left, top = at[0] - shift, at[1] - self._ascent
        x0, y0 = max(left, 0), max(top, 0)
        x1, y1 = min(left + width, picture.shape[1]), min(top + height, picture.shape[0])
        if x1 <= x0 or y1 <= y0:
            return
        part = picture[y0:y1, x0:x1]
        cover = mask.coverage[y0 - top : y1 - top, x0 - left : x1 - left, None].astype(np.int32)
        part += ((np.array(colour, dtype=np.int32) - part) * cover // 255).astype(np.uint8)

    def _assemble(self, text: str) -> _Mask:
        letters = [self._letter(letter) for letter in text]
        advance = sum(letter.advance for letter in letters)
        coverage = np.zeros((self._height, advance + self.size_px), dtype=np.uint8)
        x = 0
        for letter in letters:
            part = coverage[:, x : x + letter.coverage.shape[1]]
            np.maximum(part, letter.coverage, out=part)
            x += letter.advance
        return _Mask(coverage, advance)

    def _rasterise(self, letter: str) -> _Mask:
        font = self._font if _is_drawn(letter) else _substitute(self.size_px)
        advance = round(font.getlength(letter))
        if letter == " ":  # The typeface's own is too narrow to tell words apart when small.
            advance = max(advance, round(0.36 * self.size_px))
        # Room for a letter that leans out of its advance, as much as `_assemble` leaves at the end.
        canvas = PillowImage.new("L", (advance + self.size_px, self._height))
        ImageDraw.Draw(canvas).text((0, self._ascent), letter, fill=255, font=font, anchor="ls")
        return _Mask(np.asarray(canvas), advance)


@lru_cache(maxsize=1024)
def _is_drawn(letter: str) -> bool:
    """Whether the built-in typeface has a letter; it draws all that it lacks as one box."""
    font = ImageFont.load_default(_PROBE_PX)
    return letter.isspace() or bytes(font.getmask(letter)) != bytes(font.getmask(_NO_LETTER))


@lru_cache(maxsize=16)
def _substitute(size_px: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings: minus signs, Greek, Cyrillic, symbols; a box for what it lacks too."""
    from matplotlib import get_data_path

    return ImageFont.truetype(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size_px)


def plain(text: str) -> str:
    """A text that people wrote, as one line without what no typeface draws: control and joining characters.

    Example:
        >>> plain("  before\\n<b>night</b>  ")
        'before <b>night</b>'
    """
    composed = unicodedata.normalize("NFC", text)
    kept = (each if unicodedata.category(each)[0] not in "CM" else " " for each in composed)
    return " ".join("".join(kept).split())


def fitted(text: str, size_px: int, width_px: int, *, least_px: int) -> tuple[Lettering, str]:
    """A typeface in which a text has room, smaller where it must be; what is still too long is cut.

    Args:
        text: one line.
        size_px: of the letters where there is room.
        width_px: of the line.
        least_px: of letters that can be read.

    Example:
        >>> letters, text = fitted("grad-cam", 20, 60, least_px=12)
        >>> letters.size_px < 20, text
        (True, 'grad-cam')
        >>> fitted("grad-cam, of another model", 20, 60, least_px=12)[1]
        'grad-ca..'
    """
    wide = lettering(size_px).width(text)
    size = size_px if wide <= width_px else max(least_px, int(size_px * width_px / wide))
    letters = lettering(size)
    if letters.width(text) <= width_px:
        return letters, text
    while text and letters.width(f"{text}..") > width_px:
        text = text[:-1]
    return letters, f"{text.rstrip()}.."


def divided(left: str, right: str, size_px: int, width_px: int) -> tuple[tuple[Lettering, str], ...]:
    """Two texts in one line, as `fitted`: each has what it needs where both have room, else its share."""
    letters = lettering(size_px)
    if letters.width(left) + letters.width(right) + 2 * size_px <= width_px:
        return (letters, left), (letters, right)
    least = max(1, round(0.8 * size_px))
    second = fitted(right, size_px, width_px // 2 - size_px, least_px=least)
    room = width_px - second[0].width(second[1]) - 2 * size_px
    return fitted(left, size_px, room, least_px=least), second


def wrapped(text: str, letters: Lettering, width_px: int) -> list[str]:
    """The lines of a text of a width; a longer word has a line of its own and is cut."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if letters.width(longer) <= width_px:
            lines[-1] = longer
        else:
            lines.append(fitted(word, letters.size_px, width_px, least_px=letters.size_px)[1])
    return [line for line in lines if line]


@lru_cache(maxsize=64)
def lettering(size_px: int) -> Lettering:
    """The typeface at a size, shared by all that draw with it."""
    return Lettering(size_px)


class Layer(NamedTuple):
    """A drawing with transparency, made once and laid over many pictures."""

    colour: Image
    """Already multiplied by its opacity."""
    passes: Image
    """How much of the picture beneath shows through, 0 to 255."""

    @classmethod
    def empty(cls, height: int, width: int) -> Layer:
        """Memory for a drawing, to be written over."""
        return cls(*(np.empty((height, width, 3), dtype=np.uint8) for _ in cls._fields))

    @classmethod
    def record(cls, height: int, width: int, draw: Callable[[Image], None]) -> Layer:
        """Records what a function draws, whatever it blends.

        Drawn once over black and once over white, the difference is what shows through.
        """
        black = np.zeros((height, width, 3), dtype=np.uint8)
        white = np.full_like(black, 255)
        draw(black)
        draw(white)
        return cls(black, cv2.subtract(white, black))

    def lay(self, picture: Image, left: int, top: int) -> None:
        """Lays the drawing over a picture that has room for it."""
        height, width = self.colour.shape[:2]
        part = picture[top : top + height, left : left + width]
        cv2.multiply(part, self.passes, dst=part, scale=1 / 255)
        cv2.add(part, self.colour, dst=part)


def shade(
    picture: Image, box: tuple[int, int, int, int], colour: Colour, opacity: float, radius: int
) -> None:
    """Blends a rounded rectangle (left, top, right, bottom) of one colour into a picture."""
    left, top, right, bottom = box
    part = picture[top:bottom, left:right]
    mask = _rounded(*part.shape[:2], radius).astype(np.float32)[..., None] * (opacity / 255)
    blended = part + (np.array(colour, dtype=np.float32) - part) * mask
    part[:] = np.rint(blended).astype(np.uint8)


@lru_cache(maxsize=16)
def _rounded(height: int, width: int, radius: int) -> UInt8[np.ndarray, "h w"]:
    scale = 4  # Drawn large and shrunk: OpenCV's filled shapes have hard edges.
    mask = np.zeros((height * scale, width * scale), dtype=np.uint8)
    r = radius * scale
    cv2.rectangle(mask, (r, 0), (width * scale - r - 1, height * scale - 1), 255, -1)
    cv2.rectangle(mask, (0, r), (width * scale - 1, height * scale - r - 1), 255, -1)
    for x in (r, width * scale - r - 1):
        for y in (r, height * scale - r - 1):
            cv2.circle(mask, (x, y), r, 255, -1)
    return cv2.resize(mask, (width, height), interpolation=cv2.INTER_AREA)
