"""Explainers: class activation maps, gradients, perturbations, attention, and model-independent baselines.

An explainer holds its options and no model: what it needs of a network it asks the network it is given. `build`
makes one by its literature name.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
