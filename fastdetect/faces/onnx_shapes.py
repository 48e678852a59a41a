"""Frees the input sizes of an ONNX file: rewrites its graph's signature on the wire, without the onnx package."""

from collections.abc import Iterator, Mapping, Sequence

_MODEL_GRAPH, _GRAPH_INPUT, _GRAPH_OUTPUT = 7, 11, 12  # field numbers in onnx.proto
_FIXED_BYTES = {1: 8, 5: 4}


def _read_varint(data: memoryview, pos: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[pos]
        pos += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, pos
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


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Yields (field number, payload, whole field) of one protobuf message."""
    pos = 0
    while pos < len(data):
        start = pos
        key, pos = _read_varint(data, pos)
        wire_type, size = key & 7, 0
        if wire_type == 0:
            _, end = _read_varint(data, pos)
        elif wire_type == 2:
            size, pos = _read_varint(data, pos)
            end = pos + size
        else:
            end = pos + _FIXED_BYTES[wire_type]
        yield key >> 3, data[pos:end], data[start:end]
        pos = end


def _float_value(name: str, dims: Sequence[int | str]) -> bytes:
    """A ValueInfoProto: a float tensor whose str dimensions are free."""
    shape = b"".join(
        _message(1, _message(2, dim.encode()) if isinstance(dim, str) else b"\x08" + _varint(dim)) for dim in dims
    )
    return _message(1, name.encode()) + _message(2, _message(1, b"\x08\x01" + _message(2, shape)))


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
    for number, payload, whole in _fields(memoryview(model)):
        if number == _MODEL_GRAPH:
            graph = [bytes(w) for n, _, w in _fields(payload) if n not in (_GRAPH_INPUT, _GRAPH_OUTPUT)]
            graph += [_message(_GRAPH_INPUT, _float_value(name, dims)) for name, dims in inputs.items()]
            graph += [_message(_GRAPH_OUTPUT, _float_value(name, dims)) for name, dims in outputs.items()]
            parts.append(_message(_MODEL_GRAPH, b"".join(graph)))
        else:
            parts.append(bytes(whole))
    return b"".join(parts)
