"""The table of costs in docs/methods.md: every name has a row, and its passes are counted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from driving_xai.explain.registry import METHODS, fitted
from driving_xai.metrics.batch import EvalBatch, RankedMaps
from driving_xai.metrics.confidence import OfClass
from driving_xai.metrics.curves import rank
from driving_xai.metrics.quantities import PROBABILITY
from driving_xai.metrics.registry import METRICS
from driving_xai.metrics.registry import build as metric
from driving_xai.models.actions import ActionConfig, ActionModel
from driving_xai.models.bounded_logit import BoundedLogitConfig, BoundedLogitModel
from driving_xai.models.classify import Classifier, ClassifierConfig
from driving_xai.models.forward_trace import removed_after
from driving_xai.models.steering import SteeringConfig, SteeringModel
from driving_xai.targets import output
from driving_xai.types import Outputs

PAGE = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
HEIGHT, WIDTH = 80, 160


class Plain(nn.Module):
    """Has nothing but pixels and scores."""

    outputs = Outputs(kind="multilabel", names=("a", "b"))

    def __init__(self) -> None:
        super().__init__()
        self.see, self.judge = nn.Conv2d(3, 2, 16, 16), nn.Linear(100, 2)

    def forward(self, frames: Tensor) -> Tensor:
        return self.judge(self.see(frames).tanh().flatten(1))


def _transformer() -> ActionModel:
    return ActionModel(
        ActionConfig(backbone="vit_tiny_patch16_224", depth=2, blocks=2, image_size=(HEIGHT, WIDTH))
    )


def _steering(attention: str) -> SteeringModel:
    return SteeringModel(SteeringConfig(hidden_size=8, attention=attention))


def _selecting(attention: str) -> BoundedLogitModel:
    return BoundedLogitModel(BoundedLogitConfig(classes=("a", "b"), attention=attention))


_MODELS = {
    "sign-attention": lambda: _steering("sign"),
    "soft-attention": lambda: _steering("soft"),
    "heavier-side-attention-ig": lambda: _steering("sign"),
    "visual-backprop": lambda: _steering("none"),
    **dict.fromkeys(
        ("grad-cam", "grad-cam++", "smooth-grad-cam++", "xgrad-cam", "attention-guided-cam"),
        lambda: _steering("none"),
    ),
    "bla": lambda: _selecting("bla"),
    "bla-hard": lambda: _selecting("bla"),
    "l2x-f": lambda: _selecting("l2x-f"),
    **dict.fromkeys(
        ("lambda-attention", "labn"),
        lambda: Classifier(ClassifierConfig(network="labn", classes=("a", "b"))),
    ),
    **dict.fromkeys(
        (
            "raw-attention",
            "rollout",
            "attention-gradient",
            "norm-attention",
            "generic-attention",
            "attention-ig",
            "snna",
        ),
        _transformer,
    ),
}
"""For the methods that ask for a model of a certain kind; the others take `Plain`."""


def _rows() -> list[list[str]]:
    table = PAGE.split("| name | forward passes |")[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


ROWS = {name.strip("`"): (forward, backward) for name, forward, backward, _, _ in _rows()}


@contextmanager
def _counted(model: nn.Module) -> Iterator[dict[str, int]]:
    """How many frames enter the model's first convolution, and how many gradients leave its last layer."""
    found = {"forward": 0, "backward": 0}

    def entered(_layer: nn.Module, _inputs: tuple, output: Tensor) -> None:
        found["forward"] += len(output)

    def turned(gradient: Tensor) -> None:
        found["backward"] += len(gradient)

    def judged(_layer: nn.Module, _inputs: tuple, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(turned)

    first = next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d))
    last = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
    with removed_after([first.register_forward_hook(entered), last.register_forward_hook(judged)]):
        yield found


def test_every_method_and_measure_has_one_row_and_a_section():
    names = [name.strip("`") for name, *_ in _rows()]
    assert sorted(names) == sorted([*METHODS, *METRICS])
    headings = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for name, *_, section in _rows():
        (target,) = re.findall(r"\]\(#(.+)\)", section)
        assert target in anchors, name


@pytest.mark.parametrize("name", [name for name in METHODS if not name.endswith("-filtered")])
def test_a_method_takes_as_many_passes_as_its_row_says(name):
    torch.manual_seed(0)
    model = _MODELS.get(name, Plain)().eval()
    view = model.at(None) if hasattr(model, "at") else model
    frames = torch.rand(2, 3, HEIGHT, WIDTH)
    explain = fitted(name, model)
    with _counted(model) as found:
        explain(view, frames, output(0))
    forward, backward = (int(re.match(r"\d+", cell).group()) for cell in ROWS[name])
    assert found == {"forward": 2 * forward, "backward": 2 * backward}


def test_a_filter_takes_a_pass_for_each_region_beside_two():
    torch.manual_seed(0)
    model = _steering("soft").eval()
    explain = fitted("soft-attention-filtered", model)
    frames = torch.rand(2, 3, HEIGHT, WIDTH)
    regions = explain.regions(model.at(None), frames, output(0)).masks.shape[1]
    with _counted(model) as found:
        explain(model.at(None), frames, output(0))
    assert regions > 1
    assert found == {"forward": 2 * (2 + regions), "backward": 0}
    assert ROWS["soft-attention-filtered"][0].startswith("2 + R,")


@pytest.mark.parametrize("name", [name for name in METRICS if name != "deletion-window"])
def test_a_measure_takes_as_many_passes_as_its_row_says(name):
    """With three methods, on two frames, beside the clean pass."""
    torch.manual_seed(0)
    model = (_transformer() if name.endswith(("-token", "-attention")) else Plain()).eval()
    drawn = torch.Generator().manual_seed(0)
    frames, saliency = torch.rand(2, 3, HEIGHT, WIDTH), torch.rand(2, 3, HEIGHT, WIDTH, generator=drawn)
    with torch.no_grad():
        clean = model(frames)
    batch = EvalBatch(
        rows=np.arange(2),
        model=model,
        frames=frames,
        clean=clean,
        target=output(0),
        targets=["a"] * 2,
        quantity=PROBABILITY,
        references={"target": OfClass(classes=torch.zeros(2, dtype=torch.long))},
        known={},
        ground_truth_mask=torch.rand(2, HEIGHT, WIDTH, generator=drawn) < 0.1,
        labels=torch.zeros_like(clean),
    )
    ranks = rank(saliency.flatten(0, 1), drawn).unflatten(0, (2, 3))
    maps = RankedMaps(saliency, ranks, torch.zeros(2, 3, dtype=torch.bool))
    with _counted(model) as found:
        list(metric(name).measure(batch, maps))
    once, each = re.fullmatch(r"(?:(\d+)(?: \+ |$))?(?:(\d*) ?M)?", ROWS[name][0]).groups()
    for_each = 0 if each is None else int(each or 1)
    assert found == {"forward": 2 * (int(once or 0) + 3 * for_each), "backward": 0}
