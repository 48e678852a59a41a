"""The validation table: our model and MesoNet's four on real deepfakes that neither was trained on.

    python bench/validation.py [--model PATH] [--cache DIR] [--ours-only | --peers-only] [--json F]

Same files, same sampled frames, same detected faces and tracks for all. MesoNet gets three crops (the
contract's, and its authors' aligned crop in two zooms), and each of its models is reported at the crop with
its best mean on these very files, which flatters it. Crops and MesoNet's scores are cached by file, so that
another checkpoint costs its own inference only.
"""

import argparse
import ast
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import mesonet
import numpy as np
import torch

from fastdetect.engines import load_engine
from fastdetect.evaluation import metrics
from fastdetect.evaluation.index import Entry, read_index
from fastdetect.evaluation.protocol import contract_margin, report, to_markdown
from fastdetect.evaluation.scoring import (
    AGGREGATION,
    Cropper,
    TrackFaces,
    VideoFaces,
    VideoScore,
    aggregate,
    contract_crop,
    extract_faces,
    video_scores,
)
from fastdetect.faces.centerface import CenterFaceDetector
from fastdetect.video.sampling import SamplingPolicy

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- validation: begin -->", "<!-- validation: end -->"
# Crops cached under another version of the code that makes them must not be used; its formatting does not matter.
SOURCES = [
    *sorted((ROOT / "fastdetect" / "video").glob("*.py")),
    *sorted((ROOT / "fastdetect" / "faces").glob("*.py")),
    ROOT / "fastdetect" / "evaluation" / "scoring.py",
]
PEER_CROPS: dict[str, Cropper] = {
    "box 1.3": contract_crop(mesonet.SIZE),
    "aligned 1.0": lambda frame, face: mesonet.aligned_crop(frame, face.landmarks, 1.0),
    "aligned 1.3": lambda frame, face: mesonet.aligned_crop(frame, face.landmarks, 1.3),
}


def code_text(path: Path) -> str:
    """A module's syntax tree as text: the same for any formatting and comments."""
    return ast.dump(ast.parse(path.read_text("utf-8")))


class CropCache:
    """Face crops by (file, crop) in a folder; what is missing is extracted, a file in one pass."""

    def __init__(self, folder: Path, policy: SamplingPolicy, threads: int) -> None:
        self.folder, self.policy, self.threads = folder, policy, threads
        self.detector: CenterFaceDetector | None = None
        self.code = hashlib.sha256("".join(map(code_text, SOURCES)).encode()).hexdigest()
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, entry: Entry, crops: Mapping[str, Cropper]) -> VideoFaces:
        missing = {name: crop for name, crop in crops.items() if not self.path(entry, name).is_file()}
        if missing:
            self.detector = self.detector or CenterFaceDetector(threads=self.threads)
            faces = extract_faces(entry.path, self.detector, self.policy, crops=missing, threads=self.threads)
            for name in missing:
                self._write(self.path(entry, name), faces, name)
        return self._read(entry, list(crops))

    def path(self, entry: Entry, name: str) -> Path:
        maker = self.code if name.startswith("model") else self.code + code_text(ROOT / "bench" / "mesonet.py")
        what = json.dumps([entry.sha256 or entry.name, name, str(self.policy), maker])
        return self.folder / f"{hashlib.sha256(what.encode()).hexdigest()[:24]}.npz"

    @staticmethod
    def _write(path: Path, faces: VideoFaces, name: str) -> None:
        arrays: dict[str, Any] = {
            "sampled": faces.frames_sampled,
            "image": faces.is_image,
            "tracks": len(faces.tracks),
        }
        for i, person in enumerate(faces.tracks):
            arrays |= {
                f"frames{i}": person.frames,
                f"usable{i}": person.usable,
                f"crops{i}": person.crops[name],
            }
        partial = path.with_suffix(f".{os.getpid()}.tmp")
        with partial.open("wb") as stream:
            np.savez(stream, **arrays)
        partial.replace(path)

    def _read(self, entry: Entry, names: Sequence[str]) -> VideoFaces:
        archives = {name: np.load(self.path(entry, name)) for name in names}
        first = archives[names[0]]
        tracks = [
            TrackFaces(
                first[f"frames{i}"].tolist(),
                first[f"usable{i}"],
                {name: archive[f"crops{i}"] for name, archive in archives.items()},
            )
            for i in range(int(first["tracks"]))
        ]
        return VideoFaces(int(first["sampled"]), bool(first["image"]), tracks)


def our_reports(
    args: argparse.Namespace, cache: CropCache, entries: Sequence[Entry]
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Reports of the fused score and of each branch alone, and what the model is."""
    engine = load_engine(args.model, precision=args.precision, threads=args.threads)
    margin, info = contract_margin(engine), engine.info
    name = f"model {engine.image_size} {margin}"
    crop = {name: contract_crop(engine.image_size, margin)}
    heads = {"fastdetect": "logits", "image branch": "image_logits", "residual branch": "residual_logits"}
    videos = [cache.get(entry, crop) for entry in entries]
    crops = [person.crops[name] for faces in videos for person in faces.tracks]
    out = engine.run(np.concatenate(crops))
    scores = {head: video_scores(videos, getattr(out, attribute)) for head, attribute in heads.items()}
    engine.close()
    about = {
        "model": info.model_id,
        "weights_sha256": info.weights_sha256,
        "precision": engine.precision,
    }
    return {
        head: report(entries, s, info.calibration if head == "fastdetect" else None, resamples=args.resamples)
        for head, s in scores.items()
    }, about


def peer_scores(weights: Path, entries: Sequence[Entry], cache: CropCache) -> dict[str, dict[str, list[VideoScore]]]:
    """Scores by model and crop; a track's score is the mean over its frames, as MesoNet's authors do."""
    scores: dict[str, dict[str, list[VideoScore]]] = {}
    videos = [cache.get(entry, PEER_CROPS) for entry in entries]
    for name in mesonet.MODELS:
        path = weights / f"{name}.npz"
        model, digest = mesonet.load(path), hashlib.sha256(path.read_bytes()).hexdigest()
        scores[name] = {crop: [] for crop in PEER_CROPS}
        for entry, faces in zip(entries, videos, strict=True):
            for crop in PEER_CROPS:
                stored = cache.path(entry, f"{crop} {digest}").with_suffix(".json")
                if not stored.is_file():
                    found = [mesonet.fake_probability(model, person.crops[crop]) for person in faces.tracks]
                    partial = stored.with_suffix(f".{os.getpid()}.tmp")
                    partial.write_text(json.dumps([values.tolist() for values in found]))
                    partial.replace(stored)
                margins = [np.asarray(values) for values in json.loads(stored.read_text())]
                scores[name][crop].append(aggregate(faces, margins, track_score=np.mean))
    return scores


def type_aucs(entries: Sequence[Entry], scores: Sequence[VideoScore]) -> dict[str, float]:
    """AUC per type of the videos that have a score, and their mean."""
    rows = [(e.type, s.margin) for e, s in zip(entries, scores, strict=True) if s.margin is not None]
    by_type = metrics.auc_by_type([t for t, _ in rows], [m for _, m in rows])
    return by_type | {"mean": float(np.mean(list(by_type.values())))}


def comparison(columns: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown table of several reports: one column a model, the types in rows."""
    first = next(iter(columns.values()))
    types, methods = sorted(first["types"]), sorted(first["methods"])

    def cell(block: Mapping[str, float]) -> str:
        return f"{block['value']:.3f} [{block['low']:.2f}, {block['high']:.2f}]"

    def auc_of(kind: str, name: str, result: Mapping[str, Any]) -> str:
        return cell(result[kind][name]["auc"])

    def line(name: str, count: str, pick: Callable[[Mapping[str, Any]], str]) -> str:
        return "| " + " | ".join([name, count, *(pick(result) for result in columns.values())]) + " |"

    lines = [
        "| manipulation | fakes (identities) | " + " | ".join(columns) + " |",
        "|---" * (2 + len(columns)) + "|",
    ]
    for kind, names in (("types", types), ("methods", methods)):
        for name in names:
            block = first[kind][name]
            label = f"**{name}**" if kind == "types" else name
            count = f"{block['fakes']} ({block['identities']})"
            lines.append(line(label, count, partial(auc_of, kind, name)))
        if kind == "types":
            lines.append(line("**mean over types**", str(first["videos"]["fake"]), lambda r: cell(r["mean_auc"])))
            lines.append(line("all fakes together", str(first["videos"]["fake"]), lambda r: cell(r["overall"]["auc"])))
    pairs = f"{first['paired']['n']} pairs"
    lines.append(line("fake above its own real", pairs, lambda r: f"{r['paired']['wins']}/{r['paired']['n']}"))
    lines.append(line("EER", "", lambda r: f"{r['overall']['eer']:.3f}"))
    lines.append(line("AP", "", lambda r: f"{r['overall']['ap']:.3f}"))
    lines.append(line("TPR at 5 % FPR", "", lambda r: f"{r['overall']['tpr@0.05']:.3f}"))
    lines.append(line("frame AUC", "", lambda r: f"{r['frame_auc']:.3f}"))
    return "\n".join(lines) + "\n"


def write_block(path: Path, text: str) -> None:
    """Put the tables between the validation marks of a page, or make the page of them alone."""
    page = path.read_text("utf-8") if path.is_file() else f"{BEGIN}\n{END}\n"
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{path}: no {BEGIN} ... {END}; add the marks where the tables belong")
    path.write_text(f"{head}{BEGIN}\n{text}{END}{tail}", "utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description="Validation table: ours and MesoNet's four models")
    parser.add_argument("--data", type=Path, default=os.environ.get("FASTDETECT_DATA", ROOT.parent / "shared" / "data"))
    parser.add_argument("--model", default="fastdetect-small", help="model folder or shipped name")
    parser.add_argument("--precision", default="fp32", help="fp32: the same figures on every machine")
    parser.add_argument("--sample", default="uniform:16")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "fastdetect-validation")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--json", type=Path, help="write every figure here")
    parser.add_argument("--markdown", type=Path, help="write the tables here, between its validation marks")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--ours-only", action="store_true")
    which.add_argument("--peers-only", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    begin = time.perf_counter()
    data = Path(args.data)
    entries = read_index([data / "videos_real" / "index.csv", data / "videos_fake" / "index.csv"], "validation")
    cache = CropCache(args.cache, SamplingPolicy.parse(args.sample), args.threads)
    columns: dict[str, dict[str, Any]] = {}
    output: dict[str, Any] = {"sampling": args.sample, "aggregation": AGGREGATION}
    if not args.peers_only:
        ours, about = our_reports(args, cache, entries)
        columns |= ours
        output |= about
    if not args.ours_only:
        scores = peer_scores(data / "weights" / "mesonet", entries, cache)
        table = {m: {c: type_aucs(entries, s) for c, s in by_crop.items()} for m, by_crop in scores.items()}
        output["mesonet_crops"] = table
        for name, by_crop in table.items():
            best = max(by_crop, key=lambda crop: by_crop[crop]["mean"])
            columns[f"{name} ({best})"] = report(entries, scores[name][best], resamples=args.resamples)
            print(
                name,
                {crop: {k: round(v, 3) for k, v in aucs.items()} for crop, aucs in by_crop.items()},
                file=sys.stderr,
            )
    text = comparison(columns)
    if not args.peers_only:
        text += "\n" + to_markdown(columns["fastdetect"], f"fastdetect: {output['model']}").replace("# ", "### ", 1)
    print(text)
    print(f"{time.perf_counter() - begin:.1f} s; crops cached in {args.cache}", file=sys.stderr)
    if args.markdown:
        write_block(args.markdown, text)
    if args.json:
        args.json.write_text(json.dumps(output | {"columns": columns}, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
