"""Synthetic drives: a rendered country road whose steering label, and its cause, are known exactly.

What causes the label. The label is the curvature that the driver steers (`synthetic.road`): the
least-squares arc through the centre of the own lane from just ahead of the car to the look-ahead
distance (1.15 s of driving, 12 to 26 m), followed with a lag of 0.12 s. It depends on where the lane's
two borders lie against the car in that range, and on nothing else in the picture. So the mask holds,
at each frame, the visible pixels of the own lane's borders up to that distance: the centre line (its
painted dashes, where it is dashed), the right edge line, and the right edge of the asphalt, each with
the 6 cm around it that carry its contrast, and never narrower than 3 pixels. What a car or a tree hides
is left out.

What the mask leaves out on purpose: the left side of the road, the verge, the road beyond the look-ahead
distance and other cars. They go with the road, so a model may use them, but moving them alone would not
move the label. Trees, posts and their shadows keep clear of the road at random distances, and so go with
it loosely. Light and colours go with nothing: they have random numbers of their own. Between frames
everything moves as the car turns, as in life; the mask speaks of one frame. The wheel's angle also
depends on the speed, by the slip term of eq. 3, and no pixel shows the speed.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Int64

from data_prep.errors import DataError
from data_prep.schema import VEHICLES, Drive, Image, Signal
from data_prep.shards.atomic import read_bounded
from data_prep.signals import steering_wheel_rad
from data_prep.synthetic.noise import wandering
from data_prep.synthetic.road import Motion, Road, follow, planned_speed, winding_road
from data_prep.synthetic.scene import Scene, Trip
from data_prep.synthetic.view import Camera

SCENE_VERSION = 1
"""Changes whenever the same options would render or label differently."""

_VEHICLE = VEHICLES["lincoln-mkz"]
_MOST_TOML_BYTES = 2**16
_TICKS_PER_S = 40.0
_START_M, _MARGIN_M = 40.0, 460.0
"""Road behind the first frame, whose trees cast shadows ahead, and beyond the last, as far as one sees."""
_ROUTE, _SCENERY, _LIGHT = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class Route:
    """The options of a set of synthetic drives, as in a route's TOML file."""

    seconds: float = 60.0
    """Length of each drive."""
    drives: int = 1
    rate_hz: float = 20.0
    """Frames a second."""
    seed: int = 0
    height: int = 240
    """Pixels."""
    width: int = 320
    """Pixels."""
    light_seed: int | None = None
    """Another seed for light, sky, colours and sensor noise alone; None takes `seed`."""

    def __post_init__(self) -> None:
        for option, smallest, largest in (
            ("seconds", 0.1, 36_000.0),
            ("drives", 1, 10_000),
            ("rate_hz", 1.0, 200.0),
            ("seed", 0, 2**63 - 1),
            ("height", 48, 2160),
            ("width", 64, 4096),
            ("light_seed", 0, 2**63 - 1),
        ):
            self._check(option, smallest, largest)

    def _check(self, option: str, smallest: float, largest: float) -> None:
        value = getattr(self, option)
        if value is None and option == "light_seed":
            return
        real = option in ("seconds", "rate_hz")
        kinds = (int, float) if real else (int,)
        if isinstance(value, bool) or not isinstance(value, kinds) or not smallest <= value <= largest:
            raise DataError(
                f"synthetic {option} is {value!r}; expected {'a number' if real else 'an integer'} "
                f"from {smallest} to {largest}"
            )


def drives(
    source: Path | str,
    *,
    seconds: float = 60.0,
    drives: int = 1,
    rate_hz: float = 20.0,
    seed: int = 0,
    height: int = 240,
    width: int = 320,
    light_seed: int | None = None,
) -> list[Drive]:
    """Makes synthetic drives; nothing is rendered until their images are read.

    Args:
        source: `-`, or a TOML file whose keys are the options below and replace the arguments.
        seconds: length of each drive.
        drives: how many; each has a road, a driver, a scenery and a light of its own.
        rate_hz: frames a second.
        seed: the drives of two seeds have nothing in common.
        height: of the images in pixels.
        width: of the images in pixels.
        light_seed: replaces the seed for light, sky, colours and sensor noise, and so renders the
            same drives, with the same labels and causes, on another day.

    Raises:
        DataError: the file is missing or not TOML, or an option is unknown or out of range.

    Example:
        >>> drive = drives("-", seconds=1.0)[0]
        >>> drive.name, len(drive), next(drive.images.read(0, 1)).shape
        ('synthetic-0-0', 20, (240, 320, 3))
    """
    route = Route(
        seconds=seconds,
        drives=drives,
        rate_hz=rate_hz,
        seed=seed,
        height=height,
        width=width,
        light_seed=light_seed,
    )
    if str(source) != "-":
        route = _read_route(Path(source), route)
    return [_drive(_Course(route=route, number=number)) for number in range(route.drives)]


def recognises(source: Path) -> bool:
    """Whether the source is `-` or a TOML file with nothing but a route's options, at least one."""
    if str(source) == "-":
        return True
    if source.suffix != ".toml" or not source.is_file():
        return False
    try:
        return bool(_read_toml(source)) and bool(_read_route(source, Route()))
    except DataError:
        return False


def _read_toml(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(read_bounded(path, most=_MOST_TOML_BYTES).decode())
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}; pass a route's TOML file, or - for the defaults"
        ) from error
    except ValueError as error:  # not TOML, not text, too large
        raise DataError(f"{path}: not TOML ({error}); expected lines such as seconds = 60.0") from error


def _read_route(path: Path, route: Route) -> Route:
    options = _read_toml(path)
    known = [field.name for field in fields(Route)]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise DataError(f"{path}: unknown key {unknown[0]!r}; a route has {', '.join(known)}")
    return replace(route, **options)  # type: ignore[arg-type]  # Route checks the values itself.


@dataclass(frozen=True, kw_only=True)
class _Course:
    """One drive of a route: all that a worker needs to render it."""

    route: Route
    number: int

    @property
    def frames(self) -> int:
        return max(round(self.route.seconds * self.route.rate_hz), 1)

    @property
    def ticks_per_frame(self) -> int:
        return max(int(np.ceil(_TICKS_PER_S / self.route.rate_hz)), 1)

    @property
    def name(self) -> str:
        name = f"synthetic-{self.route.seed}-{self.number}"
        return name if self.route.light_seed is None else f"{name}-light-{self.route.light_seed}"

    def seed(self, stream: int) -> tuple[int, ...]:
        light = self.route.light_seed
        seed = light if stream == _LIGHT and light is not None else self.route.seed
        return (seed, self.number, stream)


@dataclass(frozen=True, kw_only=True)
class _Travelled:
    """A course driven to its end: the state at every tick, of which a frame has a whole number."""

    road: Road
    motion: Motion
    time_ns: Int64[np.ndarray, " K"]
    pitch_rad: Float64[np.ndarray, " K"]


@lru_cache(maxsize=4)
def _travel(course: _Course) -> _Travelled:
    road_rng, drift_rng, pitch_rng = np.random.default_rng(course.seed(_ROUTE)).spawn(3)
    per_frame = course.ticks_per_frame
    tick_s = 1.0 / (course.route.rate_hz * per_frame)
    tick = np.arange((course.frames - 1) * per_frame + 1)
    time_s = tick * tick_s
    fastest_mps = road_rng.uniform(16.0, 21.0)
    road = winding_road(road_rng, _START_M + time_s[-1] * fastest_mps + _MARGIN_M)
    # 0.02 rad/s at 18 m/s is a wheel held some 4 degrees against wind or camber.
    drift = 0.02 * wandering(drift_rng, time_s, periods_s=(2.5, 9.0))
    motion = follow(
        road,
        planned_speed(road, fastest_mps=fastest_mps),
        tick_s=tick_s,
        drift_rad_per_s=drift,
        start_m=_START_M,
    )
    return _Travelled(
        road=road,
        motion=motion,
        time_ns=np.rint(tick * (1e9 / (course.route.rate_hz * per_frame))).astype(np.int64),
        pitch_rad=0.0022 * wandering(pitch_rng, time_s, periods_s=(0.7, 5.0)),
    )


@lru_cache(maxsize=4)
def _scene(course: _Course) -> Scene:
    travelled, motion = _travel(course), _travel(course).motion
    at_frames = slice(None, None, course.ticks_per_frame)
    trip = Trip(
        road=travelled.road,
        time_s=travelled.time_ns[at_frames] * 1e-9,
        s_m=motion.s_m[at_frames],
        d_m=motion.d_m[at_frames],
        yaw_rad=motion.yaw_rad[at_frames],
        pitch_rad=travelled.pitch_rad[at_frames],
        look_ahead_m=motion.look_ahead_m[at_frames],
    )
    camera = Camera(height=course.route.height, width=course.route.width)
    return Scene(trip, camera, scenery_seed=course.seed(_SCENERY), light_seed=course.seed(_LIGHT))


@dataclass(frozen=True, kw_only=True)
class SyntheticImages:
    """Renders a drive's images; holds its options only, so any process can render any part."""

    course: _Course

    def read(self, start: int, stop: int) -> Iterator[Image]:
        """Yields the RGB images of frames `start` to `stop` (exclusive).

        Raises:
            DataError: the drive has no such frames.
        """
        _check_range(self.course, start, stop)
        scene = _scene(self.course)
        return (scene.image(frame) for frame in range(start, stop))

    def files(self, start: int, stop: int) -> Iterator[tuple[str, str]]:
        """None: the drive's options, in its provenance, say everything."""
        return iter(())


@dataclass(frozen=True, kw_only=True)
class SyntheticCauses:
    """The masks of the pixels that cause the label; see the module's description."""

    course: _Course

    def read(self, start: int, stop: int) -> Iterator[Bool[np.ndarray, "H W"]]:
        """Yields the masks of frames `start` to `stop` (exclusive).

        Raises:
            DataError: the drive has no such frames.
        """
        _check_range(self.course, start, stop)
        scene = _scene(self.course)
        return (scene.causes(frame) for frame in range(start, stop))


def _check_range(course: _Course, start: int, stop: int) -> None:
    if not 0 <= start <= stop <= course.frames:
        raise DataError(
            f"{course.name}: frames {start} to {stop} were asked for; it has {course.frames}, ask within 0 to that"
        )


def _drive(course: _Course) -> Drive:
    travelled, motion = _travel(course), _travel(course).motion
    wheel_rad = steering_wheel_rad(motion.curvature, motion.speed_mps, _VEHICLE)
    return Drive(
        name=course.name,
        source="synthetic",
        camera="front",
        vehicle=_VEHICLE,
        time_ns=travelled.time_ns[:: course.ticks_per_frame].copy(),
        images=SyntheticImages(course=course),
        steering_wheel=Signal(time_ns=travelled.time_ns, value=wheel_rad),
        speed=Signal(time_ns=travelled.time_ns, value=motion.speed_mps),
        causes=SyntheticCauses(course=course),
        provenance={
            "scene_version": SCENE_VERSION,
            "drive": course.number,
            **asdict(course.route),
            "licence": "generated; free of rights",
        },
    )
