"""Scoring a route: against a slow twin, and unmoved by batches, interruptions and other methods."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from data_prep import engines
from data_prep.shards.hdf5 import read_causes, read_columns, read_frames
from driving_xai.checkpoint import Checkpoint
from driving_xai.errors import CheckpointError, DataError, UnsupportedModelError
from driving_xai.evaluation import job
from driving_xai.evaluation.config import ScoreConfig
from driving_xai.evaluation.distributed import World
from driving_xai.evaluation.job import _read_maps
from driving_xai.evaluation.maps_file import MapFile
from driving_xai.evaluation.results import FRAME_COLUMNS, PER_FRAME, SUMMARY, Results, locked
from driving_xai.evaluation.run import score, score_in_shares
from driving_xai.evaluation.sanity import SanityConfig, check
from driving_xai.explain.registry import fitted
from driving_xai.metrics.curves import rank
from driving_xai.metrics.localisation import auroc
from driving_xai.perturb import blank
from driving_xai.targets import magnitude
from driving_xai.types import Outputs

# Soft attention: in a sign-attention network, rounding flips the sign of a feature that is nearly zero.
METHODS = ("soft-attention", "grad-cam")
KEYS = ["drive", "segment", "frame", "measure", "reference", "method"]


@pytest.fixture(scope="module")
def scored(steering, shards, tmp_path_factory) -> Results:
    config = ScoreConfig(methods=METHODS, measures=("deletion", "insertion", "auroc"), block_s=0.1)
    return score(steering(), shards, tmp_path_factory.mktemp("scores") / "out", config)


def _degrees(u: float, speed_mps: float) -> float:
    """Equation 3 for the Udacity car; without a speed nothing slips."""
    slip = 1 if np.isnan(speed_mps) else 1 + 0.0014 * speed_mps**2
    return float(np.degrees(u * 2.85 * 14.8 * slip))


class _Instant(NamedTuple):
    """A frame as the shard has it, judged with the state that the frames before it left."""

    frame: torch.Tensor
    view: Callable[[torch.Tensor], torch.Tensor]
    ranks: torch.Tensor
    truth_deg: float
    speed_mps: float

    def angle_deg(self, edited: torch.Tensor) -> float:
        with torch.no_grad():
            return _degrees(self.view(edited).item(), self.speed_mps)


def _instant(checkpoint: Checkpoint, shards: Path, shard: int, t: int, method: str) -> _Instant:
    model, path = checkpoint.model, shards / f"shard-{shard}.h5"
    drive = torch.from_numpy(read_frames(path, 0, t + 1)).permute(0, 3, 1, 2).float() / 255
    columns = read_columns(path)
    state = None
    with torch.no_grad():
        for past in drive[:-1]:
            state = model.step(past[None], state)[2]
    frame, view = drive[-1:], model.at(state)
    saliency = fitted(method, model, seed=0)(view, frame, magnitude)
    ranks = rank(saliency, torch.Generator().manual_seed(0)).view(32, 48)
    truth = np.degrees(columns["steering_wheel_rad_smoothed"][t])
    return _Instant(frame, view, ranks, truth, columns["speed_mps_smoothed"][t])


def _slow_errors(checkpoint: Checkpoint, shards: Path, shard: int, t: int, method: str) -> list[float]:
    """The paper's curve of one frame: one edited frame, one forward pass at a time, from the shard on."""
    at = _instant(checkpoint, shards, shard, t, method)
    counts = [round(percent / 100 * 32 * 48) for percent in range(26)]
    return [abs(at.angle_deg(at.frame * (at.ranks >= count)) - at.truth_deg) for count in counts]


def _slow_difference(at: _Instant, patch_px: int, start: torch.Tensor, reference_deg: float) -> list[float]:
    """The error with the first patches on `start` less that with them black, two frames at a time."""
    corners = [(top, left) for top in range(0, 32, patch_px) for left in range(0, 48, patch_px)]
    within = {
        (top, left): (slice(None), slice(None), slice(top, top + patch_px), slice(left, left + patch_px))
        for top, left in corners
    }
    # A patch comes with its first pixel.
    corners.sort(key=lambda corner: int(at.ranks[within[corner][2:]].min()))
    step = -(-len(corners) // 64)
    inserted, deleted = start.clone(), at.frame.clone()
    found = []
    for count in range(len(corners) + 1):
        if count % step == 0 or count == len(corners):
            errors = [abs(at.angle_deg(edited) - reference_deg) for edited in (inserted, deleted)]
            found.append(errors[0] - errors[1])
        if count < len(corners):
            patch = within[corners[count]]
            inserted[patch], deleted[patch] = at.frame[patch], 0
    return found


def _tolerance(method: str) -> dict[str, float]:
    """Rounding swaps pixels that a model's map values almost equally, here and there; a control's never."""
    return {"rtol": 1e-4, "atol": 1e-4} if method == "random" else {"rtol": 5e-3, "atol": 5e-2}


@pytest.mark.parametrize("method", [*METHODS, "random"])
@pytest.mark.parametrize(("shard", "segment", "t"), [(1, 1, 1), (2, 2, 11)])
def test_deletion_equals_its_slow_twin(scored, steering, shards, shard, segment, t, method):
    rows = scored.select(method=method, measure="deletion", reference="truth")
    row = rows[(rows["segment"] == segment) & (rows["frame"] == t + 100 * segment)].iloc[0]
    expected = _slow_errors(steering(), shards, shard, t, method)
    np.testing.assert_allclose(row["curve"], expected, **_tolerance(method))
    fractions = np.array([round(percent / 100 * 1536) / 1536 for percent in range(26)])
    trapezoid = float(np.sum(np.diff(fractions) * (np.array(expected[1:]) + expected[:-1]) / 2))
    assert row["value"] == pytest.approx(100 * trapezoid, rel=1e-3)
    assert row["normalised"] == pytest.approx(trapezoid / fractions[-1], rel=1e-3)
    assert row["base_corrected"] == pytest.approx(100 * (trapezoid - fractions[-1] * expected[0]), abs=0.1)
    assert row["error"] == pytest.approx(expected[0], rel=1e-4)


@pytest.fixture(scope="module")
def by_patches(steering, shards, tmp_path_factory) -> Results:
    config = ScoreConfig(
        methods=("soft-attention",), measures=("pid-4", "insertion-deletion"), every=5, resamples=10
    )
    return score(steering(), shards, tmp_path_factory.mktemp("patches") / "out", config)


@pytest.mark.parametrize("method", ["soft-attention", "random"])
@pytest.mark.parametrize(("measure", "patch_px"), [("pid-4", 4), ("insertion-deletion", 1)])
def test_insertion_less_deletion_equals_its_slow_twin(
    by_patches, steering, shards, method, measure, patch_px
):
    """Degrees, with the state that the unedited frames left; a low score is a faithful map's."""
    at = _instant(steering(), shards, 1, 5, method)
    start = blank(at.frame, "blur") if measure == "insertion-deletion" else torch.zeros_like(at.frame)
    for reference, angle_deg in (("truth", at.truth_deg), ("clean", at.angle_deg(at.frame))):
        rows = by_patches.select(method=method, measure=measure, reference=reference)
        row = rows[(rows["segment"] == 1) & (rows["frame"] == 105)].iloc[0]
        expected = np.array(_slow_difference(at, patch_px, start, angle_deg))
        np.testing.assert_allclose(row["curve"], expected, **_tolerance(method))
        # All points but the last stand equally far apart, and so does that one here.
        assert row["value"] == pytest.approx(np.mean((expected[1:] + expected[:-1]) / 2), abs=0.01)
        assert abs(row["value"]) > 0.05
    said = by_patches.summary["measures"][measure]
    assert (said["unit"], said["faithful"], said["patch_px"]) == ("deg", "low", patch_px)


def test_the_held_out_frames_are_scored_but_each_runs_first(scored):
    table = scored.per_frame
    places = table[["drive", "segment", "frame"]].drop_duplicates().itertuples(index=False)
    assert [tuple(place) for place in places] == [
        *(("a", 1, 100 + t) for t in range(1, 7)),
        *(("a", 2, 200 + t) for t in range(1, 12)),
    ]
    assert scored.summary["data"]["scored"] == 17
    assert not table.duplicated(KEYS).any()


def test_every_score_stands_beside_the_controls(scored):
    found = {(each["measure"], each["reference"], each["method"]) for each in scored.summary["scores"]}
    references = {"deletion": ("truth", "clean"), "insertion": ("truth", "clean"), "auroc": ("cause",)}
    assert found == {
        (measure, reference, method)
        for measure, names in references.items()
        for reference in names
        for method in (*METHODS, "random", "centre-prior")
    }
    compared = {(each["method"], each["control"]) for each in scored.summary["differences"]}
    assert compared == {(method, control) for method in METHODS for control in ("random", "centre-prior")}
    assert all(each["value"]["low"] is not None for each in scored.summary["scores"])
    pairs = [each for each in scored.summary["comparisons"] if each["measure"] == "auroc"]
    assert len(pairs) == 4 * 3 / 2
    assert {each["measure"] for each in scored.summary["ranks"]} == {"deletion", "insertion", "auroc"}


def test_curves_share_their_ends(scored):
    for _, rows in scored.per_frame[scored.per_frame["reference"] == "truth"].groupby(KEYS[:3]):
        deleted, inserted = (
            np.stack(rows[rows["measure"] == name]["curve"]) for name in ("deletion", "insertion")
        )
        np.testing.assert_allclose(deleted[:, 0], rows["error"].iloc[0], rtol=1e-5)
        np.testing.assert_allclose(inserted[:, -1], rows["error"].iloc[0], rtol=1e-5)
        assert (inserted[:, 0] == inserted[0, 0]).all()


def test_the_error_from_the_clean_prediction_starts_at_zero(scored):
    rows = scored.select(method="grad-cam", measure="deletion", reference="clean")
    curves = np.stack(rows["curve"])
    assert (curves[:, 0] == 0).all()
    assert (curves >= 0).all()
    np.testing.assert_allclose(rows["base_corrected"], rows["value"])


def test_localisation_is_against_the_causes(scored, steering, shards):
    checkpoint, row = (
        steering(),
        scored.select(method="centre-prior", measure="auroc", reference="cause").iloc[3],
    )
    frame = torch.zeros(1, 3, 32, 48)
    saliency = fitted("centre-prior", checkpoint.model)(checkpoint.model, frame, magnitude)
    causes = torch.from_numpy(read_causes(shards / "shard-1.h5", 4, 5))
    expected = auroc(saliency, rank(saliency, torch.Generator().manual_seed(0)), causes)
    assert row["value"] == pytest.approx(expected.value.item())
    assert row["chance"] == 0.5
    assert row["curve"] is None


def _same(one: pd.DataFrame, other: pd.DataFrame, **tolerance: float) -> None:
    assert one[KEYS].equals(other[KEYS])
    for name in ("prediction", "error", "normalised"):
        np.testing.assert_allclose(one[name], other[name], **tolerance)
    np.testing.assert_allclose(np.stack(one["curve"]), np.stack(other["curve"]), **tolerance)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_batch_size_changes_nothing(scored, steering, shards, tmp_path, batch_size):
    config = ScoreConfig(
        methods=METHODS, measures=("insertion",), block_s=0.1, batch_size=batch_size, every=4
    )
    found = score(steering(), shards, tmp_path / "out", config)
    whole = scored.per_frame.merge(found.per_frame[[*KEYS[:3]]].drop_duplicates(), on=KEYS[:3])
    for method in (*METHODS, "random"):
        which = {"method": method, "measure": "insertion", "reference": "truth"}
        expected = Results(summary={}, per_frame=whole).select(**which)
        assert len(expected) == 3
        _same(found.select(**which), expected, **_tolerance(method))


def test_a_library_that_cannot_keep_several_pasts_apart_is_given_instants_one_by_one(
    steering, shards, tmp_path
):
    methods = ("grad-cam:LayerCAM", "captum:DeepLift", "grad-cam")
    found = {
        size: score(
            steering(),
            shards,
            tmp_path / str(size),
            ScoreConfig(methods=methods, block_s=0.1, batch_size=size, every=4),
        )
        for size in (1, 5)
    }
    for method in methods:
        which = {"method": method, "measure": "deletion", "reference": "truth"}
        _same(found[5].select(**which), found[1].select(**which), **_tolerance(method))


def test_a_method_scores_alike_in_any_company(scored, steering, shards, tmp_path):
    config = ScoreConfig(methods=("grad-cam",), measures=("deletion",), block_s=0.1)
    alone = score(steering(), shards, tmp_path / "out", config)
    for reference in ("truth", "clean"):
        which = {"method": "grad-cam", "measure": "deletion", "reference": reference}
        _same(alone.select(**which), scored.select(**which), rtol=0, atol=0)


class Killed(Exception):
    pass


def test_a_killed_run_resumes_to_the_same_bytes(steering, shards, tmp_path):
    config = ScoreConfig(methods=METHODS, measures=("deletion",), batch_size=4, block_s=0.1)
    whole = score(steering(), shards, tmp_path / "whole", config)

    def kill(done: int, total: int) -> None:
        if done > total / 2:
            raise Killed

    out = tmp_path / "out"
    with pytest.raises(Killed):
        score(steering(), shards, out, config, on_progress=kill)
    assert not (out / SUMMARY).exists()
    with pytest.raises(DataError, match="already holds an unfinished run; give another folder, or resume"):
        score(steering(), shards, out, config)
    with pytest.raises(DataError, match="scored with another seed; give another folder"):
        score(steering(), shards, out, ScoreConfig(**{**vars(config), "seed": 1}), resume=True)
    kept = {part.name: part.stat().st_mtime_ns for part in (out / "parts").glob("part-*")}
    seen = []
    score(
        steering(),
        shards,
        out,
        config,
        resume=True,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert len(kept) >= 2
    assert seen[-1] == (17, 17)
    for name in (SUMMARY, PER_FRAME):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(path.name for path in out.iterdir()) == [PER_FRAME, SUMMARY]
    again = score(steering(), shards, out, config, resume=True, on_progress=kill)
    assert again.summary == whole.summary
    with pytest.raises(DataError, match="already holds results"):
        score(steering(), shards, out, config)


def test_processes_that_share_a_run_end_with_the_same_bytes(steering, shards, tmp_path):
    config = ScoreConfig(methods=METHODS, measures=("deletion",), batch_size=4, block_s=0.1, save_maps=True)
    score(steering(), shards, tmp_path / "alone", config)
    together, checkpoints = threading.Barrier(3), [steering() for _ in range(3)]

    def take_part(rank: int) -> None:
        world = World(rank=rank, world_size=3, barrier=lambda: together.wait(60))
        score(checkpoints[rank], shards, tmp_path / "shared", config, world=world)

    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(take_part, rank) for rank in range(3)]:
            done.result(60)
    for name in (SUMMARY, PER_FRAME):
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "shared" / name).read_bytes()
    # Resumed when it is finished: the first process may hold the lock to clear away, and the others need none.
    (tmp_path / "shared" / "parts").mkdir()
    with locked(tmp_path / "shared"):
        other = World(rank=1, world_size=3)
        again = score(checkpoints[1], shards, tmp_path / "shared", config, resume=True, world=other)
    assert again.summary == Results.load(tmp_path / "alone").summary
    ours, theirs = (MapFile(tmp_path / folder / "maps.h5") for folder in ("alone", "shared"))
    places = Results.load(tmp_path / "alone").per_frame[FRAME_COLUMNS].drop_duplicates()
    for method in METHODS:
        np.testing.assert_array_equal(ours.read(method, places), theirs.read(method, places))


def test_shares_of_an_engine_end_with_the_same_bytes(steering, shards, tmp_path):
    config = ScoreConfig(methods=METHODS, measures=("deletion",), batch_size=4, block_s=0.1)
    alone = score(steering(), shards, tmp_path / "alone", config)
    seen = []
    shared = score_in_shares(
        steering(),
        shards,
        tmp_path / "shared",
        config,
        engine=engines.SerialEngine(workers=1),
        shares=3,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert shared.summary == alone.summary
    for name in (SUMMARY, PER_FRAME):
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "shared" / name).read_bytes()
    again = score_in_shares(
        steering(), shards, tmp_path / "shared", config, engine=None, shares=3, resume=True
    )
    assert again.summary == alone.summary


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["processes", "dask"])
def test_workers_share_a_run(steering, shards, tmp_path, engine):
    config = ScoreConfig(methods=METHODS, measures=("deletion",), batch_size=4, block_s=0.1)
    checkpoint, runner = steering(), engines.build(engine, workers=2)
    score(checkpoint, shards, tmp_path / "alone", config)
    score_in_shares(checkpoint, shards, tmp_path / "shared", config, engine=runner, shares=2)
    one, other = (pd.read_parquet(tmp_path / folder / PER_FRAME) for folder in ("alone", "shared"))
    _same(one, other, rtol=1e-5, atol=1e-6)


def test_a_shard_that_was_changed_is_not_scored(steering, write_route, tmp_path):
    changed = write_route(causes=False)
    with (changed / "shard-0.h5").open("ab") as file:
        file.write(b"0")
    config = ScoreConfig(methods=METHODS, split="all")
    with pytest.raises(DataError, match=r"shard-0.h5: is not the shard that manifest\.json lists"):
        score(steering(), changed, tmp_path / "out", config)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_torchrun_shares_a_run(steering, shards, tmp_path):
    checkpoint = steering()
    config = ScoreConfig(methods=METHODS, measures=("deletion",), batch_size=4)
    score(checkpoint, shards, tmp_path / "alone", config)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    options = ["--method", ",".join(METHODS), "--batch-size", "4", "--device", "cpu", "--json"]
    command = ["driving_xai", "score", checkpoint.path, shards, "--out", tmp_path / "shared", *options]
    environment = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    done = subprocess.run([*launch, *map(str, command)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == Results.load(tmp_path / "shared").summary
    one, other = (pd.read_parquet(tmp_path / folder / PER_FRAME) for folder in ("alone", "shared"))
    _same(one.dropna(subset=["curve"]), other.dropna(subset=["curve"]), rtol=1e-5, atol=1e-6)


def test_maps_that_were_kept_score_as_those_of_the_method(steering, shards, tmp_path):
    """A map brought along is judged by its pixels alone: random's own maps, saved, are a random order."""
    first = ScoreConfig(methods=("grad-cam",), measures=("deletion", "auroc"), block_s=0.1, save_maps=True)
    computed = score(steering(), shards, tmp_path / "first", first)
    brought = tmp_path / "maps.h5"
    with h5py.File(tmp_path / "first" / "maps.h5") as kept, h5py.File(brought, "w") as renamed:
        renamed.attrs["schema"] = kept.attrs["schema"]
        kept.copy("frames", renamed)
        kept.copy("maps/grad-cam", renamed, "maps/theirs")
    config = ScoreConfig(maps=str(brought), measures=("deletion", "auroc"), block_s=0.1, batch_size=5)
    given = score(steering(), shards, tmp_path / "given", config)
    assert given.summary["methods"] == ["theirs"]
    for measure, reference in (("deletion", "truth"), ("auroc", "cause")):
        ours = computed.select(method="grad-cam", measure=measure, reference=reference)
        theirs = given.select(method="theirs", measure=measure, reference=reference)
        np.testing.assert_allclose(ours["value"], theirs["value"], rtol=1e-5)


def test_masks_that_a_user_drew_are_the_causes(steering, shards, write_route, tmp_path):
    """The causes of the shards, drawn again for shards that know none."""
    unknowing, drawn = write_route(causes=False), {}
    for shard, (drive, segment, count) in enumerate([("a", 0, 10), ("a", 1, 7), ("a", 2, 12)]):
        for row, mask in enumerate(read_causes(shards / f"shard-{shard}.h5", 0, count)):
            drawn[f"{drive}/{row + 100 * segment}"] = mask
    np.savez(tmp_path / "masks.npz", **drawn)
    options = {
        "methods": ("grad-cam",),
        "measures": ("auroc", "pointing-game"),
        "split": "test",
        "block_s": 0.1,
    }
    checkpoint = steering(shards_sha256="0" * 64)
    known = score(checkpoint, shards, tmp_path / "known", ScoreConfig(**options))
    given = ScoreConfig(**options, masks=str(tmp_path / "masks.npz"))
    found = score(checkpoint, unknowing, tmp_path / "drawn", given)
    for measure in options["measures"]:
        which = {"method": "grad-cam", "measure": measure, "reference": "cause"}
        ours, theirs = (each.select(**which) for each in (found, known))
        assert len(ours) > 8
        np.testing.assert_array_equal(ours["value"], theirs["value"])
    assert found.summary["plan"]["config"]["masks"] == "masks.npz"
    assert len(found.summary["plan"]["masks_sha256"]) == 64
    with pytest.raises(DataError, match="no measure of localisation is asked for"):
        score(checkpoint, shards, tmp_path / "c", ScoreConfig(methods=METHODS, masks=given.masks))


def _maps(
    path: Path, *, schema: str = "driving-xai-maps/1", frames: int = 3, name: str | None = "theirs"
) -> Path:
    with h5py.File(path, "w") as file:
        file.attrs["schema"] = schema
        for column in ("drive", "camera", "target"):
            file[f"frames/{column}"] = ["a"] * 3
        file["frames/frame"] = np.arange(3)
        maps = file.create_group("maps")
        if name is not None:
            maps[name] = np.zeros((frames, 32, 48), np.float32)
    return path


def test_maps_that_do_not_fit_are_refused(steering, shards, tmp_path):
    def scoring(path: Path) -> None:
        score(steering(), shards, tmp_path / "out", ScoreConfig(maps=str(path), block_s=0.1))

    text = tmp_path / "text.h5"
    text.write_text("no HDF5")
    for path, message in (
        (tmp_path / "none.h5", "no such file"),
        (text, "no file of maps"),
        (_maps(tmp_path / "schema.h5", schema="other"), "schema 'other', expected 'driving-xai-maps/1'"),
        (_maps(tmp_path / "few.h5", frames=2), "needs one map of each method for each frame"),
        (_maps(tmp_path / "none-of.h5", name=None), "needs at least one method"),
        (_maps(tmp_path / "twice.h5", name="random"), "its method 'random' is scored already"),
        (_maps(tmp_path / "other.h5"), "has no map of {'drive': 'a', 'camera': 'front', 'frame': 201"),
    ):
        with pytest.raises(DataError, match=message):
            scoring(path)


def test_maps_that_are_not_finite_or_of_another_size_are_refused(tmp_path):
    path = _maps(tmp_path / "maps.h5")
    places = pd.DataFrame({"drive": "a", "camera": "a", "frame": [2], "target": "a"})
    with h5py.File(path, "a") as file:
        file["maps/theirs"][2, 0, 0] = np.nan
    given = MapFile(path)
    with pytest.raises(DataError, match="a map of theirs has NaN or infinity"):
        given.read("theirs", places)
    with pytest.raises(DataError, match=r"of \(32, 48\), the frames of \(32, 50\)"):
        _read_maps(given, places, (32, 50))
    given.close()


def test_maps_that_say_nothing_are_counted(steering, shards, tmp_path):
    """A readout without weights leaves Grad-CAM zero everywhere, and predictions constant."""
    mute = steering(edit=lambda model: model.readout.weigh.weight.zero_())
    results = score(mute, shards, tmp_path / "out", ScoreConfig(methods=METHODS, block_s=0.1))
    degenerate = {each["method"]: each["degenerate"] for each in results.summary["scores"]}
    assert degenerate == {"soft-attention": 0, "grad-cam": 17, "random": 0, "centre-prior": 0}
    clean = results.select(method="grad-cam", measure="deletion", reference="clean")
    assert (clean["value"] == 0).all()


def test_without_labels_the_clean_prediction_remains(steering, write_route, tmp_path):
    unlabelled = write_route(labelled=False)
    config = ScoreConfig(methods=("grad-cam",), split="all", every=2, block_s=0.1)
    results = score(steering(), unlabelled, tmp_path / "out", config)
    by_reference = {
        each["reference"]: each for each in results.summary["scores"] if each["method"] == "grad-cam"
    }
    assert by_reference["truth"]["value"]["mean"] is None
    assert by_reference["truth"]["value"]["reason"] == "no frame has this value"
    assert by_reference["clean"]["value"]["mean"] > 0
    assert results.summary["prediction"]["error"]["mean"] is None
    assert by_reference["clean"]["frames"] == 4 + 3 + 5 + 0 + 2


def test_the_raw_angle_can_be_the_truth(scored, steering, shards, tmp_path):
    config = ScoreConfig(methods=("grad-cam",), truth="raw", block_s=0.1)
    raw = score(steering(), shards, tmp_path / "out", config).per_frame["truth"].unique()
    np.testing.assert_allclose(raw - scored.per_frame["truth"].unique(), np.degrees(0.1))


def test_results_say_how_they_were_made(scored, steering, shards):
    summary = json.loads(json.dumps(scored.summary, allow_nan=False))
    assert summary["plan"]["checkpoint_sha256"] == steering().sha256
    assert summary["plan"]["config"]["fill"] == "black"
    assert summary["measures"]["deletion"]["fractions"] == [percent / 100 for percent in range(26)]
    assert summary["protocol"]["ties"].startswith("values equal in float32")
    assert summary["intervals"]["block"] == 2
    assert summary["versions"]["torch"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ()}, "got method none, expected some of: sign-attention"),
        ({"methods": ("gradcam",)}, "got method 'gradcam', expected some of"),
        ({"measures": ("deletions",)}, "got measure 'deletions', expected some of: deletion"),
        ({"fill": "white"}, "fill is 'white'; expected one of black, mean, blur"),
        ({"measures": ("deletion", "deletion")}, "got measure 'deletion' twice"),
        ({"methods": ("gradient", "gradient")}, "got method 'gradient' twice"),
        ({"seed": -1}, "seed is -1; expected 0 or more and under 4,294,967,296"),
        ({"seed": 2**32}, "seed is 4294967296; expected a whole number of less than"),
        ({"resamples": 10**7 + 1}, "resamples is 10000001; expected 1 or more and at most 10,000,000"),
        ({"batch_size": 0}, "batch_size is 0; expected 1 or more"),
        ({"every": 0}, "every is 0; expected 1 or more"),
        ({"level": 1.0}, "level is 1.0; expected over 0 and under 1"),
        ({"block_s": float("nan")}, "block_s is nan; expected a number"),
        ({"block_s": 1e30}, r"block_s is 1e\+30; expected over 0 and at most 86,400"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ScoreConfig(**{"methods": ("grad-cam",), **options})


def test_what_does_not_fit_is_refused_before_anything_is_written(steering, shards, write_route, tmp_path):
    out = tmp_path / "out"
    config = ScoreConfig(methods=("sign-attention",))
    with pytest.raises(UnsupportedModelError, match="does not write sign-attention"):
        score(steering(attention="none"), shards, out, config)
    with pytest.raises(DataError, match="the checkpoint was trained on other shards"):
        score(steering(shards_sha256="0" * 64), shards, out, config)
    with pytest.raises(DataError, match="split val has 5 frames in 1 runs and none to score"):
        score(steering(), shards, out, ScoreConfig(methods=METHODS, split="val", every=9))
    unknown = write_route(causes=False)
    with pytest.raises(DataError, match="only synthetic drives know the causes"):
        score(steering(), unknown, out, ScoreConfig(methods=METHODS, split="all", measures=("auroc",)))
    probable = ScoreConfig(methods=METHODS, measures=("average-drop",))
    with pytest.raises(
        DataError, match="average-drop needs a probability, and this is scored by its absolute"
    ):
        score(steering(), shards, out, probable)
    other = steering()
    other.config["input"]["geometry"]["crop_top"] = 0.25
    with pytest.raises(DataError, match=r"geometry .* is not the checkpoint's"):
        score(other, shards, out, config)
    mute = replace(other, model=torch.nn.Identity())
    with pytest.raises(CheckpointError, match=r"holds kind 'steering', a model without outputs to explain"):
        score(mute, shards, out, config)
    with pytest.raises(DataError, match=r"no manifest.json"):
        score(steering(), tmp_path, out, config)
    assert not out.exists()


def test_two_runs_never_write_into_one_folder(steering, shards, tmp_path):
    out, config = tmp_path / "out", ScoreConfig(methods=("centre-prior",), every=4)
    with locked(out), pytest.raises(DataError, match="another run is writing here; wait for it or stop it"):
        score(steering(), shards, out, config)
    with locked(out), pytest.raises(DataError, match="another run is writing here"):
        check(steering(), shards, out, SanityConfig(methods=("centre-prior",), every=4))
    score(steering(), shards, out, config)
    assert {path.name for path in out.iterdir()} == {SUMMARY, PER_FRAME}


def test_shares_read_the_manifest_and_build_once(steering, shards, tmp_path, monkeypatch):
    """In this process; each worker does it for itself."""
    checkpoint, loaded, built = steering(), [], []
    load, build_explainers = job.Manifest.load, job.explainers_of
    monkeypatch.setattr(job.Manifest, "load", lambda root: loaded.append(root) or load(root))
    monkeypatch.setattr(job, "explainers_of", lambda *given: built.append(given) or build_explainers(*given))
    config = ScoreConfig(methods=("centre-prior",), batch_size=4)
    score(checkpoint, shards, tmp_path / "alone", config)
    assert (len(loaded), len(built)) == (1, 1)
    score_in_shares(
        checkpoint, shards, tmp_path / "out", config, engine=engines.build("serial", workers=1), shares=2
    )
    assert (len(loaded), len(built)) == (1 + 3, 1 + 3)


class Pilot(torch.nn.Module):
    """A regressor of single frames, driven by the protocol of models with a memory; no attention, no state."""

    outputs = Outputs(kind="regression", names=("steering",), unit="1/m")

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(
            torch.nn.Conv2d(3, 2, 5, 4), torch.nn.ELU(), torch.nn.Flatten(), torch.nn.LazyLinear(1)
        )

    def forward(self, frames):
        return 0.01 * self.net(frames)

    def step(self, frames, state):
        return self(frames), None, ()

    def at(self, state):
        return self


def test_a_regressor_without_memory_that_is_not_ours_is_scored_along_drives(steering, shards, tmp_path):
    model = Pilot()
    with torch.no_grad():
        model(torch.zeros(1, 3, 32, 48))
    foreign = replace(steering(), model=model.eval(), config={"kind": "somebody:Pilot", "model": {}})
    config = ScoreConfig(methods=("gradient",), split="all", measures=("deletion",))
    found = score(foreign, shards, tmp_path / "out", config)
    rows = found.select(method="gradient", measure="deletion", reference="clean")
    assert len(rows) == found.summary["data"]["scored"] > 20
    assert np.stack(rows["curve"])[:, 0] == pytest.approx(0)
    assert found.summary["model"]["kind"] == "somebody:Pilot"


def test_the_model_is_left_as_it_was(steering, shards, tmp_path):
    checkpoint = steering()
    before = {name: tensor.clone() for name, tensor in checkpoint.model.state_dict().items()}
    score(checkpoint, shards, tmp_path / "out", ScoreConfig(methods=METHODS, every=4))
    for name, tensor in checkpoint.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not checkpoint.model.training
    assert all(parameter.grad is None for parameter in checkpoint.model.parameters())
