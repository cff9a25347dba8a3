"""Targets by name, and what each is worth."""

import pytest
import torch

from driving_xai.contracts import Outputs
from driving_xai.errors import DataError
from driving_xai.targets import by_name, closeness, held_at, left, magnitude

STEERING = Outputs(kind="regression", names=("inverse turning radius",), unit="1/m")
ACTIONS = Outputs(kind="multilabel", names=("forward", "stop"))


def test_directions_of_steering() -> None:
    scores = torch.tensor([[0.2], [-0.3]], requires_grad=True)
    values = {name: by_name(name, STEERING)(scores) for name in ("left", "right", "magnitude")}
    torch.testing.assert_close(values["left"], torch.tensor([0.2, -0.3]))
    torch.testing.assert_close(values["right"], torch.tensor([-0.2, 0.3]))
    torch.testing.assert_close(values["magnitude"], torch.tensor([0.2, 0.3]))
    (gradient,) = torch.autograd.grad(values["magnitude"].sum(), scores)
    assert gradient.flatten().tolist() == [1, -1]


def test_an_output_by_its_name_and_unknown_names() -> None:
    assert by_name("stop", ACTIONS)(torch.tensor([[1.0, 2.0]])).item() == 2
    with pytest.raises(DataError, match="'banana' is unknown; this model has left, right, magnitude"):
        by_name("banana", STEERING)
    with pytest.raises(DataError, match="this model has forward, stop"):
        by_name("left", ACTIONS)


def test_closeness_is_zero_and_flat_at_the_clean_prediction() -> None:
    clean = torch.tensor([[0.5]])
    assert closeness(clean)(torch.tensor([[0.5], [0.7]]))[0] == 0
    torch.testing.assert_close(closeness(clean)(torch.tensor([[0.7]])), torch.tensor([-0.2]))
    at = clean.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(closeness(clean)(at).sum(), at)
    assert gradient.item() == 0


def test_magnitude_held_at_the_clean_prediction_keeps_its_side() -> None:
    clean = torch.tensor([[0.2], [-0.3]])
    held = held_at(magnitude, clean)
    torch.testing.assert_close(held(clean), magnitude(clean))
    # Turned over to the other side, the frame has lost more than all of it.
    torch.testing.assert_close(held(torch.tensor([[-0.1], [0.1]])), torch.tensor([-0.1, -0.1]))
    assert held_at(left, clean) is left
