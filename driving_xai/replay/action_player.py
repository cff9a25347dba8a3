"""Replays frames with the possible actions: each predicted, explained, scored, drawn, written."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data_prep.shards.atomic import sha256_of
from driving_xai.checkpoint import Checkpoint
from driving_xai.errors import CheckpointError, DataError
from driving_xai.evaluation.results import Results
from driving_xai.evaluation.summary import describe_machine
from driving_xai.explain.options import OptionsOf, described, planned
from driving_xai.explain.registry import build, require_methods
from driving_xai.metrics.statistics import BlockBootstrap
from driving_xai.perturb import FILLS, Fill
from driving_xai.replay.action_judge import ActionJudge, Explained, JudgedPicture
from driving_xai.replay.action_record import ActionRecord
from driving_xai.replay.action_source import Excerpt, Picture, PictureSource, open_pictures
from driving_xai.replay.action_view import ActionInstant, ActionView, ActionViewConfig, Layout, Shown
from driving_xai.replay.background import Behind, StageTimes, ahead
from driving_xai.replay.record import CONTROL
from driving_xai.replay.rendering import SEEN_AS
from driving_xai.replay.scoring import FRACTIONS
from driving_xai.replay.sink import Encoding, Preset, VideoSink, open_sink, require_encoder
from driving_xai.replay.source import FASTEST_HZ, SLOWEST_HZ
from driving_xai.viz.heat import HeatScale

_DEPTH = 8
KINDS = ("actions", "classifier", "bounded-logit")
"""Checkpoints whose models judge single frames."""


@dataclass(frozen=True, kw_only=True)
class ActionReplayConfig:
    """What is played and how it is judged and drawn.

    Raises:
        ValueError: an option is out of range or unknown; the message says what is possible.
    """

    method: str | None = None
    """A name of `explain.METHODS`; None is `snna` for transformers, otherwise `grad-cam`."""
    options: OptionsOf = field(default_factory=dict)
    """Of `method`, by its name: `{"snna": {"samples": 3}}`; see docs/methods.md."""
    layout: Layout = "grid"
    """A tile for each output, or one whose map changes from one predicted output to the next."""
    cycle_s: float = 1.5
    """How long each predicted output is shown, in `cycle`."""
    score: bool = True
    fill: Fill = "black"
    """What takes a removed pixel's place."""
    control_every: int = 10
    """Scores a random order beside the method's on every n-th frame of those with a predicted output."""
    batch_size: int = 32
    """Most frames in one forward pass, edited ones included."""
    seed: int = 0
    """Of ties, of the random order, of methods that draw and of the intervals."""
    block_s: float = 5.0
    """Length of the blocks that intervals are drawn from; of unrelated images one image."""
    reader: str | None = None
    drive: str | None = None
    split: Literal["all", "train", "val", "test"] = "all"
    start_s: float = 0.0
    end_s: float | None = None
    frame_rate: float | None = None
    """Of folders of images, 20 unless given, and of labelled images, 2."""
    heat_s: float = 2.0
    """How slowly the heat maps' scales follow, in seconds."""
    preset: Preset = "veryfast"
    crf: int = 20

    def __post_init__(self) -> None:
        require_methods([self.method] if self.method else [], self.options, least=0)
        if self.fill not in FILLS or self.layout not in ("grid", "cycle"):
            raise ValueError(
                f"got fill {self.fill!r}, layout {self.layout!r}; expected {', '.join(FILLS)}; grid or cycle"
            )
        if min(self.control_every, self.batch_size) < 1 or min(self.block_s, self.heat_s, self.cycle_s) <= 0:
            raise ValueError(
                f"got control_every {self.control_every}, batch_size {self.batch_size}, block_s {self.block_s}, "
                f"heat_s {self.heat_s}, cycle_s {self.cycle_s}; expected 1 or more twice, then over 0"
            )
        if self.frame_rate is not None and not SLOWEST_HZ <= self.frame_rate <= FASTEST_HZ:
            raise ValueError(f"got frame_rate {self.frame_rate}, expected {SLOWEST_HZ:g} to {FASTEST_HZ:g}")
        if not 0 <= self.start_s < (math.inf if self.end_s is None else self.end_s):
            raise ValueError(f"got start_s {self.start_s}, end_s {self.end_s}; expected 0 <= start_s < end_s")
        Encoding(preset=self.preset, crf=self.crf)  # Says what is wrong with them.


@dataclass(frozen=True, kw_only=True)
class ActionReplayed:
    """What a replay has made."""

    video: Path
    frames: int
    scores: Path | None
    """Folder of the results; None where nothing was scored."""
    summary: Mapping[str, Any] | None
    """Of the results."""


def replay_actions(
    checkpoint: Checkpoint,
    source: Path,
    out: Path,
    config: ActionReplayConfig | None = None,
    *,
    on_progress: Callable[[int, int], None] | None = None,
    times: StageTimes | None = None,
) -> ActionReplayed:
    """Renders frames with each predicted action's evidence, and scores it by deletion while it goes.

    Args:
        checkpoint: of one of `KINDS`, on the device to compute on.
        source: shards of images, a recording, a video, or a folder of images.
        out: ends in .mp4; it appears when it is whole.

    Raises:
        CheckpointError: models of this kind do not judge single frames.
        DataError: the source cannot be used.
        UnsupportedModelError: the model lacks what the method needs.
        VideoError: no H.264 can be written.
    """
    if checkpoint.kind not in KINDS:
        raise CheckpointError(
            f"{checkpoint.path} holds kind {checkpoint.kind!r}; expected {', '.join(KINDS)}"
        )
    require_encoder()
    config, times = config or ActionReplayConfig(), times or StageTimes()
    excerpt = Excerpt(
        reader=config.reader,
        drive=config.drive,
        split=config.split,
        start_s=config.start_s,
        end_s=config.end_s,
        frame_rate=config.frame_rate,
    )
    pictures = open_pictures(checkpoint, source, excerpt)
    play = _Play(checkpoint, pictures, config, times)
    frames = play.run(out, on_progress)
    if not config.score:
        return ActionReplayed(video=out, frames=frames, scores=None, summary=None)
    scores = out.with_name(f"{out.stem}.scores")
    return ActionReplayed(video=out, frames=frames, scores=scores, summary=play.save(out, scores).summary)


class _Play:
    """One replay: its model, its means, its rows."""

    def __init__(
        self, checkpoint: Checkpoint, pictures: PictureSource, config: ActionReplayConfig, times: StageTimes
    ) -> None:
        model = checkpoint.model
        self._checkpoint, self._pictures, self._config, self._times = checkpoint, pictures, config, times
        self._names = model.outputs.names
        self.method = config.method or ("grad-cam" if getattr(model, "vit", None) is None else "snna")
        self._judge = ActionJudge(
            model=model,
            method=build(
                self.method,
                model,
                seed=config.seed,
                batch_size=config.batch_size,
                options=config.options.get(self.method),
            ),
            control=build(CONTROL, model, seed=config.seed),
            thresholds=np.array(checkpoint.thresholds),
            fill=config.fill,
            seed=config.seed,
            batch_size=config.batch_size,
            scored=config.score,
            times=times,
        )
        self._scales: dict[int, HeatScale] = {}
        self._record = ActionRecord(self.method, self._names)
        self._drawn = 0

    def run(self, out: Path, on_progress: Callable[[int, int], None] | None) -> int:
        """Plays every frame into the video; returns how many."""
        done = 0
        with ahead(self._times.each("decode", self._pictures), _DEPTH) as coming:
            judged = self._judged(coming)
            first = next(judged, None)
            if first is None:
                raise DataError(f"{self._pictures.name}: no frame came from it; check the source")
            view = self._view(first.seen)
            with self._sink(out, view) as sink, Behind(self._renderer(view, sink), _DEPTH) as behind:
                for each in itertools.chain([first], judged):
                    behind.put(each)
                    done += 1
                    if on_progress is not None:
                        on_progress(done, len(self._pictures))
        return done

    def _judged(self, coming: Iterator[Picture]) -> Iterator[JudgedPicture]:
        size, explained = None, 0
        for seen in coming:
            size = size or seen.image.shape
            if seen.image.shape != size:
                raise DataError(
                    f"frame {seen.frame} {seen.key} is {seen.image.shape[1]}x{seen.image.shape[0]}, the first "
                    f"{size[1]}x{size[0]}; a replay needs one size"
                )
            judged = self._judge(seen, with_control=explained % self._config.control_every == 0)
            explained += bool(judged.explained)
            yield judged

    def _view(self, first: Picture) -> ActionView:
        height, width = first.image.shape[:2]
        parts = [
            described(self.method, self._config.options),
            f"{self._config.fill} fill" if self._config.score else "not scored",
        ]
        config = ActionViewConfig(
            names=self._names,
            thresholds=self._judge.thresholds,
            layout=self._config.layout,
            region=self._pictures.region(height, width),
            provenance=" · ".join([*parts, f"model {self._checkpoint.sha256[:12]}"]),
            last_fraction=FRACTIONS[-1],
        )
        return ActionView(height=height, width=width, config=config)

    def _sink(self, out: Path, view: ActionView) -> AbstractContextManager[VideoSink]:
        return open_sink(
            out,
            height=view.height,
            width=view.width,
            frame_rate=self._pictures.frame_rate,
            encoding=Encoding(preset=self._config.preset, crf=self._config.crf),
            comment=json.dumps(
                {"made_by": f"driving-xai {version('driving-xai')}", **self._plan()}, sort_keys=True
            ),
        )

    def _renderer(self, view: ActionView, sink: VideoSink) -> Callable[[JudgedPicture], None]:
        def render(judged: JudgedPicture) -> None:
            with self._times.measure("draw"):
                picture = view.draw(self._instant(judged))
            with self._times.measure("encode"):
                sink.write(picture)

        return render

    def _instant(self, judged: JudgedPicture) -> ActionInstant:
        seen, config = judged.seen, self._config
        self._record.add(judged, picture=self._drawn)
        shown = {column: self._shown(column, found) for column, found in judged.explained.items()}
        columns = list(shown)
        turn = int(self._drawn / float(self._pictures.frame_rate) / config.cycle_s)
        self._drawn += 1
        what = seen.key or f"{seen.drive} frame {seen.frame}"
        parts = [SEEN_AS.get(seen.split, seen.split), what if len(what) <= 48 else f"{what[:46]}.."]
        return ActionInstant(
            image=seen.image,
            probability=judged.probability,
            labels=seen.labels,
            shown=shown,
            selected=columns[turn % len(columns)] if columns else None,
            caption=" · ".join(part for part in parts if part),
        )

    def _shown(self, column: int, found: Explained) -> Shown:
        known = self._scales.get(column)
        weight = 1 - math.exp(-1 / (self._config.heat_s * float(self._pictures.frame_rate)))
        if known is None or not self._pictures.follow:
            scale = HeatScale.first(found.saliency)
        else:
            scale = known.after(found.saliency, weight)
        self._scales[column] = scale
        return Shown(found.saliency, scale, self._record.view(found))

    def _plan(self) -> dict[str, Any]:
        return {
            "config": {**planned(self._config), "method": self.method, "methods": [self.method]},
            "checkpoint_sha256": self._checkpoint.sha256,
            "shards_sha256": self._pictures.shards_sha256,
            "source": {"name": self._pictures.name, "kind": self._pictures.kind},
        }

    def save(self, out: Path, scores: Path) -> Results:
        """Writes the scores beside the video."""
        rate = float(self._pictures.frame_rate)
        block = max(1, round(self._config.block_s * rate)) if self._pictures.follow else 1
        summary = {
            "plan": self._plan(),
            "model": {"kind": self._checkpoint.kind, "config": dict(self._checkpoint.config["model"])},
            "video": {
                "file": out.name,
                "sha256": sha256_of(out),
                "frame_rate": str(self._pictures.frame_rate),
                "pictures": [list(each) for each in self._record.pictures],
            },
            **self._record.summary(
                BlockBootstrap(block=block, seed=self._config.seed),
                fill=self._config.fill,
                frames=self._drawn,
            ),
            **describe_machine(next(self._checkpoint.model.parameters()).device),
        }
        return Results(summary=summary, per_frame=self._record.table()).save(
            out.with_name(f"{out.stem}.scores")
        )
