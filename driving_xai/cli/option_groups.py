"""A command whose help groups its options: what it does, what it writes, settings, the machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typer.core import TyperCommand

_OWN = "Options"
_GROUPS: Mapping[str, frozenset[str]] = {
    "Frames and signals": frozenset({"smoothing", "crop_top", "crop_bottom", "vehicle"}),
    "Faults of the recording": frozenset({"on_bad", "refuse"}),
    "Output": frozenset(
        {"out", "save_maps", "publish_to", "overwrite", "resume", "dry_run", "as_json"}
        | {"markdown", "csv", "rrd", "title", "embed_mb", "label", "figure", "show", "serve", "host"}
        | {"gif", "gif_mb"}
    ),
    "Thresholds": frozenset({"require", "fail_below"}),
    "Settings": frozenset({"config", "assignments", "option", "seed"}),
    "Machine": frozenset({"device", "devices", "workers", "engine", "scheduler", "batch_size"}),
}
"""By the name of the parameter, alike in all commands; what is in none is the command's own."""


class GroupedCommand(TyperCommand):
    """Shows arguments, the command's own options, then the groups that all commands share."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        arguments: list[tuple[str, str]] = []
        options: dict[str, list[tuple[str, str]]] = {_OWN: [], **{group: [] for group in _GROUPS}}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            if parameter.param_type_name == "argument":
                arguments.append(record)
            else:
                options[group_of(str(parameter.name))].append(record)
        for title, records in (("Arguments", arguments), *options.items()):
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def group_of(parameter: str) -> str:
    """The heading of an option.

    Example:
        >>> group_of("device"), group_of("method")
        ('Machine', 'Options')
    """
    return next((group for group, names in _GROUPS.items() if parameter in names), _OWN)
