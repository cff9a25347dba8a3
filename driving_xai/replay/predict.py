"""One frame predicted and explained, and its explanations scored by deletion beside a random order."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, UInt8
from torch import Tensor, nn

from driving_xai.errors import NonFiniteError
from driving_xai.evaluation.allocator import keep_freed_memory, release_fragments
from driving_xai.evaluation.instants import advance
from driving_xai.explain.base import Explainer
from driving_xai.metrics.curves import deletion, rank
from driving_xai.metrics.faithfulness import DELETED
from driving_xai.models.capabilities import scores_of
from driving_xai.models.declared import at_instant, is_recurrent
from driving_xai.perturb import Fill
from driving_xai.replay.background import StageTimes
from driving_xai.replay.frames import SourceFrame
from driving_xai.types import (
    Attention,
    AttentiveFrameModel,
    FrameModel,
    Frames,
    Saliency,
    Scores,
    Target,
    View,
)

MEASURE, CONTROL = "deletion", "random"
FRACTIONS = DELETED
"""Of pixels removed: 0 to 25 % in steps of 1 %."""
_FRAMES_PER_TRIM = 100

Curve = Float64[np.ndarray, " V"]
Curves = Mapping[str, Curve]
"""Deletion curves of one ordering of pixels by reference; NaN where the reference is unknown."""


class Output(NamedTuple):
    """One output of a frame that is explained."""

    column: int
    name: str
    """The target, as results call it."""
    target: Target
    prediction: float
    """In the unit of the task's quantity, as is the truth."""
    truth: float
    """NaN where unknown."""


class Prediction(NamedTuple):
    """What a task reads from a model's scores for one frame."""

    value: Any
    """The task's own: what its picture shows."""
    outputs: Sequence[Output]
    """Those that are explained; none where nothing is predicted."""


class Explanation(NamedTuple):
    """A method's map of one output, and how its deletion changes that output."""

    method: str
    output: Output
    saliency: Float32[np.ndarray, "h w"]
    curves: Curves | None = None
    """Of the method's ordering; None where the frame was not scored."""
    random: Curves | None = None
    """Of a random ordering; None where it was not scored."""


class FrameResult(NamedTuple):
    """What came of one frame."""

    seen: SourceFrame
    prediction: Any
    """`Prediction.value`."""
    explanations: tuple[Explanation, ...]
    """Method by method."""

    def by(self, method: str) -> FrameResult:
        """The same frame with the explanations of one method."""
        return self._replace(explanations=tuple(each for each in self.explanations if each.method == method))


class Pending(NamedTuple):
    """A frame that is explained, with what its scores are computed from."""

    result: FrameResult
    """Not scored yet."""
    past: Any
    """The state of a recurrent model before the frame."""
    frames: Frames
    saliency: Mapping[str, Float[Tensor, "C H W"]]
    """By method, a map for each output."""
    clean: Scores
    scorable: bool
    """Not where nothing is explained, nor where a recurrent model makes its state: no clean past is left."""
    with_control: bool


Submit = Callable[[Pending], Future[FrameResult]]


class ReadsScores(Protocol):
    """The part of a task that predicting and scoring need; see `tasks.base.Task`."""

    def read(self, clean: Scores, seen: SourceFrame) -> Prediction:
        """What a model's scores for one frame (1 K) say."""
        ...

    def curves(self, scores: Float[Tensor, "V K"], output: Output, prediction: Any, clean: Scores) -> Curves:
        """An output's curves from the scores of the edited frames."""
        ...


class Predictor:
    """Walks a model along the frames: predicts and explains each, in order."""

    def __init__(
        self,
        model: Any,
        explainers: Mapping[str, Explainer],
        task: ReadsScores,
        *,
        control_every: int,
        device: torch.device,
        times: StageTimes,
        explains: Callable[[str, Target], Target] = lambda _method, target: target,
    ) -> None:
        """Starts before the first frame.

        Args:
            model: a `types.FrameModel` or a `types.RecurrentModel`; it is called from one thread only, so
                that methods may hook its layers.
            explainers: make the maps, by method.
            task: says what is explained.
            control_every: every n-th frame that is scored is scored in a random order too; 0 for none.
            device: of the model.
            times: `model` and `explain` are added to.
            explains: what an explainer, by its method, takes of an output; see `targets.explained_by`.
        """
        self._model, self._explainers, self._task = model, explainers, task
        self._control_every, self._device, self._times = control_every, device, times
        self._explains, self._recurrent = explains, is_recurrent(model)
        self._state: Any = None
        self._scorable = 0

    def __call__(self, seen: SourceFrame, pixels: UInt8[np.ndarray, "h w 3"]) -> Pending:
        """Predicts and explains the next frame.

        Args:
            seen: the source's frame.
            pixels: the same as the model's input.

        Raises:
            NonFiniteError: a prediction or a map is not finite.
        """
        return next(self._along([(seen, pixels)]))

    def along(
        self, frames: Iterable[tuple[SourceFrame, UInt8[np.ndarray, "h w 3"]]], *, most: int
    ) -> Iterator[Pending]:
        """Predicts and explains frames in order, up to `most` of an unbroken run in one pass of the encoder.

        Args:
            frames: of the source, each with the model's input.
            most: frames that are waited for before the first of them is predicted.

        Raises:
            NonFiniteError: a prediction or a map is not finite.
        """
        together: list[tuple[SourceFrame, np.ndarray]] = []
        for seen, pixels in frames:
            if together and seen.begins:
                yield from self._along(together)
                together = []
            together.append((seen, pixels))
            if len(together) == most:
                yield from self._along(together)
                together = []
        if together:
            yield from self._along(together)

    def _along(self, together: Sequence[tuple[SourceFrame, np.ndarray]]) -> Iterator[Pending]:
        """Frames of which only the first may begin a run."""
        past = None if together[0][0].begins else self._state
        with self._times.measure("model"), torch.no_grad():
            frames = torch.cat([self._input(pixels) for _, pixels in together])
            steps = self._steps(frames, past)
        for (seen, _), frame, (clean, attention, state) in zip(together, frames.split(1), steps, strict=True):
            yield self._pending(seen, frame, past, clean, attention)
            past = state

    def _pending(
        self, seen: SourceFrame, frames: Frames, past: Any, clean: Scores, attention: Attention | None
    ) -> Pending:
        if not bool(torch.isfinite(clean).all()):
            raise NonFiniteError(
                f"frame {seen.frame.index}: its prediction is NaN or infinite; check the weights"
            )
        prediction = self._task.read(clean, seen)
        with self._times.measure("explain"):
            view = self._view(past, frames, attention)
            try:
                saliency = {
                    method: self._explained(method, view, frames, prediction.outputs)
                    for method in self._explainers
                }
            except NonFiniteError as error:
                raise NonFiniteError(f"frame {seen.frame.index}: its map: {error}") from error
            explanations = tuple(
                Explanation(method, output, shown)
                for method, maps in saliency.items()
                for output, shown in zip(
                    prediction.outputs, maps.cpu().numpy().astype(np.float32, copy=False), strict=True
                )
            )
        scorable = bool(explanations) and not (self._recurrent and seen.begins)
        return Pending(
            result=FrameResult(seen, prediction.value, explanations),
            past=past,
            frames=frames,
            saliency=saliency,
            clean=clean,
            scorable=scorable,
            with_control=scorable and self._control_is_due(),
        )

    def remember(self, seen: SourceFrame, pixels: UInt8[np.ndarray, "h w 3"]) -> None:
        """Takes a frame into the model's memory and shows nothing of it."""
        if not self._recurrent:
            return
        with self._times.measure("model"), torch.no_grad():
            self._steps(self._input(pixels), None if seen.begins else self._state)

    def _input(self, pixels: UInt8[np.ndarray, "h w 3"]) -> Frames:
        owned = pixels if pixels.flags.writeable else pixels.copy()
        return torch.from_numpy(owned).to(self._device).permute(2, 0, 1)[None].float() / 255

    def _steps(self, frames: Frames, past: Any) -> list[tuple[Scores, Attention | None, Any]]:
        """What the model says of consecutive frames of one drive, and its state after each."""
        if not self._recurrent:
            return [(clean, None, None) for clean in scores_of(self._model, frames).split(1)]
        steps = advance(self._model, frames[None], past)
        self._state = steps[-1][2]
        return steps

    def _view(self, past: Any, frames: Frames, attention: Attention | None) -> FrameModel:
        view = at_instant(self._model, past)
        return view if attention is None else _Seen(view, frames, attention)

    def _explained(
        self, method: str, view: FrameModel, frames: Frames, outputs: Sequence[Output]
    ) -> Float[Tensor, "C H W"]:
        if not outputs:
            return frames.new_zeros(0, *frames.shape[2:])
        targets = [self._explains(method, output.target) for output in outputs]
        return self._explainers[method].explain_each(view, frames, targets)[0].detach()

    def _control_is_due(self) -> bool:
        self._scorable += 1
        return bool(self._control_every) and (self._scorable - 1) % self._control_every == 0


@dataclass(frozen=True, kw_only=True)
class FrameScorer:
    """Scores a frame's explanations. It keeps nothing, so that frames may be scored side by side."""

    model: Any
    """As the predictor's; a `twin` of it where another thread calls that one."""
    control: Explainer
    """The random order."""
    task: ReadsScores
    fill: Fill
    seed: int
    """Of ties between equal saliencies."""
    batch_size: int = 32
    times: StageTimes
    """`score` is added to."""

    def __call__(self, pending: Pending) -> FrameResult:
        """The frame with its curves, where it can be scored."""
        if not pending.scorable:
            return pending.result
        with self.times.measure("score"):
            view = at_instant(self.model, pending.past)
            scores = self._scores(view, pending)
            task, result = self.task, pending.result

            def curves(of: Float[Tensor, "V K"], output: Output) -> Curves:
                return task.curves(of, output, result.prediction, pending.clean)

            scored = [
                each._replace(
                    curves=curves(own, each.output),
                    random=curves(scores[-1], each.output) if pending.with_control else None,
                )
                # The control's scores are the last and pair with no map.
                for each, own in zip(result.explanations, scores, strict=False)
            ]
        return result._replace(explanations=tuple(scored))

    def _scores(self, view: FrameModel, pending: Pending) -> Float[Tensor, "orders V K"]:
        """Of the edited frames: for each map's order, then for the random one if it is due."""
        control: list[Saliency] = []
        if pending.with_control:
            first = pending.result.explanations[0].output
            control.append(self.control(view, pending.frames, first.target))
        # A new generator of the same seed: a map's order depends neither on the frames before it nor on other methods.
        ranked = [
            rank(torch.cat([maps, *control]).float(), torch.Generator().manual_seed(self.seed))
            for maps in pending.saliency.values()
        ]
        count = len(ranked[0]) - len(control)
        ranks = torch.cat([*(each[:count] for each in ranked), ranked[0][count:]])
        return deletion(
            view,
            pending.frames,
            ranks[None],
            FRACTIONS,
            fill=self.fill,
            batch_size=self.batch_size,
            clean=pending.clean,
        )[0]


class _Seen:
    """The view of an instant whose attention is known from the step that was just taken."""

    def __init__(self, instant: FrameModel, frames: Frames, attention: Attention) -> None:
        self._instant, self._frames, self._attention = instant, frames, attention
        if isinstance(instant, View):
            self.network = instant.network

    def __call__(self, frames: Frames) -> Scores:
        return self._instant(frames)

    def attention(self, frames: Frames) -> Attention:
        if frames is self._frames:
            return self._attention
        return cast(AttentiveFrameModel, self._instant).attention(frames)


def twin(model: nn.Module) -> nn.Module:
    """A model of the same weights, not copied, whose hooks are its own.

    Methods hook layers of the model that they explain; scores are computed meanwhile in other threads.
    """
    shared = {id(tensor): tensor for tensor in itertools.chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, shared)


@contextmanager
def scoring_side_by_side(score: Callable[[Pending], FrameResult], workers: int) -> Iterator[Submit]:
    """Yields a function that hands a frame to one of some threads and returns its future.

    Each thread computes by itself: the operations of a small model are too short to be divided, and
    wait for each other where cores are busy with decoding and encoding. The caller's own operations
    keep the threads that are left, one at least.
    """
    keep_freed_memory()
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(
        workers, thread_name_prefix="replay-score", initializer=torch.set_num_threads, initargs=(1,)
    )
    submitted = itertools.count(1)

    def submit(pending: Pending) -> Future[FrameResult]:
        if next(submitted) % _FRAMES_PER_TRIM == 0:
            release_fragments()
        return pool.submit(score, pending)

    try:
        torch.set_num_threads(max(1, before - workers))
        yield submit
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)
