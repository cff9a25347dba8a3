"""A replay of actions: the numbers are those of score, the picture shows what was predicted."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch

from data_prep.geometry import Geometry
from data_prep.prepare import PrepConfig, prepare
from data_prep.shards.manifest import Manifest
from driving_xai import checkpoint
from driving_xai.checkpoint import Checkpoint
from driving_xai.data.input_rule import Region
from driving_xai.errors import CheckpointError, DataError, OptionError
from driving_xai.evaluation.config import ScoreConfig
from driving_xai.evaluation.results import Results
from driving_xai.evaluation.run import score
from driving_xai.models.actions import ActionConfig, ActionModel
from driving_xai.replay.config import ReplayConfig
from driving_xai.replay.player import replay
from driving_xai.replay.predict import FRACTIONS
from driving_xai.replay.tasks.action_view import ActionInstant, ActionView, ActionViewConfig, Shown
from driving_xai.report.sources import load_sources
from driving_xai.report.timeline import videos
from driving_xai.viz.heat import HeatScale

NAMES = ("forward", "stop", "left", "right")
HEIGHT, WIDTH, IMAGES = 48, 80, 12


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("actions") / "shards"
    options = {"images": IMAGES, "height": HEIGHT, "width": WIDTH}
    prepare(PrepConfig(reader="synthetic-actions", source=Path("-"), reader_options=options), out)
    return out


@pytest.fixture(scope="module")
def model(tmp_path_factory, shards) -> Checkpoint:
    torch.manual_seed(0)
    tiny = {"backbone": "vit_tiny_patch16_224", "embed_dim": 24, "depth": 2, "blocks": 2, "heads": 2}
    net = ActionModel(ActionConfig(**tiny, patch_px=8, image_size=(HEIGHT, WIDTH)))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    config = {
        "kind": "actions",
        "model": asdict(net.config),
        "input": {"geometry": None, "short_side_px": None},
        "data": {"shards_sha256": Manifest.load(shards).sha256, "held_out": {}},
    }
    path = tmp_path_factory.mktemp("checkpoint")
    thresholds = {"forward": 0.4, "stop": 0.5, "left": 0.6, "right": 0.5}
    checkpoint.save(path, net, config, {"thresholds": thresholds})
    return checkpoint.load(path)


def test_the_numbers_are_those_of_score(model, shards, tmp_path):
    config = ReplayConfig(method="generic-attention", control_every=1, fill="mean")
    made = replay(model, shards, tmp_path / "a.mp4", config)
    assert made.frames == IMAGES
    how = ScoreConfig(methods=("generic-attention",), split="all", target="every-predicted", fill="mean")
    scored = score(model, shards, tmp_path / "scores", how)
    ours = Results.load(tmp_path / "a.scores")
    for method in ("generic-attention", "random"):
        which = {"method": method, "measure": "deletion", "reference": "target"}
        place = ["key", "target"]
        mine, theirs = (found.select(**which).sort_values(place) for found in (ours, scored))
        assert mine[place].to_numpy().tolist() == theirs[place].to_numpy().tolist()
        assert len(mine) > IMAGES / 2
        np.testing.assert_allclose(mine["value"], theirs["value"], rtol=2e-3)
        np.testing.assert_allclose(np.stack(mine["curve"]), np.stack(theirs["curve"]), rtol=1e-4)
        np.testing.assert_allclose(mine[["prediction", "truth"]], theirs[["prediction", "truth"]], rtol=1e-5)
    assert {each["measure"] for each in ours.summary["scores"]} == {"deletion"}
    assert ours.summary["measures"] == scored.summary["measures"]
    assert ours.summary["measures"]["deletion"]["fill"] == "mean"
    assert ours.summary["video"]["frame_rate"] == "2"
    # Images are played in the order of their rows, so that a frame's number is its picture's.
    frames = ours.per_frame.drop_duplicates(["drive", "frame"])[["drive", "frame"]]
    assert ours.summary["video"]["pictures"] == [
        [drive, at, at] for drive, at in frames.itertuples(index=False)
    ]
    (video,) = videos(load_sources([tmp_path / "a.scores"]))
    assert len(video.pictures) == len(frames) < len(ours.per_frame) / 2


@pytest.mark.parametrize("layout", ["grid", "cycle"])
def test_a_video_has_a_picture_for_each_image(model, shards, tmp_path, layout):
    out = tmp_path / "b.mp4"
    config = ReplayConfig(method="gradient", layout=layout, score=False, start_s=1.0, end_s=3.5)
    made = replay(model, shards, out, config)
    assert (made.frames, made.scores) == (5, None)
    with av.open(str(out)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(pictures) == 5
    assert pictures[0].shape[1] == 1280
    assert [path.name for path in tmp_path.iterdir()] == ["b.mp4"]


def test_a_folder_of_images_is_a_drive_without_labels(model, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(3):
        pixels = generator.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{number}.png"), pixels)
    made = replay(model, folder, tmp_path / "c.mp4", ReplayConfig(method="gradient"))
    rows = Results.load(made.scores).per_frame
    assert rows["truth"].isna().all()
    assert set(rows["drive"]) == {"images"}
    cv2.imwrite(str(folder / "3.png"), np.zeros((HEIGHT, WIDTH + 16, 3), np.uint8))
    with pytest.raises(DataError, match="a replay needs one size"):
        replay(model, folder, tmp_path / "d.mp4", ReplayConfig(method="gradient"))
    assert not (tmp_path / "d.mp4").exists()


def test_what_cannot_be_played_is_refused(model, shards, tmp_path):
    out = tmp_path / "e.mp4"
    with pytest.raises(DataError, match="no image of split all in that time"):
        replay(model, shards, out, ReplayConfig(start_s=100.0))
    with pytest.raises(ValueError, match="got method 'cam', expected some of"):
        ReplayConfig(method="cam")
    with pytest.raises(ValueError, match="control_every is 0; expected 1 or more"):
        ReplayConfig(control_every=0)
    for wrong in ({"end_s": 0.0}, {"start_s": -1.0}, {"start_s": 2.0, "end_s": 2.0}):
        with pytest.raises(DataError, match="expected 0 <= start < end"):
            ReplayConfig(**wrong)
    other = {**model.config, "input": {**model.config["input"], "geometry": asdict(Geometry(width=40))}}
    with pytest.raises(DataError, match="is not the checkpoint's"):
        replay(replace(model, config=other), shards, out, ReplayConfig())
    backbone = Checkpoint(path=Path("x"), model=None, config={"kind": "dino"}, metrics={}, sha256="")
    with pytest.raises(CheckpointError, match="holds kind 'dino', whose model does not say what its outputs"):
        replay(backbone, shards, out)
    with pytest.raises(OptionError, match=r"^target is for models of steering; leave it out$"):
        replay(model, shards, out, ReplayConfig(target="left"))
    assert not list(tmp_path.iterdir())


def view(layout: str = "grid") -> ActionView:
    config = ActionViewConfig(
        names=NAMES,
        thresholds=np.full(4, 0.5),
        layout=layout,  # type: ignore[arg-type]
        region=Region(24, 48, 0, 80),
        provenance="p",
        last_fraction=FRACTIONS[-1],
    )
    return ActionView(height=HEIGHT, width=WIDTH, config=config)


def instant(columns: tuple[int, ...], labels: tuple[float, ...] = (np.nan,) * 4) -> ActionInstant:
    saliency = np.zeros((24, 80), np.float32)
    saliency[6:18, 20:60] = np.linspace(1, 2, 40)
    shown = Shown(saliency, HeatScale.first(saliency), None)
    return ActionInstant(
        image=np.full((HEIGHT, WIDTH, 3), 160, np.uint8),
        probability=np.array([0.9, 0.2, 0.7, 0.1]),
        labels=np.array(labels),
        shown=dict.fromkeys(columns, shown),
        columns=range(4),
        selected=columns[0] if columns else None,
        caption="c",
    )


def test_evidence_is_on_the_tile_of_its_action_and_where_the_model_looks():
    bar, width = 30, WIDTH * 8
    drawn, height = view().draw(instant((0, 2))), bar + HEIGHT * 8
    tiles = [
        drawn[row * height : (row + 1) * height, at * width : (at + 1) * width]
        for row in (0, 1)
        for at in (0, 1)
    ]
    plain = [
        view().draw(instant(()))[row * height :, at * width :][:height, :width]
        for row in (0, 1)
        for at in (0, 1)
    ]
    for column, (tile, without) in enumerate(zip(tiles, plain, strict=True)):
        middle = bar + HEIGHT * 4
        seen, unseen = tile[middle:], tile[bar:middle]
        coloured = np.ptp(seen.astype(int), axis=2).max() > 60
        assert coloured == (column in (0, 2))
        assert np.ptp(unseen.astype(int), axis=2).max() < 20, "nothing above what the model sees"
        assert (tile.mean() > without.mean()) == (column in (0, 2)), "the others are dark"


def test_a_bar_is_as_long_as_the_probability():
    drawn = view("cycle").draw(instant((0, 2)))
    unit = WIDTH * 16 / 640
    for column, chance in enumerate((0.9, 0.2, 0.7, 0.1)):
        row = drawn[round((column * 30 + 15) * unit), round(170 * unit) : round(400 * unit)].astype(int)
        filled = (row.sum(1) > 350).mean()
        assert filled == pytest.approx(chance, abs=0.02)


def test_labels_are_drawn_where_they_are_known():
    unlabelled, labelled = view().draw(instant((0,))), view().draw(instant((0,), (1, 0, 1, 0)))
    differs = np.argwhere((unlabelled != labelled).any(2))
    assert len(differs) > 100
    tile = 30 + HEIGHT * 8
    assert set(differs[:, 0] // tile) == {0, 1}
    assert (differs[:, 0] % tile).max() < 30, "above the frames, which stay whole"
