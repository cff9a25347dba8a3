"""Which rows of a shard set are for training, validation and testing: by time blocks, or by folds of groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import numpy as np
import pandas as pd

from data_prep.split import clocks, near_on_clock
from data_prep.values import Checked, Count, Ge, Interval, Seed, build
from driving_xai.errors import DataError

Split = Literal["train", "val", "test"]
_Fraction = Annotated[float, Interval(ge=0, lt=1)]


class SplitRule(Checked):
    """What the two rules share: a checkpoint's config.json keeps one in `data.held_out`."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The rule that a checkpoint was trained with.

        Raises:
            DataError: the checkpoint's configuration does not say, or says it of another rule.

        Example:
            >>> HoldOut.from_config({"data": {"held_out": {"block": 2}}})
            HoldOut(block=2, gap_s=2.0, val_fraction=0.1)
        """
        try:
            return build(cls, config["data"]["held_out"], prefix="data.held_out.")
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"the checkpoint does not say what was held out ({error}); train it again"
            ) from error


@dataclass(frozen=True, kw_only=True)
class HoldOut(SplitRule):
    """Which rows are for testing; by default those that prep marked."""

    block: Count | None = None
    """Test on this time block (or drive) and train on the others; None takes prep's split."""
    gap_s: Annotated[float, Ge(0)] = 2.0
    """Rows of other splits this close in time to a tested or validated row are dropped, also those of
    another drive where both are in Unix time."""
    val_fraction: _Fraction = 0.1
    """With `block`: the last part of every other block, used for early stopping; 0 for none."""

    def splits(self, index: pd.DataFrame) -> np.ndarray:
        """The split (train, val, test or gap) of each row of a shard index.

        Raises:
            DataError: the index has no such block, or nothing is left to train on.
        """
        if self.block is None:
            return index["split"].to_numpy(dtype=str)
        blocks = index["block"].to_numpy()
        if self.block not in blocks:
            raise DataError(f"block {self.block} is not in these shards; they have {sorted(set(blocks))}")
        splits = np.where(blocks == self.block, "test", "train").astype("<U5")
        time_ns = index["time_ns"].to_numpy()
        clock = clocks(index["drive"].to_numpy(), time_ns)
        order = np.lexsort((time_ns, clock, blocks))
        edges = np.flatnonzero(np.diff(blocks[order])) + 1
        for rows in np.split(order, edges):
            if blocks[rows[0]] != self.block:
                splits[rows[len(rows) - round(self.val_fraction * len(rows)) :]] = "val"
        for kept, others in (("test", ("train", "val")), ("val", ("train",))):
            asked = np.isin(splits, others)
            near = near_on_clock(time_ns, clock, asked, splits == kept, gap_s=self.gap_s)
            splits[np.flatnonzero(asked)[near]] = "gap"
        if not (splits == "train").any():
            raise DataError(f"holding out block {self.block} leaves nothing to train on; prepare more data")
        return splits


@dataclass(frozen=True, kw_only=True)
class FoldOut(SplitRule):
    """Which images are for testing; by default those that prep marked."""

    fold: Count | None = None
    """Test on this one of `folds` parts and train on the others; None takes prep's split."""
    folds: Annotated[int, Ge(2)] = 5
    val_fraction: _Fraction = 0.1
    """With `fold`: of the other groups, used to choose the epoch and thresholds; 0 for none."""
    seed: Seed = 0
    """Of which group goes to which part."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.fold or 0) >= self.folds:
            raise ValueError(f"fold is {self.fold} of {self.folds}; they are counted from 0")

    def splits(self, index: pd.DataFrame) -> np.ndarray:
        """The split (train, val or test) of each row of an image index; groups stay whole.

        Raises:
            DataError: there are fewer groups than folds.
        """
        if self.fold is None:
            return index["split"].to_numpy(dtype=str)
        groups = sorted(set(index["group"]))
        if len(groups) < self.folds:
            raise DataError(
                f"{len(groups)} groups of images cannot be cut into {self.folds} folds; use fewer"
            )
        order = np.random.default_rng(self.seed).permutation(len(groups))
        part = {groups[number]: "train" for number in order}
        part |= {groups[number]: "test" for number in order[self.fold :: self.folds]}
        others = [groups[number] for number in order if part[groups[number]] == "train"]
        part |= dict.fromkeys(others[: round(self.val_fraction * len(others))], "val")
        return index["group"].map(part).to_numpy(dtype=str)
