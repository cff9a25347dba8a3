"""A drive's scene, rendered one frame at a time: land, sky, what stands on it, camera.

Everything random is drawn once a drive, as functions of place or time, and the sensor's noise from
(seed, frame); so any frame can be rendered by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, UInt8

from data_prep.synthetic.cars import CarPainter, random_traffic
from data_prep.synthetic.light import random_light
from data_prep.synthetic.panorama import Panorama
from data_prep.synthetic.road import PREVIEW_NEAR_M, Road
from data_prep.synthetic.roadside import Canvas, Cover, plant
from data_prep.synthetic.sensor import Sensor
from data_prep.synthetic.surface import Surface, random_markings
from data_prep.synthetic.view import Camera, Pose, View

_SIGHT_M = 170.0
"""How far away something beside the road is still drawn."""
_HIDDEN = 96
"""Cover, of 255, from which a pixel no longer shows the road."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trip:
    """Where the car is at each frame, and how far its driver looks."""

    road: Road
    time_s: Float64[np.ndarray, " T"]
    s_m: Float64[np.ndarray, " T"]
    d_m: Float64[np.ndarray, " T"]
    yaw_rad: Float64[np.ndarray, " T"]
    pitch_rad: Float64[np.ndarray, " T"]
    look_ahead_m: Float64[np.ndarray, " T"]

    def view(self, frame: int, camera: Camera) -> View:
        """The road as the camera sees it at a frame."""
        pose = Pose(
            s_m=float(self.s_m[frame]),
            d_m=float(self.d_m[frame]),
            yaw_rad=float(self.yaw_rad[frame]),
            pitch_rad=float(self.pitch_rad[frame]),
        )
        return View(self.road, pose, camera)


class Scene:
    """Renders the frames of one trip and the masks of the pixels that cause its labels.

    Args:
        trip: what to drive.
        camera: what sees it.
        scenery_seed: of all that stands on the land or drives there, and of the road's lines.
        light_seed: of sun, sky, exposure, colours and sensor noise; it moves nothing.
    """

    def __init__(
        self, trip: Trip, camera: Camera, *, scenery_seed: tuple[int, ...], light_seed: tuple[int, ...]
    ) -> None:
        self._trip, self._camera, self._light_seed = trip, camera, light_seed
        scenery, colours = np.random.default_rng(scenery_seed), np.random.default_rng(light_seed)
        self._light = random_light(colours, trip.time_s)
        self._panorama = Panorama(colours, self._light, camera)
        self._markings = random_markings(scenery)
        self._surface = Surface(colours, self._markings, is_yellow=self._markings.is_yellow)
        self._traffic = random_traffic(scenery, trip.time_s, trip.s_m)
        self._roadside = plant(scenery, length_m=trip.road.length_m, light=self._light.upright)
        self._sensor = Sensor(colours, camera)

    def image(self, frame: int) -> UInt8[np.ndarray, "H W 3"]:
        """The RGB picture of a frame."""
        view = self._trip.view(frame, self._camera)
        ground = view.ground()
        canvas = np.empty((self._camera.height, self._camera.width, 3), np.uint8)
        self._panorama.paint(canvas[: ground.top], heading_rad=view.heading_rad, horizon_v=view.horizon_v)
        canvas[ground.top :] = self._surface.shade(
            ground,
            view.pose.s_m,
            light=self._light,
            sunshine=float(self._light.sunshine[frame]),
            shadow=self._roadside.shade(view, self._light)[ground.top :],
        )
        self._paint_props(view, frame, canvas)
        # A seed that ends in 0 would be the seed without its end, which the light was drawn from.
        rng = np.random.default_rng((*self._light_seed, frame + 1))
        return self._sensor.expose(canvas, rng, exposure=float(self._light.exposure[frame]))

    def causes(self, frame: int) -> Bool[np.ndarray, "H W"]:
        """The pixels that cause the label of a frame: see `data_prep.synthetic.drives`."""
        view = self._trip.view(frame, self._camera)
        ground = view.ground()
        canvas = np.zeros((self._camera.height, self._camera.width, 3), np.uint8)
        visible = self._paint_props(view, frame, canvas)[ground.top :] < _HIDDEN
        in_range = (ground.s_m >= PREVIEW_NEAR_M) & (ground.s_m <= self._trip.look_ahead_m[frame])
        mask = np.zeros(canvas.shape[:2], bool)
        mask[ground.top :] = self._markings.own_lane(ground, view.pose.s_m) & in_range & visible
        return mask

    def _paint_props(self, view: View, frame: int, canvas: Canvas) -> Cover:
        """Paints from far to near; returns how much of each pixel is hidden, 0 to 255."""
        cover = np.zeros(canvas.shape[:2], np.uint8)
        light, haze = self._light, self._light.haze * np.float32(255)
        stands = self._roadside.seen(view, light, sight_m=_SIGHT_M)
        cars = [
            CarPainter(view, car, light=light)
            for car in self._traffic.at(frame, float(self._trip.time_s[frame]), view.pose.s_m)
        ]
        depth = [ahead for ahead, _, _ in stands] + [car.ahead_m for car in cars]
        for index in sorted(range(len(depth)), key=depth.__getitem__, reverse=True):
            if index < len(stands):
                _, sprite, stand = stands[index]
                sprite.paint(canvas, cover, stand=stand, haze=haze)
            else:
                cars[index - len(stands)].paint(canvas, cover)
        return cover
