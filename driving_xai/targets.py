"""Scores to one scalar per sample: a named direction or class, or closeness to the clean prediction.

Explain with the output itself, score with closeness: closeness has a zero gradient at the clean
point, so it must never be the target of a gradient explanation.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from driving_xai.errors import DataError
from driving_xai.types import Outputs, Scores, Target

Direction = Literal["left", "right", "magnitude"]
TargetRule = Callable[[Scores], Target]
"""The clean scores of B frames to the target that these frames are explained by.

Such a target may be given the scores of N = B * V edited frames, the V variants of one frame standing
together, as `RecurrentModel.at` takes them.
"""


def left(scores: Scores) -> Float[Tensor, " B"]:
    """The steering itself: larger is further left."""
    return scores[:, 0]


def right(scores: Scores) -> Float[Tensor, " B"]:
    """The steering negated: larger is further right."""
    return -scores[:, 0]


def magnitude(scores: Scores) -> Float[Tensor, " B"]:
    """sign(u) * u: how far the wheel is turned, towards the side the model itself chose.

    The sign is taken as a constant, so the gradient is that of the output towards the chosen side.
    """
    u = scores[:, 0]
    return u * u.detach().sign()


def held_at(target: Target, clean: Scores) -> Target:
    """The target as it stands at the clean prediction, for frames that are edited afterwards.

    `magnitude` asks about the side that the model chose for the clean frame: where an edit turns the
    wheel over to the other side, that is a loss and not the same strength again. Every other target is
    returned as it is.

    Args:
        clean: the prediction for the unedited frames; its rows pair with the scores' rows.
    """
    return chosen_side(clean) if target is magnitude else target


def output(column: int) -> Target:
    """The score in one column: a class or an action.

    Raises:
        ValueError: when it is called, the scores have no such column.

    Example:
        >>> output(1)(torch.tensor([[0.1, 2.0], [3.0, 1.0]]))
        tensor([2., 1.])
    """

    def score_of_column(scores: Scores) -> Float[Tensor, " B"]:
        if not -scores.shape[1] <= column < scores.shape[1]:
            raise ValueError(f"got target output({column}) for scores of {scores.shape[1]} columns, from 0")
        return scores[:, column]

    return score_of_column


def closeness(clean: Scores) -> Target:
    """-|score - clean score|, summed over the columns: zero at the clean prediction, negative elsewhere.

    Args:
        clean: the prediction for the unedited frames; its rows pair with the scores' rows.
    """

    def negative_distance(scores: Scores) -> Float[Tensor, " B"]:
        return -(scores - clean).abs().sum(dim=1)

    return negative_distance


def chosen_side(clean: Scores) -> Target:
    """Steering towards the side that the clean prediction chose: sign(u_clean) * u.

    On the clean frame that is `magnitude`; on an edited frame it stays a direction, where `magnitude`
    would call a turn to the other side as large as this one.
    """
    side = clean[:, 0].detach().sign()

    def towards_it(scores: Scores) -> Float[Tensor, " N"]:
        return scores[:, 0] * _each_variant(side, scores)

    return towards_it


def chosen_output(clean: Scores) -> Target:
    """The score of the output that is highest on the clean frame: the predicted class."""
    return outputs_at(clean.argmax(1))


def predicted(clean: Scores, outputs: Outputs) -> Target:
    """What a model predicts, by what its scores mean.

    Of classes and labels that is the output whose score is highest on each frame, be it below one half, and so of
    a single label its score. Of a regressor it is the side that its first output chose; see `magnitude`.

    Args:
        clean: the prediction for the unedited frames, [B, K]. The target serves these frames and edited variants
            of each.
        outputs: the model's.

    Example:
        >>> two = Outputs(kind="multiclass", names=("go", "stop"))
        >>> predicted(torch.tensor([[0.1, 2.0], [3.0, 1.0]]), two)(torch.tensor([[5.0, 6.0], [7.0, 8.0]]))
        tensor([6., 7.])
    """
    return chosen_side(clean) if outputs.kind == "regression" else chosen_output(clean)


def checked(target: Target) -> Target:
    """The target, which refuses to give anything but one number for each frame.

    Raises:
        ValueError: when it is called, the result has another shape.

    Example:
        >>> checked(lambda scores: scores)(torch.zeros(2, 3))
        Traceback (most recent call last):
        ValueError: the target gave (2, 3) for scores of shape (2, 3), expected (2,): one number for each frame, as scores[:, 0]
    """
    # `held_at` knows it by its identity, and it gives what it should.
    if target is magnitude:
        return target

    def one_for_each_frame(scores: Scores) -> Float[Tensor, " N"]:
        found: object = target(scores)
        if not isinstance(found, Tensor) or found.shape != scores.shape[:1]:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"the target gave {got} for scores of shape {tuple(scores.shape)}, expected ({len(scores)},): "
                "one number for each frame, as scores[:, 0]"
            )
        return found

    return one_for_each_frame


def outputs_at(columns: Int64[Tensor, " B"]) -> Target:
    """The score in a column of each frame's own."""

    def score_of_column(scores: Scores) -> Float[Tensor, " N"]:
        return scores.gather(1, _each_variant(columns, scores)[:, None]).squeeze(1)

    return score_of_column


def _each_variant(per_frame: Tensor, scores: Scores) -> Tensor:
    if len(scores) % len(per_frame):
        raise ValueError(
            f"got scores of {len(scores)} frames for a target of {len(per_frame)}; expected a multiple: make the target "
            "from the scores of these frames"
        )
    return per_frame.repeat_interleave(len(scores) // len(per_frame))


def single(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Values of half precision in single precision, all others as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def probabilities(scores: Float[Tensor, "*variants K"], outputs: Outputs) -> Float[Tensor, "*variants K"]:
    """Of each output: independent where several may be true at once, else of one class among all.

    Scores of half precision, such as autocast gives, become single: NumPy knows no bfloat16, and differences of
    probabilities would be lost.
    """
    scores = single(scores)
    return scores.sigmoid() if outputs.kind == "multilabel" else scores.softmax(-1)


ExplainedScore = Literal["probability", "logit"]
"""What methods that hide parts of an image explain of its output."""
OF_PROBABILITY = ("rise", "lime")
"""Methods whose papers fit the probability of a class; see `explained_by`."""


def hides_parts(method: str) -> bool:
    """Whether a method of this name, or a control that takes its maps, is one of `OF_PROBABILITY`.

    Example:
        >>> [hides_parts(name) for name in ("rise@many", "another-image:lime", "grad-cam")]
        [True, True, False]
    """
    return method.partition("@")[0].removeprefix("another-image:") in OF_PROBABILITY


def explained_by(
    method: str, target: Target, outputs: Outputs, *, score: ExplainedScore = "probability"
) -> Target:
    """What a method explains of an image's output: of `OF_PROBABILITY` the probability, of all others the logit.

    A gradient of a probability fades where the model is sure; differences of probabilities are what RISE and
    LIME weigh. A regression has neither.

    Args:
        method: its literature name, perhaps with a label.
        target: of the logits.
        outputs: the model's.
        score: `logit` takes the logit for every method.

    Source: Petsiuk et al. 2018 (RISE), section 3.1; Ribeiro et al. 2016 (LIME), section 3.2.

    Example:
        >>> two = Outputs(kind="multiclass", names=("a", "b"))
        >>> explained_by("rise", output(0), two)(torch.tensor([[1.0, 1.0]]))
        tensor([0.5000])
    """
    if outputs.kind == "regression" or not hides_parts(method) or score == "logit":
        return target
    return lambda scores: target(probabilities(scores, outputs))


def by_name(name: str, outputs: Outputs) -> TargetRule:
    """The target a user names.

    Of classes and labels it is `predicted` or an output. Of a regressor it is `left`, `right` or `magnitude` of the first
    output, the last of which is what it predicts, or of several outputs one of them by its name.

    Raises:
        DataError: the model has no such target, and the message lists those it has; or the name is that of a rule and
            of an output of this model too.
    """

    def prediction(clean: Scores) -> Target:
        return predicted(clean, outputs)

    rules: dict[str, TargetRule]
    if outputs.kind == "regression":
        rules = {"left": lambda clean: left, "right": lambda clean: right, "magnitude": prediction}
        by_column = outputs.names if len(outputs.names) > 1 else ()
    else:
        rules, by_column = {"predicted": prediction}, outputs.names
    if name in rules and name in by_column:
        raise DataError(
            f"target {name!r} is a rule and the name of an output of this model; rename the output, or give "
            f"targets.output({by_column.index(name)}) from Python"
        )
    rules |= {each: _always(output(column)) for column, each in enumerate(by_column)}
    if name not in rules:
        near = get_close_matches(name, rules, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise DataError(f"target {name!r} is unknown; this model has {', '.join(rules)}{meant}")
    return rules[name]


def _always(target: Target) -> TargetRule:
    return lambda clean: target
