"""ONNX files read and rewritten on protobuf's wire, without the onnx package: signature, metadata, weights, nodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fastdetect.errors import CheckpointError

# Field numbers in onnx.proto.
_MODEL_GRAPH, _MODEL_METADATA = 7, 14
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT = 1, 5, 11, 12
_FIXED_BYTES = {1: 8, 5: 4}  # by wire type
_FLOAT, _INT64 = 1, 7


def fields(data: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Yields (field number, payload, whole field) of a protobuf message; IndexError or KeyError if it is cut."""
    position = 0
    while position < len(data):
        start = position
        key, position = _read_varint(data, position)
        wire_type, size = key & 7, 0
        if wire_type == 0:
            _, end = _read_varint(data, position)
        elif wire_type == 2:
            size, position = _read_varint(data, position)
            end = position + size
        else:
            end = position + _FIXED_BYTES[wire_type]
        if end > len(data):
            raise IndexError("the message ends early")
        yield key >> 3, data[position:end], data[start:end]
        position = end


def read_metadata(onnx: bytes, source: str = "the ONNX file") -> dict[str, str]:
    """Return the metadata of a serialised ONNX model.

    Raises:
        CheckpointError: the bytes are no ONNX model.
    """
    found = {}
    try:
        for number, value, _ in fields(memoryview(onnx)):
            if number == _MODEL_METADATA:
                entry = {key: bytes(text) for key, text, _ in fields(value)}
                found[entry[1].decode()] = entry.get(2, b"").decode()
    except (IndexError, KeyError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{source} is no ONNX model, or not all of one") from error
    return found


def with_free_shapes(
    model: bytes, inputs: Mapping[str, Sequence[int | str]], outputs: Mapping[str, Sequence[int | str]]
) -> bytes:
    """Returns the ONNX model with these graph inputs and outputs (float tensors) and no others.

    Old exporters list every weight as a graph input too, which stops ONNX Runtime from folding it into the
    convolutions; the weights stay, as initializers, and lose that listing.

    Args:
        model: a serialised ModelProto.
        inputs: dimensions by input name; a str is a free dimension.
        outputs: the same for the outputs.
    """
    parts = []
    for number, payload, whole in fields(memoryview(model)):
        if number == _MODEL_GRAPH:
            graph = [bytes(w) for n, _, w in fields(payload) if n not in (_GRAPH_INPUT, _GRAPH_OUTPUT)]
            graph += [_message(_GRAPH_INPUT, _float_value(name, dims)) for name, dims in inputs.items()]
            graph += [_message(_GRAPH_OUTPUT, _float_value(name, dims)) for name, dims in outputs.items()]
            parts.append(_message(_MODEL_GRAPH, b"".join(graph)))
        else:
            parts.append(bytes(whole))
    return b"".join(parts)


@dataclass(frozen=True)
class Node:
    """One operation: its attributes are int, float, or list of int."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, int | float | list[int]]


def read_graph(model: bytes) -> tuple[list[Node], dict[str, np.ndarray]]:
    """Return the nodes of a serialised ModelProto in order, and its float and int64 weights by name."""
    nodes, weights = [], {}
    graph = next(payload for number, payload, _ in fields(memoryview(model)) if number == _MODEL_GRAPH)
    for number, payload, _ in fields(graph):
        if number == _GRAPH_NODE:
            nodes.append(_node(payload))
        elif number == _GRAPH_INITIALIZER:
            name, value = _tensor(payload)
            weights[name] = value
    return nodes, weights


def _node(data: memoryview) -> Node:
    inputs, outputs, op, attributes = [], [], "", {}
    for number, payload, _ in fields(data):
        if number == 1:
            inputs.append(bytes(payload).decode())
        elif number == 2:
            outputs.append(bytes(payload).decode())
        elif number == 4:
            op = bytes(payload).decode()
        elif number == 5:
            name, value = _attribute(payload)
            attributes[name] = value
    return Node(op, tuple(inputs), tuple(outputs), attributes)


def _attribute(data: memoryview) -> tuple[str, int | float | list[int]]:
    name = ""
    value: int | float = 0
    listed: list[int] = []
    for number, payload, _ in fields(data):
        if number == 1:
            name = bytes(payload).decode()
        elif number == 2:
            value = float(np.frombuffer(payload, "<f4")[0])
        elif number == 3:
            value = _signed(_read_varint(payload, 0)[0])
        elif number == 8:
            listed += _varints(payload)
    return name, listed or value


def _tensor(data: memoryview) -> tuple[str, np.ndarray]:
    shape: list[int] = []
    name, kind, values = "", 0, b""
    for number, payload, _ in fields(data):
        if number == 1:
            shape += _varints(payload)
        elif number == 2:
            kind = _read_varint(payload, 0)[0]
        elif number == 8:
            name = bytes(payload).decode()
        elif number in (4, 9):  # float_data or raw_data
            values = bytes(payload)
    types = {_FLOAT: "<f4", _INT64: "<i8"}
    if kind not in types:
        raise CheckpointError(f"the ONNX weight {name!r} is of type {kind}; only float and int64 are read")
    return name, np.frombuffer(values, types[kind]).reshape(shape)


def _varints(data: memoryview) -> list[int]:
    """One number, or a packed list of them."""
    found, position = [], 0
    while position < len(data):
        value, position = _read_varint(data, position)
        found.append(_signed(value))
    return found


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _read_varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _message(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _float_value(name: str, dims: Sequence[int | str]) -> bytes:
    """A ValueInfoProto: a float tensor whose str dimensions are free."""
    shape = b"".join(
        _message(1, _message(2, dim.encode()) if isinstance(dim, str) else b"\x08" + _varint(dim)) for dim in dims
    )
    return _message(1, name.encode()) + _message(2, _message(1, b"\x08\x01" + _message(2, shape)))
