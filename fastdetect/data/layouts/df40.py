"""DF40's own folders: a method, the domain that its footage is from, frames of videos or single pictures."""

import re
from pathlib import Path

from fastdetect.data.layouts.base import (
    EDIT,
    LIP_SYNC,
    REENACTMENT,
    SWAP,
    SYNTHESIS,
    TALKING_HEAD,
    UNKNOWN,
    Clip,
    Layout,
    Options,
    Reading,
    celebdf_persons,
    child,
    ffpp_persons,
    folders,
    is_image,
    is_video,
    split_of,
    walk,
)
from fastdetect.data.layouts.faceforensics import read_splits

_BY_KIND = {
    SWAP: "fsgan faceswap simswap inswap inswapper blendface uniface mobileswap e4s facedancer deepfacelab roop fsall",
    REENACTMENT: "fomm facevid2vid fs_vid2vid mraa oneshot one_shot_free pirender tpsm lia dagan danet mcnet "
    "hyperreenact frall",
    LIP_SYNC: "wav2lip",
    TALKING_HEAD: "sadtalker heygen heygen_new",
    SYNTHESIS: "vqgan stylegan2 stylegan3 styleganxl sd1.5 sd2.1 ddpm ddim rddm pixart dit sit midjourney whichisreal "
    "whichfaceisreal dalle2_face efsall",
    EDIT: "collabdiff collaborative_diffusion e4e stargan starganv2 styleclip",
}
KINDS = {method: kind for kind, methods in _BY_KIND.items() for method in methods.split()}
_DOMAINS = {"ff": "ff", "ffpp": "ff", "cdf": "cdf", "cdfv2": "cdf", "celeb-df": "cdf"}
_CLASSES = {"real": 0, "0_real": 0, "fake": 1, "1_fake": 1}


def _split(folder: str) -> str | None:
    """The split that a folder is called after (train, DF40_train); None for others, such as latest_DF40."""
    return split_of(re.sub(r"^df40[_-]?", "", folder, flags=re.IGNORECASE))


def _methods(root: Path) -> list[Path]:
    """The methods' folders, in the root or in train/, test/ below it; archives unpacked into their own name."""
    found = []
    for folder in folders(root):
        if folder.name.lower() in KINDS:
            inner = child(folder, folder.name)
            alone = inner is not None and inner.is_dir() and len(folders(folder)) == 1
            found.append(inner if alone and inner else folder)
        elif _split(folder.name):
            found += _methods(folder)
    return found


def _clips(method: Path) -> list[Clip]:
    """Videos; folders of frames (below a folder called frames, or named like a video); else single pictures."""
    found = []
    for here, _, files in walk(method):
        below = here.relative_to(method).parts
        name = "/".join(below)
        found += [Clip(f"{name}/{file.stem}", file) for file in files if is_video(file)]
        pictures = tuple(file for file in files if is_image(file))
        known = ffpp_persons(here.name) or celebdf_persons(here.name)
        if pictures and here != method and ("frames" in below[:-1] or known):
            found.append(Clip(name, here, pictures))
        else:
            found += [Clip(f"{name}/{picture.stem}".lstrip("/"), picture) for picture in pictures]
    return found


def _read(root: Path, options: Options, reading: Reading) -> None:
    ffpp_split = read_splits(root, options, reading)
    for folder in _methods(root):
        method = folder.name
        for clip in _clips(folder):
            parts = [part.lower() for part in clip.name.split("/")[:-1]]
            label = next((_CLASSES[part] for part in parts if part in _CLASSES), 1)
            domain = next((_DOMAINS[part] for part in parts if part in _DOMAINS), "")
            who = {"ff": ffpp_persons, "cdf": celebdf_persons}.get(domain, lambda _: None)(clip.stem)
            places = [p for p in folder.parents if p.is_relative_to(root)]
            told = next((split for place in places if (split := _split(place.name))), None)
            split = told or (ffpp_split.get(clip.stem, "") if domain == "ff" else "")
            fields = {"identity": f"df40:{method}/{clip.name}"}
            if who is not None:
                of = {"ff": "FaceForensics++/c23", "cdf": "Celeb-DF-v2"}[domain]
                fields = who.fields(label) | {"pair": f"{of}/{who.footage}"}
            reading.add(
                clip.path, dataset="DF40", video=clip.name, label=label, method=method if label else "", split=split,
                manipulation=KINDS.get(method.lower(), UNKNOWN) if label else "real",
                cropped=not is_video(clip.path), **fields, **clip.fields(reading),
            )  # fmt: skip
    if not any(sample.label == 0 for sample in reading.samples):
        reading.warn(
            f"{root} has fakes only: DF40's reals are those of FaceForensics++ (c23) and Celeb-DF-v2; index those too "
            "(their pairs are named alike)"
        )


DF40 = Layout(
    "df40", "folders named after at least two of DF40's methods (simswap/, fomm/, sadtalker/, ...), or after one with "
    "ff/ or cdf/ in it", lambda root: _is_df40(root), _read,
)  # fmt: skip


def _is_df40(root: Path) -> bool:
    found = _methods(root)
    return len(found) >= 2 or any(child(method, *_DOMAINS) for method in found)
