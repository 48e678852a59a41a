"""Time the ways of getting 16 evenly spaced frames out of H.264 clips, and what the rule picks.

Usage: python bench/decode_policy.py [--rounds 5] [--threads 1] [--quick]
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from fastdetect.video.probe import Limits, VideoInfo, probe
from fastdetect.video.pyav import DECODER, JUMP_PACKETS, _decode_video
from fastdetect.video.sampling import SamplingPolicy

NEVER = 10**9


@dataclass(frozen=True)
class Clip:
    """One generated clip: 25 frames a second, the encoder's default B-frames, fixed GOP."""

    width: int
    height: int
    seconds: float
    gop: int
    codec: str = "h264"  # or vp9

    @property
    def name(self) -> str:
        return f"{self.width}x{self.height} {self.seconds:g}s gop{self.gop}"


CLIPS = [
    Clip(512, 512, 5, 250),
    Clip(512, 512, 5, 12),
    Clip(512, 512, 20, 50),
    Clip(512, 512, 30, 250),
    Clip(1280, 720, 5, 250),
    Clip(1280, 720, 15, 25),
]


ENCODING: dict[str, dict[str, str]] = {
    "h264": {"preset": "veryfast", "crf": "24", "sc_threshold": "0"},
    "vp9": {"deadline": "realtime", "cpu-used": "8", "b": "2M"},
}


def make_clip(path: Path, clip: Clip) -> None:
    """Encode a panned, flickering photograph-like texture (noise with a 1/f spectrum)."""
    rng = np.random.default_rng(0)
    height, width = clip.height + 300, clip.width + 300
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :]) + 1e-3
    waves = np.fft.fft2(rng.standard_normal((3, height, width))) / radius**1.3
    field = np.real(np.fft.ifft2(waves)).transpose(1, 2, 0)
    texture = np.clip(128 + 50 * field / field.std(), 0, 255).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264" if clip.codec == "h264" else "libvpx-vp9", rate=25)
        stream.width, stream.height, stream.pix_fmt = clip.width, clip.height, "yuv420p"
        stream.options = {**ENCODING[clip.codec], "g": str(clip.gop)}
        for i in range(int(clip.seconds * 25)):
            x, y = int(150 + 140 * np.sin(i / 9)), int(150 + 140 * np.cos(i / 13))
            picture = texture[y : y + clip.height, x : x + clip.width] // 2 + np.uint8(i * 5 % 64)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture))
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def every_frame(path: str, threads: int) -> None:
    """Do what most scripts do: decode and convert every frame, keep 16."""
    with av.open(path) as container:
        container.streams.video[0].codec_context.thread_count = threads
        for frame in container.decode(video=0):
            frame.to_ndarray(format="rgb24")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="the two shortest clips only")
    args = parser.parse_args()
    policy, limits = SamplingPolicy.parse("uniform:16"), Limits()
    print(
        f"{DECODER}, {args.threads} decoder thread(s), {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}; median CPU ms of {args.rounds} interleaved rounds; "
        f"rule: jump when over {JUMP_PACKETS} packets are spared"
    )
    heads = ("every frame", "sequential", "always jump", "rule", "picks", "best")
    print(f"{'clip':<24}" + "".join(f"{head:>13}" for head in heads))
    misses = 0
    with tempfile.TemporaryDirectory() as folder:
        for number, clip in enumerate(CLIPS[:2] if args.quick else CLIPS):
            path = str(Path(folder) / f"{number}.mp4")
            make_clip(Path(path), clip)
            info = probe(path, limits)

            def run(jump: int, info: VideoInfo = info) -> str:
                return _decode_video(info, policy, None, args.threads, limits, jump)[2]

            ways: dict[str, Callable[[], object]] = {
                "every": lambda path=path: every_frame(path, args.threads),  # type: ignore[misc]
                "sequential": lambda: run(NEVER),
                "seek": lambda: run(0),
                "rule": lambda: run(JUMP_PACKETS),
            }
            times: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(args.rounds):
                for way, call in ways.items():
                    begin = time.process_time()
                    call()
                    times[way].append((time.process_time() - begin) * 1e3)
            ms = {way: statistics.median(values) for way, values in times.items()}
            best = min(ms["sequential"], ms["seek"])
            misses += ms["rule"] > 1.25 * best
            cells = [f"{value:.1f}" for value in ms.values()]
            cells += [run(JUMP_PACKETS), "sequential" if ms["sequential"] <= ms["seek"] else "seek"]
            print(f"{clip.name:<24}" + "".join(f"{cell:>13}" for cell in cells), flush=True)
    print(f"clips where the rule is over 25 % slower than the better method: {misses}")
    sys.exit(1 if misses else 0)


if __name__ == "__main__":
    main()
