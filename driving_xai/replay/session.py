"""One replay: what was asked for, resolved against the checkpoint and the source."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8

from data_prep.geometry import Geometry
from data_prep.schema import Vehicle
from data_prep.shards.atomic import replacing, sha256_of
from data_prep.shards.manifest import canonical_json
from driving_xai.checkpoint import Checkpoint
from driving_xai.data.splits import HoldOut
from driving_xai.errors import CheckpointError, DataError
from driving_xai.evaluation.results import PER_FRAME, SCHEMA, SUMMARY
from driving_xai.evaluation.summary import describe_machine
from driving_xai.explain.options import OptionsOf, described, planned
from driving_xai.explain.registry import build, require_methods
from driving_xai.metrics.statistics import BlockBootstrap
from driving_xai.perturb import FILLS, Fill
from driving_xai.replay.background import StageTimes
from driving_xai.replay.instruments import CAMERAS, Camera
from driving_xai.replay.overlay import Overlay, OverlayConfig
from driving_xai.replay.record import CONTROL, ScoreLog, Tally, open_log, summarise
from driving_xai.replay.rendering import Captions, Renderer, Show
from driving_xai.replay.scoring import (
    FRACTIONS,
    Judge,
    Judged,
    Scorer,
    Submit,
    scoring_side_by_side,
    twin,
)
from driving_xai.replay.sink import Encoding, Preset, VideoSink, open_sink
from driving_xai.replay.source import (
    FASTEST_HZ,
    SLOWEST_HZ,
    Alignment,
    FrameSource,
    OwnShards,
    Selection,
    SourceFrame,
    open_source,
)
from driving_xai.targets import by_name
from driving_xai.viz.heat import HeatScale

USUAL_HZ = 20
OWN_METHOD: Mapping[str, str] = {"sign": "sign-attention", "soft": "soft-attention"}
"""A model's attention to the method that shows it; models without are explained by grad-cam."""


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """What is played and how it is judged and drawn.

    Raises:
        ValueError: an option is out of range or unknown; the message says what is possible.
    """

    method: str | None = None
    """A name of `explain.METHODS`; None is the model's own attention, or grad-cam."""
    options: OptionsOf = field(default_factory=dict)
    """Of `method`, by its name: `{"snna": {"samples": 3}}`; see docs/methods.md."""
    target: str = "magnitude"
    """What is explained; see `targets.by_name`."""
    score: bool = True
    fill: Fill = "black"
    """What takes a removed pixel's place."""
    control_every: int = 10
    """Scores a random order beside the method's on every n-th frame."""
    reference: Literal["auto", "truth", "clean"] = "auto"
    """Whose curve is drawn: the error against the driver or against the unedited prediction. Both are
    saved. `auto` is the driver where the source knows the steering."""
    seed: int = 0
    """Of ties, of the random order and of the intervals."""
    block_s: float = 5.0
    """Length of the blocks that intervals are drawn from."""
    reader: str | None = None
    drive: str | None = None
    split: Literal["all", "train", "val", "test"] = "all"
    start_s: float = 0.0
    end_s: float | None = None
    frame_rate: float | None = None
    """Of a folder of images, which has no times; None is 20 a second, as Udacity's cameras."""
    path: bool = True
    """Draws the projected paths."""
    horizon: float | None = None
    """Row of the horizon for them, as a fraction of the height; None goes by the reader."""
    heat_s: float = 2.0
    """How slowly the heat map's scale and the curve's axis follow, in seconds."""
    preset: Preset = "veryfast"
    crf: int = 20

    def __post_init__(self) -> None:
        require_methods([self.method] if self.method else [], self.options, least=0)
        for name, given, known in (
            ("fill", self.fill, FILLS),
            ("reference", self.reference, ("auto", "truth", "clean")),
            ("split", self.split, ("all", "train", "val", "test")),
        ):
            if given not in known:
                raise ValueError(f"got {name} {given!r}, expected one of: {', '.join(map(str, known))}")
        if self.control_every < 1 or self.block_s <= 0 or self.heat_s <= 0:
            raise ValueError(
                f"got control_every {self.control_every}, block_s {self.block_s}, heat_s {self.heat_s}; "
                "expected 1 or more, over 0, over 0"
            )
        Encoding(preset=self.preset, crf=self.crf)  # Says what is wrong with them.
        if self.frame_rate is not None and not SLOWEST_HZ <= self.frame_rate <= FASTEST_HZ:
            raise ValueError(f"got frame_rate {self.frame_rate}, expected {SLOWEST_HZ:g} to {FASTEST_HZ:g}")


@dataclass(frozen=True, kw_only=True)
class Session:
    """Everything a replay is made with."""

    checkpoint: Checkpoint
    geometry: Geometry
    frames: FrameSource
    method: str
    out: Path | None
    """The video; None where the drive is only shown."""
    config: ReplayConfig

    @classmethod
    def open(cls, checkpoint: Checkpoint, source: Path, out: Path | None, config: ReplayConfig) -> Session:
        if checkpoint.kind != "steering":
            raise CheckpointError(f"{checkpoint.path} holds kind {checkpoint.kind!r}; expected 'steering'")
        try:
            told = checkpoint.config["input"]
            geometry, vehicle = Geometry(**told["geometry"]), Vehicle(**told["vehicle"])
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"{checkpoint.path} does not say how its frames were cut ({error}); train it again"
            ) from error
        frames = open_source(
            source,
            vehicle=vehicle,
            frame_rate=_rate(config.frame_rate or USUAL_HZ),
            selection=Selection(
                reader=config.reader,
                drive=config.drive,
                split=config.split,
                start_s=config.start_s,
                end_s=config.end_s,
            ),
            alignment=_alignment(told.get("signals", {})),
            own_shards=_own_shards(checkpoint),
        )
        if frames.shards is not None and frames.shards.geometry != told["geometry"]:
            raise DataError(
                f"{source}: its geometry {frames.shards.geometry} is not the checkpoint's "
                f"{told['geometry']}; prepare them alike"
            )
        method = config.method or _own_method(checkpoint)
        return cls(
            checkpoint=checkpoint, geometry=geometry, frames=frames, method=method, out=out, config=config
        )

    @property
    def scores(self) -> Path:
        assert self.out is not None
        return self.out.with_name(f"{self.out.stem}.scores")

    @property
    def reference(self) -> str:
        if self.config.reference != "auto":
            return self.config.reference
        return "truth" if self.frames.labelled else "clean"

    @property
    def block(self) -> int:
        """Frames in a block of the intervals."""
        return max(1, round(self.config.block_s * self.frames.frame_rate))

    @property
    def device(self) -> torch.device:
        return next(self.checkpoint.model.parameters()).device

    def judge(self, times: StageTimes) -> Judge:
        """Fits the method to the model."""
        model: Any = self.checkpoint.model
        return Judge(
            model,
            build(self.method, model, seed=self.config.seed, options=self.config.options.get(self.method)),
            rule=by_name(self.config.target, model.outputs),
            vehicle=self.frames.vehicle,
            # Random maps are their own control.
            control_every=0 if self.method == CONTROL else self.config.control_every,
            device=self.device,
            times=times,
        )

    def scoring(self, times: StageTimes) -> AbstractContextManager[Submit]:
        """What scores frames, or hands them on as they are."""
        if not self.config.score:
            return scoring_side_by_side(lambda look: look.judged, workers=1)
        model: Any = twin(self.checkpoint.model)
        scorer = Scorer(
            model=model,
            control=build(CONTROL, model, seed=self.config.seed),
            rule=by_name(self.config.target, model.outputs),
            fill=self.config.fill,
            seed=self.config.seed,
            times=times,
        )
        # A GPU is one queue; on a CPU, four keep up with anything that draws and encodes beside them.
        workers = 1 if self.device.type == "cuda" else min(4, torch.get_num_threads())
        return scoring_side_by_side(scorer, workers)

    def cut_frames(self, times: StageTimes) -> Iterator[tuple[SourceFrame, UInt8[np.ndarray, "h w 3"]]]:
        """The frames, each with the model's input cut from it."""
        for seen in times.each("decode", self.frames):
            image = seen.frame.image
            yield seen, image if self.frames.cropped else self.geometry.apply(image)

    def renderer(self, stack: ExitStack, first: Judged, show: Show | None, times: StageTimes) -> Renderer:
        """Opens the outputs, if any, whose size and colours the first frame decides."""
        frames, config = self.frames, self.config
        scale = HeatScale.first(first.saliency)
        overlay = self._overlay(first, scale.signed)
        video = log = None
        if self.out is not None:
            video = stack.enter_context(self._open_video(self.out, overlay))
            log = stack.enter_context(self._open_log()) if config.score else None
        return Renderer(
            overlay,
            video,
            captions=Captions(drive=frames.drive, first_time_ns=frames.first_time_ns),
            scale=scale,
            weight=1 - math.exp(-1 / float(config.heat_s * frames.frame_rate)),
            tally=Tally(self.block, config.control_every) if config.score else None,
            log=log,
            reference=self.reference,
            show=show,
            times=times,
        )

    def _open_video(self, out: Path, overlay: Overlay) -> AbstractContextManager[VideoSink]:
        return open_sink(
            out,
            height=overlay.height,
            width=overlay.width,
            frame_rate=self.frames.frame_rate,
            encoding=Encoding(preset=self.config.preset, crf=self.config.crf),
            comment=self._comment(),
        )

    def _open_log(self) -> AbstractContextManager[ScoreLog]:
        return open_log(
            self.scores / PER_FRAME,
            method=self.method,
            target=self.config.target,
            drive=self.frames.drive,
            camera=self.frames.camera,
        )

    def _overlay(self, first: Judged, signed: bool) -> Overlay:
        config, frames = self.config, self.frames
        height, width = first.seen.frame.image.shape[:2]
        camera = CAMERAS.get(frames.reader, Camera())
        if config.horizon is not None:
            camera = replace(camera, horizon=config.horizon)
        parts = [
            described(self.method, self.config.options),
            f"{config.fill} fill" if config.score else "not scored",
        ]
        parts += [f"wheel {frames.lead_s:g} s ahead"] if frames.lead_s and frames.labelled else []
        parts += [f"model {self.checkpoint.sha256[:12]}"]
        what = "error" if self.reference == "truth" else "change"
        return Overlay(
            height=height,
            width=width,
            geometry=self.geometry,
            cropped=frames.cropped,
            config=OverlayConfig(
                labelled=frames.labelled,
                speed_known=frames.speed_known,
                signed=signed,
                provenance=" · ".join(parts),
                camera=camera if config.path else None,
                curve_title=f"Steering {what} as evidence is removed",
                last_fraction=FRACTIONS[-1],
            ),
        )

    def _comment(self) -> str:
        """The video's metadata, as JSON."""
        return json.dumps(
            {"made_by": f"driving-xai {version('driving-xai')}", **self._plan()}, sort_keys=True
        )

    def _plan(self) -> dict[str, Any]:
        shards = self.frames.shards
        return {
            "config": {**planned(self.config), "method": self.method, "methods": [self.method]},
            "checkpoint_sha256": self.checkpoint.sha256,
            "shards_sha256": None if shards is None else shards.sha256,
            "source": {"name": self.frames.name, "kind": self.frames.kind},
        }

    def save_summary(self, played: int, tally: Tally | None) -> Mapping[str, Any]:
        """Writes results.json, last: it holds the hashes of the other files."""
        assert tally is not None
        assert self.out is not None
        frames, table = self.frames, self.scores / PER_FRAME
        bootstrap = BlockBootstrap(block=self.block, seed=self.config.seed)
        summary = {
            "schema": SCHEMA,
            "plan": self._plan(),
            "model": {"kind": self.checkpoint.kind, "config": dict(self.checkpoint.config["model"])},
            "data": {
                "drives": [frames.drive],
                "runs": int(frames.begins[:played].sum()),
                "frames": played,
                "scored": played - int(frames.begins[:played].sum()),
                "seconds_apart": float(1 / frames.frame_rate),
            },
            "video": {
                "file": self.out.name,
                "sha256": sha256_of(self.out),
                "frame_rate": str(frames.frame_rate),
                # These pictures have no row of scores; all others have one each, in the same order.
                "run_starts": np.flatnonzero(frames.begins[:played]).tolist(),
            },
            **summarise(table, tally, self.method, bootstrap, fill=self.config.fill),
            **describe_machine(self.device),
            "files": {PER_FRAME: sha256_of(table)},
        }
        with replacing(self.scores / SUMMARY) as temporary:
            temporary.write_bytes(canonical_json(summary))
        return summary


def _alignment(signals: Mapping[str, Any]) -> Alignment:
    """A recording's controls as the shards that the model was trained on took them."""
    usual = Alignment()
    return Alignment(
        smoothing=signals.get("smoothing_alpha", usual.smoothing),
        lead_s=signals.get("lead_s", usual.lead_s),
        tolerance_s=signals.get("tolerance_s", usual.tolerance_s),
        hole_periods=signals.get("hole_periods", usual.hole_periods),
    )


def _own_method(checkpoint: Checkpoint) -> str:
    attention = checkpoint.config.get("model", {}).get("attention")
    return OWN_METHOD.get(attention, "grad-cam")


def _own_shards(checkpoint: Checkpoint) -> OwnShards | None:
    """How the model saw the shards it was trained on."""
    sha256 = checkpoint.config.get("data", {}).get("shards_sha256")
    return None if sha256 is None else OwnShards(sha256, HoldOut.from_config(checkpoint.config).splits)


def _rate(hertz: float) -> Fraction:
    return Fraction(str(hertz)).limit_denominator(1001)
