"""Compiles the contrastive kernels for an absent GPU; run it for the table of the docs."""

import torch
from fastdetect.kernels import supcon_margin as kernels
from fastdetect.kernels.supcon_launch import _depth
from offline_compile import Usage, compile_for

ROWS = {"positive": 32, "finish": 16}  # a program, as supcon_launch.py has them


def supcon_case(
    arch: int,
    kind: str,  # sums, gradient, weights
    dtype: str,
    width: int,
    *,
    online: bool = False,
    negatives: bool = False,
    margin: bool = True,
    in_tile: bool = False,
    mask: bool = False,
    fused: bool = False,
    stage: int = 1,
) -> Usage:
    """A kernel at its tuned configuration; strides and D multiples of 16 where the launcher sees them so."""
    torch_dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype]
    bm, bn, bk, warps, stages = kernels.config(kind, width, torch_dtype, fused or mask)
    bk = max(16, 1 << (width - 1).bit_length()) if kind == "gradient" else min(bk, 1 << (width - 1).bit_length())
    kernel = {
        "sums": kernels.sums_kernel,
        "gradient": kernels.gradient_kernel,
        "weights": kernels.weights_kernel,
    }[kind]
    integers = ("x_stride", "y_stride", "p_row", "p_column", "x_count", "y_count", "offset", "split", "begin", "end")
    index = "*i64" if fused else "*i32"
    signature = {name: "i32/16" if name.endswith("stride") and width % 16 == 0 else "i32" for name in integers}
    signature |= {"x": f"*{dtype}", "y": f"*{dtype}", "center": f"*{dtype}" if fused else "*i32"}
    signature |= {"kinds_x": "*i32", "kinds_y": "*i32", "fuse_a": index, "fuse_b": index}
    signature |= {"fuse_w": "*fp32" if fused else "*i32", "positives": "*i1" if mask else "*i32", "online": "*i32"}
    signature |= {"log_sum": "*fp32", "cx": "*fp32", "cy": "*fp32", "scale": "fp32", "margin": "fp32"}
    signature["out"] = f"*{dtype}" if kind == "weights" else "*fp32"
    constants = {
        "D": width,
        "SELF": not fused,
        "FUSED": fused,
        "X_FUSED": False,
        "Y_FUSED": fused,
        "REAL_ROWS": fused,
        "MASK": mask,
        "NEGATIVES": negatives,
        "STAGE": stage,
        "ONLINE": int(online),
        "MARGIN": margin,
        "POSITIVE_SUM": in_tile,
        "IN_TILE": in_tile,
        "UPCAST": False,
        "PRECISION": "tf32x3",
        "SINGLE": width <= bk,
        "BM": bm,
        "BN": bn,
        "BK": bk,
        "GROUP": 8,
    }
    names = set(kernel.arg_names)
    signature = {name: kind_ for name, kind_ in signature.items() if name in names}
    constants = {name: value for name, value in constants.items() if name in names}
    return compile_for(arch, kernel, signature, constants, warps, stages)


def row_sums_case(arch: int, kind: str, dtype: str, width: int, class_sums: bool = True) -> Usage:
    """The kernels before and after the tiles: similarity to all mates, and the parts of the gradient summed."""
    kernel = {"positive": kernels.positive_kernel, "finish": kernels.finish_kernel}[kind]
    stride = "i32/16" if width % 16 == 0 else "i32"
    signature = {"x": f"*{dtype}", "kinds": "*i32", "sums": "*fp32", "x_stride": stride, "count": "i32"}
    if kind == "positive":
        signature |= {"out": "*fp32"}
    else:
        signature |= dict.fromkeys(("parts", "c", "pulls", "factor"), "*fp32") | {"out": f"*{dtype}", "P": "i32"}
    constants = {"D": width, "UPCAST": False, "BM": ROWS[kind], "BK": _depth(width, 128)}
    if kind == "finish":
        constants["CLASS_SUMS"] = class_sums
    return compile_for(arch, kernel, signature, constants, warps=4)


def main() -> None:
    def row(name: str, arch: int, dtype: str, width: int, tile: str, warps: int, use: Usage) -> None:
        found = (use.registers, use.instructions, use.stack, use.shared, use.matrix)
        print("|", " | ".join(str(cell) for cell in (name, arch, dtype, width, tile, warps, *found)), "|", flush=True)

    print("| kernel | sm | dtype | D | tile | warps | registers | instructions | stack | shared B | (H)GMMA |")
    print("|" + "---|" * 11)
    for arch in (80, 90):
        for kind, dtype, width, extra in [
            ("sums", "bf16", 128, {}),
            ("sums", "bf16", 128, {"fused": True}),
            ("sums", "bf16", 256, {}),
            ("sums", "bf16", 768, {}),
            ("sums", "bf16", 256, {"fused": True}),
            ("sums", "fp32", 128, {}),
            ("gradient", "bf16", 64, {}),
            ("gradient", "bf16", 128, {}),
            ("gradient", "bf16", 128, {"fused": True}),
            ("gradient", "bf16", 128, {"online": True}),
            ("gradient", "bf16", 256, {}),
            ("gradient", "bf16", 128, {"mask": True, "in_tile": True}),
            ("gradient", "fp32", 64, {}),
            ("weights", "fp32", 128, {}),
            ("weights", "bf16", 768, {"fused": True}),
            ("weights", "bf16", 768, {}),
        ]:
            use = supcon_case(arch, kind, dtype, width, **extra)
            torch_dtype = torch.float32 if dtype == "fp32" else torch.bfloat16
            bm, bn, _, warps, _ = kernels.config(kind, width, torch_dtype, bool({"fused", "mask"} & {*extra}))
            row(", ".join([kind, *extra]), arch, dtype, width, f"{bm}x{bn}", warps, use)
        for kind in ("positive", "finish"):
            for dtype, width in [("bf16", 128), ("fp32", 1024)]:
                use = row_sums_case(arch, kind, dtype, width)
                row(kind, arch, dtype, width, f"{ROWS[kind]}x{_depth(width, 128)}", 4, use)


if __name__ == "__main__":
    main()
