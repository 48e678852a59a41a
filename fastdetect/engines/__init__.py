"""One interface over several runtimes; `TorchEngine` is loaded, and torch with it, when it is asked for."""

from typing import TYPE_CHECKING, Any

from fastdetect.engines.base import Engine, EngineOutput
from fastdetect.engines.load import load_engine

if TYPE_CHECKING:
    from fastdetect.engines.torch_engine import TorchEngine

__all__ = ["Engine", "EngineOutput", "TorchEngine", "load_engine"]


def __getattr__(name: str) -> Any:
    if name != "TorchEngine":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fastdetect.engines.torch_engine import TorchEngine

    return TorchEngine
