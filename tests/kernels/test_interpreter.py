"""Runs the interpreted kernel tests in their own process: the variable must be set before the import."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import triton

HERE = Path(__file__).parent


def broken_interpreter() -> bool:
    """triton 3.6 with numpy 2.4 or later fails on loop bounds known only at run time."""
    return triton.__version__.startswith("3.6.") and np.lib.NumpyVersion(np.__version__) >= "2.4.0"


@pytest.mark.skipif(broken_interpreter(), reason="this triton's interpreter fails with this numpy")
@pytest.mark.parametrize("module", sorted(path.name for path in HERE.glob("interpreted_*.py")))
def test_in_interpreter(module: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(HERE / module)],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=HERE,  # not the root: an installed package is what is tested, where there is one
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
