"""The tasks that a replay can play. What differs between them lies here; everything else is shared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from driving_xai.checkpoint import Checkpoint
from driving_xai.errors import CheckpointError, OptionError
from driving_xai.replay.tasks.actions import ActionTask
from driving_xai.replay.tasks.base import Task
from driving_xai.replay.tasks.steering import SteeringTask
from driving_xai.types import Outputs

TASKS: Mapping[str, type[Task]] = {
    "regression": SteeringTask,
    "multilabel": ActionTask,
    "multiclass": ActionTask,
}
"""By the kind of a model's outputs."""


def task_for(checkpoint: Checkpoint) -> type[Task]:
    """The task of a checkpoint's model, by what its outputs mean.

    Raises:
        CheckpointError: the model does not say what its outputs mean.
    """
    outputs = getattr(checkpoint.model, "outputs", None)
    if not isinstance(outputs, Outputs) or outputs.kind not in TASKS:
        raise CheckpointError(
            f"{checkpoint.path} holds kind {checkpoint.config.get('kind')!r}, whose model does not say what its "
            "outputs mean; expected a model of steering, actions or classes"
        )
    return TASKS[outputs.kind]


def foreign_options(task: type[Task]) -> dict[str, str]:
    """Options of other tasks, with the name of their task."""
    others = {other.name: other.only for other in TASKS.values() if other is not task}
    return {option: name for name, only in others.items() for option in only}


def require_own_options(task: type[Task], chosen: Iterable[str], *, prefix: str = "") -> None:
    """Refuses options that models of this task cannot use.

    Args:
        chosen: names of the options that were set.
        prefix: of names in the message, `--` where they are flags.

    Raises:
        OptionError: an option is for models of another task.
    """
    foreign = foreign_options(task)
    for name in chosen:
        if name in foreign:
            raise OptionError(f"{prefix}{name} is for models of {foreign[name]}; leave it out")
