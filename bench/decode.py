"""Decoders on generated clips: every frame as RGB, and 16 evenly spaced ones, against a plain PyAV loop."""

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import av
import cv2
import numpy as np
import torch

from bench.decode_policy import Clip, make_clip
from bench.registry import Inputs, Op, Outputs, Provider, Shape
from fastdetect.video.pyav import decode
from fastdetect.video.sampling import SamplingPolicy


def shape_of(codec: str, width: int, height: int, seconds: float, frames: str, regime: str, **more: int) -> Shape:
    """A case: a clip's codec, size and length, and the sampling policy."""
    values: dict[str, int | float | str] = {"codec": codec, "width": width, "height": height, "seconds": seconds}
    return Shape({**values, "frames": frames, **more}, regime)


def make_file(folder: Path, shape: Shape) -> Path:
    """The clip of a case, encoded once."""
    path = folder / f"{shape['codec']}-{shape['width']}-{shape['seconds']}.mp4"
    if not path.is_file():
        make_clip(path, Clip(shape["width"], shape["height"], shape["seconds"], 50, shape["codec"]))
    return path


class Decode(Op):
    """Container bytes to RGB frames."""

    name = "decode"
    title = "Container bytes to RGB frames, on the CPU"
    floor = ""
    axis = "seconds"
    baseline = "PyAV"
    shapes: ClassVar[Mapping[str, tuple[Shape, ...]]] = {
        "cpu": (
            shape_of("h264", 512, 512, 5, "uniform:16", "what screening asks for"),
            shape_of("h264", 512, 512, 5, "all", "every frame"),
            shape_of("h264", 1280, 720, 5, "uniform:16", "what screening asks for, 720p"),
            shape_of("vp9", 512, 512, 5, "all", "a codec that every decoder here reads on the CPU"),
        ),
        "tiny": (shape_of("h264", 128, 96, 1, "uniform:16", "tiny"),),
    }

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def bytes(self, shape: Shape) -> float:
        return 0.0

    def inputs(self, shape: Shape, device: torch.device) -> Inputs:
        path = make_file(self.folder, shape)
        policy = SamplingPolicy.parse(shape["frames"])
        indices = [frame.index for frame in decode(str(path), policy).frames]
        return {"path": str(path), "indices": indices, "policy": policy, "threads": torch.get_num_threads()}

    def truth(self, inputs: Inputs) -> Outputs:
        return _pyav({**inputs, "threads": 1})

    def error(self, actual: Outputs, truth: Outputs) -> float:
        """Root mean square over that of the truth: colour conversions may differ by a level, frames may not."""
        if actual[0].shape != truth[0].shape:
            return float("inf")
        # Frame by frame, the worst one: a single wrong frame must show.
        pairs = ((a.float(), t.float()) for a, t in zip(actual[0], truth[0], strict=True))
        return max(((a - t).square().mean().sqrt() / t.square().mean().sqrt()).item() for a, t in pairs)

    def providers(self, shape: Shape, device: torch.device) -> Mapping[str, Provider]:
        found = {"ours": Provider(_ours, 1e-6), "PyAV": Provider(_pyav, 1e-6), "OpenCV": Provider(_opencv, 0.03)}
        if importlib.util.find_spec("torchcodec"):
            found["torchcodec"] = Provider(_torchcodec, 0.03, skip=_torchcodec_fault())
        if importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali"):
            skip = "" if shape["codec"] == "vp9" else "DALI reads VP8, VP9 and MJPEG only on the CPU"
            found["DALI"] = Provider(_Dali(), 0.05, skip=skip)
        return found


def _stack(frames: Sequence[np.ndarray]) -> Outputs:
    return (torch.from_numpy(np.stack(frames)),)


def _ours(inputs: Inputs) -> Outputs:
    clip = decode(inputs["path"], inputs["policy"], threads=inputs["threads"])
    return _stack([frame.rgb for frame in clip.frames])


def _pyav(inputs: Inputs) -> Outputs:
    wanted, frames = set(inputs["indices"]), []
    with av.open(inputs["path"]) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.thread_count = "AUTO", inputs["threads"]
        for index, frame in enumerate(container.decode(stream)):
            if index in wanted:
                frames.append(frame.to_ndarray(format="rgb24"))
    return _stack(frames)


def _opencv(inputs: Inputs) -> Outputs:
    wanted, frames, index = set(inputs["indices"]), [], 0
    capture = cv2.VideoCapture(inputs["path"], cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, inputs["threads"]])
    while capture.grab():  # retrieve() converts the colours: only of the frames that are wanted
        if index in wanted:
            frames.append(cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB))
        index += 1
    capture.release()
    return _stack(frames)


def _torchcodec_fault() -> str:
    """It is installed without FFmpeg's shared libraries; some versions say so when imported, others when used."""
    try:
        loaded = importlib.import_module("torchcodec").ffmpeg_major_version
    except (ImportError, OSError, RuntimeError) as error:
        return f"{type(error).__name__}: {str(error)[:120]}"
    return "" if loaded else "FFmpeg's shared libraries, or a torch that this torchcodec is made for, were not found"


def _torchcodec(inputs: Inputs) -> Outputs:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(inputs["path"], num_ffmpeg_threads=inputs["threads"], dimension_order="NHWC")
    return (decoder.get_frames_at(indices=inputs["indices"]).data,)


class _Dali:
    """DALI's in-memory video decoder; the pipeline is built once, as its users do."""

    def __init__(self) -> None:
        self.pipe: Any = None

    def __call__(self, inputs: Inputs) -> Outputs:
        if self.pipe is None:
            from nvidia.dali import fn, pipeline_def

            # One clip in, one out: nothing is asked for ahead.
            @pipeline_def(  # type: ignore[call-overload]
                batch_size=1, num_threads=inputs["threads"], device_id=None, exec_pipelined=False, exec_async=False
            )
            def pipeline():  # type: ignore[no-untyped-def]
                return fn.decoders.video(fn.external_source(name="clip"), device="cpu")

            self.pipe = pipeline()
            self.pipe.build()
        self.pipe.feed_input("clip", [np.fromfile(inputs["path"], np.uint8)])
        frames = torch.from_numpy(np.array(self.pipe.run()[0].at(0)))
        return (frames[inputs["indices"]],)
