"""masked_patch_loss and patch_residual against eager torch and torch.compile."""

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from bench.registry import Inputs, Op, Outputs, Provider, Shape, compiled, forward_backward, register
from fastdetect.ops import backend, masked_patch_loss, patch_residual, reference

NOT_BUILT = "the fused kernel is not there: pip install --no-build-isolation -e ."
MASK = 0.75


def plain_loss(pred: Tensor, images: Tensor, mask: Tensor, patch: int, norm_pix: bool) -> Tensor:
    """MAE's forward_loss as published (patchify, optional standardisation, masked mean)."""
    target = reference.patchify(images / 255 if images.dtype == torch.uint8 else images, patch)
    if norm_pix:
        variance = target.var(dim=-1, keepdim=True)
        target = (target - target.mean(dim=-1, keepdim=True)) / (variance + 1e-6) ** 0.5
    return (((pred - target) ** 2).mean(dim=-1) * mask).sum() / mask.sum()


def plain_residual(pred: Tensor, images: Tensor, assignment: Tensor, patch: int) -> Outputs:
    """Average over the passes, difference, clamp and score, as one writes it in torch."""
    weight = assignment[:, None, :, None].to(pred.dtype)
    mean = (pred * weight).sum(0) / weight.sum(0).clamp(min=1)
    difference = (mean - reference.patchify(images, patch)) * (weight.sum(0) > 0)
    residual = reference.unpatchify(difference, (images.shape[2], images.shape[3]), patch)
    return (4 * residual).clamp(-1, 1), difference.square().mean(-1)


def _images(shape: Shape, device: torch.device) -> Tensor:
    dtype = shape.dtype("image")
    images = torch.rand(shape["B"], 3, shape["size"], shape["size"], device=device)
    return (images * 255).to(torch.uint8) if dtype == torch.uint8 else images.to(dtype)


def _patches(shape: Shape) -> tuple[int, int]:
    """Patches per image and values per patch."""
    return (shape["size"] // shape["patch"]) ** 2, shape["patch"] ** 2 * 3


def _sizes(batch: int, regime: str, size: int = 224, patch: int = 16, **more: int | str) -> Shape:
    return Shape({"B": batch, "size": size, "patch": patch, **more}, regime)


def _loss_shape(batch: int, regime: str, pred: str = "fp32", image: str = "fp32", norm_pix: int = 0) -> Shape:
    return _sizes(batch, regime, pred=pred, image=image, norm_pix=norm_pix)


@register
class MaskedPatchLoss(Op):
    name = "masked_patch_loss"
    title = "Masked patch loss, forward and backward (3x224x224, patch 16, 75 % removed)"
    floor = "removed patches: image and prediction read once; gradient of every patch written once; mask and loss, 4 B"
    axis = "B"
    shapes: ClassVar[Mapping[str, tuple[Shape, ...]]] = {
        "cpu": (
            _loss_shape(64, "out of every cache"),
            _loss_shape(16, "about the last-level cache"),
            _loss_shape(4, "inside the last-level cache"),
            _loss_shape(64, "standardised targets", norm_pix=1),
            _loss_shape(64, "half the prediction's bytes", pred="bf16"),
            _loss_shape(64, "a quarter of the image's bytes", image="u8"),
        ),
        "cuda": (
            _loss_shape(1024, "memory-bound, several times the L2", pred="bf16"),
            _loss_shape(64, "launch-bound, about the L2", pred="bf16"),
            _loss_shape(256, "memory-bound", pred="bf16"),
            _loss_shape(4096, "the largest batch", pred="bf16"),
            _loss_shape(1024, "standardised targets", pred="bf16", norm_pix=1),
            _loss_shape(1024, "a quarter of the image's bytes", pred="bf16", image="u8"),
            _loss_shape(1024, "half the image's bytes", pred="bf16", image="bf16"),
            _loss_shape(1024, "full precision"),
        ),
        "tiny": (
            Shape({"B": 2, "size": 32, "patch": 8, "pred": "fp32", "image": "fp32", "norm_pix": 1}, "tiny"),
            Shape({"B": 3, "size": 32, "patch": 8, "pred": "fp32", "image": "u8", "norm_pix": 0}, "tiny"),
        ),
    }

    def inputs(self, shape: Shape, device: torch.device) -> Inputs:
        patches, length = _patches(shape)
        pred = torch.randn(shape["B"], patches, length, device=device).to(shape.dtype("pred"))
        return {
            "pred": pred.requires_grad_(),
            "images": _images(shape, device),
            "mask": (torch.rand(shape["B"], patches, device=device) < MASK).float(),
            "patch": shape["patch"],
            "norm_pix": bool(shape["norm_pix"]),
        }

    def truth(self, inputs: Inputs) -> Outputs:
        pred = inputs["pred"].detach().double().requires_grad_()
        images = reference.to_real(inputs["images"], torch.float64)
        patch, norm_pix = inputs["patch"], inputs["norm_pix"]
        loss = reference.masked_patch_loss(
            pred, images, inputs["mask"], patch_size=patch, norm_pix=norm_pix, reduction="mean"
        )
        return forward_backward(loss, pred)

    def providers(self, shape: Shape, device: torch.device) -> Mapping[str, Provider]:
        def by(loss: Callable[..., Tensor]) -> Callable[[Inputs], Outputs]:
            return lambda x: forward_backward(
                loss(x["pred"], x["images"], x["mask"], x["patch"], x["norm_pix"]), x["pred"]
            )

        def ours(pred: Tensor, images: Tensor, mask: Tensor, patch: int, norm_pix: bool) -> Tensor:
            return masked_patch_loss(pred, images, mask, patch_size=patch, norm_pix=norm_pix)

        tolerance = 8e-3 if shape["pred"] == "bf16" else 1e-5
        return {
            "ours": Provider(by(ours), tolerance, skip=_skip(shape, device)),
            "eager": Provider(by(plain_loss), tolerance),
            "torch.compile": Provider(by(compiled(plain_loss)), tolerance),
        }

    def bytes(self, shape: Shape) -> float:
        patches, length = _patches(shape)
        image, pred = shape.dtype("image").itemsize, shape.dtype("pred").itemsize
        return shape["B"] * patches * (length * (MASK * (image + pred) + pred) + 8)

    def targets(self, shape: Shape, device: torch.device) -> Mapping[str, float]:
        if device.type == "cuda":
            return {"eager": 10.0, "torch.compile": 2.5} if shape["B"] >= 256 else {}
        return {"eager": 8.0, "torch.compile": 3.0} if shape["B"] == 64 else {}


# The scorer's graph gathers the passes that predict each patch: sparse-4 has three, all of them assigned, in fp32.
_SCORER: dict[str, int | str] = {"pred": "fp32", "image": "fp32", "assigned": 3, "passes": 3}


@register
class PatchResidual(Op):
    name = "patch_residual"
    title = "Residual image and patch scores of four inpainting passes (3x224x224, patch 16)"
    floor = "image and assigned predictions read once, residual image and scores written once"
    axis = "B"
    shapes: ClassVar[Mapping[str, tuple[Shape, ...]]] = {
        "cpu": (
            _sizes(64, "complementary-4: one pass a patch", pred="fp32", image="fp32", assigned=1),
            _sizes(64, "sparse-4: three passes a patch", pred="fp32", image="fp32", assigned=3),
        ),
        "cuda": (
            _sizes(1024, "complementary-4, memory-bound", pred="bf16", image="fp32", assigned=1),
            _sizes(64, "complementary-4, launch-bound", pred="bf16", image="fp32", assigned=1),
            _sizes(1024, "sparse-4, memory-bound", pred="bf16", image="fp32", assigned=3),
            *(
                _sizes(batch, f"as in the shipped model's scorer: {batch} crops a pass", 112, 8, **_SCORER)
                for batch in (64, 1)
            ),
        ),
        "tiny": (
            _sizes(2, "tiny", 32, 8, pred="fp32", image="fp32", assigned=1),
            _sizes(2, "tiny, as in the scorer", 32, 8, **_SCORER),
        ),
    }

    def inputs(self, shape: Shape, device: torch.device) -> Inputs:
        (patches, length), passes = _patches(shape), int(shape.values.get("passes", 4))
        first = torch.randint(0, passes, (patches,), device=device)
        pred = torch.rand(passes, shape["B"], patches, length, device=device).to(shape.dtype("pred"))
        return {
            "pred": pred,
            "images": _images(shape, device),
            "assignment": (torch.arange(passes, device=device)[:, None] - first) % passes < shape["assigned"],
            "patch": shape["patch"],
        }

    def truth(self, inputs: Inputs) -> Outputs:
        pred, images = inputs["pred"].double(), inputs["images"].double()
        return reference.patch_residual(
            pred, images, inputs["assignment"], patch_size=inputs["patch"], gain=4.0, clamp=1.0
        )

    def providers(self, shape: Shape, device: torch.device) -> Mapping[str, Provider]:
        def by(residual: Callable[..., Outputs]) -> Callable[[Inputs], Outputs]:
            return lambda x: residual(x["pred"], x["images"], x["assignment"], x["patch"])

        def ours(pred: Tensor, images: Tensor, assignment: Tensor, patch: int) -> Outputs:
            return patch_residual(pred, images, assignment, patch_size=patch)

        plain = 3e-2 if shape["pred"] == "bf16" else 1e-5  # bfloat16 means of the passes
        return {
            "ours": Provider(by(ours), 1e-5, skip=_skip(shape, device)),
            "eager": Provider(by(plain_residual), plain),
            "torch.compile": Provider(by(compiled(plain_residual)), plain),
        }

    def bytes(self, shape: Shape) -> float:
        patches, length = _patches(shape)
        image, pred = shape.dtype("image").itemsize, shape.dtype("pred").itemsize
        return shape["B"] * patches * (length * (2 * image + shape["assigned"] * pred) + 4)


def _skip(shape: Shape, device: torch.device) -> str:
    """Why ours would not be a kernel of ours here."""
    pred, images = (torch.empty(0, dtype=shape.dtype(key), device=device) for key in ("pred", "image"))
    return "" if backend.fused(pred, images, _patches(shape)[1]) else NOT_BUILT
