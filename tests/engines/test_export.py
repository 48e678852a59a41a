"""What an export holds, and that nothing half-written is ever there."""

import io
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnxruntime as ort
import pytest
import torch
from engine_helpers import SIDE, crops, on_a_full_disk, start_child

from fastdetect.engines import load_engine
from fastdetect.engines.base import Profile
from fastdetect.engines.export import (
    _check_parity,
    _hard_activations,
    _runner,
    export_graph,
    export_model,
    torch_program,
    trace,
    write_together,
)
from fastdetect.engines.graph import OPSET, Graph, Part, read_graph
from fastdetect.engines.kept import cached_graph
from fastdetect.errors import CheckpointError, EngineError, MissingDependencyError, UsageError
from fastdetect.models.folder import read_config
from fastdetect.onnx_wire import read_metadata


def quiet(text: str) -> None:
    del text


def session(onnx: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])


def test_an_onnx_file_carries_the_models_contract(graph: Graph, onnx_file: Path, folder: Path) -> None:
    config = read_config(folder)
    assert read_graph(onnx_file).info == graph.info
    assert graph.info.model == config
    told = session(graph.onnx).get_modelmeta().custom_metadata_map  # as any other program reads it
    assert told == read_metadata(graph.onnx)
    assert (told["fastdetect.model_id"], told["fastdetect.calibration_id"]) == ("tiny", "test00000000")
    assert told["fastdetect.weights_sha256"] == config.weights_sha256
    assert json.loads(told["fastdetect.preprocess"])["size"] == SIDE
    assert str(Path(__file__).parents[2]).encode() not in graph.onnx  # no path of the machine that exported


def test_the_verdict_is_a_part_of_its_own(image_folder: Path, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    graph, about = export_model(str(image_folder), "onnx", tmp_path, part="verdict")
    assert (graph.name, about.name) == ("verdict.onnx", "verdict.json")
    info = read_graph(graph).info
    assert (info.part, list(info.outputs), info.grid) == ("verdict", ["logits", "image_logits"], None)
    engine = load_engine(str(graph), device="cpu", batch_size=2)
    assert engine.run(crops(3)).patch_scores.shape == (3, 0, 0)
    with pytest.raises(UsageError, match="has a say"):
        export_model(str(folder), "onnx", tmp_path / "none", part="verdict")
    assert not (tmp_path / "none").exists()


def test_the_graph_is_plain_onnx_of_one_opset_with_a_free_batch(graph: Graph) -> None:
    import onnx

    proto = onnx.load_from_string(graph.onnx)
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", 20)]
    assert {node.domain for node in proto.graph.node} == {""}
    assert not {"ScatterElements", "ScatterND", "NonZero", "Loop", "If"} & {node.op_type for node in proto.graph.node}
    assert all(o.type.tensor_type.shape.dim[0].dim_param == "batch" for o in proto.graph.output)


def test_the_masked_image_models_half_precision_graph_keeps_float_inputs_and_outputs(folder: Path, half: Graph) -> None:
    run = session(half.onnx)
    assert {o.type for o in (*run.get_inputs(), *run.get_outputs())} == {"tensor(float)"}
    images = np.random.default_rng(0).random((3, 3, 64, 64), np.float32)
    residual, scores, inpainted = run.run(None, {"images": images})
    with torch.no_grad():
        want = trace(str(folder), "masked-image-model", "fp32").module(torch.from_numpy(images))
    for got, right, allowed in zip((residual, scores, inpainted), want, (0.04, 0.01, 0.01), strict=True):
        assert 0 < np.abs(got - right.numpy()).max() < allowed


def test_the_face_detectors_graph_is_the_one_that_screening_runs(folder: Path, tmp_path: Path) -> None:
    from fastdetect.faces.network import OUTPUTS, load_network

    files = export_model(str(folder), "onnx", tmp_path, part="face-detector")
    assert [file.name for file in files] == ["face-detector.onnx", "face-detector.json"]
    frames = np.random.default_rng(0).random((2, 3, 64, 96), np.float32) * 255
    got = session(files[0].read_bytes()).run(list(OUTPUTS), {"input.1": frames})
    want = load_network("onnxruntime")(frames)
    for ours, theirs in zip(got, want, strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("part", get_args(Part))
def test_torch_export_keeps_results_and_description(part: Part, image_folder: Path) -> None:
    traced = trace(str(image_folder), part, "fp32")
    extra = {"fastdetect.json": ""}
    program = torch.export.load(io.BytesIO(torch_program(traced)), extra_files=extra)
    told = json.loads(extra["fastdetect.json"])
    assert (told["part"], told["model"]["model_id"]) == (part, "image")
    inputs = {"masked-image-model": torch.rand(5, 3, 64, 64), "face-detector": 255 * torch.rand(5, 3, 160, 320)}
    given = inputs.get(part, torch.from_numpy(crops(5)))
    with torch.no_grad():
        for got, want in zip(program.module()(given), traced.module(given), strict=True):
            assert len(got) == 5
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_the_face_detectors_half_precision_graph_keeps_its_last_convolutions(exported: Callable[..., Graph]) -> None:
    from fastdetect.faces.network import OUTPUTS

    onnx = pytest.importorskip("onnx")
    half = exported("face-detector", "fp16")
    proto = onnx.load_from_string(half.onnx)
    types = {w.name: w.data_type for w in proto.graph.initializer}
    last = [n for n in proto.graph.node if n.op_type == "Conv" and types[n.input[1]] == onnx.TensorProto.FLOAT]
    assert len(last) == len(OUTPUTS)
    assert set(OUTPUTS) - {"537"} <= {n.output[0] for n in last}  # of which a sigmoid makes the heat map
    others = set(types) - {name for n in last for name in n.input}
    assert {types[name] for name in others} == {onnx.TensorProto.FLOAT16}
    run = session(half.onnx)
    assert {o.type for o in (*run.get_inputs(), *run.get_outputs())} == {"tensor(float)"}
    assert list(half.info.outputs) == [o.name for o in run.get_outputs()] == list(OUTPUTS)


def test_a_kept_export_is_used_and_a_damaged_one_is_made_again(
    folder: Path, graph: Graph, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def stand_in(model: str, part: str, precision: str, say: object) -> Graph:
        made.append(precision)
        return graph

    monkeypatch.setattr("fastdetect.engines.export.export_graph", stand_in)
    said: list[str] = []
    monkeypatch.setenv("FASTDETECT_CACHE", str(cache / "kept"))
    assert [cached_graph(str(folder), "auto", "fp32", said.append).sha256 for _ in range(2)] == [graph.sha256] * 2
    assert (made, said) == (["fp32"], [])
    (kept,) = (cache / "kept").glob("onnx-*.bin")
    data = bytearray(kept.read_bytes())
    data[-1000] ^= 1
    kept.write_bytes(data)
    assert cached_graph(str(folder), "auto", "fp32", said.append).onnx == graph.onnx
    assert made == ["fp32", "fp32"]
    assert "SHA-256" in said[0]


def test_files_that_belong_together_appear_together_or_not_at_all(tmp_path: Path) -> None:
    write_together(tmp_path / "new" / "folder", {"a": b"1", "b": b"2"})
    assert {f.name: f.read_bytes() for f in (tmp_path / "new" / "folder").iterdir()} == {"a": b"1", "b": b"2"}
    full = tmp_path / "full"
    said = on_a_full_disk(lambda: write_together(full, {"a": b"x", "b": bytes(8192)}), tmp_path / "said")
    assert said.startswith("EngineError cannot write")
    assert "make room" in said
    assert list(full.iterdir()) == []


def test_a_killed_export_leaves_nothing_under_a_name_and_the_next_one_clears_up(tmp_path: Path) -> None:
    write_together(tmp_path, {"a": b"1", "b": b"2"})

    def die() -> None:  # with one of two files written
        os.fsync = lambda number: os.kill(os.getpid(), signal.SIGKILL)
        write_together(tmp_path, {"a": b"3", "b": b"4"})

    _, status = os.waitpid(start_child(die), 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert [(tmp_path / name).read_bytes() for name in "ab"] == [b"1", b"2"]
    assert len(list(tmp_path.iterdir())) == 3
    write_together(tmp_path, {"a": b"5", "b": b"6"})
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == {"a": b"5", "b": b"6"}


def test_activations_that_onnx_has_not_in_bf16_are_written_out() -> None:
    net = torch.nn.Sequential(torch.nn.Hardswish(), torch.nn.Hardsigmoid()).eval()
    x = torch.linspace(-9, 9, 99)
    program = torch.onnx.export(
        net, (x,), dynamo=True, opset_version=OPSET, custom_translation_table=_hard_activations(), verbose=False
    )
    onnx = program.model_proto
    assert not {"HardSwish", "HardSigmoid"} & {node.op_type for node in onnx.graph.node}
    (got,) = session(onnx.SerializeToString()).run(None, {onnx.graph.input[0].name: x.numpy()})
    np.testing.assert_allclose(got, net(x).numpy(), atol=1e-6)


def test_what_cannot_be_exported_is_said_before_anything_is_written(folder: Path, tmp_path: Path) -> None:
    asked: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"to": "coreml"}, UsageError, "--to onnx"),
        ({"to": "onnx", "part": "tail"}, UsageError, "face-detector"),
        ({"to": "onnx", "precision": "int4"}, UsageError, "bf16"),
        ({"to": "onnx", "gpu": "sm_89"}, UsageError, "--gpu are for --to tensorrt"),
        ({"to": "torch", "profile": Profile.parse("8")}, UsageError, "--batch .* are for --to tensorrt"),
        ({"to": "openvino", "precision": "bf16"}, UsageError, "--precision bf16"),
        ({"to": "onnx", "part": "face-detector", "precision": "bf16"}, UsageError, "use --precision fp16"),
        ({"to": "torch", "part": "face-detector", "precision": "bf16"}, UsageError, "use --precision fp16"),
    ]
    for options, error, said in asked:
        with pytest.raises(error, match=said):
            export_model(str(folder), output=tmp_path / "out", **options)
    with pytest.raises(CheckpointError, match="no model"):
        export_model("nobody", "onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_export_without_onnx_names_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingDependencyError, match=r"fastdetect\[onnx\]"):
        export_graph(str(folder), "detector", "fp32", quiet)


def test_a_graph_that_differs_from_torch_is_refused(graph: Graph, folder: Path) -> None:
    traced = trace(str(folder), "detector", "fp32")
    _check_parity(_runner(graph), traced)
    with torch.no_grad():
        next(traced.module.model.head.parameters()).mul_(1.1)  # type: ignore[union-attr,operator]
    with pytest.raises(EngineError, match="logits of the exported graph differs"):
        _check_parity(_runner(graph), traced)


def test_a_torch_program_that_differs_is_not_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastdetect.engines.export.PARITY", -1.0)
    with pytest.raises(EngineError, match="differs from torch"):
        export_model(str(folder), "torch", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_foreign_and_damaged_onnx_files_are_refused(graph: Graph, tmp_path: Path) -> None:
    file = tmp_path / "detector.onnx"
    for data, said in (
        (b"PK\x03\x04 not onnx", "no ONNX model"),
        (graph.onnx[: len(graph.onnx) // 2], "not all of one"),
        (b"", "no description"),
    ):
        file.write_bytes(data)
        with pytest.raises(CheckpointError, match=said):
            read_graph(file)
    with pytest.raises(CheckpointError, match="cannot read"):
        read_graph(tmp_path / "absent.onnx")
