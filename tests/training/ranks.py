"""What every process of test_two_processes_are_one does: torchrun ranks.py PACK FOLDER."""

import sys
from pathlib import Path

import torch.distributed as dist
from tiny import NO_BATCH_NORM, pretrain_options, train_options

from fastdetect.training import pretrain, train

LOSSES = ("supcon", "real-centric")  # each has the cross-entropies, too


def runs(pack: Path, folder: Path, *more: str) -> None:
    """A masked image model, then detectors with each loss on it."""
    mim = ["steps=4", "save_steps=2", "parts=2", "precision=fp32", "masking=facial", "blocks=0.4", "base_lr=0.05"]
    pretrain.main(None, pretrain_options(pack, folder / "mim", *mim, *more))
    net = {"image_backbone": NO_BATCH_NORM, "residual_backbone": NO_BATCH_NORM, "token_selection": True}
    for loss in LOSSES:
        options = [f"pack={pack}", f"mim={folder / 'mim' / 'model'}", f"loss={loss}", *mim[:4], "contrast_weight=1"]
        options = train_options(folder / loss, *options, *more, **net)
        train.main(None, options)


if __name__ == "__main__":
    dist.init_process_group("gloo")  # one for all runs: torchrun's store cannot meet twice
    runs(Path(sys.argv[1]), Path(sys.argv[2]))
    dist.destroy_process_group()
