"""A panel: one image explained by several methods, for several outputs and by several networks, in one picture."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import UInt8

from data_prep.schema import Image
from driving_xai.viz.lettering import PANEL, Colour, fitted

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
