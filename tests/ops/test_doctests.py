"""The examples in the ops' docstrings run as they are written."""

import doctest

from fastdetect.ops import masked_residual


def test_examples() -> None:
    result = doctest.testmod(masked_residual)
    assert result.attempted >= 6
    assert result.failed == 0
