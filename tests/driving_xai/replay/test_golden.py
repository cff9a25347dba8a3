"""A picture kept as it should look.

After a wanted change, write it anew and look at it:

    WRITE_GOLDEN=1 pytest tests/driving_xai/replay/test_golden.py
"""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np

from data_prep.geometry import Geometry
from driving_xai.evaluation.verdicts import SoFar
from driving_xai.replay.inset import CurveView
from driving_xai.replay.tasks.instruments import Camera, Steering
from driving_xai.replay.tasks.steering_view import Instant, Overlay, OverlayConfig
from driving_xai.viz.heat import HeatScale

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "replay_picture.png"
FRACTIONS = np.arange(26) / 100


def road() -> np.ndarray:
    """Sky, land and a road that bends to the left."""
    picture = np.zeros((480, 640, 3), np.uint8)
    picture[:190] = np.linspace((150, 185, 225), (205, 220, 235), 190)[:, None]
    picture[190:] = np.linspace((104, 120, 76), (70, 92, 52), 290)[:, None]
    edges = np.array([[300, 190], [318, 190], [640, 440], [640, 480], [60, 480]])
    cv2.fillPoly(picture, [edges], (84, 86, 92), cv2.LINE_AA)
    cv2.polylines(
        picture, [np.array([[309, 190], [330, 300], [350, 480]])], False, (236, 220, 120), 3, cv2.LINE_AA
    )
    return picture


def evidence() -> np.ndarray:
    """Two spots on the model's grid, upsampled as attention is."""
    rows, columns = np.indices((10, 20))
    spots = [(3, 9, 1.0, 1.3), (6, 15, 0.7, 1.0)]
    grid = sum(
        peak * np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * width**2))
        for row, column, peak, width in spots
    )
    return cv2.resize(np.asarray(grid, np.float32), (160, 80), interpolation=cv2.INTER_LINEAR)


def made() -> np.ndarray:
    """The picture at a quarter of its size: what is kept is the look, not the last bit of a letter."""
    current = 2 + 14 * FRACTIONS**0.7 / 0.25**0.7
    curve = CurveView(
        fractions=FRACTIONS,
        current=current,
        mean=3 + 7 * FRACTIONS / 0.25,
        random_mean=3 + 2 * FRACTIONS / 0.25,
        area=262.0,
        mean_area=162.0,
        half_width=11.0,
        random_area=101.0,
        frames=800,
        verdict=SoFar(
            value=162.0, random=101.0, difference=61.0, half_width=20.0, driven_s=40.0, block_s=5.0
        ),
    )
    painter = Overlay(
        height=480,
        width=640,
        geometry=Geometry(crop_top=1 / 3),
        cropped=False,
        config=OverlayConfig(
            labelled=True,
            speed_known=True,
            signed=False,
            provenance="sign-attention · black fill · model 0123456789ab",
            camera=Camera(horizon=0.39),
        ),
    )
    shown = Instant(
        image=road(),
        saliency=evidence(),
        predicted=Steering(18.4, 0.0076),
        measured=Steering(16.6, 0.0069),
        speed_mps=13.4,
        curve=curve,
        caption="drive-a · held out · frame 42 · 2.10 s",
    )
    picture = painter.draw(shown, HeatScale.first(shown.saliency), 20.0)
    return cv2.resize(picture, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)


def test_the_picture_looks_as_it_should() -> None:
    found = made()
    if os.environ.get("WRITE_GOLDEN"):
        cv2.imwrite(str(GOLDEN), cv2.cvtColor(found, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    expected = cv2.cvtColor(cv2.imread(str(GOLDEN)), cv2.COLOR_BGR2RGB)
    apart = np.abs(found.astype(int) - expected)
    assert apart.mean() < 0.5
    assert np.quantile(apart, 0.999) < 20
