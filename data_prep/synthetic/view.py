"""The pinhole camera, and which spot of the road each of its pixels sees.

Car axes: X ahead, Y left, Z up, in metres, with the origin on the road surface below the camera. Image
axes: u to the right, v down, in pixels; pixel (row, column) has its centre at v = row + 0.5,
u = column + 0.5. The optical axis is parallel to the road below the car; the horizon of that plane
stands at `Camera.horizon_v`, so the picture is a crop of a larger one and not a tilted one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int

from data_prep.synthetic.road import GRID_M, Road

_BEHIND_M, _AHEAD_M = 30.0, 420.0
_NEAREST_M = 1.5
_OFF_ROAD_M = 60.0
"""Stands for the lateral position of a spot too far around a bend to be placed beside the road."""


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A camera looking ahead, 60 degrees wide, 1.35 m over the road."""

    height: int
    """Pixels."""
    width: int
    """Pixels."""
    mounted_m: float = 1.35

    @property
    def focal_px(self) -> float:
        return self.width * 0.8660254

    @property
    def horizon_v(self) -> float:
        return 0.42 * self.height

    def project(
        self,
        ahead_m: Float64[np.ndarray, "*N"],
        left_m: Float64[np.ndarray, "*N"],
        up_m: Float64[np.ndarray, "*N"],
    ) -> tuple[Float64[np.ndarray, "*N"], Float64[np.ndarray, "*N"]]:
        """Image points (u, v) of points in car axes; `ahead_m` must be positive."""
        scale = self.focal_px / ahead_m
        return self.width / 2 - left_m * scale, self.horizon_v + (self.mounted_m - up_m) * scale


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Where the car is on its road, and how the body pitches on its springs."""

    s_m: float
    d_m: float
    yaw_rad: float
    pitch_rad: float = 0.0
    """Positive with the nose down; small."""


class View:
    """The road as seen from one pose: its centre line in car axes, and points on and beside it."""

    def __init__(self, road: Road, pose: Pose, camera: Camera) -> None:
        first = max(int((pose.s_m - _BEHIND_M) / GRID_M), 0)
        part = slice(first, int((pose.s_m + _AHEAD_M) / GRID_M))
        self.pose, self.camera = pose, camera
        self.heading_rad = road.at(road.heading_rad, pose.s_m) + pose.yaw_rad
        """Of the car, in the plane."""
        self._first_s_m = first * GRID_M
        own = road.at(road.heading_rad, pose.s_m)
        dx = road.x_m[part] - (road.at(road.x_m, pose.s_m) - pose.d_m * np.sin(own))
        dy = road.y_m[part] - (road.at(road.y_m, pose.s_m) + pose.d_m * np.cos(own))
        cos, sin = np.cos(self.heading_rad), np.sin(self.heading_rad)
        self._ahead_m = dx * cos + dy * sin
        self._left_m = dy * cos - dx * sin
        self._turn_rad = road.heading_rad[part] - self.heading_rad
        self._curvature = road.curvature[part]
        self._s_m = self._first_s_m + np.arange(len(self._ahead_m)) * GRID_M
        before, here, after = (road.at(road.elevation_m, pose.s_m + step) for step in (-1.0, 0.0, 1.0))
        self.grade = (after - before) / 2.0
        """Of the road under the car, positive uphill."""
        self._up_m = road.elevation_m[part] - here - self.grade * (self._s_m - pose.s_m)
        self._rows = self._row_table()

    @property
    def pitch_px(self) -> float:
        """How far the picture moves up as the nose goes down."""
        return self.pose.pitch_rad * self.camera.focal_px

    @property
    def horizon_v(self) -> float:
        """Image row of far level land, not of the slope under the car."""
        return self.camera.horizon_v - self.pitch_px + self.grade * self.camera.focal_px

    def place(
        self, s_m: Float64[np.ndarray, "*N"], d_m: Float64[np.ndarray, "*N"]
    ) -> tuple[
        Float64[np.ndarray, "*N"],
        Float64[np.ndarray, "*N"],
        Float64[np.ndarray, "*N"],
        Float64[np.ndarray, "*N"],
    ]:
        """Ahead, left and up of spots (s, d) in car axes, and the road's heading there against the car's."""
        turn = np.interp(s_m, self._s_m, self._turn_rad)
        ahead = np.interp(s_m, self._s_m, self._ahead_m) - d_m * np.sin(turn)
        left = np.interp(s_m, self._s_m, self._left_m) + d_m * np.cos(turn)
        return ahead, left, self.land_m(ahead), turn

    def land_m(self, ahead_m: Float64[np.ndarray, "*N"]) -> Float64[np.ndarray, "*N"]:
        """Height of the land over the car's own plane: it rises and falls with the distance ahead alone."""
        return np.interp(ahead_m + self.pose.s_m, self._s_m, self._up_m)

    def project(
        self,
        ahead_m: Float64[np.ndarray, "*N"],
        left_m: Float64[np.ndarray, "*N"],
        up_m: Float64[np.ndarray, "*N"],
    ) -> tuple[Float64[np.ndarray, "*N"], Float64[np.ndarray, "*N"]]:
        """Image points of points in car axes; what is behind or beside the camera is drawn to the front of it."""
        u, v = self.camera.project(np.maximum(ahead_m, _NEAREST_M), left_m, up_m)
        return u, v - self.pitch_px

    def hidden_below(self, ahead_m: Float64[np.ndarray, "*N"]) -> Float64[np.ndarray, "*N"]:
        """The image row below which nearer land hides what stands at a distance."""
        distance, row = self._rows
        return np.interp(ahead_m, distance, row)

    def ground(self) -> Ground:
        """Looks up the spot of the ground behind every pixel below the land's horizon."""
        distance, row = self._rows
        centres = np.arange(self.camera.height) + 0.5
        top = int(np.searchsorted(centres, row[-1]))
        ahead = np.interp(centres[top:], row[::-1], distance[::-1])
        return self._ground_at(top, ahead)

    def _row_table(self) -> tuple[Float64[np.ndarray, " D"], Float64[np.ndarray, " D"]]:
        """Distances, and the image row of the land at each, where nearer crests hide what is lower."""
        distance = np.geomspace(_NEAREST_M, 0.9 * _AHEAD_M, 400)
        _, row = self.project(distance, np.zeros_like(distance), self.land_m(distance))
        return distance, np.minimum.accumulate(row)

    def _ground_at(self, top: int, ahead: Float64[np.ndarray, " R"]) -> Ground:
        focal_px = np.float32(self.camera.focal_px)
        depth = ahead.astype(np.float32)[:, None]
        columns = np.arange(self.camera.width, dtype=np.float32) + np.float32(0.5)
        left = (self.camera.width / 2 - columns) * depth / focal_px
        line = (self._ahead_m, self._left_m, np.cos(self._turn_rad), np.sin(self._turn_rad), self._curvature)
        tables = [column.astype(np.float32) for column in line]
        start = np.searchsorted(np.maximum.accumulate(self._ahead_m), ahead)
        near = np.repeat(start[:, None], self.camera.width, axis=1)
        for _ in range(2):
            near = self._nearer(near, depth, left, tables)
        along, lateral = _beside(near, depth, left, tables)
        turn_cos, turn_sin = np.abs(tables[2][near]), np.abs(tables[3][near])
        across_px = depth / focal_px
        down_px = np.abs(np.gradient(ahead)).astype(np.float32)[:, None] if len(ahead) > 1 else across_px
        return Ground(
            top=top,
            ahead_m=depth,
            s_m=near.astype(np.float32) * np.float32(GRID_M)
            + along
            + np.float32(self._first_s_m - self.pose.s_m),
            d_m=np.where(np.abs(along) < 2.0, lateral, np.float32(_OFF_ROAD_M)),
            pixel_s_m=across_px * turn_sin + down_px * turn_cos,
            pixel_d_m=across_px * turn_cos + down_px * turn_sin,
        )

    def _nearer(
        self,
        near: Int[np.ndarray, "R W"],
        depth: Float32[np.ndarray, "R 1"],
        left: Float32[np.ndarray, "R W"],
        tables: list[Float32[np.ndarray, " N"]],
    ) -> Int[np.ndarray, "R W"]:
        """One Newton step from a sample of the centre line towards the one nearest to the spot."""
        near = np.clip(near, 0, len(self._s_m) - 1)
        along, lateral = _beside(near, depth, left, tables)
        stretch = np.maximum(1.0 - tables[4][near] * lateral, np.float32(0.4))
        step = np.rint(along / (stretch * np.float32(GRID_M))).astype(np.int64)
        return np.clip(near + step, 0, len(self._s_m) - 1)


def _beside(
    near: Int[np.ndarray, "R W"],
    depth: Float32[np.ndarray, "R 1"],
    left: Float32[np.ndarray, "R W"],
    tables: list[Float32[np.ndarray, " N"]],
) -> tuple[Float32[np.ndarray, "R W"], Float32[np.ndarray, "R W"]]:
    """A spot in the axes of a sample of the centre line: metres along it and to the left of it."""
    dx, dy = depth - tables[0][near], left - tables[1][near]
    cos, sin = tables[2][near], tables[3][near]
    return dx * cos + dy * sin, dy * cos - dx * sin


@dataclass(frozen=True, kw_only=True, eq=False)
class Ground:
    """What each pixel from row `top` down sees of the ground."""

    top: int
    ahead_m: Float32[np.ndarray, "R 1"]
    s_m: Float32[np.ndarray, "R W"]
    """Along the road, from the car."""
    d_m: Float32[np.ndarray, "R W"]
    """To the left of the centre line."""
    pixel_s_m: Float32[np.ndarray, "R W"]
    """How much of the road one pixel covers along it."""
    pixel_d_m: Float32[np.ndarray, "R W"]
    """How much of the road one pixel covers across it."""

    def stripe(self, centre_m: float, half_width_m: float) -> Float32[np.ndarray, "R W"]:
        """The share of each pixel that a stripe along the road covers, 0 to 1."""
        return _covered(self.d_m - np.float32(centre_m), half_width_m, self.pixel_d_m)

    def stripes(self, centre_m: float, half_width_m: float) -> Float32[np.ndarray, "R W"]:
        """As `stripe`, for two stripes, each as far from the centre line as the other."""
        return _covered(np.abs(self.d_m) - np.float32(centre_m), half_width_m, self.pixel_d_m)

    def dashes(self, phase_m: float, *, period_m: float, dash_m: float) -> Float32[np.ndarray, "R W"]:
        """The share of each pixel that dashes across the whole road cover, 0 to 1."""
        period = np.float32(period_m)
        place = self.s_m + np.float32(phase_m)
        # Floor and subtract: NumPy's remainder takes a hundred times as long.
        offset = place - period * np.floor(place / period) - period / 2
        return _covered(offset, dash_m / 2, np.minimum(self.pixel_s_m, period))

    def within(
        self, centre_m: float, half_width_m: float, *, fewest_pixels: float
    ) -> Bool[np.ndarray, "R W"]:
        """Pixels whose centre lies on a stripe, made no narrower than a number of pixels."""
        half_width = np.maximum(np.float32(half_width_m), self.pixel_d_m * np.float32(fewest_pixels / 2))
        return np.abs(self.d_m - np.float32(centre_m)) <= half_width


def _covered(
    offset: Float32[np.ndarray, "R W"], half_width_m: float, pixel: Float32[np.ndarray, "R W"]
) -> Float32[np.ndarray, "R W"]:
    """Overlap of [offset - pixel/2, offset + pixel/2] with [-half_width, half_width], over the pixel."""
    width = np.float32(2 * half_width_m)
    inside = np.float32(half_width_m) + pixel / 2 - np.abs(offset)
    return np.clip(inside / pixel, 0.0, np.minimum(1.0, width / pixel))
