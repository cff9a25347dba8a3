"""Drives to score: the instants of a route, each with the state that the unedited frames before it left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from data_prep.shards.manifest import Manifest
from driving_xai.checkpoint import Checkpoint
from driving_xai.data.drives import Route, Run, open_index, runs, vehicle_of
from driving_xai.data.splits import HoldOut
from driving_xai.errors import DataError, UnsupportedModelError
from driving_xai.evaluation.config import ScoreConfig
from driving_xai.evaluation.instants import Instants, advance, instants_of, repeated, rows_of_batches, walk
from driving_xai.evaluation.selection import choose_rows, every_batch, require_geometry, sampled
from driving_xai.metrics.batch import EvalBatch, Window
from driving_xai.metrics.quantities import STEERING_ERROR, Quantity, SteeringError, angle_deg
from driving_xai.models.capabilities import device_of
from driving_xai.models.declared import at_instant, is_recurrent
from driving_xai.targets import by_name
from driving_xai.types import Frames, Scores


class DriveData:
    """The instants of a route with the state that the unedited frames before each left.

    Only the current frame is edited.

    Args:
        checkpoint: a regressor with `step` and `at`; one without memory has the state `()`.
        shards: of drives.
        manifest: theirs.
        config: the target, the recorded angle, the split, and every which frame is scored.
        with_masks: whether the pixels that cause the label are read.

    Raises:
        DataError: the shards do not fit the checkpoint, or hold none of the frames asked for.

    Source: Tashiro and Awano 2023, section 4.
    """

    quantity: Quantity = STEERING_ERROR
    protocol: Mapping[str, Any] = MappingProxyType(
        {
            "edited": "the current frame; its past is the state that the unedited frames left",
            "references": {
                "truth": "the recorded angle",
                "clean": "the prediction for the unedited frame",
                "cause": "the pixels that cause the label",
            },
        }
    )

    def __init__(
        self,
        checkpoint: Checkpoint,
        shards: Path,
        manifest: Manifest,
        config: ScoreConfig,
        *,
        with_masks: bool,
    ) -> None:
        _require_signals(checkpoint, manifest, shards)
        vehicle = vehicle_of(shards, manifest)
        _require_steps(checkpoint.model)
        self._model = checkpoint.model
        self._route = Route(shards, open_index(shards, manifest), vehicle)
        self._target = config.target or "magnitude"
        self._rule = by_name(self._target, checkpoint.model.outputs)
        self._every, self._with_masks = config.every, with_masks
        self._window = config.window_frames if config.scores_windows else 1
        column = "steering_wheel_rad_smoothed" if config.truth == "smoothed" else "steering_wheel_rad"
        self._truth_deg = np.degrees(self._route.index[column].to_numpy(dtype=np.float64))
        chosen = choose_rows(self._route.index, config.split, checkpoint, manifest, HoldOut.from_config)
        self._runs = self._chosen(chosen, config.split)
        if with_masks:
            self._route.causes(self._runs[0].rows[:1])  # Fails here rather than in the middle of a run.

    def _chosen(self, chosen: np.ndarray, split: str) -> Sequence[Run]:
        kept = runs(self._route.index, chosen)
        if instants_of(kept, self._every, self._window) == 0:
            raise DataError(
                f"split {split} has {chosen.sum()} frames in {len(kept)} runs and none to score; choose another"
            )
        return kept

    @property
    def total(self) -> int:
        """Instants to score; a run's first frame has no past and is none, nor is one without a whole window."""
        return instants_of(self._runs, self._every, self._window)

    @property
    def shards(self) -> frozenset[str]:
        """See `EvalData`; a run is driven from its first frame on."""
        driven = np.concatenate([run.rows for run in self._runs])
        return frozenset(self._route.index["shard"].iloc[driven].unique())

    @property
    def seconds_apart(self) -> float:
        """Between two scored frames."""
        times_ns = self._route.index["time_ns"].to_numpy()
        steps_s = np.concatenate([np.diff(times_ns[run.rows]) for run in self._runs]) / 1e9
        return float(np.median(steps_s)) * self._every

    def batches(
        self, batch_size: int, wanted: Callable[[int], bool] = every_batch
    ) -> Iterator[tuple[Int64[np.ndarray, " B"], EvalBatch | None]]:
        """See `EvalData`; runs side by side are driven as far as their last batch that is wanted."""
        planned = list(
            rows_of_batches(self._runs, batch_size=batch_size, every=self._every, window=self._window)
        )
        chosen = [wanted(number) for number in range(len(planned))]
        walked = walk(
            self._model,
            self._route,
            self._runs,
            batch_size=batch_size,
            every=self._every,
            window=self._window,
            device=device_of(self._model),
            wanted=chosen,
        )
        for rows, is_wanted in zip(planned, chosen, strict=True):
            yield rows, self._batch(next(walked)) if is_wanted else None

    def _batch(self, instants: Instants) -> EvalBatch:
        rows, device = instants.rows, instants.frames.device
        truth_deg = torch.from_numpy(self._truth_deg[rows]).to(device)
        scale = torch.from_numpy(self._route.degrees_per_unit[rows]).to(device)
        clean_deg = angle_deg(instants.clean, scale)
        return EvalBatch(
            rows=rows,
            model=at_instant(self._model, instants.past),
            frames=instants.frames,
            clean=instants.clean,
            target=self._rule(instants.clean),
            targets=[self._target] * len(rows),
            quantity=self.quantity,
            references={
                "truth": SteeringError(degrees_per_unit=scale, reference_deg=truth_deg),
                "clean": SteeringError(degrees_per_unit=scale, reference_deg=clean_deg),
            },
            known={
                "prediction": clean_deg.cpu().numpy(),
                "truth": truth_deg.cpu().numpy(),
                "error": (clean_deg - truth_deg).abs().cpu().numpy(),
            },
            ground_truth_mask=self._route.causes(rows).to(device) if self._with_masks else None,
            window=self._windows(instants) if instants.earlier else None,
            instant=lambda place: self._batch(instants.one(place)),
        )

    def _windows(self, instants: Instants) -> Window:
        start = instants.earlier[0].past

        def scores(windows: Float[Tensor, "N T 3 H W"]) -> Scores:
            past = repeated(start, len(windows) // len(instants.rows))
            return advance(self._model, windows, past)[-1][0]

        return Window(tuple(map(self._batch, instants.earlier)), scores)

    def sample(self, count: int, *, seed: int) -> Frames:
        """See `EvalData`."""
        driven = np.concatenate([run.rows for run in self._runs])
        return self._route.frames(sampled(driven, count, seed=seed)).float() / 255

    def places(self, rows: Int64[np.ndarray, " B"]) -> pd.DataFrame:
        """See `EvalData`."""
        columns = ["drive", "camera", "segment", "frame", "time_ns"]
        found = self._route.index[columns].iloc[rows].reset_index(drop=True)
        return found.assign(key="")

    def describe(self) -> dict[str, Any]:
        """See `EvalData`."""
        return {
            "drives": sorted({str(self._route.index["drive"].iloc[run.rows[0]]) for run in self._runs}),
            "runs": len(self._runs),
            "frames": sum(len(run) for run in self._runs),
            "seconds_apart": self.seconds_apart,
        }


def _require_signals(checkpoint: Checkpoint, manifest: Manifest, shards: Path) -> None:
    """Refuses shards that were made otherwise than those the model learnt from."""
    if manifest.kind != "sequences":
        raise DataError(f"{shards}: got shards of {manifest.kind}, expected sequences; prepare a drive")
    require_geometry(checkpoint, manifest, shards)
    learnt = checkpoint.config.get("input", {}).get("signals", {})
    for name in ("lead_s", "smoothing_alpha"):
        if name in learnt and manifest.signals.get(name) != learnt[name]:
            raise DataError(
                f"{shards}: the shards' {name} is {manifest.signals.get(name)}, the checkpoint learnt "
                f"{learnt[name]}; prepare them alike"
            )


def _require_steps(model: object) -> None:
    if not is_recurrent(model):
        raise UnsupportedModelError(
            f"{type(model).__name__} has no step and at, by which a model is driven; wrap it with driving_xai.wrap"
        )
