"""Thresholds: their text form, which scores they mean, and that doubt counts against a score."""

from __future__ import annotations

import pytest

from driving_xai.evaluation.gates import Threshold, verdicts


def _score(method: str, measure: str, reference: str, low: float | None, high: float | None) -> dict:
    value = {"mean": 1.0, "low": low, "high": high, **({} if low else {"reason": "few frames"})}
    return {"method": method, "measure": measure, "reference": reference, "value": value}


SUMMARY = {
    "controls": ["random"],
    "measures": {"deletion": {"faithful": "high"}, "insertion": {"faithful": "low"}},
    "scores": [
        _score("grad-cam", "deletion", "truth", 10.0, 20.0),
        _score("grad-cam", "deletion", "clean", 5.0, 9.0),
        _score("random", "deletion", "truth", 1.0, 2.0),
        _score("grad-cam", "insertion", "truth", 10.0, 20.0),
        _score("lime", "deletion", "truth", None, None),
    ],
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("deletion=12", Threshold(measure="deletion", value=12)),
        ("deletion/truth=-1e-3", Threshold(measure="deletion", reference="truth", value=-1e-3)),
        ("grad-cam++:deletion=2", Threshold(method="grad-cam++", measure="deletion", value=2)),
        ("deletion/unmodified=1", Threshold(measure="deletion", reference="clean", value=1)),
        ("deletion@blur=1", Threshold(measure="deletion@blur", value=1)),
        (" a:b/c=0.5 ", Threshold(method="a", measure="b", reference="c", value=0.5)),
    ],
)
def test_the_text_form(text, expected):
    assert Threshold.parse(text) == expected


@pytest.mark.parametrize(
    "text", ["", "deletion", "deletion=", "deletion=much", "deletion=nan", "=1", "a:b:c=1"]
)
def test_other_text_is_refused(text):
    with pytest.raises(ValueError, match=r"expected \[METHOD:\]MEASURE"):
        Threshold.parse(text)


@pytest.mark.parametrize(
    ("text", "met"),
    [
        ("grad-cam:deletion/truth=10", [True]),
        ("grad-cam:deletion/truth=10.1", [False]),
        ("grad-cam:insertion=20", [True]),
        ("grad-cam:insertion=19.9", [False]),
        ("grad-cam:deletion=5", [True, True]),
        ("deletion/truth=3", [True, False]),
        ("random:deletion=0.5", [True]),
        ("grad-cam:deletion/unmodified=5.1", [False]),
    ],
)
def test_the_whole_interval_has_to_keep_it(text, met):
    found = verdicts(SUMMARY, Threshold.parse(text))
    assert [verdict.met for verdict in found] == met


def test_a_reason_is_given_either_way():
    missed, unknown = verdicts(SUMMARY, Threshold.parse("deletion/truth=15"))
    assert missed.reason == "mean 1, lower end 10, expected at least 15"
    assert (unknown.method, unknown.reason) == ("lime", "no interval: few frames")


def test_a_threshold_for_nothing_is_a_mistake():
    with pytest.raises(
        ValueError, match=r"any method:auroc/any reference, expected one of: grad-cam:deletion"
    ):
        verdicts(SUMMARY, Threshold.parse("auroc=1"))


def test_without_a_fill_every_fill_has_to_keep_it():
    summary = {
        "controls": [],
        "measures": {f"deletion@{fill}": {"faithful": "high"} for fill in ("black", "blur")},
        "scores": [
            _score("lime", "deletion@black", "clean", 5.0, 9.0),
            _score("lime", "deletion@blur", "clean", 1.0, 2.0),
        ],
    }
    assert [each.met for each in verdicts(summary, Threshold.parse("deletion=3"))] == [True, False]
    assert [each.met for each in verdicts(summary, Threshold.parse("deletion@black=3"))] == [True]
    with pytest.raises(ValueError, match="expected one of: lime:deletion@black/unmodified"):
        verdicts(summary, Threshold.parse("deletion@mean=3"))
