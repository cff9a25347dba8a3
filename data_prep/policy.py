"""What to do about faults of a recording: drop the frame and count it, or stop and name it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Int64

from data_prep.errors import DataError
from data_prep.signals import segments

OnBad = Literal["drop", "refuse"]
Fault = Literal[
    "duplicate",
    "out_of_order",
    "clock_jump",
    "gap",
    "no_control",
    "missing_image",
    "undecodable_image",
]
"""`gap` is a hole in time that starts a new segment; the others cost a frame each."""
FAULTS: tuple[str, ...] = get_args(Fault)

NO_LATER_CONTROL = "no_later_control"
"""Why a drive's last frames are dropped where controls are taken some time after the frame. No fault."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Which faults stop a run.

    Example:
        >>> policy = Policy(refuse=("clock_jump",))
        >>> policy.stops_at("clock_jump"), policy.stops_at("duplicate")
        (True, False)
    """

    on_bad: OnBad = "drop"
    """`refuse` stops at everything that would cost a frame, by whatever reason a reader gives."""
    refuse: tuple[Fault, ...] = ()
    """Stops at these as well; a gap only where it is named here, because it costs no frame."""

    def __post_init__(self) -> None:
        if self.on_bad not in ("drop", "refuse"):
            raise DataError(f"on_bad is {self.on_bad!r}; choose drop or refuse")
        unknown = [name for name in self.refuse if name not in FAULTS]
        if unknown:
            raise DataError(f"refuse names {unknown[0]!r}; choose of {', '.join(FAULTS)}")

    def stops_at(self, reason: str) -> bool:
        if reason in self.refuse:
            return True
        return self.on_bad == "refuse" and reason not in ("gap", NO_LATER_CONTROL)

    def check(self, name: str, dropped: Mapping[str, Any], left_out: Mapping[str, Sequence[str]]) -> None:
        """Stops at what is known before any image is read.

        Args:
            name: of the drive or image set.
            dropped: reason to the frames that it costs, in order.
            left_out: reason to the rows of the source that gave no frame.

        Raises:
            DataError: a fault is refused; the message names the first of each kind.
        """
        found = {reason: f"first at frame {frames[0]}" for reason, frames in dropped.items() if len(frames)}
        found |= {reason: f"first {rows[0]}" for reason, rows in left_out.items() if rows}
        refused = [f"{reason}, {where}" for reason, where in found.items() if self.stops_at(reason)]
        if refused:
            raise DataError(
                f"{name}: {'; '.join(refused)}; repair the source, or drop and count it: --on-bad drop without --refuse"
            )

    def check_gaps(self, name: str, time_ns: Int64[np.ndarray, " T"], *, hole_periods: float) -> None:
        """Stops at a hole between frames that are kept.

        Raises:
            DataError: there is one, and gaps are refused.
        """
        holes = np.flatnonzero(np.diff(segments(time_ns, hole_periods=hole_periods)))
        if self.stops_at("gap") and len(holes):
            lasts_s = (time_ns[holes[0] + 1] - time_ns[holes[0]]) / 1e9
            raise DataError(
                f"{name}: {len(holes)} gaps over {hole_periods} frame periods, the first of {lasts_s:.3f} s after kept "
                f"frame {holes[0]}; repair the source, or leave gap out of --refuse"
            )
