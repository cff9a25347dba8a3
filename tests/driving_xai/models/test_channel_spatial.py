"""Channel and spatial attention against their equations, one cell at a time."""

from __future__ import annotations

import math

import pytest
import torch

from driving_xai.models.channel_spatial import ChannelSpatialAttention, parameter_free_attention


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


@pytest.fixture
def maps() -> torch.Tensor:
    return torch.rand(2, 5, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_the_block_is_its_equations(maps):
    torch.manual_seed(0)
    block = ChannelSpatialAttention(5, reduction=2).double()
    block(torch.rand(8, 5, 6, 4, dtype=torch.float64))  # Gives the normalisation statistics of its own.
    block.eval()
    found = block(maps)
    first, second = block.describe[0], block.describe[2]
    for b, frame in enumerate(maps):
        energies = 0
        for pooled in (frame.mean((1, 2)), frame.amax((1, 2))):
            hidden = (first.weight @ pooled + first.bias).clamp(min=0)
            energies = energies + second.weight @ hidden + second.bias
        refined = torch.stack(
            [plane * _sigmoid(float(energy)) for plane, energy in zip(frame, energies, strict=True)]
        )
        kernel, norm = block.look[0].weight[0], block.look[1]
        for i in range(6):
            for j in range(4):
                total = 0.0
                for u in range(7):
                    for v in range(7):
                        row, column = i + u - 3, j + v - 3
                        if 0 <= row < 6 and 0 <= column < 4:
                            cell = refined[:, row, column]
                            total += kernel[0, u, v] * cell.max() + kernel[1, u, v] * cell.mean()
                normed = (total - norm.running_mean[0]) / (norm.running_var[0] + norm.eps).sqrt()
                weight = _sigmoid(float(norm.weight[0] * normed + norm.bias[0]))
                torch.testing.assert_close(found[b, :, i, j], refined[:, i, j] * weight, rtol=1e-9, atol=0)


def test_without_parameters_the_largest_channel_and_place_gain_most():
    maps = torch.rand(2, 5, 16, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    maps[:, 2] += 5
    maps[:, :, 4:9, 4:9] += 1
    channel = parameter_free_attention(maps, parts="channel") / maps
    spatial = parameter_free_attention(maps, parts="spatial") / maps
    assert (channel.amax((2, 3)).argmax(1) == 2).all()
    torch.testing.assert_close(channel, channel[:, :, :1, :1].expand_as(channel), rtol=1e-12, atol=0)
    torch.testing.assert_close(spatial, spatial[:, :1].expand_as(spatial), rtol=1e-12, atol=0)
    assert ((channel > 0) & (channel < 1)).all()
    assert spatial[:, 0, 5:8, 5:8].min() > spatial[:, 0].mean()


def test_both_parts_are_one_after_the_other(maps):
    after = parameter_free_attention(parameter_free_attention(maps, parts="channel"), parts="spatial")
    torch.testing.assert_close(parameter_free_attention(maps), after, rtol=1e-12, atol=0)


def test_attention_without_parameters_does_not_depend_on_the_scale(maps):
    """What it multiplies scales with the maps, the attention itself does not: the unit is kept."""
    scaled = parameter_free_attention(1e-6 * maps)
    torch.testing.assert_close(1e6 * scaled, parameter_free_attention(maps), rtol=1e-9, atol=0)


@pytest.mark.parametrize("value", [0.0, 0.1, 2.0])
def test_constant_maps_are_halved(value):
    """Standardised constants are 0, and the sigmoid of 0 is one half: a quarter for both parts.

    The mean of 49 times 0.1 is not 0.1: what is left of a constant is rounding, not a deviation.
    """
    maps = torch.full((1, 3, 7, 7), value)
    torch.testing.assert_close(parameter_free_attention(maps), maps / 4)
