"""The synthetic drive: its label against geometry, its mask against the pinhole, its promises to workers."""

from __future__ import annotations

import hashlib
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.errors import DataError
from data_prep.schema import VEHICLES, Drive, ImageSource, MaskSource
from data_prep.signals import steering_wheel_rad, synchronise
from data_prep.synthetic import drives as synthetic
from data_prep.synthetic.drives import drives, recognises
from data_prep.synthetic.road import (
    GRID_M,
    LANE_CENTRE_M,
    LANE_WIDTH_M,
    Motion,
    Road,
    follow,
    planned_speed,
    road_from_knots,
    winding_road,
)
from data_prep.synthetic.scene import Scene, Trip
from data_prep.synthetic.surface import Markings
from data_prep.synthetic.view import Camera, Pose, View

SMALL = {"height": 120, "width": 160}
TICK_S = 1 / 40


def digest(source: ImageSource | MaskSource, start: int, stop: int) -> str:
    """Runs in a fresh process too, so it stands at the module's level."""
    return hashlib.sha256(b"".join(frame.tobytes() for frame in source.read(start, stop))).hexdigest()


def forget_scenes() -> None:
    synthetic._scene.cache_clear()
    synthetic._travel.cache_clear()


def wheel_at_frames(drive: Drive) -> np.ndarray:
    assert drive.steering_wheel is not None
    return synchronise(drive.steering_wheel, drive.time_ns, tolerance_s=0.0)


@pytest.fixture(scope="module")
def three_drives() -> list[Drive]:
    return drives("-", seconds=20.0, drives=3, seed=11, **SMALL)


# The label.


def steady(road: Road, *, speed_mps: float, drift: float = 0.0, ticks: int = 1200) -> Motion:
    speeds = np.full(len(road.curvature), speed_mps)
    return follow(road, speeds, tick_s=TICK_S, drift_rad_per_s=np.full(ticks, drift))


@pytest.mark.parametrize("radius_m", [80.0, 200.0, -80.0, -200.0])
def test_on_a_circle_the_wheel_angle_is_that_of_eq_3(radius_m: float) -> None:
    speed_mps = 15.0
    circle = road_from_knots([0.0], [1 / radius_m], length_m=700.0)
    motion = steady(circle, speed_mps=speed_mps)
    mkz = VEHICLES["lincoln-mkz"]
    wheel = steering_wheel_rad(motion.curvature, motion.speed_mps, mkz)

    lane_radius_m = radius_m - LANE_CENTRE_M  # the lane lies to the right: outside a left bend
    expected = mkz.wheelbase_m * mkz.steering_ratio * (1 + mkz.slip_s2_per_m2 * speed_mps**2) / lane_radius_m
    assert wheel[-1] == pytest.approx(expected, rel=1e-3)
    assert np.sign(wheel[-1]) == np.sign(radius_m)
    assert motion.d_m[-1] == pytest.approx(LANE_CENTRE_M, abs=2e-3)


def test_against_a_steady_drift_the_driver_holds_the_wheel() -> None:
    straight = road_from_knots([0.0], [0.0], length_m=700.0)
    motion = steady(straight, speed_mps=16.0, drift=0.02)
    assert motion.curvature[-1] == pytest.approx(-0.02 / 16.0, rel=1e-3)
    assert motion.d_m[-1] > LANE_CENTRE_M + 0.05, (
        "pushed to the left of the lane's centre, and steering right"
    )


@settings(max_examples=20, deadline=None)
@given(radius_m=st.floats(80.0, 1000.0), side=st.sampled_from([-1, 1]), speed_mps=st.floats(8.0, 20.0))
def test_nothing_beyond_the_look_ahead_distance_moves_the_label(
    radius_m: float, side: int, speed_mps: float
) -> None:
    bend = side / radius_m
    straight = road_from_knots([0.0], [0.0], length_m=200.0)
    look_ahead_m = steady(straight, speed_mps=speed_mps, ticks=1).look_ahead_m[0]
    later = road_from_knots([look_ahead_m + GRID_M, look_ahead_m + 10], [0.0, bend], length_m=200.0)
    sooner = road_from_knots([look_ahead_m / 2, look_ahead_m], [0.0, bend], length_m=200.0)

    assert steady(later, speed_mps=speed_mps, ticks=1).curvature[0] == pytest.approx(0.0, abs=1e-12)
    label = steady(sooner, speed_mps=speed_mps, ticks=1).curvature[0]
    assert 0.01 < label / bend < 1.0


def test_speed_is_that_of_a_careful_driver() -> None:
    road = winding_road(np.random.default_rng(3), 3000.0)
    speed = planned_speed(road, fastest_mps=20.0)
    acceleration = np.diff(speed**2) / (2 * GRID_M)
    assert speed.max() == pytest.approx(20.0)
    assert speed.min() > 8.0
    assert np.all(speed**2 * np.abs(road.curvature) <= 2.3 + 1e-9)
    assert acceleration.max() <= 1.1 + 1e-9
    assert acceleration.min() >= -1.6 - 1e-9


def test_roads_bend_both_ways_and_the_driver_stays_in_the_lane() -> None:
    for drive in drives("-", seconds=120.0, drives=3, seed=5):
        degrees = np.degrees(wheel_at_frames(drive))
        motion = synthetic._travel(drive.images.course).motion  # type: ignore[attr-defined]
        assert degrees.max() > 15
        assert degrees.min() < -15
        assert np.abs(degrees).max() < 90
        assert 0.05 < np.std(motion.d_m) < 0.4, "the lateral offset varies, so corrections are seen"
        assert np.abs(motion.d_m - LANE_CENTRE_M).max() < 0.9


def test_signals_hold_every_camera_time(three_drives: list[Drive]) -> None:
    for drive in three_drives:
        assert np.array_equal(drive.time_ns, np.arange(400) * 50_000_000)
        assert np.isfinite(wheel_at_frames(drive)).all()
        assert drive.speed is not None
        assert np.isfinite(synchronise(drive.speed, drive.time_ns, tolerance_s=0.0)).all()


# The picture's geometry.


@settings(max_examples=15, deadline=None)
@given(
    curvature=st.floats(-0.013, 0.013),
    d_m=st.floats(-2.4, -1.1),
    yaw_rad=st.floats(-0.05, 0.05),
    data=st.data(),
)
def test_ground_finds_the_spot_that_projects_to_the_pixel(
    curvature: float, d_m: float, yaw_rad: float, data: st.DataObject
) -> None:
    road = road_from_knots([0, 30, 60], [0, curvature, curvature], length_m=600.0, hills=[(0.01, 300.0, 1.0)])
    view = View(
        road, Pose(s_m=40.0, d_m=d_m, yaw_rad=yaw_rad, pitch_rad=0.002), Camera(height=120, width=160)
    )
    ground = view.ground()
    row = data.draw(st.integers(8, len(ground.s_m) - 1))
    column = data.draw(st.integers(0, 159))
    spot_s, spot_d = float(ground.s_m[row, column]), float(ground.d_m[row, column])
    if abs(spot_d) > 8.0:
        return  # grass, whose place beside a bend need not be exact
    ahead, left, up, _ = view.place(np.array([40.0 + spot_s]), np.array([spot_d]))
    u, v = view.project(ahead, left, up)
    assert u[0] == pytest.approx(column + 0.5, abs=0.35)
    assert v[0] == pytest.approx(ground.top + row + 0.5, abs=0.35)


def test_a_stripe_covers_its_own_width_at_every_distance() -> None:
    straight = road_from_knots([0.0], [0.0], length_m=600.0)
    ground = View(straight, Pose(s_m=40.0, d_m=0.0, yaw_rad=0.0), Camera(height=240, width=320)).ground()
    width_m = (ground.stripe(0.0, 0.06) * ground.pixel_d_m).sum(axis=1)
    assert width_m == pytest.approx(0.12, rel=1e-3), "also where the line is a fraction of a pixel wide"


def pinhole_mask(camera: Camera, markings: Markings, *, d_m: float, look_ahead_m: float) -> np.ndarray:
    """The borders of the own lane of a straight flat road, pixel by pixel."""
    centre_half_m = 0.24 if markings.centre == "double" else 0.135
    borders = ((0.0, centre_half_m), (-(LANE_WIDTH_M - 0.1), 0.135), (-markings.asphalt_m, 0.12))
    mask = np.zeros((camera.height, camera.width), bool)
    for row in range(camera.height):
        below = row + 0.5 - camera.horizon_v
        if below <= 0:
            continue
        ahead_m = camera.focal_px * camera.mounted_m / below
        if not 2.5 <= ahead_m <= look_ahead_m:
            continue
        pixel_m = ahead_m / camera.focal_px
        for column in range(camera.width):
            spot_m = d_m + (camera.width / 2 - column - 0.5) * pixel_m
            mask[row, column] = any(
                abs(spot_m - centre) <= max(half, 1.5 * pixel_m) for centre, half in borders
            )
    return mask


def test_mask_of_a_straight_flat_road_is_the_pinhole_projection() -> None:
    camera = Camera(height=240, width=320)
    markings = Markings(centre="double", is_yellow=True, shoulder_m=0.5)
    straight = road_from_knots([0.0], [0.0], length_m=600.0)
    ground = View(straight, Pose(s_m=40.0, d_m=-1.6, yaw_rad=0.0), camera).ground()
    mask = np.zeros((camera.height, camera.width), bool)
    in_range = (ground.s_m >= 2.5) & (ground.s_m <= 20.0)
    mask[ground.top :] = markings.own_lane(ground, 40.0) & in_range

    expected = pinhole_mask(camera, markings, d_m=-1.6, look_ahead_m=20.0)
    assert expected.sum() > 1500
    assert (mask ^ expected).sum() <= 0.01 * expected.sum(), "pixels on a border may round either way"


def test_no_distractor_is_ever_in_the_mask() -> None:
    """A whole scene with trees, shadows and traffic: its masks lie within the lane's borders."""
    camera = Camera(height=120, width=160)
    frames = 60
    straight = road_from_knots([0.0], [0.0], length_m=700.0)
    trip = Trip(
        road=straight,
        time_s=np.arange(frames) * 0.2,
        s_m=40.0 + 3.0 * np.arange(frames),
        d_m=np.full(frames, LANE_CENTRE_M),
        yaw_rad=np.zeros(frames),
        pitch_rad=np.zeros(frames),
        look_ahead_m=np.full(frames, 22.0),
    )
    for seed in range(4):
        scene = Scene(trip, camera, scenery_seed=(seed, 0), light_seed=(seed, 1))
        widest = pinhole_mask(camera, scene._markings, d_m=LANE_CENTRE_M, look_ahead_m=22.3)
        share = []
        for frame in range(0, frames, 6):
            causes = scene.causes(frame)
            assert (causes & ~widest).sum() <= 3
            share.append(causes.sum() / widest.sum())
        assert max(share) > (0.5 if scene._markings.centre == "dashed" else 0.95)


def test_dashed_centre_line_is_a_cause_where_it_is_painted() -> None:
    camera = Camera(height=240, width=320)
    markings = Markings(centre="dashed", is_yellow=False, shoulder_m=0.5)
    straight = road_from_knots([0.0], [0.0], length_m=600.0)
    shares = []
    for s_m in np.arange(40.0, 49.0, 1.5):
        ground = View(straight, Pose(s_m=s_m, d_m=-1.75, yaw_rad=0.0), camera).ground()
        near_line = (np.abs(ground.d_m) < 0.05) & (ground.s_m < 15.0)
        painted = markings.centre_cover(ground, s_m)[near_line] > 0.6
        causes = markings.own_lane(ground, s_m)[near_line]
        assert np.mean(painted == causes) > 0.97
        shares.append(causes.mean())
    assert np.mean(shares) == pytest.approx(0.5, abs=0.05), "half of a period is painted"


def test_mask_is_on_every_frame_and_never_in_the_sky(three_drives: list[Drive]) -> None:
    camera = Camera(height=120, width=160)
    # The farthest cause lies 26 m ahead; pitch and hills move that row by some 3 pixels.
    highest_row = camera.horizon_v + camera.focal_px * camera.mounted_m / 26.0 - 3.5
    for drive in three_drives:
        assert drive.causes is not None
        for frame in range(0, len(drive), 25):
            mask = next(drive.causes.read(frame, frame + 1))
            assert mask.dtype == bool
            assert mask.shape == (120, 160)
            assert mask.sum() > 60
            assert np.flatnonzero(mask.any(axis=1))[0] > highest_row


def test_positive_labels_are_bends_to_the_left_in_the_image(three_drives: list[Drive]) -> None:
    far_u, label = [], []
    for drive in three_drives:
        wheel = wheel_at_frames(drive)
        assert drive.causes is not None
        for frame in range(0, len(drive), 20):
            mask = next(drive.causes.read(frame, frame + 1))
            top = np.flatnonzero(mask.any(axis=1))[:4]
            right_border = np.median([np.flatnonzero(mask[row])[-1] for row in top])
            far_u.append(right_border)
            label.append(wheel[frame])
    assert np.corrcoef(far_u, label)[0, 1] < -0.8


# Promises to workers.


def test_same_seed_same_bytes_and_any_frame_by_itself(three_drives: list[Drive]) -> None:
    images = three_drives[1].images
    sequence = list(images.read(60, 70))
    forget_scenes()
    again = drives("-", seconds=20.0, drives=3, seed=11, **SMALL)[1]
    alone = next(again.images.read(67, 68))
    assert np.array_equal(alone, sequence[7])
    assert digest(again.images, 60, 70) == hashlib.sha256(b"".join(f.tobytes() for f in sequence)).hexdigest()
    assert not np.array_equal(sequence[0], sequence[1])


def test_drives_and_seeds_differ(three_drives: list[Drive]) -> None:
    other_seed = drives("-", seconds=20.0, drives=1, seed=12, **SMALL)
    everyone = [*three_drives, *other_seed]
    assert len({drive.name for drive in everyone}) == 4
    assert len({digest(drive.images, 5, 6) for drive in everyone}) == 4
    labels = [wheel_at_frames(drive) for drive in everyone]
    for index, mine in enumerate(labels):
        for theirs in labels[index + 1 :]:
            assert np.abs(mine - theirs).mean() > 0.02


def test_another_light_moves_neither_label_nor_cause() -> None:
    day, evening = (drives("-", seconds=5.0, seed=4, light_seed=light, **SMALL)[0] for light in (1, 2))
    assert np.array_equal(wheel_at_frames(day), wheel_at_frames(evening))
    assert day.causes is not None
    assert evening.causes is not None
    assert digest(day.causes, 0, 20) == digest(evening.causes, 0, 20)
    first, second = next(day.images.read(0, 1)), next(evening.images.read(0, 1))
    assert np.mean(first != second) > 0.8
    assert day.name != evening.name


def test_sources_are_small_and_render_the_same_in_a_fresh_process(three_drives: list[Drive]) -> None:
    drive = three_drives[0]
    assert drive.causes is not None
    assert len(pickle.dumps((drive.images, drive.causes))) < 1000
    here = [digest(drive.images, 31, 33), digest(drive.causes, 31, 33)]
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        there = list(pool.map(digest, [drive.images, drive.causes], [31, 31], [33, 33]))
    assert here == there


def test_any_size_shows_the_same_view() -> None:
    small, large = (
        drives("-", seconds=1.0, seed=2, height=height, width=width)[0]
        for height, width in ((120, 160), (240, 320))
    )
    assert small.causes is not None
    assert large.causes is not None
    fine = next(large.causes.read(0, 1)).reshape(120, 2, 160, 2).mean(axis=(1, 3))
    coarse = next(small.causes.read(0, 1))
    # The narrowest a border may be is 3 pixels of either size, so the coarse mask is the wider one.
    assert np.mean(coarse[fine >= 0.75]) > 0.97
    assert np.array_equal(wheel_at_frames(small), wheel_at_frames(large))


# Options.


def test_a_toml_file_replaces_the_arguments(tmp_path: Path) -> None:
    route = tmp_path / "route.toml"
    route.write_text("seconds = 2\ndrives = 2\nseed = 7\nheight = 60\nwidth = 80\n", encoding="utf-8")
    made = drives(route, seconds=50.0, rate_hz=10.0)
    assert [len(drive) for drive in made] == [20, 20]
    assert [drive.name for drive in made] == ["synthetic-7-0", "synthetic-7-1"]
    assert next(made[0].images.read(19, 20)).shape == (60, 80, 3)
    assert made[0].provenance["seconds"] == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("secs = 2", "unknown key 'secs'"),
        ("seconds = -1.0", "seconds is -1.0; expected a number"),
        ("seconds = nan", "seconds is nan"),
        ("drives = 1.5", "drives is 1.5; expected an integer"),
        ("drives = true", "drives is True"),
        ("width = 'wide'", "width is 'wide'"),
        ("seed = -1", "seed is -1"),
        ("seconds = [", "not TOML"),
    ],
)
def test_a_bad_route_is_told_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    route = tmp_path / "route.toml"
    route.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message.replace("[", r"\[")) as caught:
        drives(route)
    assert "\n" not in str(caught.value)
    assert not recognises(route)


def test_a_missing_route_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="pass a route's TOML file, or - for the defaults"):
        drives(tmp_path / "absent.toml")


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (0, 21), (5, 4)])
def test_frames_outside_the_drive_are_refused(start: int, stop: int) -> None:
    drive = drives("-", seconds=1.0, **SMALL)[0]
    assert drive.causes is not None
    for source in (drive.images, drive.causes):
        with pytest.raises(DataError, match="it has 20"):
            source.read(start, stop)


def test_recognises_a_route_and_nothing_else(tmp_path: Path) -> None:
    route, project = tmp_path / "route.toml", tmp_path / "pyproject.toml"
    route.write_text("seconds = 5.0\n", encoding="utf-8")
    project.write_text("[project]\nname = 'x'\n", encoding="utf-8")
    assert recognises(Path("-"))
    assert recognises(route)
    assert not recognises(project)
    assert not recognises(tmp_path)
    assert not recognises(tmp_path / "absent.toml")
