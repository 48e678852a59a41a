"""Graphs for engines: files that were exported, or exported now and kept; those that are there need no torch."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path

from fastdetect import __version__
from fastdetect.engines.base import Precision
from fastdetect.engines.cache import Say, cached
from fastdetect.engines.graph import OPSET, Graph, Scoring, Stored, need_precision, parse_info, read_graph
from fastdetect.models.folder import find_folder, read_config
from fastdetect.onnx_wire import read_metadata


def cached_graph(model: str, precision: Precision, default: Stored, say: Say, part: Scoring = "detector") -> Graph:
    """A graph that scores faces, for an engine: a file that `fastdetect export` wrote, or exported now and kept.

    Args:
        model: an .onnx file, or as for `export_model`.
        precision: what is wanted; `auto` takes a file as it is, and exports a model as `default`.
        part: what is exported; a file has its own.
    """
    if Path(model).suffix == ".onnx":
        graph = read_graph(Path(model))
        need_precision(graph.info, precision, model)
        return graph
    wanted: Stored = default if precision == "auto" else precision

    def export() -> bytes:
        from fastdetect.engines.export import export_graph

        return export_graph(model, part, wanted, say).onnx

    data = cached("onnx", graph_key(model, wanted, part) | {"opset": str(OPSET)}, export, say)
    return Graph(data, parse_info(read_metadata(data).get("fastdetect"), model))


def graph_key(model: str, precision: Stored, part: Scoring) -> dict[str, str]:
    """What a graph that scores faces depends on, for the cache."""
    config = read_config(find_folder(model)).model_dump_json()
    key = {"config": hashlib.sha256(config.encode()).hexdigest(), "precision": precision, "part": part}
    return key | {"fastdetect": __version__, "torch": version("torch")}
