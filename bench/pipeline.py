"""Container bytes to verdicts, beside what the machine's video decoder alone makes of the same files in the same run.

    python -m bench screening pipeline --device cuda

`fastdetect screen` runs over generated clips of a moving face, `auto` in everything. The rows are looked at: where they
were decoded by anything but NVDEC, or their faces not found and scored on the GPU, the result is "wrong". "NVDEC alone"
decodes every frame to a surface and does nothing with it; "DALI alone" decodes the frames that screening asks for,
its plans made beforehand. Ours has two rates: of the whole run, with its start and report, and once it runs, from the
first quarter of the rows to the last; the second one is held against the faster decoder.
"""

import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch
from rich.console import Console

from bench import harness, machine
from bench.registry import Shape
from bench.screening import FRAMES, moving_face
from fastdetect.screening.config import ScreenConfig
from fastdetect.screening.inputs import expand_inputs
from fastdetect.screening.results import Row
from fastdetect.screening.run import EXIT_CLEAN, EXIT_FLAGGED, run_screening
from fastdetect.video import nvcodec
from fastdetect.video.dali import DaliDecoder
from fastdetect.video.lanes import Machine, choose, this_machine
from fastdetect.video.planned import plan_clip
from fastdetect.video.probe import DEFAULT_LIMITS, probe
from fastdetect.video.sampling import SamplingPolicy

TARGET = 20_000  # ten-second 1080p clips an hour on one H200
SHARE = 0.9  # of the decoder's own rate
_INSTANCES = 8  # NVDEC decoders at once; an H200 has seven engines
_BATCH = 16  # files that DALI gets at once
_DRAWN = 50  # pictures of a clip, which go forth and back: to draw more takes longer than to encode them
_ENCODERS = {
    "h264": ("mp4", "libx264", {"preset": "veryfast", "crf": "23"}),
    "vp9": ("webm", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "crf": "30", "b": "0"}),
}


def _shape(codec: str, width: int, height: int, frames: int, gop: int, clips: int, distinct: int, regime: str) -> Shape:
    values: dict[str, int | float | str] = {"codec": codec, "width": width, "height": height}
    values |= {"frames": frames, "gop": gop}
    return Shape(values | {"clips": clips, "distinct": distinct}, regime)


SHAPES = {
    "cuda": (
        _shape("h264", 1920, 1080, 250, 250, 96, 8, "1080p, 10 s"),
        _shape("h264", 512, 512, 125, 50, 192, 8, "512p, 5 s"),
    ),
    "tiny": (_shape("vp9", 320, 256, 12, 12, 3, 2, "tiny"),),
}


def make_clips(folder: Path, shape: Shape) -> list[Path]:
    """Encode the distinct clips of a shape, several at a time; the others are links to them."""
    suffix = _ENCODERS[shape["codec"]][0]
    paths = [folder / f"clip{number:04d}.{suffix}" for number in range(shape["clips"])]
    with ThreadPoolExecutor(min(machine.cores(), shape["distinct"])) as pool:
        list(pool.map(partial(_encode, shape), paths[: shape["distinct"]], range(shape["distinct"])))
    for number, path in enumerate(paths[shape["distinct"] :]):
        os.link(paths[number % shape["distinct"]], path)
    return paths


def _encode(shape: Shape, path: Path, seed: int) -> None:
    _, codec, options = _ENCODERS[shape["codec"]]
    drawn = [_widened(rgb, shape["width"], shape["height"]) for rgb in moving_face(seed, frames=_DRAWN)]
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = shape["width"], shape["height"], "yuv420p"
        stream.options = options | {"g": str(shape["gop"])}
        for number in range(shape["frames"]):
            place = number % (2 * _DRAWN - 2)
            rgb = drawn[min(place, 2 * _DRAWN - 2 - place)]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode())


def _widened(rgb: np.ndarray, width: int, height: int) -> np.ndarray:
    """A square picture scaled to a height, its left and right columns repeated up to a width."""
    side = (width - height) // 2
    square = cv2.resize(rgb, (height, height), interpolation=cv2.INTER_AREA if height < len(rgb) else cv2.INTER_LINEAR)
    return cv2.copyMakeBorder(square, 0, 0, side, width - height - side, cv2.BORDER_REPLICATE)


def trouble(rows: Sequence[Row], device: torch.device, nvdec: bool) -> str:
    """What shows that rows were not made where they should have been; empty: nothing does.

    Args:
        rows: of a run with `auto` in everything.
        device: where the model and, on CUDA, the face detector should have run.
        nvdec: whether NVDEC should have decoded them.
    """
    found: Counter[str] = Counter()
    for row in rows:
        if row.status != "ok" or row.score is None:
            found[f"{row.status}, no score: {row.message or ', '.join(row.reasons)}"] += 1
            continue
        if torch.device(row.device).type != device.type:
            found[f"the model ran on {row.device}, want {device.type}"] += 1
        if device.type == "cuda" and not (row.detector or "").startswith("centerface/torch"):
            found[f"faces were found by {row.detector}, want centerface/torch"] += 1
        if nvdec and not (row.decoder or "").endswith("/nvdec"):
            found[f"decoded by {row.decoder}, want NVDEC"] += 1
        if row.decode_note and (nvdec or device.type == "cpu"):
            found[row.decode_note.removeprefix(f"{row.path!r} is ")] += 1
    return "; ".join(f"{count} of {len(rows)} files: {text}" for text, count in found.most_common(4))


def steady_rate(rows: Sequence[Row]) -> float | None:
    """Videos per hour from the end of the first quarter of the rows to the last; None where that is no time at all."""
    times = sorted(datetime.fromisoformat(row.finished_at).timestamp() for row in rows)
    first = len(times) // 4
    seconds = times[-1] - times[first]
    return 3600 * (len(times) - 1 - first) / seconds if seconds > 0 else None


def decoders_alone(files: Sequence[Path], shape: Shape, number: int | None) -> dict[str, Callable[[], object] | str]:
    """Ways to decode files and do no more; the reason in the place of one that cannot be had here.

    Args:
        number: of the GPU; None: DALI on the CPU.
    """
    here: Machine = this_machine(number)
    info = probe(files[0])
    ways: dict[str, Callable[[], object] | str] = {}
    if number is not None:
        wanted = choose(info, "nvcodec", here)
        lack = "missing: PyNvVideoCodec" if here.nvcodec is None else wanted.why
        ways["NVDEC alone"] = lack or partial(_surfaces, files, number, shape["frames"])
    wanted = choose(info, "dali", here)
    lack = "missing: DALI" if here.dali is None else wanted.why if number is not None or wanted.lane == "pyav" else ""
    ways["DALI alone"] = lack or _Dali(files, shape["distinct"], number)
    return ways


def _surfaces(files: Sequence[Path], number: int, frames: int) -> None:
    """Decode every frame to a surface on the GPU; nothing is converted or copied."""
    from bench.decode_many import _count_file

    count = partial(_count_file, nvcodec.load(), number)
    with ThreadPoolExecutor(min(_INSTANCES, len(files))) as pool:
        found = sum(pool.map(count, map(str, files)))
    if found != frames * len(files):
        raise RuntimeError(f"NVDEC gave {found} frames, want {frames * len(files)}")


class _Dali:
    """DALI's decoder with the plans that screening would make of the distinct files; its frames are dropped."""

    def __init__(self, files: Sequence[Path], distinct: int, number: int | None) -> None:
        self.decoder = DaliDecoder(number, threads=machine.cores(), batch=_BATCH, keep=True)
        policy = SamplingPolicy.parse(f"uniform:{FRAMES}")
        plans = [plan_clip(probe(path), policy, None, DEFAULT_LIMITS) for path in files[:distinct]]
        self.plans = [plans[i % distinct] for i in range(len(files))]

    def __call__(self) -> None:
        for start in range(0, len(self.plans), _BATCH):
            self.decoder._stacks(self.plans[start : start + _BATCH])
        if self.decoder.device is not None:
            torch.cuda.synchronize(self.decoder.device)


def pipeline_case(shape: Shape, device: torch.device, *, turns: int, model: str = "fastdetect-small") -> dict[str, Any]:
    """Take the measurement of one kind of clips; the ways take turns."""
    number = (device.index or 0) if device.type == "cuda" else None
    here = this_machine(number)
    nvdec = bool(here.nvdec and (here.dali or here.nvcodec))
    config = ScreenConfig.model_validate({"model": model, "device": str(device), "media": False, "uncalibrated": True})
    with tempfile.TemporaryDirectory() as folder:
        files = make_clips(Path(folder), shape)
        alone = {name: _Way(way, len(files)) for name, way in decoders_alone(files, shape, number).items()}
        ours = _Way(partial(_screen, files, config), len(files))
        for way in alone.values():
            way.warm_up()
        runs: list[list[Row]] = []
        for _ in range(turns):
            runs.append(ours.turn() or [])
            for way in alone.values():
                way.turn()
    providers = {"ours": ours.result(), **{name: way.result() for name, way in alone.items()}}
    if providers["ours"]["status"] == "ok":
        rates = [rate for rows in runs if (rate := steady_rate(rows))]
        about = _about(runs[-1]) | {"steady_videos_per_hour": statistics.median(rates) if rates else None}
        note = next(filter(None, (trouble(rows, device, nvdec) for rows in runs)), "")
        if note:  # what is wrong keeps no time
            providers["ours"] = {"status": "wrong", "note": note, "made_by": about["made_by"]}
        else:
            providers["ours"] |= about
    most = max((providers[name].get("videos_per_hour", 0.0) for name in alone), default=0.0)
    steady = providers["ours"].get("steady_videos_per_hour")
    return {
        "op": "pipeline",
        "title": "Container bytes to verdicts",
        "case": str(shape),
        "shape": dict(shape.values),
        "axis": "clips",
        "regime": f"ms per clip, {shape.regime}; {turns} runs, start-up and report included",
        "baseline": "DALI alone",
        "floor": None,
        "providers": providers,
        "target_videos_per_hour": TARGET if shape["height"] == 1080 else None,
        "decode_share": steady / most if steady and most else None,
        "decode_share_target": SHARE,
    }


def _screen(files: Sequence[Path], config: ScreenConfig) -> list[Row]:
    """Screen files into a folder that is thrown away; RuntimeError where a file failed."""
    with tempfile.TemporaryDirectory() as out, open(os.devnull, "w") as quiet:
        run = run_screening(expand_inputs(list(files)), Path(out), config, console=Console(file=quiet))
        if run.exit_code not in (EXIT_CLEAN, EXIT_FLAGGED):
            raise RuntimeError(f"fastdetect screen ended with exit code {run.exit_code}: {run.counts}")
        return list(_rows(Path(out, "results.jsonl")))


def _rows(path: Path) -> Iterator[Row]:
    for line in path.read_text("utf-8").splitlines():
        yield Row.model_validate_json(line)


def _about(rows: Sequence[Row]) -> dict[str, Any]:
    """Where the rows were made, and their stages."""
    stages: Counter[str] = Counter()
    for row in rows:
        stages.update(row.timings_s)
    kinds = {name: Counter(str(getattr(row, name)) for row in rows) for name in ("decoder", "detector", "device")}
    return {
        "made_by": {name: dict(counts) for name, counts in kinds.items()},
        "engine": f"{rows[0].engine} {rows[0].precision}",
        "frames_decoded": sum(row.frames_decoded for row in rows),
        "stages_ms": {stage: 1e3 * seconds / len(rows) for stage, seconds in stages.items()},
    }


class _Way:
    """One way through all files, turn by turn; a way that breaks keeps no time.

    Args:
        run: goes through the files; or the reason why it cannot be had.
        files: how many they are.
    """

    def __init__(self, run: Callable[[], Any] | str, files: int) -> None:
        self.run, self.files = run, files
        self.samples: list[tuple[float, float]] = []
        self.failure = ""

    def warm_up(self) -> None:
        """Go once, so that what is built at the first time is built."""
        self.turn()
        self.samples.clear()

    def turn(self) -> Any:
        """Go through the files; returns what it found, None where it cannot or could not be run."""
        if isinstance(self.run, str) or self.failure:
            return None
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            found = self.run()
        except Exception as error:  # one that breaks must not take the others' results with it
            self.failure = f"{type(error).__name__}: {str(error)[:300]}"
            return None
        each = 1e3 / self.files
        self.samples.append((each * (time.perf_counter() - wall), each * (time.process_time() - cpu)))
        return found

    def result(self) -> dict[str, Any]:
        """Status, and times in ms per file."""
        if isinstance(self.run, str):
            return {"status": "skipped", "note": self.run}
        if self.failure:
            return {"status": "failed", "note": self.failure}
        times = harness.summary(self.samples, "median")
        return {"status": "ok", **times, "videos_per_hour": 3.6e6 / times["time_ms"]}
