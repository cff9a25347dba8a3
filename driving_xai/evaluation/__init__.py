"""Evaluation of explanations over a data set: configuration, run, results, summary."""
