"""How a model does on fakes made from the very reals it is measured on: one kind at a time, steady over the clip."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fastdetect.data.clip_forgery import ClipForgeryConfig, forge_clips
from fastdetect.data.forgery import KINDS, ForgeryConfig
from fastdetect.data.pairs import batch_seed
from fastdetect.engines import Engine
from fastdetect.errors import DataError, UsageError
from fastdetect.evaluation.metrics import paired_counts
from fastdetect.evaluation.resampling import auc_interval
from fastdetect.evaluation.runner import FaceClip
from fastdetect.evaluation.scoring import track_margin

MADE = tuple(kind for kind in KINDS if kind != "regenerated")  # that one needs a model that redraws


def parse_kinds(texts: Sequence[str]) -> list[str]:
    """Read `all` or names of `MADE`; UsageError for anything else."""
    kinds = [kind for text in texts for kind in (MADE if text == "all" else text.split(","))]
    unknown = sorted(set(kinds) - set(MADE))
    if unknown:
        raise UsageError(f"no synthetic fakes of the kind {unknown[0]!r}; there are all, {', '.join(MADE)}")
    return list(dict.fromkeys(kinds))


def score_fakes(clips: Sequence[FaceClip], engine: Engine, kind: str, *, seed: int = 0) -> list[float]:
    """The raw score of a fake made of each clip.

    Args:
        clips: real persons' faces; the donor of a swap is that other identity's clip whose faces stand most alike.
        engine: the model.
        kind: one of `MADE`.
        seed: of everything drawn, together with a clip's place among them.
    """
    weights = tuple(float(name == kind) for name in KINDS)
    config = ClipForgeryConfig(ForgeryConfig(kinds=weights))
    means = np.stack([clip.landmarks.mean(0) for clip in clips])
    scores = []
    for number, clip in enumerate(clips):
        others = np.array([other.entry.identity != clip.entry.identity for other in clips])
        distance = np.where(others, np.square(means - means[number]).sum((1, 2)), np.inf)
        donor = clips[int(distance.argmin())] if others.any() else clip
        faces, points = _tensors(clip)
        donors, donor_points = _tensors(donor)
        made = forge_clips(faces, points, donors, donor_points, config=config, seed=batch_seed(seed, number)).images[0]
        crops = (made * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
        logits = engine.run(crops).logits
        scores.append(track_margin(logits[:, 1] - logits[:, 0]))
    return scores


def synthetic_figures(
    clips: Sequence[FaceClip], engine: Engine, kinds: Sequence[str], *, resamples: int = 2000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """AUC of each kind of fake against the reals that it was made from, and how many fakes score above their own.

    Raises:
        DataError: no real has a score.
    """
    if not clips:
        raise DataError("no real has a score: nothing to make fakes of")
    reals, people = [clip.margin for clip in clips], [clip.entry.identity for clip in clips]
    labels = np.repeat([0, 1], len(clips))
    found = {}
    for kind in kinds:
        fakes = score_fakes(clips, engine, kind, seed=seed)
        auc = auc_interval(labels, [*reals, *fakes], people * 2, resamples=resamples, seed=seed)
        pairs = paired_counts(fakes, reals)
        found[kind] = {
            "fakes": len(fakes),
            "auc": auc.as_dict(),
            "paired": {"wins": pairs.wins, "ties": pairs.ties, "n": pairs.n},
        }
    return found


def _tensors(clip: FaceClip) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.from_numpy(clip.crops).permute(0, 3, 1, 2).float() / 255
    return images[None], torch.from_numpy(clip.landmarks)[None]
