"""experiment an-table3, an-table4, iida-table2, iida-table4: explanations of image classifiers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from driving_xai.cli import console, settings
from driving_xai.cli.experiment import ImageData, TableOut, app, given, show
from driving_xai.cli.options import Assignments, Config, Device, Json, resolve_device


def an_table3(
    data: ImageData,
    out: TableOut,
    config: Config = None,
    assignments: Assignments = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Average drop and increase of five class activation maps (An and Joe 2022, Table 3).

    Beside them: either attention alone, CBAM trained on the frozen network, with random weights and
    inside the network, and two controls. Tables 3 and 4 share the runs in OUT.

    \b
    Example: driving-xai experiment an-table3 - -o an
             driving-xai experiment an-table3 photos -o an --set checkpoint=model
    """
    _an("table3", data, out, config, assignments, device, as_json)


def an_table4(
    data: ImageData,
    out: TableOut,
    config: Config = None,
    assignments: Assignments = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """The score that the most salient 5 to 50 % of pixels leave, for five maps (An and Joe 2022, Table 4).

    \b
    Example: driving-xai experiment an-table4 - -o an
    """
    _an("table4", data, out, config, assignments, device, as_json)


def iida_table2(
    data: ImageData,
    out: TableOut,
    config: Config = None,
    assignments: Assignments = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """ID and PID scores of LABN, lambda attention, RISE and controls (Iida et al. 2022, Table 2).

    On the stand-in, whose spots are known, also of the spots themselves and of a coarse map of them. From 8
    seeds on (--set seeds=8; the paper has 4) differences are tested; runs in OUT are kept.

    \b
    Example: driving-xai experiment iida-table2 - -o iida --set seeds=2
    """
    from driving_xai.experiments.iida import table2

    _iida(table2, data, out, config, assignments, device, as_json)


def iida_table4(
    data: ImageData,
    out: TableOut,
    config: Config = None,
    assignments: Assignments = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """LABN without its divergence loss, without the bias image, without both (Iida et al. 2022, Table 4).

    From 8 seeds on (--set seeds=8; the paper has 4) differences are tested; runs in OUT are kept.

    \b
    Example: driving-xai experiment iida-table4 - -o ablation --set training.epochs=20
    """
    from driving_xai.experiments.iida import table4

    _iida(table4, data, out, config, assignments, device, as_json)


def _an(
    table: Literal["table3", "table4"],
    data: Path,
    out: Path,
    config: Path | None,
    assignments: list[str] | None,
    device: Literal["auto", "cpu", "cuda"],
    as_json: bool,
) -> None:
    from driving_xai.experiments.an import An, tables

    how = settings.resolve(An, config, assignments=assignments or ())
    with console.progress("experiment", unit="runs") as on_progress:
        results = tables(
            given(data), out, how, table=table, device=resolve_device(device), on_progress=on_progress
        )
    show(out, results, as_json)


def _iida(
    table: Callable[..., dict[str, Any]],
    data: Path,
    out: Path,
    config: Path | None,
    assignments: list[str] | None,
    device: Literal["auto", "cpu", "cuda"],
    as_json: bool,
) -> None:
    from driving_xai.experiments.iida import Iida

    how = settings.resolve(Iida, config, assignments=assignments or ())
    with console.progress("experiment", unit="runs") as on_progress:
        results = table(given(data), out, how, device=resolve_device(device), on_progress=on_progress)
    show(out, results, as_json)


for command in (an_table3, an_table4, iida_table2, iida_table4):
    app.command()(command)
