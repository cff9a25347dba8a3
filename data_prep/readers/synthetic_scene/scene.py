"""A drive's scene, rendered one frame at a time: land, sky, what stands on it, camera.

Everything random is drawn once a drive, as functions of place or time, and the sensor's noise from
(seed, frame); so any frame can be rendered by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8

from data_prep.readers.synthetic_scene.cars import CarPainter, random_traffic
from data_prep.readers.synthetic_scene.light import random_light
from data_prep.readers.synthetic_scene.panorama import Panorama
from data_prep.readers.synthetic_scene.road import PREVIEW_NEAR_M, Road
from data_prep.readers.synthetic_scene.roadside import Canvas, Cover, plant
from data_prep.readers.synthetic_scene.surface import Surface, random_markings
from data_prep.readers.synthetic_scene.view import Camera, Pose, View

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
        self._surface = Surface(colours, self._markings)
        self._traffic = random_traffic(scenery, trip.time_s, trip.s_m)
        self._roadside = plant(scenery, length_m=trip.road.length_m, light=self._light.upright)
        self._vignette = _vignette(camera)
        self._grain = colours.standard_normal((camera.height + 61, camera.width + 61, 3)).astype(np.float32)

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
            shadow=self._shadows(view)[ground.top :],
        )
        self._paint_props(view, frame, canvas)
        return self._expose(canvas, frame)

    def causes(self, frame: int) -> Bool[np.ndarray, "H W"]:
        """The pixels that cause the label of a frame: see `data_prep.readers.synthetic`."""
        view = self._trip.view(frame, self._camera)
        ground = view.ground()
        canvas = np.zeros((self._camera.height, self._camera.width, 3), np.uint8)
        visible = self._paint_props(view, frame, canvas)[ground.top :] < _HIDDEN
        in_range = (ground.s_m >= PREVIEW_NEAR_M) & (ground.s_m <= self._trip.look_ahead_m[frame])
        mask = np.zeros(canvas.shape[:2], bool)
        mask[ground.top :] = self._markings.own_lane(ground, view.pose.s_m) & in_range & visible
        return mask

    def _shadows(self, view: View) -> UInt8[np.ndarray, "H W"]:
        """Where the trees and poles beside the road, and behind the car, keep the sun off the ground."""
        plane = np.zeros((self._camera.height, self._camera.width), np.uint8)
        away = self._light.sun_azimuth_rad + np.pi - view.heading_rad
        reach = min(1.0 / np.tan(self._light.sun_height_rad), 2.5)
        outlines = self._roadside.shadows(view, away_rad=away, reach=reach)
        for outline in np.rint(np.clip(outlines, -4000, 4000) * 16).astype(np.int32):
            cv2.fillPoly(plane, [outline], (235,), cv2.LINE_AA, 4)
        return cv2.blur(plane, (5, 3))

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

    def _expose(self, canvas: Canvas, frame: int) -> UInt8[np.ndarray, "H W 3"]:
        """Exposure, vignette and sensor noise."""
        # A seed that ends in 0 would be the seed without its end, which the light was drawn from.
        rng = np.random.default_rng((*self._light_seed, frame + 1))
        row, column = rng.integers(0, 60, 2)
        grain = self._grain[row : row + self._camera.height, column : column + self._camera.width]
        exposure = float(self._light.exposure[frame])
        bright = cv2.multiply(canvas, self._vignette, scale=exposure, dtype=cv2.CV_32F)
        return cv2.addWeighted(bright, 1.0, grain, rng.uniform(2.0, 3.4), 0.0, dtype=cv2.CV_8U)


def _vignette(camera: Camera) -> Float32[np.ndarray, "H W 3"]:
    v = (np.arange(camera.height) + 0.5) / camera.height - 0.5
    u = (np.arange(camera.width) + 0.5) / camera.width - 0.5
    falloff = (1.0 - 0.45 * (v[:, None] ** 2 + u**2)).astype(np.float32)
    return np.repeat(falloff[..., None], 3, axis=2)
