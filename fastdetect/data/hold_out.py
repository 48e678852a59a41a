"""A validation split for data sets that come without one: persons held out of the training split."""

import hashlib
import math
from collections import Counter, defaultdict

from fastdetect.data.manifest import Manifest, Sample
from fastdetect.errors import DataError, UsageError


def hold_out(manifest: Manifest, share: float) -> tuple[Manifest, list[str]]:
    """Move a share of the persons of each data set that has no val split from its train split to one [ours].

    Of a data set without any split all videos take part, and the rest becomes its train split. A video belongs to val
    if everybody in it is held out, and to train if nobody is; a fake made of one of each belongs to no split, for it
    would show a validation face in training. Who is held out depends on the persons' names alone.

    Args:
        share: of the persons, above 0 and below 1; at least one of each data set.

    Returns:
        (manifest, a line for each data set that was split).

    Raises:
        UsageError: share is out of range.
        DataError: a data set's new split would lack reals or fakes.
    """
    if not 0 < share < 1:
        raise UsageError(f"--hold-out {share:g}; wanted a share of the persons above 0 and below 1, such as 0.1")
    by_set: dict[str, list[Sample]] = defaultdict(list)
    for sample in manifest.samples:
        by_set[sample.dataset].append(sample)
    splits: dict[str, str] = {}  # by key
    lines = []
    for dataset, samples in by_set.items():
        have = {sample.split for sample in samples}
        if "val" in have:
            continue
        taking_part = [s for s in samples if s.split == ("train" if "train" in have else "")]
        persons = sorted({p for s in taking_part for p in _persons(s)}, key=_rank)
        out = frozenset(persons[: math.ceil(share * len(persons))])
        chosen = {s.key: _split(_persons(s), out) for s in taking_part}
        counts = Counter((chosen[s.key], s.label) for s in taking_part)
        for split in ("val", "train"):
            if not counts[split, 0] or not counts[split, 1]:
                raise DataError(
                    f"{dataset}: with {len(out)} of {len(persons)} persons held out, {split} has {counts[split, 0]} "
                    f"reals and {counts[split, 1]} fakes, and needs both; give --hold-out another share than {share:g}"
                )
        splits |= chosen
        between = sum(split == "" for split in chosen.values())
        lines.append(
            f"{dataset}: {len(out)} of {len(persons)} persons held out for validation; {between} fakes between the "
            "two belong to no split"
        )
    samples = [s.model_copy(update={"split": splits.get(s.key, s.split)}) for s in manifest.samples]
    return Manifest(tuple(samples), manifest.root), lines


def _persons(sample: Sample) -> frozenset[str]:
    return sample.identities or frozenset({sample.key})


def _rank(person: str) -> str:
    return hashlib.sha256(person.encode()).hexdigest()


def _split(persons: frozenset[str], out: frozenset[str]) -> str:
    if persons <= out:
        return "val"
    return "" if persons & out else "train"
