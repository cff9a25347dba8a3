"""What each number of a report means, and what it does not mean, in plain words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from driving_xai.metrics.registry import PATCHES_PX

_KINDS = (*PATCHES_PX, "token", "attention", "logit")


class Term(NamedTuple):
    """One entry of the glossary."""

    name: str
    means: str
    does_not_mean: str

    def explains(self, measure: str) -> bool:
        """Whether it is the measure's entry, or that of its family: pid of pid-8, aupc of aupc-token."""
        measure = measure.partition("@")[0]  # Without the fill.
        return measure in (self.name, *(f"{self.name}-{kind}" for kind in _KINDS))


GENERAL: Sequence[Term] = (
    Term(
        "Map, evidence",
        "A number for each pixel: how much the method says that it mattered for the model's output.",
        "That the model looked there as a person would, or that it understood what it saw.",
    ),
    Term(
        "Faithful",
        "Editing the pixels that the map calls important changes what the model does.",
        "That the model drives well. A faithful map of a bad model shows faithfully why it is bad.",
    ),
    Term(
        "Against the recorded truth",
        "The error is measured from what was recorded, so it contains the model's own mistakes and mostly follows them.",
        "The change that the edit made. Where the model was wrong, an edit can even help it.",
    ),
    Term(
        "Against the unmodified prediction",
        "The change is measured from the model's own output for the unedited frame.",
        "That the output was right to begin with.",
    ),
    Term(
        "Random, centre prior",
        "Controls: pixels in a random order, and from the middle of the frame outwards. They know nothing of "
        "the model, and any explanation has to beat them.",
        "Explanations. A method that does not beat them has shown nothing here.",
    ),
    Term(
        "Interval",
        "Where the mean may lie if other stretches of the same drive had been driven. Whole blocks of frames are "
        "drawn again and again, because neighbouring frames are alike. Under eight blocks there is none; with few, "
        "a 95 % interval holds the mean less often than that.",
        "Where single frames lie, or where the mean of another road, weather or model lies.",
    ),
    Term(
        "Better than a control",
        "Two things at once: the interval of the difference, frame by frame, lies wholly on the faithful side of "
        "zero, and the test speaks for the same side, with a corrected p no more than the interval's level allows "
        "(0.05 at 95 %).",
        "That the difference is large. Its size is in the table of differences.",
    ),
    Term(
        "Not shown",
        "This drive does not tell the two apart: the interval of the difference holds zero, or the test finds "
        "that chance alone may do as much, or speaks for the other side.",
        "That the two are equal. A longer drive may tell them apart.",
    ),
    Term(
        "Place",
        "The order by the mean, and between which places it moves over resampled drives.",
        "A distance: the first may be hardly better than the second.",
    ),
    Term(
        "p, corrected",
        "How often a difference like this comes up by chance where there is none: Wilcoxon's signed-rank test on "
        "means of blocks, corrected (Holm) for testing every method against every control, or every two methods.",
        "The chance that the methods are equal, or that the result will repeat elsewhere.",
    ),
    Term(
        "Effect sizes",
        "Rank-biserial: how one-sided the blocks are, from -1 to 1. Cliff's delta: how often a frame of the one is "
        "above a frame of the other. Cohen's d: the difference in standard deviations from frame to frame.",
        "Importance for safety: an effect can be large and harmless.",
    ),
    Term(
        "Degenerate map",
        "The same value everywhere: it says nothing, and its order of pixels is drawn at random.",
        "A failure of the model. Often the method has no positive evidence to show.",
    ),
    Term(
        "Best and worst frames",
        "Where the chosen score, less what the unedited frame has already, is most and least faithful, from different "
        "moments of the drive.",
        "Typical frames. They are the ends of the range, and one frame proves nothing.",
    ),
)

MEASURES: Sequence[Term] = (
    Term(
        "deletion",
        "The most important pixels are removed step by step. If the map is faithful, the output leaves soon, so "
        "the area under the curve of the error is high.",
        "What the model would do on a real road without these things: an edited frame is no real frame.",
    ),
    Term(
        "deletion-window",
        "As deletion, in every frame of the last moments, each by its own map: the memory of them changes too. If the "
        "maps are faithful, the area under the curve of the error is high.",
        "What the model would do on a real road without these things: edited frames are no real frames.",
    ),
    Term(
        "insertion",
        "Starting from an empty frame, the most important pixels are shown first. If the map is faithful, the "
        "error falls soon, so the area under its curve is low.",
        "That the pixels shown first are enough to drive by.",
    ),
    Term(
        "pointing-game",
        "How often the map's highest pixel lies on, or next to, what is known to cause the label.",
        "That the rest of the map is right too; only its highest point counts.",
    ),
    Term(
        "mass-inside",
        "How much of the map's positive mass lies on what is known to cause the label.",
        "That the model uses these pixels. A map can please the eye and be unfaithful.",
    ),
    Term(
        "top-k-precision",
        "Of as many top pixels as there are causes, how many are causes.",
        "That the order among them is right.",
    ),
    Term(
        "auroc",
        "How often a pixel that causes the label ranks before one that does not; 0.5 is chance.",
        "Precision: with few causes, a high value can still come with many false pixels at the top.",
    ),
    Term(
        "average-precision",
        "How pure the top of the order is, averaged over all causes.",
        "A share that compares across drives: chance depends on how many pixels are causes.",
    ),
    Term(
        "average-drop",
        "How much of the output's confidence is lost where only the map's pixels are kept; low is faithful.",
        "That the kept pixels caused the decision: any picture of the object may keep the confidence.",
    ),
    Term(
        "increase",
        "How often the confidence rises where only the map's pixels are kept; high is faithful.",
        "How much it rises.",
    ),
    Term(
        "insertion-deletion",
        "The area under insertion, on a blurred frame, less that under deletion: of a probability it is high where "
        "the map's pixels both suffice and are needed.",
        "Which of the two made it high. The curve is the difference at each share of pixels, too.",
    ),
    Term(
        "pid",
        "Patch insertion less deletion, on squares of as many pixels a side as its name says: of a probability it "
        "is high where the map's patches both suffice and are needed.",
        "Which of the two made it high. The curve is the difference at each share of patches, too.",
    ),
    Term(
        "infidelity",
        "How badly the map's sum over a square predicts what hiding that square does to the output: 0 where it always "
        "does, 1 where it says nothing.",
        "Whether the map's scale is right: it is judged in its best scale.",
    ),
    Term(
        "sensitivity-n",
        "Whether hiding a random set of pixels costs the more the more the map sums to there: 1 always, 0 no relation.",
        "What whole objects do: the pixels of a set are scattered.",
    ),
    Term(
        "road",
        "What is left without the least important pixels less what is left without the most important ones, halved. "
        "Removed pixels are guessed from their neighbours, so that their outline says nothing.",
        "What the model would do on a real road: a guessed picture is no real one.",
    ),
    Term(
        "sparseness",
        "How few pixels the map concentrates on (Gini index): 0 all alike, near 1 one pixel has everything.",
        "That the few pixels are the right ones. It says nothing of the model.",
    ),
    Term(
        "complexity",
        "Over how many pixels the map is spread (entropy): 0 where one has everything.",
        "That a spread map is wrong. It says nothing of the model.",
    ),
    Term(
        "percentage-in",
        "How much of the probability is left where only the most important pixels are shown, on black; the mean "
        "over several shares.",
        "That the pixels shown caused the decision: any picture of the object may keep the probability.",
    ),
    Term(
        "lime-rank-correlation",
        "Whether the map orders patches as a linear model of hiding them does (LIME): 1 for the same order, 0 for none.",
        "Agreement with the model itself: LIME is an approximation of it, on frames that are half hidden.",
    ),
    Term(
        "aupc",
        "How many of the labels the model still gets right while the most important parts are masked, summed over "
        "the points of the curve; low is faithful, or high where the least important parts were masked first.",
        "Faithfulness to one output: it is counted over all of them.",
    ),
    Term(
        "log-odds",
        "By what factor the accuracy of all frames together falls while the most important parts are masked, as a "
        "sum of logarithms; low is faithful, or high where the least important parts were masked first.",
        "A mean over frames. A frame has no value of its own, so there is no test, only an interval.",
    ),
)

SANITY: Sequence[Term] = (
    Term(
        "Random weights",
        "How alike the maps are once the model's weights are drawn anew, from the output back to the input: a "
        "rank correlation, 1 for the same order of pixels, 0 for none.",
        "That a map which changes is right. One that stays the same, however, does not show what was learnt.",
    ),
    Term(
        "Max-sensitivity",
        "The largest change of a map under a little noise on the frame, relative to the map itself.",
        "That a steady map is right: a centre prior is perfectly steady.",
    ),
    Term(
        "Agreement",
        "How alike two methods order the pixels.",
        "That methods which agree are right, or that one of two which disagree is wrong.",
    ),
)


def terms(measures: Iterable[str]) -> list[Term]:
    """What a report on these measures has to explain; a measure without an entry is left to its unit."""
    wanted = set(measures)
    return [*(term for term in MEASURES if any(map(term.explains, wanted))), *GENERAL]
