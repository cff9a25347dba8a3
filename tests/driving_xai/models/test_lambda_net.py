"""The lambda layer against a loop over positions, and the networks made of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from driving_xai.models.lambda_layer import LambdaLayer
from driving_xai.models.lambda_net import (
    LambdaAttentionBranchNetwork,
    LambdaConfig,
    LambdaResNet,
)

SMALL = LambdaConfig(stages=(1, 1), width=8, stem="small", heads=2, key_depth=4, context=5, split=1)


def _layer(form: str, context: int = 5) -> LambdaLayer:
    torch.manual_seed(0)
    layer = LambdaLayer(8, heads=2, key_depth=3, context=context, form=form).double()
    with torch.no_grad():
        layer.embedding_bias.normal_()
        # Statistics of its own, so that normalisation does something in eval mode.
        layer(torch.rand(16, 8, 6, 7, dtype=torch.float64))
    return layer.eval()


@torch.no_grad()
def _twin(layer: LambdaLayer, maps: torch.Tensor) -> torch.Tensor:
    """One lambda and one product for each position, head and image, from the equations."""
    batch, channels, height, width = maps.shape
    queries, keys, values = (
        part(maps.flatten(2)).unflatten(2, (height, width))
        for part in (layer.queries, layer.keys, layer.values)
    )
    depth, reach = layer.key_depth, layer.context // 2
    result = torch.zeros(batch, channels, height, width, dtype=maps.dtype)
    for b in range(batch):
        weights = keys[b].flatten(1).exp()
        weights = (weights / weights.sum(1, keepdim=True)).unflatten(1, (height, width))
        cells = [(i, j) for i in range(height) for j in range(width)]
        content = sum(torch.outer(weights[:, i, j], values[b, :, i, j]) for i, j in cells)
        for i, j in cells:
            position = layer.embedding_bias[:, None].expand(depth, values.shape[1]).clone()
            for y in range(max(0, i - reach), min(height, i + reach + 1)):
                for x in range(max(0, j - reach), min(width, j + reach + 1)):
                    tap = layer.embedding[:, y - i + reach, x - j + reach]
                    position += torch.outer(tap, values[b, :, y, x])
            for h in range(layer.heads):
                query = queries[b, h * depth : (h + 1) * depth, i, j]
                part = slice(h * values.shape[1], (h + 1) * values.shape[1])
                result[b, part, i, j] = (content + position).T @ query
    return result


@pytest.mark.parametrize("form", ["auto", "convolution", "rows", "dense"])
@pytest.mark.parametrize("context", [3, 5, 15])
def test_every_form_is_the_loop_over_positions(form, context):
    layer = _layer(form, context)
    maps = torch.rand(2, 8, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(layer(maps).detach(), _twin(layer, maps), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("form", ["rows", "dense"])
@pytest.mark.parametrize("images", [1, 2])
def test_every_form_has_the_same_gradients(form, images):
    maps = torch.rand(images, 8, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = {}
    for each in ("convolution", form):
        layer = _layer(each)
        layer(maps).square().sum().backward()
        found[each] = {name: weight.grad for name, weight in layer.named_parameters()}
    for name, gradient in found["convolution"].items():
        torch.testing.assert_close(found[form][name], gradient, rtol=1e-9, atol=1e-11)
    assert found["convolution"]["embedding"].abs().max() > 0


def test_the_content_lambda_is_open_to_hooks():
    """lambda_c^T q is what is left of the output where the embedding is zero."""
    layer = _layer("auto")
    with torch.no_grad():
        layer.embedding.zero_()
        layer.embedding_bias.zero_()
    seen: list[torch.Tensor] = []
    layer.content.register_forward_hook(lambda _layer, _taken, given: seen.append(given))
    maps = torch.rand(2, 8, 6, 7, dtype=torch.float64)
    torch.testing.assert_close(layer(maps), seen[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("form", ["convolution", "rows", "dense"])
def test_the_local_context_ends_where_it_should(form):
    """Without keys, a cell's output depends on cells within two of it, and on no other.

    One image: where torch's batch normalisation of maps has wrong gradients, see the layer.
    """
    layer = _layer(form)
    with torch.no_grad():
        layer.content = _Nothing()
    maps = torch.rand(1, 8, 9, 9, dtype=torch.float64, requires_grad=True)
    layer(maps)[0, :, 4, 4].sum().backward()
    reached = maps.grad[0].abs().sum(0) > 0
    expected = torch.zeros(9, 9, dtype=torch.bool)
    expected[2:7, 2:7] = True
    assert torch.equal(reached, expected)


class _Nothing(nn.Module):
    def forward(self, maps):
        return torch.zeros_like(maps)


def test_a_stage_halves_the_map_and_doubles_the_width():
    net = LambdaResNet(SMALL, classes=3).eval()
    maps = net.blocks[0](net.stem(torch.rand(1, 3, 16, 20)))
    assert maps.shape == (1, 32, 16, 20)
    assert net.blocks[1](maps).shape == (1, 64, 8, 10)


def test_the_default_has_the_parameters_of_a_lambda_resnet_50():
    """15 million in Bello 2021, Table 2; 22 million with the attention branch in Iida et al. 2022."""
    with torch.device("meta"):
        plain = LambdaResNet(LambdaConfig(), classes=1000)
        branch = LambdaAttentionBranchNetwork(LambdaConfig(), classes=2)
    counts = [sum(weight.numel() for weight in net.parameters()) / 1e6 for net in (plain, branch)]
    assert 14 < counts[0] < 16
    assert 21 < counts[1] < 24


def test_what_the_map_leaves_out_takes_no_part():
    """Below the threshold nothing passes: features there may be anything."""
    torch.manual_seed(0)
    net = LambdaAttentionBranchNetwork(SMALL, classes=2).eval()
    images = torch.rand(2, 3, 16, 16)
    found = net.branches(images)
    assert ((found.attention > 0) & (found.attention < 1)).all()
    net.threshold = 0.999999
    nothing = net.branches(images)
    torch.testing.assert_close(nothing.scores[0], nothing.scores[1])
    assert torch.equal(nothing.branch_scores, found.branch_scores)
    net.threshold = 0.0
    handle = net.attend.register_forward_hook(lambda _net, _taken, given: torch.ones_like(given))
    everything = net.branches(images).scores
    handle.remove()
    plain = net.head(net.perceive(net.extract(images)).mean((2, 3)))
    torch.testing.assert_close(everything, plain)


def test_gradient_reaches_every_weight():
    torch.manual_seed(0)
    net = LambdaAttentionBranchNetwork(SMALL, classes=2)
    net.threshold = 0.3
    found = net.branches(torch.rand(4, 3, 16, 16))
    (found.scores.square().sum() + found.branch_scores.square().sum()).backward()
    idle = [name for name, weight in net.named_parameters() if weight.grad is None]
    assert not idle


@pytest.mark.parametrize("wrong", [{"split": 3}, {"heads": 3}, {"context": 4}, {"threshold": 1.0}])
def test_an_impossible_architecture_is_refused(wrong):
    settings = {"stages": (1, 1), "width": 8, "split": 1, **wrong}
    with pytest.raises(ValueError, match="expected"):
        LambdaAttentionBranchNetwork(LambdaConfig(**settings), classes=2)
