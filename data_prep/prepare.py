"""Raw logs to shards: read, align, write in units, index, and the manifest last.

The output is the same bytes whatever the engine, the number of workers, or how often the run was
killed and resumed.
"""

from __future__ import annotations

import json
import math
import shlex
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from data_prep import engines, places
from data_prep.alignment import Alignment
from data_prep.drive_job import DriveJob, least_smoothing
from data_prep.engines import Engine, EngineName
from data_prep.errors import DataError, SettingNeededError
from data_prep.geometry import Geometry
from data_prep.image_job import ImageJob
from data_prep.jobs import Job
from data_prep.output import Output
from data_prep.policy import Fault, OnBad, Policy
from data_prep.publish import Publication, Sent, check_url, sent_before
from data_prep.readers import READERS, entry, option_types, read
from data_prep.readers.paths import printable
from data_prep.schema import VEHICLES, Drive, ImageSet
from data_prep.shards import manifest_parts
from data_prep.shards.manifest import Manifest, ShardEntry, require_readable
from data_prep.split import BlockSplit, DriveSplit, NoRoomError, OnePart, SplitRule, Timeline, check_gap
from data_prep.stores import Store, is_elsewhere
from data_prep.values import PositiveCount, Seed

_LEAST_ENTRY_BYTES = 64 + 100
"""Of a shard's entry in the manifest: its hash, and the names of its fields."""
Split = Literal["block", "drive", "train", "val", "test"]

DRIVE_ONLY = (
    "vehicle",
    "smoothing",
    "lead_s",
    "tolerance_s",
    "hole_periods",
    "split",
    "blocks",
    "gap_s",
    "val_drives",
    "test_drives",
    "seed",
)
"""Settings that say nothing of labelled images; the manifest of an image set does not name them."""


@dataclass(frozen=True, kw_only=True)
class PrepConfig(Alignment, error=DataError):
    """Everything that decides the output's bytes. Saved in the manifest."""

    reader: str
    source: Path
    reader_options: Mapping[str, Any] = field(default_factory=dict)
    """The reader's own options, for example `{"camera": "left"}`."""
    geometry: Geometry | None = None
    """Crop and size. None: 160x80 uncropped for sequences, images kept as they are."""
    vehicle: str | None = None
    """A name in `VEHICLES`, in place of the one the reader knows."""
    on_bad: OnBad = "drop"
    """What to do about frames that cannot be used: drop and count them, or stop."""
    refuse: tuple[Fault, ...] = ()
    """Faults to stop at even so; `gap` is a hole in time, which by itself costs no frame."""
    split: Split | None = None
    """By blocks of time within each drive, by whole drives, or everything into one part. None:
    blocks where steering is recorded, otherwise test. Image sets keep their authors' split."""
    blocks: PositiveCount = 5
    gap_s: float = 2.0
    """How far in time the frames of two parts are apart at least, also in different drives."""
    val_drives: tuple[str, ...] = ()
    """For `split="drive"`; with `test_drives` empty too, a seeded fifth each."""
    test_drives: tuple[str, ...] = ()
    seed: Seed = 0
    frames_per_shard: PositiveCount = 2000
    """Also the number of images in an image shard."""

    def __post_init__(self) -> None:
        super().__post_init__()
        entry(self.reader)
        check_gap(self.gap_s)
        if self.split in (None, "block", "drive") and self.lead_s >= self.gap_s:
            raise DataError(
                f"lead_s {self.lead_s} reaches over gap_s {self.gap_s}, into the labels of another split; "
                "make the gap longer"
            )
        if self.vehicle is not None and self.vehicle not in VEHICLES:
            raise DataError(f"vehicle {self.vehicle!r} is unknown; choose one of {', '.join(VEHICLES)}")

    @property
    def policy(self) -> Policy:
        return Policy(on_bad=self.on_bad, refuse=self.refuse)

    def to_json(self) -> dict[str, Any]:
        """JSON values; of the source only its base name, so that output does not depend on where it lies."""
        value = asdict(self) | {
            "source": printable(self.source.resolve().name),
            "reader_options": dict(self.reader_options),
        }
        return value | {name: list(value[name]) for name in ("refuse", "val_drives", "test_drives")}


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is, for `on_progress`. Units found whole on resuming count as done."""

    units_done: int
    units_total: int
    rows_done: int


def prepare(
    config: PrepConfig,
    out: Path | str,
    *,
    engine: EngineName = "serial",
    workers: int = 1,
    scheduler: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Manifest:
    """Turns one source into a folder of shards, whole or recognisably unfinished.

    Args:
        config: what to read and how.
        out: the folder to write: new or empty, unless `resume` or `overwrite`. Of a store, such as
            `s3://bucket/drives`, shards are sent as they finish and the manifest last; see docs/places.md.
        engine: where units run.
        workers: threads of the serial engine, processes of the others.
        scheduler: address of a Dask scheduler; None starts one on this machine.
        resume: keep the shards that an earlier run of the same configuration finished, by hash.
        overwrite: replace an earlier output; a folder that holds anything else is refused.
        on_progress: called in this process after each shard.
        on_note: called with a sentence that the user should see, for example that no lock is granted.

    Returns:
        The manifest, as saved.

    Raises:
        DataError: the source or the configuration cannot be used, or the output folder is not ours.
        OutputError: the output folder cannot be written, or its disk is full.
        StoreError: the store cannot be reached, or refuses.
        EngineError: workers were lost; `resume` continues.

    Example:
        prepare(PrepConfig(reader="udacity-csv", source=Path("ch2_001")), Path("shards/ch2_001"), workers=2)
    """
    runner = engines.build(engine, workers=workers, scheduler=scheduler)
    if is_elsewhere(out):
        return _prepare_into_store(
            config,
            str(out),
            runner,
            resume=resume,
            overwrite=overwrite,
            on_progress=on_progress,
            on_note=on_note,
        )
    job = read_job(config, out=out)
    with _opened(job, places.local(out), on_note, resume=resume, overwrite=overwrite) as output:
        done = output.finished(job.unit_paths)
        work = job.work(root=output.root, scratch=output.scratch, threads=runner.threads)
        _run(job, runner, work, output, done, on_progress)
        return output.commit(job, done)


def _prepare_into_store(
    config: PrepConfig,
    url: str,
    runner: Engine,
    *,
    resume: bool,
    overwrite: bool,
    on_progress: Callable[[Progress], None] | None,
    on_note: Callable[[str], None] | None,
) -> Manifest:
    """As `prepare`: each shard is made below the cache, sent by whoever made it, and removed there."""
    if overwrite:
        raise DataError(
            f"{url}: prep replaces nothing in a store; remove what lies there, or choose a new folder"
        )
    check_url(url)
    job = read_job(config, out=url)
    publication = Publication(Store.open(url), job.fingerprint, job.source.times)
    sent = sent_before(publication, resume=resume)
    with _opened(job, places.outgoing(url), on_note, resume=False, overwrite=True) as output:
        done = {path: sent[path] for path in job.unit_paths if path in sent}
        work = job.work(root=output.root, scratch=output.scratch, threads=runner.threads)
        sending = Sent(work, url, job.fingerprint, output.root, output.scratch)
        _run(job, runner, sending, output, done, on_progress)
        manifest = output.commit(job, done)
        missing = publication.lacking(manifest)
        for entry in (*manifest.index, *manifest.parts) if missing is None else missing:
            publication.send(output.root, entry)
        publication.finish(manifest)
    shutil.rmtree(output.root, ignore_errors=True)
    return manifest


def _opened(
    job: Job, root: Path, on_note: Callable[[str], None] | None, *, resume: bool, overwrite: bool
) -> AbstractContextManager[Output]:
    return Output.open(
        root,
        fingerprint=job.fingerprint,
        source=job.source,
        resume=resume,
        overwrite=overwrite,
        on_unlocked=on_note,
    )


def _run(
    job: Job,
    runner: Engine,
    work: Callable[[Any], ShardEntry],
    output: Output,
    done: dict[str, ShardEntry],
    on_progress: Callable[[Progress], None] | None,
) -> None:
    """Makes the shards that are not done yet, and notes each."""
    missing = [unit for unit in job.units if unit.path not in done]
    _report(on_progress, done, job)
    for shard in runner.map(work, missing):
        output.record(shard)
        done[shard.path] = shard
        _report(on_progress, done, job)


def read_job(config: PrepConfig, *, out: str | Path | None = None) -> Job:
    """Reads and plans; writes nothing.

    Args:
        config: what to read and how.
        out: the folder or store that will be written, for the command in a message; None where nobody knows it.

    Raises:
        DataError: the source or an option cannot be used; where other settings would do, the message ends with
            the whole command.
    """
    try:
        job = _planned(config)
        # Before hours of work: no entry is shorter than its path and its hash.
        in_one_file = job.unit_paths[: manifest_parts.SHARDS_PER_PART]
        least = sum(len(path) + _LEAST_ENTRY_BYTES for path in in_one_file)
        require_readable(least, shards=len(job.unit_paths), drives=job.sources)
        return job
    except (SettingNeededError, NoRoomError) as error:
        raise DataError(f"{error}: {command_of(_fitting(config, error), out)}") from None


def _fitting(config: PrepConfig, error: DataError) -> PrepConfig:
    """Settings under which the source can be planned, as far as faults say what they need."""
    while True:
        if isinstance(error, NoRoomError):
            other = _with_room(config, error.shortest)
        elif isinstance(error, SettingNeededError):
            options = {**config.reader_options, **error.reader_options}
            other = replace(config, reader_options=options, **error.settings)
        else:
            return config
        if other == config:
            return config
        config = other
        try:
            _planned(config)
        except DataError as next_error:
            error = next_error
        else:
            return config


def _planned(config: PrepConfig) -> Job:
    records = _read(config)
    if isinstance(records, ImageSet):
        _check_for_images(config)
        told = config.to_json()
        return ImageJob.plan(
            records,
            config={name: told[name] for name in told if name not in DRIVE_ONLY},
            geometry=config.geometry,
            policy=config.policy,
            images_per_shard=config.frames_per_shard,
        )
    if config.vehicle is not None:
        records = [replace(drive, vehicle=VEHICLES[config.vehicle]) for drive in records]
    geometry = config.geometry or Geometry()
    labelled = any(drive.steering_wheel is not None for drive in records)
    resolved = replace(config, geometry=geometry, split=config.split or ("block" if labelled else "test"))
    return DriveJob.plan(
        records,
        config=resolved.to_json(),
        geometry=geometry,
        alignment=config,
        policy=config.policy,
        split=_split_rule(resolved),
        frames_per_shard=config.frames_per_shard,
    )


def _with_room(config: PrepConfig, shortest: Timeline) -> PrepConfig:
    """Settings under which so short a drive has its blocks; or the whole drive as a test."""
    lasts_s = int(shortest.time_ns[-1] - shortest.time_ns[0]) / 1e9
    gap_s = math.floor(10 * lasts_s / config.blocks / 4) / 10
    if gap_s <= config.lead_s:
        return replace(config, split="test")
    least = least_smoothing(gap_s * len(shortest.time_ns) / lasts_s)
    return replace(config, gap_s=gap_s, smoothing=max(config.smoothing, least))


_NAMED = ("reader", "source", "reader_options")
"""Of the settings, those that a command line has words of their own for."""


def command_of(config: PrepConfig, out: str | Path | None = None) -> str:
    """The command line of a preparation.

    Args:
        config: what to read and how.
        out: the folder to write; None leaves OUT in its place.

    Example:
        >>> command_of(PrepConfig(reader="video", source=Path("my drive.mp4"), seed=3), Path("shards"))
        "driving-xai prep video 'my drive.mp4' shards --set seed=3"
    """
    words = [
        "driving-xai",
        "prep",
        config.reader,
        places.named(config.source),
        "OUT" if out is None else str(out),
    ]
    for name, value in config.reader_options.items():
        words += ["--option", f"{name}={value}"]
    default = PrepConfig(reader=config.reader, source=config.source)
    settings = {
        each.name: getattr(config, each.name) for each in fields(PrepConfig) if each.name not in _NAMED
    }
    if config.geometry is not None:
        del settings["geometry"]
        settings |= {
            f"geometry.{each.name}": getattr(config.geometry, each.name) for each in fields(Geometry)
        }
    usual = {f"geometry.{each.name}": each.default for each in fields(Geometry)}
    for name, value in settings.items():
        if value != usual.get(name, getattr(default, name, None)):
            words += ["--set", f"{name}={json.dumps(value) if isinstance(value, tuple) else value}"]
    return shlex.join(words)


def _check_for_images(config: PrepConfig) -> None:
    """Refuses what would be ignored, and recorded as if it had been heeded."""
    defaults = {each.name: each.default for each in fields(PrepConfig)}
    given = [name for name in DRIVE_ONLY if getattr(config, name) != defaults[name]]
    if not given:
        return
    options = option_types(READERS[config.reader])
    ways = [f"--option {name}={getattr(config, name)}" for name in given if name in options]
    instead = f"use {' '.join(ways)}" if ways else "leave it out; image sets keep their authors' split"
    raise DataError(
        f"{', '.join(given)} is a setting of drives, and reader {config.reader} gives labelled images; {instead}"
    )


def _split_rule(config: PrepConfig) -> SplitRule:
    if config.split == "block":
        return BlockSplit(blocks=config.blocks, gap_s=config.gap_s)
    if config.split == "drive":
        return DriveSplit(
            val=config.val_drives, test=config.test_drives, seed=config.seed, gap_s=config.gap_s
        )
    assert config.split is not None
    return OnePart(part=config.split)


def _read(config: PrepConfig) -> list[Drive] | ImageSet:
    # `-` is a reader's own default source: the synthetic road needs no file.
    if str(config.source) != "-" and not config.source.exists():
        raise DataError(f"{config.source}: no such file or folder; check the path")
    return read(config.reader, config.source, config.reader_options)


def _report(on_progress: Callable[[Progress], None] | None, done: Mapping[str, Any], job: Job) -> None:
    if on_progress is not None:
        rows = sum(shard.rows for shard in done.values())
        on_progress(Progress(units_done=len(done), units_total=len(job.units), rows_done=rows))
