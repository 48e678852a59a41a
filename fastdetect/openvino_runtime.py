"""OpenVINO's package and its one core, for the engine and for the face detector."""

from __future__ import annotations

import functools
from typing import Any

from fastdetect.errors import MissingDependencyError


def import_openvino() -> Any:
    """The package; raises MissingDependencyError, which says how to get it."""
    try:
        import openvino
    except ImportError as error:
        raise MissingDependencyError(f"OpenVINO ({error}): pip install 'fastdetect[openvino]'") from error
    return openvino


@functools.cache
def openvino_core() -> Any:
    """The core of this process: one, never given back.

    Its CPU plugin sets the thread's alternative signal stack when it is loaded (AMX needs a large one), and puts the
    one from before back when it is unloaded. Two cores that go in the order in which they came leave the thread with a
    stack that is no longer mapped, and the next signal kills the process.

    Raises:
        MissingDependencyError: OpenVINO is not installed.
    """
    return import_openvino().Core()
