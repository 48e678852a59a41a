"""One interface over several runtimes."""

from fastdetect.engines.base import Engine, EngineOutput
from fastdetect.engines.load import load_engine
from fastdetect.engines.torch_engine import TorchEngine

__all__ = ["Engine", "EngineOutput", "TorchEngine", "load_engine"]
