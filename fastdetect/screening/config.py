"""The options of a screening run: defaults, a YAML file, `--set a.b=c`, then command-line options."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from fastdetect.config import load
from fastdetect.faces.centerface import DETECT_SIDE
from fastdetect.screening.verdict import VerdictConfig
from fastdetect.video.sampling import SamplingPolicy


class DetectionConfig(BaseModel):
    """How faces are looked for, and how many at most."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    side: int = Field(default=DETECT_SIDE, ge=64, le=4096, description="longer side of the detector's input, pixels")
    score: float = Field(default=0.5, gt=0, lt=1, description="lowest detector confidence that is a face")
    runtime: Literal["auto", "onnxruntime", "openvino", "torch"] = Field(
        default="auto",
        description="auto: torch where the model runs on CUDA, OpenVINO (bf16) where it runs on that in bf16, else "
        "ONNX Runtime (fp32)",
    )
    max_people: int = Field(default=16, ge=1, description="tracks scored per file, those with the most face area")
    max_faces: int = Field(default=1024, ge=1, description="faces scored per file, thinned evenly in every track")


class ScreenConfig(BaseModel):
    """Everything that a run can be told; written beside its results as config.yaml."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    model: str = Field(default="fastdetect-small", description="model folder, shipped name or Hub id")
    engine: Literal[  # as fastdetect.engines.base, whose import takes torch with it
        "auto", "torch", "torch-compile", "torch-cuda-graph", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"
    ] = "auto"
    device: str = Field(default="auto", pattern=r"^(auto|cpu|gpu|cuda(:\d+)?)$")
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    profile: Literal["latency", "balanced", "throughput"] | None = Field(
        default=None, description="batch sizes of the engine; default: the engine's own"
    )
    sample: str = Field(default="uniform:16", description="uniform:N | fps:X | keyframes | all")
    max_seconds: float | None = Field(default=None, gt=0, description="look at the first seconds only")
    faces: Literal["all", "largest"] = "all"
    decoder: Literal["auto", "dali", "nvcodec", "pyav"] = Field(
        default="auto", description="auto: NVDEC where it can be used, else PyAV"
    )
    workers: int | None = Field(None, ge=1, le=256, description="decode and detection processes; default: cores")
    threads: int | None = Field(default=None, ge=1, description="of the model; default: half the cores")
    timeout: float = Field(default=120.0, gt=0, description="seconds of wall time per file")
    media: bool = Field(default=True, description="keep crops and heat maps of faces for the report")
    residual: Literal["shown", "all"] = Field(
        default="shown",
        description="faces that are inpainted where the model's verdict needs none: those of the report, or all",
    )
    uncalibrated: bool = Field(default=False, description="allow a model without calibration: margins, no verdicts")
    detection: DetectionConfig = DetectionConfig()
    verdict: VerdictConfig = VerdictConfig()

    @field_validator("sample")
    @classmethod
    def _normal(cls, text: str) -> str:
        return str(SamplingPolicy.parse(text))


def load_config(
    path: Path | None = None, overrides: Sequence[str] = (), options: Mapping[str, Any] | None = None
) -> ScreenConfig:
    """Put a screening configuration together, see `fastdetect.config.load`."""
    return load(ScreenConfig, path, overrides, options)
