"""What each family of measures can say of a method's maps, in the parts of a sentence.

Only measures that edit pixels say that pixels matter. What a measure does not compare, no sentence claims.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim about the maps of a method, which compares them with those of a control."""

    about: Literal["pixels", "map"]
    """What the sentence is about, the pixels that a map highlights or the map as a whole."""
    verb: str
    more: str = "more"
    less: str = "less"
    caveat: str = ""
    """A sentence on what the measure does not show, for the end of each verdict."""

    @property
    def subject(self) -> str:
        """For the beginning of a sentence about one method."""
        return "the highlighted pixels" if self.about == "pixels" else "the map"

    @property
    def pronoun(self) -> str:
        """For the subject where it comes again."""
        return "they" if self.about == "pixels" else "it"

    def subject_of(self, method: str) -> str:
        """For a sentence that compares models."""
        return f"the pixels that {method} highlights" if self.about == "pixels" else f"the map of {method}"

    @property
    def yardstick(self) -> str:
        """The random control, for the end of `counted above`."""
        return "random pixels" if self.about == "pixels" else "a random map"

    def control(self, name: str) -> str:
        """A control, for the end of `more than`.

        Example:
            >>> claim_of({"kind": "curve"}).control("random"), claim_of({"kind": "complexity"}).control("lime")
            ('random ones', 'that of lime')
        """
        pixels = self.about == "pixels"
        known = {
            "random": "random ones" if pixels else "a random map",
            "centre-prior": "those in the middle of the frame" if pixels else "a map of the frame's middle",
        }
        return known.get(name, f"those of {name}" if pixels else f"that of {name}")


_MATTER = Claim(about="pixels", verb="matter")
_SHOWN_ALONE = Claim(about="pixels", verb="keep the output up when shown alone")
_CLAIMS: Mapping[str, Claim] = {
    "curve": _MATTER,
    "difference of curves": _MATTER,
    "imputation": _MATTER,
    "weighted frame": _SHOWN_ALONE,
    "shown pixels": _SHOWN_ALONE,
    "accuracy of all outputs": Claim(about="pixels", verb="carry the correct labels"),
    "additivity": Claim(
        about="map", verb="predicts the effect of hiding pixels", more="better", less="worse"
    ),
    "localisation": Claim(about="pixels", verb="lie on the known causes"),
    "rank correlation": Claim(
        about="map", verb="follows LIME's order of patches", more="more closely", less="less closely"
    ),
    "complexity": Claim(
        about="map",
        verb="is concentrated",
        caveat="This says nothing of the model: no pixel is edited.",
    ),
}
"""By the `kind` that measures describe themselves with."""
_OTHERWISE = Claim(about="map", verb="scores by this measure", more="better", less="worse")
"""Of a measure of the user's own, of which nothing else is known."""


def claim_of(about: Mapping[str, Any]) -> Claim:
    """What a measure can say.

    Args:
        about: as in `measures` of results.json.
    """
    return _CLAIMS.get(str(about.get("kind")), _OTHERWISE)


def shows_the_model(about: Mapping[str, Any]) -> bool:
    """Whether a measure's values depend on the model at all; sparseness and complexity are of the map alone.

    Example:
        >>> shows_the_model({"kind": "curve"}), shows_the_model({"kind": "complexity"})
        (True, False)
    """
    return about.get("kind") != "complexity"
