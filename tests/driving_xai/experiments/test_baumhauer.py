"""The experiments of bounded logit attention: their data, their runs, and a table held to the long way round."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scipy import stats

from data_prep.prepare import PrepConfig, prepare
from driving_xai.errors import CheckpointError, DataError
from driving_xai.experiments import baumhauer, baumhauer_context, baumhauer_l2x, baumhauer_mnist
from driving_xai.experiments.baumhauer import Explanations, Table1, heads_of_seed, table1
from driving_xai.experiments.baumhauer_features import Network, StandIn, frozen
from driving_xai.experiments.baumhauer_lime import MAPS, Table2, table2
from driving_xai.experiments.baumhauer_mnist import Mnist
from driving_xai.experiments.image_sets import from_shards
from driving_xai.experiments.runs import Mean, each_run, paired, unpaired
from driving_xai.experiments.stand_ins import Clutter, Digits, alone, cluttered, handwritten_digits
from driving_xai.metrics.rank_correlation import patch_lime
from driving_xai.models.bounded_logit import AttentiveHead, BoundedLogitConfig, BoundedLogitModel
from driving_xai.training.bounded_logit import Schedule

STAND_IN = StandIn(
    classes=(3, 8), train=64, test=40, pictures=64, pretraining=Schedule(epochs=1), channels=(4, 6, 8, 8)
)
BRIEF = Explanations(seeds=2, baseline=Schedule(epochs=2), augmented=Schedule(epochs=2))


class TestDigits:
    def test_parts_share_no_digit_and_keep_each_classs_share(self):
        digits = handwritten_digits()
        first, second = digits.split(0.3)
        assert len(first) + len(second) == len(digits) == 1797
        pictures = [{image.tobytes() for image in part.images} for part in (first, second)]
        # Two of the 1,797 pictures could be equal by chance; none are.
        assert not pictures[0] & pictures[1]
        counts = np.bincount(first.labels) / np.bincount(digits.labels)
        np.testing.assert_allclose(counts, 0.3, atol=0.01)

    def test_only_relabels_by_place(self):
        digits = handwritten_digits()
        chosen = digits.only((8, 3))
        np.testing.assert_array_equal(
            chosen.labels, np.where(digits.labels[np.isin(digits.labels, (3, 8))] == 8, 0, 1)
        )

    def test_a_picture_holds_its_digit_somewhere(self):
        """Without fragments and grain the ink is one enlarged digit, scaled, at some place."""
        digits = Digits(images=handwritten_digits().images[:3], labels=np.arange(3))
        how = Clutter(size_px=40, digit_px=(20, 20), fragments=0, noise=0.0)
        pictures, labels = cluttered(digits, 6, how, seed=1)
        assert sorted(labels) == [0, 0, 1, 1, 2, 2]
        for picture, label in zip(pictures[:, 0].astype(float), labels, strict=True):
            large = cv2.resize(digits.images[label], (20, 20))
            windows = np.lib.stride_tricks.sliding_window_view(picture, (20, 20)).reshape(-1, 400)
            alike = [np.corrcoef(window, large.ravel())[0, 1] for window in windows if window.std() > 0]
            assert max(alike) > 0.999

    def test_the_same_seed_draws_the_same_pictures(self):
        digits = handwritten_digits()
        (first, _), (again, _), (other, _) = (cluttered(digits, 5, Clutter(), seed=s) for s in (1, 1, 2))
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Threes and eights as files in folders, prepared as a user would."""
    root = tmp_path_factory.mktemp("digits")
    digits = handwritten_digits().only((3, 8))
    for split, part in (("train", range(40)), ("val", range(40, 60))):
        for row in part:
            folder = root / "raw" / split / ("3", "8")[digits.labels[row]]
            folder.mkdir(parents=True, exist_ok=True)
            one = Digits(images=digits.images[row : row + 1], labels=digits.labels[row : row + 1])
            cv2.imwrite(str(folder / f"{row:03d}.png"), alone(one, size_px=20)[0].transpose(1, 2, 0))
    prepare(PrepConfig(reader="image-folder", source=root / "raw"), root / "shards")
    return root / "shards"


class TestShards:
    def test_images_are_read_by_rows_and_resized_as_a_whole(self, shards):
        images = from_shards(shards, size_px=28)
        assert images.label_names == ("3", "8")
        assert (len(images.rows("train")), len(images.rows("test"))) == (40, 20)
        digits = handwritten_digits().only((3, 8))
        wanted = np.array([images.rows("test")[4], images.rows("train")[11], images.rows("train")[0]])
        found = images.read(wanted)
        files = sorted(shards.parent.glob("raw/*/*/*.png"))
        by_row = {int(file.stem): file for file in files}
        labels = images.classes[torch.from_numpy(wanted)]
        for picture, label in zip(found, labels, strict=True):
            alike = [
                row
                for row, file in by_row.items()
                if np.array_equal(
                    cv2.resize(cv2.imread(str(file)), (28, 28), interpolation=cv2.INTER_LINEAR)[:, :, ::-1],
                    picture.permute(1, 2, 0).numpy(),
                )
            ]
            assert [int(digits.labels[row]) for row in alike] == [int(label)]

    def test_what_is_no_labelled_set_is_refused(self, tmp_path):
        with pytest.raises(DataError, match="no manifest"):
            from_shards(tmp_path, size_px=28)

    def test_table1_takes_them_behind_a_network_of_timm(self, shards, tmp_path):
        network = Network(name="resnet10t", weights="random", image_px=64, precision="fp16")
        how = Table1(network=network, explanations=replace(BRIEF, seeds=1))
        results = table1(shards, tmp_path, how)
        assert results["stand_in"] is False
        assert results["data"]["train"] == 40
        assert "resnet10t, weights random" in (tmp_path / "table.md").read_text()
        absent = replace(network, weights=str(tmp_path / "absent.safetensors"))
        with pytest.raises(CheckpointError, match="absent"):
            table1(shards, tmp_path / "other", replace(how, network=absent))

    def test_runs_of_another_size_or_precision_are_not_taken(self, shards, tmp_path):
        """A network of convolutions alone has the same weights for every size."""
        plans = [
            frozen(shards, tmp_path, Network(name="resnet10t", weights="random", **given), STAND_IN).plan
            for given in (
                {"image_px": 32, "precision": "fp32"},
                {"image_px": 32, "precision": "fp32"},
                {"image_px": 40, "precision": "fp32"},
                {"image_px": 32, "precision": "fp16"},
            )
        ]
        assert plans[0] == plans[1]
        assert plans[2] not in (plans[0], plans[3])
        assert plans[3] != plans[0]
        assert len(list((tmp_path / "features").iterdir())) == 3

    def test_mnist_wants_three_and_eight(self, shards, tmp_path):
        results = baumhauer_mnist.run(shards, tmp_path / "a", Mnist(steps=2, seeds=1))
        assert set(results["means"]) == {"baseline", "bla", "bla-t", "l2x", "l2x-multiplied"}
        assert results["data"]["test"] == 20
        assert "3 against 8, 40 images to train on" in (tmp_path / "a" / "table.md").read_text()


class TestRuns:
    def test_what_is_there_is_not_done_again(self, tmp_path):
        done = []

        def work(run: int) -> dict:
            done.append(run)
            if run == 2 and done.count(2) == 1:
                raise KeyboardInterrupt
            return {"bla": {"accuracy": run / 10}}

        with pytest.raises(KeyboardInterrupt):
            each_run(tmp_path, {"a": 1}, 4, work)
        found = each_run(tmp_path, {"a": 1}, 4, work)
        assert done == [0, 1, 2, 2, 3]
        assert [run["bla"]["accuracy"] for run in found] == [0.0, 0.1, 0.2, 0.3]
        with pytest.raises(DataError, match="another configuration"):
            each_run(tmp_path, {"a": 2}, 4, work)
        (tmp_path / "run-001.json").write_text("{")
        with pytest.raises(DataError, match=r"run-001\.json: cannot be read"):
            each_run(tmp_path, {"a": 1}, 4, work)

    def test_tests_are_scipys(self):
        rng = np.random.default_rng(0)
        first, second = rng.normal(0.3, 1, 20), rng.normal(0, 1, 20)
        runs = [{"a": {"x": a}, "b": {"x": b}} for a, b in zip(first, second, strict=True)]
        assert paired(runs, "a", "b", "x")["p"] == pytest.approx(stats.wilcoxon(first, second).pvalue)
        assert unpaired(runs, "a", "b", "x")["p"] == pytest.approx(stats.mannwhitneyu(first, second).pvalue)
        mean = Mean.of(first)
        assert mean.standard_error == pytest.approx(stats.sem(first))
        by_scipy = stats.t.interval(0.95, 19, loc=first.mean(), scale=stats.sem(first))
        assert (mean.interval["low"], mean.interval["high"]) == pytest.approx(by_scipy)
        assert paired(runs, "a", "a", "x")["p"] == 1.0
        assert paired(runs[:5], "a", "b", "x")["p"] is None

    @pytest.mark.parametrize("count", [2, 7, 20])
    def test_intervals_are_scipys(self, count):
        """Paired and Welch's, of groups whose means and spreads differ."""
        rng = np.random.default_rng(count)
        first, second = rng.normal(2, 1, count), rng.normal(0, 3, count)
        runs = [{"a": {"x": a}, "b": {"x": b}} for a, b in zip(first, second, strict=True)]
        for test, found in (
            (paired, stats.ttest_rel(first, second)),
            (unpaired, stats.ttest_ind(first, second, equal_var=False)),
        ):
            ours = test(runs, "a", "b", "x")["interval"]
            assert (ours["low"], ours["high"]) == pytest.approx(tuple(found.confidence_interval(0.95)))

    def test_a_single_run_has_no_interval_and_equal_runs_have_one_of_no_width(self):
        runs = [{"a": {"x": 0.5}, "b": {"x": 0.25}}] * 8
        none = {"low": None, "high": None, "reason": "a single run says nothing about others"}
        for test in (paired, unpaired):
            assert test(runs[:1], "a", "b", "x")["interval"] == none
            assert test(runs, "a", "b", "x")["interval"] == {"low": 0.25, "high": 0.25}
        assert Mean.of(np.array([0.5])).interval == none


def test_what_was_not_tested_is_not_read_as_significant():
    tests = [
        {"ours": name, "theirs": "baseline", "quantity": "loss", "p": p}
        for name, p in (("bla", 0.3), ("bla-t", 0.01), ("bla-ph", None))
    ]
    names = ("baseline", "bla", "bla-t", "bla-ph", "l2x-f-multiplied")
    marks = [baumhauer._marks({"tests": tests}, name, "loss") for name in names]
    assert marks == ["", " †", "", " ?", " ?"]
    mean = {"mean": 0.5, "standard_error": 0.0}
    assert [baumhauer._cell(mean, runs) for runs in (1, 2)] == ["0.5000 ± -", "0.5000 ± 0.00"]


def test_focus_counts_cells_as_their_entropy_does():
    """Even weights have as many effective cells as cells, one winner has one; both known in closed form."""
    config = BoundedLogitConfig(classes=("a", "b"), attention="sigmoid")
    head = AttentiveHead(config, channels=2).eval().requires_grad_(False)
    head.explain.weight.copy_(torch.tensor([[1.0, 0.0]]))
    even, single = torch.zeros(1, 5, 2), torch.full((1, 5, 2), -80.0)
    single[0, 3] = 0.0
    assert baumhauer_context.focus(head, [even]) == pytest.approx(
        {"cells": 5, "effective_cells": 5, "largest_logit": 0}
    )
    assert baumhauer_context.focus(head, [single]) == pytest.approx(
        {"cells": 1, "effective_cells": 1, "largest_logit": 0}
    )


def test_l2x_and_other_contexts_run_on_the_stand_in(tmp_path):
    how = baumhauer_context.Context(stand_in=STAND_IN, explanations=replace(BRIEF, seeds=1))
    found = baumhauer_context.run(None, tmp_path / "context", how)
    assert 1 <= found["means"]["concept"]["cells"]["mean"] <= 49
    assert "| less: each cell by itself, a sigmoid |" in (tmp_path / "context" / "table.md").read_text()
    two = baumhauer_l2x.TwoNetworks(stand_in=STAND_IN, seeds=1, subset_size=49, schedule=Schedule(epochs=1))
    found = baumhauer_l2x.run(None, tmp_path / "l2x", two)["runs"][0]
    # All patches of 49 are hard selected, and random ones are all of them too.
    assert found["hard"] == found["random"] == found["all"]


def test_table1_sums_up_its_runs_and_goes_on_where_it_stopped(tmp_path):
    how = Table1(stand_in=STAND_IN, explanations=replace(BRIEF, seeds=1))
    one = table1(None, tmp_path, how)
    two = table1(None, tmp_path, replace(how, explanations=BRIEF))
    assert two["runs"][0] == one["runs"][0]
    for name in baumhauer.COLUMNS:
        losses = [run[name]["loss"] for run in two["runs"]]
        assert two["means"][name]["loss"]["mean"] == pytest.approx(np.mean(losses))
    assert two["means"]["l2x-f"]["cells"]["mean"] == 8
    assert two["means"]["baseline"]["cells"]["mean"] == 49
    assert two["stand_in"] is True
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(two))
    table = (tmp_path / "table.md").read_text()
    assert "stand-in: scikit-learn's handwritten digits 3, 8 in clutter" in table
    assert "| paper, B | 0.8357 ± 0.03 | - | 0.7730 ± 0.24 | - | 0.8234 ± 0.07 |" in table
    by_hand = [_of_two_runs(two["runs"], "bla-t", "baseline", each) for each in ("accuracy", "loss")]
    cells = " | ".join(f"{mean:+.4f} ({low:+.4f} to {high:+.4f})" for mean, low, high in by_hand)
    assert f"| BLA-T - BL | {cells} |" in table
    drawn = (tmp_path / "fig3-error.svg").read_text()
    assert all(title in drawn for title in (*baumhauer.COLUMNS.values(), "error rate"))


def _of_two_runs(runs, ours: str, theirs: str, quantity: str) -> tuple[float, float, float]:
    """The mean of two differences and its 95 % interval: Student's t of one degree of freedom is Cauchy's."""
    first, second = (run[ours][quantity] - run[theirs][quantity] for run in runs)
    mean, half = (first + second) / 2, np.tan(0.475 * np.pi) * abs(first - second) / 2
    return mean, mean - half, mean + half


def test_table2_is_what_the_whole_model_gives_under_each_pattern(tmp_path):
    """The long way round: baseline as one model, LIME on its probability, image by image."""
    how = Table2(stand_in=STAND_IN, explanations=replace(BRIEF, gamma=0.0), images=2, patterns=60)
    results = table2(None, tmp_path, how)
    source = frozen(None, tmp_path, how.network, how.stand_in)
    found = json.loads((tmp_path / "images" / "run-000.json").read_text())["found"]
    frame = source.images.read(source.images.rows("test")[:1])[0] / 255
    for seed in range(2):
        heads = heads_of_seed(source, how.explanations, seed)
        config = BoundedLogitConfig(
            classes=source.images.label_names, attention="none", channels=STAND_IN.channels, pooled=3
        )
        model = BoundedLogitModel(config).eval()
        model.backbone, model.head = source.network, heads["baseline"]
        column = int(model(frame[None]).argmax())
        (lime,) = patch_lime(samples=60).fit(model, frame[None], lambda s, c=column: s.softmax(1)[:, c])
        cells = source.features.batch(source.images.rows("test")[:1])[0].detach()
        cam = (cells @ heads["baseline"].classify.weight[column].detach()).numpy()
        soft = heads["bla"].attend(cells[None])[0].detach().numpy()
        for name, values in (("cam", cam), ("bla", soft)):
            if found[name][str(seed)] is None:
                assert np.ptp(values) == 0
                continue
            expected = stats.spearmanr(lime.coefficients, values).statistic
            assert found[name][str(seed)] == pytest.approx(expected, abs=0.02), name
    assert results["explained"] == 2
    assert set(results["means"]) == set(MAPS)
    table = (tmp_path / "table.md").read_text()
    assert "| paper, C | 0.08 | 0.37 |" in table
    mean, low, high = _of_two_runs(results["runs"], "bla-t", "cam", "correlation")
    assert f"| BLA-T - CAM | {mean:+.3f} ({low:+.3f} to {high:+.3f}) |" in table


def test_mnist_trains_as_many_steps_as_asked(tmp_path):
    assert Mnist(steps=1125).schedule(11_982).epochs == 3
    assert Mnist(steps=1125).schedule(214).epochs == 161
    networks = ("baseline", "bla-t", "l2x")
    results = baumhauer_mnist.run(None, tmp_path, Mnist(steps=7, seeds=2, networks=networks))
    assert tuple(results["means"]) == networks
    assert results["data"]["train"] + results["data"]["test"] == 183 + 174
    assert {test["test"] for test in results["tests"]} == {"mann-whitney-u", "wilcoxon-signed-rank"}
    row = results["means"]["bla-t"]["accuracy"]
    assert row["mean"] == pytest.approx(np.mean([run["bla-t"]["accuracy"] for run in results["runs"]]))
    mean, low, high = _of_two_runs(results["runs"], "l2x", "baseline", "accuracy")
    row = f"| L2X, k = 4 | {mean:+.4f} | paired | {low:+.4f} to {high:+.4f} | - | - |"
    assert row in (tmp_path / "table.md").read_text()
    with pytest.raises(ValueError, match="expected baseline among them"):
        Mnist(networks=("bla",))
