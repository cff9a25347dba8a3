"""The whole of `score` from Python: `evaluate` and what it returns."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from data_prep.places import local, local_output
from driving_xai.checkpoint import Checkpoint
from driving_xai.errors import DataError
from driving_xai.evaluation.config import CONTROLS, ScoreConfig, Split, require_measures
from driving_xai.evaluation.fills import takes_fill
from driving_xai.evaluation.job import Objects, Progress, Run, opened
from driving_xai.evaluation.ranked_cells import RankedBy
from driving_xai.evaluation.results import SUMMARY, Results, locked
from driving_xai.evaluation.run import score
from driving_xai.evaluation.selection import every_batch, sampled
from driving_xai.explain.base import Explainer
from driving_xai.explain.options import OptionsOf
from driving_xai.explain.registry import require_methods
from driving_xai.metrics.aupc import Masking
from driving_xai.metrics.base import Metric
from driving_xai.metrics.batch import EvalBatch, quantity_of
from driving_xai.models.capabilities import device_of, scores_of
from driving_xai.models.foreign import as_checkpoint
from driving_xai.perturb import CurveFill
from driving_xai.targets import by_name
from driving_xai.types import Frames

Methods = Sequence[str | Explainer] | Mapping[str, Explainer]
"""Names and objects, or objects by labels of one's own."""
Metrics = Sequence[str | Metric] | Mapping[str, Metric]
_DEFAULT_MASKING = Masking()


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores of several methods by several metrics, frame by frame and in the mean.

    Args:
        per_frame: a row for each frame, method, metric and reference; see docs/results.md.
        summary: what `results.json` holds: means with intervals, differences to the controls, tests, ranks,
            and how everything was measured.
    """

    per_frame: pd.DataFrame
    summary: Mapping[str, Any]

    def table(self) -> pd.DataFrame:
        """One row for each score: its mean and interval, in the metric's unit, and which end is good."""
        measures = self.summary["measures"]
        rows = [
            {
                **{name: score[name] for name in ("measure", "reference", "method")},
                "mean": score["value"]["mean"],
                "low": score["value"]["low"],
                "high": score["value"]["high"],
                "frames": score["frames"],
                "control": score["method"] in self.summary["controls"],
                "unit": measures[score["measure"]].get("unit", "share"),
                "faithful": measures[score["measure"]]["faithful"],
            }
            for score in self.summary["scores"]
        ]
        return pd.DataFrame(rows)


def evaluate(
    model: Any,
    data: Path | str | Float[Tensor, "..."],
    *,
    methods: Methods,
    metrics: Metrics = ("deletion",),
    out: Path | str | None = None,
    target: str | None = None,
    labels: Float[Tensor, "..."] | None = None,
    masks: Bool[Tensor, "..."] | Path | str | None = None,
    options: OptionsOf = MappingProxyType({}),
    fill: CurveFill | Sequence[CurveFill] = "black",
    masking: Masking = _DEFAULT_MASKING,
    split: Split | None = None,
    every: int = 1,
    batch_size: int = 32,
    seed: int = 0,
    resume: bool = False,
    on_progress: Progress | None = None,
) -> Evaluation:
    """Scores explanations of a model, beside a random order and a centre prior.

    Args:
        model: a loaded checkpoint, or any frame model with `outputs`; on the device to compute on.
        data: a folder that `prep` wrote, here or in a store, or frames in memory: [B, 3, H, W], RGB in [0, 1], taken as unrelated images.
        methods: explainers by literature name or as objects; a mapping gives them labels.
        metrics: by name or as objects, which keep their own options; a mapping gives them labels.
        out: a folder for what `driving-xai score` saves; None saves nothing.
        target: what is explained; see `targets.by_name`. None is `magnitude` for a regressor, else `predicted`.
        labels: of frames in memory, [B, K], 0 or 1 for each output; shards have their own.
        masks: the pixels that cause the label: of frames in memory [B, H, W], for shards a folder or an .npz, here or in a store.
        options: of methods by name: `{"snna": {"samples": 3}}`.
        fill: what an edited pixel shows, for metrics that are given by name; of several each is scored, and each
            method has the headline of its worst. `bias-image` is for shards of images only.
        masking: of accuracy under masks, for metrics that are given by name.
        split: of the shards; None is what a checkpoint did not train on, and `test` for other models.
        every: takes every n-th frame.
        batch_size: most frames in one forward pass, edited ones included.
        seed: of ties, of what draws, and of the intervals.
        resume: continue an interrupted run in `out`, or return the results there.
        on_progress: called with the frames scored so far and in all.

    Raises:
        ValueError: a name is unknown or stands twice, or frames in memory lack what an option takes; the message
            says what is possible.
        DataError: the data do not fit the model or a metric; `out` holds other results.
        UnsupportedModelError: the model says nothing of its outputs, lacks what a method needs, or is in training mode.

    Example:
        >>> from driving_xai.explain.gradient import Gradient
        >>> from driving_xai.types import Outputs
        >>> from torch import nn
        >>> net = nn.Sequential(nn.AvgPool2d(10), nn.Flatten()).eval()
        >>> net.outputs = Outputs(kind="multiclass", names=("red", "green", "blue"))
        >>> found = evaluate(net, torch.rand(4, 3, 10, 10), methods={"mine": Gradient()}, metrics=["deletion"])
        >>> found.table()["method"].tolist()
        ['mine', 'random', 'centre-prior']
        >>> len(found.per_frame)
        12
    """
    in_memory = isinstance(data, Tensor)
    if in_memory and isinstance(masks, Path | str):
        raise ValueError(
            "got a path of masks for frames in memory; give the masks themselves, (B, H, W) bools"
        )
    if not in_memory and (labels is not None or isinstance(masks, Tensor)):
        raise ValueError(
            "got labels or masks in memory for shards, which have their own; give masks as a path"
        )
    if in_memory and "bias-image" in ((fill,) if isinstance(fill, str) else fill):
        raise ValueError(
            "got fill 'bias-image' for frames in memory; it is the mean of the train split of shards: give a folder of "
            "images, or take another fill"
        )
    named, explainers = _sorted(methods, lambda each: type(each).__name__, "method")
    named_metrics, measured = _sorted(metrics, lambda each: each.label, "metric")
    if not (named or explainers):
        raise ValueError("got no method; expected names or explainers")
    if named_metrics or not measured:
        require_measures(named_metrics)
    if not isinstance(fill, str) and not any(map(takes_fill, named_metrics)):
        raise ValueError(
            f"got fill {', '.join(fill)}, which no metric given by name takes; objects have their own"
        )
    config = _Config(
        methods=named,
        measures=(*named_metrics, *measured),
        options=dict(options),
        target=target,
        masks=str(local(masks)) if isinstance(masks, Path | str) else None,
        fill=fill if isinstance(fill, str) else "black",
        fills=() if isinstance(fill, str) else tuple(fill),
        masking=masking,
        split=split or ("held-out" if isinstance(model, Checkpoint) else "test"),
        every=every,
        batch_size=batch_size,
        seed=seed,
    )
    objects = Objects(explainers=explainers, metrics=measured)
    checkpoint = as_checkpoint(model)
    folder = None if out is None else local_output(out)
    if isinstance(data, Tensor):
        known = FrameData(
            checkpoint, data, config, labels=labels, masks=None if isinstance(masks, Path | str) else masks
        )
        results = _of_frames(
            Run(checkpoint, config, shards=None, data=known, objects=objects), known, on_progress
        )
        results = results if folder is None else _saved(results, folder)
    elif folder is None:
        with opened(checkpoint, local(data), config, objects) as run:
            tables, ranked_by = _tables(run, on_progress)
            results = run.results(tables, ranked_by=ranked_by)
    else:
        results = score(
            checkpoint, local(data), folder, config, resume=resume, objects=objects, on_progress=on_progress
        )
    return Evaluation(per_frame=results.per_frame, summary=results.summary)


@dataclass(frozen=True, kw_only=True)
class _Config(ScoreConfig):
    """Methods and metrics may be objects, whose labels no registry knows."""

    def _check_names(self) -> None:
        require_methods(self.methods, self.options, least=0, also=CONTROLS)
        self._check_fills()


Given = TypeVar("Given")


def _sorted(
    given: Sequence[str | Given] | Mapping[str, Given], label: Callable[[Given], str], kind: str
) -> tuple[tuple[str, ...], dict[str, Given]]:
    """The names, and the objects by their labels."""
    if isinstance(given, str):
        raise ValueError(f"got {kind}s {given!r}; expected a sequence of names: [{given!r}]")
    if isinstance(given, Mapping):
        return (), dict(given)
    names = tuple(each for each in given if isinstance(each, str))
    labelled = [(label(each), each) for each in given if not isinstance(each, str)]
    labels = [*names, *(name for name, _ in labelled)]
    if twice := [name for name in labels if labels.count(name) > 1]:
        raise ValueError(
            f"got {kind} {twice[0]!r} twice, expected each once; give objects as a mapping of labels"
        )
    return names, dict(labelled)


class FrameData:
    """Frames in memory as evaluation data: unrelated images, each explained once.

    Args:
        checkpoint: the model.
        frames: RGB in [0, 1].
        config: the target, and every which frame is scored.
        labels: 0 or 1 for each output, [B, K].
        masks: the pixels that cause the label, [B, H, W].

    Raises:
        ValueError: shapes do not fit.
        DataError: the model has no such target.
    """

    seconds_apart = None

    def __init__(
        self,
        checkpoint: Checkpoint,
        frames: Float[Tensor, "..."],
        config: ScoreConfig,
        *,
        labels: Float[Tensor, "..."] | None = None,
        masks: Bool[Tensor, "..."] | None = None,
    ) -> None:
        _require_shapes(frames, labels, masks)
        self._model, self._outputs = checkpoint.model, checkpoint.model.outputs
        self._target = config.target or ("magnitude" if self._outputs.kind == "regression" else "predicted")
        self._rule = by_name(self._target, self._outputs)
        self._frames = frames[:: config.every]
        self._labels = None if labels is None else labels[:: config.every]
        self._masks = None if masks is None else masks[:: config.every]
        self._reference, self.quantity = quantity_of(self._outputs)

    @property
    def protocol(self) -> Mapping[str, Any]:
        """See `EvalData`."""
        of_reference = {"target": "the probability of the explained output", "clean": "the unedited frame"}
        known = {"cause": "the pixels that cause the label", "labels": "the labels of all outputs"}
        return {
            "edited": "the frame",
            "references": {self._reference: of_reference[self._reference], **known},
        }

    @property
    def total(self) -> int:
        """Frames to score."""
        return len(self._frames)

    @property
    def shards(self) -> frozenset[str]:
        """See `EvalData`; there are none."""
        return frozenset()

    @property
    def has_masks(self) -> bool:
        """Whether the pixels that cause the label are known."""
        return self._masks is not None

    def batches(
        self, batch_size: int, wanted: Callable[[int], bool] = every_batch
    ) -> Iterator[tuple[Int64[np.ndarray, " B"], EvalBatch | None]]:
        """See `EvalData`."""
        planned = np.split(np.arange(self.total), range(batch_size, self.total, batch_size))
        for number, rows in enumerate(planned):
            yield rows, self._batch(rows) if wanted(number) else None

    def _batch(self, rows: Int64[np.ndarray, " B"]) -> EvalBatch:
        device, chosen = device_of(self._model), torch.from_numpy(rows)
        frames = self._frames[chosen].to(device)
        labels = None if self._labels is None else self._labels[chosen].to(device)
        masks = None if self._masks is None else self._masks[chosen].to(device)
        clean = scores_of(self._model, frames)
        names = [self._target] * len(rows)
        if self._target == "predicted":
            names = [self._outputs.names[column] for column in clean.argmax(1).tolist()]
        batch = EvalBatch.of(
            self._model, frames, self._rule(clean), clean=clean, ground_truth_mask=masks, labels=labels
        )
        return batch._replace(rows=rows, targets=names)

    def sample(self, count: int, *, seed: int) -> Frames:
        """See `EvalData`."""
        return self._frames[torch.from_numpy(sampled(np.arange(self.total), count, seed=seed))].cpu()

    def places(self, rows: Int64[np.ndarray, " B"]) -> pd.DataFrame:
        """See `EvalData`; each frame is a drive of its own, since it is no neighbour of the others."""
        columns = {"drive": rows.astype(str), "camera": "", "segment": 0, "frame": rows}
        return pd.DataFrame({**columns, "time_ns": 0, "key": ""})

    def describe(self) -> dict[str, Any]:
        """See `EvalData`."""
        return {"images": self.total, "outputs": list(self._outputs.names), "seconds_apart": None}

    @property
    def sha256(self) -> str:
        """Of the frames."""
        return hashlib.sha256(self._frames.detach().cpu().contiguous().numpy().tobytes()).hexdigest()


def _require_shapes(frames: Tensor, labels: Tensor | None, masks: Tensor | None) -> None:
    if frames.dim() != 4 or frames.shape[1] != 3 or not frames.is_floating_point() or not len(frames):
        raise ValueError(
            f"got frames of shape {tuple(frames.shape)}, {frames.dtype}; expected (B, 3, H, W), RGB in [0, 1]"
        )
    if labels is not None and len(labels) != len(frames):
        raise ValueError(f"got labels of {len(labels)} frames; expected {len(frames)}")
    if masks is not None and tuple(masks.shape) != (len(frames), *frames.shape[2:]):
        raise ValueError(
            f"got masks of shape {tuple(masks.shape)}; expected {(len(frames), *frames.shape[2:])}"
        )


def _tables(run: Run, on_progress: Progress | None) -> tuple[list[pd.DataFrame], RankedBy]:
    run.prepare()
    tables: list[pd.DataFrame] = []
    ranked_by: RankedBy = {}
    done = 0
    for _, rows, scored in run.scored(every_batch):
        assert scored is not None
        tables.append(scored.rows)
        ranked_by = scored.ranked_by
        done += len(np.unique(rows))
        if on_progress is not None:
            on_progress(done, run.data.total)
    return tables, ranked_by


def _of_frames(run: Run, frames: FrameData, on_progress: Progress | None) -> Results:
    """What was found of frames in memory, with a plan that names their hash."""
    for metric in run.metrics.values():
        metric.require_mask(frames.has_masks)
    tables, ranked_by = _tables(run, on_progress)
    return run.results(tables, run.plan_with(frames.sha256), ranked_by)


def _saved(results: Results, out: Path) -> Results:
    with locked(out):
        if (out / SUMMARY).exists():
            raise DataError(f"{out}: already holds results; give another folder")
        return results.save(out)
