"""Loops over edited frames neither wait for the device nor copy to it: what crosses does so once, however long they are.

No device is at hand here: tensors that only know their shapes stand for those of one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import driving_xai as dx
from driving_xai.explain import variants
from driving_xai.metrics.perturbation_curves import PerturbationCurve, scores_along
from driving_xai.models.steering import SteeringConfig, SteeringInstant, SteeringModel, SteeringState
from driving_xai.targets import magnitude

SIZE = (80, 160)


class _Crossings(TorchDispatchMode):
    """Counts what goes from one device to another, and numbers that Python reads from a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = func(*args, **(kwargs or {}))
        devices = {each.device for each in (*args, given) if isinstance(each, torch.Tensor) and each.dim()}
        if func is torch.ops.aten._local_scalar_dense.default:
            self.seen["read"] += 1
        elif "copy" in str(func) and len(devices) > 1:
            self.seen["copied"] += 1
        return given


@contextmanager
def on_a_device() -> Iterator[tuple[SteeringInstant, torch.Tensor]]:
    """A model at an instant of two drives and their frames, on a device that does not exist."""
    model = SteeringModel(SteeringConfig(hidden_size=8)).eval()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        for module in model.modules():
            for name, weight in [*module.named_parameters(recurse=False)]:
                module._parameters[name] = nn.Parameter(torch.empty(weight.shape, device="cuda"))
            for name, value in [*module.named_buffers(recurse=False)]:
                module._buffers[name] = torch.empty(value.shape, dtype=value.dtype, device="cuda")
        state = SteeringState(*torch.empty(2, 2, 8, device="cuda"))
        yield model.at(state), torch.empty(2, 3, *SIZE, device="cuda")


def crossings_of_curves(points: int) -> Counter[str]:
    pixels = SIZE[0] * SIZE[1]
    curves = [
        PerturbationCurve(edit, (0, *range(100, 100 + points), pixels), fill, patch_px)
        for edit, fill, patch_px in (
            ("deletion", "black", 1),
            ("insertion", "blur", 1),
            ("deletion", "mean", 8),
        )
        for pixels in (SIZE[0] * SIZE[1] // patch_px**2,)
    ]
    with on_a_device() as (instant, frames), _Crossings() as crossings:
        ranks = torch.zeros(2, 2, pixels, dtype=torch.int64, device="cuda")
        scores = scores_along(instant, frames, ranks, curves, batch_size=4)
    assert [each.device.type for each in scores] == ["cuda"] * 3
    return crossings.seen


def test_curves_copy_once_however_many_points_they_have():
    """The counts of each curve and the taps of the blur; nothing is read."""
    few, many = map(crossings_of_curves, (2, 5))
    assert few == many
    assert set(few) <= {"copied"}


@pytest.mark.parametrize(
    ("name", "less", "more"),
    [
        (
            "occlusion",
            {"window_px": [40, 80], "stride_px": [40, 80]},
            {"window_px": [40, 80], "stride_px": [40, 40]},
        ),
        ("rise", {"masks": 3}, {"masks": 6}),
    ],
)
def test_explainers_that_hide_copy_once_however_many_variants_they_judge(name, less, more, monkeypatch):
    monkeypatch.setattr(variants, "finite", lambda values: values)  # the one number that is read of each map
    found = []
    for options in (less, more):
        explain = dx.explain.build(name, **options, batch_size=4)
        with on_a_device() as (instant, frames), _Crossings() as crossings:
            assert explain._explain(instant, frames, magnitude).device.type == "cuda"
        found.append(crossings.seen)
    assert found[0] == found[1]
    assert set(found[0]) <= {"copied"}


@pytest.mark.parametrize(
    ("name", "option", "less", "more"),
    [
        ("smoothgrad", "samples", 4, 12),
        ("integrated-gradients", "steps", 4, 12),
        ("lime", "samples", 8, 24),
        ("removal-pursuit", "steps", 3, 6),
    ],
)
def test_explainers_read_as_many_numbers_however_many_passes_they_take(name, option, less, more):
    """With gradients, so on a CPU, where only reading can be counted."""
    torch.manual_seed(0)
    model, frames = SteeringModel(SteeringConfig(hidden_size=8)).eval(), torch.rand(2, 3, *SIZE)
    read = []
    for count in (less, more):
        explain = dx.explain.build(name, **{option: count}, batch_size=4)
        with _Crossings() as crossings:
            explain(model, frames, magnitude)
        read.append(crossings.seen["read"])
    assert read[0] == read[1]
