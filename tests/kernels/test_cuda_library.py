"""The compiled CUDA library, without a GPU: it holds what build_info() says, no kernel spills, accesses are wide."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from fastdetect import _host
from fastdetect.ops import backend

ARCHITECTURES = _host.build_info()["cuda_architectures"].split(",")
pytestmark = pytest.mark.skipif(ARCHITECTURES == [""], reason="built without nvcc, so without the CUDA library")

KERNELS = {
    "similarity_kernel", "refine_kernel", "count_kernel", "emit_kernel", "synthesis_kernel", "backward_kernel",
    "partial_sum_kernel", "finish_sum_kernel", "mix_kernel",
}  # fmt: skip


def cuobjdump(*arguments: str) -> str:
    try:
        import triton.backends.nvidia as nvidia

        tool = str(Path(nvidia.__file__).parent / "bin" / "cuobjdump")
    except ImportError:
        tool = shutil.which("cuobjdump") or pytest.skip("no cuobjdump, from triton or CUDA")
    command = [tool, *arguments, str(backend.CUDA_LIBRARY)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_no_spills_on_any_architecture() -> None:
    by_architecture = re.split(r"^arch = sm_", cuobjdump("-res-usage"), flags=re.MULTILINE)[1:]
    assert [text.split()[0] for text in by_architecture] == ARCHITECTURES
    for text in by_architecture:
        usages = re.findall(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", text)
        assert {name for name in KERNELS for mangled, *_ in usages if name in mangled} == KERNELS
        for mangled, registers, stack, shared, local in usages:
            assert int(stack) == int(local) == 0, (text[:6], mangled)  # a spill would live there
            assert int(registers) <= 80, (text[:6], mangled)
            assert int(shared) <= 48 * 1024, (text[:6], mangled)


@pytest.mark.skipif("90a" not in ARCHITECTURES, reason="not built for sm_90a")
def test_wide_accesses() -> None:
    """The kernels for aligned rows read and write 16 bytes at a time, and use no float atomics."""
    for function in re.split(r"\bFunction : ", cuobjdump("-sass", "-arch", "sm_90a"))[1:]:
        name = function.split()[0]
        assert not re.search(r"\b(RED|ATOM|ATOMG|ATOMS)\S*\.(F16|F32|F64|BF16)", function), name
        if re.search(r"(fLi4|HalfELi8|BFloat16ELi8)E", name):
            assert "LDG.E.128" in function, name
            assert "STG.E.128" in function or "similarity" in name or "partial_sum" in name, name


def test_registers_without_a_gpu() -> None:
    if torch.version.cuda is None:
        pytest.skip("a CPU build of torch, which has no CUDA stream to link to")
    assert backend.load_cpu_library()
    torch.ops.load_library(str(backend.CUDA_LIBRARY))
    for name in ("mine", "synthesize", "synthesize_backward", "real_sums", "mix_center"):
        cuda, cpu = (getattr(getattr(torch.ops, f"fastdetect_{where}"), name).default for where in ("cuda", "cpu"))
        assert str(cuda._schema).split("::")[1] == str(cpu._schema).split("::")[1]
    assert torch.ops.fastdetect_cuda.runs_here() == torch.cuda.is_available()
