"""info: what a folder is, by the files in it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from data_prep.places import named
from driving_xai.cli import console, tables
from driving_xai.cli.options import Json, fetched
from driving_xai.errors import DataError


def info(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", parser=fetched, help="A folder that prep, train or score wrote.")
    ],
    figure: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png", help="Draw sample frames with their labels, and the quality report of shards."
        ),
    ] = None,
    against: Annotated[
        tables.Against,
        typer.Option(help="What the shown scores compare with: the unmodified prediction, or the truth."),
    ] = "unmodified",
    as_json: Json = False,
) -> None:
    """Say what a folder holds: shards, a checkpoint, results.

    For an unfinished run: how far it came, where a training's best weights so far are, and how to go on.

    \b
    Example: driving-xai info shards --figure quality.png
    """
    if figure is not None:
        _draw_quality(path, figure)
    for file, (describe, show) in _KINDS.items():
        # A killed training may have left weights that have no config.json yet.
        if (path / file).is_file() and not _is_training(path):
            found = describe(path)
            if as_json:
                console.print_json(found)
            else:
                typer.echo("\n".join(show(found, against)))
            return
    for read, show_unfinished in _UNFINISHED:
        begun = read(path)
        if begun is not None:
            if as_json:
                console.print_json(begun)
            else:
                typer.echo("\n".join(show_unfinished(begun)))
            return
    wrong = "holds none of" if path.exists() else "no such folder; expected one with"
    raise DataError(f"{path}: {wrong} {', '.join(_KINDS)}; give a folder that prep, score or train wrote")


def _is_training(path: Path) -> bool:
    """As `unfinished.is_unfinished`, which brings torch along."""
    return (path / "resume" / "config.json").is_file() and not (path / "config.json").exists()


def _of_training(path: Path) -> dict[str, Any] | None:
    if not _is_training(path):
        return None
    from driving_xai import unfinished

    found = asdict(unfinished.read(path))
    return {"what": "unfinished training", "path": named(path), **found}


def _show_training(found: dict[str, Any]) -> list[str]:
    lines = [
        f"{found['path']}: unfinished training of kind {found['kind']}, {found['epoch']} of {found['epochs']} epochs kept"
    ]
    if found["best"] is not None:
        unrated = found["monitor"] is None or found["value"] is None
        by = "" if unrated else f", {found['monitor']} {found['value']:.4g}"
        lines.append(
            f"  best so far  epoch {found['best_epoch']}{by}; explain, score and replay take its weights"
        )
    return [*lines, "  the command that began it goes on with --resume"]


def _of_preparation(path: Path) -> dict[str, Any] | None:
    from data_prep.output import unfinished_shards

    shards = unfinished_shards(path)
    if shards is None:
        return None
    size = sum(shard.bytes for shard in shards)
    return {"what": "unfinished preparation", "path": str(path), "shards": len(shards), "bytes": size}


def _show_preparation(found: dict[str, Any]) -> list[str]:
    return [
        f"{found['path']}: unfinished preparation, {found['shards']:,} shards of {found['bytes'] / 1e6:,.1f} MB "
        "written",
        "  it is no data set yet; the command that began it goes on with --resume",
    ]


def _of_scoring(path: Path) -> dict[str, Any] | None:
    from driving_xai.evaluation.parts import unfinished

    found = unfinished(path)
    return None if found is None else {"what": "unfinished scores", "path": str(path), **found._asdict()}


def _show_scoring(found: dict[str, Any]) -> list[str]:
    return [
        f"{found['path']}: unfinished scores, {found['batches']:,} batches of frames scored",
        f"  methods    {', '.join(found['methods'])}",
        f"  measures   {', '.join(found['measures'])}",
        "  it has no results yet; the command that began it goes on with --resume",
    ]


def _of_shards(path: Path) -> dict[str, Any]:
    from data_prep import quality
    from data_prep.shards.manifest import Manifest

    manifest = Manifest.load(path)
    quality.check(manifest.kind, manifest.quality)
    return {
        "what": "shards",
        "path": named(path),
        "kind": manifest.kind,
        "rows": manifest.rows,
        "shards": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "sha256": manifest.sha256,
        "drives": [drive.get("name") for drive in manifest.drives],
        "vehicle": manifest.vehicle,
        "geometry": manifest.geometry,
        "signals": manifest.signals,
        "quality": manifest.quality,
        "config": manifest.config,
    }


def _draw_quality(path: Path, figure: Path) -> None:
    from data_prep import quality, quality_figure
    from data_prep.sample_frames import sample_frames
    from data_prep.shards.atomic import replacing
    from data_prep.shards.manifest import Manifest
    from data_prep.shards.parquet import read_index

    if figure.suffix != ".png":
        raise typer.BadParameter(f"{figure} is no .png file", param_hint="--figure")
    manifest = Manifest.load(path)
    quality.check(manifest.kind, manifest.quality)
    index = read_index(path, manifest)
    samples = sample_frames(path, index)
    picture = quality_figure.draw(manifest.kind, manifest.quality, index, samples)
    figure.parent.mkdir(parents=True, exist_ok=True)
    with replacing(figure) as temporary:
        temporary.write_bytes(quality_figure.encode(picture))


def _show_shards(found: dict[str, Any], _: tables.Against) -> list[str]:
    from driving_xai.cli import quality_table

    names = found["drives"]
    some = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return [
        f"{found['path']}: shards of {found['kind']}, {found['rows']:,} rows in {found['shards']} files",
        f"  drives     {some}",
        f"  read by    {found['config']['reader']} from {found['config']['source']}",
        f"  sha256     {found['sha256']}",
        *quality_table.lines(found["kind"], found["quality"]),
    ]


def _of_checkpoint(path: Path) -> dict[str, Any]:
    from driving_xai import checkpoint

    loaded = checkpoint.load(path)
    return {
        "what": "checkpoint",
        "path": named(path),
        "kind": loaded.kind,
        "parameters": sum(parameter.numel() for parameter in loaded.model.parameters()),
        "sha256": loaded.sha256,
        "config": dict(loaded.config),
        "metrics": dict(loaded.metrics),
    }


def _show_checkpoint(found: dict[str, Any], _: tables.Against) -> list[str]:
    return [
        f"{found['path']}: checkpoint of kind {found['kind']}, {found['parameters']:,} parameters",
        *(f"  {name:<18} {value}" for name, value in sorted(found["config"]["model"].items())),
        f"  {tables.achieved(found['kind'], found['metrics'])}",
        f"  sha256 {found['sha256']}",
    ]


def _of_results(path: Path) -> dict[str, Any]:
    from driving_xai.evaluation.results import Results

    return {"what": "results", "path": named(path), **Results.load(path).summary}


def _show_results(found: dict[str, Any], against: tables.Against) -> list[str]:
    return tables.results(found, found["path"], against=against)


def _of_sanity(path: Path) -> dict[str, Any]:
    from driving_xai.report.sanity import load_sanity

    (found,) = load_sanity([path])
    return {"what": "sanity checks", "path": named(path), **found.summary}


def _show_sanity(found: dict[str, Any], _: tables.Against) -> list[str]:
    return [f"{found['path']}: sanity checks", *(f"  {line}" for line in tables.sanity(found["means"]))]


_KINDS = {
    "sanity.json": (_of_sanity, _show_sanity),
    "manifest.json": (_of_shards, _show_shards),
    "results.json": (_of_results, _show_results),
    "model.safetensors": (_of_checkpoint, _show_checkpoint),
}
_UNFINISHED = (
    (_of_training, _show_training),
    (_of_scoring, _show_scoring),
    (_of_preparation, _show_preparation),
)
