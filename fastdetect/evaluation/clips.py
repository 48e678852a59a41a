"""The sampled frames of an evaluation's videos: files, folders, archives and LMDBs, as they are or after H.264."""

import tempfile
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from fastdetect.data.footage import copy_member, read_footage
from fastdetect.data.h264 import H264, reencode, transcode
from fastdetect.evaluation.index import Entry
from fastdetect.evaluation.scoring import Clip, read_file
from fastdetect.video.probe import probe
from fastdetect.video.sampling import SamplingPolicy


def read_clip(
    entry: Entry,
    policy: SamplingPolicy,
    *,
    max_seconds: float | None = None,
    threads: int = 1,
    coded: H264 | None = None,
) -> Clip:
    """Decode the sampled frames of a video, wherever it lies.

    Args:
        entry: the video.
        policy, max_seconds: which frames.
        threads: decoder threads.
        coded: transcode the whole video so first; frames that lie apart are encoded as they were sampled.
    Raises:
        MediaError: nothing of it can be read; another video never takes its place.
    """
    sample = entry.sample
    if sample is not None and sample.frames:
        found = read_footage(sample, entry.root, policy, max_seconds=max_seconds, threads=threads)
        pictures = [frame.rgb for frame in found.frames]
        clip = Clip(pictures, [f.time_s for f in found.frames], len(sample.frames) == 1, sample.cropped, found.reasons)
        return clip if coded is None else replace(clip, frames=_reencoded(clip.frames, coded))
    with tempfile.TemporaryDirectory(prefix="fastdetect-") as folder:
        path = entry.path
        if sample is not None and sample.container:
            path = Path(folder) / f"video{PurePosixPath(sample.member).suffix.lower()}"
            with path.open("wb") as target:
                copy_member(sample, entry.root, target)
        if coded is not None and not probe(path).is_image:
            path = transcode(path, Path(folder) / "coded.mp4", coded, max_seconds=max_seconds)
            coded = None
        clip = read_file(path, policy, max_seconds=max_seconds, threads=threads)
    return clip if coded is None else replace(clip, frames=_reencoded(clip.frames, coded))


def _reencoded(frames: list[np.ndarray], coded: H264) -> list[np.ndarray]:
    if len({frame.shape for frame in frames}) == 1:
        return list(reencode(np.stack(frames), coded))
    return [reencode(frame[None], coded)[0] for frame in frames]
