"""Options of runs that take a second: 32 px, a masked image model of one block."""

import json
from pathlib import Path

MIM = {
    "image_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "decoder_embed_dim": 16,
    "decoder_depth": 1, "decoder_num_heads": 2,
}  # fmt: skip
NO_BATCH_NORM = "convnext_atto"  # its loss does not depend on how a batch is cut
DETECTOR = {
    "image_size": 32, "image_backbone": "mobilenetv3_small_050", "residual_backbone": "mobilenetv3_small_050",
    "mim": MIM, "protocol": "sparse-4", "embed_dim": 8,
}  # fmt: skip


def pretrain_options(pack: Path, output: Path, *more: str) -> list[str]:
    base = [f"packs=[{pack}]", f"output={output}", f"model={json.dumps(MIM)}", "batch=8", "workers=0"]
    return [*base, "tensorboard=false", "pictures=false", *more]


def train_options(output: Path, *more: str, **detector: object) -> list[str]:
    base = [f"output={output}", f"detector={json.dumps(DETECTOR | detector)}", "pairs=4", "workers=0", "val_faces=8"]
    return [*base, "image_weights=null", "residual_weights=null", "redraw=0", "tensorboard=false", *more]


def rows(output: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
