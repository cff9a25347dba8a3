"""Small labelled images in memory, for tests of what trains on them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

SIDE = 16


class Pictures:
    """Bright squares on noise, red or green: two classes, in three splits."""

    def __init__(self, count: int = 60, *, seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.label_names: tuple[str, ...] = ("green", "red")
        self._labels = torch.arange(count) % 2
        self._frames = 0.4 * torch.rand(count, 3, SIDE, SIDE, generator=draw)
        for i, red in enumerate(self._labels.tolist()):
            row, column = torch.randint(0, SIDE - 5, (2,), generator=draw).tolist()
            self._frames[i, 1 - red, row : row + 5, column : column + 5] = 1.0
        self._splits = np.array(["train", "train", "train", "val", "test"])[np.arange(count) // 2 % 5]

    def __len__(self) -> int:
        return len(self._labels)

    def rows(self, split: str) -> np.ndarray:
        return np.flatnonzero(self._splits == split)

    def labels(self, names: Sequence[str]) -> torch.Tensor:
        return torch.nn.functional.one_hot(self._labels, 2).float()

    def frames(self, rows: np.ndarray) -> torch.Tensor:
        return self._frames[torch.from_numpy(rows)]

    def shuffled(self, rows: np.ndarray, draw: torch.Generator) -> np.ndarray:
        return rows[torch.randperm(len(rows), generator=draw).numpy()]
