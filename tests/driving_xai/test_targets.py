"""Targets by name, and what each is worth."""

import pytest
import torch

from driving_xai.errors import DataError
from driving_xai.targets import by_name, closeness, explained_by, held_at, left, magnitude, output
from driving_xai.types import Outputs

STEERING = Outputs(kind="regression", names=("inverse turning radius",), unit="1/m")
ACTIONS = Outputs(kind="multilabel", names=("forward", "stop"))


def test_directions_of_steering() -> None:
    scores = torch.tensor([[0.2], [-0.3]], requires_grad=True)
    rules = {name: by_name(name, STEERING) for name in ("left", "right", "magnitude")}
    values = {name: rule(scores)(scores) for name, rule in rules.items()}
    torch.testing.assert_close(values["left"], torch.tensor([0.2, -0.3]))
    torch.testing.assert_close(values["right"], torch.tensor([-0.2, 0.3]))
    torch.testing.assert_close(values["magnitude"], torch.tensor([0.2, 0.3]))
    (gradient,) = torch.autograd.grad(values["magnitude"].sum(), scores)
    assert gradient.flatten().tolist() == [1, -1]
    assert torch.equal(magnitude(scores), values["magnitude"])


def test_a_direction_stays_the_one_the_clean_prediction_chose() -> None:
    """Two frames of three variants each: a turn to the other side counts against."""
    target = by_name("magnitude", STEERING)(torch.tensor([[0.2], [-0.3]]))
    edited = torch.tensor([[0.1], [0.0], [-0.4], [0.1], [0.0], [-0.4]])
    torch.testing.assert_close(target(edited), torch.tensor([0.1, 0.0, -0.4, -0.1, 0.0, 0.4]))


def test_the_predicted_class_stays_the_one_of_the_clean_frame() -> None:
    target = by_name("predicted", ACTIONS)(torch.tensor([[1.0, 2.0], [5.0, -1.0]]))
    edited = torch.tensor([[9.0, 1.0], [9.0, 2.0], [3.0, 8.0], [4.0, 8.0]])
    assert target(edited).tolist() == [1.0, 2.0, 3.0, 4.0]


def test_an_output_by_its_name_and_unknown_names() -> None:
    scores = torch.tensor([[1.0, 2.0]])
    assert by_name("stop", ACTIONS)(scores)(scores).item() == 2
    with pytest.raises(DataError, match="'banana' is unknown; this model has left, right, magnitude"):
        by_name("banana", STEERING)
    with pytest.raises(DataError, match="this model has predicted, forward, stop"):
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


def test_rise_and_lime_explain_the_probability_of_an_image_and_others_its_logit() -> None:
    scores = torch.tensor([[2.0, 0.0, -1.0, 0.5], [0.0, 1.0, 3.0, -2.0]])
    several = Outputs(kind="multilabel", names=("a", "b", "c", "d"))
    one = Outputs(kind="multiclass", names=("a", "b", "c", "d"))
    for method in ("rise", "lime@fine"):
        found = explained_by(method, output(1), one)(scores)
        torch.testing.assert_close(found, scores.exp()[:, 1] / scores.exp().sum(1))
        torch.testing.assert_close(
            explained_by(method, output(1), several)(scores), 1 / (1 + (-scores[:, 1]).exp())
        )
        assert torch.equal(explained_by(method, output(1), one, score="logit")(scores), scores[:, 1])
    assert torch.equal(explained_by("gradient", output(1), one)(scores), scores[:, 1])
    steering = Outputs(kind="regression", names=("inverse turning radius",))
    assert explained_by("rise", left, steering) is left
