"""Metrics of explanations: curves, additivity, confidence, complexity, localisation, accuracy under masks, rank correlation, randomisation.

Each is a small class that holds its options and no model, with pure functions beneath.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
