"""A thousand frames scored: memory and open files stay where they were after the first hundred."""

from __future__ import annotations

SECONDS, RATE_HZ = 101.0, 10.0
