"""A command whose help groups its options: what it does, what it writes, settings, the machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typer.core import TyperCommand, TyperOption

_OWN = "Options"
_GROUPS: Mapping[str, frozenset[str]] = {
    "Frames and signals": frozenset({"smoothing", "crop_top", "crop_bottom", "vehicle"}),
    "Faults of the recording": frozenset({"on_bad", "refuse"}),
    "Output": frozenset(
        {"out", "save_maps", "publish_to", "overwrite", "resume", "dry_run", "as_json"}
        | {"markdown", "csv", "rrd", "title", "embed_mb", "label", "figure"}
        | {"gif", "gif_mb"}
    ),
    "Thresholds": frozenset({"require", "fail_below"}),
    "Settings": frozenset({"config", "assignments", "option", "seed"}),
    "Machine": frozenset({"device", "devices", "workers", "engine", "scheduler", "batch_size"}),
}
"""By the name of the parameter, alike in all commands, unless a command chooses another; what is in none is its own."""


class GroupedCommand(TyperCommand):
    """Shows arguments, the command's own options, then the groups that all commands share."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        arguments: list[tuple[str, str]] = []
        parameters = self.get_params(ctx)
        groups = dict.fromkeys([_OWN, *filter(None, map(_own_group, parameters)), *_GROUPS])
        options: dict[str, list[tuple[str, str]]] = {group: [] for group in groups}
        for parameter in parameters:
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            if parameter.param_type_name == "argument":
                arguments.append(record)
            else:
                options[_own_group(parameter) or group_of(str(parameter.name))].append(record)
        for title, records in (("Arguments", arguments), *options.items()):
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def _own_group(parameter: Any) -> str | None:
    """The heading that a command itself chose for an option; None where it is one of those below."""
    return parameter.rich_help_panel if isinstance(parameter, TyperOption) else None


def group_of(parameter: str) -> str:
    """The heading of an option.

    Example:
        >>> group_of("device"), group_of("method")
        ('Machine', 'Options')
    """
    return next((group for group, names in _GROUPS.items() if parameter in names), _OWN)
