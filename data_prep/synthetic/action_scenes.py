"""Synthetic street scenes: which driving actions are possible, and the pixels that decide each, known exactly.

A still picture of a street with three lanes in one direction, seen from the middle one. What is drawn
decides the labels, by the rules of `Situation`; the labels are BDD-OIA's four actions.

What decides an action. Where something forbids it, the visible pixels of all that forbids it: the near
car, the walker on the lane, the barrier, the head of the red signal, the solid line. Where nothing does,
the pixels that show so: the free asphalt of the lane as far as something in the way would stand, the
strip of the dashed line, the head of the green signal. So the mask holds evidence that is enough by itself.
Cars farther away, walkers beside the street, portals, trees, light and sky decide nothing.
"""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from data_prep.errors import DataError
from data_prep.readers.bdd_oia import ACTIONS
from data_prep.schema import Image, ImageItem, ImageSet
from data_prep.synthetic.cars import random_body
from data_prep.synthetic.street import (
    LANE_CENTRES_M,
    WALKERS,
    LineStyle,
    Moment,
    Picture,
    Street,
    StreetLines,
    Thing,
)
from data_prep.synthetic.view import Camera, Pose

SCENE_VERSION = 1
"""Changes whenever the same options would render or label differently."""
NAME = "synthetic-actions"

Ahead = Literal["nothing", "far-car", "slow-car", "near-car", "walker", "barrier"]
Signal = Literal["none", "green", "red"]
Beside = Literal["free", "far-car", "near-car", "barrier"]
Side = Literal["left", "right"]

_AHEAD: dict[Ahead, float] = {
    "nothing": 0.33, "far-car": 0.21, "slow-car": 0.16, "near-car": 0.11, "walker": 0.11, "barrier": 0.08,
}  # fmt: skip
_SIGNAL: dict[Signal, float] = {"none": 0.56, "green": 0.22, "red": 0.22}
_BESIDE: dict[Beside, float] = {"free": 0.42, "far-car": 0.28, "near-car": 0.2, "barrier": 0.1}
_DASHED = 0.68
"""How likely each case is; what stands on one lane says nothing of the others."""
_BLOCKING = ("near-car", "walker", "barrier")
_AT_M: dict[str, tuple[float, float]] = {
    "far-car": (45.0, 85.0), "slow-car": (16.0, 22.0), "near-car": (6.5, 9.5), "walker": (7.0, 12.0),
    "barrier": (7.0, 11.5), "signal": (16.0, 21.0), "beside": (8.0, 14.0), "bystander": (8.0, 26.0),
}  # fmt: skip
"""Distance ahead of the middle of each thing."""
_STOPPING_M, _FOLLOWING_M, _CHANGING_M = 12.0, 22.0, 14.0
"""How far a lane must be free to go on, not to slow down, or to change to it."""
_SCENES_A_PLACE = 20
_PLACE, _LIGHT, _SCENE = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """The options of a set of scenes, as in its TOML file."""

    images: int = 2000
    seed: int = 0
    height: int = 192
    """Pixels."""
    width: int = 320
    """Pixels."""

    def __post_init__(self) -> None:
        for option, smallest, largest in (
            ("images", 1, 1_000_000), ("seed", 0, 2**63 - 1), ("height", 48, 2160), ("width", 64, 4096),
        ):  # fmt: skip
            value = getattr(self, option)
            if type(value) is not int or not smallest <= value <= largest:
                raise DataError(
                    f"synthetic actions: {option} is {value!r}; expected an integer from {smallest} to {largest}"
                )

    @property
    def scenes_a_place(self) -> int:
        """So many share a street's surroundings and light; at least ten places, to divide by."""
        return min(max(self.images // 10, 1), _SCENES_A_PLACE)


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What the street holds, as far as it decides an action."""

    ahead: Ahead
    signal: Signal
    lines: StreetLines
    left: Beside
    right: Beside

    @property
    def blocked(self) -> bool:
        """Whether something in the own lane or a red signal forbids to go on."""
        return self.ahead in _BLOCKING or self.signal == "red"

    def may_change(self, side: Side) -> bool:
        """Whether the line is dashed and the lane behind it free."""
        return self._line(side) == "dashed" and self._beside(side) in ("free", "far-car")

    @property
    def labels(self) -> tuple[int, ...]:
        """By the order of `ACTIONS`. Behind a slow car one may both go on and slow down."""
        stop = self.blocked or self.ahead == "slow-car"
        return tuple(map(int, (not self.blocked, stop, self.may_change("left"), self.may_change("right"))))

    @property
    def words(self) -> str:
        """Safe as a part of a file name."""
        left, right = (f"{side}-{self._line(side)}-{self._beside(side)}" for side in ("left", "right"))
        return f"{self.ahead}_signal-{self.signal}_{left}_{right}"

    def causes(self, picture: Picture) -> UInt8[np.ndarray, "H W"]:
        """Bit k of a pixel says whether it decides action k."""
        masks = [
            self._why_forward(picture, stop=False),
            self._why_forward(picture, stop=True),
            self._why_change(picture, "left"),
            self._why_change(picture, "right"),
        ]
        return np.bitwise_or.reduce([mask.astype(np.uint8) << k for k, mask in enumerate(masks)])

    def _why_forward(self, picture: Picture, *, stop: bool) -> np.ndarray:
        reasons = (*_BLOCKING, "slow-car") if stop else _BLOCKING
        forbids = ["ahead"] * (self.ahead in reasons) + ["signal"] * (self.signal == "red")
        if forbids:
            return np.logical_or.reduce([picture.seen[name] for name in forbids])
        free = picture.lane("own", 0.0, _FOLLOWING_M if stop else _STOPPING_M)
        return free | picture.seen["signal"] if self.signal == "green" else free

    def _why_change(self, picture: Picture, side: Side) -> np.ndarray:
        line = picture.line(side)
        taken = self._beside(side) in ("near-car", "barrier")
        solid = self._line(side) == "solid"
        if not solid and not taken:
            return line | picture.lane(side, 0.0, _CHANGING_M)
        mask = line if solid else np.zeros_like(line)
        return mask | picture.seen[side] if taken else mask

    def _line(self, side: Side) -> LineStyle:
        return self.lines.left if side == "left" else self.lines.right

    def _beside(self, side: Side) -> Beside:
        return self.left if side == "left" else self.right


def draw_situation(rng: np.random.Generator) -> Situation:
    """One situation; its parts are independent of each other."""
    styles: list[LineStyle] = ["dashed" if rng.uniform() < _DASHED else "solid" for _ in range(2)]
    return Situation(
        ahead=_drawn(rng, _AHEAD),
        signal=_drawn(rng, _SIGNAL),
        lines=StreetLines(left=styles[0], right=styles[1]),
        left=_drawn(rng, _BESIDE),
        right=_drawn(rng, _BESIDE),
    )


def _drawn(rng: np.random.Generator, shares: dict[Any, float]) -> Any:
    names = list(shares)
    return names[int(rng.choice(len(names), p=list(shares.values())))]


def draw_moment(rng: np.random.Generator, situation: Situation) -> Moment:
    """Where all that stands, and beside it things that decide nothing."""
    things = [*_on_lane(rng, situation), *_signal(rng, situation.signal)]
    for side in ("left", "right"):
        things += _beside_us(rng, side, situation.left if side == "left" else situation.right)
    for number in range(int(rng.choice(3, p=[0.6, 0.3, 0.1]))):
        aside = float(rng.choice([-1.0, 1.0]) * rng.uniform(6.6, 9.0))
        things.append(_thing(rng, f"bystander-{number}", "walker", "bystander", aside))
    return Moment(
        lines=situation.lines,
        things=tuple(things),
        curvature=float(rng.uniform(-1.0, 1.0) / 220.0),
        pose=Pose(
            s_m=float(rng.uniform(60.0, 200.0)),
            d_m=float(rng.uniform(-0.25, 0.25)),
            yaw_rad=float(rng.uniform(-0.012, 0.012)),
            pitch_rad=float(rng.uniform(-0.004, 0.004)),
        ),
    )


def _thing(rng: np.random.Generator, name: str, kind: Any, at: str, d_m: float) -> Thing:
    return Thing(
        name=name,
        kind=kind,
        ahead_m=float(rng.uniform(*_AT_M[at])),
        d_m=d_m,
        body=random_body(rng) if kind == "car" else None,
        look=int(rng.integers(WALKERS)),
    )


def _on_lane(rng: np.random.Generator, situation: Situation) -> list[Thing]:
    ahead = situation.ahead
    if ahead == "nothing":
        return []
    kind = "car" if ahead.endswith("car") else ahead
    reach = 1.1 if ahead == "walker" else 0.25
    return [_thing(rng, "ahead", kind, ahead, float(rng.uniform(-reach, reach)))]


def _signal(rng: np.random.Generator, lamp: Signal) -> list[Thing]:
    if lamp == "none":
        return []
    portal = _thing(rng, "portal", "portal", "signal", 0.0)
    return [portal, Thing(name="signal", kind=lamp, ahead_m=portal.ahead_m - 0.1, d_m=0.0)]


def _beside_us(rng: np.random.Generator, side: Side, beside: Beside) -> list[Thing]:
    if beside == "free":
        return []
    at = "far-car" if beside == "far-car" else "beside"
    d_m = LANE_CENTRES_M[side] + float(rng.uniform(-0.25, 0.25))
    return [_thing(rng, side, "barrier" if beside == "barrier" else "car", at, d_m)]


@lru_cache(maxsize=4)
def _street(scenes: Scenes, place: int) -> Street:
    camera = Camera(height=scenes.height, width=scenes.width)
    seeds = ((scenes.seed, place, stream) for stream in (_PLACE, _LIGHT))
    return Street(camera, scenery_seed=next(seeds), light_seed=next(seeds))


@dataclass(frozen=True, kw_only=True)
class SyntheticScenes:
    """Renders scenes; holds the options only, so any process can render any of them."""

    scenes: Scenes

    def situation(self, position: int) -> tuple[Situation, np.random.Generator]:
        """What a scene holds, and the generator that draws the rest of it."""
        # A seed that ends in 0 would be the seed without its end.
        rng = np.random.default_rng((self.scenes.seed, position, _SCENE))
        return draw_situation(rng), rng

    def read(self, position: int) -> tuple[Image, UInt8[np.ndarray, "H W"]]:
        """The image of a scene, and which actions each of its pixels decides: bit k for label k."""
        situation, rng = self.situation(position)
        street = _street(self.scenes, position // self.scenes.scenes_a_place)
        picture = street.picture(draw_moment(rng, situation), rng)
        return picture.image, situation.causes(picture)


def image_set(
    source: Path | str, *, images: int = 2000, seed: int = 0, height: int = 192, width: int = 320
) -> ImageSet:
    """Makes a set of scenes; nothing is rendered until its images are read.

    Whole places, with their surroundings and light, are divided: of ten, seven train, one validates, two
    test.

    Args:
        source: `-`, or a TOML file whose keys are the options below and replace the arguments.
        images: how many.
        seed: the scenes of two seeds have nothing in common.
        height: of the images in pixels.
        width: of the images in pixels.

    Raises:
        DataError: the file is missing or not TOML, or an option is unknown or out of range.

    Example:
        >>> scenes = image_set("-", images=3)
        >>> scenes.label_names, scenes.rendered.read(0)[0].shape
        (('forward', 'stop', 'left', 'right'), (192, 320, 3))
    """
    options = {"images": images, "seed": seed, "height": height, "width": width}
    if str(source) != "-":
        options |= _read_toml(Path(source))
    scenes = Scenes(**options)
    rendered = SyntheticScenes(scenes=scenes)
    return ImageSet(
        name=f"{NAME}-{scenes.seed}",
        source=NAME,
        label_names=ACTIONS,
        items=[_item(rendered, position) for position in range(scenes.images)],
        rendered=rendered,
        provenance={"scene_version": SCENE_VERSION, **asdict(scenes), "licence": "generated; free of rights"},
    )


def _item(rendered: SyntheticScenes, position: int) -> ImageItem:
    situation, _ = rendered.situation(position)
    place = position // rendered.scenes.scenes_a_place
    split = ("train",) * 7 + ("val",) + ("test",) * 2
    return ImageItem(
        path=None,
        key=f"{position:06d}_{situation.words}",
        labels=situation.labels,
        split=split[place % 10],
        group=f"place-{place}",
    )


def recognises(source: Path) -> bool:
    """Whether the source is a TOML file with nothing but these options, `images` among them."""
    if source.suffix != ".toml" or not source.is_file():
        return False
    try:
        return "images" in _read_toml(source)
    except DataError:
        return False


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        options = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; pass a TOML file, or - for the defaults") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not TOML ({error}); expected lines such as images = 2000") from error
    known = [field.name for field in fields(Scenes)]
    if unknown := sorted(set(options) - set(known)):
        raise DataError(f"{path}: unknown key {unknown[0]!r}; synthetic actions have {', '.join(known)}")
    return options
