"""Training steps as `fastdetect train` and `pretrain` do them, and in plain torch: same networks, other loops.

Ours, and with the losses alone exchanged, eager or compiled. "plain torch", on a CPU, has besides its depthwise layers
in bfloat16, as autocast makes them. That the C library keeps freed memory (`fastdetect.training.cpu`) serves all of
them here, since they share a process. The optimiser does its full work at a learning rate of 0, so that every step is
the same one and can be checked by its loss and the gradient of the layer that the loss reaches first.
"""

import copy
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.ops.contrastive import TAU, supcontrast
from bench.ops.masked_residual import plain_loss
from bench.registry import Inputs, Op, Outputs, Provider, Shape, compiled
from fastdetect.engines.machine import cpu_has_bf16
from fastdetect.models.detector import DetectorConfig, TwoBranchDetector
from fastdetect.models.masked_image_model import PRESETS, MaskedImageModel, MaskedImageModelConfig
from fastdetect.ops import masked_patch_loss, reference, supcon_margin_loss
from fastdetect.training.cpu import depthwise_in_float32, keep_freed_memory

TINY_MIM = MaskedImageModelConfig(
    image_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2, decoder_embed_dim=32, decoder_depth=1,
    decoder_num_heads=2,
)  # fmt: skip
TINY_DETECTOR = DetectorConfig(
    image_size=64, image_backbone="mobilenetv3_small_050", residual_backbone="mobilenetv3_small_050", mim=TINY_MIM,
    protocol="sparse-4", embed_dim=16,
)  # fmt: skip
SMALL_DETECTOR = DetectorConfig(
    image_size=160, image_backbone="tf_efficientnet_lite0", residual_backbone="tf_efficientnet_lite0",
    protocol="sparse-4",
)  # fmt: skip
DETECTORS = {"tiny": TINY_DETECTOR, "fastdetect-small": SMALL_DETECTOR}
MIMS = {"tiny": TINY_MIM} | PRESETS

Loss = Callable[[Tensor, Inputs], Tensor]


class Step(Op):
    """A training step: forward under autocast, loss, backward, AdamW.

    Attributes:
        loss: the registered op that the providers exchange.
        depthwise: whether the model has such layers, for which our loop has a way of its own on a CPU.
    """

    loss: ClassVar[str]
    depthwise: ClassVar[bool] = False
    floor = ""
    axis = "B"

    def loss_shape(self, shape: Shape) -> Shape:
        """The exchanged loss's own case at this step's sizes."""
        raise TypeError(f"{type(self).__name__} names no loss")

    def bytes(self, shape: Shape) -> float:
        return 0.0  # a whole step has no floor worth naming

    def run(self, inputs: Inputs, loss: Loss) -> Outputs:
        """One step; the outputs are the loss and a gradient that it reaches early."""
        model, optimizer, device = inputs["model"], inputs["optimizer"], inputs["images"].device
        with torch.autocast(device.type, torch.bfloat16, enabled=inputs["bf16"]):
            value = self.objective(inputs, loss)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        grad = self.probe(model).grad
        assert grad is not None
        return value.detach(), grad

    def targets(self, shape: Shape, device: torch.device) -> Mapping[str, float]:
        return {"plain torch" if self.depthwise else "eager": 1.3} if device.type == "cpu" else {}

    def objective(self, inputs: Inputs, loss: Loss) -> Tensor:
        raise TypeError(f"{type(self).__name__} has no objective")

    def probe(self, model: nn.Module) -> nn.Parameter:
        raise TypeError(f"{type(self).__name__} has no probe")


def _bf16(device: torch.device) -> bool:
    return device.type == "cuda" or cpu_has_bf16()


def _loops(model: nn.Module) -> Inputs:
    """The model and its optimiser as our loop has them on this device, and as a plain loop has them."""
    plain = copy.deepcopy(model)
    if next(model.parameters()).device.type == "cpu":
        keep_freed_memory()
        if cpu_has_bf16():
            depthwise_in_float32(model)
    return {
        "model": model,
        "optimizer": _optimizer(model),
        "plain": {"model": plain, "optimizer": _optimizer(plain)},
    }


def _optimizer(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0)


class PretrainStep(Step):
    """A step of `fastdetect pretrain`."""

    name = "pretrain_step"
    title = "Masked image model pretraining, a step"
    loss = "masked_patch_loss"
    shapes: ClassVar[Mapping[str, tuple[Shape, ...]]] = {
        "cpu": (Shape({"B": 32, "model": "mae_small_112"}, "the shipped model"),),
        "cuda": (
            Shape({"B": 1024, "model": "mae_small_112"}, "the shipped model"),
            Shape({"B": 256, "model": "mae_base_224"}, "the paper's model"),
        ),
        "tiny": (Shape({"B": 4, "model": "tiny"}, "tiny"),),
    }

    def inputs(self, shape: Shape, device: torch.device) -> Inputs:
        model = MaskedImageModel(MIMS[shape["model"]]).to(device).train()
        mask = model.random_mask(shape["B"], 0.75)
        images = torch.rand(shape["B"], 3, *model.config.size, device=device)
        return {"images": images, "mask": mask, "bf16": _bf16(device), **_loops(model)}

    def objective(self, inputs: Inputs, loss: Loss) -> Tensor:
        # The mask stays on the CPU for the model (its counts are read there) and is copied for the loss.
        return loss(inputs["model"](inputs["images"], inputs["mask"]), inputs)

    def probe(self, model: nn.Module) -> nn.Parameter:
        return model.get_parameter("decoder_pred.weight")

    def truth(self, inputs: Inputs) -> Outputs:
        def exact(pred: Tensor, inputs: Inputs) -> Tensor:
            images, mask = inputs["images"].double(), inputs["mask"].to(pred.device)
            patch = inputs["model"].config.patch_size
            return reference.masked_patch_loss(
                pred.double(), images, mask, patch_size=patch, norm_pix=False, reduction="mean"
            )

        return _copied(self.run(inputs, exact))

    def providers(self, shape: Shape, device: torch.device) -> Mapping[str, Provider]:
        def ours(pred: Tensor, inputs: Inputs) -> Tensor:
            mask, patch = inputs["mask"].to(pred.device), inputs["model"].config.patch_size
            return masked_patch_loss(pred, inputs["images"], mask, patch_size=patch)

        def plain(by: Callable[..., Tensor]) -> Loss:
            return lambda pred, x: by(
                pred, x["images"], x["mask"].to(pred.device).float(), x["model"].config.patch_size, False
            )

        return _steps(self, ours, plain(plain_loss), plain(compiled(plain_loss)), device)

    def loss_shape(self, shape: Shape) -> Shape:
        config = MIMS[shape["model"]]
        sizes = {"B": shape["B"], "size": config.size[0], "patch": config.patch_size}
        return Shape(sizes | {"pred": _pred(), "image": "fp32", "norm_pix": 0}, "the step's")


class DetectorStep(Step):
    """A step of detector training: cross-entropies of the three heads and the contrastive loss of the embeddings."""

    name = "detector_step"
    title = "Two-branch detector training, a step"
    loss = "supcon_margin_loss"
    depthwise = True
    shapes: ClassVar[Mapping[str, tuple[Shape, ...]]] = {
        "cpu": (Shape({"B": 32, "model": "fastdetect-small"}, "the shipped model"),),
        "cuda": (Shape({"B": 1024, "model": "fastdetect-small"}, "the shipped model"),),
        "tiny": (Shape({"B": 8, "model": "tiny"}, "tiny"),),
    }

    def inputs(self, shape: Shape, device: torch.device) -> Inputs:
        model = TwoBranchDetector(DETECTORS[shape["model"]]).to(device)
        size = model.config.image_size
        return {
            "images": torch.rand(shape["B"], 3, size, size, device=device),
            "labels": torch.arange(shape["B"], device=device) % 2,
            "bf16": _bf16(device),
            **_loops(model),
        }

    def objective(self, inputs: Inputs, loss: Loss) -> Tensor:
        out, labels = inputs["model"](inputs["images"]), inputs["labels"]
        heads = (out.logits, out.image_logits, out.residual_logits)
        value = torch.stack([F.cross_entropy(logits, labels) for logits in heads]).sum()
        return value + loss(out.embedding, inputs)

    def probe(self, model: nn.Module) -> nn.Parameter:
        return model.get_parameter("projection.2.weight")

    def truth(self, inputs: Inputs) -> Outputs:
        return _copied(self.run(inputs, lambda z, x: supcontrast(z.double(), x["labels"]).float()))

    def providers(self, shape: Shape, device: torch.device) -> Mapping[str, Provider]:
        def ours(z: Tensor, inputs: Inputs) -> Tensor:
            labels = inputs["labels"]
            return supcon_margin_loss(z, labels, temperature=TAU, margin=0.0, pairing="label", reduction="mean_all")

        def plain(by: Callable[..., Tensor]) -> Loss:
            def outside_autocast(z: Tensor, inputs: Inputs) -> Tensor:
                with torch.autocast(z.device.type, enabled=False):
                    return by(z, inputs["labels"])

            return outside_autocast

        return _steps(self, ours, plain(supcontrast), plain(compiled(supcontrast)), device)

    def loss_shape(self, shape: Shape) -> Shape:
        width = DETECTORS[shape["model"]].embed_dim
        return Shape({"N": shape["B"], "D": width, "dtype": "fp32"}, "the step's")


def _steps(step: Step, ours: Loss, eager: Loss, by_compiler: Loss, device: torch.device) -> dict[str, Provider]:
    tolerance = 3e-2 if _bf16(device) else 1e-3  # the model's own arithmetic, once more, in its own precision

    def provider(loss: Loss, *, plain: bool = False) -> Provider:
        if not plain:
            return Provider(lambda x: step.run(x, loss), tolerance, graph=False)
        # checked against its own model's arithmetic
        return Provider(
            lambda x: step.run({**x, **x["plain"]}, loss), tolerance, lambda x: step.truth({**x, **x["plain"]}), False
        )

    made = {"ours": provider(ours), "eager": provider(eager), "torch.compile": provider(by_compiler)}
    return made | ({"plain torch": provider(eager, plain=True)} if step.depthwise and device.type == "cpu" else {})


def _copied(outputs: Outputs) -> Outputs:
    return tuple(out.clone() for out in outputs)


def _pred() -> str:
    return "bf16" if torch.cuda.is_available() or cpu_has_bf16() else "fp32"


STEPS: tuple[Step, ...] = (PretrainStep(), DetectorStep())
