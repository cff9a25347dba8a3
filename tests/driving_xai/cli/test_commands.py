"""Every command on a four-second drive: what it writes, prints, and refuses, with its exit code."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import av
import cv2
import h5py
import numpy as np
import pytest

from driving_xai import checkpoint
from driving_xai.cli import tables
from driving_xai.evaluation.results import Results
from driving_xai.explain.registry import METHODS
from driving_xai.metrics.registry import METRICS


def one_line(text: str) -> str:
    """The only line of an error, without the program's name."""
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    assert lines[0].startswith("driving-xai: ")
    return lines[0].removeprefix("driving-xai: ")


def test_the_longest_names_leave_the_columns_aligned() -> None:
    about = {"reference": "target", "value": {"mean": 1.0, "low": None, "high": 2.0}, "frames": 3}
    names = [
        {"measure": max(METRICS, key=len), "method": max(METHODS, key=len)},
        {"measure": "x", "method": "y"},
    ]
    head, *lines = tables.scores([{**about, **each} for each in names])
    assert {len(line) for line in lines} == {len(head)}


def test_info_recognises_each_output(run, made) -> None:
    for path, what in ((made.shards, "shards"), (made.model, "checkpoint"), (made.scores, "results")):
        found = json.loads(run("info", path, "--json").stdout)
        assert found["what"] == what
        assert str(path) in run("info", path).stdout
    shards = json.loads(run("info", made.shards, "--json").stdout)
    assert (shards["rows"], shards["shards"]) == (40, 3)


def test_what_was_resolved_is_saved_with_each_output(made) -> None:
    manifest = json.loads((made.shards / "manifest.json").read_text())
    assert (manifest["config"]["gap_s"], manifest["config"]["blocks"]) == (0.1, 5)
    config = checkpoint.load(made.model).config
    assert (config["model"]["hidden_size"], config["training"]["window"]) == (8, 5)
    assert (
        config["data"]["shards_sha256"]
        == json.loads((made.scores / "results.json").read_text())["plan"]["shards_sha256"]
    )
    assert Results.load(made.scores).summary["plan"]["config"]["measures"] == [
        "deletion",
        "insertion",
        "pointing-game",
    ]


def test_the_video_has_each_frame_and_plays_in_a_browser(made) -> None:
    with av.open(str(made.video)) as video:
        stream = video.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 10)
        assert sum(1 for _ in video.decode(stream)) == 10
    data = made.video.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat"), "a browser starts before it has the whole file"


def test_json_is_alone_on_standard_output(run, made, tmp_path: Path) -> None:
    video = tmp_path / "v.mp4"
    commands = {
        "prep": ["prep", "synthetic", made.route, tmp_path / "s", "--split", "test"],
        "verify": ["verify", made.shards],
        "score": [
            "score",
            made.model,
            made.shards,
            "--method",
            "grad-cam",
            "--every",
            4,
            "-o",
            tmp_path / "r",
        ],
        "replay": ["replay", made.model, made.route, "--end", 0.3, "--no-score", "-o", video],
        "doctor": ["doctor"],
    }
    found = {name: json.loads(run(*command, "--json").stdout) for name, command in commands.items()}
    assert found["prep"]["rows"] == 40
    assert found["verify"] == {"root": str(made.shards), "ok": True, "shards": 3, "rows": 40, "problems": []}
    assert {each["method"] for each in found["score"]["scores"]} == {"grad-cam", "random", "centre-prior"}
    assert found["replay"] == {
        "video": str(video),
        "frames": 3,
        "dropped": {},
        "scores": None,
        "summary": None,
    }
    assert found["doctor"]["ok"]


SMALL = ["--hidden-size", 8, "--set", "window=5", "--batch-size", 2, "--device", "cpu"]


def test_a_dry_run_of_train_is_two_sentences_that_come_true(run, made, tmp_path: Path) -> None:
    line = ["train", "steering", made.shards, tmp_path / "m", "--epochs", 2, "--logger", "none", *SMALL]
    what, how_long = run(*line, "--dry-run").stdout.splitlines()
    frames, steps = re.search(
        r"an epoch is (\d+) frames in windows of 5, 2 a step.*, (\d+) steps", what
    ).groups()
    assert re.match(r"It would train [\d,]+ parameters on cpu for 2 epochs", what)
    assert re.match(
        r"A few steps here ran at [\d,.]+ frames/s, \d+% of .*data: at most about \d+ s;", how_long
    )
    assert how_long.endswith("Nothing was written.")
    assert not (tmp_path / "m").exists()
    begun = run(*line).stderr.splitlines()
    assert begun[0].startswith(what.split(" for 2")[0].replace("It would train", "training"))
    assert f"an epoch is {frames} frames" in begun[0]
    (after,) = (each for each in begun if each.startswith("epoch 2/2:"))
    assert re.search(r"data_wait_share [\d.e-]+, frames_per_s [\d.]+", after)
    assert int(steps) == -(-int(frames) // 10)


def test_a_training_that_has_not_ended_can_be_used_and_is_named(run, made, tmp_path: Path) -> None:
    model = shutil.copytree(made.model, tmp_path / "model")
    (model / "config.json").unlink()
    said = f"{model}: the training has not ended; these are the weights of epoch 2 of 2, the best so far"
    assert "unfinished training of kind steering, 2 of 2 epochs kept" in run("info", model).stdout
    scores, picture = tmp_path / "scores", tmp_path / "frame.png"
    cv2.imwrite(str(picture), np.random.default_rng(0).integers(0, 255, (80, 160, 3), dtype=np.uint8))
    for line in (
        ["score", model, made.shards, "--method", "grad-cam", "--measure", "deletion", "-o", scores],
        ["explain", model, picture, "--method", "grad-cam", "--out", tmp_path / "e"],
        ["replay", model, made.route, "--end", 1, "--no-score", "-o", tmp_path / "v.mp4", "--device", "cpu"],
    ):
        done = run(*line)
        assert done.exit_code == 0, done.output
        assert said in done.stderr, line
    progress = Results.load(scores).summary["plan"]["checkpoint_unfinished"]
    assert (progress["best_epoch"], progress["epochs"]) == (2, 2)
    explained = json.loads((tmp_path / "e" / "frame.json").read_text())["checkpoint"]
    assert explained["unfinished"] == progress


@pytest.mark.parametrize("command", ["prep", "train", "score"])
def test_a_dry_run_writes_nothing(run, made, tmp_path: Path, command: str) -> None:
    out = tmp_path / "out"
    line = {
        "prep": ["prep", "synthetic", made.route, out, "--split", "test"],
        "train": ["train", "steering", made.shards, out, "--epochs", 3, *SMALL],
        "score": ["score", made.model, made.shards, "--method", "random", "-o", out],
    }[command]
    as_json = [] if command == "score" else ["--json"]
    told = json.loads(run(*line, "--dry-run", *as_json).stdout)
    assert not out.exists()
    expected = {"prep": ("split", "test"), "train": ("epochs", 3), "score": ("methods", ["random"])}[command]
    assert told["config"][expected[0]] == expected[1]


def test_a_dry_run_of_prep_is_a_sentence_that_comes_true(run, made, tmp_path: Path) -> None:
    line = ["prep", "synthetic", made.route, tmp_path / "s", "--split", "test"]
    told, again = run(*line, "--dry-run").stdout.splitlines()
    assert re.match(
        r"40 frames read, 40 kept \(left out: none\); 1 shard of \d\.\d MB in all, about \d+ s$", told
    )
    assert again.startswith("nothing was written; to do it: driving-xai prep synthetic ")
    forecast = json.loads(run(*line, "--dry-run", "--json").stdout)["forecast"]
    assert not (tmp_path / "s").exists()
    written = json.loads(run(*line, "--json").stdout)
    assert (forecast["kept"], forecast["shards"]) == (written["rows"], written["shards"])
    assert forecast["megabytes"] == pytest.approx(written["bytes"] / 1e6, rel=0.1)


def test_prep_continues_and_refuses_to_overwrite(run, made, tmp_path: Path) -> None:
    line = ["prep", "synthetic", made.route, tmp_path / "s", "--split", "test"]
    assert run(*line).exit_code == 0
    again = run(*line)
    assert (again.exit_code, "--resume" in one_line(again.stderr)) == (3, True)
    manifest = (tmp_path / "s" / "manifest.json").read_bytes()
    assert run(*line, "--resume").exit_code == 0
    assert run(*line, "--overwrite").exit_code == 0
    assert (tmp_path / "s" / "manifest.json").read_bytes() == manifest


def test_verify_names_a_changed_shard_and_exits_3(run, made, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made.shards, copy)
    shard = sorted(copy.rglob("*.h5"))[1]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    result = run("verify", copy)
    assert (result.exit_code, result.stdout) == (3, "")
    assert shard.relative_to(copy).as_posix() in result.stderr
    told = json.loads(run("verify", copy, "--json").stdout)
    assert [problem["path"] for problem in told["problems"]] == [shard.relative_to(copy).as_posix()]


def test_a_threshold_that_is_missed_exits_4(run, made, tmp_path: Path) -> None:
    """The random order cannot be better than itself drawn with the same seed."""
    line = [
        "score",
        made.model,
        made.shards,
        "--method",
        "sign-attention",
        "--every",
        4,
        "-o",
        tmp_path / "r",
    ]
    result = run(*line, "--require", "random")
    assert result.exit_code == 4, result.output
    assert "not better than random: sign-attention by deletion" in result.stderr


def test_better_means_with_the_whole_interval() -> None:
    def difference(method: str, measure: str, low: float | None, high: float | None) -> dict:
        value = {"mean": 0.0, "low": low, "high": high}
        return {
            "method": method,
            "measure": measure,
            "reference": "truth",
            "control": "random",
            "value": value,
        }

    summary = {
        "measures": {"deletion": {"faithful": "high"}, "insertion": {"faithful": "low"}},
        "differences": [
            difference("above", "deletion", 0.1, 2.0),
            difference("touches", "deletion", 0.0, 2.0),
            difference("below", "insertion", -2.0, -0.1),
            difference("wrong-way", "insertion", 0.1, 2.0),
            difference("unknown", "deletion", None, None),
        ],
    }
    worse = tables.not_better(summary, "random")
    assert [line.split()[0] for line in worse] == ["touches", "wrong-way", "unknown"]
    assert tables.not_better(summary, "centre-prior") == []


def test_only_scores_that_are_shown_and_say_something_of_the_model_are_required() -> None:
    def difference(measure: str, reference: str) -> dict:
        return {
            "method": "lime",
            "measure": measure,
            "reference": reference,
            "control": "random",
            "value": {"mean": 0.0, "low": -1.0, "high": 1.0},
        }

    summary = {
        "measures": {
            "deletion": {"kind": "curve", "faithful": "high"},
            "sparseness": {"kind": "complexity", "faithful": "high"},
        },
        "differences": [
            difference("deletion", "truth"),
            difference("deletion", "clean"),
            difference("sparseness", "map"),
        ],
    }
    (found,) = tables.not_better(summary, "random")
    assert found.startswith("lime by deletion against unmodified")


@pytest.mark.parametrize(
    ("text", "fill", "fills"), [("mean", "mean", []), ("black,blur", "black", ["black", "blur"])]
)
def test_fills_of_the_command_line_stand_in_place_of_the_files(
    run, made, tmp_path: Path, text: str, fill: str, fills: list[str]
) -> None:
    for number, content in enumerate(('fill = "blur"', 'fills = ["mean", "blur"]')):
        config = tmp_path / f"{number}.toml"
        config.write_text(content)
        words = ["score", made.model, made.shards, "--method", "sign-attention", "-o", tmp_path / "r"]
        done = run(*words, "--config", config, "--fill", text, "--dry-run")
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout)["config"]
        assert (found["fill"], found["fills"]) == (fill, fills)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("drive", "No such command 'drive'; there are demo, prep"),
        ("scroe", "No such command 'scroe'; did you mean score? See `driving-xai --help`"),
        (
            "train steeering",
            "No such command 'steeering'; did you mean steering? See `driving-xai train --help`",
        ),
        (
            "sanity {model} {shards} -o {out} --method lime --check nois",
            "got check 'nois', expected some of: cascading, independent, noise, agreement; did you mean noise?",
        ),
        (
            "score {model} {shards} -o {out} --method grad-cma",
            "method 'grad-cma' is unknown; did you mean grad-cam?",
        ),
        (
            "score {model} {shards} -o {out} --method lime --measure deletoin",
            "measure 'deletoin' is unknown; did you mean deletion?",
        ),
        ("prep udacity-cvs {route} {out}", "reader 'udacity-cvs' is unknown; choose one of synthetic"),
        ("prep synthetic {route} {out} --set gap_s=.x", "gap_s is '.x'; expected a number"),
        ("verify", "Missing argument 'SHARDS'; see `driving-xai verify --help`"),
        ("verify {shards} --jsn", "No such option: --jsn; did you mean --json? See `driving-xai verify"),
        ("train steering {shards} {out} --epochs many", "--epochs: expected a whole number; see"),
        ("replay {model} {route} -o {out}.mp4 --colormap turbow", "did you mean turbo? See"),
        ("replay {model} {route} -o {out}.mp4 --start abc", "--start: expected a number; see"),
        ("score {model} {shards} -o {out} --every 0", "--every: expected a value greater than or equal to 1"),
        ("train steering {shards} {out} --config {wrong}", "epoch is no setting; did you mean epochs?"),
        ("train steering {shards} {out} --config {wrong}.toml", "no such configuration file"),
        ("score {model} {shards} -o {out} --set fil=mean", "fil is no setting; did you mean fill?"),
        ("score {model} {shards} -o {out} --method cam", "got method 'cam', expected some of"),
        ("explain {model} {wrong} -o {out} --method cam", "got method 'cam', expected some of"),
        ("score {model} {shards} -o {out}", "got method none, expected some of"),
        ("score {model} {shards} -o {out} --method random --device cuda", "no CUDA device"),
        ("replay {model} {route} -o {out}", "expected a name that ends in .mp4"),
        ("replay {model} {route} -o {out}.mp4 --seed -1", "seed is -1; expected 0 or more"),
        (
            "replay {model} {route} -o {out}.mp4 --size 640",
            "--size is '640'; expected WIDTHxHEIGHT in pixels",
        ),
        (
            "replay {model} {route} -o {out}.mp4 --size 9x9",
            "got size 9x9, expected 120 to 8192 pixels each way",
        ),
        ("replay {model} {route} -o {out}.mp4 --layout grid", "layout grid is not for models of steering"),
        ("replay {model} {route} -o {out}.mp4 --label a --label b", "got 2 labels for 1 methods"),
        ("replay {model} {route} -o {out}.mp4 --method rise,rise", "got method 'rise' twice"),
        ("replay {model} {route} --serve 0 --method rise,lime", "several methods or models are for a film"),
        ("replay {model} {route} -o {out}.mp4 --gif {out}.avi", "ends in .gif or .webp"),
        ("replay {model} {route} -o {out}.mp4 --gif {out}.gif --gif-mb nan", "expected a number over 0"),
        ("replay {model} {route} --serve 0 --gif {out}.gif", "--gif can do nothing without a film"),
        ("replay {model} {route} --serve 0 --label a --json", "--label and --json can do nothing without"),
        ("replay {model} {route} --serve 0 --title a", "--title can do nothing without a film"),
        ("replay {model} {route} --serve 0 --cards", "leave it out"),
        ("replay {model} {route} --serve 0 --mb 3", "--mb can do nothing without a film"),
        ("replay {model} {route} -o {out}.mp4 --gif-mb 3", "give --gif FILE.gif too"),
        ("replay {model} {route} -o {out}.mp4 --host ::1", "give --serve PORT too"),
        ("replay {model} {route} -o {out}.mp4 --cases {out}", "give --serve PORT too"),
        ("replay {model} {route} -o {out}.mp4 --mb 0", "mb is 0.0; expected a number of over 0"),
        ("replay {model} {route} -o {out}.mp4 --mb nan", "mb is nan"),
        (
            "replay {model} {route} -o {out}.mp4 --compare {model} --weights {wrong}",
            "got --weights 1 times for 0 models that are no checkpoints",
        ),
        ("replay {model} {route} -o {out}.mp4 --method cam", "got method 'cam', expected some of"),
        ("score {model} {shards} -o {out} --method rise --set options.rise.mask=9", "rise has samples, grid"),
        (
            "sanity {model} {shards} -o {out} --method rise --set options.rise.grid=x",
            "expected a whole number",
        ),
        (
            "explain {model} {wrong} -o {out} --method rise --set options.rise=9",
            "rise is 9; expected a table",
        ),
        ("score {model} {shards} -o {out} --method rise --set options.rise.masks=0", "'rise': got samples 0"),
        ("replay {model} {route} -o {out}.mp4 --set options.rise.masks=9", "of no method of this run (none"),
        (
            "score {model} {shards} -o {out} --method rise --fill black,blur --set fill=mean",
            "--fill black,blur and --set fill=mean both say what takes a removed pixel's place",
        ),
        (
            "score {model} {shards} -o {out} --method rise --fill ,",
            "--fill is ','; expected black, mean or blur",
        ),
        (
            "score {model} {shards} -o {out} --method rise --measure sparseness --require random",
            "--require, but no measure of this run says anything of the model (sparseness); add one",
        ),
        ("replay {model} {route} -o {out}.mp4 --seed -1", "seed is -1; expected 0 or more and under"),
        ("score {model} {shards} -o {out} --method rise --seed -1", "seed is -1; expected 0 or more"),
        (
            "score {model} {shards} -o {out} --method rise --set resamples=20000000",
            "resamples is 20000000; expected 1 or more and at most 10,000,000",
        ),
        ("replay {model} {route} -o {out}.mp4 --set block_s=1e300", "expected over 0 and at most 86,400"),
        ("prep udacity {route} {out}", "reader 'udacity' is unknown; choose one of synthetic"),
        ("prep synthetic {route} {out} --smoothing 2", "smoothing is 2.0; expected over 0 and at most 1"),
        (
            "experiment zhu-table1 {shards} --checkpoint {model} -o {out} --set rule=argmax",
            "rule is 'argmax'; expected one of sigmoid, logit, softmax",
        ),
        (
            "experiment zhu-table1 {shards} --checkpoint {model} -o {out} --set masks=['token'] --set fill=black",
            "got fill 'black' for masks, which no measure of this run follows; leave it out, or add any of: aupc, ",
        ),
        (
            "score {model} {shards} --method snna -o {out} --set masking.order=random",
            "masking.order is 'random'; expected one of most-first, least-first",
        ),
    ],
)
def test_wrong_usage_is_one_line_and_exits_2(run, made, tmp_path: Path, line: str, said: str) -> None:
    wrong, out = tmp_path / "wrong", tmp_path / "out"
    wrong.write_text("epoch = 3\n")
    paths = {**vars(made), "wrong": wrong, "out": out}
    result = run(*(word.format(**paths) for word in line.split()))
    assert result.exit_code == 2, result.output
    assert said in one_line(result.stderr)
    assert not out.exists()


def test_a_slip_in_a_target_is_told_the_near_one(run, made, tmp_path: Path) -> None:
    done = run(*f"score {made.model} {made.shards} -o {tmp_path}/r --method lime --target lef".split())
    assert done.exit_code == 3
    assert one_line(done.stderr).endswith("this model has left, right, magnitude; did you mean left?")


def udacity_drive(folder: Path) -> Path:
    """Six frames in the layout of challenge 2."""
    (folder / "center").mkdir(parents=True)
    stamps = [1_479_424_215_877_054_000 + i * 50_000_000 for i in range(6)]
    for i, stamp in enumerate(stamps):
        cv2.imwrite(str(folder / "center" / f"{stamp}.jpg"), np.full((48, 64, 3), 40 * i, np.uint8))
    rows = "".join(f"{stamp},0.1,1\n" for stamp in stamps)
    (folder / "CH2_final_evaluation.csv").write_text("frame_id,steering_angle,public\n" + rows)
    return folder


def empty_csv(drive: Path) -> None:
    (drive / "CH2_final_evaluation.csv").write_text("")


def no_rows(drive: Path) -> None:
    (drive / "CH2_final_evaluation.csv").write_text("frame_id,steering_angle,public\n")


def row_without_image(drive: Path) -> None:
    sorted((drive / "center").iterdir())[2].unlink()


def cut_jpeg(drive: Path) -> None:
    image = sorted((drive / "center").iterdir())[2]
    image.write_bytes(image.read_bytes()[:300])


def times_through_float64(drive: Path) -> None:
    csv = drive / "CH2_final_evaluation.csv"
    header, *rows = csv.read_text().splitlines()
    rows = [f"{float(row.split(',')[0]):.17e},0.1,1" for row in rows]
    csv.write_text("\n".join([header, *rows]) + "\n")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (empty_csv, "with a CSV of frame_id, steering_angle"),
        (no_rows, "CH2_final_evaluation.csv"),
        (row_without_image, "missing_image"),
        (cut_jpeg, "cut short"),
        (times_through_float64, "frame_id"),
    ],
)
def test_a_damaged_recording_is_one_line_and_exits_3(run, tmp_path: Path, damage, said: str) -> None:
    drive, out = udacity_drive(tmp_path / "drive"), tmp_path / "out"
    damage(drive)
    line = ["prep", "udacity-csv", drive, out, "--split", "test", "--on-bad", "refuse", "--workers", 1]
    result = run(*line)
    assert result.exit_code == 3, result.output
    assert said in one_line(result.stderr.splitlines()[-1])
    assert not (out / "manifest.json").exists()


def test_the_same_recording_undamaged_is_prepared(run, tmp_path: Path) -> None:
    line = ["prep", "udacity-csv", udacity_drive(tmp_path / "drive"), tmp_path / "out", "--split", "test"]
    assert run(*line, "--on-bad", "refuse", "--workers", 1).exit_code == 0


def test_frames_left_out_are_counted_on_standard_output(run, tmp_path: Path) -> None:
    drive = udacity_drive(tmp_path / "drive")
    cut_jpeg(drive)
    result = run("prep", "udacity-csv", drive, tmp_path / "out", "--split", "test", "--workers", 1)
    assert result.exit_code == 0
    assert "5 rows" in result.stdout
    assert "1 undecodable_image" in result.stdout
    shown = run("info", tmp_path / "out", "--figure", tmp_path / "figures" / "quality.png")
    assert "1 undecodable_image" in shown.stdout
    assert (tmp_path / "figures" / "quality.png").read_bytes().startswith(b"\x89PNG")
    assert run("verify", tmp_path / "out").exit_code == 0
    refused = run("info", tmp_path / "out", "--figure", tmp_path / "quality.jpg")
    assert refused.exit_code == 2
    assert "is no .png file" in one_line(refused.stderr)
    jumps = run(
        "prep", "udacity-csv", drive, tmp_path / "new", "--refuse", "undecodable_image", "--split", "test"
    )
    assert jumps.exit_code == 3
    unknown = run("prep", "udacity-csv", drive, tmp_path / "new", "--refuse", "noise")
    assert unknown.exit_code == 2
    assert "expected one of duplicate" in one_line(unknown.stderr)


def of_another_kind(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "kind": "aeroplane"}))


def cut_weights(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def unfinished(model: Path) -> None:
    (model / "config.json").unlink()


@pytest.mark.parametrize("damage", [of_another_kind, cut_weights, unfinished])
@pytest.mark.parametrize(
    "line",
    [
        "info {model}",
        "score {model} {shards} --method random -o {out}",
        "replay {model} {route} -o {out}.mp4",
    ],
)
def test_a_damaged_checkpoint_is_one_line_and_exits_3(run, made, tmp_path: Path, damage, line: str) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(made.model, model, ignore=shutil.ignore_patterns("resume", "logs"))
    damage(model)
    result = run(*(word.format(**{**vars(made), "model": model, "out": out}) for word in line.split()))
    assert result.exit_code == 3, result.output
    assert str(model) in one_line(result.stderr)
    assert list(tmp_path.iterdir()) == [model]


def video_without_frames(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"


def no_video(path: Path) -> None:
    path.write_text("frames")


@pytest.mark.parametrize("make", [video_without_frames, no_video])
def test_a_video_without_frames_is_one_line_and_exits_3(run, made, tmp_path: Path, make) -> None:
    source, out = tmp_path / "source.mp4", tmp_path / "out.mp4"
    make(source)
    result = run("replay", made.model, source, "-o", out)
    assert result.exit_code == 3, result.output
    assert "source.mp4" in one_line(result.stderr)
    assert not out.exists()


@pytest.mark.parametrize(
    "line",
    [
        "prep synthetic {missing} {out}",
        "verify {missing}",
        "info {missing}",
        "train steering {missing} {out}",
        "score {model} {missing} --method random -o {out}",
        "replay {model} {missing} -o {out}.mp4",
        "train steering {scores} {out}",
        "verify {model}",
    ],
)
def test_a_missing_or_wrong_folder_is_one_line_and_exits_3(run, made, tmp_path: Path, line: str) -> None:
    paths = {**vars(made), "missing": tmp_path / "missing", "out": tmp_path / "out"}
    result = run(*(word.format(**paths) for word in line.split()))
    assert result.exit_code == 3, result.output
    assert one_line(result.stderr)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "line",
    [
        "train steering {shards} {out}/model --config {recipe} --device cpu",
        "score {model} {shards} --method random -o {out}/scores",
        "replay {model} {route} --end 0.3 -o {out}/drive.mp4",
        "demo --out {out}/demo",
    ],
)
def test_an_output_that_cannot_be_written_is_one_line_and_exits_1(
    run, made, tmp_path: Path, line: str
) -> None:
    """The folder's place is taken by a file: a refusal that root's rights do not lift."""
    (tmp_path / "out").write_text("taken")
    paths = {**vars(made), "out": tmp_path / "out", "recipe": made.route.with_name("recipe.toml")}
    result = run(*(word.format(**paths) for word in line.split()))
    assert result.exit_code == 1, result.output
    assert str(tmp_path / "out") in one_line(result.stderr.splitlines()[-1]), "what runs is said before"
    assert (tmp_path / "out").read_text() == "taken"


def test_a_bug_keeps_its_traceback(run, made, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("data_prep.shards.verify.verify", broken)
    result = run("verify", made.shards)
    assert isinstance(result.exception, ZeroDivisionError)


def test_root_usage_errors_are_one_line_and_exit_2(run) -> None:
    result = run("--nope")
    assert (result.exit_code, one_line(result.stderr)) == (
        2,
        "No such option: --nope; see `driving-xai --help`",
    )
    assert "did you mean --version?" in one_line(run("--versoin").stderr)


@pytest.mark.parametrize("words", [[], ["train"]])
def test_a_group_alone_shows_its_help_and_exits_2(run, words: list[str]) -> None:
    result = run(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == run(*words, "--help").stdout


def test_version(run) -> None:
    assert run("--version").stdout.startswith("driving-xai 0.")


def test_explain_writes_a_picture_and_the_numbers(run, made, tmp_path: Path) -> None:
    image, out = tmp_path / "frame.png", tmp_path / "out"
    cv2.imwrite(str(image), np.full((96, 160, 3), 90, np.uint8))
    result = run("explain", made.model, image, "--method", "sign-attention,random", "-o", out, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"written": [str(out / "frame.json")]}
    pictures = [each["files"]["picture"] for each in json.loads((out / "frame.json").read_text())["maps"]]
    assert pictures == ["frame.sign-attention.magnitude.png", "frame.random.magnitude.png"]
    assert all((out / name).is_file() for name in pictures)
    assert result.stderr == ""
    missing = run("explain", made.model, tmp_path / "none.jpg", "--method", "random", "-o", out)
    assert missing.exit_code == 3
    assert "no such image" in one_line(missing.stderr)


def test_options_of_a_method_come_from_the_shell_and_from_a_file(run, made, tmp_path: Path) -> None:
    recipe, rise = tmp_path / "recipe.toml", {"masks": 9, "grid": 3}
    recipe.write_text("[options.rise]\nmasks = 50\ngrid = 3\n[options.centre-prior]\nrow = 0.7\n")
    chosen = ("--config", recipe, "--set", "options.rise.masks=9", "--device", "cpu")
    done = run("score", made.model, made.shards, "-o", tmp_path / "scores", "--method", "rise", *chosen)
    assert done.exit_code == 0, done.output
    saved = Results.load(tmp_path / "scores").summary["plan"]["config"]
    assert saved["options"] == {"rise": rise, "centre-prior": {"row": 0.7}}
    done = run("sanity", made.model, made.shards, "-o", tmp_path / "sanity", "--method", "rise", "--check", "noise",
               "--every", 2, "--set", "options.rise.masks=9", "--device", "cpu")  # fmt: skip
    assert done.exit_code == 0, done.output
    checked = json.loads((tmp_path / "sanity" / "sanity.json").read_text())
    assert checked["plan"]["config"]["options"] == {"rise": {"masks": 9}}


def test_a_replay_says_with_what_options_its_method_ran(run, made, tmp_path: Path) -> None:
    out = tmp_path / "drive.mp4"
    done = run("replay", made.model, made.route, "-o", out, "--method", "rise", "--end", 1, "--no-score",
               "--set", "options.rise.masks=9", "--device", "cpu")  # fmt: skip
    assert done.exit_code == 0, done.output
    with av.open(out) as video:
        told = json.loads(video.metadata["comment"])
    assert told["config"]["options"] == {"rise": {"masks": 9}}
    with av.open(made.video) as video:
        assert "options" not in json.loads(video.metadata["comment"])["config"]


def test_a_clip_that_does_not_fit_takes_nothing_from_what_was_found(run, made, tmp_path: Path) -> None:
    out, gif = tmp_path / "drive.mp4", tmp_path / "drive.gif"
    line = ("replay", made.model, made.route, "-o", out, "--end", 0.5, "--gif", gif, "--device", "cpu")
    done = run(*line, "--gif-mb", 0.001)
    assert done.exit_code == 1
    assert "deletion" in done.output, "the table of scores"
    assert f"{out}: 5 frames" in done.output
    assert done.output.splitlines()[-1].startswith(f"driving-xai: {gif}: even at 240 pixels the clip has")
    assert out.exists()
    assert not gif.exists()
    done = run(*line)
    assert done.exit_code == 0, done.output
    assert "clip: 5 of 5 pictures" in done.output


def test_explain_says_that_it_enlarged_an_image(run, made, tmp_path: Path) -> None:
    images = [tmp_path / name for name in ("tiny.png", "small.png", "large.png")]
    for image, side in zip(images, (6, 100, 400), strict=True):
        cv2.imwrite(str(image), np.full((side, side, 3), 90, np.uint8))
    result = run("explain", made.model, *images, "--method", "random", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    (said,) = result.stderr.strip().splitlines()
    assert said.startswith("enlarged for the model")
    assert said.endswith("tiny.png (6 x 6 px to 80 x 160) and 1 more")


def test_the_model_that_only_an_experiment_trains_is_pointed_to(run, made, tmp_path: Path) -> None:
    result = run("train", "classifier", made.shards, tmp_path / "out", "--model", "l2x")
    assert result.exit_code == 2
    assert "give l2x-f" in one_line(result.stderr)
    assert "baumhauer-mnist" in result.stderr


def test_a_rank_correlation_is_scored_and_held_to_a_threshold(run, made, tmp_path: Path) -> None:
    asked = ["--method", "sign-attention", "--measure", "lime-rank-correlation", "--split", "all"]
    rest = ["--every", "16", "--fail-below", "lime-rank-correlation=0.99", "-o", tmp_path]
    result = run("score", made.model, made.shards, *asked, *rest)
    assert result.exit_code == 4, result.output
    found = Results.load(tmp_path)
    values = found.per_frame["value"]
    assert len(values) == 3 * found.summary["data"]["scored"]
    assert values.between(-1, 1).all()
    assert found.summary["measures"]["lime-rank-correlation"]["patterns"] == 1000
    assert "lime-rank-correlation" in result.stdout


def test_a_method_of_another_model_is_one_line_and_exits_3(run, made, tmp_path: Path) -> None:
    result = run("score", made.model, made.shards, "--method", "bla-hard", "-o", tmp_path / "out")
    assert result.exit_code == 3
    said = one_line(result.stderr)
    assert "SteeringModel does not write bla-hard (it writes sign-attention)" in said


def test_a_value_below_the_one_asked_for_exits_4(run, made, tmp_path: Path) -> None:
    options = ["--method", "gradient", "--split", "all", "--every", 4, "--set", "block_s=0.1", "-o"]
    for text, code in (("deletion/clean=-1", 0), ("random:deletion=1e9", 4)):
        result = run("score", made.model, made.shards, *options, tmp_path / text[:3], "--fail-below", text)
        assert result.exit_code == code, result.output
    assert "below the threshold: random by deletion against truth, mean" in result.stderr.splitlines()[-1]
    for text, said in (
        ("deletion", "expected [METHOD:]MEASURE"),
        ("insertion=1", "names insertion, which is not scored; add it to --measure"),
        ("lime:deletion=1", "names lime, which is not scored; add it to --method"),
    ):
        result = run("score", made.model, made.shards, *options, tmp_path / "x", "--fail-below", text)
        assert result.exit_code == 2
        assert said in one_line(result.stderr)
    assert not (tmp_path / "x").exists()


def test_models_of_a_panel_have_names_of_their_own(run, made, tmp_path: Path) -> None:
    image = tmp_path / "frame.png"
    cv2.imwrite(str(image), np.random.default_rng(0).integers(0, 255, (80, 160, 3), dtype=np.uint8))
    line = ["explain", made.model, image, "--method", "random", "-o", tmp_path / "out"]
    names = ["--label", "before", "--label", "after"]
    result = run(*line, "--panel", "--compare", made.model, *names, "--json")
    assert result.exit_code == 0, result.output
    panel = json.loads((tmp_path / "out" / "frame.json").read_text())["panel"]
    assert [each["label"] for each in panel["others"]] == ["after"]
    assert cv2.imread(str(tmp_path / "out" / panel["file"])).shape[1] > 900
    for options, said in (
        (["--panel", "--compare", made.model], "give each a name of its own"),
        (["--panel", "--compare", made.model, "--label", "one"], "got 1 names for 2 models"),
        (["--compare", made.model, *names], "no panel"),
        (["--panel", "--compare", tmp_path / "nothing", *names], "nothing"),
    ):
        refused = run(*line, *options)
        assert refused.exit_code in (2, 3)
        assert said in one_line(refused.stderr)


def test_maps_that_were_brought_along_have_thresholds_too(run, made, tmp_path: Path) -> None:
    options = ["--split", "all", "--set", "block_s=0.1", "--every", 3]
    kept = run(
        "score", made.model, made.shards, "--method", "gradient", "--save-maps", *options, "-o", tmp_path
    )
    assert kept.exit_code == 0, kept.output
    maps = tmp_path / "maps.h5"
    with h5py.File(maps, "r+") as file:
        file.move("maps/gradient", "maps/theirs")
    for text, code in (
        ("theirs:deletion/clean=-1", 0),
        ("theirs:deletion/clean=1e9", 4),
        ("gradient:deletion=1", 2),
        ("ours:deletion=1", 2),
    ):
        out = tmp_path / text.replace("/", "-")
        found = run(
            "score", made.model, made.shards, "--maps", maps, *options, "-o", out, "--fail-below", text
        )
        assert found.exit_code == code, found.output
        assert out.exists() == (code != 2)
    assert "names ours, which is not scored; add it to --method, or bring its --maps" in one_line(
        found.stderr
    )
