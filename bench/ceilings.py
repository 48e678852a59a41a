"""What the machine can do at best, measured in the same run: a large copy and large matrix products."""

import time
from collections.abc import Callable

import torch

from fastdetect.engines.machine import cpu_has_bf16


def _seconds(run: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Fastest of a few runs: a ceiling is what was reached once."""
    best = float("inf")
    for _ in range(rounds + 1):  # the first warms up
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            run()
            end.record()
            end.synchronize()
            best = min(best, start.elapsed_time(end) / 1e3)
        else:
            begin = time.perf_counter()
            run()
            best = min(best, time.perf_counter() - begin)
    return best


def _copy_gbps(values: int, device: torch.device) -> float:
    source = torch.rand(values, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _seconds(lambda: target.copy_(source), device, 10) / 1e9


def measure(device: torch.device, *, tiny: bool = False) -> dict[str, float]:
    """Measure the ceilings of a device, on random data.

    Returns:
        copy_gbps: bytes read plus bytes written of a copy, in GB/s. product_<dtype>_tflops: square products, for
        fp32 and, where the hardware multiplies it, bf16.
    """
    cuda = device.type == "cuda"
    values = 1 << (20 if tiny else 30 if cuda else 26)  # 4 GiB on a GPU, 256 MiB on a CPU: many times the cache
    ceilings = {"copy_gbps": _copy_gbps(values, device)}
    side = 256 if tiny else 8192 if cuda else 2048
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        if name == "bf16" and not (cuda or cpu_has_bf16()):
            continue
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        seconds = _seconds(lambda a=a, b=b: a @ b, device, 10 if cuda else 4)  # type: ignore[misc]
        ceilings[f"product_{name}_tflops"] = 2 * side**3 / seconds / 1e12
    return ceilings


def floor_ms(ceilings: dict[str, float], moved: float, flops: float, product: str) -> tuple[float, str]:
    """Shortest possible time of a job, and what sets it ("memory" or "arithmetic")."""
    memory = moved / ceilings["copy_gbps"] / 1e6
    rate = ceilings.get(f"product_{product}_tflops", ceilings["product_fp32_tflops"])
    arithmetic = flops / rate / 1e9
    return max(memory, arithmetic), "memory" if memory >= arithmetic else "arithmetic"
