"""Checkpoints of the official MAE as folders of `MaskedImageModel`; a pickle is read in another process, and safely."""

import math
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fastdetect.errors import CheckpointError
from fastdetect.models.checkpoint import load_state
from fastdetect.models.masked_image_model import MaskedImageModel, MaskedImageModelConfig, sincos_positions

# argparse.Namespace, which MAE's training stores beside its weights, holds values and runs nothing
_READ = """
import argparse, sys, torch
from safetensors.torch import save_file
torch.serialization.add_safe_globals([argparse.Namespace])
state = torch.load(sys.argv[1], map_location="cpu", weights_only=True)
state = state.get("model", state)
save_file({k: v.float().contiguous().clone() for k, v in state.items() if torch.is_tensor(v)}, sys.argv[2])
"""
_HEADS = {768: 12, 1024: 16, 1280: 16, 512: 16}  # of MAE's encoders and its decoder


def convert_mae(
    source: str | Path,
    folder: str | Path,
    *,
    heads: int | None = None,
    decoder_heads: int | None = None,
    norm_pix: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write the masked image model of an official MAE checkpoint, encoder and decoder, as a model folder.

    Args:
        source: .pth file such as mae_visualize_vit_base.pth, or its tensors as .safetensors; the encoders that are
            published for fine-tuning lack the decoder.
        folder: where to.
        heads, decoder_heads: attention heads, which the weights do not tell; default: MAE's for their widths.
        norm_pix: it was trained on standardised patches (`--norm_pix_loss`); such a model cannot inpaint.
        dtype: storage type.
    Returns:
        The folder.
    Raises:
        CheckpointError: the file cannot be read safely, or is not such a model.
    """
    state = _read(Path(source))
    wanted = ("cls_token", "pos_embed", "patch_embed.proj.weight", "decoder_pos_embed", "decoder_pred.weight")
    missing = [name for name in wanted if name not in state]
    if missing:
        raise CheckpointError(
            f"{source} has no {', '.join(missing)}; wanted an MAE with its decoder, such as mae_visualize_vit_base.pth"
        )
    width, decoder_width = state["cls_token"].shape[-1], state["decoder_pos_embed"].shape[-1]
    chans, patch = state["patch_embed.proj.weight"].shape[1:3]
    grid = math.isqrt(state["pos_embed"].shape[1] - 1)
    try:
        config = MaskedImageModelConfig(
            image_size=grid * patch,
            patch_size=patch,
            in_chans=chans,
            embed_dim=width,
            depth=_depth(state, "blocks."),
            num_heads=heads or _heads(width, "heads"),
            decoder_embed_dim=decoder_width,
            decoder_depth=_depth(state, "decoder_blocks."),
            decoder_num_heads=decoder_heads or _heads(decoder_width, "decoder_heads"),
            norm_pix_loss=norm_pix,
        )
    except ValidationError as error:
        raise CheckpointError(f"{source}: {error.errors()[0]['msg']}") from error
    for name in ("pos_embed", "decoder_pos_embed"):
        found = state.pop(name)
        fixed = sincos_positions(found.shape[-1], config.grid)
        if found.shape != fixed.shape or not torch.allclose(found, fixed, atol=1e-4):
            raise CheckpointError(f"{source}: {name} is not MAE's fixed sin-cos embedding; it was trained further")
    model = MaskedImageModel(config)
    load_state(model, state, str(source))
    return model.save_pretrained(folder, dtype=dtype)


def _heads(width: int, option: str) -> int:
    if width not in _HEADS:
        raise CheckpointError(f"no MAE has width {width}: its attention heads are not known; give {option}")
    return _HEADS[width]


def _depth(state: dict[str, Tensor], prefix: str) -> int:
    return len({key[len(prefix) :].split(".")[0] for key in state if key.startswith(prefix)})


def _read(source: Path) -> dict[str, Tensor]:
    if not source.is_file():
        raise CheckpointError(f"no file {source}")
    if source.suffix == ".safetensors":
        try:
            return load_file(source)
        except SafetensorError as error:
            raise CheckpointError(f"{source} is not a safetensors file: {error}") from error
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "weights.safetensors"
        run = subprocess.run(
            [sys.executable, "-c", _READ, str(source), str(target)], capture_output=True, text=True, timeout=600
        )
        if run.returncode:
            last = run.stderr.strip().splitlines()[-1:] or ["no message"]
            raise CheckpointError(f"{source} cannot be read with weights_only=True: {last[0]}")
        return load_file(target)
