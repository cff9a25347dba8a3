"""What is too far away to move as the car does: sky, clouds, sun and ranges of hills, all around."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from data_prep.synthetic.light import Light
from data_prep.synthetic.noise import tile
from data_prep.synthetic.view import Camera

_ABOVE, _BELOW = 0.62, 0.3
"""Rows over and under the horizon, as shares of the picture's height."""


class Panorama:
    """A picture of all directions, painted once a drive; a frame looks up the part it sees."""

    def __init__(self, rng: np.random.Generator, light: Light, camera: Camera) -> None:
        self._camera = camera
        self._horizon = int(_ABOVE * camera.height)
        self._azimuth_px = round(2 * np.pi * camera.focal_px)
        rows = self._horizon + int(_BELOW * camera.height)
        self._up = ((self._horizon - np.arange(rows) - 0.5) / camera.focal_px).astype(np.float32)
        self._around = ((np.arange(self._azimuth_px) + 0.5) / self._azimuth_px).astype(np.float32)
        picture = self._sky(rng, light)
        self._sun(picture, light)
        for level, (height, ruggedness, distance_m) in enumerate(
            ((0.15, 2, 1500.0), (0.085, 5, 800.0), (0.04, 15, 350.0))
        ):
            self._hills(
                picture,
                rng,
                light,
                height=height,
                ruggedness=ruggedness,
                veil=float(light.veil(distance_m)),
                level=level,
            )
        self._picture: UInt8[np.ndarray, "R A 3"] = np.clip(picture * 255, 0, 255).astype(np.uint8)
        columns = np.arange(camera.width) + 0.5
        self._bearing = np.arctan2(camera.width / 2 - columns, camera.focal_px)

    def paint(self, canvas: UInt8[np.ndarray, "H W 3"], *, heading_rad: float, horizon_v: float) -> None:
        """Fills the canvas with what lies in the camera's direction."""
        turns = np.mod((heading_rad + self._bearing) / (2 * np.pi), 1.0)
        column = (turns * self._azimuth_px - 0.5).astype(np.float32)
        row = (np.arange(len(canvas)) - horizon_v + self._horizon).astype(np.float32)
        row = np.clip(row, 0, len(self._picture) - 1)
        shape = canvas.shape[:2]
        map_u = np.ascontiguousarray(np.broadcast_to(column, shape))
        map_v = np.ascontiguousarray(np.broadcast_to(row[:, None], shape))
        cv2.remap(self._picture, map_u, map_v, cv2.INTER_LINEAR, dst=canvas, borderMode=cv2.BORDER_WRAP)

    def _sky(self, rng: np.random.Generator, light: Light) -> Float32[np.ndarray, "R A 3"]:
        height = np.clip(self._up / 0.5, 0.0, 1.0)[:, None] ** np.float32(0.7)
        blue = light.haze + height[..., None] * (light.zenith - light.haze)
        shape = (len(self._up), self._azimuth_px)
        around = np.broadcast_to(self._around * 2 * 512, shape).astype(np.float32)
        flat = np.broadcast_to((150.0 / (np.maximum(self._up, 0.0) + 0.22))[:, None], shape).astype(
            np.float32
        )
        field = cv2.remap(
            tile(rng, size=512, roughness=1.5), around, flat, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP
        )
        threshold = 1.3 - 2.9 * light.clouds
        cloud = np.clip((field - threshold) * 0.8, 0.0, 1.0) * np.clip(self._up / 0.06, 0.0, 1.0)[:, None]
        white = 0.5 * light.haze + 0.5 * np.minimum(light.sun * 0.7 + light.ambient, 1.0) * np.float32(1.0)
        shade = (1.0 - 0.12 * np.clip(field - threshold - 1.0, 0.0, 2.0))[..., None]
        return blue + (0.85 * cloud)[..., None] * (white * shade - blue)

    def _sun(self, picture: Float32[np.ndarray, "R A 3"], light: Light) -> None:
        """A glow around the sun; the disc itself stands too high to be seen but at dusk."""
        across = np.mod(self._around * 2 * np.pi - light.sun_azimuth_rad + np.pi, 2 * np.pi) - np.pi
        distance = np.hypot(across, self._up[:, None] - np.tan(light.sun_height_rad))
        glow = 0.9 * np.exp(-((distance / 0.07) ** 2)) + 0.45 * np.exp(-distance / 0.25)
        picture += (glow * light.sunshine.mean()).astype(np.float32)[..., None] * light.sun

    def _hills(
        self,
        picture: Float32[np.ndarray, "R A 3"],
        rng: np.random.Generator,
        light: Light,
        *,
        height: float,
        ruggedness: int,
        veil: float,
        level: int,
    ) -> None:
        """One range of hills, `height` over the horizon as a tangent, taken back by haze."""
        angle = self._around * 2 * np.pi
        waves = np.arange(1, 5) * ruggedness + rng.integers(0, 3, 4)
        swing = np.sin(angle[:, None] * waves + rng.uniform(0, 6.28, 4)) / np.arange(1, 5) ** 0.8
        texture = tile(rng, size=512, roughness=1.1)
        jag = cv2.remap(
            texture, (self._around[None] * 512 * 8).astype(np.float32), np.zeros((1, self._azimuth_px), np.float32),
            cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP,
        )[0]  # fmt: skip
        crest = height * (0.62 + 0.36 * swing.sum(axis=1) / 1.6) + 0.0035 * jag * (level > 0)
        edge = np.clip((np.maximum(crest, 0.004) - self._up[:, None]) * self._camera.focal_px + 0.5, 0.0, 1.0)
        shape = edge.shape
        around = np.broadcast_to(self._around * 512 * 6, shape).astype(np.float32)
        upwards = np.broadcast_to(self._up[:, None] * 900, shape).astype(np.float32)
        wooded = cv2.remap(texture, around, upwards, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        land = np.array([(0.36, 0.37, 0.24), (0.31, 0.34, 0.19), (0.19, 0.25, 0.12)][level], np.float32)
        lit = (0.9 + 0.2 * wooded)[..., None] * land * light.upright
        hazed = lit * np.float32(1 - veil) + light.haze * np.float32(veil)
        picture += edge[..., None].astype(np.float32) * (hazed - picture)
