"""A replay that is watched in a browser while it is computed."""
