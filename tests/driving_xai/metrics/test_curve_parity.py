"""Deletion and insertion of a classifier against torch-cam's metric, float64."""

from __future__ import annotations

import pytest
import torch
import torchcam.methods
from torch import nn
from torchcam.metrics import DeletionInsertionMetric

from driving_xai.explain.cam import GradCAM
from driving_xai.metrics.curves import area, deletion, insertion, rank
from driving_xai.targets import output
from driving_xai.types import Outputs

SIDE, STEPS = 16, 16


class Net(nn.Module):
    """Feature maps as large as the frame and positive evidence everywhere: maps without ties."""

    outputs = Outputs(kind="multiclass", names=("a", "b", "c", "d"))

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)
        nn.init.constant_(self.features.bias, 3.0)
        nn.init.uniform_(self.head.weight, 0.1, 0.5)

    def forward(self, frames):
        return self.head(self.features(frames).square().mean((2, 3)))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().double().eval()


def test_areas_equal_torchcams(net):
    frames = torch.rand(3, 3, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    predicted = net(frames).argmax(1)
    with torchcam.methods.GradCAM(net, net.features) as extractor:
        # On logits: with a softmax, theirs would also explain the probability instead of the logit.
        peer = DeletionInsertionMetric(extractor, steps=STEPS)
        peer.update(frames, class_idx=predicted.tolist())

    def of_predicted(scores):
        wanted = predicted.view(-1, 1, 1).expand(-1, scores.shape[1], 1)
        return scores.gather(-1, wanted).squeeze(-1)

    explain = GradCAM(layer=net.features)
    saliency = torch.stack(
        [explain(net, frame[None], output(int(k)))[0] for frame, k in zip(frames, predicted, strict=True)]
    )
    assert all(each.unique().numel() == SIDE * SIDE for each in saliency.float()), (
        "parity needs maps without ties"
    )
    ranks = rank(saliency, torch.Generator().manual_seed(0))
    fractions = [step / STEPS for step in range(STEPS + 1)]
    for curve, theirs in ((deletion, "deletion_auc"), (insertion, "insertion_auc")):
        ours = area(fractions, of_predicted(curve(net, frames, ranks, fractions))).mean().item()
        # Theirs integrates over fractions in float32.
        assert ours == pytest.approx(peer.summary()[theirs], rel=1e-6)
