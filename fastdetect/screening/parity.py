"""The same clips through every decoder and engine of this machine: how far their scores are apart."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import av
import cv2
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastdetect.errors import FastdetectError, MissingDependencyError
from fastdetect.screening.config import ScreenConfig
from fastdetect.screening.inputs import expand_inputs
from fastdetect.screening.model import Model
from fastdetect.screening.pipeline import Screener
from fastdetect.screening.results import Row
from fastdetect.video.lanes import check_decoder

LIMIT = 0.02  # of calibrated scores, per video
SAMPLING = "uniform:8"
DECODERS = ("pyav", "dali", "nvcodec")
ENGINES = tuple(name for name in get_args(ScreenConfig.model_fields["engine"].annotation) if name != "auto")
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
        clip, decoder, engine: what was asked for; `row` says what was used.
        row: its result; None where the combination cannot run here, `why` says why.
        difference: of the score from that of the first combination that runs (PyAV and torch); None where there
            is no score.
    """

    clip: str
    decoder: str
    engine: str
    row: Row | None
    difference: float | None
    why: str = ""


def run_parity(
    engines: Sequence[str] = ENGINES,
    *,
    model: str = "fastdetect-small",
    clips: Sequence[str | Path] = (),
    console: Console | None = None,
) -> int:
    """Compare all combinations and print one table.

    Args:
        engines: those to try; one that is missing here is listed as such.
        model: model folder, shipped name or Hub id.
        clips: files, folders, globs or lists; a portrait in three codecs is made where there is none.
        console: where the table goes; standard output by default.
    Returns:
        0 if all scores agree within LIMIT, 1 if not.
    Raises:
        MissingDependencyError: there is no portrait to make clips of.
        UsageError: `clips` name no file.
    """
    return show(compare(engines, model=model, clips=clips), console)


def show(found: Iterable[Parity], console: Console | None = None) -> int:
    """Print combinations as one table; returns 0 if all scores agree within LIMIT, 1 if not."""
    console = console or Console(highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("clip", "decoder", "engine", "score", "difference", "used"):
        table.add_column(name, overflow="fold")
    worst = 0.0
    for one in found:
        if one.row is None:
            table.add_row(one.clip, one.decoder, one.engine, "", "", Text(f"not here: {one.why}", style="dim"))
            continue
        off = one.difference if one.difference is not None else float("inf")
        worst = max(worst, off)
        used = " ".join(filter(None, (one.row.decoder, one.row.engine, one.row.precision, one.row.decode_note)))
        score = "none" if one.row.score is None else f"{one.row.score:.4f}"
        style = "" if off <= LIMIT else "bold red"
        table.add_row(one.clip, one.decoder, one.engine, score, Text(f"{off:.4f}", style=style), Text(used))
    console.print(table)
    console.print(f"largest difference {worst:.4f}, limit {LIMIT}")
    return int(worst > LIMIT)


def compare(
    engines: Sequence[str] = ENGINES, *, model: str = "fastdetect-small", clips: Sequence[str | Path] = ()
) -> Iterator[Parity]:
    """Screen clips with every decoder and engine, see `run_parity`."""
    reference: dict[str, float | None] = {}
    with TemporaryDirectory(prefix="fastdetect-parity-") as folder:
        if not clips:
            write_clips(Path(folder))
        files = expand_inputs(clips or [folder])
        for engine, decoder in product(engines, DECODERS):
            try:
                check_decoder(decoder)
                options = {"engine": engine, "decoder": decoder, "sample": SAMPLING, "precision": "fp32"}
                config = ScreenConfig.model_validate({"model": model, "workers": 1, "media": False, **options})
                with Model.load(config) as loaded:
                    rows = list(Screener(loaded, config, media=None).screen(files))
            except FastdetectError as error:
                yield Parity("", decoder, engine, None, None, str(error))
                continue
            for row in sorted(rows, key=lambda row: row.name):
                first = reference.setdefault(row.path, row.score)
                name = Path(row.path).name
                if first is None and row.score is None:
                    yield Parity(name, decoder, engine, row, 0.0)  # agreed: nobody to score
                    continue
                known = first is not None and row.score is not None
                yield Parity(name, decoder, engine, row, abs(row.score - first) if known else None)  # type: ignore[operator]


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
