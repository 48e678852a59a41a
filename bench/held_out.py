"""AUC of models on fakes made from a pack's held-out persons, as they are and where quality tells against the answer.

    python bench/held_out.py pack runs/image160/model runs/matched/model runs/mean
    python bench/held_out.py pack fastdetect-small --split test
    python bench/held_out.py pack fastdetect-small --branches      # each branch by itself, as they are
    python bench/held_out.py pack fastdetect-small runs/224/model --size 224  # the same pictures for all

The same pairs for every model, degraded as in training; the kinds of fakes are those of a training run's validation.
Each change of quality is then made to the reals alone, to the fakes alone, and to both: a model that takes blur for
forgery loses where the reals are blurred. The last columns: what share of the changed reals and fakes reaches the
threshold that 5 % of the reals reach as they are. Scores are the fused ones. [ours]
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastdetect.data import filters
from fastdetect.data.face_pack import FacePack
from fastdetect.data.forgery import KINDS, VALIDATED
from fastdetect.data.pairs import PairSource, batch_seed
from fastdetect.engines import Engine, load_engine
from fastdetect.engines.load import deciding_part
from fastdetect.evaluation.metrics import roc_auc
from fastdetect.models.detector import area_resize

_BATCH = 24


def changes(noise: torch.Generator) -> dict[str, Callable[[Tensor], Tensor]]:
    """Changes of quality for pictures [N,3,S,S] in [0,1]."""

    def grain(x: Tensor) -> Tensor:
        return filters.add_noise(x.clone(), torch.randn(x.shape, generator=noise), of(x, 8 / 255))

    def of(x: Tensor, value: float) -> Tensor:
        return torch.full((len(x),), value)

    return {
        "as they are": lambda x: x,
        "blur, 1.3 px": lambda x: filters.blur_resample(x, of(x, 1.0), of(x, 1.3)),
        "half resolution": lambda x: filters.blur_resample(x, of(x, 2.0), of(x, 0.0)),
        "JPEG, quality 40": lambda x: filters.jpeg(x.clone(), of(x, 40.0)),
        "noise, 8 of 255": grain,
        "sharpened": lambda x: filters.sharpen(x.clone(), of(x, 0.8), of(x, 1.2)),
    }


def pairs(pack: Path, split: str, count: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return reals and fakes uint8 [N,3,S,S], and the fakes' kinds [N]."""
    source = PairSource(FacePack.load(pack), split, size)
    made = [
        source.batch(min(_BATCH, count - first), batch_seed(1234, first), VALIDATED)
        for first in range(0, count, _BATCH)
    ]
    real, fake = (torch.cat([_bytes(getattr(part, name)) for part in made]) for name in ("real", "fake"))
    return real, fake, torch.cat([part.kind for part in made])


def _bytes(images: Tensor) -> Tensor:
    return images.clamp(0, 1).mul(255).round().to(torch.uint8)


def margins(engine: Engine, images: Tensor, change: Callable[[Tensor], Tensor]) -> np.ndarray:
    """Fused logit margins [N] of changed pictures."""
    found = []
    for part in images.split(64):
        logits = engine.run(_crops(change(part.float() / 255), engine)).logits
        found.append(logits[:, 1] - logits[:, 0])
    return np.concatenate(found)


def _crops(images: Tensor, engine: Engine) -> np.ndarray:
    """Pictures [N,3,S,S] in [0,1] as the engine takes them, shrunk by area where it sees fewer pixels."""
    return _bytes(area_resize(images, engine.image_size)).permute(0, 2, 3, 1).contiguous().numpy()


def auc(real: np.ndarray, fake: np.ndarray) -> float:
    """Area under the ROC curve."""
    return roc_auc(np.repeat([0, 1], [len(real), len(fake)]), np.concatenate([real, fake]))


def report(name: str, engine: Engine, real: Tensor, fake: Tensor, kinds: Tensor) -> None:
    """Print a model's table."""
    reals, fakes = (
        {what: margins(engine, images, change) for what, change in changes(torch.Generator().manual_seed(0)).items()}
        for images in (real, fake)
    )
    plain = next(iter(reals))
    limit = float(np.quantile(reals[plain], 0.95))
    print(f"\n## {name}\n")
    for kind in np.unique(kinds):
        print(f"{KINDS[kind]}: AUC {auc(reals[plain], fakes[plain][kinds == kind]):.3f}", end="; ")
    print(f"fake above its own real: {(fakes[plain] > reals[plain]).mean():.3f}\n")
    print("| changed | AUC, reals alone | fakes alone | both | reals over the 5 % threshold | fakes over it |")
    print("|---|---:|---:|---:|---:|---:|")
    mean = []
    for what in reals:
        alone = [auc(reals[what], fakes[plain]), auc(reals[plain], fakes[what])]
        mean += alone[: 1 if what == plain else 2]
        both, rates = auc(reals[what], fakes[what]), [(x[what] > limit).mean() for x in (reals, fakes)]
        print(f"| {what} | " + " | ".join(f"{x:.3f}" for x in (*alone, both, *rates)) + " |")
    print(f"\nmean of the AUCs with one side changed or none: {np.mean(mean):.3f}, least {min(mean):.3f}", flush=True)


def report_branches(name: str, engine: Engine, real: Tensor, fake: Tensor, kinds: Tensor) -> None:
    """Print the AUC of each branch's own head."""
    print(f"\n## {name}\n")
    found = [_branches(engine, images) for images in (real, fake)]
    for branch in found[0]:
        reals, fakes = (margin[branch] for margin in found)
        each = ", ".join(f"{KINDS[k]} {auc(reals, fakes[kinds == k]):.3f}" for k in np.unique(kinds))
        above = (fakes > reals).mean()
        print(f"{branch}: AUC {auc(reals, fakes):.3f} ({each}); fake above its own real {above:.3f}", flush=True)


def _branches(engine: Engine, images: Tensor) -> dict[str, np.ndarray]:
    outs = [engine.run(_crops(part.float() / 255, engine)) for part in images.split(64)]
    logits = {
        "fused": np.concatenate([out.logits for out in outs]),
        "image branch": np.concatenate([out.image_logits for out in outs]),
        "residual branch": np.concatenate([out.residual_logits for out in outs]),
    }
    return {name: two[:, 1] - two[:, 0] for name, two in logits.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--split", default="val", help="of the pack")
    parser.add_argument("--pairs", type=int, default=600)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", type=int, help="pixels of the pictures, shrunk for a model that sees fewer [its own]")
    parser.add_argument("--branches", action="store_true", help="AUC of each branch, nothing changed")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    made: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    for name in args.models:
        part = "detector" if args.branches else deciding_part(name)
        engine = load_engine(name, device="cpu", precision="fp32", threads=args.threads, part=part)
        size = args.size or engine.image_size
        if size < engine.image_size:
            raise SystemExit(f"{name} sees {engine.image_size} pixels, got --size {size}: give at least as many")
        made[size] = made.get(size) or pairs(args.pack, args.split, args.pairs, size)
        (report_branches if args.branches else report)(name, engine, *made[size])


if __name__ == "__main__":
    main()
