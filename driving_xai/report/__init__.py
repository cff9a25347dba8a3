"""Saved results to something another person can open and check; no model is run here."""
