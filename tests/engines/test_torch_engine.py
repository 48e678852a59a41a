import copy
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import torch._inductor.config

from fastdetect.engines import EngineOutput, TorchEngine, load_engine, torch_engine
from fastdetect.engines.torch_engine import fold_batch_norm
from fastdetect.errors import EngineError, ShapeError, UsageError
from fastdetect.models import DetectorConfig, TwoBranchDetector

FIELDS = ("logits", "image_logits", "residual_logits", "patch_scores")


@pytest.fixture(scope="module")
def model() -> TwoBranchDetector:
    torch.manual_seed(0)
    config = DetectorConfig(image_size=160, residual_backbone="mobilenetv3_small_050", protocol="sparse-4")
    detector = TwoBranchDetector(config)
    randomise_statistics(detector)
    return detector.eval()


def randomise_statistics(module: torch.nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(part.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(part.running_var, 0.5, 1.5)


def crops(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 160, 160, 3), dtype=np.uint8)


def test_fp32_engine_is_the_model(model: TwoBranchDetector) -> None:
    before = {k: v.clone() for k, v in model.state_dict().items()}
    out = TorchEngine(model, device="cpu", precision="fp32", batch_size=4).run(crops(5))
    with torch.no_grad():
        want = model(torch.from_numpy(crops(5)).permute(0, 3, 1, 2))
    for field in FIELDS:
        got = getattr(out, field)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got.reshape(5, -1), getattr(want, field).numpy(), rtol=1e-4, atol=1e-4)
    assert out.patch_scores.shape == (5, 14, 14)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())  # the caller's model is untouched


def test_bf16_is_near_fp32(model: TwoBranchDetector) -> None:
    full, half = (TorchEngine(model, device="cpu", precision=p, batch_size=8).run(crops(8)) for p in ("fp32", "bf16"))
    assert 0 < np.abs(full.logits - half.logits).max() < 0.05
    np.testing.assert_allclose(half.patch_scores, full.patch_scores, rtol=0.05, atol=2e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_crops_scores_are_bit_equal_whatever_else_is_in_the_run(model: TwoBranchDetector, precision) -> None:
    engine = TorchEngine(model, device="cpu", precision=precision, batch_size=8)
    mine, others = crops(3), crops(20, seed=1)
    alone = engine.run(mine)
    rng = np.random.default_rng(2)
    for _ in range(3):
        places = rng.choice(23, 3, replace=False)
        everything = np.insert(others, np.sort(places) - np.arange(3), mine[np.argsort(np.argsort(places))], axis=0)
        together = engine.run(everything)
        for i, place in enumerate(places):
            found = [j for j in range(len(everything)) if np.array_equal(everything[j], mine[i])]
            assert len(found) == 1, place
            for field in FIELDS:
                assert np.array_equal(getattr(alone, field)[i], getattr(together, field)[found[0]])


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "mobilenetv3_small_050", "resnet10t", "convnext_atto"])
def test_folding_batch_norm_changes_nothing_but_the_speed(name: str) -> None:
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=0).eval()
    randomise_statistics(net)
    norms = sum(isinstance(m, torch.nn.BatchNorm2d) for m in net.modules())
    folded = copy.deepcopy(net)
    assert fold_batch_norm(folded, torch.zeros(1, 3, 64, 64)) == norms
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), net(x), rtol=1e-4, atol=1e-5)


def test_a_convolution_read_twice_is_not_folded() -> None:
    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 1)
            self.first, self.second = torch.nn.BatchNorm2d(4), torch.nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return self.first(y) + self.second(y)

    assert fold_batch_norm(Twice().eval(), torch.rand(1, 3, 4, 4)) == 0


def test_no_crops_give_empty_arrays(model: TwoBranchDetector) -> None:
    out = TorchEngine(model, device="cpu").run(crops(0))
    assert isinstance(out, EngineOutput)
    assert out.logits.shape == out.image_logits.shape == (0, 2)
    assert out.patch_scores.shape == (0, 14, 14)


def test_bad_input_is_named(model: TwoBranchDetector) -> None:
    engine = TorchEngine(model, device="cpu")
    with pytest.raises(ShapeError, match=r"\[B,160,160,3\]"):
        engine.run(crops(2).transpose(0, 3, 1, 2))
    with pytest.raises(ShapeError, match="float32"):
        engine.run(crops(2).astype(np.float32))
    with pytest.raises(UsageError, match="detector, verdict"):
        TorchEngine(model, device="cpu", part="face-detector")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="int8"):
        TorchEngine(model, precision="int8")
    with pytest.raises(UsageError, match="batch_size"):
        TorchEngine(model, batch_size=0)
    for device in ("cuda:99", "abacus"):
        with pytest.raises(UsageError, match="use 'cpu'"):
            TorchEngine(model, device=device)


def test_load_engine_sets_threads_and_carries_the_folders_config(model: TwoBranchDetector, tmp_path) -> None:
    model.save_pretrained(tmp_path / "m", calibration={"id": "abc"}, model_id="m-1")
    threads = torch.get_num_threads()
    try:
        engine = load_engine(str(tmp_path / "m"), device="cpu", precision="fp32", threads=1, batch_size=2)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    assert (engine.info.model_id, engine.info.calibration) == ("m-1", {"id": "abc"})
    assert (engine.device, engine.precision, engine.image_size, engine.batch_size) == ("cpu", "fp32", 160, 2)
    engine.close()
    with pytest.raises(UsageError, match="tensorflow"):
        load_engine(str(tmp_path / "m"), engine="tensorflow")
    with pytest.raises(UsageError, match="threads"):
        load_engine(str(tmp_path / "m"), threads=0)


def test_what_torch_cannot_do_is_an_engine_error(model: TwoBranchDetector, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TorchEngine(model, device="cpu", precision="fp32", batch_size=2)
    flags = []

    def no_memory(batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        flags.append((torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")

    monkeypatch.setattr(engine, "_run", no_memory)
    with pytest.raises(
        EngineError, match=r"torch-.* failed on cpu, batch 2: CUDA out of memory\. Tried to allocate 2 GiB$"
    ):
        engine.run(crops(1))
    assert flags == [(False, True)]
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.run(crops(1))
    monkeypatch.setattr(TwoBranchDetector, "to", lambda self, device: no_memory(torch.empty(0)))
    with pytest.raises(EngineError, match="cannot load the model on cpu: CUDA out of memory"):
        TorchEngine(model, device="cpu", precision="fp32")


def test_a_recorded_run_takes_the_kernels_of_the_runs_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = []

    class Scorer(torch.nn.Linear):
        def forward(self, batch: torch.Tensor) -> tuple[torch.Tensor]:
            rounds.append((torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic))
            return (batch,)

    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name in ("CUDAGraph", "Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: stream)
    for name in ("graph", "stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: nullcontext())
    torch_engine._recorded(Scorer(1, 1), 2, 8)
    assert rounds == [(False, True)] * 4


def test_a_missing_compiler_is_told_before_the_run(
    model: TwoBranchDetector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.save_pretrained(tmp_path / "m")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("/nowhere/c++",))
    with pytest.raises(EngineError, match=r"torch-.*-compile failed on cpu"):
        load_engine(str(tmp_path / "m"), engine="torch-compile", device="cpu", precision="fp32", batch_size=1)


@pytest.mark.gpu
def test_cuda_is_near_the_cpu(model: TwoBranchDetector) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    cpu = TorchEngine(model, device="cpu", precision="fp32", batch_size=8).run(crops(8))
    for precision, tolerance in (("fp32", 1e-3), ("bf16", 0.05)):
        gpu = TorchEngine(model, device="cuda", precision=precision).run(crops(8))
        assert np.abs(cpu.logits - gpu.logits).max() < tolerance
