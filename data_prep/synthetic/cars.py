"""Other cars: their shapes, where they are at a time, and how one is drawn.

Cars keep to their lanes, so where they are says something of the road, as in life; they are no cause
of the label.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float64, Int32

from data_prep.synthetic.light import Light
from data_prep.synthetic.noise import wandering
from data_prep.synthetic.road import LANE_CENTRE_M, LANE_WIDTH_M
from data_prep.synthetic.roadside import Canvas, Cover, Rgb
from data_prep.synthetic.view import View

_SHIFT = 4
"""Fractional bits of OpenCV's polygon corners."""

_Corner = tuple[float, float, float]
"""Ahead, left and up in a car's own axes, in metres."""


@dataclass(frozen=True, kw_only=True)
class CarBody:
    """A car as a side profile, front to the right, drawn out over its width."""

    paint: Rgb
    profile_m: tuple[tuple[float, float], ...]
    """Corners (ahead, up) from the rear bumper's foot over the roof to the front bumper's foot."""
    glass: tuple[int, ...]
    """Edges of the profile, by the number of their first corner, that are windows."""
    width_m: float = 1.82


_SALOON = CarBody(
    paint=(0, 0, 0),
    profile_m=(
        (-2.2, 0.3),
        (-2.25, 0.9),
        (-1.7, 1.0),
        (-1.0, 1.42),
        (0.4, 1.44),
        (1.15, 0.98),
        (2.1, 0.8),
        (2.2, 0.3),
    ),
    glass=(2, 4),
)
_VAN = CarBody(
    paint=(0, 0, 0),
    profile_m=(
        (-2.3, 0.35),
        (-2.35, 1.05),
        (-2.2, 1.72),
        (0.5, 1.76),
        (1.25, 1.15),
        (2.15, 1.0),
        (2.25, 0.35),
    ),
    glass=(1, 3),
    width_m=1.9,
)
_PAINTS: tuple[Rgb, ...] = (
    (205, 208, 212), (150, 155, 160), (40, 42, 46), (150, 28, 30), (38, 62, 120), (225, 226, 224), (96, 104, 84),
)  # fmt: skip


def random_body(rng: np.random.Generator) -> CarBody:
    """A saloon or a van in a usual colour."""
    shape = _SALOON if rng.uniform() < 0.65 else _VAN
    return CarBody(
        paint=_PAINTS[int(rng.integers(len(_PAINTS)))],
        profile_m=shape.profile_m,
        glass=shape.glass,
        width_m=shape.width_m,
    )


@dataclass(frozen=True, kw_only=True)
class PlacedCar:
    """A car on the road; `towards` says whether it comes towards us."""

    body: CarBody
    s_m: float
    d_m: float
    towards: bool


class CarPainter:
    """Draws one car, seen from a pose, as a solid of flat faces."""

    def __init__(self, view: View, car: PlacedCar, *, light: Light) -> None:
        ahead, left, up, turn = view.place(np.array([car.s_m]), np.array([car.d_m]))
        self._view, self._body = view, car.body
        self._origin = np.array([ahead[0], left[0], up[0]])
        heading = turn[0] + (np.pi if car.towards else 0.0)
        self._axes = np.array([[np.cos(heading), np.sin(heading)], [-np.sin(heading), np.cos(heading)]])
        veil = float(light.veil(max(self.ahead_m, 0.0)))
        self._light, self._haze = light.upright * np.float32(1 - veil), light.haze * np.float32(255 * veil)
        self._towards = car.towards

    @property
    def ahead_m(self) -> float:
        """Of the middle of the car."""
        return float(self._origin[0])

    def paint(self, canvas: Canvas, cover: Cover) -> None:
        """Draws the shadow under the car, its far wheels, its faces from far to near, then details."""
        half = self._body.width_m / 2
        # Nearer land hides what is behind a crest; the near end of the car is 2.5 m nearer than its middle.
        crest = int(np.ceil(self._view.hidden_below(np.array(self.ahead_m - 2.5))))
        canvas, cover = canvas[: max(crest, 0)], cover[: max(crest, 0)]
        if not len(canvas):
            return
        self._shadow(canvas)
        side = half if self._toward_left() else -half
        self._wheels(canvas, cover, -side * 0.86)
        strips = [
            (float(np.linalg.norm(self._points([((x0 + x1) / 2, 0.0, (z0 + z1) / 2)])[0])), index)
            for index, ((x0, z0), (x1, z1)) in enumerate(
                zip(self._body.profile_m[:-1], self._body.profile_m[1:], strict=True)
            )
        ]
        for _, index in sorted(strips, reverse=True):
            self._strip(canvas, cover, index)
        self._side(canvas, cover, side)
        self._wheels(canvas, cover, side)
        self._lamps(canvas, cover)

    def _points(self, corners: list[_Corner]) -> Float64[np.ndarray, "N 3"]:
        """Corners in the car's own axes (ahead, left, up) to the camera car's."""
        own = np.array(corners)
        placed = own.copy()
        placed[:, :2] = own[:, :2] @ self._axes
        return placed + self._origin

    def _toward_left(self) -> bool:
        """Whether the camera sees the car's left side."""
        return bool(-self._origin[:2] @ self._axes[1] > 0)

    def _outline(self, corners: list[_Corner]) -> Int32[np.ndarray, "N 2"]:
        """Corners in the picture, as OpenCV's polygons take them."""
        points = self._points(corners)
        u, v = self._view.project(points[:, 0], points[:, 1], points[:, 2])
        return np.rint((np.stack([u, v], axis=1) - 0.5) * 2**_SHIFT).astype(np.int32)

    def _fill(self, canvas: Canvas, cover: Cover, corners: list[_Corner], rgb: Rgb, shade: float) -> None:
        outline = self._outline(corners)
        colour = np.array(rgb, np.float32) * shade * self._light + self._haze
        cv2.fillPoly(canvas, [outline], np.clip(colour, 0, 255).tolist(), cv2.LINE_AA, _SHIFT)
        cv2.fillPoly(cover, [outline], (255,), cv2.LINE_AA, _SHIFT)

    def _shadow(self, canvas: Canvas) -> None:
        """The shadow under the car."""
        half, reach = self._body.width_m / 2 + 0.12, 2.45
        outline = self._outline(
            [(-reach, -half, 0.0), (reach, -half, 0.0), (reach, half, 0.0), (-reach, half, 0.0)]
        )
        dark = np.zeros(canvas.shape[:2], np.uint8)
        cv2.fillPoly(dark, [outline], (190,), cv2.LINE_AA, _SHIFT)
        rows, columns = np.flatnonzero(dark.any(axis=1)), np.flatnonzero(dark.any(axis=0))
        if len(rows):
            box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            canvas[box] = canvas[box] * (1 - dark[box][..., None] / np.float32(255))

    def _strip(self, canvas: Canvas, cover: Cover, index: int) -> None:
        """One face across the car: bumper, boot, window, roof or bonnet."""
        (x0, z0), (x1, z1) = self._body.profile_m[index : index + 2]
        half = self._body.width_m / 2
        normal = np.array([-(z1 - z0), x1 - x0])
        centre = self._points([((x0 + x1) / 2, 0.0, (z0 + z1) / 2)])[0]
        outward = np.array([*(normal[0] * self._axes[0]), normal[1]])
        if outward @ (np.array([0.0, 0.0, self._view.camera.mounted_m]) - centre) <= 0:
            return
        top = max(float(normal[1] / np.hypot(*normal)), 0.0)
        inset0, inset1 = self._inset(z0), self._inset(z1)
        corners = [
            (x0, -half + inset0, z0),
            (x1, -half + inset1, z1),
            (x1, half - inset1, z1),
            (x0, half - inset0, z0),
        ]
        is_glass = index in self._body.glass
        self._fill(canvas, cover, corners, self._body.paint, 0.62 + 0.38 * top)
        if is_glass:
            inner = [(x, y * 0.88, z) for x, y, z in corners]
            self._fill(canvas, cover, inner, (44, 52, 60), 0.9)

    @staticmethod
    def _inset(z_m: float) -> float:
        """How far the cabin leans in at a height."""
        return 0.2 * max(z_m - 0.95, 0.0) / 0.5

    def _side(self, canvas: Canvas, cover: Cover, y: float) -> None:
        lean = 1.0 if y > 0 else -1.0
        outline = [(x, y - lean * self._inset(z), z) for x, z in self._body.profile_m]
        self._fill(canvas, cover, outline, self._body.paint, 0.74)
        roof = sorted(self._body.profile_m, key=lambda corner: -corner[1])[:2]
        rear, front = min(roof)[0], max(roof)[0]
        low, high = 1.0, roof[1][1] - 0.08
        window = [(rear - 0.35, low), (rear + 0.05, high), (front - 0.05, high), (front + 0.5, low)]
        self._fill(
            canvas, cover, [(x, (y - lean * self._inset(z)) * 1.003, z) for x, z in window], (46, 54, 62), 0.9
        )

    def _wheels(self, canvas: Canvas, cover: Cover, y: float) -> None:
        angle = np.linspace(0, 2 * np.pi, 14, endpoint=False)
        is_far = self._origin[0] > 35.0
        discs = ((0.33, (22.0, 22.0, 24.0)), (0.19, (120.0, 122.0, 126.0)))
        for x in (-1.35, 1.38):
            for radius, rgb in discs[: 1 if is_far else 2]:
                rim = [(x + radius * np.cos(a), y * 1.005, 0.33 + radius * np.sin(a)) for a in angle]
                self._fill(canvas, cover, rim, rgb, 1.0)

    def _lamps(self, canvas: Canvas, cover: Cover) -> None:
        """Head lamps, grille and plate of a car that comes, rear lamps and plate of one that leads."""
        half = self._body.width_m / 2
        corners = self._body.profile_m
        x = (corners[-2][0] + 0.06) if self._towards else (corners[0][0] - 0.06)
        lamp: Rgb = (250, 248, 225) if self._towards else (185, 22, 20)
        for side in (-1.0, 1.0):
            outer, inner = side * (half - 0.06), side * (half - 0.42)
            self._fill(
                canvas,
                cover,
                [(x, outer, 0.58), (x, outer, 0.76), (x, inner, 0.74), (x, inner, 0.6)],
                lamp,
                1.0,
            )
        middle: Rgb = (30, 32, 36) if self._towards else (215, 215, 205)
        wide = 0.45 if self._towards else 0.26
        self._fill(
            canvas, cover, [(x, -wide, 0.46), (x, -wide, 0.62), (x, wide, 0.62), (x, wide, 0.46)], middle, 1.0
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Traffic:
    """Cars that come, all at one speed, and at times one that leads, as functions of time."""

    meeting_s: Float64[np.ndarray, " C"]
    """When each oncoming car is beside us."""
    meeting_s_m: Float64[np.ndarray, " C"]
    """And where on the road that is."""
    bodies: tuple[CarBody, ...]
    """Of the oncoming cars, then of the leading one."""
    speed_mps: float
    gap_m: Float64[np.ndarray, " T"] | None
    """Distance to the leading car at each frame."""

    def at(self, frame: int, time_s: float, s_m: float) -> list[PlacedCar]:
        """The cars within 150 m ahead at a frame."""
        s = self.meeting_s_m + (self.meeting_s - time_s) * self.speed_mps
        cars = [
            PlacedCar(body=self.bodies[index], s_m=float(s[index]), d_m=LANE_WIDTH_M / 2, towards=True)
            for index in np.flatnonzero((s > s_m - 3.0) & (s < s_m + 150.0))
        ]
        if self.gap_m is not None and self.gap_m[frame] < 150.0:
            leader = float(s_m + self.gap_m[frame])
            cars.append(PlacedCar(body=self.bodies[-1], s_m=leader, d_m=LANE_CENTRE_M, towards=False))
        return cars


def random_traffic(
    rng: np.random.Generator, time_s: Float64[np.ndarray, " T"], s_m: Float64[np.ndarray, " T"]
) -> Traffic:
    """Oncoming cars a few seconds apart and, on most drives, a car ahead that comes and goes.

    Args:
        rng: makes this traffic unlike other.
        time_s: of each frame, from 0.
        s_m: where our car is at each frame.
    """
    speed_mps = rng.uniform(12.0, 18.0)
    every_s = rng.uniform(3.0, 12.0)
    meeting = [rng.exponential(every_s)]
    # Cars met up to 20 s after the end are already in sight before it.
    while meeting[-1] < time_s[-1] + 20.0:
        meeting.append(meeting[-1] + 1.1 + rng.exponential(every_s))
    has_leader = rng.uniform() < 0.7
    pace_mps = 15.0
    late = np.maximum(np.array(meeting) - time_s[-1], 0.0)
    gap = 62.0 + 45.0 * wandering(rng, time_s, periods_s=(14.0, 60.0))
    return Traffic(
        meeting_s=np.array(meeting),
        meeting_s_m=np.interp(meeting, time_s, s_m) + late * pace_mps,
        bodies=tuple(random_body(rng) for _ in range(len(meeting) + 1)),
        speed_mps=speed_mps,
        gap_m=np.maximum(gap, 17.0) if has_leader else None,
    )
