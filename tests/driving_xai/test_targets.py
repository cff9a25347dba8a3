"""Targets by name, and what each is worth."""

import pytest
import torch
from torch import nn

from driving_xai import explain, metrics
from driving_xai.errors import DataError
from driving_xai.targets import (
    by_name,
    checked,
    closeness,
    explained_by,
    held_at,
    left,
    magnitude,
    output,
    predicted,
)
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


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
@pytest.mark.parametrize("columns", [1, 3])
def test_predicted_is_one_rule_by_name_and_by_scores_of_classes_and_labels(kind, columns: int) -> None:
    outputs = Outputs(kind=kind, names=tuple("abc"[:columns]))
    clean, edited = torch.randn(4, columns), torch.randn(8, columns)
    found = predicted(clean, outputs)(edited)
    assert torch.equal(found, by_name("predicted", outputs)(clean)(edited))
    assert torch.equal(found, edited.gather(1, clean.argmax(1).repeat_interleave(2)[:, None])[:, 0])


def test_predicted_of_one_label_that_is_absent_is_its_score_and_its_probability() -> None:
    """The side that a number chose is a matter of regressors: the negative of a probability is none."""
    one = Outputs(kind="multilabel", names=("pedestrian",))
    model = nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), nn.Linear(3, 1)).eval()
    model.outputs = one
    with torch.no_grad():
        model[2].bias.fill_(-3)
        frames = torch.rand(2, 3, 16, 16)
        clean = model(frames)
        assert (clean < 0).all()
        assert torch.equal(predicted(clean, one)(clean), clean[:, 0])
        result = metrics.Deletion()(model, frames, torch.rand(2, 16, 16), predicted(clean, one))
    torch.testing.assert_close(result.curve[:, 0], clean.sigmoid()[:, 0])


@pytest.mark.parametrize("columns", [1, 2])
def test_predicted_of_a_regressor_is_the_side_of_its_first_output(columns: int) -> None:
    """A larger second output, a speed in m/s say, is no better prediction than a curvature in 1/m."""
    outputs = Outputs(kind="regression", names=("steering", "speed")[:columns])
    clean = torch.tensor([[-0.02, 14.0], [0.01, 9.0]])[:, :columns]
    edited = torch.tensor([[-0.01, 20.0], [0.03, 20.0]])[:, :columns]
    found = predicted(clean, outputs)(edited)
    torch.testing.assert_close(found, torch.tensor([0.01, 0.03]))
    assert torch.equal(found, by_name("magnitude", outputs)(clean)(edited))


def test_further_outputs_of_a_regressor_have_names() -> None:
    outputs = Outputs(kind="regression", names=("steering", "speed"), unit="1/m")
    scores = torch.tensor([[-0.02, 14.0]])
    assert by_name("speed", outputs)(scores)(scores).item() == 14
    with pytest.raises(DataError, match="this model has left, right, magnitude, steering, speed"):
        by_name("predicted", outputs)


@pytest.mark.parametrize(
    ("outputs", "name"),
    [
        (Outputs(kind="regression", names=("steering", "left")), "left"),
        (Outputs(kind="multiclass", names=("go", "predicted")), "predicted"),
    ],
)
def test_an_output_does_not_stand_in_for_a_rule_of_its_name(outputs: Outputs, name: str) -> None:
    with pytest.raises(DataError, match=rf"{name}' is a rule and the name of an output.*output\(1\)"):
        by_name(name, outputs)
    other = outputs.names[0]
    assert by_name(other, outputs)(torch.ones(1, 2))(torch.tensor([[3.0, 4.0]])).item() == 3
    single = Outputs(kind="regression", names=("left",))
    assert by_name("left", single)(torch.ones(1, 1))(torch.tensor([[3.0]])).item() == 3


WRONG = {
    r"\(2, 3\)": lambda scores: scores,
    r"\(\)": lambda scores: scores.sum(),
    r"\(2, 1\)": lambda scores: scores[:, :1],
    r"\(1,\)": lambda scores: scores[:1, 0],
    "float": lambda scores: float(scores.detach().sum()),
}


@pytest.mark.parametrize(("got", "target"), WRONG.items())
def test_a_target_of_another_shape_is_one_line_everywhere(got: str, target) -> None:
    message = (
        rf"^the target gave {got} for scores of shape \(2, 3\), expected \(2,\): one number for each frame"
    )
    with pytest.raises(ValueError, match=message):
        checked(target)(torch.zeros(2, 3))
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.AvgPool2d(8), nn.Flatten()).eval()
    model.outputs = Outputs(kind="multiclass", names=("red", "green", "blue"))
    frames = torch.rand(2, 3, 8, 8)
    for explainer in (explain.GradCAM(layer="0"), explain.Gradient(), explain.Occlusion()):
        with pytest.raises(ValueError, match="the target gave"):
            explainer(model, frames, target)
        with pytest.raises(ValueError, match="the target gave"):
            explainer.explain_each(model, frames, [output(0), target])
    for metric in (metrics.Deletion(), metrics.AverageDrop(), metrics.Infidelity()):
        with pytest.raises(ValueError, match="the target gave"):
            metric(model, frames, torch.rand(2, 8, 8), target)
    with pytest.raises(ValueError, match="the target gave"):
        metrics.MaxSensitivity()(model, frames, explain.Gradient(), target)


def test_an_output_that_is_not_there_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"^got target output\(7\) for scores of 3 columns, from 0$"):
        output(7)(torch.zeros(2, 3))
    assert output(-1)(torch.tensor([[1.0, 2.0]])).item() == 2


def test_magnitude_stays_itself_where_targets_are_checked() -> None:
    """Explainers that edit frames hold it at the clean prediction, and know it by its identity."""
    assert checked(magnitude) is magnitude
