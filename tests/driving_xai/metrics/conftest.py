"""The route in shards and the small steering models of the evaluation tests."""

from tests.driving_xai.evaluation.conftest import shards, steering, write_route

__all__ = ["shards", "steering", "write_route"]
