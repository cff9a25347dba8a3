"""Metrics of explanations: curves, localisation, confidence, rank correlation, randomisation, statistics."""
