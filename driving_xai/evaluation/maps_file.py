"""Files of a user: saliency maps that are written or brought along, and masks of the pixels that matter.

A `maps.h5` holds one dataset of float32 [N, H, W] for each method in its group `maps`, and in the group
`frames` what the N maps are of: `drive`, `camera` and `target` (text) and `frame` (int64).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cv2
import h5py
import numpy as np
import pandas as pd
from jaxtyping import Float32

from data_prep.shards.atomic import replacing, sha256_of
from data_prep.shards.hdf5 import PatientFile
from driving_xai.errors import DataError

if TYPE_CHECKING:
    from driving_xai.metrics.batch import Mask

SCHEMA = "driving-xai-maps/1"
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
    """What `save_part` wrote; the sums inside are checked.

    Raises:
        DataError: it is damaged, or something else.
    """
    arrays = _arrays_in(path, "score again into an empty folder")
    try:
        places = pd.DataFrame({name: arrays[name] for name in KEY})
        saliency = arrays["saliency"]
    except (KeyError, ValueError) as error:
        raise DataError(f"{path}: holds no maps ({error}); score again into an empty folder") from None
    if saliency.ndim != 4 or saliency.dtype != np.float32 or len(saliency) != len(places):
        raise DataError(
            f"{path}: holds {saliency.dtype} {saliency.shape} of {len(places)} frames; score again into an empty folder"
        )
    return Part(places, saliency)


def join_parts(path: Path, parts: Iterable[Path], methods: Sequence[str]) -> None:
    """Writes one file of all parts, a part at a time: memory does not grow with their number."""
    with replacing(path) as temporary, PatientFile(temporary) as disk:
        with h5py.File(disk, "w", track_order=True) as file:
            file.attrs["schema"] = SCHEMA
            for each in parts:
                _append_part(file, load_part(each), methods)
                disk.check()
        disk.check()


def _append_part(file: h5py.File, part: Part, methods: Sequence[str]) -> None:
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
            places = pd.DataFrame({**texts, "frame": self._file["frames/frame"][:].astype(np.int64)})[KEY]
            shapes = {tuple(self._file[f"maps/{name}"].shape) for name in self.methods}
            if other := [name for name in self.methods if self._file[f"maps/{name}"].dtype.kind not in "fiu"]:
                raise DataError(
                    f"{path}: maps/{other[0]} holds no numbers; see docs/results.md for the layout"
                )
        except FileNotFoundError:
            raise DataError(f"{path}: no such file; give one that `score --save-maps` wrote") from None
        # HDF5 raises whatever a damaged file or a link that leads to itself makes it stumble over.
        except Exception as error:
            if isinstance(error, DataError):
                raise
            reason = " ".join(str(error).split())[:160]
            raise DataError(
                f"{path}: no file of maps ({reason}); see docs/results.md for the layout"
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
        try:
            maps[order] = self._file[f"maps/{method}"][rows[order]]
        except Exception as error:
            reason = " ".join(str(error).split())[:160]
            raise DataError(f"{self.path}: maps/{method} cannot be read ({reason}); make it again") from None
        if not np.isfinite(maps).all():
            raise DataError(f"{self.path}: a map of {method} has NaN or infinity; compute it again")
        return maps

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


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
            self._files, self._arrays = {}, _arrays_of(path)
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

    def read(self, places: pd.DataFrame, height: int, width: int) -> Mask:
        """The masks of some frames; all false, which counts as unknown, for those without one.

        Args:
            places: at least the columns `drive`, `frame` and `key` of `results.FRAME_COLUMNS`.
            height: of the model's input.
            width: of the model's input.

        Raises:
            DataError: a mask cannot be read or has another size.
        """
        import torch  # a report reads maps without it

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
            mask = self._mask(name)
            if mask is None:
                continue
            if mask.shape != size:
                raise DataError(
                    f"{self.path}: mask {name} is {mask.shape[1:] and mask.shape[1]}x{mask.shape[0]}, the model's "
                    f"input {size[1]}x{size[0]}; cut and resize masks as the frames were"
                )
            return mask != 0
        return np.zeros(size, dtype=bool)

    def _mask(self, name: str) -> np.ndarray | None:
        if self._arrays is not None:
            return self._arrays.get(name)
        if name not in self._files:
            return None
        mask = cv2.imread(str(self._files[name]), cv2.IMREAD_GRAYSCALE)
        if mask is None:
            raise DataError(f"{self._files[name]}: no PNG that can be read; export the mask again")
        return mask


def _arrays_in(path: Path, cure: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz; the sums inside are checked, and no pickle is read.

    Raises:
        DataError: it is no such file, or damaged.
    """
    try:
        # Opened here: NumPy leaves the file open where it is no .npz.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise DataError(f"{path}: is a single array, no .npz; {cure}")
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; {cure}") from None
    # Bytes of any content reach the readers of zip and of NumPy, which raise whatever they stumble over.
    except Exception as error:
        if isinstance(error, DataError):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise DataError(f"{path}: no .npz ({reason}); {cure}") from None
    if other := next((name for name, array in arrays.items() if not isinstance(array, np.ndarray)), None):
        raise DataError(f"{path}: its member {other} is no array; {cure}")
    return arrays


def _arrays_of(path: Path) -> dict[str, np.ndarray]:
    arrays = _arrays_in(path, "give a folder of PNG masks, or an .npz that np.savez wrote")
    for name, array in arrays.items():
        if array.ndim != 2 or array.dtype.kind not in "biuf":
            raise DataError(
                f"{path}: {name} is {array.dtype} of shape {array.shape}; expected [H, W] numbers"
            )
    return arrays
