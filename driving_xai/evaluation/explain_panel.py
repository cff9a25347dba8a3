"""Pictures of an explained image: a map over it, and a panel of several methods, outputs and networks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from data_prep.geometry import encode_png
from data_prep.schema import Image
from data_prep.shards.atomic import replacing
from driving_xai.data.input_rule import Region
from driving_xai.viz.heat import HeatScale, blend_heat, enlargement, is_degenerate, smoothed
from driving_xai.viz.lettering import PANEL, Colour, fitted, lettering

Drawn = UInt8[np.ndarray, "rows columns 3"]
TILE_PX = 480
"""Width of a tile; larger pictures are shrunk."""
COLUMNS = 4
"""Of a panel that is no table, which has a column for each method."""
_TEXT: Colour = (235, 235, 235)
_STRIP_PX = 26
_GAP_PX = 4


def panel(tiles: Sequence[Sequence[tuple[str, Image]]], frame: tuple[str, Image]) -> Drawn:
    """Pictures of one size under their captions: a table, or a grid where it had one row or one column.

    Args:
        tiles: a row for each network and output, a column for each method.
        frame: the image itself, which comes first.
    """
    if len(tiles) > 1 and len(tiles[0]) > 1:
        blank = ("", np.full_like(frame[1], PANEL))
        rows = [[frame if number == 0 else blank, *row] for number, row in enumerate(tiles)]
    else:
        flat = [frame, *itertools.chain(*tiles)]
        rows = [flat[start : start + COLUMNS] for start in range(0, len(flat), COLUMNS)]
    return np.concatenate([_row(row, columns=max(map(len, rows))) for row in rows])


def _row(tiles: Sequence[tuple[str, Image]], *, columns: int) -> Drawn:
    drawn = [_tile(*each) for each in tiles]
    height, width = drawn[0].shape[:2]
    row = np.full((height + _GAP_PX, columns * (width + _GAP_PX) - _GAP_PX, 3), PANEL, dtype=np.uint8)
    for number, each in enumerate(drawn):
        left = number * (width + _GAP_PX)
        row[:height, left : left + width] = each
    return row


def _tile(caption: str, picture: Image) -> Drawn:
    height = max(1, round(picture.shape[0] * TILE_PX / picture.shape[1]))
    tile = np.full((height + _STRIP_PX, TILE_PX, 3), PANEL, dtype=np.uint8)
    shrinks = picture.shape[1] > TILE_PX
    tile[_STRIP_PX:] = cv2.resize(
        picture, (TILE_PX, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )
    letters, text = fitted(caption, 13, TILE_PX - 20, least_px=10)
    letters.draw(tile, text, (10, _STRIP_PX - 8), _TEXT)
    return tile


def laid_over(
    image: Image, saliency: Float32[np.ndarray, "h w"], region: Region, smooth_px: float
) -> UInt8[np.ndarray, "height width 3"]:
    """The image, enlarged where it is small, with the map on what the model saw."""
    factor = enlargement(*image.shape[:2])
    height, width = (side * factor for side in image.shape[:2])
    picture = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    top, bottom, left, right = (edge * factor for edge in region)
    if not is_degenerate(saliency):
        shown = smoothed(saliency, smooth_px)
        blend_heat(picture[top:bottom, left:right], shown, HeatScale.first(shown))
    return picture


def captioned(
    image: Image, saliency: Float32[np.ndarray, "h w"], region: Region, caption: str, *, smooth_px: float
) -> UInt8[np.ndarray, "rows columns 3"]:
    """The image with the map, and a line below."""
    laid = laid_over(image, saliency, region, smooth_px)
    height, width = laid.shape[:2]
    picture = np.full((height + _STRIP_PX, width, 3), PANEL, dtype=np.uint8)
    picture[:height] = laid
    if is_degenerate(saliency):
        caption += "   no evidence: the map is the same everywhere"
    lettering(13).draw(picture, caption, (10, height + _STRIP_PX - 8), _TEXT)
    return picture


def write_png(path: Path, picture: Image) -> None:
    """Writes a picture, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(encode_png(picture))
