"""The pictures of a manifest's sample, wherever they lie: video, folder of frames, zip, tar or LMDB."""

import re
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import IO

import cv2
import numpy as np

from fastdetect.data.lmdb_store import LmdbStore
from fastdetect.data.manifest import ARCHIVE_ERRORS, Sample
from fastdetect.errors import DataError, MediaError
from fastdetect.reasons import Reason
from fastdetect.video.pyav import Frame, decode
from fastdetect.video.sampling import SamplingPolicy, pick_frames

_FRAMES_PER_S = 25.0  # of frames without a clock, for policies that go by time


@dataclass
class Footage:
    """Chosen frames of a sample, and what is known of the whole.

    Attributes:
        frames: in order of time; `index` is the number in the frame file's name where it has one.
        reasons: such as TRUNCATED.
        size: (width, height) of the first frame.
        total: frames that there are, None where a video does not declare it.
        duration_s: of a video.
    """

    frames: list[Frame]
    size: tuple[int, int]
    reasons: list[Reason] = field(default_factory=list)
    total: int | None = None
    duration_s: float | None = None


def read_footage(
    sample: Sample, root: Path, policy: SamplingPolicy, *, max_seconds: float | None = None, threads: int = 1
) -> Footage:
    """Decode the frames that a policy picks; frame lists are taken as 25 a second.

    Raises:
        MediaError: nothing of it can be read; the message names the file.
    """
    if sample.frames:
        return _read_frames(sample, root, policy, max_seconds)
    place = root / sample.path
    if not sample.container:
        return _decode(place, policy, max_seconds, threads)
    with tempfile.TemporaryDirectory(prefix="fastdetect-") as folder:
        copy = Path(folder) / f"video{PurePosixPath(sample.member).suffix.lower()}"
        with copy.open("wb") as target:
            copy_member(sample, root, target)
        return _decode(copy, policy, max_seconds, threads)


def _decode(path: Path, policy: SamplingPolicy, max_seconds: float | None, threads: int) -> Footage:
    clip = decode(path, policy, max_seconds=max_seconds, threads=threads)
    info = clip.info
    return Footage(clip.frames, (info.width, info.height), list(clip.reasons), info.frames, info.duration_s)


def copy_member(sample: Sample, root: Path, target: IO[bytes]) -> None:
    """Copy a video out of its zip or tar.

    Raises:
        MediaError: there is no such archive or member, or it is damaged.
    """
    place = root / sample.path
    try:
        if sample.container == "zip":
            with zipfile.ZipFile(place) as archive, archive.open(sample.member) as source:
                shutil.copyfileobj(source, target, 2**20)
        else:
            with tarfile.open(place) as tar:
                inner = tar.extractfile(sample.member)
                if inner is None:
                    raise KeyError(f"{sample.member} is no file")
                shutil.copyfileobj(inner, target, 2**20)
    except FileNotFoundError as error:
        raise MediaError(Reason.NOT_FOUND, f"no such archive {place}") from error
    except KeyError as error:
        raise MediaError(Reason.NOT_FOUND, f"{place} has no member {sample.member!r}: {error}") from error
    except ARCHIVE_ERRORS as error:
        raise MediaError(Reason.DECODE_ERROR, f"{sample.member!r} of {place} cannot be read: {error}") from error


def frame_bytes(sample: Sample, root: Path, names: Sequence[str]) -> list[bytes | None]:
    """The encoded pictures of some of a sample's frames; None for those that are not there.

    Raises:
        MediaError: there is no such archive or LMDB folder, or it is damaged.
    """
    if not sample.container:
        return [_file_bytes(root / name) for name in names]
    place = root / sample.path
    if sample.container == "lmdb":
        try:
            with closing(LmdbStore(place)) as store:
                return [store.get(name) for name in names]
        except DataError as error:  # as of any other container: it costs this sample
            raise MediaError(Reason.DECODE_ERROR if place.exists() else Reason.NOT_FOUND, str(error)) from error
    found: dict[str, bytes] = {}
    try:
        if sample.container == "zip":
            with zipfile.ZipFile(place) as archive:
                known = set(archive.namelist())
                found = {name: archive.read(name) for name in names if name in known}
        else:
            wanted = set(names)
            with tarfile.open(place) as tar:
                for member in tar:  # a tar.gz has no index: once through, and no further than needed
                    inner = tar.extractfile(member) if member.name in wanted else None
                    if inner is not None:
                        found[member.name] = inner.read()
                    if len(found) == len(wanted):
                        break
    except FileNotFoundError as error:
        raise MediaError(Reason.NOT_FOUND, f"no such archive {place}") from error
    except ARCHIVE_ERRORS as error:
        raise MediaError(Reason.DECODE_ERROR, f"{place} cannot be read: {error}") from error
    return [found.get(name) for name in names]


def _file_bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise MediaError(Reason.NOT_PERMITTED, f"{path} cannot be read: {error.strerror}") from error


def frame_numbers(names: Sequence[str]) -> list[int]:
    """The numbers that frame files end in, where all have one and they rise; else 0, 1, 2, ..."""
    found = [re.search(r"(\d{1,9})$", PurePosixPath(name.replace("\\", "/")).stem) for name in names]
    numbers = [int(match[1]) for match in found if match]
    rising = len(numbers) == len(names) and all(a < b for a, b in pairwise(numbers))
    return numbers if rising else list(range(len(names)))


def _read_frames(sample: Sample, root: Path, policy: SamplingPolicy, max_seconds: float | None) -> Footage:
    numbers = np.asarray(frame_numbers(sample.frames))
    times = (numbers - numbers[0]) / _FRAMES_PER_S
    # each frame is shown until the next: of a list with gaps the last one, too, counts for more than 1/25 s
    end = float(times[-1] + (np.median(np.diff(times)) if len(times) > 1 else 1 / _FRAMES_PER_S))
    chosen = pick_frames(policy, times, np.ones(len(times), bool), end, max_seconds)
    data = frame_bytes(sample, root, [sample.frames[i] for i in chosen])
    frames = []
    for position, encoded in zip(chosen.tolist(), data, strict=True):
        picture = None if not encoded else cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
        if picture is not None:
            rgb = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
            frames.append(Frame(int(numbers[position]), float(times[position]), rgb, True))
    lost = len(data) - len(frames)
    if not frames:
        there = any(item is not None for item in data)
        first = f"{sample.frames[chosen[0]]} of {root / sample.path}"
        if there:
            raise MediaError(Reason.DECODE_ERROR, f"no frame can be read: {first} is no picture")
        raise MediaError(Reason.NOT_FOUND, f"no frame is there: {first}")
    height, width = frames[0].rgb.shape[:2]
    return Footage(frames, (width, height), [Reason.TRUNCATED] if lost else [], len(sample.frames))
