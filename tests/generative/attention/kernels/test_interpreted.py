"""The laws between kernels and twins, run by Triton's interpreter on the CPU."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[3]
LAWS = sorted(path.name for path in HERE.glob("test_triton_*.py"))


def test_kernels_equal_their_twins_in_tritons_interpreter() -> None:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rp", "-m", "gpu", *(str(HERE / x) for x in LAWS)],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for file in LAWS:
        assert re.search(rf"^PASSED .*/{re.escape(file)}::", done.stdout, re.MULTILINE), file
    assert "skipped" not in done.stdout


def test_there_are_laws() -> None:
    assert LAWS
