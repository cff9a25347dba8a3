"""A network that writes on its input has the scores of its twin that does not, and leaves the caller's frames."""

from __future__ import annotations

import torch
from torch import nn

from driving_xai.evaluation.edited_frames import Edits, edited_frames
from driving_xai.metrics.batch import EvalBatch
from driving_xai.metrics.curves import rank
from driving_xai.metrics.perturbation_curves import PerturbationCurve, scores_along
from driving_xai.targets import output
from driving_xai.types import Outputs


class Net(nn.Module):
    def __init__(self, *, in_place: bool, kind: str = "multiclass") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.in_place = in_place
        self.head = nn.Linear(3 * 8 * 8, 2)
        self.outputs = Outputs(kind=kind, names=("a", "b"), unit="1/m" if kind == "regression" else None)

    def forward(self, frames):
        moved = frames.sub_(0.5).mul_(4) if self.in_place else (frames - 0.5) * 4
        return self.head(moved.flatten(1))


def frames_of(count):
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_curves_and_batches_are_those_of_the_twin() -> None:
    ranks = rank(torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(2)), torch.Generator())
    curves = [PerturbationCurve(edit, (0, 9, 64), fill="mean") for edit in ("deletion", "insertion")]
    found = []
    for in_place in (False, True):
        net, frames = Net(in_place=in_place).eval(), frames_of(2)
        clean = EvalBatch.of(net, frames, output(1)).clean
        found.append([clean, *scores_along(net, frames, ranks, curves, batch_size=2)])
        assert torch.equal(frames, frames_of(2))
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected)


def test_edited_frames_are_those_of_the_twin() -> None:
    saliency = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(2))
    edits = Edits(percents=(0, 25, 100))
    expected, got = (
        edited_frames(Net(in_place=each).eval(), frames_of(1), saliency, output(1), edits)
        for each in (False, True)
    )
    torch.testing.assert_close(got.frames, expected.frames)
    torch.testing.assert_close(got.values, expected.values)


def test_a_regressor_of_several_outputs_shows_the_one_that_was_explained() -> None:
    net = Net(in_place=False, kind="regression").eval()
    found = edited_frames(net, frames_of(1), torch.rand(1, 8, 8), output(1), Edits(percents=(0, 50)))
    with torch.no_grad():
        torch.testing.assert_close(found.values, net(found.frames)[:, 1])
