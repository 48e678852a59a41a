"""Compiles Triton kernels for an absent GPU and reads what they use; run it for the table of the docs."""

import contextlib
import re
import subprocess
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import triton
import triton.backends.nvidia
from fastdetect.kernels import masked_residual as mr
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TOOLS = Path(triton.backends.nvidia.__file__).parent / "bin"
SHARED_LIMIT = {80: 166_912, 90: 232_448, 100: 232_448}
TENSOR_MEMORY_LIMIT = 512  # columns, sm_100


@dataclass(frozen=True)
class Usage:
    kernel: str
    registers: int
    instructions: int
    stack: int
    local: int
    shared: int  # bytes
    tensor_memory: int  # columns
    widest_load: int  # bits
    widest_store: int
    matrix: int  # HMMA, HGMMA or UTCHMMA instructions


@contextlib.contextmanager
def sm_100_warns(arch: int) -> Iterator[None]:
    """What is an error on the architectures that are tuned for is a warning on sm_100."""
    try:
        yield
    except Exception as error:
        if arch != 100:
            raise
        warnings.warn(f"sm_100: {type(error).__name__}: {error}", UserWarning, stacklevel=3)


def on_architectures(cases: Iterable[tuple]) -> list[tuple]:
    """Each case for each architecture; for sm_100 those in bf16 alone, to save time."""
    return [(arch, *case) for case in cases for arch in SHARED_LIMIT if arch != 100 or "bf16" in case]


def gate(arch: int, usage: Usage, matrix: bool = False) -> None:
    faults = {
        "spills": usage.stack > 0 or usage.local > 0,
        "too many registers": usage.registers > 255,
        "too much shared memory": usage.shared > SHARED_LIMIT[arch],
        "too much tensor memory": usage.tensor_memory > TENSOR_MEMORY_LIMIT,
        "no matrix instructions": matrix and usage.matrix == 0,
    }
    found = ", ".join(name for name, wrong in faults.items() if wrong)
    assert not found, f"sm_{arch}: {found}: {usage}"


def compile_for(
    arch: int,
    kernel: triton.JITFunction,
    signature: dict[str, str],  # by argument: a Triton type; "/16" behind it: the launcher sees a multiple of 16
    constants: dict[str, int | float | bool],
    warps: int,
    stages: int = 3,
) -> Usage:
    types = {name: signature.get(name, "constexpr") for name in kernel.arg_names}
    attrs = {
        (i,): [["tt.divisibility", 16]]
        for i, kind in enumerate(types.values())
        if kind.startswith("*") or kind.endswith("/16")
    }
    types = {name: kind.removesuffix("/16") for name, kind in types.items()}
    source = ASTSource(kernel, types, constexprs=constants, attrs=attrs)
    options = {"num_warps": warps, "num_stages": stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage, sass = (
            subprocess.run([TOOLS / "cuobjdump", flag, cubin], capture_output=True, text=True, check=True).stdout
            for flag in ("-res-usage", "-sass")
        )
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", usage)}

    def widest(instruction: str) -> int:
        suffixes = re.findall(rf"\b{instruction}\.E([.\w]*)", sass)
        return max(128 if ".128" in s else 64 if ".64" in s else 8 if "8" in s else 32 for s in suffixes)

    return Usage(
        kernel=compiled.metadata.name,
        registers=found["REG"],
        instructions=len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s", sass, re.MULTILINE)),
        stack=found["STACK"],
        local=found["LOCAL"],
        shared=max(found["SHARED"], compiled.metadata.shared),
        tensor_memory=compiled.metadata.tmem_size or 0,
        widest_load=widest("LDG"),
        widest_store=widest("STG"),
        matrix=len(re.findall(r"\b(?:HG?|UTCH)MMA\b", sass)),
    )


def _scale(image: str) -> float:
    return 1.0 / 255.0 if image == "u8" else 1.0


def loss_case(
    arch: int, pred: str, image: str, patch: int, channels: int, norm: bool, channels_last: bool = False
) -> Usage:
    """The loss kernel with its gradient. A stride of 1 is a constant, as the launcher makes it."""
    length = patch * patch * channels
    block = triton.next_power_of_2(length)
    row = "i32/16" if length % 16 == 0 else "i32"
    signature = {
        "pred": f"*{pred}",
        "images": f"*{image}",
        "mask": "*i1",
        "total": "*fp32",
        "loss": "*fp32",
        "grad": f"*{pred}",
        "pred_sb": row,
        "pred_sl": row,
        "image_sb": "i32/16",
        "image_sh": "i32/16",
        "patches": "i32",
        "grid_cols": "i32",
    } | ({"image_sw": "i32"} if channels_last else {"image_sc": "i32/16"})
    constants = {
        "P": patch,
        "C": channels,
        "SCALE": _scale(image),
        "NORM": norm,
        "MEAN": True,
        "GRAD": True,
        "BLOCK": block,
    } | ({"image_sc": 1} if channels_last else {"image_sw": 1})
    return compile_for(arch, mr.masked_patch_loss_kernel, signature, constants, mr.num_warps(block))


def residual_case(arch: int, pred: str, image: str, patch: int, channels: int, single_pass: bool = False) -> Usage:
    """The residual kernel; a single pass is a constant, as the launcher makes it."""
    length = patch * patch * channels
    block = triton.next_power_of_2(length)
    row = "i32/16" if length % 16 == 0 else "i32"
    signature = {
        "pred": f"*{pred}",
        "images": f"*{image}",
        "assignment": "*i1",
        "residual": "*fp32" if image == "u8" else f"*{image}",
        "scores": "*fp32",
        "pred_sk": row,
        "pred_sb": row,
        "pred_sl": row,
        "gain": "fp32",
        "clamp": "fp32",
        "patches": "i32",
        "grid_cols": "i32",
    } | {f"{name}_{stride}": "i32/16" for name in ("image", "residual") for stride in ("sb", "sc", "sh")}
    constants = {"P": patch, "C": channels, "SCALE": _scale(image), "BLOCK": block, "image_sw": 1}
    if single_pass:
        constants["passes"] = 1
    else:
        signature["passes"] = "i32"
    return compile_for(arch, mr.patch_residual_kernel, signature, constants, mr.num_warps(block))


def scale_case(arch: int, data: str, per_row: bool) -> Usage:
    """The kernel that applies the upstream gradient, at K = 768."""
    signature = {"data": f"*{data}", "factor": "*fp32", "numel": "i32/16", "K": "i32/16"}
    block = 1024 if per_row else mr.SCALE_BLOCK
    constants = {"PER_ROW": per_row, "BLOCK": block}
    return compile_for(arch, mr.scale_rows_kernel, signature, constants, mr.num_warps(block))


def main() -> None:
    def row(kernel: str, arch: int, patch: int | str, pred: str, image: str, use: Usage) -> None:
        cells = (kernel, arch, patch, pred, image, use.registers, use.instructions, use.stack, use.shared)
        print("|", " | ".join(str(cell) for cell in (*cells, use.widest_load, use.widest_store)), "|")

    names = "kernel | sm | P | pred | image | registers | instructions | stack | shared B | widest load | widest store"
    print("|", names, "|\n|" + "---|" * 11)
    for arch in (80, 90):
        for pred, image, patch, norm in [
            ("bf16", "fp32", 16, False),
            ("bf16", "fp32", 16, True),
            ("bf16", "u8", 16, False),
            ("fp32", "fp32", 8, False),
            ("bf16", "bf16", 52, True),
        ]:
            name = "loss + gradient, norm_pix" if norm else "loss + gradient"
            row(name, arch, patch, pred, image, loss_case(arch, pred, image, patch, 3, norm))
        for pred, image, patch in [("bf16", "fp32", 16), ("fp32", "fp32", 8), ("bf16", "bf16", 52)]:
            row("residual", arch, patch, pred, image, residual_case(arch, pred, image, patch, 3))
        for per_row in (False, True):
            name = "upstream gradient, per row" if per_row else "upstream gradient"
            row(name, arch, "-", "bf16", "-", scale_case(arch, "bf16", per_row))


if __name__ == "__main__":
    main()
