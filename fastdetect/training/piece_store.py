"""Pictures of a run that stay on the disk, inpainted: runs that differ by their losses make them once."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastdetect.errors import DataError, UsageError
from fastdetect.models.detector import DetectorConfig, area_resize
from fastdetect.models.inpainting import inpaint
from fastdetect.models.masked_image_model import MaskedImageModel

Make = Callable[[int, int], tuple[Tensor, ...]]
NAMES = ("images", "labels", "maps", "residual", "patch_scores")


class PieceStore:
    """Makes parts for `Pieces` by `make` and `mim`, or takes them from a folder where an earlier run left them.

    A part is what `make` gives, images [N,3,S,S] float16, labels [N] and maps [N,1,S/16,S/16], and what `inpaint` makes
    of the images: residual [N,3,P,P] and patch_scores [N,L], both float16.

    Args:
        make: (number of a part, step) -> its tensors.
        folder: made where it is not there; two runs may use one at a time.
        mim: a copy of its own, on the CPU; detector: says how it inpaints.
        bf16: whether it computes in bfloat16.
        told: everything that decides what the parts are, JSON-ready.
    Raises:
        UsageError: the folder's parts were made from something else.
    """

    def __init__(
        self,
        make: Make,
        folder: Path,
        mim: MaskedImageModel,
        detector: DetectorConfig,
        *,
        bf16: bool,
        told: Mapping[str, Any],
    ) -> None:
        self.make, self.folder, self.mim, self.detector, self.bf16 = make, folder, mim.eval(), detector, bf16
        folder.mkdir(parents=True, exist_ok=True)
        weights = hashlib.sha256(b"".join(w.numpy().tobytes() for w in mim.state_dict().values())).hexdigest()
        mine = dict(told) | {
            "mim": weights, "size": detector.image_size, "protocol": detector.protocol, "gain": detector.gain,
            "protocol_seed": detector.protocol_seed, "bf16": bf16,
        }  # fmt: skip
        mine, file = json.loads(json.dumps(mine)), folder / "made_from.json"
        if file.is_file():
            theirs = json.loads(file.read_text())
            changed = [f"{k} was {theirs.get(k)}, is {mine[k]}" for k in mine if theirs.get(k) != mine[k]]
            if changed:
                raise UsageError(f"pieces: {folder} was made from something else: {'; '.join(changed)}; give another")
        else:
            _write(file, lambda path: path.write_text(json.dumps(mine)))

    @torch.inference_mode()
    def __call__(self, number: int, step: int) -> tuple[Tensor, ...]:
        """Part `number` of the run."""
        file = self.folder / f"{number:08d}.safetensors"
        if file.is_file():
            try:
                kept = load_file(file)
                return tuple(kept[name] for name in NAMES)
            except (SafetensorError, KeyError) as error:
                raise DataError(f"{file} cannot be read ({error}); delete it and it is made again") from error
        images, labels, maps = self.make(number, step)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            small = area_resize(images.float(), self.detector.mim.size[0])
            found = inpaint(
                self.mim, small, protocol=self.detector.protocol, gain=self.detector.gain,
                seed=self.detector.protocol_seed,
            )  # fmt: skip
        part = (images, labels, maps, found.residual.half(), found.patch_scores.half())
        tensors = {name: tensor.contiguous() for name, tensor in zip(NAMES, part, strict=True)}
        _write(file, lambda path: save_file(tensors, path))
        return part


def _write(file: Path, write: Callable[[Path], object]) -> None:
    partial = file.with_suffix(f".{os.getpid()}")
    write(partial)
    partial.replace(file)
