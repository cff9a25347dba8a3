"""Saliency maps in a file: written while scoring, or brought along and scored as a method of their own.

A `maps.h5` holds one dataset of float32 [N, H, W] for each method in its group `maps`, and in the group
`frames` what the N maps are of: `drive`, `camera` and `target` (text) and `frame` (int64).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import pandas as pd
from jaxtyping import Float32

from data_prep.shards.atomic import replacing, sha256_of
from driving_xai.errors import DataError

SCHEMA = "driving-xai-maps/1"
FILE_NAME = "maps.h5"
KEY = ["drive", "camera", "frame", "target"]
"""The columns of `results.FRAME_COLUMNS` by which a map is found."""
_TEXTS = ("drive", "camera", "target")


class Part(NamedTuple):
    """The maps of some frames."""

    places: pd.DataFrame
    """At least the columns of KEY."""
    saliency: Float32[np.ndarray, "B M H W"]


def save_part(path: Path, part: Part) -> None:
    """Writes the maps of one batch, whole or not at all."""
    texts = {name: part.places[name].to_numpy(dtype=np.str_) for name in _TEXTS}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, saliency=part.saliency, frame=part.places["frame"].to_numpy(np.int64), **texts)


def load_part(path: Path) -> Part:
    """What `save_part` wrote."""
    with np.load(path, allow_pickle=False) as file:
        return Part(pd.DataFrame({name: file[name] for name in KEY}), file["saliency"])


def join_parts(path: Path, parts: Iterable[Path], methods: Sequence[str]) -> None:
    """Writes one file of all parts, a part at a time: memory does not grow with their number."""
    with replacing(path) as temporary, h5py.File(temporary, "w", track_order=True) as file:
        file.attrs["schema"] = SCHEMA
        for each in parts:
            part = load_part(each)
            for name in _TEXTS:
                _append(file, f"frames/{name}", part.places[name].to_numpy(dtype=object), h5py.string_dtype())
            _append(file, "frames/frame", part.places["frame"].to_numpy(np.int64), np.int64)
            for position, method in enumerate(methods):
                _append(file, f"maps/{method}", part.saliency[:, position], np.float32)


def _append(file: h5py.File, name: str, rows: np.ndarray, dtype: type | np.dtype) -> None:
    if name not in file:
        shape = rows.shape[1:]
        file.create_dataset(name, (0, *shape), dtype, maxshape=(None, *shape), chunks=(16, *shape))
    dataset = file[name]
    start = len(dataset)
    dataset.resize(start + len(rows), axis=0)
    dataset[start:] = rows


class MapFile:
    """Maps that were computed elsewhere, found by frame.

    Raises:
        DataError: the file is no such file, is damaged, or holds a frame twice.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = h5py.File(path, "r")
            if self._file.attrs.get("schema") != SCHEMA:
                raise DataError(
                    f"{path}: schema {self._file.attrs.get('schema')!r}, expected {SCHEMA!r}; "
                    "see docs/results.md for the layout"
                )
            self.methods = tuple(self._file["maps"])
            texts = {name: self._file[f"frames/{name}"].asstr()[:] for name in _TEXTS}
            places = pd.DataFrame({**texts, "frame": self._file["frames/frame"][:]})[KEY]
            shapes = {tuple(self._file[f"maps/{name}"].shape) for name in self.methods}
        except FileNotFoundError:
            raise DataError(f"{path}: no such file; give one that `score --save-maps` wrote") from None
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"{path}: no file of maps ({error}); see docs/results.md for the layout"
            ) from None
        if len(shapes) != 1 or len(shape := shapes.pop()) != 3:
            raise DataError(f"{path}: needs at least one method, and all maps as [N, H, W] of one size")
        self.size = shape[1:]
        """Height and width of the maps."""
        if shape[0] != len(places) or places.duplicated().any():
            raise DataError(f"{path}: needs one map of each method for each frame, each frame once")
        self._row = pd.Series(np.arange(len(places)), index=pd.MultiIndex.from_frame(places))

    @property
    def sha256(self) -> str:
        return sha256_of(self.path)

    def read(self, method: str, places: pd.DataFrame) -> Float32[np.ndarray, "B H W"]:
        """A method's maps of these frames.

        Raises:
            DataError: the file has none of one of them, or a map is not finite.
        """
        found = self._row.reindex(pd.MultiIndex.from_frame(places[KEY]))
        if found.isna().any():
            missing = places[KEY].iloc[int(found.isna().to_numpy().argmax())].to_dict()
            raise DataError(f"{self.path}: has no map of {missing}; it must hold every frame that is scored")
        rows = found.to_numpy(dtype=np.int64)
        # HDF5 reads rising rows only.
        order = np.argsort(rows)
        maps = np.empty((len(rows), *self._file[f"maps/{method}"].shape[1:]), dtype=np.float32)
        maps[order] = self._file[f"maps/{method}"][rows[order]]
        if not np.isfinite(maps).all():
            raise DataError(f"{self.path}: a map of {method} has NaN or infinity; compute it again")
        return maps

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
