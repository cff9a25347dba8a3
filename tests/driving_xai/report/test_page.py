"""The page as a file: it holds everything, loads nothing, and takes no text for markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from driving_xai.evaluation.results import SUMMARY, Results
from driving_xai.metrics.registry import METRICS
from driving_xai.report import words
from driving_xai.report.glossary import GENERAL, terms
from driving_xai.report.page import PageConfig, write_page
from driving_xai.report.sources import load_sources
from driving_xai.report.tables import write_markdown
from tests.driving_xai.report.made import make_rows, make_summary

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


class _Seen(HTMLParser):
    """Collects tags, what they refer to, and the text of scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.refers: list[str] = []
        self.handlers: list[str] = []
        self.scripts: list[tuple[str | None, str]] = []
        self.policy = self.text = ""
        self._inside = False

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append(tag)
        self.refers += [given[name] for name in ("src", "href", "data", "action", "srcset") if name in given]
        self.handlers += [name for name in given if name.startswith("on")]
        if tag == "script":
            self._inside = True
            self.scripts.append((given.get("id"), ""))
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"]

    def handle_endtag(self, tag):
        self._inside = self._inside and tag != "script"

    def handle_data(self, data):
        if self._inside:
            name, text = self.scripts[-1]
            self.scripts[-1] = (name, text + data)
        else:
            self.text += data


def _read(path: Path) -> _Seen:
    seen = _Seen()
    seen.feed(path.read_text())
    return seen


@pytest.fixture
def page(write_replay, write_results, tmp_path) -> Path:
    replay = write_replay(root=tmp_path, frames=40)
    scores = write_results(root=tmp_path, frames=40, measures=("deletion", "pointing-game"))
    write_page(load_sources([scores, replay]), tmp_path / "out" / "page.html")
    return tmp_path / "out" / "page.html"


def test_it_refers_to_nothing_outside_itself(page):
    seen = _read(page)
    assert {each for each in seen.refers if not each.startswith(("#", "data:"))} == set()
    assert "http:" not in (text := page.read_text().replace("http://www.w3.org/2000/svg", ""))
    assert "https:" not in text
    assert "default-src 'none'" in seen.policy


def test_only_its_own_script_may_run(page):
    """The policy names the script by its hash, so markup that slipped in could not run one."""
    seen = _read(page)
    (code,) = [text for name, text in seen.scripts if name is None]
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in seen.policy
    assert seen.handlers == []


def test_text_from_results_stays_text(write_results, tmp_path):
    folder = write_results(root=tmp_path, drive=EVIL, frames=20, gains={EVIL: 1.0, "random": 0.0})
    out = tmp_path / "page.html"
    write_page(load_sources([folder]), out, PageConfig(title=EVIL))
    seen = _read(out)
    assert [name for name, _ in seen.scripts] == ["data", None]
    assert "img" not in seen.tags
    assert seen.handlers == []
    assert EVIL in seen.text
    data = json.loads(dict(seen.scripts)["data"])
    assert data["results"][0]["drives"][0]["name"] == EVIL


def _version(write_results, root: Path, name: str, gains: dict[str, float], **more: object) -> Path:
    """Results of other weights on the same road."""
    folder = write_results(name, root=root, gains={**gains, "random": 0.0, "centre-prior": 0.0}, **more)
    path = folder / SUMMARY
    summary = json.loads(path.read_text())
    summary["plan"]["checkpoint_sha256"] = name[0] * 64
    path.write_text(json.dumps(summary))
    return folder


def test_two_models_are_compared_under_the_names_they_are_given(write_results, tmp_path):
    folders = [
        _version(write_results, tmp_path, name, {"grad-cam": gain}) for name, gain in (("a", 5.0), ("b", 1.0))
    ]
    sources = load_sources(folders, [EVIL, " version\n2 "])
    (page,) = write_page(sources, tmp_path / "page.html")
    seen = _read(page)
    text = re.sub(r"\s+", " ", seen.text)
    assert f"{EVIL} against version 2" in text
    assert (
        f"The pixels that grad-cam highlights matter more for {EVIL} than for version 2, counted above random "
        "pixels (5 against 1" in text
    )
    assert "img" not in seen.tags
    assert [name for name, _ in seen.scripts] == ["data", None]
    write_markdown(sources, tmp_path / "scores.md")
    assert "matter more for \\<" in (tmp_path / "scores.md").read_text()


def test_results_of_one_model_are_not_set_against_each_other(write_replay, write_results, tmp_path):
    folders = [write_results(root=tmp_path, frames=20), write_replay(root=tmp_path, frames=20)]
    (page,) = write_page(load_sources(folders), tmp_path / "page.html")
    assert "Models against each other" not in page.read_text()


def test_models_on_different_drives_are_said_to_be_apart(write_results, tmp_path):
    gains = {"grad-cam": 5.0}
    folders = [
        _version(write_results, tmp_path, "a", gains, frames=20),
        _version(write_results, tmp_path, "b", gains, frames=20, drive="elsewhere"),
    ]
    (page,) = write_page(load_sources(folders), tmp_path / "page.html")
    assert "They share no frames, so they are not compared" in page.read_text()


def test_the_same_results_give_the_same_page(write_results, tmp_path):
    sources = load_sources([write_results(root=tmp_path)])
    for name in ("one.html", "two.html"):
        write_page(sources, tmp_path / name)
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_numbers_of_the_charts_are_those_of_the_table(page, tmp_path):
    (source,) = load_sources([tmp_path / "scores"])
    data = json.loads(dict(_read(page).scripts)["data"])
    drive = data["results"][0]["drives"][0]
    rows = source.results.select(method="grad-cam", measure="deletion", reference="truth")
    assert drive["values"]["deletion/truth"]["grad-cam"] == pytest.approx(rows["value"].tolist(), rel=1e-3)
    assert drive["pictures"] == list(range(1, 41)), "the replay's video serves the scores of the same drive"
    assert drive["at"][0] == pytest.approx(0.05), "time counts from the video's start"
    pick = data["results"][0]["picks"]["deletion/truth"]["grad-cam"][0]
    assert pick["curves"]["random"][0] is not None
    assert base64.b64decode(data["stills"][pick["still"]])[:2] == b"\xff\xd8"


def test_a_video_shows_an_image_to_its_own_scores_only(write_replay, write_results, tmp_path):
    """Images of two sets of shards share their groups and rows, and are still not the same images."""
    replay = write_replay(root=tmp_path, frames=30, keys="a-{}.jpg")
    same = write_results("same", root=tmp_path, frames=30, keys="a-{}.jpg")
    others = write_results("others", root=tmp_path, frames=30, keys="b-{}.jpg")
    write_page(load_sources([replay, same, others]), tmp_path / "page.html")
    results = json.loads(dict(_read(tmp_path / "page.html").scripts)["data"])["results"]
    assert [each["drives"][0]["video"] for each in results] == [0, 0, None]
    picks = [pick for of_board in results[2]["picks"].values() for each in of_board.values() for pick in each]
    assert picks
    assert {pick["still"] for pick in picks} == {None}


def test_images_that_share_a_place_keep_their_own_curves(tmp_path):
    """One group and row, two files: each card draws the curve of its own image."""
    gains = {"grad-cam": 0.0, "random": 0.0, "centre-prior": 0.0}
    images = [
        make_rows(gains, frames=1, drive="group", measures=("deletion",), seed=seed).assign(
            key=f"{seed}.jpg", time_ns=0
        )
        for seed in range(3)
    ]
    rows = pd.concat(images, ignore_index=True)
    Results(summary=make_summary(rows), per_frame=rows).save(tmp_path / "scores")
    write_page(load_sources([tmp_path / "scores"]), tmp_path / "page.html", PageConfig(frames=1))
    (result,) = json.loads(dict(_read(tmp_path / "page.html").scripts)["data"])["results"]
    for pick in result["picks"]["deletion/truth"]["grad-cam"]:
        name = result["drives"][0]["names"][pick["row"]]
        own = rows[(rows["key"] == name) & (rows["method"] == "grad-cam") & (rows["reference"] == "truth")]
        assert pick["curves"]["grad-cam"] == pytest.approx(own["curve"].item(), rel=1e-3)


def test_no_curve_is_read_but_those_of_frames_that_are_shown(page, tmp_path, monkeypatch):
    """They are most of a table: of 100,000 frames a report held every one of them to show a few."""
    monkeypatch.setattr(Results, "per_frame", property(lambda _: pytest.fail("read the whole table")))
    (again,) = write_page(load_sources([tmp_path / "scores"]), tmp_path / "again.html")
    assert '"curves":{"grad-cam":[' in again.read_text()


def test_every_number_of_the_leader_board_is_in_the_text(page, tmp_path):
    (source,) = load_sources([tmp_path / "scores"])
    text = _read(page).text
    for board in source.boards:
        for each in board.standings:
            assert words.number(each.score["value"]["mean"]) in text
    assert "1 of 40 maps degenerate" in text
    assert "c" * 64 in text


def test_maps_that_have_no_value_are_counted(tmp_path):
    rows = make_rows(
        {"grad-cam": 2.0, "random": 0.0}, frames=40, drive="road", measures=("lime-rank-correlation",)
    )
    rows.loc[(rows["method"] == "grad-cam") & (rows["frame"] <= 3), "value"] = np.nan
    Results(summary=make_summary(rows), per_frame=rows).save(tmp_path / "scores")
    write_page(load_sources([tmp_path / "scores"]), tmp_path / "page.html")
    assert _read(tmp_path / "page.html").text.count("more without a value") == 1
    assert "3 more without a value" in _read(tmp_path / "page.html").text


def test_a_large_video_lies_beside_the_page(write_replay, tmp_path):
    folder = write_replay(root=tmp_path / "in", frames=20)
    sources = load_sources([folder])
    inside = write_page(sources, tmp_path / "a" / "page.html")
    assert [path.name for path in inside] == ["page.html"]
    packed = dict(_read(inside[0]).scripts)["video-0"]
    assert base64.b64decode(packed) == (tmp_path / "in" / "drive.mp4").read_bytes()
    page, video = write_page(sources, tmp_path / "b" / "page.html", PageConfig(embed_mb=0))
    assert video == tmp_path / "b" / "page-drive.mp4"
    assert video.read_bytes() == (tmp_path / "in" / "drive.mp4").read_bytes()
    assert json.loads(dict(_read(page).scripts)["data"])["videos"][0]["file"] == "page-drive.mp4"
    _, there = write_page(sources, tmp_path / "in" / "page.html", PageConfig(embed_mb=0))
    assert there == tmp_path / "in" / "drive.mp4", "no copy where it lies beside the page already"


def test_a_long_drive_stays_small_enough_to_mail(write_results, tmp_path):
    gains = {f"method-{number}": float(number) for number in range(6)} | {"random": 0.0, "centre-prior": -1.0}
    folder = write_results(root=tmp_path, frames=3000, gains=gains)
    (page,) = write_page(load_sources([folder]), tmp_path / "page.html")
    assert page.stat().st_size < 1_000_000


@pytest.mark.parametrize("measure", METRICS)
def test_every_measure_has_a_page(write_results, tmp_path, measure):
    folder = write_results(root=tmp_path, frames=20, measures=(measure,))
    (source,) = load_sources([folder])
    (page,) = write_page([source], tmp_path / "page.html")
    assert measure in _read(page).text
    drawn = page.read_text().count('class="curves"')
    without = ("localisation", "weighted frame", "rank correlation", "additivity", "imputation", "complexity")
    has_curves = source.boards[0].about["kind"] not in without
    assert drawn == (2 * len(source.boards) if has_curves else 0)


@pytest.mark.parametrize("measure", METRICS)
def test_every_measure_is_explained_once(measure):
    (term,) = [term for term in terms([measure]) if term not in GENERAL]
    assert measure.startswith(term.name)


def test_insertion_minus_deletion_is_drawn_as_that_difference(write_results, tmp_path):
    folder = write_results(root=tmp_path, frames=20, measures=("pid-8",))
    (page,) = write_page(load_sources([folder]), tmp_path / "page.html")
    seen = _read(page)
    assert "insertion minus deletion, deg, over the share of patches of 8 px edited" in seen.text
    (result,) = json.loads(dict(seen.scripts)["data"])["results"]
    curve = result["boards"][0]["curve"]
    assert (curve["height"], curve["over"]) == ("insertion minus deletion, deg", "patches of 8 px edited")
    assert (curve["fractions"][0], curve["fractions"][-1]) == (0, 1)
    pick = result["picks"][result["boards"][0]["key"]]["grad-cam"][0]
    assert len(pick["curves"]["grad-cam"]) == len(curve["fractions"])


def test_the_words_of_too_few_frames(write_results, tmp_path):
    """One large group makes one block of most rows: nothing is said, and why, in every place."""
    folder = write_results(root=tmp_path, frames=12)
    sources = load_sources([folder])
    (page,) = write_page(sources, tmp_path / "page.html")
    text = re.sub(r"\s+", " ", _read(page).text)
    lacking = "0.6 s of driving were scored, and 4 s are needed (8 blocks of 0.5 s)."
    tell = "Too little was scored to tell whether the highlighted pixels matter more than random ones or those in"
    assert text.count(f"{tell} the middle of the frame: {lacking}") == 2, "each method, by default"
    why = "No interval: too few independent blocks (12 frames are fewer than 8 blocks of 10)."
    assert text.count(why) == len(sources[0].boards), "below each table"
    assert "too few frames against random" in text
    assert "Not tested: 12 frames are fewer than 8 blocks of 10." in text
    cells = re.findall(r'data-label="interval">(.*?)</td>', page.read_text())
    assert set(cells) == {"no interval"}
    write_markdown(sources, tmp_path / "scores.md")
    assert (
        "| no interval | – | too few frames against random and centre-prior |"
        in (tmp_path / "scores.md").read_text()
    )


def test_a_control_without_an_interval_is_named(write_results, tmp_path):
    """A replay scores its control on a part of the frames."""
    folder = write_results(root=tmp_path)
    path = folder / SUMMARY
    summary = json.loads(path.read_text())
    for each in summary["scores"]:
        if each["method"] == "random":
            reason = "60 frames are fewer than 8 blocks of 10"
            each["value"] = {**each["value"], "low": None, "high": None, "reason": reason}
    path.write_text(json.dumps(summary))
    sources = load_sources([folder])
    said = words.without_interval(sources[0].boards[0])
    assert said == [
        "No interval for random: too few independent blocks (60 frames are fewer than 8 blocks of 10)."
    ]
    said = dict(words.findings(sources[0].boards[0]))["grad-cam"]
    assert said.startswith("The highlighted pixels matter more than random ones (area")


def test_no_test_is_claimed_of_log_odds(write_results, tmp_path):
    gains = {"grad-cam": 4.0, "random": 0.0, "centre-prior": -4.0}
    folder = write_results(root=tmp_path, gains=gains, measures=("log-odds",))
    (page,) = write_page(load_sources([folder]), tmp_path / "page.html")
    text = re.sub(r"\s+", " ", _read(page).text)
    assert "grad-cam: The highlighted pixels carry the correct labels more than random ones (score" in text
    assert "by the interval, untested" in text
    assert "No test is made: the value is of all frames together" in text
    assert "by its interval better than random" in text
    assert "too few" not in text
    assert ", p " not in text
