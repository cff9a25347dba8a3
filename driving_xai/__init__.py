"""Explainable driving models: see, and measure, what a camera-based model looks at.

Public names stand in `__init__.pyi` and are imported when they are first used.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, _, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
