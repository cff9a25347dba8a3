"""The one error this package raises for bad input."""


class DataError(ValueError):
    """Input data that cannot be used: missing, malformed, or contradicting itself.

    The message is one line: what was got, what was expected, what to do next.
    """
