"""The road of a synthetic drive and the driver who follows it: all that the label depends on.

The road is a curve in the plane, given by its curvature over its length: straights, clothoids and
arcs. The driver sees the lane between `PREVIEW_NEAR_M` and the look-ahead distance and steers along
the arc that fits its centre best. Positions on the road are (s, d): metres along the centre line,
metres to the left of it. Curvatures are in 1/m, positive to the left; headings in rad, positive
to the left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

GRID_M = 0.5
"""Spacing of the samples along a road."""
LANE_WIDTH_M = 3.5
LANE_CENTRE_M = -LANE_WIDTH_M / 2
"""Traffic keeps to the right."""
PREVIEW_NEAR_M = 2.5
"""Where the driver's preview begins, on the road ahead of the camera: below the picture."""

_PREVIEW_POINTS = 8
_HEADWAY_S = 1.15
_LOOK_AHEAD_M = (12.0, 26.0)
_STEERING_LAG_S = 0.12
_LATERAL_ACCELERATION = 2.3
_ACCELERATION, _BRAKING = 1.1, 1.6


@dataclass(frozen=True, kw_only=True, eq=False)
class Road:
    """A road sampled every `GRID_M` metres from s = 0. The plane is x, y; `elevation_m` is its height."""

    curvature: Float64[np.ndarray, " N"]
    heading_rad: Float64[np.ndarray, " N"]
    x_m: Float64[np.ndarray, " N"]
    y_m: Float64[np.ndarray, " N"]
    elevation_m: Float64[np.ndarray, " N"]

    @property
    def length_m(self) -> float:
        return (len(self.curvature) - 1) * GRID_M

    def at(self, values: Float64[np.ndarray, " N"], s_m: float) -> float:
        """One of the road's own arrays, interpolated at s; its end value beyond the ends."""
        return float(_interpolated(values, s_m))


def road_from_knots(
    s_m: Sequence[float],
    curvature: Sequence[float],
    *,
    length_m: float,
    heading_rad: float = 0.0,
    hills: Sequence[tuple[float, float, float]] = (),
) -> Road:
    """A road whose curvature is linear between knots, that is of straights, arcs and clothoids.

    Args:
        s_m: where the knots are, increasing; the end values hold outside.
        curvature: at each knot, 1/m.
        length_m: of the road.
        heading_rad: at s = 0.
        hills: (steepest grade, wavelength in m, phase in rad) of sine waves that add up to the elevation.
    """
    grid = np.arange(int(np.ceil(length_m / GRID_M)) + 1) * GRID_M
    bend = np.interp(grid, s_m, curvature)
    heading = heading_rad + _integral(bend)
    between = (heading[1:] + heading[:-1]) / 2
    elevation = np.zeros_like(grid)
    for grade, wavelength_m, phase in hills:
        wave_number = 2 * np.pi / wavelength_m
        elevation += grade / wave_number * np.sin(wave_number * grid + phase)
    return Road(
        curvature=bend,
        heading_rad=heading,
        x_m=np.concatenate([[0.0], np.cumsum(np.cos(between)) * GRID_M]),
        y_m=np.concatenate([[0.0], np.cumsum(np.sin(between)) * GRID_M]),
        elevation_m=elevation,
    )


def _integral(values: Float64[np.ndarray, " N"]) -> Float64[np.ndarray, " N"]:
    return np.concatenate([[0.0], np.cumsum((values[1:] + values[:-1]) / 2) * GRID_M])


def winding_road(rng: np.random.Generator, length_m: float) -> Road:
    """A country road: bends of 75 to 350 m radius to both sides, straights between, gentle hills.

    A longer road of the same generator begins with the shorter one.
    """
    start_heading = rng.uniform(-np.pi, np.pi)
    hills = [
        (rng.uniform(0.006, 0.014), wavelength, rng.uniform(0, 2 * np.pi))
        for wavelength in (290.0, 530.0, 970.0)
    ]
    s_m, curvature = [rng.uniform(10.0, 40.0)], [0.0]
    side = rng.choice([-1.0, 1.0])
    while s_m[-1] < length_m:
        radius_m = np.exp(rng.uniform(np.log(75.0), np.log(350.0)))
        transition_m = rng.uniform(25.0, 50.0)
        turn_rad = rng.uniform(0.25, 1.25)
        arc_m = min(max(turn_rad * radius_m - transition_m, 5.0), 130.0)
        straight_m = rng.uniform(10.0, 110.0)
        s_m.extend(s_m[-1] + np.cumsum([transition_m, arc_m, transition_m, straight_m]))
        curvature.extend([side / radius_m, side / radius_m, 0.0, 0.0])
        side *= rng.choice([-1.0, 1.0], p=[0.7, 0.3])
    return road_from_knots(s_m, curvature, length_m=length_m, heading_rad=start_heading, hills=hills)


def planned_speed(road: Road, *, fastest_mps: float) -> Float64[np.ndarray, " N"]:
    """The speed at each sample of the road: slower in bends, braking before, accelerating after them."""
    tightest = np.maximum(np.abs(road.curvature), 1e-6)
    squared = np.minimum(_LATERAL_ACCELERATION / tightest, fastest_mps**2).tolist()
    for index in range(len(squared) - 2, -1, -1):
        squared[index] = min(squared[index], squared[index + 1] + 2 * _BRAKING * GRID_M)
    for index in range(1, len(squared)):
        squared[index] = min(squared[index], squared[index - 1] + 2 * _ACCELERATION * GRID_M)
    return np.sqrt(np.array(squared))


@dataclass(frozen=True, kw_only=True, eq=False)
class Motion:
    """The car at each tick. `curvature` is what the driver steers, so the label."""

    s_m: Float64[np.ndarray, " K"]
    d_m: Float64[np.ndarray, " K"]
    yaw_rad: Float64[np.ndarray, " K"]
    """Heading against the road's."""
    speed_mps: Float64[np.ndarray, " K"]
    curvature: Float64[np.ndarray, " K"]
    look_ahead_m: Float64[np.ndarray, " K"]
    """How far the driver looks, along the road."""


def follow(
    road: Road,
    speed_mps: Float64[np.ndarray, " N"],
    *,
    tick_s: float,
    drift_rad_per_s: Float64[np.ndarray, " K"],
    start_m: float = 0.0,
) -> Motion:
    """Drives the lane with a kinematic car, one tick for each value of the drift.

    The wanted curvature is the least-squares arc kappa through the preview points of the lane
    centre, y = kappa r^2 / 2, where r is a point's distance from the car and y how far left of the
    car's axis it lies; one point alone would be pure pursuit. The hand follows with a lag of
    `_STEERING_LAG_S`. The drift turns the car as crosswind and camber do, so that it leaves the lane
    centre and the driver has something to correct.

    Args:
        road: it must reach `_LOOK_AHEAD_M` beyond the last tick.
        speed_mps: at the road's samples.
        tick_s: length of a tick.
        drift_rad_per_s: added to the yaw rate.
        start_m: where on the road the first tick is.
    """
    look_ahead = np.clip(_HEADWAY_S * speed_mps, *_LOOK_AHEAD_M)
    preview = _preview_points(road, look_ahead)
    states = np.empty((len(drift_rad_per_s), 6))
    s, d, yaw = start_m, LANE_CENTRE_M, 0.0
    curvature = _fitted_arc(_interpolated(preview, s), d, yaw)
    for tick, drift in enumerate(drift_rad_per_s.tolist()):
        speed = road.at(speed_mps, s)
        wanted = _fitted_arc(_interpolated(preview, s), d, yaw)
        curvature += (wanted - curvature) * (1.0 - np.exp(-tick_s / _STEERING_LAG_S))
        states[tick] = s, d, yaw, speed, curvature, road.at(look_ahead, s)
        bend = road.at(road.curvature, s)
        along = speed * np.cos(yaw) / (1.0 - bend * d)
        d += speed * np.sin(yaw) * tick_s
        yaw += (speed * curvature + drift - bend * along) * tick_s
        s += along * tick_s
    columns = np.ascontiguousarray(states.T)
    return Motion(
        s_m=columns[0],
        d_m=columns[1],
        yaw_rad=columns[2],
        speed_mps=columns[3],
        curvature=columns[4],
        look_ahead_m=columns[5],
    )


def _preview_points(road: Road, look_ahead_m: Float64[np.ndarray, " N"]) -> Float64[np.ndarray, "N 2 P"]:
    """The lane centre ahead of each sample of the road, in the sample's own axes (ahead, left)."""
    s = np.arange(len(road.curvature)) * GRID_M
    step = np.linspace(0.0, 1.0, _PREVIEW_POINTS)
    ahead = s[:, None] + PREVIEW_NEAR_M + (look_ahead_m[:, None] - PREVIEW_NEAR_M) * step
    heading = np.interp(ahead, s, road.heading_rad)
    dx = np.interp(ahead, s, road.x_m) - LANE_CENTRE_M * np.sin(heading) - road.x_m[:, None]
    dy = np.interp(ahead, s, road.y_m) + LANE_CENTRE_M * np.cos(heading) - road.y_m[:, None]
    cos, sin = np.cos(road.heading_rad)[:, None], np.sin(road.heading_rad)[:, None]
    return np.stack([dx * cos + dy * sin, dy * cos - dx * sin], axis=1)


def _interpolated(values: Float64[np.ndarray, "N *rest"], s_m: float) -> Float64[np.ndarray, "*rest"]:
    place = min(max(s_m / GRID_M, 0.0), len(values) - 1.000001)
    index = int(place)
    weight = place - index
    return values[index] * (1.0 - weight) + values[index + 1] * weight


def _fitted_arc(points: Float64[np.ndarray, "2 P"], d_m: float, yaw_rad: float) -> float:
    """The arc from the car, at (0, d) with its yaw, that comes closest to the points."""
    ahead, left = points[0], points[1] - d_m
    offset = left * np.cos(yaw_rad) - ahead * np.sin(yaw_rad)
    half_square = (ahead**2 + left**2) / 2
    return float(offset @ half_square / (half_square @ half_square))
