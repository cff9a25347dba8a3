"""LIME by patch on models whose answer is known, and rank correlation against scipy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LinearRegression
from torch import Tensor, nn

from data_prep.shards.hdf5 import read_frames
from driving_xai.data.images import LabelledImages
from driving_xai.errors import DataError
from driving_xai.evaluation.config import ScoreConfig
from driving_xai.evaluation.run import score
from driving_xai.explain.lime import Grid
from driving_xai.explain.registry import fitted
from driving_xai.metrics.batch import EvalBatch, RankedMaps
from driving_xai.metrics.confidence import OfClass
from driving_xai.metrics.quantities import PROBABILITY
from driving_xai.metrics.rank_correlation import (
    LimeRankCorrelation,
    lime_rank_correlation,
    patch_lime,
    patch_means,
)
from driving_xai.targets import magnitude, output, outputs_at
from driving_xai.types import Outputs

MEASURE = "lime-rank-correlation"


class WeighedPixels(nn.Module):
    """Linear in the frame: hiding a patch in black costs exactly its weighed sum."""

    outputs = Outputs(kind="multiclass", names=("a", "b"))

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(2, 3, height, width, generator=generator, dtype=torch.float64)
        self.eval()

    def forward(self, frames):
        return torch.einsum("bchw,kchw->bk", frames, self.weight) + 5


@pytest.fixture
def frame() -> torch.Tensor:
    return torch.rand(3, 12, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_a_linear_model_gives_each_patch_its_own_sum(frame):
    """Ordinary least squares on a grid, whatever defaults LIME itself has."""
    model = WeighedPixels(12, 16)
    lime = patch_lime(grid=Grid(rows=3, columns=2), samples=60)
    (found,) = lime.fit(model, frame[None], output(1))
    for row in range(3):
        for column in range(2):
            part = (slice(None), slice(4 * row, 4 * row + 4), slice(8 * column, 8 * column + 8))
            expected = float((frame * model.weight[1])[part].sum())
            assert float(found.coefficients[2 * row + column]) == pytest.approx(expected, abs=1e-10)


def test_the_fit_is_least_squares_with_an_intercept():
    lime = patch_lime(seed=3)
    patterns = lime.patterns(49)
    scores = np.random.default_rng(2).random(1000) + patterns[:, 3].numpy()
    expected = LinearRegression().fit(patterns, scores).coef_
    np.testing.assert_allclose(lime.solver(patterns).numpy() @ scores, expected, atol=1e-12)


def test_patch_means_are_over_the_pixels_of_a_patch():
    maps = torch.rand(2, 10, 7, generator=torch.Generator().manual_seed(3))
    grid = Grid(rows=3, columns=2)
    found = patch_means(maps, grid=grid)
    for each, means in zip(maps, found, strict=True):
        pixels: dict[int, list[float]] = {patch: [] for patch in range(6)}
        for row in range(10):
            for column in range(7):
                pixels[row * 3 // 10 * 2 + column * 2 // 7].append(float(each[row, column]))
        np.testing.assert_allclose(means, [np.mean(values) for values in pixels.values()], rtol=1e-12)
    with pytest.raises(ValueError, match="maps are 10 x 7; expected at least 12 x 2"):
        patch_means(maps, grid=Grid(rows=12, columns=2))


def test_correlation_is_spearmans_with_mid_ranks():
    rng = np.random.default_rng(0)
    lime, maps = rng.normal(size=(20, 49)), rng.integers(0, 4, size=(20, 49)).astype(float)
    expected = [stats.spearmanr(a, b).statistic for a, b in zip(lime, maps, strict=True)]
    np.testing.assert_allclose(lime_rank_correlation(lime, maps), expected, atol=1e-12)
    np.testing.assert_allclose(lime_rank_correlation(lime, np.exp(lime)), 1, atol=1e-12)
    np.testing.assert_allclose(lime_rank_correlation(lime, -lime), -1, atol=1e-12)


def test_a_map_that_orders_nothing_has_no_correlation():
    lime = np.arange(12.0).reshape(2, 6)
    found = lime_rank_correlation(lime, np.stack([np.ones(6), np.arange(6.0)]))
    assert np.isnan(found[0])
    assert found[1] == pytest.approx(1)


def test_bad_input_says_what_was_expected():
    with pytest.raises(ValueError, match="got 49 samples for 49 segments without a ridge"):
        patch_lime(samples=49).patterns(49)
    # The tests check the signature's shapes before the function does.
    with pytest.raises((ValueError, TypeError)):
        lime_rank_correlation(np.zeros((1, 3)), np.zeros((1, 4)))
    with pytest.raises(ValueError, match="not finite"):
        lime_rank_correlation(np.array([[0.0, np.nan]]), np.zeros((1, 2)))


def _patches(pixels: Tensor) -> list[Tensor]:
    """The 49 parts of the last two dimensions, in reading order: patch k begins at ceil(k side / 7)."""
    rows, columns = ([-(-k * side // 7) for k in range(8)] for side in pixels.shape[-2:])
    return [
        pixels[..., rows[r] : rows[r + 1], columns[c] : columns[c + 1]]
        for r, c in product(range(7), range(7))
    ]


def _by_the_book(explained: Callable[[Tensor], Tensor], frame: Tensor, saliency: Tensor, seed: int) -> float:
    """1,000 frames with black patches, least squares by scikit-learn, a correlation by scipy."""
    shown = torch.rand(1000, 49, generator=torch.Generator().manual_seed(seed)) < 0.5
    shown[0] = True
    edited = frame.repeat(1000, 1, 1, 1)
    for patch, pixels in enumerate(_patches(edited)):
        pixels[~shown[:, patch]] = 0
    with torch.no_grad():
        scores = torch.cat([explained(part) for part in edited.split(100)]).double()
    worths = LinearRegression().fit(shown.numpy(), scores.numpy()).coef_
    means = [float(pixels.double().mean()) for pixels in _patches(saliency)]
    return float(stats.spearmanr(worths, means).statistic)


def test_an_image_is_judged_by_the_probability_of_its_output(actions, streets, tmp_path):
    model, images = actions().model, LabelledImages(streets)
    config = ScoreConfig(
        methods=("gradient",), measures=(MEASURE,), split="all", every=40, target="left", seed=3, resamples=10
    )
    found = score(actions(), streets, tmp_path / "out", config)
    rows = found.select(method="gradient", measure=MEASURE, reference="lime")
    for number, value in zip(rows["frame"], rows["value"], strict=True):
        frame = images.frames(np.array([number]))
        saliency = fitted("gradient", model)(model, frame, output(2))[0]
        expected = _by_the_book(lambda edited: torch.sigmoid(model(edited)[:, 2]), frame, saliency, seed=3)
        assert value == pytest.approx(expected, abs=2e-3)
    assert found.summary["measures"][MEASURE]["faithful"] == "high"
    assert found.summary["measures"][MEASURE]["quantity"] == "probability of the explained output"
    assert rows["curve"].isna().all()
    (ours,) = (each for each in found.summary["scores"] if each["method"] == "gradient")
    assert "without_value" not in ours


def test_steering_is_judged_by_the_turn_that_the_clean_frame_took(steering, shards, tmp_path):
    """sign(u of the unedited frame) times u, with the past that the frames before it left."""
    checkpoint = steering()
    config = ScoreConfig(methods=("soft-attention",), measures=(MEASURE,), every=5, resamples=10)
    found = score(checkpoint, shards, tmp_path / "out", config)
    rows = found.select(method="soft-attention", measure=MEASURE, reference="lime")
    assert rows["frame"].tolist() == [105, 205, 210]
    model, state = checkpoint.model, None
    drive = torch.from_numpy(read_frames(shards / "shard-1.h5", 0, 6)).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        for past in drive[:-1]:
            state = model.step(past[None], state)[2]
    view, frame = model.at(state), drive[-1:]
    side = view(frame).sign().item()
    saliency = fitted("soft-attention", model)(view, frame, magnitude)[0]
    expected = _by_the_book(lambda edited: side * view(edited)[:, 0], frame, saliency, seed=0)
    assert rows["value"][0] == pytest.approx(expected, abs=2e-3)
    assert found.summary["measures"][MEASURE]["quantity"] == "explained output"


class Saturating(nn.Module):
    """Every patch of two frames of the same sum matters, and none alone: no linear model fits."""

    outputs = Outputs(kind="multiclass", names=("a", "b"))

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.pixels, self.gain = WeighedPixels(14, 21), gain
        self.eval()

    def forward(self, frames):
        return (self.gain * (self.pixels(frames) - 5) / 10).tanh()


def _batch(model: nn.Module, frames: Tensor) -> EvalBatch:
    clean = model(frames)
    classes = clean.argmax(1)
    return EvalBatch(
        rows=np.arange(len(frames)),
        model=model,
        frames=frames,
        clean=clean,
        target=outputs_at(classes),
        targets=["a"] * len(frames),
        quantity=PROBABILITY,
        references={"target": OfClass(classes=classes)},
        known={},
        ground_truth_mask=None,
    )


def _measured(batch: EvalBatch, saliency: Tensor, *, batch_size: int = 32, seed: int = 0) -> Tensor:
    flat = saliency.flatten(2)
    maps = RankedMaps(saliency, torch.zeros_like(flat, dtype=torch.int64), flat.amax(2) == flat.amin(2))
    metric = LimeRankCorrelation(patterns=120, batch_size=batch_size, seed=seed)
    ((reference, columns),) = metric.measure(batch, maps)
    assert reference == "lime"
    return columns["value"]


def test_batches_change_nothing_and_the_seed_decides():
    generator = torch.Generator().manual_seed(5)
    frames = torch.rand(3, 3, 14, 21, generator=generator, dtype=torch.float64)
    saliency = torch.rand(3, 2, 14, 21, generator=generator)
    model = Saturating()
    found = _measured(_batch(model, frames), saliency)
    for batch_size in (1, 7):
        again = _measured(_batch(model, frames), saliency, batch_size=batch_size)
        torch.testing.assert_close(again, found, rtol=1e-9, atol=0)
    alone = [_measured(_batch(model, frames[i : i + 1]), saliency[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(torch.cat(alone), found, rtol=1e-9, atol=0)
    assert not torch.equal(_measured(_batch(model, frames), saliency, seed=1), found)


def test_the_frames_of_a_batch_are_fitted_once_for_all_methods():
    frames, seen = torch.rand(2, 3, 14, 21, dtype=torch.float64), []
    model = Saturating()
    batch = _batch(model, frames)
    model.register_forward_pre_hook(lambda _layer, given: seen.append(len(given[0])))
    _measured(batch, torch.rand(2, 5, 14, 21))
    assert sum(seen) == 2 * (1 + 120), "the unedited frames and each pattern"


def test_what_orders_nothing_has_no_value():
    """A constant map, and a model that no patch changes: rounding must not become an order."""
    frames = torch.rand(2, 3, 14, 21, dtype=torch.float64)
    saliency = torch.rand(2, 2, 14, 21)
    saliency[1, 0] = 0.3
    found = _measured(_batch(Saturating(), frames), saliency)
    assert found.isnan().tolist() == [[False, False], [True, False]]
    assert _measured(_batch(Saturating(gain=0.0), frames), saliency).isnan().all()


@pytest.mark.parametrize("count", [1, 3])
def test_rounding_of_a_float32_network_is_no_order(count, actions):
    """Black frames hidden by black: every pattern is the same frame, in batches of another size."""
    model, frames = actions().model, torch.zeros(count, 3, 48, 80)
    found = _measured(_batch(model, frames), torch.rand(count, 2, 48, 80))
    assert found.isnan().all()


class Confident(nn.Module):
    """Two classes of logits around 10 and -8; what each patch adds grows in reading order."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("worth", torch.linspace(0, 0.05, 49))
        self.eval()

    def forward(self, frames: Tensor) -> Tensor:
        patches = nn.functional.adaptive_avg_pool2d(frames.mean(1, keepdim=True), 7).flatten(1)
        gain = patches @ self.worth - self.worth.sum()
        return torch.stack([10 + gain, -8 - gain], 1)


def test_the_order_of_a_confident_model_is_not_taken_for_rounding():
    frames = torch.ones(1, 3, 14, 21)
    saliency = torch.linspace(0, 1, 49).view(1, 1, 7, 7).repeat_interleave(2, 2).repeat_interleave(3, 3)
    assert _measured(_batch(Confident(), frames), saliency) > 0.9


def test_own_cells_are_compared_with_patches_as_they_are():
    """49 cells of a map whose picture says something else; 4 x 4 cells have no patches to be compared with."""
    drawn = torch.Generator().manual_seed(9)
    frames = torch.rand(2, 3, 14, 21, generator=drawn, dtype=torch.float64)
    batch, saliency = _batch(Saturating(), frames), torch.rand(2, 2, 14, 21, generator=drawn)
    own = torch.rand(2, 7, 7, generator=drawn)
    metric = LimeRankCorrelation(patterns=120)
    ranked = RankedMaps.of(saliency, cells=[own, torch.rand(2, 4, 4)])
    ((_, found),) = metric.measure(batch, ranked)
    lime = patch_lime(samples=120).fit(
        batch.model, frames, lambda scores: batch.references["target"](scores[:, None])[:, 0]
    )
    expected = [
        stats.spearmanr(each.coefficients, cells.flatten()).statistic
        for each, cells in zip(lime, own, strict=True)
    ]
    np.testing.assert_allclose(found["value"][:, 0], expected, atol=1e-9)
    assert torch.equal(found["value"][:, 1], _measured(batch, saliency)[:, 1])


def test_lime_may_be_fitted_on_a_baseline():
    """A network that looks at nothing else than the baseline's weights: the fit is that on the baseline alone."""
    drawn = torch.Generator().manual_seed(9)
    frames = torch.rand(2, 3, 14, 21, generator=drawn, dtype=torch.float64)
    saliency = torch.rand(2, 1, 14, 21, generator=drawn)
    ours, theirs = _batch(Saturating(gain=-0.3), frames), _batch(Saturating(), frames)
    found = _measured(ours._replace(baseline=theirs.model), saliency)
    explained = theirs._replace(references=ours.references, target=ours.target)
    assert torch.equal(found, _measured(explained, saliency))
    assert not torch.equal(found, _measured(ours, saliency))


def test_a_run_names_the_baseline_it_was_compared_with(actions, streets, tmp_path):
    baseline = actions(patch_px=8)
    settings = {"methods": ("generic-attention",), "split": "all", "every": 40, "resamples": 10}
    config = ScoreConfig(measures=(MEASURE,), baseline_model=str(baseline.path), **settings)
    found = score(actions(), streets, tmp_path / "out", config)
    alone = score(actions(), streets, tmp_path / "alone", replace(config, baseline_model=None))
    assert found.summary["plan"]["baseline_model_sha256"] == baseline.sha256
    assert "baseline_model" not in alone.summary["plan"]["config"]
    of_both = [
        each.select(method="generic-attention", measure=MEASURE, reference="lime")["value"]
        for each in (found, alone)
    ]
    assert not of_both[0].equals(of_both[1])
    with pytest.raises(DataError, match="another baseline_model"):
        score(actions(), streets, tmp_path / "out", replace(config, baseline_model=None), resume=True)
    other = replace(config, baseline_model=str(actions(names=("a", "b")).path))
    with pytest.raises(DataError, match="expected the same classes"):
        score(actions(), streets, tmp_path / "other", other)
    with pytest.raises(ValueError, match="which no measure of this run follows"):
        replace(config, measures=("deletion",))


def test_frames_smaller_than_the_grid_are_refused():
    model = WeighedPixels(6, 21)
    frames = torch.rand(1, 3, 6, 21, dtype=torch.float64)
    with pytest.raises(DataError, match="frames are 6 x 21 px; lime-rank-correlation lays 7 x 7 patches"):
        _measured(_batch(model, frames), torch.rand(1, 1, 6, 21))
