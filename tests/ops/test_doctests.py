"""The examples in the ops' docstrings run as they are written."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize(("module", "lines"), [("masked_residual", 6), ("positive_synthesis", 6)])
def test_examples(module: str, lines: int) -> None:
    result = doctest.testmod(importlib.import_module(f"fastdetect.ops.{module}"))
    assert result.attempted >= lines
    assert result.failed == 0
