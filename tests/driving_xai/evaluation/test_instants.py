"""Instants come with the state that the unedited frames before them left, however runs are batched."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch

from driving_xai.data.drives import Route, Run
from driving_xai.errors import UnsupportedModelError
from driving_xai.evaluation.instants import instants_of, rows_of_batches, walk


class Memory(NamedTuple):
    total: torch.Tensor
    steps: torch.Tensor


class Summing:
    """Remembers the sum of what it saw; its score is that sum with the frame."""

    def step(self, frames, state):
        seen = frames.sum((1, 2, 3), dtype=torch.float64)[:, None] * 255
        state = Memory(seen * 0, seen * 0) if state is None else state
        state = Memory(state.total + seen, state.steps + 1)
        return state.total, None, state


class NumberedRoute(Route):
    """Each frame shows its row's number; 200 frames in memory."""

    def __init__(self) -> None:
        self.index, self.reads = pd.DataFrame(), []

    def frames(self, rows):
        self.reads.append(len(rows))
        return torch.from_numpy(
            np.broadcast_to(rows[:, None, None, None], (len(rows), 3, 1, 1)).astype(np.uint8)
        )


RUNS = [
    Run(rows=np.arange(start, stop)) for start, stop in ((0, 5), (5, 6), (10, 90), (100, 131), (140, 145))
]


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 4, 7, 64])
def test_every_instant_comes_once_with_its_own_past(batch_size, every):
    found = {}
    for batch in walk(Summing(), NumberedRoute(), RUNS, batch_size=batch_size, every=every):
        assert 1 <= len(batch.rows) <= batch_size
        for row, frame, total, steps, clean in zip(
            batch.rows, batch.frames, batch.past.total, batch.past.steps, batch.clean, strict=True
        ):
            assert row not in found
            found[row] = (frame[0, 0, 0].item() * 255, total.item(), steps.item(), clean.item())
    expected = {}
    for run in RUNS:
        for t in range(every, len(run), every):
            before = 3 * int(run.rows[:t].sum())
            expected[run.rows[t]] = (run.rows[t], before, t, before + 3 * int(run.rows[t]))
    assert found.keys() == expected.keys()
    for row, values in expected.items():
        assert found[row] == pytest.approx(values, rel=1e-6)
    assert instants_of(RUNS, every) == len(expected)


class SummingWindows(Summing):
    """The same, several frames of each drive at once."""

    def __init__(self):
        self.taken = []

    def steps(self, windows, state):
        self.taken.append(windows.shape[:2])
        for frames in windows.unbind(1):
            found = self.step(frames, state)
            state = found[2]
            yield found


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_frames_are_encoded_together_and_nothing_changes(batch_size, every):
    model = SummingWindows()
    together = list(walk(model, NumberedRoute(), RUNS, batch_size=batch_size, every=every))
    alone = list(walk(Summing(), NumberedRoute(), RUNS, batch_size=batch_size, every=every))
    for ours, theirs in zip(together, alone, strict=True):
        for name in ("rows", "frames", "clean"):
            assert (getattr(ours, name) == getattr(theirs, name)).all()
        assert (ours.past.total == theirs.past.total).all()
    assert max(drives * frames for drives, frames in model.taken) <= batch_size
    assert sum(drives * frames for drives, frames in model.taken) <= sum(map(len, RUNS)), "each frame once"
    if batch_size == 64:
        # 80, 31, 5, 5 and 1 frames: all five runs for a frame, four until 5, two until 31, then one alone.
        assert len(model.taken) == 1 + 1 + 1 + 1


@pytest.mark.parametrize("batch_size", [8, 7, 64])
def test_batches_are_filled(batch_size):
    """80 frames beside 31 and 5 and 5: no batch but the last is a short one, however many runs are abreast."""
    sizes = [len(batch.rows) for batch in walk(Summing(), NumberedRoute(), RUNS, batch_size=batch_size)]
    whole, rest = divmod(instants_of(RUNS), batch_size)
    assert sizes == [batch_size] * whole + [rest] * (rest > 0)


def test_frames_are_read_in_stretches():
    route = NumberedRoute()
    list(walk(Summing(), route, RUNS, batch_size=8))
    assert max(route.reads) <= 64
    assert len(route.reads) == 6  # one each, and a second for the run of 80


def test_the_states_may_take_part_in_a_graph():
    batch = next(walk(Summing(), NumberedRoute(), RUNS, batch_size=4))
    assert not batch.past.total.is_inference()


class Nested(Summing):
    """The same memory in another form."""

    def __init__(self, form) -> None:
        self.form = form

    def step(self, frames, state):
        inner = None if state is None else Memory(*self.form[1](state))
        score, _, inner = super().step(frames, inner)
        return score, None, self.form[0](inner)


FORMS = {
    "tuple": (tuple, tuple),
    "list": (list, list),
    "dictionary": (lambda m: {"a": m.total, "b": [m.steps]}, lambda s: (s["a"], s["b"][0])),
    "tensor": (lambda m: torch.cat([m.total, m.steps], 1), lambda s: (s[:, :1], s[:, 1:])),
    "nest": (lambda m: (Memory(m.total, ()), {"s": m.steps}), lambda s: (s[0].total, s[1]["s"])),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_state_may_be_any_nest_of_tensors(form):
    def found(model, unpack):
        batches = walk(model, NumberedRoute(), RUNS, batch_size=4)
        return [(batch.rows.tolist(), *(each.tolist() for each in unpack(batch.past))) for batch in batches]

    assert found(Nested(form), form[1]) == found(Summing(), tuple)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (lambda memory: "remembered", "the model's state holds str; expected tensors in tuples, lists"),
        (lambda memory: {"steps": 3}, "the model's state holds int"),
        (
            lambda memory: memory.total.T[None],
            r"a tensor of shape \(1, 1, 4\) for 4 drives; expected the drives",
        ),
    ],
)
def test_what_is_no_nest_of_tensors_is_one_line(state, message):
    model = Nested((state, lambda given: given))
    with pytest.raises(UnsupportedModelError, match=message):
        next(walk(model, NumberedRoute(), RUNS, batch_size=4))


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 7, 64])
def test_batches_that_are_not_wanted_are_passed_over(batch_size, every):
    """The others are the same, and nothing is driven behind the last of them."""
    how = {"batch_size": batch_size, "every": every}
    whole = list(walk(Summing(), NumberedRoute(), RUNS, **how))
    planned = list(rows_of_batches(RUNS, **how))
    assert [rows.tolist() for rows in planned] == [batch.rows.tolist() for batch in whole]
    draw = np.random.default_rng(0)
    for wanted in (
        draw.random(len(whole)) < 0.3,
        np.arange(len(whole)) == 0,
        np.zeros(len(whole), dtype=bool),
    ):
        route = NumberedRoute()
        found = list(walk(Summing(), route, RUNS, **how, wanted=wanted.tolist()))
        expected = [batch for batch, is_wanted in zip(whole, wanted, strict=True) if is_wanted]
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.rows.tolist() == theirs.rows.tolist()
            assert torch.equal(ours.clean, theirs.clean)
            assert torch.equal(ours.past.total, theirs.past.total)
        assert wanted.any() or not route.reads


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
@pytest.mark.parametrize("window", [2, 5])
def test_windows_come_whole_and_each_frame_with_its_own_past(window, batch_size, every):
    how = {"batch_size": batch_size, "every": every, "window": window}
    found = list(walk(Summing(), NumberedRoute(), RUNS, **how))
    assert [batch.rows.tolist() for batch in found] == [
        rows.tolist() for rows in rows_of_batches(RUNS, **how)
    ]
    expected = {run.rows[t] for run in RUNS for t in range(1, len(run)) if t % every == 0 and t >= window}
    rows = [row for batch in found for row in batch.rows.tolist()]
    assert set(rows) == expected
    assert len(rows) == len(expected) == instants_of(RUNS, every, window)
    for batch in found:
        assert len(batch.earlier) == window - 1
        for back, before in enumerate(reversed(batch.earlier), start=1):
            assert (before.rows == batch.rows - back).all()
            seen = before.frames[:, 0, 0, 0] * 255
            assert torch.allclose(before.past.total[:, 0] + 3 * seen, before.clean[:, 0])
        start = batch.earlier[0].past
        again, _, _ = Summing().step(batch.earlier[0].frames, start)
        assert torch.equal(again, batch.earlier[0].clean)
