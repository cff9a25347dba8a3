"""The train commands, one file for each recipe."""
