"""A layer's own output as an explanation: lambda attention and LABN's attention."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from driving_xai.errors import UnsupportedModelError
from driving_xai.explain.attention import LearnedMap
from driving_xai.models.lambda_net import LambdaAttentionBranchNetwork, LambdaConfig, LambdaResNet
from driving_xai.targets import output
from driving_xai.types import Cells, OwnMap

CONFIG = LambdaConfig(stages=(1, 1), width=8, stem="small", heads=2, key_depth=4, context=5, split=2)
FRAMES = torch.rand(2, 3, 16, 20, generator=torch.Generator().manual_seed(0))


class _Writes(nn.Module):
    """A network that says which of its layers is an explanation."""

    def __init__(self, network: nn.Module, layer: nn.Module, cells: Cells | None = None) -> None:
        super().__init__()
        self.network = network
        self.own_maps = {"mine": OwnMap(read="layer", layer=layer, cells=cells)}

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.network(frames)


def test_labns_map_is_its_attention():
    torch.manual_seed(0)
    net = LambdaAttentionBranchNetwork(CONFIG, classes=2).eval()
    with torch.no_grad():
        attention = net.branches(FRAMES).attention
    saliency = LearnedMap(map="mine")(_Writes(net, net.attend, Cells(0, 2)).eval(), FRAMES, output(0))
    assert attention.shape == (2, 8, 10)
    torch.testing.assert_close(saliency[:, ::2, ::2], attention)


def test_lambda_attention_is_the_mean_of_what_the_content_lambda_says():
    torch.manual_seed(0)
    net = LambdaResNet(CONFIG, classes=2).eval()
    layer = net.blocks[0].layers[3]
    taken: list[torch.Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _layer, inputs: taken.append(inputs[0].flatten(2)))
    saliency = LearnedMap(map="mine")(_Writes(net, layer.content).eval(), FRAMES, output(0))
    handle.remove()
    with torch.no_grad():
        queries = layer.queries(taken[0]).unflatten(1, (2, 4))
        shared = layer.keys(taken[0]).softmax(-1) @ layer.values(taken[0]).transpose(1, 2)
        # B x heads x values x cells, averaged over all but image and cell.
        mean = torch.einsum("bhkn,bkv->bhvn", queries, shared).mean((1, 2)).unflatten(1, (16, 20))
    torch.testing.assert_close(saliency, mean, rtol=1e-4, atol=1e-7)
    assert (saliency < 0).any()
    assert not any(module._forward_hooks for module in net.modules())


def test_a_layer_without_maps_is_refused():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.Flatten(), nn.Linear(4 * 4 * 5, 2)).eval()
    with pytest.raises(UnsupportedModelError, match="Linear put out maps 1 times"):
        LearnedMap(map="mine")(_Writes(net, net[2]).eval(), FRAMES, output(0))
