"""Two methods against each other in a sentence, by what results hold of every pair."""

from __future__ import annotations

from typing import Any

import pytest

from driving_xai.evaluation.method_comparison import compare_methods

CURVE = {"kind": "curve", "faithful": "high"}


def pair(
    method: str, other: str, low: float | None, high: float | None, p: float | None, side: int
) -> dict[str, Any]:
    return {
        "measure": "deletion", "reference": "clean", "method": method, "other": other, "blocks": 9, "p": p, "p_holm": p,
        "value": {"mean": None if low is None else (low + high) / 2, "low": low, "high": high},
        "rank_biserial": side, "cohens_dz": 0.1, "cliffs_delta": 0.1,
    }  # fmt: skip


def summary(*pairs: dict[str, Any], means: dict[str, float], about: dict[str, Any] = CURVE) -> dict[str, Any]:
    scores = [
        {"measure": "deletion", "reference": "clean", "method": name, "value": {"mean": mean}}
        for name, mean in {**means, "random": 3.0}.items()
    ]
    return {
        "scores": scores,
        "measures": {"deletion": about},
        "controls": ["random"],
        "comparisons": list(pairs),
        "intervals": {"level": 0.95},
    }


MEANS = {"lime": 24.1, "grad-cam": 42.5}


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (
            pair("lime", "grad-cam", -30.0, -5.0, 0.0078, -1),
            "The pixels that lime highlights matter less than those of grad-cam (24.1 against 42.5, p 0.008).",
        ),
        # Saved the other way round, and the wider interval holds zero.
        (
            pair("grad-cam", "lime", -1.0, 30.0, 0.2, 1),
            "No evidence that the pixels that lime highlights matter more or less than those of grad-cam "
            "(24.1 against 42.5, p 0.200).",
        ),
        # The interval leaves out zero, the test does not reject.
        (
            pair("lime", "grad-cam", -30.0, -5.0, 0.156, -1),
            "No evidence that the pixels that lime highlights matter more or less than those of grad-cam "
            "(24.1 against 42.5, p 0.156).",
        ),
        (
            pair("lime", "grad-cam", None, None, None, 0),
            "Too little was scored to tell whether the pixels that lime highlights matter more or less than those of "
            "grad-cam (24.1 against 42.5).",
        ),
    ],
)
def test_a_pair_is_a_sentence(found: dict[str, Any], sentence: str) -> None:
    (compared,) = compare_methods(summary(found, means=MEANS))
    assert compared.sentence == sentence
    assert compared.name == "deletion, against the unmodified prediction"


def test_low_is_better_where_the_measure_says_so() -> None:
    less = summary(
        pair("lime", "grad-cam", -30.0, -5.0, 0.0078, -1), means=MEANS, about={**CURVE, "faithful": "low"}
    )
    (compared,) = compare_methods(less)
    assert compared.judgement == "better"


def test_controls_and_more_methods_than_anybody_reads_are_left_out() -> None:
    with_control = summary(pair("lime", "random", 1.0, 2.0, 0.001, 1), means={"lime": 24.1})
    assert list(compare_methods(with_control)) == []
    many = {f"m{at}": 1.0 for at in range(5)}
    assert list(compare_methods(summary(pair("m0", "m1", 1.0, 2.0, 0.001, 1), means=many))) == []
