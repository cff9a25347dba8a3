"""A drive played with the model's evidence drawn on the road, scored while it plays."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
