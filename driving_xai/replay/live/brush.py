"""The brush: a region of the shown frame is painted over, and the model is asked again without it.

A recurrent model is asked with the state that the unedited drive left before the frame: the brush changes what the model
sees now, not what it remembers.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from data_prep.geometry import encode_jpeg, encode_png
from data_prep.schema import Image
from driving_xai.evaluation.brush_cases import LONGEST_NOTE, SCHEMA, Case, save_case
from driving_xai.explain.lime import Slic
from driving_xai.metrics.region_removal import RegionRemoval, remove_region
from driving_xai.models.declared import at_instant
from driving_xai.perturb import Fill, blank
from driving_xai.replay.predict import FrameResult, Pending, twin
from driving_xai.replay.session import Session

MOST_OUTPUTS = 12
"""That a case holds; of more, as of ImageNet's classes, the predicted ones and those that change most."""
MOST_REQUEST_BYTES = 2 * 2**20
"""A mask of 4K, a bit for each pixel, in base64, and room around it."""
_REGIONS, _REGION_SIDE_PX = 60, 320
_PREVIEW_PX, _PREVIEW_QUALITY = 320, 95


class BrushRequest(NamedTuple):
    """What a viewer painted."""

    picture: int
    """Number of the picture on which it was painted."""
    mask: bytes
    """A bit for each pixel of the model's input in reading order, the highest bit of a byte first."""
    save: bool
    note: str

    @classmethod
    def parse(cls, body: bytes) -> BrushRequest:
        """Reads a request.

        Raises:
            ValueError: it is malformed; the message says what was expected.
            RecursionError: it is nested too deeply.
        """
        match json.loads(body):
            case {"picture": int() as picture, "mask": str() as mask, **rest}:
                save, note = rest.pop("save", False), rest.pop("note", "")
                if (
                    not rest
                    and isinstance(save, bool)
                    and isinstance(note, str)
                    and len(note) <= LONGEST_NOTE
                ):
                    try:
                        return cls(picture, base64.b64decode(mask, validate=True), save, note)
                    except binascii.Error:
                        raise ValueError("expected a mask in base64") from None
        raise ValueError(
            f"expected picture, a number, mask, in base64, and perhaps save, true or false, and note, at most "
            f"{LONGEST_NOTE} letters"
        )


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A frame without a region."""

    case: Case
    mask: Bool[np.ndarray, "H W"]
    frame: UInt8[np.ndarray, "H W 3"]
    without: Mapping[Fill, Image]

    def save(self, folder: Path) -> Path:
        """Writes it as a case into a folder of its own."""
        return save_case(folder, self.case, self.frame, self.mask, self.without)

    def describe(self) -> dict[str, Any]:
        """What the page shows of it."""
        case = self.case
        return {
            "sentences": case.sentences,
            "effects": [{**each._asdict(), "exceeded": each.exceeded} for each in case.effects],
            "shown": case.shown,
            "offsets": case.offsets,
            "share": case.pixels / (case.height * case.width),
            "without": {
                fill: _data_url(encode_jpeg(_preview(picture), quality=_PREVIEW_QUALITY), "jpeg")
                for fill, picture in self.without.items()
            },
        }


class Brushes:
    """Keeps what frames were predicted from until they are shown. Safe between two threads.

    Attributes:
        model: the session's, with layers that no method hooks meanwhile.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        # Made before a frame is explained: a copy has the hooks of whatever works on the model at that moment.
        self.model: Any = twin(session.checkpoint.model)
        self._coming: deque[Pending] = deque()

    def coming(self, pending: Pending) -> Pending:
        """Takes a frame that will be shown."""
        self._coming.append(pending)
        return pending

    def shown(self, result: FrameResult) -> BrushFrame | None:
        """The frame of a result that is shown now; those before it are let go."""
        while self._coming:
            pending = self._coming.popleft()
            if pending.result.seen is result.seen:
                return BrushFrame(self, pending)
        return None


class BrushFrame:
    """One frame that can be painted on."""

    def __init__(self, brushes: Brushes, pending: Pending) -> None:
        self._brushes, self._pending = brushes, pending

    @property
    def frame(self) -> UInt8[np.ndarray, "H W 3"]:
        """The model's input."""
        return _pixels(self._pending.frames)

    @property
    def memory(self) -> bool:
        """Whether the model has a state from the frames before this one."""
        past = self._pending.past
        # The state of a wrapped network without a memory is empty.
        return past is not None and not (isinstance(past, tuple) and not past)

    @cached_property
    def description(self) -> dict[str, Any]:
        """What the page needs to paint on it; made once for all viewers, as finding regions takes long."""
        frame, seen = self.frame, self._pending.result.seen
        return {
            "height": frame.shape[0],
            "width": frame.shape[1],
            "image": _data_url(encode_png(frame), "png"),
            "regions": _data_url(encode_png(_regions(frame)), "png"),
            "frame": seen.frame.index,
            "time_s": seen.time_s,
            "memory": self.memory,
            "unit": self._brushes.session.task.output_unit,
        }

    def without(self, packed: bytes, note: str = "") -> Tried:
        """Asks the model without a region, and without the same area elsewhere. One thread at a time.

        Args:
            packed: the region; see `BrushRequest.mask`.
            note: a person's own words.

        Raises:
            ValueError: the mask does not fit the frame, is empty, or a score is not finite.
        """
        mask = _unpacked(packed, *self._pending.frames.shape[2:])
        pending, brushes = self._pending, self._brushes
        config = brushes.session.config
        model = brushes.model
        found = remove_region(
            at_instant(model, pending.past),
            pending.frames,
            mask,
            seed=config.seed,
            batch_size=config.batch_size,
        )
        gone = torch.from_numpy(mask).to(pending.frames.device)
        without: Mapping[Fill, Image] = {
            fill: _pixels(torch.where(gone, blank(pending.frames, fill), pending.frames))
            for fill in found.removed
        }
        return Tried(case=self._case(mask, found, note), mask=mask, frame=self.frame, without=without)

    def _case(self, mask: Bool[np.ndarray, "H W"], found: RegionRemoval, note: str) -> Case:
        session, result = self._brushes.session, self._pending.result
        task, seen = session.task, result.seen

        def read(scores: Tensor) -> np.ndarray:
            return task.read_outputs(scores, result.prediction)

        before = read(found.clean[None])[0]
        here = {fill: read(scores[None])[0] for fill, scores in found.removed.items()}
        predicted = {each.output.column for each in result.explanations}
        columns = _chosen(before, np.stack(list(here.values())), predicted)
        return Case.model_validate(
            {
                "schema": SCHEMA,
                "checkpoint_sha256": session.checkpoint.sha256 or None,
                "source": session.frames.name[:300],
                "drive": seen.drive[:300],
                "frame": seen.frame.index,
                "key": seen.key[:300],
                "time_s": seen.time_s,
                "memory": self.memory,
                "height": mask.shape[0],
                "width": mask.shape[1],
                "pixels": int(mask.sum()),
                "seed": session.config.seed,
                "offsets": found.offsets.tolist(),
                "outputs": [task.output_names[column][:300] for column in columns],
                "predicted": [column in predicted for column in columns],
                "unit": task.output_unit,
                "before": before[columns].tolist(),
                "fills": {
                    fill: {
                        "here": here[fill][columns].tolist(),
                        "elsewhere": read(scores)[:, columns].tolist() if len(scores) else [],
                    }
                    for fill, scores in found.elsewhere.items()
                },
                "note": note,
            }
        )


def _chosen(before: np.ndarray, here: np.ndarray, predicted: set[int]) -> list[int]:
    """The outputs of a case, in their order: all, or the predicted ones and those that change most."""
    if len(before) <= MOST_OUTPUTS:
        return list(range(len(before)))
    by_change = np.argsort(-np.abs(here - before).max(0)).tolist()
    return sorted([*predicted, *(column for column in by_change if column not in predicted)][:MOST_OUTPUTS])


def _unpacked(packed: bytes, height: int, width: int) -> Bool[np.ndarray, "H W"]:
    bits = np.unpackbits(np.frombuffer(packed, np.uint8))
    pixels = height * width
    if len(bits) != -(-pixels // 8) * 8 or bits[pixels:].any():
        raise ValueError(
            f"got a mask of {len(packed)} bytes; expected a bit for each of the {width}x{height} pixels of the frame, and "
            "none outside"
        )
    if not bits.any():
        raise ValueError("nothing is painted; paint over a part of the frame first")
    return bits[:pixels].reshape(height, width).astype(bool)


def _pixels(frames: Tensor) -> Image:
    return (frames[0].permute(1, 2, 0) * 255).round().clamp(0, 255).byte().cpu().numpy()


def _regions(frame: Image) -> UInt8[np.ndarray, "H W"]:
    """Superpixels, for choosing a region with one click."""
    height, width = frame.shape[:2]
    factor = min(1.0, _REGION_SIDE_PX / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    small = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    found = np.minimum(Slic(segments=_REGIONS)(small.astype(np.float32) / 255), 255).astype(np.uint8)
    return cv2.resize(found, (width, height), interpolation=cv2.INTER_NEAREST)


def _preview(picture: Image) -> Image:
    height, width = picture.shape[:2]
    factor = min(1.0, _PREVIEW_PX / width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def _data_url(packed: bytes, kind: Literal["png", "jpeg"]) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(packed).decode('ascii')}"
