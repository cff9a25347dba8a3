"""The heavier side on a model whose evidence is known, and attention as a factor."""

import pytest
import torch

from driving_xai.errors import UnsupportedModelError
from driving_xai.explain.attention import AttentionWeighted, LearnedMap
from driving_xai.explain.gradient import Gradient, HeavierSide, IntegratedGradients
from driving_xai.explain.registry import fitted
from driving_xai.metrics.curves import deletion, rank
from driving_xai.models.steering import SteeringConfig, SteeringModel
from driving_xai.targets import left, magnitude
from driving_xai.types import Outputs


class Linear:
    """u = sum of w * x: the contribution of a pixel to black is w * x."""

    outputs = Outputs(kind="regression", names=("u",))

    def __init__(self, weights: torch.Tensor) -> None:
        self.weights = weights

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        return (frames * self.weights).sum((1, 2, 3))[:, None]


def weights_with(positive: float, negative: float) -> torch.Tensor:
    """The upper half speaks for u, the lower half against it."""
    weights = torch.full((3, 4, 8), positive, dtype=torch.float64)
    weights[:, 2:] = negative
    return weights


@pytest.mark.parametrize(("negative", "turned"), [(-0.5, False), (-2.0, True)])
def test_the_side_that_weighs_more_comes_first(negative: float, turned: bool) -> None:
    frames = torch.ones(2, 3, 4, 8, dtype=torch.float64)
    model = Linear(weights_with(1.0, negative))
    signed = Gradient(times="input")(model, frames, left)
    found = HeavierSide(signed=Gradient(times="input"))(model, frames, left)
    torch.testing.assert_close(found, -signed if turned else signed)


def test_each_frame_chooses_its_own_side() -> None:
    frames = torch.ones(2, 3, 4, 8, dtype=torch.float64)
    frames[1, :, :2] = 0.1  # Little is left there to speak for u.
    model = Linear(weights_with(1.0, -0.5))
    found = HeavierSide(signed=Gradient(times="input"))(model, frames, left)
    assert (found[0, :2] > 0).all()
    assert (found[1, 2:] > 0).all()


def test_no_order_of_a_linear_model_moves_it_further() -> None:
    """No other set of as many pixels as the share moves the output further than the heavier side's."""
    generator = torch.Generator().manual_seed(0)
    model = Linear(torch.randn(3, 4, 8, generator=generator, dtype=torch.float64))
    frames = torch.rand(3, 3, 4, 8, generator=generator, dtype=torch.float64)
    saliency = HeavierSide(signed=IntegratedGradients(steps=1))(model, frames, magnitude)
    fractions = [k / 32 for k in range(9)]
    moved = deletion(model, frames, rank(saliency, generator), fractions)[..., 0] - model(frames)
    contributions = (frames * model.weights).sum(1).flatten(1)
    for sides in (contributions, -contributions):
        best = sides.sort(1, descending=True).values.clamp(min=0).cumsum(1)[:, 7]
        assert (moved[:, 8].abs() >= best - 1e-6).all()


def test_attention_is_a_factor() -> None:
    model = SteeringModel(SteeringConfig(attention="soft", hidden_size=8, height=32, width=48)).eval()
    frames = torch.rand(2, 3, 32, 48)
    plain = Gradient(times="input")
    weighted = AttentionWeighted(explainer=plain)(model.at(None), frames, left)
    attention = LearnedMap()(model.at(None), frames, left)
    torch.testing.assert_close(weighted, attention * plain(model.at(None), frames, left))


def test_without_attention_or_with_a_wrong_share_it_says_so() -> None:
    model = SteeringModel(SteeringConfig(attention="none", hidden_size=8, height=32, width=48)).eval()
    with pytest.raises(UnsupportedModelError, match="writes no attention map"):
        fitted("heavier-side-attention-ig", model)
    with pytest.raises(ValueError, match="got share 0"):
        HeavierSide(signed=Gradient(), share=0.0)
