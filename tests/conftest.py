"""Shared fixtures: where the validation data is. Set before torch loads: one thread a test process."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# The first example of a property pays for imports and lazy set-up: a busy machine must not fail on its 200 ms.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")

# Tests run in two processes on two cores; more threads than that wait for each other at every barrier.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Without it torch refuses every matrix product on CUDA where deterministic algorithms are asked for.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of the validation data (FASTDETECT_DATA, or shared/data beside the repository); skips where absent."""
    root = Path(os.environ.get("FASTDETECT_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (root / "videos_real" / "index.csv").is_file():
        pytest.skip(f"no validation data at {root}; set FASTDETECT_DATA to its folder")
    return root
