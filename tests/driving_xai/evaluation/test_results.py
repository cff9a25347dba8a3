"""Saved results: what is written comes back, and what was changed or broken is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from driving_xai.errors import DataError
from driving_xai.evaluation.config import ScoreConfig
from driving_xai.evaluation.results import (
    FRAME_COLUMNS,
    MAPS,
    PER_FRAME,
    PER_FRAME_SCHEMA,
    SUMMARY,
    Results,
    arrow_table,
    frame_rows,
    read_table,
    write_table,
)
from driving_xai.evaluation.summary import interval, summarise, summarise_differences, summarise_scores
from driving_xai.metrics.quantities import STEERING_ERROR
from driving_xai.metrics.statistics import BlockBootstrap
from tests.driving_xai.report.made import make_summary


def _rows(
    values: dict[str, list[float]], measure: str = "deletion", reference: str = "truth"
) -> pd.DataFrame:
    """Rows of methods; a curve of two points around each value."""
    count = len(next(iter(values.values())))
    tables = []
    for t in range(count):
        for method, given in values.items():
            curve = np.array([given[t] - 1, given[t] + 1], dtype=np.float32)
            row = {"drive": "a", "camera": "front", "segment": 0, "frame": t, "time_ns": t * 10**9}
            row |= {"key": "", "target": "magnitude"}
            row |= {"method": method, "measure": measure, "reference": reference, "prediction": 1.0}
            row |= {"truth": np.nan, "error": np.nan, "value": given[t], "normalised": given[t] / 2}
            row |= {"base_corrected": given[t] - 1, "chance": np.nan, "degenerate": t == 0}
            tables.append({**row, "curve": curve if measure == "deletion" else None})
    return pd.DataFrame(tables)


@pytest.fixture
def results() -> Results:
    rows = _rows({"grad-cam": [1.0, 2.0], "random": [0.5, np.nan]})
    return Results(summary=make_summary(rows), per_frame=rows)


def test_a_round_trip_keeps_everything(results, tmp_path):
    saved = results.save(tmp_path)
    loaded = Results.load(tmp_path)
    assert loaded.summary == saved.summary
    assert loaded.summary["schema"] == "driving-xai-results/2"
    chosen = loaded.select(method="grad-cam", measure="deletion", reference="truth")
    assert chosen["value"].tolist() == [1.0, 2.0]
    assert chosen["curve"][1].tolist() == [1.0, 3.0]
    assert chosen["degenerate"].tolist() == [True, False]
    assert loaded.per_frame["value"].isna().tolist() == [False, False, False, True]
    assert loaded.per_frame["truth"].isna().all()


@pytest.mark.parametrize("settings", [{"seed": 2**32 - 1}, {"resamples": 10**7}, {"level": 1e-300}])
def test_whatever_settings_accept_can_be_read_again(results, tmp_path, settings):
    accepted = ScoreConfig(methods=("grad-cam",), **settings)
    known = {name: getattr(accepted, name) for name in settings}
    summary = {**results.summary, "intervals": {**results.summary["intervals"], **known}}
    Results(summary=summary, per_frame=results.per_frame).save(tmp_path)
    assert Results.load(tmp_path).summary["intervals"] == summary["intervals"]


def test_the_same_results_are_the_same_bytes(results, tmp_path):
    for folder in ("one", "two"):
        results.save(tmp_path / folder)
    for name in (SUMMARY, PER_FRAME):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [PER_FRAME, SUMMARY]


def test_nothing_half_written_passes_for_results(results, tmp_path):
    """A number that is none stops the writing, and the summary that would vouch for the rows is gone."""
    results.save(tmp_path)
    broken = Results(summary={**results.summary, "scores": float("nan")}, per_frame=results.per_frame)
    with pytest.raises(ValueError, match="not JSON compliant"):
        broken.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [PER_FRAME]
    with pytest.raises(DataError, match=r"no results.json; expected a folder that `driving-xai score` wrote"):
        Results.load(tmp_path)


def _edited(path: Path, **changes) -> None:
    summary = json.loads(path.read_text())
    path.write_text(json.dumps({**summary, **changes}))


def _without(path: Path, section: str) -> None:
    summary = json.loads(path.read_text())
    del summary[section]
    path.write_text(json.dumps(summary))


def _twice(path: Path, section: str) -> None:
    found = json.loads(path.read_text())[section]
    _edited(path, **{section: [*found, found[0]]})


def _film(rate: str) -> dict:
    return {"file": "a.mp4", "sha256": "0" * 64, "frame_rate": rate}


def _interval(path: Path, **ends) -> None:
    scores = json.loads(path.read_text())["scores"]
    scores[0]["value"] = {"mean": 1.0, "low": 0.0, "high": 2.0} | ends
    _edited(path, scores=scores)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / SUMMARY).write_text("{"), "cannot be read"),
        (lambda root: (root / SUMMARY).write_text("[]"), "schema None, expected 'driving-xai-results/2'"),
        (lambda root: (root / SUMMARY).write_text('{"schema": NaN}'), "cannot be read .*not JSON compliant"),
        (
            lambda root: _edited(root / SUMMARY, schema="driving-xai-results/1"),
            "schema 'driving-xai-results/1'",
        ),
        (
            lambda root: (root / SUMMARY).write_text('{"schema": "driving-xai-results/2"}'),
            "lacks plan",
        ),
        (lambda root: (root / SUMMARY).write_text("[" * 100_000), "nested more than 50 deep"),
        (lambda root: (root / SUMMARY).write_text('{"a": ' + "9" * 5000 + "}"), "cannot be read"),
        (lambda root: (root / SUMMARY).write_text('{"a": "\\ud800"}'), "cannot be read"),
        (lambda root: _edited(root / SUMMARY, controls=None), "controls is None"),
        (lambda root: _edited(root / SUMMARY, comparisons=None), "comparisons is None"),
        (lambda root: _edited(root / SUMMARY, ranks=None), "ranks is None"),
        (lambda root: _without(root / SUMMARY, "comparisons"), "lacks comparisons"),
        (
            lambda root: _edited(root / SUMMARY, data={"scored": 2, "seconds_apart": "x"}),
            "seconds_apart is 'x'",
        ),
        (lambda root: _edited(root / SUMMARY, data={"scored": 2, "seconds_apart": 0}), "seconds_apart is 0"),
        (
            lambda root: _edited(root / SUMMARY, video=_film("20") | {"starts_s": ["x"]}),
            "video.starts_s.0 is 'x'",
        ),
        (lambda root: _edited(root / SUMMARY, fills=None), "fills is None"),
        (lambda root: _edited(root / SUMMARY, fills=[{"measure": "deletion"}]), "lacks fills.0.reference"),
        (lambda root: _edited(root / SUMMARY, methods=["a", 3]), "methods.1 is 3"),
        (lambda root: _edited(root / SUMMARY, scores=[{}]), "lacks scores.0.method"),
        (lambda root: _edited(root / SUMMARY, files={}), "lacks files.per_frame.parquet"),
        (lambda root: _edited(root / SUMMARY, files={"../x": "0" * 64}), "files"),
        (lambda root: _twice(root / SUMMARY, "scores"), "scores has .* twice"),
        (lambda root: _edited(root / SUMMARY, video=_film("1e300000000")), "frame_rate is '1e300000000'"),
        (lambda root: _edited(root / SUMMARY, video=_film("20/0")), "frame_rate is '20/0'"),
        (lambda root: _interval(root / SUMMARY, high=None), "both ends"),
        (lambda root: _interval(root / SUMMARY, mean=1e300), "1e\\+300"),
        (lambda root: (root / PER_FRAME).unlink(), "has no per_frame.parquet"),
        (lambda root: (root / PER_FRAME).write_bytes(b"PAR1"), "differs from the hash"),
    ],
)
def test_damaged_results_are_refused_in_one_line(results, tmp_path, spoil, message):
    results.save(tmp_path)
    spoil(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        Results.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_table_of_other_columns_is_refused(tmp_path):
    pd.DataFrame({"value": [1.0]}).to_parquet(tmp_path / "table.parquet")
    with pytest.raises(DataError, match=r"has columns \['value'\]; expected \['drive'"):
        read_table(tmp_path / "table.parquet")
    (tmp_path / "table.parquet").write_bytes(b"nothing")
    with pytest.raises(DataError, match="damaged"):
        read_table(tmp_path / "table.parquet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: pd.concat([rows, rows[1:2]]), "has the row of .* twice"),
        (lambda rows: rows.assign(value=np.inf), "value is infinite"),
        (lambda rows: rows.assign(method=None), "method is unknown"),
        (lambda rows: rows.assign(time_ns=2**63 - 1), "beyond what a recording has"),
    ],
)
def test_rows_that_cannot_be_are_refused_though_the_hash_fits(results, tmp_path, change, message):
    write_table(tmp_path / "table", change(results.per_frame))
    with pytest.raises(DataError, match=message):
        read_table(tmp_path / "table")


def test_a_flipped_bit_of_a_part_is_found(results, tmp_path):
    write_table(tmp_path / "part", results.per_frame, sums="inside")
    data, whole = (tmp_path / "part").read_bytes(), read_table(tmp_path / "part")
    found = 0
    for at in range(4, 400, 7):
        (tmp_path / "part").write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        try:
            pd.testing.assert_frame_equal(read_table(tmp_path / "part"), whole)
        except DataError:
            found += 1
    assert found > 30


def test_the_maps_are_part_of_the_results(results, tmp_path):
    (tmp_path / MAPS).write_bytes(b"maps")
    results.save(tmp_path, beside=[MAPS])
    assert set(Results.load(tmp_path).summary["files"]) == {PER_FRAME, MAPS}
    (tmp_path / MAPS).write_bytes(b"")
    with pytest.raises(DataError, match=r"maps.h5: differs from the hash"):
        Results.load(tmp_path)


@pytest.mark.parametrize("where", ["in memory", "in a file"])
def test_rows_without_curves_and_the_curves_of_some_frames_are_those_of_the_table(results, tmp_path, where):
    results.save(tmp_path)
    found = results if where == "in memory" else Results.load(tmp_path)
    whole = read_table(tmp_path / PER_FRAME)
    plain = found.without_curves.astype(whole.drop(columns="curve").dtypes.to_dict())
    pd.testing.assert_frame_equal(plain, whole.drop(columns="curve"))
    some = found.curves_of({1})
    assert some["frame"].tolist() == [1, 1]
    expected = whole[whole["frame"] == 1]
    for ours, theirs in zip(some["curve"], expected["curve"], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert found.curves_of(set()).empty


def test_tables_put_together_keep_their_types(tmp_path):
    """A part without any curve, truth or chance reads like the others."""
    write_table(tmp_path / "part", _rows({"a": [1.0]}, measure="auroc", reference="cause"))
    table = read_table(tmp_path / "part")
    assert table.columns.tolist() == PER_FRAME_SCHEMA.names
    assert table["curve"].isna().all()
    assert table["truth"].dtype == np.float64


def test_scores_are_means_of_the_frames_that_have_one():
    rows = _rows({"grad-cam": [1.0, 2.0, 6.0] * 3, "random": [np.nan, 2.0, 1.0] * 3})
    ours, random = summarise_scores(rows, BlockBootstrap(block=1, resamples=50))
    assert (ours["method"], ours["frames"], ours["degenerate"], ours["value"]["mean"]) == (
        "grad-cam",
        9,
        1,
        3.0,
    )
    assert ours["normalised"]["mean"] == 1.5
    assert ours["base_corrected"]["mean"] == 2.0
    assert ours["curve"] == [2.0, 4.0]
    assert ours["value"]["low"] <= 3.0 <= ours["value"]["high"]
    assert (random["frames"], random["degenerate"], random["curve"]) == (6, 1, [0.5, 2.5])
    assert random["without_value"] == 3, "the other method has one for these frames"
    assert "without_value" not in ours


def test_a_frame_without_a_value_is_nobodys_lack():
    """A frame that no method has a value for says nothing of their maps; nor does one that is not there."""
    rows = _rows({"grad-cam": [1.0, np.nan, 6.0], "random": [3.0, np.nan, 1.0]})
    found = summarise_scores(rows[:-1], BlockBootstrap(block=1, resamples=50))
    assert [each["frames"] for each in found] == [2, 1]
    assert all("without_value" not in each for each in found)


def test_differences_pair_the_frames_that_both_have():
    rows = _rows({"grad-cam": [1.0, 2.0, 6.0], "random": [np.nan, 2.0, 1.0], "centre-prior": [0.0, 0.0, 0.0]})
    found = summarise_differences(rows, ("random", "centre-prior"), BlockBootstrap(block=1, resamples=50))
    assert [(each["method"], each["control"], each["frames"]) for each in found] == [
        ("grad-cam", "random", 2),
        ("grad-cam", "centre-prior", 3),
    ]
    assert [each["value"]["mean"] for each in found] == [2.5, 3.0]


def test_what_is_unknown_is_null_with_a_reason():
    none = interval(pd.Series([], dtype=float), BlockBootstrap(block=5))
    assert none == {"mean": None, "low": None, "high": None, "reason": "no frame has this value"}
    few = interval(pd.Series([1.0, 2.0]), BlockBootstrap(block=5))
    assert few == {
        "mean": 1.5,
        "low": None,
        "high": None,
        "reason": "2 frames are fewer than 8 blocks of 5",
    }
    json.dumps([none, few], allow_nan=False)


class TestFrameRows:
    """The one writer of per-frame rows, against a slow twin that fills a dictionary for each row."""

    COUNT, METHODS = 3, ("rise", "lime", "random")

    def places(self) -> pd.DataFrame:
        numbers = np.arange(self.COUNT)
        texts = {"drive": ["a", "a", "b"], "camera": "front", "key": "", "target": ["left", "stop", "left"]}
        return pd.DataFrame({**texts, "segment": 0, "frame": numbers + 7, "time_ns": numbers * 10**9})

    def columns(self) -> dict[str, np.ndarray]:
        drawn = np.random.default_rng(0)
        shape = (self.COUNT, len(self.METHODS))
        return {
            "value": drawn.random(shape),
            "chance": drawn.random(shape),
            "curve": drawn.random((*shape, 4)),
        }

    def rows(self, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return frame_rows(
            {name: self.places()[name].to_numpy() for name in FRAME_COLUMNS},
            methods=self.METHODS,
            measure="deletion",
            reference="clean",
            known={name: np.arange(self.COUNT) + 0.5 for name in ("prediction", "truth", "error")},
            columns=columns,
            degenerate=np.eye(self.COUNT, dtype=bool),
        )

    def test_rows_are_those_of_a_loop(self, tmp_path):
        columns, expected = self.columns(), []
        for t, place in self.places().iterrows():
            for m, method in enumerate(self.METHODS):
                row = {**place, "method": method, "measure": "deletion", "reference": "clean"}
                row |= dict.fromkeys(("prediction", "truth", "error"), t + 0.5)
                row |= {"normalised": np.nan, "base_corrected": np.nan, "degenerate": t == m}
                row |= {name: columns[name][t, m] for name in ("value", "chance", "curve")}
                expected.append(row)
        write_table(tmp_path / "ours", self.rows(columns))
        write_table(tmp_path / "theirs", pd.DataFrame(expected))
        assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()

    def test_what_is_left_out_is_null(self):
        table = arrow_table(self.rows({}))
        empty = {name for name in table.column_names if table[name].null_count == table.num_rows}
        assert empty == {"value", "normalised", "base_corrected", "chance", "curve"}


def test_a_summary_draws_sparse_methods_in_blocks_as_long_in_time():
    """A control on every fourth frame: its blocks have a quarter of the frames, in scores and differences."""
    drawn = np.random.default_rng(0)
    rows = _rows({"grad-cam": [*drawn.random(160)], "random": [*drawn.random(160)]})
    rows = rows[(rows["method"] == "grad-cam") | (rows["frame"] % 4 == 0)].reset_index(drop=True)
    bootstrap = BlockBootstrap(block=12, resamples=50)
    about = {"deletion": {"faithful": "high"}}
    options = {"quantity": STEERING_ERROR, "protocol": {}, "measures": about, "methods": ["grad-cam"]}
    found = summarise(rows, **options, controls=["random"], bootstrap=bootstrap, every={"random": 4})
    ours, random = (score["value"] for score in found["scores"])
    values = {name: rows.loc[rows["method"] == name, "value"] for name in ("grad-cam", "random")}
    thin = BlockBootstrap(block=3, resamples=50)
    assert ours == interval(values["grad-cam"], bootstrap)
    assert random == interval(values["random"], thin)
    apart = values["grad-cam"].to_numpy()[::4] - values["random"].to_numpy()
    assert found["differences"][0]["value"] == interval(pd.Series(apart), thin)
    assert (found["differences"][0]["frames"], found["comparisons"][0]["frames"]) == (40, 40)

    means = {("deletion", "truth", name): [1.0, 2.0] for name in values}
    bare = summarise(
        rows.drop(columns="curve"),
        **options,
        controls=["random"],
        bootstrap=bootstrap,
        every={"random": 4},
        mean_curves=means,
    )
    assert [score["curve"] for score in bare["scores"]] == [[1.0, 2.0]] * 2
    for one, other in zip(bare["scores"], found["scores"], strict=True):
        assert {**one, "curve": None} == {**other, "curve": None}
