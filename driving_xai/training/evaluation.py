"""How well a steering model drives along held-out runs, beside what constants would get."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from jaxtyping import UInt8
from torch import Tensor

from driving_xai.data.drives import Route, Run
from driving_xai.models.steering import SteeringModel
from driving_xai.training.drive_features import DriveFeatures


@torch.inference_mode()
def walk(
    model: SteeringModel,
    route: Route,
    kept: list[Run],
    *,
    device: torch.device | str = "cpu",
    chunk: int = 100,
    features: DriveFeatures | None = None,
    read: Callable[[np.ndarray], UInt8[Tensor, "T 3 H W"]] | None = None,
) -> pd.DataFrame:
    """Predicts each run from its first frame to its last, the state carried along.

    Args:
        chunk: frames read and encoded at a time; it bounds memory and changes nothing else.
        features: those of a frozen encoder, kept, in place of frames.
        read: the frames of some rows; None reads them from the route.

    Returns:
        A row a frame: index_row, prediction and target (1/m), degrees_per_unit.
    """
    was_training = model.training
    model.eval()
    tables = []
    for run in kept:
        state = None
        # Kept on the device until the run ends: each transfer would wait for it.
        predicted: list[Tensor] = []
        for start in range(0, len(run), chunk):
            rows = run.rows[start : start + chunk]
            if features is None:
                frames = (read or route.frames)(rows).to(device).float() / 255
                scores, _, state = model(frames[None], state)
            else:
                scores, _, state = model.of_features(features.frames(rows)[None].to(device), state)
            predicted.append(scores[0].float())
        tables.append(
            pd.DataFrame(
                {
                    "index_row": run.rows,
                    "prediction": torch.cat(predicted).cpu().numpy().astype(np.float64),
                    "target": route.target[run.rows],
                    "degrees_per_unit": route.degrees_per_unit[run.rows],
                }
            )
        )
    model.train(was_training)
    return pd.concat(tables, ignore_index=True)


def mae_deg(walked: pd.DataFrame) -> float:
    """Mean absolute error in degrees of steering wheel."""
    error = (walked["prediction"] - walked["target"]).abs() * walked["degrees_per_unit"]
    return float(error.mean())


def trivial_maes_deg(route: Route, train: list[Run], kept: list[Run]) -> dict[str, float]:
    """The MAE in degrees of constant predictors: zero, and the training angles' mean and median."""
    rows = np.concatenate([run.rows for run in kept])
    seen = np.concatenate([run.rows for run in train])
    degrees, seen_degrees = (route.target[r] * route.degrees_per_unit[r] for r in (rows, seen))
    constants = {"zero": 0.0, "train_mean": seen_degrees.mean(), "train_median": np.median(seen_degrees)}
    return {f"mae_deg_{name}": float(np.abs(degrees - value).mean()) for name, value in constants.items()}
