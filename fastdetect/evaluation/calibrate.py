"""`fastdetect calibrate`: thresholds and probabilities of a model, from held-out persons of a face pack."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from fastdetect.data.augment import degrade
from fastdetect.data.clip_forgery import ClipForgeryConfig, forge_clips
from fastdetect.data.face_pack import PACK_MARGIN, FacePack
from fastdetect.data.forgery import Dice, ForgeryConfig, choose_donors, crop_pack
from fastdetect.data.pairs import batch_seed
from fastdetect.engines.torch_engine import TorchEngine
from fastdetect.errors import DataError, UsageError
from fastdetect.evaluation.calibration import fit_calibration, hash_data
from fastdetect.evaluation.fpr_check import fresh_fpr, held_out_fpr
from fastdetect.evaluation.scoring import AGGREGATION, track_margin
from fastdetect.faces.crop import MARGIN
from fastdetect.models.detector import TwoBranchDetector

FAKE_KINDS = (0.4, 0.4, 0.0, 0.2)  # no model redraws here
TARGETS = (0.01, 0.05)
MIN_FACES = 3


def clip_scores(
    pack: FacePack, splits: tuple[str, ...], engine: TorchEngine, *, min_faces: int, seed: int, degraded: bool = True
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Score every held-out clip as it is, and a fake of it: one forgery over all its faces.

    Args:
        splits: the pack's splits that training never saw.
        min_faces: clips with fewer faces are left out, as a verdict leaves them out.
        degraded: change light, resolution, sharpness, noise and compression of each clip and its fake as training does,
            one change a clip, in place of the pack's own cleaner pictures.
    Returns:
        Raw scores of the reals [N] and of their fakes [N], and each clip's identity.
    """
    rows = np.flatnonzero(np.isin(pack.split, splits))
    groups = [rows[pack.clip[rows] == clip] for clip in np.unique(pack.clip[rows])]
    groups = [group for group in groups if len(group) >= min_faces]
    if not groups:
        raise DataError(f"no clip of the splits {', '.join(splits)} has {min_faces} faces; calibration needs clips")
    landmarks, identity = torch.from_numpy(pack.landmarks), torch.from_numpy(pack.identity)
    held = torch.from_numpy(rows)
    donors = choose_donors(landmarks[held], identity[held], torch.Generator().manual_seed(seed))
    donor_of = dict(zip(rows.tolist(), rows[donors.numpy()].tolist(), strict=True))
    config = ClipForgeryConfig(ForgeryConfig(kinds=FAKE_KINDS))
    pictures: list[list[np.ndarray]] = [[], []]
    for number, group in enumerate(groups):
        chosen = batch_seed(seed, number)
        dice = Dice(len(group), torch.Generator().manual_seed(chosen), torch.device("cpu"))
        donor = donor_of[int(group[len(group) // 2])]
        donors = rows[pack.clip[rows] == pack.clip[donor]]
        faces, points = crop_pack(
            _pictures(pack, group), landmarks[group], engine.image_size, MARGIN / PACK_MARGIN, dice, jitter=False
        )
        forged = forge_clips(
            faces[None], points[None], _pictures(pack, donors)[None], landmarks[donors][None],
            config=config, seed=chosen,
        )  # fmt: skip
        both = torch.stack([faces, forged.images[0]])
        if degraded:  # all pictures of a clip alike
            clip = Dice(1, torch.Generator().manual_seed(chosen + 1), torch.device("cpu"))
            both = degrade(both.flatten(0, 1)[:, None], clip).reshape(both.shape)
        for images, crops in zip(both, pictures, strict=True):
            crops.append((images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy())
    ends = np.cumsum([len(group) for group in groups])[:-1]
    logits = [engine.run(np.concatenate(crops)).logits for crops in pictures]  # engines pad short batches
    reals, fakes = ([track_margin(clip[:, 1] - clip[:, 0]) for clip in np.split(table, ends)] for table in logits)
    identities = [pack.identities[int(pack.identity[group[0]])] for group in groups]
    return np.asarray(reals), np.asarray(fakes), identities


def _pictures(pack: FacePack, rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack([pack.images[row] for row in rows])).permute(0, 3, 1, 2).float() / 255


def main(
    pack: Path,
    model: Path,
    *,
    splits: str = "val,test",
    check: str = "",
    sampling: str = "uniform:16",
    seed: int = 0,
    degraded: bool = True,
) -> int:
    """Run `fastdetect calibrate`: writes the block into the model's config.json; returns the exit code.

    Args:
        pack: face pack with held-out persons.
        model: model folder.
        splits: the pack's splits to fit on.
        check: the pack's splits whose reals the thresholds are checked on; none: on folds of the fitted ones.
        sampling: policy that the thresholds are for.
        seed: of the fakes, the folds and the draw of one clip a person.
        degraded: see `clip_scores`; thresholds that hold for compressed and edited videos are higher.
    """
    faces = FacePack.load(pack)
    held, fresh = (tuple(name for name in names.split(",") if name) for names in (splits, check))
    if set(held) & set(fresh):
        raise UsageError(
            f"--check {check} and --splits {splits} share a split; thresholds are checked on other persons"
        )
    engine = TorchEngine(TwoBranchDetector.from_pretrained(model))
    reals, fakes, identities = clip_scores(faces, held, engine, min_faces=MIN_FACES, seed=seed, degraded=degraded)
    block: dict[str, Any] = fit_calibration(
        reals,
        identities,
        fakes,
        identities,
        sampling=sampling,
        aggregation=AGGREGATION,
        target_fpr=TARGETS,
        data_sha256=hash_data([(faces.clips[int(c)], faces.identities[int(i)], 0)
                               for c, i, s in zip(faces.clip, faces.identity, faces.split, strict=True) if s in held]),
        notes=[
            f"reals: clips of held-out persons (splits {splits}) in the face pack, at least {MIN_FACES} faces each"
            + (", degraded as in training" if degraded else ""),
            "fakes: made from those reals by fastdetect.data.clip_forgery; they set the slope, so a probability speaks "
            "of such fakes at even odds",
        ],
    )  # fmt: skip
    block["checked"] = {"reals": check or f"5 folds of {splits}"}
    if fresh:
        others, _, who = clip_scores(faces, fresh, engine, min_faces=MIN_FACES, seed=seed, degraded=degraded)
        shared = sorted(set(who) & set(identities))
        if shared:
            raise DataError(f"{len(shared)} persons, such as {shared[0]}, are in --splits and in --check")
        block["checked"]["rates"] = fresh_fpr(others, who, block["raw_thresholds"], seed=seed)
    else:
        block["checked"]["rates"] = held_out_fpr(reals, identities, TARGETS, seed=seed)
    config = model / "config.json"
    stored = json.loads(config.read_text())
    stored["calibration"] = block
    partial = config.with_name("config.json.partial")
    partial.write_text(json.dumps(stored, indent=2) + "\n")
    partial.replace(config)  # at once: without it the model is lost
    console = Console()
    console.print_json(json.dumps({k: v for k, v in block.items() if k != "method_notes"}))
    for target, rate in block["checked"]["rates"].items():
        fpr, low, high = (100 * value for value in (rate["fpr"], *rate["interval"]))
        told = f"{fpr:.1f} % [{low:.1f}, {high:.1f}] of {rate['identities']} other persons"
        console.print(f"asked for {100 * float(target):g} % FPR: {told}: {rate['fpr_is']}")
    return 0
