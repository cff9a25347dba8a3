"""What stands beside the road, and is no cause of the label: trees, bushes, posts and poles.

Everything stands at a random distance from the road, which it keeps clear of, so it follows the bends
loosely. Painters draw on an RGB canvas in place and, beside it, on a plane of cover that
says how much of each pixel they hide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float32, Float64, UInt8

from data_prep.synthetic.light import Colour, Light
from data_prep.synthetic.view import View

Canvas = UInt8[np.ndarray, "H W 3"]
Cover = UInt8[np.ndarray, "H W"]
Rgb = tuple[float, float, float]
"""0 to 255, may be fractional."""

_TRANSPARENCY = np.tile(np.array([0, 0, 0, -1, 255], np.float32), (3, 1))


@dataclass(frozen=True, kw_only=True)
class Stand:
    """Where in the picture a sprite's foot stands, and how it is seen there."""

    u: float
    v: float
    px_per_m: float
    hidden_below: float
    """The row below which nearer land hides it."""
    veil: float
    """How much haze takes of its colour, 0 to 1."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sprite:
    """A picture that always faces the camera, premultiplied RGBA, in halving sizes."""

    width_m: float
    height_m: float
    levels: tuple[UInt8[np.ndarray, "h w 4"], ...]
    shade_m: float
    """Width of the shadow it casts, in metres; 0 for none."""

    def paint(self, canvas: Canvas, cover: Cover, *, stand: Stand, haze: Colour) -> None:
        """Draws it where it stands; haze is a colour from 0 to 255."""
        height, width = cover.shape
        wide, tall = self.width_m * stand.px_per_m, self.height_m * stand.px_per_m
        left, top = stand.u - wide / 2, stand.v - tall
        column, row = max(int(left), 0), max(int(top), 0)
        end_column = min(int(left + wide) + 2, width)
        end_row = min(int(min(stand.v, stand.hidden_below)) + 1, height)
        if column >= end_column or row >= end_row:
            return
        level = next((level for level in reversed(self.levels) if level.shape[0] >= tall), self.levels[0])
        scale_u, scale_v = level.shape[1] / wide, level.shape[0] / tall
        to_level = np.array(
            [
                [scale_u, 0.0, (column + 0.5 - left) * scale_u - 0.5],
                [0.0, scale_v, (row + 0.5 - top) * scale_v - 0.5],
            ]
        )
        size = (end_column - column, end_row - row)
        patch = cv2.warpAffine(level, to_level, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        # Matrices over (R, G, B, alpha, 1): OpenCV applies them faster than NumPy blends.
        hazed = np.zeros((3, 5), np.float32)
        hazed[:, :3] = np.eye(3, dtype=np.float32) * np.float32(1 - stand.veil)
        hazed[:, 3] = haze * np.float32(stand.veil / 255)
        target = canvas[row:end_row, column:end_column]
        behind = cv2.multiply(target, cv2.transform(patch, _TRANSPARENCY), scale=1 / 255)
        cv2.add(behind, cv2.transform(patch, hazed), dst=target)
        hidden = cover[row:end_row, column:end_column]
        np.maximum(hidden, patch[..., 3], out=hidden)


def sprite_from(
    colour: Float32[np.ndarray, "h w 3"],
    alpha: Float32[np.ndarray, "h w"],
    *,
    height_m: float,
    shade_m: float,
) -> Sprite:
    """A sprite from colours and opacities in 0 to 1.

    Args:
        colour: RGB.
        alpha: opacity.
        height_m: of the whole picture; its width follows.
        shade_m: width of its shadow.
    """
    rgba = np.dstack([np.clip(colour, 0, 1) * alpha[..., None], alpha]) * 255
    levels: list[np.ndarray] = [rgba.astype(np.float32)]
    while min(levels[-1].shape[:2]) >= 8:
        half = (levels[-1].shape[1] // 2, levels[-1].shape[0] // 2)
        levels.append(cv2.resize(levels[-1], half, interpolation=cv2.INTER_AREA))
    tall, wide = alpha.shape
    return Sprite(
        width_m=height_m * wide / tall,
        height_m=height_m,
        levels=tuple(np.rint(level).astype(np.uint8) for level in levels),
        shade_m=shade_m,
    )


def broadleaf(rng: np.random.Generator, *, height_m: float, light: Colour) -> Sprite:
    """A tree with a round crown on a trunk.

    Args:
        rng: makes this tree unlike the others.
        height_m: of the whole.
        light: colour of the daylight.
    """
    tall, wide = 160, 112
    alpha, shade = _foliage(rng, (tall, wide), crown=0.78, spread=(0.34, 0.27), tufts=34, tuft=0.14)
    v, u = np.mgrid[0:tall, 0:wide].astype(np.float32)
    trunk = (np.abs(u - wide / 2) < 0.022 * wide + 0.02 * wide * v / tall) & (v > 0.45 * tall)
    is_bark = trunk & (alpha < 0.5)
    colour = np.where(
        is_bark[..., None], np.array([0.24, 0.19, 0.15], np.float32), shade[..., None] * _green(rng)
    )
    alpha = np.maximum(alpha, trunk.astype(np.float32))
    return sprite_from(colour * light, alpha, height_m=height_m, shade_m=0.45 * height_m)


def bush(rng: np.random.Generator, *, height_m: float, light: Colour) -> Sprite:
    """A bush, wider than tall; it casts no shadow that reaches the road."""
    alpha, shade = _foliage(rng, (96, 120), crown=1.0, spread=(0.33, 0.33), tufts=34, tuft=0.16)
    return sprite_from(shade[..., None] * _green(rng) * light, alpha, height_m=height_m, shade_m=0.0)


def grove(rng: np.random.Generator, *, height_m: float, light: Colour) -> Sprite:
    """The edge of a wood, three times as wide as tall."""
    alpha, shade = _foliage(rng, (120, 360), crown=1.0, spread=(0.43, 0.3), tufts=110, tuft=0.17)
    return sprite_from(shade[..., None] * 0.85 * _green(rng) * light, alpha, height_m=height_m, shade_m=0.0)


def _green(rng: np.random.Generator) -> Colour:
    return np.array([rng.uniform(0.22, 0.38), rng.uniform(0.32, 0.42), rng.uniform(0.12, 0.2)], np.float32)


def _foliage(
    rng: np.random.Generator,
    shape: tuple[int, int],
    *,
    crown: float,
    spread: tuple[float, float],
    tufts: int,
    tuft: float,
) -> tuple[Float32[np.ndarray, "h w"], Float32[np.ndarray, "h w"]]:
    """Opacity and brightness of a heap of round tufts, lit from above.

    Args:
        rng: places the tufts.
        shape: of the picture, rows and columns.
        crown: share of the rows, from the top, that the heap fills.
        spread: how far tufts lie from its middle at most, as shares of its width and height.
        tufts: how many.
        tuft: radius of a middling one, over the smaller side.
    """
    tall, wide = shape
    v, u = np.mgrid[0:tall, 0:wide].astype(np.float32)
    crown_tall = tall * crown
    angle, distance = rng.uniform(0, 2 * np.pi, tufts), np.sqrt(rng.uniform(0, 1, tufts))
    centre_u = wide * (0.5 + spread[0] * distance * np.cos(angle))
    centre_v = crown_tall * (0.5 + spread[1] * distance * np.sin(angle))
    radius = rng.uniform(0.65, 1.35, tufts) * tuft * min(crown_tall, wide)
    best = np.full(shape, -9.0, np.float32)
    lift = np.zeros(shape, np.float32)
    for middle_u, middle_v, size in zip(centre_u, centre_v, radius, strict=True):
        inside = 1 - np.hypot(u - middle_u, v - middle_v) / size
        front = inside > best
        best = np.where(front, inside, best)
        lift = np.where(front, (middle_v - v) / size, lift)
    leaves = _grain(rng, tall, wide)
    shade = 0.52 + 0.3 * lift + 0.16 * (1 - v / crown_tall) + 0.16 * leaves
    return np.clip((best + 0.22 * leaves) * 6 + 0.5, 0, 1).astype(np.float32), shade.astype(np.float32)


def conifer(rng: np.random.Generator, *, height_m: float, light: Colour) -> Sprite:
    """A spruce: tiers of drooping branches that widen downwards."""
    tall, wide = 192, 88
    v, u = np.mgrid[0:tall, 0:wide].astype(np.float32)
    down = v / tall
    tier = np.mod(down * rng.uniform(8, 12) + 0.15 * np.abs(u / wide - 0.5), 1.0)
    reach = (0.02 + 0.46 * down) * (0.62 + 0.38 * tier) * wide
    leaves = _grain(rng, tall, wide)
    edge = (reach - np.abs(u - wide / 2)) / (0.12 * wide) + 0.55 * leaves * np.clip(4 * down, 0.1, 1)
    alpha = np.clip(edge * 2 + 0.5, 0, 1) * (down < 0.95)
    stem = (np.abs(u - wide / 2) < 2.5) & (down > 0.9)
    shade = 0.36 + 0.3 * (1 - tier) + 0.13 * leaves
    green = np.array([rng.uniform(0.2, 0.28), rng.uniform(0.32, 0.4), rng.uniform(0.18, 0.24)], np.float32)
    colour = np.where(stem[..., None], np.array([0.22, 0.17, 0.13]), shade[..., None] * green) * light
    return sprite_from(
        colour.astype(np.float32),
        np.maximum(alpha, stem).astype(np.float32),
        height_m=height_m,
        shade_m=0.3 * height_m,
    )


def _grain(rng: np.random.Generator, tall: int, wide: int) -> Float32[np.ndarray, "h w"]:
    """Leaf-sized noise, mean 0, variance about 1."""
    fine = rng.standard_normal((tall, wide), dtype=np.float32)
    coarse = cv2.resize(rng.standard_normal((tall // 5, wide // 5), dtype=np.float32), (wide, tall))
    return 0.5 * cv2.GaussianBlur(fine, (0, 0), 0.9) * 2.5 + 0.6 * coarse


def post(light: Colour) -> Sprite:
    """A white roadside post with a dark band."""
    colour = np.full((96, 10, 3), 0.86, np.float32)
    colour[14:34] = 0.14
    colour[20:28, 3:7] = (0.9, 0.55, 0.1)
    return sprite_from(colour * light, np.ones((96, 10), np.float32), height_m=1.05, shade_m=0.0)


def pole(light: Colour) -> Sprite:
    """A wooden telegraph pole with a cross-arm."""
    alpha = np.zeros((192, 48), np.float32)
    alpha[:, 22:26] = 1.0
    alpha[14:19, 6:42] = 1.0
    colour = np.broadcast_to(np.array([0.34, 0.28, 0.23], np.float32) * light, (192, 48, 3))
    return sprite_from(np.ascontiguousarray(colour), alpha, height_m=9.0, shade_m=0.3)


@dataclass(frozen=True, kw_only=True, eq=False)
class Roadside:
    """Where sprites stand, ordered by s."""

    sprites: tuple[Sprite, ...]
    s_m: Float64[np.ndarray, " M"]
    d_m: Float64[np.ndarray, " M"]
    kind: UInt8[np.ndarray, " M"]
    """Index into `sprites`."""
    size: Float64[np.ndarray, " M"]

    def between(self, start_m: float, stop_m: float) -> slice:
        """Where in these arrays that stands which stands in a stretch of road."""
        first, last = np.searchsorted(self.s_m, [start_m, stop_m])
        return slice(int(first), int(last))

    def seen(self, view: View, light: Light, *, sight_m: float) -> list[tuple[float, Sprite, Stand]]:
        """The sprites in the picture: how far ahead each is, what it is and where it stands."""
        part = self.between(view.pose.s_m - 1.0, view.pose.s_m + sight_m)
        ahead, left, up, _ = view.place(self.s_m[part], self.d_m[part])
        u, v = view.project(ahead, left, up)
        px_per_m = view.camera.focal_px / np.maximum(ahead, 1.0) * self.size[part]
        hidden_below, veil = view.hidden_below(ahead), light.veil(np.maximum(ahead, 0.0))
        # No sprite is wider than 40 m.
        in_picture = (ahead > 2.0) & (
            np.abs(u - view.camera.width / 2) < view.camera.width / 2 + 20.0 * px_per_m
        )
        return [
            (
                float(ahead[index]),
                self.sprites[self.kind[part][index]],
                Stand(
                    u=float(u[index]),
                    v=float(v[index]),
                    px_per_m=float(px_per_m[index]),
                    hidden_below=float(hidden_below[index]),
                    veil=float(veil[index]),
                ),
            )
            for index in np.flatnonzero(in_picture).tolist()
        ]

    def shade(self, view: View, light: Light) -> UInt8[np.ndarray, "H W"]:
        """How much of the sun trees and poles, also those behind the car, keep off the ground, 0 to 255."""
        plane = np.zeros((view.camera.height, view.camera.width), np.uint8)
        away = light.sun_azimuth_rad + np.pi - view.heading_rad
        reach = min(1.0 / np.tan(light.sun_height_rad), 2.5)
        outlines = self.shadows(view, away_rad=away, reach=reach)
        for outline in np.rint(np.clip(outlines, -4000, 4000) * 16).astype(np.int32):
            cv2.fillPoly(plane, [outline], (235,), cv2.LINE_AA, 4)
        return cv2.blur(plane, (5, 3))

    def shadows(self, view: View, *, away_rad: float, reach: float) -> Float64[np.ndarray, "K 12 2"]:
        """Image outlines of the shadows on the ground near the car; each is an upright ellipse's.

        Args:
            view: the camera's pose.
            away_rad: direction away from the sun, against the car's axis, positive to the left.
            reach: length of a shadow over the height of what casts it.
        """
        part = self.between(view.pose.s_m - 35.0, view.pose.s_m + 90.0)
        sprites = [self.sprites[kind] for kind in self.kind[part]]
        length = np.array([sprite.height_m for sprite in sprites]) * self.size[part] * reach
        width = np.array([sprite.shade_m for sprite in sprites]) * self.size[part]
        ahead, left, _, _ = view.place(self.s_m[part], self.d_m[part])
        cast = np.flatnonzero((width > 0) & (ahead + length > 1.5))
        angle = np.linspace(0, 2 * np.pi, 12, endpoint=False)
        along = length[cast, None] * (0.55 + 0.5 * np.cos(angle))
        across = width[cast, None] / 2 * np.sin(angle)
        cos, sin = np.cos(away_rad), np.sin(away_rad)
        corner_ahead = np.maximum(ahead[cast, None] + along * cos - across * sin, 1.6)
        corner_left = left[cast, None] + along * sin + across * cos
        return np.stack(view.project(corner_ahead, corner_left, view.land_m(corner_ahead)), axis=-1)


def plant(rng: np.random.Generator, *, length_m: float, light: Colour) -> Roadside:
    """Woods and clearings, bushes, posts and poles, at random distances from both sides of the road.

    Args:
        rng: for what stands where; what the sprites look like is drawn from it last.
        length_m: of the road.
        light: colour of the daylight on what stands upright.
    """
    count = int(length_m / 3.0)
    s = np.sort(rng.uniform(-20.0, length_m, count))
    side = rng.choice([-1.0, 1.0], count)
    waves = s[:, None] * 2 * np.pi / np.array([171.0, 293.0]) + rng.uniform(0, 6.28, 2) + side[:, None]
    wooded = np.clip(0.6 + 0.35 * np.sin(waves).sum(axis=1), 0.15, 0.9)
    kind = np.where(
        rng.uniform(0, 1, count) < wooded,
        rng.choice(len(_KINDS), count, p=[kind.in_woods for kind in _KINDS]),
        rng.choice(len(_KINDS), count, p=[kind.in_clearings for kind in _KINDS]),
    )
    nearest = np.array([kind.nearest_m for kind in _KINDS])[kind]
    reach = np.array([kind.reach_m for kind in _KINDS])[kind]
    varies = np.array([kind.varies for kind in _KINDS])[kind]
    return Roadside(
        sprites=_sprites(rng, light),
        s_m=s,
        d_m=side * (nearest + reach * rng.uniform(0, 1, count) ** 1.5),
        kind=kind.astype(np.uint8),
        size=1.0 + varies * rng.uniform(-0.25, 0.2, count),
    )


class _Kind(NamedTuple):
    """How often a sprite stands in woods and in clearings, and where."""

    in_woods: float
    in_clearings: float
    nearest_m: float
    """To the centre line; crowns stay clear of the lanes."""
    reach_m: float
    varies: float
    """Whether its size varies, 1 or 0."""


_KINDS = (
    *(_Kind(0.11, 0.03, 9.0, 20.0, 1.0),) * 3,
    *(_Kind(0.12, 0.03, 8.5, 22.0, 1.0),) * 3,
    *(_Kind(0.09, 0.03, 26.0, 34.0, 1.0),) * 2,
    *(_Kind(0.04, 0.25, 5.6, 9.0, 1.0),) * 2,
    _Kind(0.03, 0.18, 5.2, 4.0, 0.0),
    _Kind(0.02, 0.08, 6.5, 5.0, 0.0),
)


def _sprites(rng: np.random.Generator, light: Colour) -> tuple[Sprite, ...]:
    """One for each of `_KINDS`, in its order."""
    return (
        *(broadleaf(rng, height_m=height_m, light=light) for height_m in (7.0, 9.0, 11.0)),
        *(conifer(rng, height_m=height_m, light=light) for height_m in (9.0, 13.0, 16.0)),
        *(grove(rng, height_m=height_m, light=light) for height_m in (9.0, 12.0)),
        *(bush(rng, height_m=height_m, light=light) for height_m in (1.3, 2.0)),
        post(light),
        pole(light),
    )
