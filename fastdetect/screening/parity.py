"""The same clips through every decoder and engine of this machine: how far their scores are apart."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import av
import cv2
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastdetect.errors import FastdetectError, MissingDependencyError
from fastdetect.screening.config import ScreenConfig
from fastdetect.screening.inputs import InputFile, expand_inputs
from fastdetect.screening.model import Model
from fastdetect.screening.pipeline import Screener, nvdec_device
from fastdetect.screening.results import Row
from fastdetect.video import lanes

LIMIT = 0.02  # of calibrated scores, per video
SAMPLING = "uniform:8"
DECODERS = ("pyav", "dali", "nvcodec")
ENGINES = tuple(name for name in get_args(ScreenConfig.model_fields["engine"].annotation) if name != "auto")
Exactness = Literal["fp32", "as screened"]
_CODECS = {
    "h264.mp4": ("libx264", "yuv420p"),
    "vp9.webm": ("libvpx-vp9", "yuv420p"),
    "mjpeg.avi": ("mjpeg", "yuvj420p"),
}
_FRAMES, _SIDE, _FACE_XY = 16, 256, (225, 130)


@dataclass(frozen=True)
class Parity:
    """One clip by one decoder and engine.

    Attributes:
        clip, decoder, engine, kind: what was asked for; `row` says what was used. `fp32` inpaints every face, so that
            the whole detector is compared; `as screened` is what screening takes by itself: the fastest precision, and
            of the model the part that decides.
        row: its result; None where the combination cannot run here, `why` says why.
        difference: of the score from the reference's; infinite where one of them has none, None where both have.
        residual: the same of the residual branch's own answer, of the person whose differs most; None where one of
            them inpainted nothing.
    """

    clip: str
    decoder: str
    engine: str
    kind: Exactness
    row: Row | None
    difference: float | None
    residual: float | None = None
    why: str = ""


def run_parity(
    engines: Sequence[str] = ENGINES,
    *,
    model: str = "fastdetect-small",
    clips: Sequence[str | Path] = (),
    console: Console | None = None,
) -> int:
    """Compare all combinations with PyAV and torch in fp32 on the CPU, and print one table.

    Args:
        engines: those to try; one that is missing here is listed as such.
        model: model folder, shipped name or Hub id.
        clips: files, folders, globs or lists; a portrait in three codecs is made where there is none.
        console: where the table goes; standard output by default.
    Returns:
        0 if all scores agree within LIMIT, 1 if not, and where there was none to compare.
    Raises:
        MissingDependencyError: there is no portrait to make clips of.
        UsageError: `clips` name no file.
    """
    return show(compare(engines, model=model, clips=clips), console)


def show(found: Iterable[Parity], console: Console | None = None) -> int:
    """Print combinations as one table; returns 0 if all scores agree within LIMIT, else 1."""
    console = console or Console(highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("clip", "decoder", "engine", "precision", "score", "difference", "residual", "used"):
        table.add_column(name, overflow="fold")
    offs = []
    for one in found:
        asked = one.clip, one.decoder, one.engine, one.kind
        if one.row is None:
            table.add_row(*asked, "", "", "", Text(f"not here: {one.why}", style="dim"))
            continue
        offs += [off for off in (one.difference, one.residual) if off is not None]
        used = (one.row.decoder, one.row.engine, one.row.device, one.row.precision, one.row.decode_note)
        text = " ".join(filter(None, (*used, one.row.message)))
        score = "none" if one.row.score is None else f"{one.row.score:.4f}"
        table.add_row(*asked, score, _number(one.difference), _number(one.residual), Text(text))
    console.print(table)
    if not offs:
        console.print("no clip has a score here: nothing was compared", style="bold red")
        return 1
    console.print(f"largest difference {max(offs):.4f}, limit {LIMIT}")
    return int(max(offs) > LIMIT)


def _number(off: float | None) -> Text:
    return Text("" if off is None else f"{off:.4f}", style="bold red" if off is not None and off > LIMIT else "")


def compare(
    engines: Sequence[str] = ENGINES, *, model: str = "fastdetect-small", clips: Sequence[str | Path] = ()
) -> Iterator[Parity]:
    """Screen clips with every decoder and engine, see `run_parity`."""
    with TemporaryDirectory(prefix="fastdetect-parity-") as folder:
        if not clips:
            write_clips(Path(folder))
        files = expand_inputs(clips or [folder])
        first = {"engine": "torch", "device": "cpu", "precision": "fp32", "residual": "all"}
        [reference] = _screened(model, first, ("pyav",), files)
        if isinstance(reference[1], FastdetectError):
            raise reference[1]
        want = {row.path: row for row in reference[1]}
        for engine, kind in product(engines, get_args(Exactness)):
            options = {"engine": engine} | ({"precision": "fp32", "residual": "all"} if kind == "fp32" else {})
            for decoder, rows in _screened(model, options, DECODERS, files):
                if isinstance(rows, FastdetectError):
                    yield Parity("", decoder, engine, kind, None, None, why=str(rows))
                    continue
                for row in sorted(rows, key=lambda row: row.name):
                    other, name = want[row.path], Path(row.path).name
                    yield Parity(name, decoder, engine, kind, row, _apart(row, other), _residuals_apart(row, other))


def _screened(
    model: str, options: dict[str, str], decoders: Sequence[str], files: Sequence[InputFile]
) -> Iterator[tuple[str, list[Row] | FastdetectError]]:
    """The rows of each decoder, or what went wrong."""
    fixed = {"model": model, "workers": 1, "media": False, "sample": SAMPLING}
    try:
        with Model.load(ScreenConfig.model_validate(fixed | options)) as loaded:
            for decoder in decoders:
                try:
                    config = ScreenConfig.model_validate(fixed | options | {"decoder": decoder})
                    lanes.check_decoder(decoder, lanes.this_machine(nvdec_device(config.device)))
                    yield decoder, list(Screener(loaded, config, media=None).screen(files))
                except FastdetectError as error:
                    yield decoder, error
    except FastdetectError as error:
        yield "any", error


def _apart(row: Row, other: Row) -> float | None:
    if row.score is None and other.score is None:
        return None  # agreed: nobody to score
    return math.inf if row.score is None or other.score is None else abs(row.score - other.score)


def _residuals_apart(row: Row, other: Row) -> float | None:
    """The residual branch's probabilities, not calibrated, one mean a person."""
    found = [
        [face.residual_margin for face in track.faces if face.residual_margin is not None]
        for one in (row, other)
        for track in one.tracks
    ]
    if not found or not all(found) or len(row.tracks) != len(other.tracks):
        return None
    means = 1 / (1 + np.exp([-float(np.mean(margins)) for margins in found]))
    return float(np.abs(means[: len(row.tracks)] - means[len(row.tracks) :]).max())


def write_clips(folder: Path) -> None:
    """Encode the same slowly moving portrait, two thirds of a second, with every codec of the test.

    Raises:
        MissingDependencyError: scikit-image, whose portrait it is, is not installed.
    """
    try:
        from skimage.data import astronaut
    except ImportError as error:
        raise MissingDependencyError(
            "the clips are made of a portrait of scikit-image; pip install 'fastdetect[demo]'"
        ) from error
    portrait = astronaut()
    x, y = _FACE_XY
    for name, (codec, pix_fmt) in _CODECS.items():
        with av.open(str(folder / name), "w") as container:
            stream: Any = container.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = _SIDE, _SIDE, pix_fmt
            stream.options = {"qmin": "1", "qmax": "3"} if codec == "mjpeg" else {"crf": "18", "b": "0"}
            for i in range(_FRAMES):
                turn = cv2.getRotationMatrix2D(_FACE_XY, 2 * np.sin(i / 5), 1.0)
                turn[:, 2] += np.array([_SIDE / 2 - x + 12 * np.sin(i / 8), _SIDE / 2 - y])
                rgb = cv2.warpAffine(portrait, turn, (_SIDE, _SIDE), borderMode=cv2.BORDER_REPLICATE)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb.astype(np.uint8))))
            container.mux(stream.encode(None))
