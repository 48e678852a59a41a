"""Every command of the benchmarks that the documents name starts."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"python (-m bench\.[a-z_]+|bench/[a-z_]+\.py)")
TEXTS = [
    ROOT / "README.md",
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / "bench").glob("*.py"),
    *(ROOT / "fastdetect" / "models" / "weights").glob("*/README.md"),
]
COMMANDS = sorted({found for text in TEXTS for found in NAMED.findall(text.read_text("utf-8"))})


def test_the_documents_name_commands() -> None:
    assert len(COMMANDS) > 5


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_a_document_names_starts(command: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    run = subprocess.run(
        [sys.executable, *command.split(), "--help"], cwd=ROOT, env=environment, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "usage:" in run.stdout.lower()
