"""A thousand frames scored: memory and open files stay where they were after the first hundred."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import psutil
import pytest

from data_prep.pipeline import PrepConfig, prepare
from data_prep.shards.manifest import Manifest
from driving_xai.checkpoint import Checkpoint
from driving_xai.faithfulness.score import score
from driving_xai.faithfulness.score_config import ScoreConfig

SECONDS, RATE_HZ = 101.0, 10.0
