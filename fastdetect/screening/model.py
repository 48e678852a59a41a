"""The model of a run: its engine, its calibration, and what a row says about both."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal

from fastdetect import __version__
from fastdetect.engines import load_engine
from fastdetect.engines.base import Engine
from fastdetect.engines.graph import Scoring
from fastdetect.engines.load import deciding_part
from fastdetect.engines.machine import usable_cores
from fastdetect.errors import FastdetectError, UsageError
from fastdetect.models.folder import ModelFolder, Preprocess
from fastdetect.screening.config import ScreenConfig
from fastdetect.screening.results import ThresholdRow
from fastdetect.screening.verdict import Calibration


@dataclass
class Model:
    """A loaded detector, ready to score; close it, or use it in a `with` statement."""

    engine: Engine  # scores every face
    info: ModelFolder
    preprocess: Preprocess
    calibration: Calibration | None
    thresholds: list[ThresholdRow]
    warnings: list[str] = field(default_factory=list)
    explainer: Engine | None = None  # inpaints the faces that are shown, where `engine` inpaints none
    config: ScreenConfig = field(default_factory=lambda: ScreenConfig.model_validate({}))
    _spare: list[Engine | None] = field(default_factory=list)

    @classmethod
    def load(cls, config: ScreenConfig) -> "Model":
        """Load the model that the options name.

        Raises:
            CheckpointError: there is no such model, or its weights or calibration cannot be used.
            UsageError: it has no calibration and `uncalibrated` is off, or no threshold at a wanted rate.
            MissingDependencyError, EngineError: its engine is not installed, or cannot be used here.
        """
        # Inpainting is most of a detector's work: what no verdict needs is made for the eye alone.
        part = deciding_part(config.model) if config.residual == "shown" else "detector"
        engine = _engine(config, part)
        if engine.grid is None and part == "detector" and (config.media or config.residual == "all"):
            engine.close()
            raise UsageError(
                f"{config.model} is an export of the verdict alone, which inpaints nothing: give --no-media (and no "
                "--residual all), or export --part detector"
            )
        info = engine.info
        calibration = Calibration.from_config(info.calibration) if info.calibration else None
        if calibration is None and not config.uncalibrated:
            raise UsageError(
                f"the model {config.model!r} has no calibration, so it has no scores and verdicts; "
                "calibrate it, or give --uncalibrated for margins alone"
            )
        thresholds = calibration.limits(config.verdict) if calibration else []
        warnings = []
        if calibration and (config.sample != calibration.sampling or config.max_seconds):
            first = f" in the first {config.max_seconds:g} s" if config.max_seconds else ""
            warnings.append(
                f"the thresholds are meant for the sampling {calibration.sampling}; with "
                f"{config.sample}{first} their false-positive rates hold only roughly"
            )
        preprocess = info.preprocess or Preprocess(size=engine.image_size)
        explainer = _engine(config, "detector") if part == "verdict" and config.media else None
        return cls(engine, info, preprocess, calibration, thresholds, warnings, explainer, config)

    def spare(self) -> Engine | None:
        """The model on the CPU, for files that fail on another device; None where there is no such thing."""
        if not self._spare:
            options = {"engine": "auto", "device": "cpu", "precision": "auto", "profile": None}
            part: Scoring = "detector" if self.engine.grid else "verdict"
            try:
                on_cpu = self.engine.device == "cpu"
                self._spare.append(None if on_cpu else _engine(self.config.model_copy(update=options), part))
            except FastdetectError:  # a plan for a GPU is all that there is
                self._spare.append(None)
        return self._spare[0]

    def facts(self, engine: Engine | None = None) -> dict[str, Any]:
        """What every row and the run's summary say about the model and the engine that was used."""
        engine = engine or self.engine
        return {
            "engine": engine.name,
            "device": engine.device,
            "precision": engine.precision,
            "model_id": self.info.model_id,
            "model_sha256": self.info.weights_sha256,
            "preprocess_sha256": _hash(self.preprocess.model_dump(mode="json")),
            "calibration_id": self.calibration.id if self.calibration else None,
            "thresholds": self.thresholds,
        }

    def identity(self, config: ScreenConfig) -> dict[str, Any]:
        """Everything that can change a row's scores or verdict, as JSON values."""
        decides = {"verdict", "fpr", "score"}
        facts = self.facts() | {"thresholds": [limit.model_dump(include=decides) for limit in self.thresholds]}
        options = {"sample", "max_seconds", "decoder", "faces", "detection", "verdict"}
        return {
            "fastdetect": __version__,
            **facts,
            "architecture_sha256": _hash(self.info.architecture),
            **config.model_dump(mode="json", include=options),
            "detector": self.detector_runtime(config),
        }

    def detector_runtime(self, config: ScreenConfig) -> Literal["onnxruntime", "openvino", "torch"]:
        """What runs the face detector.

        `auto` is torch where the model is on a GPU, so that frames stay there, and OpenVINO, which computes in bf16,
        where the model does so, too.
        """
        if config.detection.runtime != "auto":
            return config.detection.runtime
        if self.engine.device.startswith("cuda"):
            return "torch"
        in_bf16 = self.engine.precision == "bf16" and self.engine.name.startswith("openvino")
        return "openvino" if in_bf16 else "onnxruntime"

    def close(self) -> None:
        """Free the engines; the model cannot score afterwards."""
        for engine in (self.engine, self.explainer, *self._spare):
            if engine is not None:
                engine.close()

    def __enter__(self) -> "Model":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _engine(config: ScreenConfig, part: Scoring) -> Engine:
    return load_engine(
        config.model,
        engine=config.engine,
        device=config.device,
        precision=config.precision,
        threads=config.threads or default_threads(),
        profile=config.profile,
        part=part,
    )


def default_threads() -> int:
    """Threads of the model: half the cores, about its share of the work; the workers take what is left."""
    return max(1, usable_cores() // 2)


def _hash(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
