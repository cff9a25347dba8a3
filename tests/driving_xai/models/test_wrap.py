"""Any network as a model: normalised and resized inside, and refused where its scores are not as named."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from driving_xai.errors import UnsupportedModelError
from driving_xai.models.backbone import IMAGENET_MEAN, IMAGENET_STD
from driving_xai.models.wrap import wrap


def network(outputs: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(outputs)).eval()


def test_frames_are_resized_and_normalised_inside() -> None:
    net, frames = network(), torch.rand(3, 3, 20, 30)
    with torch.no_grad():
        model = wrap(net, outputs="multiclass", names=("a", "b"), normalise="imagenet", size=(16, 24))
        small = F.interpolate(frames, (16, 24), mode="bilinear", antialias=True)
        mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (IMAGENET_MEAN, IMAGENET_STD))
        torch.testing.assert_close(model(frames), net((small - mean) / std), rtol=0, atol=0)
        torch.testing.assert_close(model(small), model(frames), rtol=0, atol=0)
    assert model.input_size == (16, 24)


def test_a_regressor_has_no_memory_along_a_drive() -> None:
    frames = torch.rand(2, 3, 16, 24)
    model = wrap(network(1), outputs="regression", names=("steering",))
    with torch.no_grad():
        scores, attention, state = model.step(frames, None)
        assert attention is None
        assert state == ()
        assert torch.equal(scores, model.at(state)(frames))
    assert model.outputs.unit == "1/m"


@pytest.mark.parametrize("gave", [lambda frames: frames.mean((2, 3)), lambda frames: (frames,)])
def test_scores_that_are_not_those_named_are_refused(gave) -> None:
    net = nn.Module()
    net.forward = gave  # type: ignore[method-assign]
    with pytest.raises(UnsupportedModelError, match=r"expected \(2, 2\): a score for each"):
        wrap(net, outputs="multilabel", names=("a", "b"))(torch.rand(2, 3, 4, 4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"names": ()}, "one or more"),
        ({"names": ("a", "a")}, "none twice"),
        ({"names": ("a",), "normalise": ((0.0,) * 3, (1.0, 0.0, 1.0))}, "expected over 0"),
    ],
)
def test_settings_that_say_nothing_are_refused(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        wrap(network(1), outputs="multiclass", **settings)
