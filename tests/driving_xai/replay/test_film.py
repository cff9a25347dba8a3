"""Films of several methods or models: side by side, at a size, with cards, under names."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from driving_xai.checkpoint import Checkpoint
from driving_xai.errors import DataError, OptionError
from driving_xai.evaluation.results import Results
from driving_xai.replay.config import ReplayConfig
from driving_xai.replay.film import Film, Side, columns_of
from driving_xai.replay.layout import Column, Panel, Row, place
from driving_xai.replay.player import replay
from driving_xai.replay.sink import Encoding, open_sink

from .conftest import FRAMES

FAST = {"preset": "ultrafast", "crf": 28}
RNG = np.random.default_rng(0)


def noise(height: int, width: int) -> np.ndarray:
    return RNG.integers(60, 256, (height, width, 3), dtype=np.uint8)


def pictures(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize("width", [97, 640, 1001])
def test_a_layout_is_covered_by_its_panels_edge_to_edge(width: int) -> None:
    layout = Column((Panel("a", 0.7), Row((Panel("b", 0.5), Panel("c", 0.31), Panel("d", 2.0)))))
    covered = np.zeros((round(width * layout.proportion), width), int)
    for left, top, wide, high in place(layout, width).values():
        covered[top : top + high, left : left + wide] += 1
    assert (covered[:-1, :-1] == 1).all(), "nothing twice, nothing left out"


class TestFilm:
    def test_one_picture_of_the_right_size_is_left_as_it_is(self) -> None:
        picture = noise(48, 64)
        assert Film([Side("a", 48, 64)], layout="overlay").compose([picture]) is picture

    @pytest.mark.parametrize("count", [2, 3, 4, 5])
    def test_pictures_stand_side_by_side_at_their_own_size(self, count: int) -> None:
        film = Film([Side(f"side {at}", 480, 640) for at in range(count)], layout="overlay")
        drawn = [noise(480, 640) for _ in range(count)]
        whole = film.compose(drawn)
        assert whole.shape == (film.height, film.width, 3)
        assert film.width == 640 * columns_of("overlay", count)
        for each in drawn:
            first = np.flatnonzero((whole[:, :, 0] == each[0, 0, 0]).ravel())
            found = [divmod(int(at), film.width) for at in first]
            assert any(np.array_equal(whole[y : y + 480, x : x + 640], each) for y, x in found)

    @pytest.mark.parametrize("size", [(1281, 721), (120, 120), (121, 999), (2000, 300)])
    def test_any_size_has_all_of_the_picture_in_its_middle(self, size: tuple[int, int]) -> None:
        film = Film([Side("a", 480, 640)], layout="overlay", size=size)
        whole = film.compose([np.full((480, 640, 3), 200, np.uint8)])
        assert whole.shape == (size[1], size[0], 3)
        rows, columns = np.nonzero(whole[:, :, 0] > 100)
        high, wide = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert wide / high == pytest.approx(4 / 3, rel=0.03)
        assert high == size[1] or wide == size[0]
        assert abs((rows.min() + rows.max()) / 2 - (size[1] - 1) / 2) <= 1

    def test_a_card_holds_its_text_however_small_it_is(self) -> None:
        text = ["No evidence that the highlighted pixels matter more than random ones. " * 3] * 4
        for height, width in ((480, 640), (1384, 720), (120, 160)):
            film = Film([Side("a", height, width)], layout="overlay")
            card = film.card("What this drive shows " * 9, text)
            assert card.shape == (height, width, 3)
            written = (card > 60).any(2)
            assert written.any()
            if width > 400:
                edge = round(0.03 * width)
                assert not written[:edge].any()
                assert not written[-edge:].any()
                assert not written[:, -edge:].any()

    def test_too_many_pictures_are_refused(self) -> None:
        with pytest.raises(OptionError, match="got 7 pictures to show side by side, expected 6 at most"):
            columns_of("grid", 7)


def test_a_held_picture_comes_between_and_moves_what_follows(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    with open_sink(path, height=32, width=32, frame_rate=Fraction(10), encoding=Encoding()) as sink:
        sink.hold(np.full((32, 32, 3), 250, np.uint8), for_s=0.5)
        for number in range(4):
            sink.write(np.zeros((32, 32, 3), np.uint8), at_ns=(7 + number) * 10**8)
        sink.hold(np.full((32, 32, 3), 250, np.uint8), for_s=0.3)
        assert sink.frames == 4
        assert sink.starts_s == [0.5, 0.6, 0.7, 0.8]
    assert [bool(each.mean() > 100) for each in pictures(path)] == [True] * 5 + [False] * 4 + [True] * 3


def test_methods_stand_side_by_side_with_the_scores_that_each_has_alone(
    checkpoint: Checkpoint, recording: Path, tmp_path: Path
) -> None:
    how = {**FAST, "control_every": 2}
    both = replay(
        checkpoint, recording, tmp_path / "both.mp4",
        ReplayConfig(**how, method="sign-attention", compared=("gradient",), original=True),
    )  # fmt: skip
    assert both.summary is not None
    assert both.summary["plan"]["config"]["methods"] == ["sign-attention", "gradient"]
    found = Results.load(tmp_path / "both.scores")
    for method in ("sign-attention", "gradient"):
        replay(checkpoint, recording, tmp_path / "one.mp4", ReplayConfig(**how, method=method))
        alone = Results.load(tmp_path / "one.scores")
        for name in (method, "random"):
            for reference in ("truth", "clean"):
                of = {"method": name, "measure": "deletion", "reference": reference}
                ours, theirs = found.select(**of), alone.select(**of)
                assert ours["frame"].tolist() == theirs["frame"].tolist()
                np.testing.assert_allclose(ours["value"], theirs["value"], rtol=1e-5)
    one, side = pictures(tmp_path / "one.mp4"), pictures(both.video)
    assert len(side) == len(one) == FRAMES
    assert side[0].shape[1] == 3 * one[0].shape[1]


def test_two_models_have_a_folder_of_scores_each_and_are_compared_at_the_end(
    make_checkpoint: Callable[..., Checkpoint],
    recording: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cards: list[Sequence[str]] = []
    drawn = Film.card
    monkeypatch.setattr(
        Film, "card", lambda film, heading, text: (cards.append(text), drawn(film, heading, text))[1]
    )
    first, second = make_checkpoint(), make_checkpoint(attention="soft")
    made = replay(
        first, recording, tmp_path / "drive.mp4", ReplayConfig(**FAST, end_s=0.3, cards=True, mb=1.0),
        others=[second], labels=["before", "<b>after</b> 😀\n"],
    )  # fmt: skip
    assert made.all_scores == (tmp_path / "drive.scores", tmp_path / "drive.2.scores")
    plans = [Results.load(folder).summary["plan"] for folder in made.all_scores]
    assert [plan["checkpoint_sha256"] for plan in plans] == [first.sha256, second.sha256]
    assert [plan["config"]["method"] for plan in plans] == ["sign-attention", "soft-attention"]
    videos = [Results.load(folder).summary["video"] for folder in made.all_scores]
    assert videos[0]["sha256"] == videos[1]["sha256"]
    assert made.video.stat().st_size < 1e6
    _, end = cards
    assert end[0].startswith("before: ")
    assert end[1].startswith("<b>after</b>")
    assert any("the errors of before and <b>after</b>" in sentence for sentence in end[2:])


def test_labels_are_one_for_each(checkpoint: Checkpoint, recording: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="got 1 labels for 2 models, expected one for each"):
        replay(checkpoint, recording, tmp_path / "a.mp4", others=[checkpoint], labels=["one"])
    assert not list(tmp_path.iterdir())


def test_cards_stand_before_and_after_and_results_know_where_the_drive_begins(
    checkpoint: Checkpoint, recording: Path, tmp_path: Path
) -> None:
    made = replay(
        checkpoint, recording, tmp_path / "a.mp4", ReplayConfig(**FAST, cards=True, title="A <i>drive</i>")
    )
    plain = replay(checkpoint, recording, tmp_path / "b.mp4", ReplayConfig(**FAST))
    assert made.summary is not None
    assert plain.summary is not None
    starts = made.summary["video"]["starts_s"]
    seen, drive = pictures(made.video), pictures(plain.video)
    first = round(starts[0] * 20)
    assert len(starts) == FRAMES
    assert first >= 2.5 * 20
    for number, expected in enumerate(drive):
        assert np.abs(seen[first + number].astype(int) - expected).mean() < 8
    assert len(seen) - first - FRAMES >= 4 * 20
    assert seen[-1].mean() < 60, "a card"
    assert made.summary["scores"] == plain.summary["scores"]
    with av.open(str(plain.video)) as container:
        config = json.loads(container.metadata["comment"])["config"]
    assert not {"cards", "title", "size", "layout", "original", "compared"} & set(config), "as it was before"


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"size": (119, 500)}, "got size 119x500, expected 120 to 8192 pixels each way"),
        ({"size": (640, 9000)}, "expected 120 to 8192"),
        ({"method": "gradient", "compared": ("gradient",)}, "twice"),
        ({"compared": ("random",)}, "random is what every method is compared with"),
        ({"horizon": 5.0}, "got horizon 5.0, expected 0 to below 1"),
        ({"seed": -1}, "seed is -1; expected"),
    ],
)
def test_what_makes_no_film_is_refused(how: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ReplayConfig(**how)


def test_a_layout_of_another_task_and_a_method_named_twice_are_refused(
    checkpoint: Checkpoint, recording: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        OptionError, match="layout grid is not for models of steering; expected one of: overlay"
    ):
        replay(checkpoint, recording, tmp_path / "a.mp4", ReplayConfig(layout="grid"))
    with pytest.raises(OptionError, match="got method 'sign-attention' twice"):
        replay(checkpoint, recording, tmp_path / "a.mp4", ReplayConfig(compared=("sign-attention",)))


def test_models_that_cannot_play_the_same_frames_are_refused(
    checkpoint: Checkpoint, recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from driving_xai.replay import session

    opened, real = [], session.open_source

    def shorter(*args: object, **how: object) -> object:
        frames = real(*args, **how)  # type: ignore[arg-type]
        opened.append(frames)
        if len(opened) > 1:
            object.__setattr__(frames, "index", frames.index[:-1])
        return frames

    monkeypatch.setattr(session, "open_source", shorter)
    with pytest.raises(DataError, match="choose a part that both play, with --start and --end"):
        replay(checkpoint, recording, tmp_path / "a.mp4", others=[checkpoint])
