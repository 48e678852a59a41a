"""Which machine, which versions, which commit a result is from."""

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "torch", "triton", "numpy", "av", "opencv-python-headless", "timm", "pytorch-metric-learning", "cut-cross-entropy",
    "liger-kernel", "inf-cl", "torchcodec", "nvidia-dali-cuda130",
)  # fmt: skip


def cores() -> int:
    return len(os.sched_getaffinity(0))


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), platform.machine())


def describe(device: torch.device) -> dict[str, Any]:
    """The machine: enough to know whether two results can be compared."""
    about: dict[str, Any] = {
        "device": device.type,
        "cpu": _cpu(),
        "cores": cores(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "system": platform.system(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        about |= {
            "gpu": properties.name,
            "gpu_memory_gb": round(properties.total_memory / 2**30),
            "multiprocessors": properties.multi_processor_count,
            "l2_mb": round(properties.L2_cache_size / 2**20),
            "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        }
    about["name"] = about["gpu"] if "gpu" in about else f"{about['cpu']}, {about['cores']} cores"
    return about


def slug(machine: dict[str, Any]) -> str:
    """A file name for a machine's results."""
    text = re.sub(r"\((R|TM)\)|processor|cpu @.*?(?=,)", "", machine["name"], flags=re.IGNORECASE)
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def versions() -> dict[str, str]:
    """Python, CUDA and the packages that matter."""
    found = {"python": platform.python_version(), "cuda": torch.version.cuda or "none"}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found | {"torch": torch.__version__}


def commit() -> str:
    """The source's commit, "+changes" where files differ; FASTDETECT_COMMIT says it where the source is a copy."""
    head = os.environ.get("FASTDETECT_COMMIT") or _output("git", "rev-parse", "--short=10", "HEAD")
    if not head or "FASTDETECT_COMMIT" in os.environ:
        return head or "unknown"
    # What a run writes itself is no change of the source.
    changed = _output("git", "status", "--porcelain", "--", ".", ":!bench/results", ":!docs")
    return f"{head}+changes" if changed else head


def _output(*command: str) -> str:
    try:
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout.strip() if run.returncode == 0 else ""
