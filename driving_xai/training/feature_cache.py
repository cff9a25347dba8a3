"""Features of a frozen network, computed once and kept on disk.

Where the network does not learn and frames are not augmented, its features are the same in every epoch
of every run: one pass for each image replaces hundreds.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from data_prep.shards.atomic import remove_leftovers, replacing
from data_prep.shards.manifest import canonical_json
from driving_xai.errors import DataError
from driving_xai.models.bounded_logit import Features, cells_of

Precision = Literal["fp16", "fp32"]
"""fp32 is exact; fp16 takes half the space, 125 kB an image of EfficientNet-B0."""
ReadImages = Callable[[np.ndarray], UInt8[Tensor, "B 3 H W"]]
"""The images of some rows, in their order."""
_DTYPES = {"fp16": np.float16, "fp32": np.float32}


@dataclass(frozen=True, kw_only=True)
class FeatureCache:
    """The cells of N feature maps, read from disk by rows."""

    path: Path
    cells: np.memmap
    """N x n x C."""

    def __len__(self) -> int:
        return len(self.cells)

    def batch(self, rows: np.ndarray) -> Features:
        """The features of these rows, in their order, in fp32."""
        return torch.from_numpy(self.cells[rows].astype(np.float32))


def network_sha256(
    network: nn.Module, architecture: Mapping[str, Any], *, unused: tuple[str, ...] = ()
) -> str:
    """The hash of what decides a network's features in eval mode: settings, parameters and buffers.

    Args:
        architecture: what it was built with. Some settings have no weights, such as a transformer's heads
            or a dilation, and two names of timm's can have the same weights.
        unused: how the names of weights begin that no feature depends on, such as an untrained head's.
    """
    digest = hashlib.sha256(type(network).__name__.encode() + canonical_json(dict(architecture)))
    for name, tensor in sorted(network.state_dict().items()):
        if name.startswith(unused):
            continue
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)};".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def cached_features(
    folder: Path,
    network: nn.Module,
    read: ReadImages,
    count: int,
    *,
    source: str,
    architecture: Mapping[str, Any],
    unused: tuple[str, ...] = (),
    precision: Precision = "fp32",
    batch_size: int = 32,
    device: str | torch.device = "cpu",
    on_progress: Callable[[int, int], None] | None = None,
) -> FeatureCache:
    """The features of `count` images: from `folder`, or computed and kept there.

    The file's name is a hash of the source, the network and the precision, so that features of other
    images, weights or architectures are never taken for these. It is whole or absent.

    Args:
        network: in eval mode; frames in [0, 1] to feature maps.
        read: the images of some rows, in their order.
        source: says which images `read` gives; equal texts must mean equal images.
        architecture: what the network was built with; see `network_sha256`.
        unused: how the names of weights begin that no feature depends on.

    Raises:
        ValueError: the network is in training mode.
        DataError: the file is damaged.
    """
    if network.training:
        raise ValueError(f"{type(network).__name__} is in training mode; call eval() on it first")
    path = features_file(
        folder,
        network,
        count,
        source=source,
        architecture=architecture,
        unused=unused,
        precision=precision,
    )
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder, whose="ended")
        with replacing(path) as temporary:
            _write(temporary, network.to(device), read, count, precision, batch_size, device, on_progress)
    try:
        cells = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: damaged ({str(error).splitlines()[0]}); delete it, and run again") from None
    if cells.ndim != 3 or len(cells) != count or cells.dtype != _DTYPES[precision]:
        raise DataError(f"{path}: holds {cells.dtype} {cells.shape}, expected {count} maps; delete it")
    return FeatureCache(path=path, cells=cells)


def features_file(
    folder: Path,
    network: nn.Module,
    count: int,
    *,
    source: str,
    architecture: Mapping[str, Any],
    unused: tuple[str, ...] = (),
    precision: Precision = "fp32",
) -> Path:
    """Where `cached_features` keeps the features of these images, or will; see there for the arguments."""
    key = {
        "source": source,
        "count": count,
        "network": network_sha256(network, architecture, unused=unused),
        "precision": precision,
    }
    return folder / f"features-{hashlib.sha256(canonical_json(key)).hexdigest()[:16]}.npy"


@torch.no_grad()
def features_s(
    file: Path, network: nn.Module, read: ReadImages, count: int, *, device: str | torch.device
) -> float:
    """About how many seconds `cached_features` takes, by two images; 0 where the file is there. Nothing is kept.

    Args:
        file: that of `features_file`.
        network: goes to `device` and stays there.
    """
    if file.exists():
        return 0.0
    frames = as_frames(read(np.arange(min(count, 2)))).to(device)
    network.to(device)(frames[:1])  # Warms up.
    if frames.is_cuda:
        torch.cuda.synchronize(frames.device)
    begun = time.perf_counter()
    network(frames).cpu()
    return (time.perf_counter() - begun) / len(frames) * count


@dataclass(frozen=True, kw_only=True)
class PlainAndMirrored:
    """What a frozen network sees of images as they are, and of their mirror images: kept in a folder."""

    folder: Path
    network: nn.Module
    read: ReadImages
    count: int
    source: str
    """What the images are, for the files' names."""
    architecture: Mapping[str, object]
    unused: tuple[str, ...] = ()
    mirrored: bool
    """Without it, the mirrored features are the plain ones."""
    precision: Precision
    device: str | torch.device

    def computed(
        self, on_progress: Callable[[int, int], None] | None = None
    ) -> tuple[FeatureCache, FeatureCache]:
        """The plain and the mirrored features: from the folder, or computed and kept there.

        Args:
            on_progress: called with the images done and the total, for each of the two.
        """

        def cached(name: str, read: ReadImages) -> FeatureCache:
            return cached_features(
                self.folder,
                self.network,
                read,
                self.count,
                source=f"{self.source}, {name}",
                architecture=self.architecture,
                unused=self.unused,
                precision=self.precision,
                batch_size=8,
                device=self.device,
                on_progress=on_progress,
            )

        plain = cached("plain", self.read)
        return plain, cached("mirrored", lambda rows: self.read(rows).flip(-1)) if self.mirrored else plain

    def seconds(self) -> float:
        """About how long `computed` takes; nothing is kept."""
        found = 0.0
        for name in ("plain", "mirrored") if self.mirrored else ("plain",):
            file = features_file(
                self.folder,
                self.network,
                self.count,
                source=f"{self.source}, {name}",
                architecture=self.architecture,
                unused=self.unused,
                precision=self.precision,
            )
            found += features_s(file, self.network, self.read, self.count, device=self.device)
        return found


def _write(
    path: Path,
    network: nn.Module,
    read: ReadImages,
    count: int,
    precision: Precision,
    batch_size: int,
    device: str | torch.device,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    dtype = np.dtype(_DTYPES[precision])
    # Not a memory map: where the disk is full, writing to one ends the process.
    with path.open("wb") as file:
        for start in range(0, count, batch_size):
            rows = np.arange(start, min(start + batch_size, count))
            found = cells_of(network(as_frames(read(rows)).to(device))).cpu().numpy()
            if start == 0:
                header = {"descr": dtype.str, "fortran_order": False, "shape": (count, *found.shape[1:])}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(np.ascontiguousarray(found, dtype=dtype).data)
            if on_progress is not None:
                on_progress(int(rows[-1]) + 1, count)


def as_frames(images: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """RGB in [0, 1]."""
    return images.float() / 255
