"""experiment: tables and figures of the papers, and the comparisons behind this project's claims."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from driving_xai.cli import console, settings
from driving_xai.cli.options import Assignments, Config, Device, Json, resolve_device
from driving_xai.cli.training import tell_fetched

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Run an experiment, ours beside theirs.")


Shards = Annotated[Path, typer.Argument(metavar="SHARDS", help="A folder that prep wrote, with steering.")]
Out = Annotated[
    Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for networks, tables and figures.")
]


@app.command()
def steering_cv(
    data: Shards,
    out: Out,
    config: Config = None,
    assignments: Assignments = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Cross-validate steering over the blocks of a drive, one model for each attention and block.

    OUT then holds every model and its scores, results.json and table.md. A run that was interrupted
    goes on where it stopped.

    \b
    Example: driving-xai experiment steering-cv shards -o cv --set training.epochs=4
    """
    from driving_xai.experiments.steering_cv import CrossValidation, run

    how = settings.resolve(CrossValidation, config, assignments=assignments or ())
    with console.progress("experiment", unit="models") as on_progress:
        results = run(data, out, how, device=resolve_device(device), on_progress=on_progress)
    show(out, results, as_json)


ImageData = Annotated[
    Path,
    typer.Argument(
        metavar="SHARDS",
        help="A folder of `prep image-folder`; - takes a stand-in that is named in the result.",
    ),
]
TableOut = Annotated[
    Path,
    typer.Option("--out", "-o", metavar="DIR", help="Folder for runs, what they need again, and the table."),
]


@app.command()
def baumhauer_table1(
    data: ImageData,
    out: TableOut,
    config: Config = None,
    assignments: Assignments = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """What bounded logit attention and L2X cost in accuracy, over 20 paired runs.

    Heads are trained on the kept features of a frozen network, EfficientNet-B0 unless set otherwise. A
    run that was interrupted goes on where it stopped.

    \b
    Example: driving-xai experiment baumhauer-table1 - -o table1
             driving-xai experiment baumhauer-table1 birds -o table1 --set network.weights=b0.safetensors
    """
    from driving_xai.experiments.baumhauer import Table1, table1

    how = settings.resolve(Table1, config, assignments=assignments or ())
    with console.progress("experiment", unit="runs") as on_progress:
        results = table1(given(data), out, how, device=resolve_device(device), on_progress=on_progress)
    show(out, results, as_json)


@app.command()
def baumhauer_table2(
    data: ImageData,
    out: TableOut,
    config: Config = None,
    assignments: Assignments = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """How well bounded logit attention and CAM agree with LIME, in rank.

    \b
    Example: driving-xai experiment baumhauer-table2 - -o table2 --set images=50
    """
    from driving_xai.experiments.baumhauer_lime import Table2, table2

    how = settings.resolve(Table2, config, assignments=assignments or ())
    with console.progress("experiment", unit="images") as on_progress:
        results = table2(given(data), out, how, device=resolve_device(device), on_progress=on_progress)
    show(out, results, as_json)


@app.command()
def baumhauer_mnist(
    data: ImageData,
    out: TableOut,
    config: Config = None,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """Three against eight: bounded logit attention and L2X beside a baseline, over 20 runs.

    \b
    Example: driving-xai experiment baumhauer-mnist - -o mnist
    """
    from driving_xai.experiments.baumhauer_mnist import Mnist, run

    how = settings.resolve(Mnist, config, assignments=assignments or ())
    with console.progress("experiment", unit="runs") as on_progress:
        results = run(given(data), out, how, on_progress=on_progress)
    show(out, results, as_json)


def given(data: Path) -> Path | None:
    """The user's data; None asks for the stand-in."""
    return None if str(data) == "-" else data


def show(out: Path, results: dict[str, Any], as_json: bool) -> None:
    """Prints the results, or the table that lies in `out`."""
    if as_json:
        console.print_json(results)
    else:
        typer.echo((out / "table.md").read_text().rstrip())


def _tashiro(
    name: Literal["tashiro-table2", "tashiro-fig6", "tashiro-fig7", "tashiro-fig9"],
    data: Path,
    out: Path,
    config: Path | None,
    assignments: list[str] | None,
    device: Literal["auto", "cpu", "cuda"],
    as_json: bool,
) -> None:
    from driving_xai.experiments.tashiro import Tashiro, run

    how = settings.resolve(Tashiro, config, assignments=assignments or ())
    with console.progress(name, unit="networks") as on_progress:
        results = run(name, data, out, how, device=resolve_device(device), on_progress=on_progress)
    show(out / name, results, as_json)


@app.command()
def tashiro_table2(
    data: Shards,
    out: Out,
    config: Config = None,
    assignments: Assignments = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Errors of steering with soft attention, sign attention and none (Tashiro and Awano 2023, Table 2).

    The four tashiro experiments share the networks in OUT: with the same settings none is trained
    twice, and one that was interrupted goes on where it stopped.

    \b
    Example: driving-xai experiment tashiro-table2 shards -o tashiro --set runs=3
    """
    _tashiro("tashiro-table2", data, out, config, assignments, device, as_json)


@app.command()
def tashiro_fig6(
    data: Shards,
    out: Out,
    config: Config = None,
    assignments: Assignments = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Deletion curves and areas of sign and soft attention, Grad-CAM, LIME and others (Fig. 6).

    Beside them: random and centre-prior orders, a network with uniform attention, and the variants in
    which sign attention acts in the forward pass. Settings `methods` and `roles` choose.

    \b
    Example: driving-xai experiment tashiro-fig6 shards -o tashiro --set methods='["grad-cam", "lime"]'
    """
    _tashiro("tashiro-fig6", data, out, config, assignments, device, as_json)


@app.command()
def tashiro_fig7(
    data: Shards,
    out: Out,
    config: Config = None,
    assignments: Assignments = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Area and error of sign attention by the bits of its magnitude (Fig. 7).

    \b
    Example: driving-xai experiment tashiro-fig7 shards -o tashiro --set bits='[2, 10, 24]'
    """
    _tashiro("tashiro-fig7", data, out, config, assignments, device, as_json)


@app.command()
def tashiro_fig9(
    data: Shards,
    out: Out,
    config: Config = None,
    assignments: Assignments = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Area and error of soft attention by its temperature, with Welch's tests (Fig. 9).

    \b
    Example: driving-xai experiment tashiro-fig9 shards -o tashiro --set temperatures='[0.1, 1.0]'
    """
    _tashiro("tashiro-fig9", data, out, config, assignments, device, as_json)


@app.command()
def zhu_table1(
    data: Annotated[Path, typer.Argument(metavar="SHARDS", help="A folder that prep wrote, with actions.")],
    checkpoint: Annotated[
        Path, typer.Option(metavar="CHECKPOINT", help="A model that train actions wrote, with a transformer.")
    ],
    out: Out,
    config: Config = None,
    assignments: Assignments = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """AUPC and log-odds of six attention explainers under pixel, token and attention masks.

    OUT then holds the scores, results.json and table.md, the paper's Table 1 beside ours. The paper leaves
    open when an output counts as predicted: setting `rule` is sigmoid, logit or softmax over 1/2. `order`
    is most-first or least-first, `attention_blocks` first or all, `fill` (of masked pixels) mean, black or
    blur; the first of each is the default. Also: `methods`, `masks`, `target`, `split`, `every`.

    \b
    Example: driving-xai experiment zhu-table1 shards --checkpoint model -o table1
             driving-xai experiment zhu-table1 shards --checkpoint model -o softmax --set rule=softmax
    """
    from driving_xai import checkpoint as checkpoints
    from driving_xai.experiments.zhu_table1 import ZhuTable1, run

    how = settings.resolve(ZhuTable1, config, assignments=assignments or ())
    loaded = checkpoints.load(checkpoint, device=resolve_device(device), kind="actions")
    with console.progress("experiment") as on_progress:
        results = run(loaded, data, out, how, on_progress=on_progress)
    show(out, results, as_json)


@app.command()
def zhu_accuracy(
    data: Annotated[Path, typer.Argument(metavar="SHARDS", help="A folder that prep wrote, with actions.")],
    out: Out,
    folds: Annotated[
        int | None, typer.Option(min=0, help="Cross-validate over so many parts. [default: 0, prep's split]")
    ] = None,
    config: Config = None,
    assignments: Assignments = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Accuracy and F1 of an action model beside the papers' numbers and predictors that do not look.

    OUT then holds every model, the features they share, results.json and table.md. A run that was
    interrupted goes on where it stopped.

    \b
    Example: driving-xai experiment zhu-accuracy shards -o zhu --set training.start=backbone
    """
    from driving_xai.experiments.zhu_accuracy import ZhuAccuracy, run

    how = settings.resolve(ZhuAccuracy, config, options={"folds": folds}, assignments=assignments or ())
    if how.training.start == "timm":
        tell_fetched(how.training.model.backbone)
    with console.progress("experiment", unit="models") as on_progress:
        results = run(data, out, how, device=resolve_device(device), on_progress=on_progress)
    show(out, results, as_json)
