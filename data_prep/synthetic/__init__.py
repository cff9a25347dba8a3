"""Rendered drives and street scenes whose label-causing pixels are known."""
