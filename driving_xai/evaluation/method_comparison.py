"""Two methods of one result against each other, on the frames of both, in a sentence."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from driving_xai.evaluation.claims import claim_of
from driving_xai.evaluation.judgement import Judgement, comparisons_of, judge, pair_of
from driving_xai.evaluation.verdicts import chance, in_words, is_headline, number

_MOST_METHODS = 4
"""Of more methods there are more pairs than anybody reads as sentences; the report's table has them all."""


@dataclass(frozen=True, kw_only=True)
class MethodDifference:
    """How one method's maps stand to another's under one score.

    Example:
        >>> MethodDifference(
        ...     methods=("grad-cam", "lime"), score=("deletion", "clean"), about={"kind": "curve", "faithful": "high"},
        ...     means=(42.5, 24.1), p=0.0078, judgement="better",
        ... ).sentence
        'The pixels that grad-cam highlights matter more than those of lime (42.5 against 24.1, p 0.008).'
    """

    methods: tuple[str, str]
    score: tuple[str, str]
    """Measure and reference."""
    about: Mapping[str, Any]
    """The measure, as in `measures` of results.json."""
    means: tuple[float | None, float | None]
    p: float | None
    """Corrected for all pairs of methods under the score."""
    judgement: Judgement
    """Of the first method."""

    @property
    def name(self) -> str:
        """The score in words."""
        return in_words(*self.score)

    @property
    def sentence(self) -> str:
        """The finding for a reader who knows no statistics."""
        claim, (first, second) = claim_of(self.about), self.methods
        numbers = " against ".join(map(number, self.means)) + (
            "" if self.p is None else f", p {chance(self.p)}"
        )
        subject, other = claim.subject_of(first), claim.control(second)
        if self.judgement.startswith(("better", "worse")):
            how = claim.more if self.judgement.startswith("better") else claim.less
            return f"{subject[0].upper()}{subject[1:]} {claim.verb} {how} than {other} ({numbers})."
        opening = (
            "No evidence that" if self.judgement == "not shown" else "Too little was scored to tell whether"
        )
        either = f"{claim.more} or {claim.less}"
        return f"{opening} {subject} {claim.verb} {either} than {other} ({numbers})."


def compare_methods(summary: Mapping[str, Any]) -> Iterator[MethodDifference]:
    """Every two methods under each score that is shown by default, where they are few; controls are left out.

    Args:
        summary: the content of results.json.
    """
    keys = list(dict.fromkeys((score["measure"], score["reference"]) for score in summary["scores"]))
    for key in keys:
        if not is_headline(*key, keys):
            continue
        about, compared = summary["measures"][key[0]], comparisons_of(summary, key)
        means = {
            score["method"]: score["value"]["mean"]
            for score in summary["scores"]
            if (score["measure"], score["reference"]) == key and score["method"] not in summary["controls"]
        }
        if len(means) > _MOST_METHODS:
            continue
        for first, second in itertools.combinations(means, 2):
            pair = pair_of(compared.pairs, first, second)
            if pair is not None:
                yield MethodDifference(
                    methods=(first, second),
                    score=key,
                    about=about,
                    means=(means[first], means[second]),
                    p=pair["p_holm"],
                    judgement=judge(
                        pair,
                        faithful=about["faithful"],
                        level=summary["intervals"]["level"],
                        tested=compared.tested,
                    ),
                )
