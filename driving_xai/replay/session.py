"""One replay: what was asked for, resolved against the checkpoint and the source."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import UInt8

from data_prep.alignment import Alignment
from data_prep.decoding import Dropped
from data_prep.schema import VEHICLES, Vehicle
from data_prep.shards.atomic import replacing, sha256_of
from data_prep.shards.manifest import canonical_json
from driving_xai.checkpoint import Checkpoint
from driving_xai.data.splits import FoldOut, HoldOut
from driving_xai.errors import CheckpointError, DataError, OptionError
from driving_xai.evaluation.results import PER_FRAME, SCHEMA, SUMMARY
from driving_xai.evaluation.selection import require_geometry
from driving_xai.evaluation.summary import describe_machine
from driving_xai.explain.options import described, planned
from driving_xai.explain.registry import fitted
from driving_xai.metrics.statistics import LEAST_BLOCKS, BlockBootstrap
from driving_xai.models.capabilities import device_of
from driving_xai.replay.background import StageTimes
from driving_xai.replay.config import FILM_ONLY, Layout, ReplayConfig
from driving_xai.replay.frames import FrameSource, SourceFrame
from driving_xai.replay.methods import default_method
from driving_xai.replay.model_input import ModelInput, made_elsewhere
from driving_xai.replay.predict import (
    CONTROL,
    FrameResult,
    FrameScorer,
    Predictor,
    Submit,
    scoring_side_by_side,
    twin,
)
from driving_xai.replay.record import Means, RowWriter, open_rows, summary_of, verdict_block
from driving_xai.replay.render import Scene
from driving_xai.replay.sink import Encoding, VideoSink, bounded_rate, open_sink
from driving_xai.replay.source import ANY_VEHICLE, OwnShards, open_source
from driving_xai.replay.tasks import foreign_options, require_own_options, task_for
from driving_xai.replay.tasks.base import Task
from driving_xai.targets import explained_by

_MOST_PROPORTION = 16
"""Of a frame's sides: a longer strip has no room for letters, however it is enlarged."""


class Played(NamedTuple):
    """How much of a source was played."""

    frames: int
    runs: int
    """Unbroken runs of frames."""
    dropped: Mapping[str, int]
    """Reason to how many frames were left out."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """Everything a replay is made with."""

    checkpoint: Checkpoint
    cut: ModelInput
    frames: FrameSource
    task: Task
    methods: tuple[str, ...]
    out: Path | None
    """The video; None where the drive is only shown."""
    config: ReplayConfig
    number: int = 1
    """Of the model, where several are shown side by side."""

    @classmethod
    def open(
        cls, checkpoint: Checkpoint, source: Path, out: Path | None, config: ReplayConfig, *, number: int = 1
    ) -> Session:
        """Opens the source for the checkpoint's model.

        Raises:
            CheckpointError: the model does not say what its outputs mean, or the checkpoint not how its
                frames were cut.
            OptionError: an option or the layout is for models of another task.
            DataError: the source cannot be used, or does not fit the checkpoint.
            UnsupportedModelError: the model's outputs cannot be played.
        """
        kind = task_for(checkpoint)
        require_own_options(kind, config.changed())
        cut = ModelInput.of(checkpoint)
        frames = open_source(
            source,
            vehicle=_vehicle(checkpoint, kind),
            frame_rate=config.rate,
            selection=config.selection,
            alignment=_alignment(checkpoint.config.get("input", {}).get("signals", {})),
            policy=config.policy,
            own_shards=_own_shards(checkpoint),
            outputs=checkpoint.model.outputs.names if kind.takes_images else None,
        )
        if frames.shards is not None:
            require_geometry(checkpoint, frames.shards, source)
        if kind.takes_images and frames.cropped and frames.follow and cut.rule is not None:
            raise DataError(
                f"{source}: shards of a drive are cut for steering; give the recording, a video, or shards of "
                "images"
            )
        return cls(
            checkpoint=checkpoint,
            cut=cut,
            frames=frames,
            task=kind(checkpoint, frames, cut, config),
            methods=_methods(checkpoint.model, config),
            out=out,
            config=config,
            number=number,
        )

    @property
    def method(self) -> str:
        """The first, or only, one."""
        return self.methods[0]

    @property
    def scores(self) -> Path:
        """The folder of results beside the video; that of a second model has its number in the name."""
        assert self.out is not None
        number = "" if self.number == 1 else f".{self.number}"
        return self.out.with_name(f"{self.out.stem}{number}.scores")

    @property
    def block(self) -> int:
        """Frames in a block of the intervals; images that do not follow one another are blocks of their own."""
        seconds = self.config.block_s if self.frames.follow else 0
        return max(1, round(seconds * self.frames.frame_rate))

    @property
    def device(self) -> torch.device:
        return device_of(self.checkpoint.model)

    def what_runs(self) -> Iterator[str]:
        """Lines about what will be played, and what it will be too short for."""
        count, rate = len(self.frames), float(self.frames.frame_rate)
        length = f" ({count / rate:.3g} s)" if self.frames.follow else ""
        scored = "scored against a random order" if self.config.score else "not scored"
        yield (
            f"{self.frames.name}: {count:,} frames{length}, explained by {' and '.join(self.methods)} on "
            f"{self.device.type}, "
            f"{scored}"
        )
        block = verdict_block(self.block, self.config.control_every)
        needed = LEAST_BLOCKS * block
        if self.config.score and self.task.explains_every_frame and count <= needed:
            yield (
                f"too short for a verdict: it takes more than {needed / rate:.3g} s of driving "
                f"({LEAST_BLOCKS} blocks of {block / rate:.3g} s); "
                "choose a longer part with --start and --end"
            )

    def predictor(self, times: StageTimes) -> Predictor:
        """Fits the methods to the model."""
        model, config = self.checkpoint.model, self.config
        explainers = {
            method: fitted(
                method,
                model,
                seed=config.seed,
                batch_size=config.batch_size,
                options=config.options.get(method),
            )
            for method in self.methods
        }
        return Predictor(
            model,
            explainers,
            self.task,
            # Random maps are their own control.
            control_every=0 if self.methods == (CONTROL,) else config.control_every,
            device=self.device,
            times=times,
            explains=lambda method, target: explained_by(method, target, model.outputs),
        )

    def scoring(self, times: StageTimes) -> AbstractContextManager[Submit]:
        """What scores frames, or hands them on as they are."""
        if not self.config.score:
            return scoring_side_by_side(lambda pending: pending.result, workers=1)
        model: Any = twin(self.checkpoint.model)
        scorer = FrameScorer(
            model=model,
            control=fitted(CONTROL, model, seed=self.config.seed),
            task=self.task,
            fill=self.config.fill,
            seed=self.config.seed,
            batch_size=self.config.batch_size,
            times=times,
        )
        # A GPU is one queue; on a CPU, four keep up with anything that draws and encodes beside them.
        workers = 1 if self.device.type == "cuda" else min(4, torch.get_num_threads())
        return scoring_side_by_side(scorer, workers)

    def inputs(
        self, times: StageTimes, dropped: Dropped
    ) -> Iterator[tuple[SourceFrame, UInt8[np.ndarray, "h w 3"]]]:
        """The frames, each with the model's input made of it; `dropped` takes those that cannot be read."""
        for seen in times.each("decode", self.frames.read(dropped)):
            yield seen, self.cut.apply(seen.frame.image, cut=self.frames.cropped)

    def scene(
        self, stack: ExitStack, first: FrameResult, *, layout: Layout, room: tuple[int, int] | None
    ) -> Scene:
        """What draws the frames of this model, and stores their scores where there is a video.

        Args:
            stack: closes what is opened.
            first: decides sizes and colours.
            layout: of each picture.
            room: height and width that a picture has in the film, in pixels; None where it may choose.

        Raises:
            DataError: the frames are too thin to draw on.
        """
        config, task = self.config, self.task
        height, width = first.seen.frame.image.shape[:2]
        if max(height, width) > _MOST_PROPORTION * min(height, width):
            raise DataError(
                f"{self.frames.name}: frames of {width} x {height} px are too thin to draw on, expected a side at most "
                f"{_MOST_PROPORTION} times the other; check the source"
            )
        painters = {
            method: task.painter(first.by(method), self._provenance(method), layout=layout, room=room)
            for method in self.methods
        }
        rows = means = None
        if config.score:
            means = Means(
                methods=self.methods,
                quantity=task.quantity,
                references=task.references,
                control_every=config.control_every,
                block=self.block if task.explains_every_frame else None,
                block_s=self.block / float(self.frames.frame_rate),
            )
            if self.out is not None:
                rows = stack.enter_context(open_rows(self.scores / PER_FRAME, quantity=task.quantity))
        return Scene(painters, means=means, rows=rows, reference=task.reference)

    def open_video(
        self, out: Path, *, height: int, width: int, cards_s: float = 0.0
    ) -> AbstractContextManager[VideoSink]:
        """Opens the film, with what it is made with in its metadata; `cards_s` is how long cards may be shown."""
        return open_sink(
            out,
            height=height,
            width=width,
            frame_rate=self.frames.frame_rate,
            constant=self.frames.constant,
            encoding=Encoding(
                preset=self.config.preset,
                crf=self.config.crf,
                most_bits_per_s=self._most_bits_per_s(height, width, cards_s),
            ),
            comment=json.dumps(
                {"made_by": f"driving-xai {version('driving-xai')}", **self.plan()}, sort_keys=True
            ),
        )

    def _most_bits_per_s(self, height: int, width: int, cards_s: float) -> int | None:
        """The rate at which the film stays below its most megabytes; None where there is no such bound."""
        if self.config.mb is None:
            return None
        times_s, rate = self.frames.time_s, float(self.frames.frame_rate)
        drive_s = len(times_s) / rate if self.frames.constant else float(times_s[-1] - times_s[0]) + 1 / rate
        return bounded_rate(
            self.config.mb, drive_s + cards_s, height=height, width=width, rate=self.frames.frame_rate
        )

    def _provenance(self, method: str) -> str:
        """What made the picture, for its lower left corner."""
        config = self.config
        parts = [
            described(method, config.options),
            f"{config.fill} fill" if config.score else "not scored",
            *self.task.notes,
            self.cut.note,
            f"model {self.checkpoint.sha256[:12]}" if self.checkpoint.sha256 else "",
        ]
        return " · ".join(part for part in parts if part)

    def plan(self) -> dict[str, Any]:
        """What decides the scores, and how the film is put together where something was asked for."""
        shards, foreign = self.frames.shards, foreign_options(type(self.task))
        # How the film is put together is left out where nothing was asked for, as plans were before there was a choice.
        usual = FILM_ONLY - set(self.config.changed())
        config = {
            name: value for name, value in planned(self.config).items() if name not in {*foreign, *usual}
        }
        return {
            "config": {
                **config,
                **({"layout": self.task.layout} if self.task.takes_images else {}),
                "method": self.method,
                "methods": list(self.methods),
                "refuse": list(self.config.refuse),
            },
            **self.checkpoint.in_plans,
            "shards_sha256": None if shards is None else shards.sha256,
            "source": {"name": self.frames.name, "kind": self.frames.kind},
        }

    def dropped(self, found: Dropped) -> dict[str, int]:
        """Reason to how many frames were left out, before and while they were read."""
        counts = Counter(self.frames.left_out)
        counts.update({reason: len(frames) for reason, frames in found.by_reason.items()})
        return dict(sorted(counts.items()))

    def scored(self, played: Played, scene: Scene) -> dict[str, Any]:
        """What `results.json` says of the frames and their rows, once these are written."""
        assert scene.means is not None
        assert scene.rows is not None
        return {
            "data": self._describe_data(played, scene.rows),
            **summary_of(
                self.scores / PER_FRAME,
                scene.means,
                protocol=self.task.protocol,
                bootstrap=BlockBootstrap(block=self.block, seed=self.config.seed),
                fill=self.config.fill,
            ),
        }

    def save_summary(
        self, played: Played, scene: Scene, sink: VideoSink, scored: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Writes results.json, last: it holds the hashes of the other files."""
        assert self.out is not None
        assert scene.rows is not None
        starts_s = sink.starts_s
        summary = {
            "schema": SCHEMA,
            "plan": self.plan(),
            "model": {
                "kind": self.checkpoint.config.get("kind"),
                "config": dict(self.checkpoint.config.get("model", {})),
            },
            "video": {
                "file": self.out.name,
                "sha256": sha256_of(self.out),
                "frame_rate": str(self.frames.frame_rate),
                **({} if starts_s is None else {"starts_s": starts_s}),
                **self._describe_pictures(played, scene.rows),
            },
            **scored,
            **describe_machine(self.device),
            "files": {PER_FRAME: sha256_of(self.scores / PER_FRAME)},
        }
        with replacing(self.scores / SUMMARY) as temporary:
            temporary.write_bytes(canonical_json(summary))
        return summary

    def _describe_data(self, played: Played, rows: RowWriter) -> dict[str, Any]:
        counts = {"frames": played.frames, "scored": len(rows.pictures), "dropped": dict(played.dropped)}
        if not self.frames.follow:
            return counts
        return {
            "drives": [self.frames.drive],
            "runs": played.runs,
            **counts,
            "seconds_apart": float(1 / self.frames.frame_rate),
        }

    def _describe_pictures(self, played: Played, rows: RowWriter) -> dict[str, Any]:
        """Which picture of the video shows which row."""
        if not self.task.explains_every_frame:
            return {"pictures": [list(each) for each in rows.pictures]}
        # These pictures have no row of scores; all others have one each, in the same order.
        return {"run_starts": sorted(set(range(played.frames)) - {number for _, _, number in rows.pictures})}


def _methods(model: object, config: ReplayConfig) -> tuple[str, ...]:
    first = config.method or default_method(model)
    if first in config.compared:
        raise OptionError(f"got method {first!r} twice, expected each once")
    return (first, *config.compared)


def _vehicle(checkpoint: Checkpoint, task: type[Task]) -> Vehicle:
    """That of the model's training, for sources that do not know theirs."""
    if task.takes_images or made_elsewhere(checkpoint):
        return VEHICLES[ANY_VEHICLE]
    try:
        return Vehicle(**checkpoint.config["input"]["vehicle"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{checkpoint.path} does not say for which vehicle it steers ({error}); train it again"
        ) from error


def _alignment(signals: Mapping[str, Any]) -> Alignment:
    """A recording's controls as the shards that the model was trained on took them."""
    usual = Alignment()
    return Alignment(
        smoothing=signals.get("smoothing_alpha", usual.smoothing),
        lead_s=signals.get("lead_s", usual.lead_s),
        tolerance_s=signals.get("tolerance_s", usual.tolerance_s),
        hole_periods=signals.get("hole_periods", usual.hole_periods),
    )


def _own_shards(checkpoint: Checkpoint) -> OwnShards | None:
    """How the model saw the shards it was trained on."""
    sha256 = checkpoint.config.get("data", {}).get("shards_sha256")

    def splits(index: pd.DataFrame) -> np.ndarray:
        # Only images have groups.
        held_out = FoldOut if "group" in index else HoldOut
        return held_out.from_config(checkpoint.config).splits(index)

    return None if sha256 is None else OwnShards(sha256, splits)
