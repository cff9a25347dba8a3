"""Masks that a user drew: which pixels of a frame are known to matter, as a provider of causes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from zipfile import BadZipFile

import cv2
import numpy as np
import pandas as pd
import torch

from data_prep.shards.atomic import sha256_of
from driving_xai.errors import DataError
from driving_xai.metrics.localisation import Causes


class Masks:
    """A folder of PNG masks, or an .npz with one array for each.

    A mask is named `DRIVE/FRAME`, or `FRAME` alone, by the frame's number, or by the file's name of an
    image; any value but 0 marks a pixel. It has the size of the model's input.

    Raises:
        DataError: the folder or file holds no mask or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.is_dir():
            self._files = {
                p.relative_to(path).with_suffix("").as_posix(): p for p in sorted(path.rglob("*.png"))
            }
            self._arrays = None
        else:
            self._files, self._arrays = {}, _load(path)
        if not self._files and not self._arrays:
            raise DataError(f"{path}: holds no mask; expected PNGs named DRIVE/FRAME.png, or an .npz of them")

    @property
    def sha256(self) -> str:
        """Of all masks and their names: what a result was measured against."""
        digest = hashlib.sha256()
        for name, file in sorted(self._files.items()):
            digest.update(f"{name}\0{sha256_of(file)}\n".encode())
        for name, array in sorted((self._arrays or {}).items()):
            digest.update(f"{name}\0{array.shape}\0".encode() + np.ascontiguousarray(array != 0).tobytes())
        return digest.hexdigest()

    def causes(self, places: pd.DataFrame, height: int, width: int) -> Causes:
        """The masks of some frames; all false, which counts as unknown, for those without one.

        Args:
            places: at least the columns `drive`, `frame` and `key` of `results.FRAME_COLUMNS`.
            height: of the model's input.
            width: of the model's input.

        Raises:
            DataError: a mask cannot be read or has another size.
        """
        columns = places[["drive", "frame", "key"]].itertuples(index=False)
        found = [
            self._of(str(drive), int(frame), str(key or ""), (height, width)) for drive, frame, key in columns
        ]
        return torch.from_numpy(np.stack(found))

    def _of(self, drive: str, frame: int, key: str, size: tuple[int, int]) -> np.ndarray:
        names = [
            f"{drive}/{frame}",
            str(frame),
            *([key, Path(key).with_suffix("").as_posix()] if key else []),
        ]
        for name in names:
            mask = self._read(name)
            if mask is None:
                continue
            if mask.shape != size:
                raise DataError(
                    f"{self.path}: mask {name} is {mask.shape[1:] and mask.shape[1]}x{mask.shape[0]}, the model's "
                    f"input {size[1]}x{size[0]}; cut and resize masks as the frames were"
                )
            return mask != 0
        return np.zeros(size, dtype=bool)

    def _read(self, name: str) -> np.ndarray | None:
        if self._arrays is not None:
            return self._arrays.get(name)
        if name not in self._files:
            return None
        mask = cv2.imread(str(self._files[name]), cv2.IMREAD_GRAYSCALE)
        if mask is None:
            raise DataError(f"{self._files[name]}: no PNG that can be read; export the mask again")
        return mask


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; expected a folder of PNG masks or an .npz") from None
    except (OSError, ValueError, BadZipFile, EOFError, AttributeError) as error:
        raise DataError(
            f"{path}: no .npz of masks ({str(error).splitlines()[0]}); save it with np.savez"
        ) from None
    for name, array in arrays.items():
        if array.ndim != 2 or array.dtype.kind not in "biuf":
            raise DataError(
                f"{path}: {name} is {array.dtype} of shape {array.shape}; expected [H, W] numbers"
            )
    return arrays
