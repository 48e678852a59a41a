"""The straight-line scorer is the model."""

from pathlib import Path

import pytest
import torch
from engine_helpers import crops

from fastdetect.engines.scorer import FaceScorer, Inpainter, VerdictScorer
from fastdetect.errors import UsageError
from fastdetect.models import DetectorConfig, MaskedImageModel, MaskedImageModelConfig, TwoBranchDetector, inpaint
from fastdetect.models.inpainting import plan

SMALL = {
    "embed_dim": 24, "depth": 1, "num_heads": 2, "decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2
}  # fmt: skip


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize(
    ("protocol", "size"),
    [("sparse-4", 32), ("complementary-4", 32), ("complementary-3", 40), ("blocks16", 112)],  # 3: sets of two sizes
)
def test_inpainter_is_inpaint(protocol: str, size: int, plain: bool) -> None:
    torch.manual_seed(0)
    model = MaskedImageModel(MaskedImageModelConfig(image_size=size, patch_size=8, **SMALL)).eval()
    images = torch.rand(3, 3, size, size)
    with torch.no_grad():
        residual, scores, filled = Inpainter(model, plan(protocol, model.config.grid), 4.0, plain=plain)(images)
    want = inpaint(model, images, protocol=protocol, gain=4.0)
    for got, right in ((residual, want.residual), (scores, want.patch_scores), (filled, want.images)):
        torch.testing.assert_close(got, right, rtol=1e-5, atol=2e-6)


def test_scorer_with_vit_branches_sees_the_models_tokens() -> None:
    torch.manual_seed(0)
    config = DetectorConfig(
        image_size=112,
        image_backbone="vit_tiny_patch16_224",
        residual_backbone="vit_tiny_patch16_224",
        mim=MaskedImageModelConfig(image_size=112, patch_size=8, **SMALL),
        protocol="blocks16",
        token_selection=True,
    )
    model = TwoBranchDetector(config).eval()
    crops = torch.randint(0, 256, (2, 112, 112, 3), dtype=torch.uint8)
    with torch.no_grad():
        want, got = model(crops.permute(0, 3, 1, 2)), FaceScorer(model)(crops)
        as_float = FaceScorer(model)(crops / 255)
    for i, field in enumerate(("logits", "image_logits", "residual_logits")):
        torch.testing.assert_close(got[i], getattr(want, field))
        torch.testing.assert_close(as_float[i], got[i])
    torch.testing.assert_close(got[3].flatten(1), want.patch_scores)


def test_the_verdict_alone_is_the_whole_scorers(folder: Path, image_folder: Path) -> None:
    model = TwoBranchDetector.from_pretrained(image_folder)
    some = torch.from_numpy(crops(5))
    with torch.no_grad():
        whole, alone = FaceScorer(model)(some), VerdictScorer(model)(some)
    assert whole[0].abs().max() > 0.1
    for got, want in zip(alone, whole, strict=False):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert not any(name.startswith("mim") for name, _ in VerdictScorer(model).named_parameters())
    with pytest.raises(UsageError, match="has a say"):
        VerdictScorer(TwoBranchDetector.from_pretrained(folder))
