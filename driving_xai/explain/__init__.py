"""Explainers: class activation maps, gradients, perturbations, attention, and model-independent baselines."""
