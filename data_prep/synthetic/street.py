"""A street of three lanes in one direction, seen from the middle one: its lines, and what stands on it.

Lanes are named from the driver's seat. Positions are (ahead, d): metres ahead of the camera along the
street, metres to the left of the own lane's middle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from data_prep.synthetic.cars import CarBody, CarPainter, PlacedCar
from data_prep.synthetic.light import random_light
from data_prep.synthetic.objects import (
    HEAD_FOOT_M,
    barrier,
    portal,
    signal_head,
    walker,
)
from data_prep.synthetic.panorama import Panorama
from data_prep.synthetic.road import LANE_WIDTH_M, road_from_knots
from data_prep.synthetic.roadside import Canvas, Cover, Sprite, Stand, plant
from data_prep.synthetic.sensor import Sensor
from data_prep.synthetic.surface import Surface
from data_prep.synthetic.view import Camera, Ground, Pose, View

LineStyle = Literal["dashed", "solid"]
Kind = Literal["car", "walker", "barrier", "portal", "red", "green"]
Lane = Literal["left", "own", "right"]

LANE_CENTRES_M: dict[Lane, float] = {"left": LANE_WIDTH_M, "own": 0.0, "right": -LANE_WIDTH_M}
WALKERS = 6
"""How a walker looks is one of so many, in each place."""

_SIDE_M = 1.5 * LANE_WIDTH_M
_EDGE_HALF_M, _LINE_HALF_M = 0.075, 0.075
_DASH_PERIOD_M, _DASH_M = 9.0, 3.6
_MARGIN_M, _FEWEST_PIXELS = 0.06, 3.0
_HIDDEN = 24
"""Cover, of 255, from which a pixel shows a thing: a tenth of a pixel changes it visibly."""
_STREET_M, _SIGHT_M = 700.0, 170.0
_CLEARANCE_M = 3.2
"""Trees stand so much farther from the middle than beside a road of two lanes."""


@dataclass(frozen=True, kw_only=True)
class StreetLines:
    """The lines of three lanes: `surface.Lines`."""

    left: LineStyle
    """Between the own lane and the left one."""
    right: LineStyle
    shoulder_m: float = 0.45

    @property
    def asphalt_m(self) -> float:
        return _SIDE_M + self.shoulder_m

    def centre_cover(self, ground: Ground, s_m: float) -> Float32[np.ndarray, "R W"]:
        """The share of each pixel that the two lines between lanes cover."""
        return self._line(ground, s_m, self.left, 1.0) + self._line(ground, s_m, self.right, -1.0)

    def edge_cover(self, ground: Ground) -> Float32[np.ndarray, "R W"]:
        """The share of each pixel that the edge lines cover."""
        return ground.stripes(_SIDE_M - 0.1, _EDGE_HALF_M)

    @staticmethod
    def strip(ground: Ground, side: Literal["left", "right"]) -> Bool[np.ndarray, "R W"]:
        """Where a line between lanes runs, gaps of a dashed one included, with the contrast around it."""
        centre = LANE_WIDTH_M / 2 if side == "left" else -LANE_WIDTH_M / 2
        return ground.within(centre, _LINE_HALF_M + _MARGIN_M, fewest_pixels=_FEWEST_PIXELS)

    @staticmethod
    def _line(ground: Ground, s_m: float, style: LineStyle, sign: float) -> Float32[np.ndarray, "R W"]:
        line = ground.stripe(sign * LANE_WIDTH_M / 2, _LINE_HALF_M)
        if style == "solid":
            return line
        phase = float(np.mod(s_m, _DASH_PERIOD_M))
        return line * ground.dashes(phase, period_m=_DASH_PERIOD_M, dash_m=_DASH_M)


@dataclass(frozen=True, kw_only=True)
class Thing:
    """Something on the street, by the name its mask is asked for."""

    name: str
    kind: Kind
    ahead_m: float
    d_m: float
    body: CarBody | None = None
    """Of a car."""
    look: int = 0
    """Of a walker."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Where the camera is and what is around it."""

    lines: StreetLines
    things: tuple[Thing, ...]
    curvature: float
    """1/m, positive to the left; the whole street bends so."""
    pose: Pose


class Picture(NamedTuple):
    """An image, and where in it each thing and each part of the street is seen."""

    image: UInt8[np.ndarray, "H W 3"]
    seen: dict[str, Bool[np.ndarray, "H W"]]
    """The visible pixels of each thing, by name."""
    ground: Ground
    open: Bool[np.ndarray, "H W"]
    """Pixels that nothing upright hides."""

    def lane(self, lane: Lane, near_m: float, far_m: float) -> Bool[np.ndarray, "H W"]:
        """The visible asphalt of a lane between two distances, its lines left out."""
        half = LANE_WIDTH_M / 2 - _LINE_HALF_M - _MARGIN_M
        inside = np.abs(self.ground.d_m - np.float32(LANE_CENTRES_M[lane])) <= np.float32(half)
        return self._part(inside, near_m, far_m)

    def line(self, side: Literal["left", "right"]) -> Bool[np.ndarray, "H W"]:
        """The visible strip of a line between lanes."""
        return self._part(StreetLines.strip(self.ground, side), 0.0, np.inf)

    def _part(self, rows: Bool[np.ndarray, "R W"], near_m: float, far_m: float) -> Bool[np.ndarray, "H W"]:
        mask = np.zeros(self.open.shape, bool)
        in_range = (self.ground.s_m >= near_m) & (self.ground.s_m <= far_m)
        mask[self.ground.top :] = rows & in_range & self.open[self.ground.top :]
        return mask


class Street:
    """One place in one light; renders any number of moments there.

    Args:
        camera: what sees it.
        scenery_seed: of what stands beside the street.
        light_seed: of sun, sky, colours and how people look.
    """

    def __init__(self, camera: Camera, *, scenery_seed: Sequence[int], light_seed: Sequence[int]) -> None:
        scenery, colours = np.random.default_rng(scenery_seed), np.random.default_rng(light_seed)
        self._camera = camera
        self._light = random_light(colours, np.zeros(1))
        self._panorama = Panorama(colours, self._light, camera)
        self._surface = Surface(colours, StreetLines(left="dashed", right="dashed"), is_yellow=False)
        self._sensor = Sensor(colours, camera)
        upright = self._light.upright
        trees = plant(scenery, length_m=420.0, light=upright)
        self._roadside = replace(trees, d_m=trees.d_m + np.sign(trees.d_m) * _CLEARANCE_M)
        self._walkers = [walker(colours, light=upright) for _ in range(WALKERS)]
        self._sprites: dict[str, Sprite] = {
            "barrier": barrier(upright),
            "portal": portal(upright),
            "red": signal_head("red", light=upright),
            "green": signal_head("green", light=upright),
        }

    def picture(self, moment: Moment, rng: np.random.Generator) -> Picture:
        """Renders a moment; `rng` draws the sensor's noise."""
        road = road_from_knots([0.0], [moment.curvature], length_m=_STREET_M)
        view = View(road, moment.pose, self._camera)
        ground = view.ground()
        canvas = np.empty((self._camera.height, self._camera.width, 3), np.uint8)
        self._panorama.paint(canvas[: ground.top], heading_rad=view.heading_rad, horizon_v=view.horizon_v)
        canvas[ground.top :] = self._surface.marked(moment.lines).shade(
            ground,
            view.pose.s_m,
            light=self._light,
            sunshine=float(self._light.sunshine[0]),
            shadow=self._roadside.shade(view, self._light)[ground.top :],
        )
        seen, hidden = self._paint(view, moment.things, canvas)
        image = self._sensor.expose(canvas, rng, exposure=float(self._light.exposure[0]))
        return Picture(image, seen, ground, ~hidden)

    def _paint(
        self, view: View, things: Sequence[Thing], canvas: Canvas
    ) -> tuple[dict[str, Bool[np.ndarray, "H W"]], Bool[np.ndarray, "H W"]]:
        """Paints from far to near; returns each thing's visible pixels, and those that show no ground."""
        haze = self._light.haze * np.float32(255)
        painted = [
            (ahead, "", lambda cover, s=sprite, at=stand: s.paint(canvas, cover, stand=at, haze=haze))
            for ahead, sprite, stand in self._roadside.seen(view, self._light, sight_m=_SIGHT_M)
        ]
        painted += [(thing.ahead_m, thing.name, self._painter(view, thing, canvas)) for thing in things]
        seen: dict[str, Bool[np.ndarray, "H W"]] = {}
        hidden = np.zeros(canvas.shape[:2], bool)
        for _, name, paint in sorted(painted, key=lambda each: -each[0]):
            cover: Cover = np.zeros(canvas.shape[:2], np.uint8)
            paint(cover)
            covered = cover >= _HIDDEN
            hidden |= covered
            for other in seen.values():
                other &= ~covered
            if name:
                seen[name] = covered
        return seen, hidden

    def _painter(self, view: View, thing: Thing, canvas: Canvas):
        """What draws a thing, given a plane of cover."""
        s_m = view.pose.s_m + thing.ahead_m
        if thing.kind == "car":
            assert thing.body is not None
            car = PlacedCar(body=thing.body, s_m=s_m, d_m=thing.d_m, towards=False)
            return lambda cover: CarPainter(view, car, light=self._light).paint(canvas, cover)
        sprite = self._walkers[thing.look] if thing.kind == "walker" else self._sprites[thing.kind]
        lifted_m = HEAD_FOOT_M if thing.kind in ("red", "green") else 0.0
        stand = self._stand(view, s_m, thing.d_m, lifted_m)
        haze = self._light.haze * np.float32(255)
        return lambda cover: sprite.paint(canvas, cover, stand=stand, haze=haze)

    def _stand(self, view: View, s_m: float, d_m: float, lifted_m: float) -> Stand:
        ahead, left, up, _ = view.place(np.array([s_m]), np.array([d_m]))
        u, v = view.project(ahead, left, up + lifted_m)
        return Stand(
            u=float(u[0]),
            v=float(v[0]),
            px_per_m=float(view.camera.focal_px / ahead[0]),
            hidden_below=float(self._camera.height) if lifted_m else float(view.hidden_below(ahead)[0]),
            veil=float(self._light.veil(float(ahead[0]))),
        )
