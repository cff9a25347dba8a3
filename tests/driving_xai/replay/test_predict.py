"""One frame predicted, explained and scored, against the same done step by step."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from data_prep.schema import VEHICLES, Frame
from driving_xai.checkpoint import Checkpoint
from driving_xai.evaluation.results import Results
from driving_xai.evaluation.run import ScoreConfig, score
from driving_xai.explain.base import Explainer, Function
from driving_xai.explain.baselines import RandomOrder
from driving_xai.explain.registry import fitted
from driving_xai.models.steering import SteeringConfig, SteeringModel
from driving_xai.replay.background import StageTimes
from driving_xai.replay.config import ReplayConfig
from driving_xai.replay.frames import SourceFrame
from driving_xai.replay.player import replay
from driving_xai.replay.predict import (
    FRACTIONS,
    FrameResult,
    FrameScorer,
    Pending,
    Predictor,
    scoring_side_by_side,
    twin,
)
from driving_xai.replay.tasks.steering import SteeringTask
from driving_xai.types import FrameModel, Frames, Outputs, Saliency, Scores, Target

from .conftest import FRAMES

CAR = VEHICLES["lincoln-mkz"]
HEIGHT, WIDTH = 10, 20
WEIGHTS = torch.linspace(-1, 1, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)


class Memory(NamedTuple):
    last: Float[Tensor, "B 1"]


class Linear:
    """u = 1e-3 (frame . weights + what it remembers of the last frame): a model one can solve by hand."""

    outputs = Outputs(kind="regression", names=("inverse turning radius",), unit="1/m")

    def step(self, frames: Frames, state: Memory | None) -> tuple[Scores, Tensor, Memory]:
        return self.at(state)(frames), torch.ones(len(frames), 1, 1), Memory(frames.mean((1, 2, 3))[:, None])

    def at(self, state: Memory | None) -> FrameModel:
        return Instant(0.0 if state is None else float(state.last[0, 0]))


class Instant:
    outputs = Linear.outputs

    def __init__(self, remembered: float) -> None:
        self.remembered = remembered

    def __call__(self, frames: Frames) -> Scores:
        return 1e-3 * ((frames.mean(1) * WEIGHTS).sum((1, 2)) + self.remembered)[:, None]


def brightness(model: FrameModel, frames: Frames, target: Target) -> Saliency:
    return frames.mean(1)


def drive(
    length: int, begins: Sequence[int] = (0,), speed: float = math.nan
) -> list[tuple[SourceFrame, np.ndarray]]:
    rng = np.random.default_rng(5)
    frames = []
    for number in range(length):
        pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        frame = Frame(index=number, time_ns=number, image=pixels, steering_wheel_rad=0.5, speed_mps=speed)
        truth = math.nan if number == 3 else 0.1 * number
        frames.append((SourceFrame(frame, truth, speed, 0, number in begins, ""), pixels))
    return frames


def steering(model: object) -> SteeringTask:
    """The task of a model on a drive whose steering is known."""
    checkpoint: Any = SimpleNamespace(model=model)
    frames: Any = SimpleNamespace(vehicle=CAR, labelled=True, lead_s=0.0)
    cut: Any = None
    return SteeringTask(checkpoint, frames, cut, ReplayConfig())


def stages(
    model: object, method: Any = brightness, control_every: int = 2, fill: Any = "black"
) -> tuple[Predictor, FrameScorer]:
    task, times = steering(model), StageTimes()
    predictor = Predictor(
        model,
        {"m": method if isinstance(method, Explainer) else Function(function=method)},
        task,
        control_every=control_every,
        device=torch.device("cpu"),
        times=times,
    )
    scorer = FrameScorer(model=model, control=RandomOrder(seed=0), task=task, fill=fill, seed=0, times=times)
    return predictor, scorer


def played(
    frames: list[tuple[SourceFrame, np.ndarray]], model: object = None, **changes: Any
) -> list[FrameResult]:
    """Every frame predicted and scored, one after the other."""
    predictor, scorer = stages(model or Linear(), **changes)
    return [scorer(predictor(*each)) for each in frames]


@pytest.mark.parametrize("kind", ["sign", "soft"])
def test_frames_of_a_file_are_encoded_together_with_equal_scores(kind: str) -> None:
    torch.manual_seed(0)
    model = SteeringModel(SteeringConfig(hidden_size=8, attention=kind)).eval()  # type: ignore[arg-type]
    model.target_scale.fill_(5e-3)
    draw = np.random.default_rng(0)
    frames = [
        (seen, draw.integers(0, 256, (80, 160, 3), dtype=np.uint8)) for seen, _ in drive(11, begins=(0, 6))
    ]
    method, calls = f"{kind}-attention", []
    explainer = fitted(method, model)  # Which may try the encoder, to place its cells.
    predictor, scorer = stages(model, explainer)
    with model.encoder.register_forward_hook(lambda _module, given, _out: calls.append(len(given[0]))):
        together = [scorer(each) for each in predictor.along(frames, most=4)]
    assert [call for call in calls if call in (1, 2, 3, 4)][:1] == [4]
    predictor, scorer = stages(model, explainer)
    for ours, alone in zip(together, [scorer(predictor(*each)) for each in frames], strict=True):
        assert ours.prediction.predicted.angle_deg == pytest.approx(
            alone.prediction.predicted.angle_deg, rel=1e-4, abs=1e-5
        )
        (one,), (other,) = ours.explanations, alone.explanations
        np.testing.assert_allclose(one.saliency, other.saliency, rtol=1e-4)
        assert (one.curves is None) == (other.curves is None)
        if one.curves is not None and other.curves is not None:
            np.testing.assert_allclose(one.curves["clean"], other.curves["clean"], rtol=1e-3, atol=1e-4)


def test_runs_are_not_encoded_together_and_a_viewer_waits_for_no_other_frame() -> None:
    class Counting(Linear):
        taken: ClassVar[list[int]] = []

        def steps(self, windows: torch.Tensor, state: Any) -> Iterator[Any]:
            self.taken.append(windows.shape[1])
            for each in windows.unbind(1):
                found = self.step(each, state)
                state = found[2]
                yield found

    frames = drive(11, begins=(0, 6))
    predictor, _ = stages(Counting())
    list(predictor.along(frames, most=4))
    assert Counting.taken == [4, 2, 4, 1]
    read: list[int] = []

    def noted() -> Iterator[Any]:
        for number, each in enumerate(frames):
            read.append(number)
            yield each

    coming = stages(Counting())[0].along(noted(), most=1)
    for number in range(3):
        assert next(coming).result.seen.frame.index == number
        assert read[-1] == number


def curves(result: FrameResult) -> Any:
    return result.explanations[0].curves


def random(result: FrameResult) -> Any:
    return result.explanations[0].random


def slow_curve(
    pixels: np.ndarray, before: np.ndarray, order: np.ndarray, reference_deg: float
) -> list[float]:
    """Deletion written out: one edited frame at a time, in float64."""
    curve = []
    for fraction in FRACTIONS:
        edited = pixels.astype(np.float64).reshape(-1, 3) / 255
        edited[order[: round(fraction * len(order))]] = 0
        u = 1e-3 * (edited.mean(1) @ WEIGHTS.double().numpy().ravel() + before.mean() / 255)
        curve.append(abs(math.degrees(u * CAR.wheelbase_m * CAR.steering_ratio) - reference_deg))
    return curve


def test_a_frames_curves_are_those_of_deleting_pixel_by_pixel() -> None:
    frames = drive(3)
    found = played(frames)[2]
    pixels, before = frames[2][1], frames[1][1]
    order = np.argsort(-pixels.astype(np.float64).mean(2).ravel(), kind="stable")
    clean_deg = found.prediction.predicted.angle_deg
    truth_deg = math.degrees(0.2)
    assert curves(found) is not None
    # Pixels of one brightness may come in any order, so only steps between different ones are compared.
    values = np.sort(-pixels.astype(np.float64).mean(2).ravel())
    whole = [
        at for at, f in enumerate(FRACTIONS) if f == 0 or values[round(f * 200) - 1] != values[round(f * 200)]
    ]
    assert len(whole) > 15
    for curve, reference in ((curves(found)["truth"], truth_deg), (curves(found)["clean"], clean_deg)):
        np.testing.assert_allclose(
            curve[whole], np.array(slow_curve(pixels, before, order, reference))[whole], atol=1e-3
        )


def test_the_past_is_that_of_the_unedited_frames_and_ends_where_a_run_begins() -> None:
    frames = drive(4, begins=(0, 2))
    found = played(frames)
    for number, remembered in ((1, frames[0][1].mean() / 255), (2, 0.0), (3, frames[2][1].mean() / 255)):
        alone = (frames[number][1].mean(2) / 255 * WEIGHTS.numpy()).sum()
        assert found[number].prediction.predicted.per_m == pytest.approx(
            1e-3 * (alone + remembered), rel=1e-5
        )
    assert [curves(each) is not None for each in found] == [False, True, False, True]


def test_an_unknown_angle_makes_an_unknown_curve_and_the_other_stays() -> None:
    found = played(drive(4))[3]
    assert curves(found) is not None
    assert np.isnan(curves(found)["truth"]).all()
    assert np.isfinite(curves(found)["clean"]).all()
    assert curves(found)["clean"][0] == 0
    assert math.isnan(found.prediction.measured.angle_deg)


def test_the_random_order_is_scored_on_every_nth_scored_frame() -> None:
    found = played(drive(8), control_every=3)
    assert [random(each) is not None for each in found] == [number in (1, 4, 7) for number in range(8)]
    assert all(random(each) is None for each in played(drive(4), control_every=0))


def test_scores_do_not_depend_on_what_was_scored_before() -> None:
    frames = drive(6)
    later = played(frames)[5]
    alone = played([(seen._replace(begins=seen.frame.index == 4), pixels) for seen, pixels in frames[4:]])[1]
    np.testing.assert_array_equal(curves(later)["clean"], curves(alone)["clean"])
    np.testing.assert_array_equal(random(later)["clean"], random(alone)["clean"])


def test_a_faster_car_turns_its_wheel_further_for_the_same_curve() -> None:
    slow, fast = (played(drive(2, speed=speed))[1].prediction.predicted for speed in (math.nan, 20.0))
    assert slow.per_m == fast.per_m
    assert fast.angle_deg == pytest.approx(slow.angle_deg * (1 + CAR.slip_s2_per_m2 * 400))


def test_a_map_that_is_not_finite_is_refused() -> None:
    def broken(model: FrameModel, frames: Frames, target: Target) -> Saliency:
        return torch.full((1, HEIGHT, WIDTH), math.nan)

    with pytest.raises(ValueError, match="NaN or infinity"):
        played(drive(2), method=broken)


class TestSideBySide:
    def test_threads_change_no_score_and_no_order(self) -> None:
        frames = drive(12)
        alone = played(frames)
        predictor, scorer = stages(Linear())
        with scoring_side_by_side(scorer, workers=3) as submit:
            together = [each.result() for each in [submit(predictor(*frame)) for frame in frames]]
        for one, other in zip(alone, together, strict=True):
            assert one.seen.frame.index == other.seen.frame.index
            for a, b in ((curves(one), curves(other)), (random(one), random(other))):
                assert (a is None) == (b is None)
                if a is not None:
                    np.testing.assert_allclose(a["clean"], b["clean"], rtol=1e-6, atol=1e-6)

    def test_the_callers_threads_are_given_back(self) -> None:
        before = torch.get_num_threads()
        inside: list[int] = []

        def score(pending: Pending) -> FrameResult:
            inside.append(torch.get_num_threads())
            return pending.result

        pending = stages(Linear())[0](*drive(1)[0])
        with scoring_side_by_side(score, workers=2) as submit:
            submit(pending).result()
            assert torch.get_num_threads() == max(1, before - 2)
        assert torch.get_num_threads() == before
        assert inside == [1]
        found: list[int] = []
        later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        later.start()
        later.join()
        assert found == [before], "threads started later are not bound either"

    def test_a_twin_shares_weights_and_no_hooks(self) -> None:
        model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
        other = twin(model)
        assert all(a is b for a, b in zip(model.parameters(), other.parameters(), strict=True))
        assert all(a is b for a, b in zip(model.buffers(), other.buffers(), strict=True))
        calls: list[str] = []
        with_hook = model[0].register_forward_hook(lambda *_: calls.append("hook"))
        other(torch.zeros(2, 3))
        assert calls == []
        with_hook.remove()


def test_a_steering_model_is_scored_as_score_does(
    make_checkpoint: Callable[..., Checkpoint], shards: Path, tmp_path: Path
) -> None:
    """The same rows as `driving-xai score` writes for the same frames."""
    # Soft attention: a sign that flips at the last bit of a float would ask for a loose tolerance.
    checkpoint = make_checkpoint(attention="soft")
    config = ScoreConfig(methods=("soft-attention",), split="all", seed=4)
    expected = score(checkpoint, shards, tmp_path / "scored", config).per_frame
    how = ReplayConfig(seed=4, control_every=1, preset="ultrafast")
    replayed = replay(checkpoint, shards, tmp_path / "v.mp4", how)
    assert replayed.scores is not None
    found = Results.load(replayed.scores).per_frame
    both = expected.merge(found, on=["time_ns", "method", "reference"], suffixes=("", "_replay"))
    assert len(both) == len(found) == 2 * 2 * (FRAMES - 2)
    for column in ("prediction", "truth", "error", "value", "normalised", "base_corrected"):
        np.testing.assert_allclose(both[f"{column}_replay"], both[column], rtol=1e-5, atol=1e-4)
    ours, theirs = (np.stack(both[column].to_list()) for column in ("curve_replay", "curve"))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-4)
    for column in ("drive", "camera", "segment", "frame", "degenerate", "measure"):
        assert (both[f"{column}_replay"] == both[column]).all()
