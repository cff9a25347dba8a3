"""prep: raw logs to shards."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from driving_xai.cli import console, settings
from driving_xai.cli.options import ON_BAD, REFUSE, Assignments, Config, DryRun, Json, Scheduler, fetched


def prep(
    reader: Annotated[str, typer.Argument(metavar="READER", help="What the source is; from the list below.")],
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            parser=fetched,
            help="Folder or file of the recording, here or in a store; `-` for synthetic.",
        ),
    ],
    out: Annotated[
        str,
        typer.Argument(
            metavar="OUT", help="Folder for the shards, new or empty; here, or as s3://bucket/drives."
        ),
    ],
    config: Config = None,
    assignments: Assignments = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option", metavar="NAME=VALUE", help="An option of the reader, as camera=left; repeatable."
        ),
    ] = None,
    task: Annotated[
        Literal["steering", "actions"],
        typer.Option(help="What synthetic data is for: drives to steer, or streets with driving actions."),
    ] = "steering",
    split: Annotated[
        Literal["block", "drive", "train", "val", "test"] | None,
        typer.Option(
            help="How drives are split: by time blocks in each, by whole drives, or all into one part. "
            "[default: block; test where no steering is recorded; images keep their authors' split]"
        ),
    ] = None,
    smoothing: Annotated[
        float | None,
        typer.Option(help="Drives: alpha of the exponential smoothing, 1 is off. [default: 0.2]"),
    ] = None,
    crop_top: Annotated[float | None, typer.Option(help="Fraction of the image's height to cut off.")] = None,
    crop_bottom: Annotated[
        float | None, typer.Option(help="Fraction of the image's height to cut off.")
    ] = None,
    vehicle: Annotated[
        str | None,
        typer.Option(help="The vehicle, in place of the one that the reader knows."),
    ] = None,
    on_bad: Annotated[
        Literal["drop", "refuse"] | None,
        typer.Option(help=ON_BAD),
    ] = None,
    refuse: Annotated[
        list[str] | None,
        typer.Option(metavar="FAULT", help=REFUSE),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Seed of a random choice of whole drives; for synthetic streets use --option seed=N. [default: 0]"
        ),
    ] = None,
    engine: Annotated[
        Literal["serial", "processes", "dask"],
        typer.Option(help="Where work runs."),
    ] = "serial",
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Threads of serial, processes of the others. [default: all cores]"),
    ] = None,
    scheduler: Scheduler = None,
    publish_to: Annotated[
        str | None,
        typer.Option(
            "--publish",
            metavar="URL",
            help="Then copy the output there, as s3://bucket/drives; manifest last.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Keep the shards that an earlier run finished."),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier output.")] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Turn a recording into shards.

    Controls are synchronised to the frames and smoothed, frames cropped and resized, the split assigned.
    Every run of the same source and settings writes the same bytes; an interrupted one continues with
    --resume.

    \b
    Example: driving-xai prep udacity-csv CH2_001 shards --crop-top 0.4 \\
                 --workers 2
    """
    from data_prep.prepare import PrepConfig, Progress, prepare
    from data_prep.publish import check_url, publish
    from data_prep.stores import is_url

    options = {
        "reader": _reader_for(task, reader),
        "source": source,
        "split": split,
        "smoothing": smoothing,
        "geometry.crop_top": crop_top,
        "geometry.crop_bottom": crop_bottom,
        "vehicle": vehicle,
        "on_bad": on_bad,
        "refuse": refuse or None,
        "seed": seed,
    }
    for_reader = [f"reader_options.{each}" for each in option or ()]
    resolved = settings.resolve(
        PrepConfig, config, options=options, assignments=[*(assignments or ()), *for_reader]
    )
    if publish_to is not None:
        if is_url(out):
            raise settings.SettingsError(
                "--publish copies a folder of this machine, and OUT is a URL; leave one out"
            )
        check_url(publish_to)
    if dry_run:
        _foretell(resolved, out, workers or len(os.sched_getaffinity(0)), as_json)
        return
    with console.progress("prep", unit="shards") as on_progress:

        def shown(progress: Progress) -> None:
            on_progress(progress.units_done, progress.units_total)

        manifest = prepare(
            resolved,
            out,
            engine=engine,
            workers=workers or len(os.sched_getaffinity(0)),
            scheduler=scheduler,
            resume=resume,
            overwrite=overwrite,
            on_progress=shown,
            on_note=console.say,
        )
    if publish_to is not None:
        with console.progress("publish", unit="files") as on_sent:
            publish(Path(out), publish_to, on_progress=on_sent)
    _show(out, manifest, as_json)


def _reader_for(task: str, reader: str) -> str:
    """`synthetic --task actions` is a reader of its own."""
    if task == "steering":
        return reader
    if reader not in ("synthetic", "synthetic-actions"):
        raise settings.SettingsError(f"--task actions is for reader synthetic; {reader} is read as it is")
    return "synthetic-actions"


def _foretell(config: Any, out: str, workers: int, as_json: bool) -> None:
    from data_prep.forecast import forecast
    from data_prep.prepare import command_of, read_job
    from data_prep.readers import entry

    job = read_job(config, out=out)
    found = forecast(job, workers=workers)
    if as_json:
        told = {"config": config.to_json(), "shards": list(job.unit_paths), "forecast": found._asdict()}
        console.print_json(told)
        return
    typer.echo(found.sentence("frames" if entry(config.reader).kind == "sequences" else "images"))
    typer.echo(f"nothing was written; to do it: {command_of(config, out)}")


def _show(out: str, manifest: Any, as_json: bool) -> None:
    size = sum(shard.bytes for shard in manifest.shards)
    summary = {
        "out": str(out),
        "kind": manifest.kind,
        "rows": manifest.rows,
        "shards": len(manifest.shards),
        "bytes": size,
        "sha256": manifest.sha256,
        "quality": manifest.quality,
    }
    if as_json:
        console.print_json(summary)
        return
    from driving_xai.cli import quality_table

    typer.echo(f"{out}: {manifest.rows:,} rows in {len(manifest.shards)} shards, {size / 1e6:,.1f} MB")
    typer.echo("\n".join(quality_table.lines(manifest.kind, manifest.quality)))
