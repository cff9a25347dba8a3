"""Drives and labelled images as torch data sets."""
