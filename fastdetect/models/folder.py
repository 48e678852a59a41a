"""Model folders on the disk, in the package or on the Hub; needs no torch, which takes seconds to load."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open

from fastdetect.errors import CheckpointError, NoSuchModelError

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
SHIPPED = Path(__file__).parent / "weights"


class Preprocess(BaseModel):
    """The contract between a video frame and the model's input."""

    model_config = ConfigDict(extra="forbid")

    size: int
    margin: float = 1.3
    square: bool = True
    resize: Literal["area"] = "area"
    detector: str = "centerface"
    color: Literal["RGB"] = "RGB"


class ModelFolder(BaseModel):
    """What `config.json` holds; the calibration block is fitted and read by other packages."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model_type: str
    architecture: dict[str, Any]
    preprocess: Preprocess | None = None
    calibration: dict[str, Any] | None = None
    model_id: str = ""
    license: str = "research use only"
    weights_sha256: str = ""


def shipped_models() -> list[str]:
    """Return the names of the models that come with the package, sorted."""
    return sorted(p.parent.name for p in SHIPPED.glob(f"*/{CONFIG_FILE}"))


def sha256_of(path: Path) -> str:
    """Return the hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_folder(name: str | Path) -> Path:
    """Resolve a model: an existing folder, a shipped name, or a Hub id `owner/name` (safetensors only).

    `owner/name@revision` is the Hub's model at a branch, tag or commit; without, at its main branch.

    Raises:
        NoSuchModelError: none of the three, or a folder without `config.json`; the message says what there is.
    """
    path = Path(name)
    if path.is_dir():
        if not (path / CONFIG_FILE).is_file():
            inside = path / "model"
            advice = f"did you mean {inside}?" if (inside / CONFIG_FILE).is_file() else "give a model folder"
            raise NoSuchModelError(f"{path} is no model folder: it holds no {CONFIG_FILE}; {advice}")
        return path
    text = str(name)
    if text in shipped_models():
        return SHIPPED / text
    names = ", ".join(shipped_models()) or "none"
    if isinstance(name, str) and text.count("/") == 1 and all(text.split("/")) and text[0] not in "./~":
        return _download(text, names)
    raise NoSuchModelError(
        f"no model {text!r}: not a folder, not a shipped model (have: {names}), not a Hub id 'owner/name' "
        "or 'owner/name@revision'"
    )


def _download(repo: str, names: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    name, _, revision = repo.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=[WEIGHTS_FILE, CONFIG_FILE]))
    except (OSError, ValueError, HFValidationError) as error:  # hub and network errors derive from OSError
        raise NoSuchModelError(
            f"no folder {repo!r} here, and it cannot be fetched from the Hub ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no message'}); check the name and the network, "
            f"give a local folder, or use a shipped model (have: {names})"
        ) from error


def read_config(folder: Path) -> ModelFolder:
    """Read and validate `config.json` of a model folder; raises CheckpointError."""
    path = folder / CONFIG_FILE
    try:
        return ModelFolder.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read {path}: {error}; a model folder holds {CONFIG_FILE}") from error
    except ValidationError as error:
        raise CheckpointError(f"{path} is not a model configuration: {first_problem(error)}") from error


def residual_decides(name: str | Path) -> bool:
    """Whether the fused head of a detector's folder gives its residual branch any weight.

    Where it gives none, the image branch alone decides, and inpainting serves explanation only.

    Raises:
        CheckpointError: there is no such detector.
    """
    folder = find_folder(name)
    path, names = folder / WEIGHTS_FILE, ("head.weight", "residual_head.weight")
    try:
        with safe_open(path, framework="np") as file:
            kind = file.get_slice(names[0]).get_dtype()
        with safe_open(path, framework="pt" if kind == "BF16" else "np") as file:  # NumPy has no bfloat16
            fused, own = (file.get_tensor(name) for name in names)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a detector's: {error}") from error
    return bool(fused[:, fused.shape[1] - own.shape[1] :].any())


def first_problem(error: ValidationError) -> str:
    """What a configuration's first mistake is, and where."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'value'}: {first['msg']}"
