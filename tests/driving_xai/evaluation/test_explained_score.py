"""RISE and LIME explain a probability and other methods a logit, whichever part of the program calls them."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from data_prep.schema import Frame
from driving_xai.evaluation import sanity
from driving_xai.evaluation.results import FRAME_COLUMNS
from driving_xai.evaluation.scorer import Scorer
from driving_xai.experiments import iida
from driving_xai.explain.base import Function
from driving_xai.metrics.batch import EvalBatch
from driving_xai.replay import session
from driving_xai.replay.background import StageTimes
from driving_xai.replay.config import ReplayConfig
from driving_xai.replay.frames import SourceFrame
from driving_xai.replay.predict import Output, Prediction
from driving_xai.targets import output
from driving_xai.types import Outputs

METHODS = ("rise", "lime@coarse", "gradient")
COLUMN = 1


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    net.outputs = Outputs(kind="multiclass", names=("red", "green", "blue"))
    return net


EXPLAINED = Function(
    function=lambda model, frames, target: target(model(frames))[:, None, None] + 0 * frames.mean(1)
)
"""A map of which every pixel is the score that is explained."""


def _expected(net: nn.Module, frames: torch.Tensor, method: str) -> torch.Tensor:
    scores = net(frames)
    return (scores if method == "gradient" else scores.softmax(1))[:, COLUMN].detach()


@pytest.mark.parametrize("method", METHODS)
def test_score_and_sanity(net, method):
    frames = torch.rand(2, 3, 8, 8)
    batch = EvalBatch.of(net, frames, output(COLUMN))
    scorer = Scorer(methods=[method], explainers={method: EXPLAINED}, metrics={}, seed=0)
    scored = scorer.explain(batch, {}).saliency[:, 0]
    data: Any = SimpleNamespace(places=lambda rows: pd.DataFrame({key: [0, 0] for key in FRAME_COLUMNS}))
    (checked,) = sanity._explain(data, {method: EXPLAINED}, [batch])
    for maps in (scored, checked.maps[method]):
        torch.testing.assert_close(maps[:, 3, 3], _expected(net, frames, method))


@pytest.mark.parametrize("method", METHODS)
def test_replay(net, method, monkeypatch):
    monkeypatch.setattr(session, "fitted", lambda *_arguments, **_options: EXPLAINED)
    chosen = Output(COLUMN, "green", output(COLUMN), 0.0, 0.0)
    task: Any = SimpleNamespace(read=lambda clean, seen: Prediction(None, [chosen]))
    playing: Any = SimpleNamespace(
        checkpoint=SimpleNamespace(model=net),
        config=ReplayConfig(),
        methods=(method,),
        task=task,
        device="cpu",
    )
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    frame = Frame(index=0, time_ns=0, image=pixels, steering_wheel_rad=0.0, speed_mps=0.0)
    found = session.Session.predictor(playing, StageTimes())(SourceFrame(frame, 0, 0, 0, True, ""), pixels)
    frames = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    torch.testing.assert_close(found.saliency[method][:, 3, 3], _expected(net, frames, method))


@pytest.mark.parametrize("method", METHODS)
def test_the_experiment_that_compares_rise(net, method):
    frames, classes = torch.rand(3, 3, 8, 8), torch.full((3,), COLUMN)
    how = replace(iida.Iida(), batch_size=2)
    found = iida._map(net, EXPLAINED, frames, classes, how, method)
    torch.testing.assert_close(found[:, 3, 3], _expected(net, frames, method))
    logits = iida._map(net, EXPLAINED, frames, classes, replace(how, explained_score="logit"), method)
    torch.testing.assert_close(logits[:, 3, 3], _expected(net, frames, "gradient"))
