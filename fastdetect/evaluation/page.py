"""The report page of an evaluation: one file that opens anywhere, without a network and without JavaScript."""

import base64
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fastdetect.evaluation import plots
from fastdetect.evaluation.index import Entry
from fastdetect.evaluation.metrics import TARGET_FPR
from fastdetect.evaluation.scoring import Pictures
from fastdetect.evaluation.tables import interval_text
from fastdetect.inline_images import crop_image, heat_image

TEMPLATES = Path(__file__).parent / "templates"
CROP_PX = 112
DISCLAIMER = (
    "A score is an estimate, not evidence. Only manipulated faces are looked for, not wholly generated video. Figures "
    "hold for videos like these."
)


def write_page(
    result: Mapping[str, Any],
    path: Path,
    *,
    title: str,
    pictures: Mapping[str, Pictures] | None = None,
    entries: Mapping[str, Entry] | None = None,
) -> None:
    """Write an evaluation as one HTML file.

    Args:
        result: of `evaluate`, or of `evaluate_across`, of which only the matrix is shown.
        path: the file to write; replaced only when the new one is whole.
        title: of the page.
        pictures, entries: by a video's key: faces of the files that the model got most wrong, and what they are.
    """
    env = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {"interval": interval_text}
    style = (TEMPLATES / "evaluation.css").read_text("utf-8")
    measured = "types" in result
    text = env.get_template("evaluation.html").render(
        title=title,
        result=result,
        measured=measured,
        abstained=result.get("abstained", []),
        failed=result.get("failed", {}),
        warnings=result.get("warnings", []),
        style=Markup(style),  # ours: it holds nothing of the user's
        csp=f"default-src 'none'; img-src data:; style-src {_sha(style)}",
        disclaimer=DISCLAIMER,
        target_fpr=TARGET_FPR,
        curves=[
            plot
            for draw in (plots.roc_plot, plots.histogram_plot, plots.reliability_plot, plots.risk_plot)
            if measured and (plot := draw(result))
        ],
        robustness=plots.robustness_plots(result) if measured else [],
        worst=_worst(result, pictures or {}, entries or {}) if measured else [],
    )
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(text, "utf-8")
    os.replace(unfinished, path)


def _worst(
    result: Mapping[str, Any], pictures: Mapping[str, Pictures], entries: Mapping[str, Entry]
) -> list[dict[str, Any]]:
    """The reals with the highest and the fakes with the lowest scores, worst first, with their pictures."""
    rows = {(row["dataset"], row["file"]): row for row in result["rows"]}
    patches = [shown.patches.ravel() for shown in pictures.values()]
    finite = np.concatenate([*patches, np.zeros(1)])
    top = max(float(np.percentile(finite[np.isfinite(finite)], 99.5)), 1e-9)
    groups = []
    for label, name in ((0, "Reals with the highest scores"), (1, "Fakes with the lowest scores")):
        files = []
        for key, shown in pictures.items():
            entry = entries[key]
            if entry.label == label:
                faces = [
                    (crop_image(crop, CROP_PX), heat_image(patch, top), float(margin))
                    for crop, patch, margin in zip(shown.crops, shown.patches, shown.margins, strict=True)
                ]
                files.append({"row": rows[entry.dataset, entry.name], "faces": faces})
        files.sort(key=lambda file: file["row"]["margin"], reverse=label == 0)
        groups.append({"name": name, "files": files, "top": top})
    return groups if pictures else []


def _sha(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
