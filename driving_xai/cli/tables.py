"""Numbers as lines of text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from data_prep.errors import DataError


def steering_error(metrics: Mapping[str, Any]) -> str:
    """The tested error, or else the validated one, and that of always driving straight."""
    for split in ("test", "val"):
        if split in metrics:
            found = metrics[split]
            return (
                f"mean absolute error {found['mae_deg']:.2f} deg on {found['frames']:,} {split} frames; "
                f"always straight {found['mae_deg_zero']:.2f} deg"
            )
    return "nothing was held out to test on"


def action_accuracy(metrics: Mapping[str, Any]) -> str:
    """The tested accuracy and F1, or else the validated ones, and those of each label's majority."""
    for split in ("test", "val"):
        if split in metrics:
            found, trivial = metrics[split], metrics[split]["majority"]
            by_action = ", ".join(f"{name} {value:.3f}" for name, value in found["f1"].items())
            return (
                f"accuracy {found['accuracy']:.1%} on {found['images']:,} {split} images, majority "
                f"{trivial['accuracy']:.1%}; F1 {by_action}, mean {found['mf1']:.3f} (majority "
                f"{trivial['mf1']:.3f}), by image {found['f1_all']:.3f}"
            )
    return "nothing was held out to test on"


def class_accuracy(metrics: Mapping[str, Any]) -> str:
    """The tested accuracy, or else the validated one, and that of always choosing the most common class."""
    for split in ("test", "val"):
        if split in metrics:
            found = metrics[split]
            return (
                f"accuracy {found['accuracy']:.3f} on {found['images']:,} {split} images; "
                f"always the commonest class {found['accuracy_majority']:.3f}"
            )
    return "nothing was held out to test on"


def self_distillation(metrics: Mapping[str, Any]) -> str:
    """The last epoch's loss, and whether the teacher still tells images apart."""
    return (
        f"loss {metrics['train_loss']:.3f} after {metrics['epochs']} epochs; teacher's entropy "
        f"{metrics['teacher_entropy']:.3f} of an image, {metrics['teacher_spread']:.3f} of all (0 to 1; collapsed where "
        "they are alike)"
    )


def achieved(kind: str, metrics: Mapping[str, Any]) -> str:
    """What a checkpoint's metrics say of it, in one line.

    Raises:
        DataError: they are not as the recipe writes them.
    """
    lines = {
        "steering": steering_error,
        "actions": action_accuracy,
        "dino": self_distillation,
        "classifier": class_accuracy,
        "bounded-logit": class_accuracy,
    }
    try:
        return lines[kind](metrics) if kind in lines else json.dumps(metrics, sort_keys=True)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"metrics.json is not as the recipe of {kind} writes it ({error}); train again or copy it anew"
        ) from None


def scores(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each method under each measure: the mean, its interval, the frames behind it."""
    lines = [f"{'measure':<21} {'against':<11} {'method':<25} {'mean':>10}  {'interval':<23} {'frames':>7}"]
    for each in found:
        value = each["value"]
        lines.append(
            f"{each['measure']:<21} {each['reference']:<11} {each['method']:<25} {_number(value['mean']):>10}  "
            f"[{_number(value['low']):>10},{_number(value['high']):>10}] {each['frames']:>7,}"
        )
    return lines


def sanity(means: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each quantity that was checked; of cascading randomisation the last stage only."""
    lines = [
        f"{'check':<12} {'method':<22} {'beside':<24} {'quantity':<26} {'mean':>8}  {'interval':<19} {'frames':>7}"
    ]
    last = {each["method"]: each["beside"] for each in means if each["check"] == "cascading"}
    for each in means:
        if each["check"] == "cascading" and each["beside"] != last[each["method"]]:
            continue
        beside = "every layer" if each["check"] == "cascading" else each["beside"]
        value = each["value"]
        lines.append(
            f"{each['check']:<12} {each['method']:<22} {beside:<24} {each['quantity']:<26} "
            f"{_number(value['mean']):>8}  [{_number(value['low']):>8},{_number(value['high']):>8}] {each['frames']:>7,}"
        )
    return lines


def not_better(summary: Mapping[str, Any], control: str) -> list[str]:
    """The scores of a summary that are not better than a control's with their whole interval."""
    worse = []
    for each in summary["differences"]:
        low, high = each["value"]["low"], each["value"]["high"]
        faithful = summary["measures"][each["measure"]]["faithful"]
        better = low is not None and (low > 0 if faithful == "high" else high < 0)
        if each["control"] == control and not better:
            of = f"{each['method']} by {each['measure']} against {each['reference']}"
            worse.append(f"{of}, difference [{_number(low)}, {_number(high)}]")
    return worse


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.3f}"
