"""One interface over several runtimes; what is asked for is loaded then, so that `machine` needs nothing else."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastdetect.engines.base import Engine, EngineOutput
    from fastdetect.engines.load import load_engine
    from fastdetect.engines.torch_engine import TorchEngine

__all__ = ["Engine", "EngineOutput", "TorchEngine", "load_engine"]

_HOMES = {"Engine": "base", "EngineOutput": "base", "TorchEngine": "torch_engine", "load_engine": "load"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
