"""Errors a user can cause. The command line prints each as one line with its exit code."""

from data_prep.errors import DataError as DataError


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or of another kind than asked for."""


class UnsupportedModelError(TypeError):
    """A model that lacks what a method needs, for example a layer or an attention map."""


class FrameSizeError(UnsupportedModelError):
    """A network that does not take frames of this size."""


class OptionError(ValueError):
    """An option that a method does not have, or a value that it does not take."""


class NonFiniteError(ValueError):
    """NaN or infinity where a model or a method must give numbers: its weights have diverged, say."""


class VideoError(OSError):
    """A video that cannot be read or written."""
