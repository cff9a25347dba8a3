"""Numbers as lines of text."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from data_prep.errors import DataError
from driving_xai.evaluation.references import spoken

if TYPE_CHECKING:
    from driving_xai.evaluation.verdicts import Verdict

Against = Literal["unmodified", "truth"]
"""What the scores that are shown compare with, where there is a choice."""


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


def results(summary: Mapping[str, Any], folder: Path | str, *, against: Against = "unmodified") -> list[str]:
    """The scores that are shown by default, then the verdict of each in a sentence.

    Args:
        summary: the content of results.json.
        folder: where it lies.
        against: `truth` shows the scores against the recorded truth, with their warning.
    """
    from driving_xai.evaluation.verdicts import TRUTH_WARNING, is_headline, verdicts_of

    keys = [(score["measure"], score["reference"]) for score in summary["scores"]]
    default = {key for key in keys if is_headline(*key, keys)}
    if against == "truth":
        # Of a measure without a choice, what there is.
        shown = {key for key in keys if key not in default or (key[0], "truth") not in keys}
    else:
        shown = default
    chosen = [score for score, key in zip(summary["scores"], keys, strict=True) if key in shown]
    verdicts = [
        verdict
        for verdict in verdicts_of(summary, headline=False)
        if (verdict.measure, verdict.reference) in shown
    ]
    across = [*across_fills(summary, against=against), ""] if "fills" in summary else []
    lines = [f"{folder}:", *across, *scores(chosen), "", *_sentences(verdicts)]
    if against == "unmodified":
        lines += _between_methods(summary)
    if against == "truth":
        return [*lines, "", *_wrapped(TRUTH_WARNING)]
    if set(keys) - shown:
        lines += ["", f"The same against the recorded truth: driving-xai info {folder} --against truth"]
    return lines


def _sentences(verdicts: Sequence[Verdict]) -> list[str]:
    """Each verdict below its score, for a line of 80 columns."""
    from driving_xai.evaluation.verdicts import in_words

    lines: list[str] = []
    for verdict in verdicts:
        if (heading := f"{in_words(verdict.measure, verdict.reference)}:") not in lines:
            lines.append(heading)
        lines += _wrapped(f"{verdict.method}: {verdict.sentence}", indent="  ")
    return lines


def _between_methods(summary: Mapping[str, Any]) -> list[str]:
    """Each two methods in a sentence, below a heading for each score."""
    from driving_xai.evaluation.method_comparison import compare_methods

    lines: list[str] = []
    for found in compare_methods(summary):
        if (heading := f"{found.name}, methods against each other:") not in lines:
            lines += ["", heading]
        lines += _wrapped(found.sentence, indent="  ")
    return lines


def _wrapped(text: str, *, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        78,
        initial_indent=indent,
        subsequent_indent=2 * indent,
        break_on_hyphens=False,
        break_long_words=False,
    )


def scores(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each method under each measure: the mean, its interval, the frames behind it."""
    lines = [f"{'measure':<21} {'against':<11} {'method':<25} {'mean':>10}  {'interval':<23} {'frames':>7}"]
    for each in found:
        value = each["value"]
        constant = each.get("degenerate") == each["frames"] != 0
        lines.append(
            f"{each['measure']:<21} {spoken(each['reference']):<11} "
            f"{each['method']:<25} {_number(value['mean']):>10}  "
            f"[{_number(value['low']):>10},{_number(value['high']):>10}] {each['frames']:>7,}"
            + ("  all maps constant" if constant else "")
        )
    return lines


def across_fills(summary: Mapping[str, Any], *, against: Against) -> list[str]:
    """Each method's smallest margin over the controls under any fill, then what it shows in a sentence.

    Args:
        summary: the content of results.json, of a run under several fills.
        against: as in `results`.
    """
    from driving_xai.evaluation.fill_margins import by_default, sentence
    from driving_xai.evaluation.verdicts import in_words

    wants_truth = against == "truth"
    shown = [each for each, is_default in by_default(summary["fills"]) if is_default != wants_truth]
    if not shown:
        return []
    lines = [
        f"{'under every fill':<21} {'against':<11} {'method':<25} {'margin':>10}  {'interval':<23} {'least':<6} over"
    ]
    for each in shown:
        margin = each["margin"]
        lines.append(
            f"{each['measure']:<21} {spoken(each['reference']):<11} {each['method']:<25} "
            f"{_number(margin['mean']):>10}  [{_number(margin['low']):>10},{_number(margin['high']):>10}] "
            f"{each['fill'] or '-':<6} {each['control'] or '-'}"
        )
    said: list[str] = []
    for each in shown:
        if (heading := f"{in_words(each['measure'], each['reference'])}, under every fill:") not in said:
            said.append(heading)
        said += _wrapped(f"{each['method']}: {sentence(each, summary)}", indent="  ")
    return [*lines, "", *said]


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
    """The scores that are not better than a control's with their whole interval.

    Those that are shown by default count, of measures that depend on the model: neither the recorded truth beside
    the unmodified prediction, nor sparseness and complexity, which are of the map alone.
    """
    from driving_xai.evaluation.claims import shows_the_model
    from driving_xai.evaluation.verdicts import is_headline

    worse = []
    known = [(each["measure"], each["reference"]) for each in summary["differences"]]
    for each in summary["differences"]:
        if not is_headline(each["measure"], each["reference"], known):
            continue
        if not shows_the_model(summary["measures"][each["measure"]]):
            continue
        low, high = each["value"]["low"], each["value"]["high"]
        faithful = summary["measures"][each["measure"]]["faithful"]
        better = low is not None and (low > 0 if faithful == "high" else high < 0)
        if each["control"] == control and not better:
            of = f"{each['method']} by {each['measure']} against {spoken(each['reference'])}"
            worse.append(f"{of}, difference [{_number(low)}, {_number(high)}]")
    return worse


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.3f}"
