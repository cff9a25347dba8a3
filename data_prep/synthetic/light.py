"""The light of a drive: where the sun stands, its colour, the sky's, and how both change with time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64

from data_prep.synthetic.noise import wandering

Colour = Float32[np.ndarray, " 3"]
"""RGB; 1 is the brightness of a white sheet in full daylight."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Light:
    """The same over the whole drive but for the sunshine and the exposure."""

    sun_azimuth_rad: float
    """Where the sun stands in the road's plane; it has nothing to do with the bends."""
    sun_height_rad: float
    sun: Colour
    ambient: Colour
    zenith: Colour
    haze: Colour
    """Also the colour of the sky at the horizon."""
    sight_m: float
    """Distance at which haze takes 63 % of a colour."""
    clouds: float
    """Share of the sky, 0 to 1."""
    sunshine: Float64[np.ndarray, " T"]
    """How much of the sun comes through at each frame, 0 to 1."""
    exposure: Float64[np.ndarray, " T"]
    """What the camera multiplies each frame by."""

    @property
    def upright(self) -> Colour:
        """The mean light on what stands upright."""
        return self.ambient + np.float32(0.7 * self.sunshine.mean()) * self.sun

    def veil(self, distance_m: Float32[np.ndarray, "*N"] | float) -> Float32[np.ndarray, "*N"]:
        """The share of a colour that haze has taken at a distance."""
        return 1.0 - np.exp(-np.asarray(distance_m, np.float32) / np.float32(self.sight_m))


def random_light(rng: np.random.Generator, time_s: Float64[np.ndarray, " T"]) -> Light:
    """Morning, noon or evening; clear, broken or overcast; the camera's exposure follows late and not quite."""
    height_deg = rng.uniform(14.0, 58.0)
    warmth = float(np.clip((36.0 - height_deg) / 22.0, 0.0, 1.0)) ** 1.5
    clouds = float(
        rng.choice(
            [rng.uniform(0.0, 0.25), rng.uniform(0.35, 0.6), rng.uniform(0.8, 1.0)], p=[0.6, 0.25, 0.15]
        )
    )
    sun = 0.66 * _mix((1.0, 0.96, 0.88), (1.0, 0.76, 0.5), warmth)
    ambient = _mix((0.40, 0.44, 0.50), (0.36, 0.38, 0.47), warmth) * np.float32(1 + 0.45 * clouds)
    overcast = max(clouds - 0.5, 0.0) * 1.8
    sunshine = np.clip(
        1.0 - 1.05 * clouds + 0.3 * clouds * wandering(rng, time_s, periods_s=(9.0, 60.0)), 0.03, 1.0
    )
    brightness = ambient.mean() + 0.75 * sun.mean() * sunshine
    return Light(
        sun_azimuth_rad=rng.uniform(-np.pi, np.pi),
        sun_height_rad=float(np.radians(height_deg)),
        sun=sun,
        ambient=ambient,
        zenith=_mix(_mix((0.24, 0.46, 0.78), (0.34, 0.44, 0.66), warmth), (0.47, 0.49, 0.52), overcast),
        haze=_mix(_mix((0.72, 0.81, 0.89), (0.82, 0.68, 0.53), warmth), (0.55, 0.56, 0.58), overcast),
        sight_m=rng.uniform(700.0, 2200.0),
        clouds=clouds,
        sunshine=sunshine,
        exposure=0.98 / brightness**0.8 * np.exp(0.10 * wandering(rng, time_s, periods_s=(3.0, 25.0))),
    )


def _mix(first: tuple[float, ...] | Colour, second: tuple[float, ...], share: float) -> Colour:
    weight = np.float32(min(max(share, 0.0), 1.0))
    return np.asarray(first, np.float32) * (1 - weight) + np.asarray(second, np.float32) * weight
