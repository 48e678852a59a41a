"""Masked patch loss and residual against eager torch and torch.compile, in one process, interleaved.

    python bench/masked_ops.py [--batch 64] [--size 224] [--patch 16] [--rounds 20] [--threads 2] [--device cpu|cuda]

Prints, per case, the correctness of every contender first (a case whose error is too large prints no time), then the
minimum wall and CPU time of each and the ratios to ours. Only ratios within one run mean anything.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from fastdetect.ops import backend, masked_patch_loss, patch_residual, reference


def plain_loss(pred: Tensor, images: Tensor, mask: Tensor, patch: int, norm_pix: bool) -> Tensor:
    """MAE's forward_loss as published (patchify, optional standardisation, masked mean)."""
    target = reference.patchify(images / 255 if images.dtype == torch.uint8 else images, patch)
    if norm_pix:
        variance = target.var(dim=-1, keepdim=True)
        target = (target - target.mean(dim=-1, keepdim=True)) / (variance + 1e-6) ** 0.5
    return (((pred - target) ** 2).mean(dim=-1) * mask).sum() / mask.sum()


def plain_residual(pred: Tensor, images: Tensor, assignment: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """Average over the passes, difference, clamp and score, as one writes it in torch."""
    weight = assignment[:, None, :, None].to(pred.dtype)
    mean = (pred * weight).sum(0) / weight.sum(0).clamp(min=1)
    difference = (mean - reference.patchify(images, patch)) * (weight.sum(0) > 0)
    residual = reference.unpatchify(difference, (images.shape[2], images.shape[3]), patch)
    return (4 * residual).clamp(-1, 1), difference.square().mean(-1)


def interleaved_minima(
    contenders: dict[str, Callable[[], object]], rounds: int, cuda: bool
) -> tuple[dict[str, float], dict[str, float]]:
    """Smallest wall and CPU seconds of each; CPU seconds (all threads) hold where other processes take turns."""
    wall, cpu = dict.fromkeys(contenders, float("inf")), dict.fromkeys(contenders, float("inf"))
    for _ in range(rounds):
        for name, run in contenders.items():
            start, start_cpu = time.perf_counter(), time.process_time()
            run()
            if cuda:
                torch.cuda.synchronize()
            wall[name] = min(wall[name], time.perf_counter() - start)
            cpu[name] = min(cpu[name], time.process_time() - start_cpu)
    return wall, cpu


def error(actual: tuple[Tensor, ...], truth: tuple[Tensor, ...]) -> float:
    """Largest error of any output, relative to that output's largest value."""
    pairs = zip(actual, truth, strict=True)
    return max(((a.double() - t).abs().max() / t.abs().max()).item() for a, t in pairs)


def report(
    case: str,
    contenders: dict[str, Callable[[], tuple[Tensor, ...]]],
    truth: tuple[Tensor, ...],
    tolerance: float,
    args: argparse.Namespace,
) -> None:
    errors = {name: error(run(), truth) for name, run in contenders.items()}
    wrong = [name for name, value in errors.items() if not value <= tolerance]
    if wrong:
        raise SystemExit(f"{case}: {wrong} differ from float64 by more than {tolerance:g}: {errors}")
    for run in contenders.values():
        run()
    wall, cpu = interleaved_minima(contenders, args.rounds, args.device == "cuda")

    def line(best: dict[str, float]) -> str:
        times = "  ".join(f"{name} {seconds * 1e3:.2f}" for name, seconds in best.items())
        return times + " => " + ", ".join(f"{best[n] / best['ours']:.1f}x {n}" for n in best if n != "ours")

    print(f"{case}: error {errors['ours']:.0e} (eager {errors['eager']:.0e})")
    print(f"    wall ms  {line(wall)}", *([f"\n    CPU ms   {line(cpu)}"] if args.device == "cpu" else []), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"batch": 64, "size": 224, "patch": 16, "rounds": 20, "threads": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    torch.set_default_device(args.device)
    batch, size, patch = args.batch, args.size, args.patch
    patches, length = (size // patch) ** 2, patch * patch * 3
    print(f"B={batch} 3x{size}x{size} P={patch}, torch {torch.__version__}, {args.threads} threads, {args.device}")

    base = torch.rand(batch, 3, size, size)
    mask = (torch.rand(batch, patches) < 0.75).float()
    raw = torch.randn(batch, patches, length)
    loss_cases = [
        ("loss + gradient, fp32", torch.float32, torch.float32, False),
        ("loss + gradient, fp32, norm_pix", torch.float32, torch.float32, True),
        ("loss + gradient, bf16 pred, fp32 image", torch.bfloat16, torch.float32, False),
        ("loss + gradient, fp32 pred, uint8 image", torch.float32, torch.uint8, False),
    ]
    for case, pred_dtype, image_dtype, norm in loss_cases:
        images = (base * 255).to(torch.uint8) if image_dtype == torch.uint8 else base.to(image_dtype)
        pred = raw.to(pred_dtype).requires_grad_()
        compiled = torch.compile(plain_loss)

        def forward_backward(loss: Tensor, pred: Tensor = pred) -> tuple[Tensor, Tensor]:
            return loss.detach(), torch.autograd.grad(loss, pred)[0]

        # Bound as defaults: the loop's variables change under a closure.
        def ours(p: Tensor = pred, x: Tensor = images, n: bool = norm) -> tuple[Tensor, ...]:
            return forward_backward(masked_patch_loss(p, x, mask, patch_size=patch, norm_pix=n), p)

        def eager(p: Tensor = pred, x: Tensor = images, n: bool = norm) -> tuple[Tensor, ...]:
            return forward_backward(plain_loss(p, x, mask, patch, n), p)

        def compile_(
            p: Tensor = pred, x: Tensor = images, n: bool = norm, f: Callable = compiled
        ) -> tuple[Tensor, ...]:
            return forward_backward(f(p, x, mask, patch, n), p)

        assert backend.fused(pred, images, length)
        exact = pred.detach().double().requires_grad_()
        loss = reference.masked_patch_loss(
            exact, reference.to_real(images, torch.float64), mask, patch_size=patch, norm_pix=norm, reduction="mean"
        )
        truth = forward_backward(loss, exact)
        tolerance = 8e-3 if pred_dtype == torch.bfloat16 else 1e-5
        report(case, {"ours": ours, "eager": eager, "compile": compile_}, truth, tolerance, args)

    for case, passes, sparse in [("residual, complementary-4", 4, False), ("residual, sparse-4", 4, True)]:
        owner = torch.randint(0, passes, (patches,))
        assignment = (torch.arange(passes)[:, None] == owner) ^ sparse
        pred = torch.rand(passes, batch, patches, length)
        compiled_residual = torch.compile(plain_residual)
        with torch.no_grad():
            truth = reference.patch_residual(
                pred.double(), base.double(), assignment, patch_size=patch, gain=4.0, clamp=1.0
            )
            contenders = {
                "ours": lambda p=pred, a=assignment: patch_residual(p, base, a, patch_size=patch),
                "eager": lambda p=pred, a=assignment: plain_residual(p, base, a, patch),
                "compile": lambda p=pred, a=assignment, f=compiled_residual: f(p, base, a, patch),
            }
            report(case, contenders, truth, 1e-5, args)


if __name__ == "__main__":
    main()
