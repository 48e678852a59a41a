"""supcon_margin_loss against the SupContrast formula, its compiled form, other libraries, row chunks and products."""

import importlib.util
from collections.abc import Callable, Mapping
from functools import partial
from typing import ClassVar

import psutil
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from torch.utils.checkpoint import checkpoint

from bench.registry import Inputs, Op, Outputs, Provider, Shape, compiled, forward_backward, register
from fastdetect.ops import FusedNegatives, fuse_hard_negatives, reference, supcon_margin_loss

TAU, CLASSES = 0.1, 5
DENSE_TENSORS = 12  # about how many N x N float32 tensors the eager formula has alive


def supcontrast(z: Tensor, labels: Tensor) -> Tensor:
    """SupContrast's forward for one view, as published (tau = base tau)."""
    mask = torch.eq(labels[:, None], labels[None]).float()
    anchor_dot_contrast = torch.div(torch.matmul(z, z.T), TAU)
    logits_max, _ = torch.max(anchor_dot_contrast, dim=1, keepdim=True)
    logits = anchor_dot_contrast - logits_max.detach()
    logits_mask = torch.scatter(torch.ones_like(mask), 1, torch.arange(len(z), device=z.device)[:, None], 0)
    mask = mask * logits_mask
    exp_logits = torch.exp(logits) * logits_mask
    log_prob = logits - torch.log(exp_logits.sum(1, keepdim=True))
    count = mask.sum(1)
    return -((mask * log_prob).sum(1) / torch.where(count < 1e-6, 1, count)).mean()


def row_chunk(z: Tensor, labels: Tensor, start: int, size: int, wide: torch.dtype) -> Tensor:
    """Sum of the losses of `size` rows from `start` on: the honest rival's inner part, and the truth's."""
    rows = torch.arange(start, min(start + size, len(z)), device=z.device)
    logits = (z[rows] @ z.T).to(wide) / TAU
    itself = rows[:, None] == torch.arange(len(z), device=z.device)
    positive = (labels[rows, None] == labels) & ~itself
    count = positive.sum(1)
    log_sum = logits.masked_fill(itself, -torch.inf).logsumexp(1)
    loss = log_sum - torch.where(positive, logits, 0).sum(1) / count.clamp(min=1)
    return torch.where(count > 0, loss, 0).sum()


def chunked(z: Tensor, labels: Tensor, part: Callable[..., Tensor], wide: torch.dtype = torch.float32) -> Tensor:
    """Row chunks with recomputation in the backward: memory linear in N by simple means."""
    size = max(64, (1 << 27 if z.is_cuda else 1 << 18) // len(z))

    def one(start: int) -> Tensor:  # saving the generator's state would stall the stream
        result = checkpoint(part, z, labels, start, size, wide, use_reentrant=False, preserve_rng_state=False)
        assert isinstance(result, Tensor)
        return result

    return torch.stack([one(start) for start in range(0, len(z), size)]).sum() / len(z)


def products(z: Tensor) -> Tensor:
    """Three bare N x N x D products, in row chunks: the arithmetic of forward and backward without any of the loss."""
    size = max(64, (1 << 27 if z.is_cuda else 1 << 18) // len(z))
    out = torch.empty_like(z)
    for start in range(0, len(z), size):
        rows = z[start : start + size]
        torch.mm(rows, z.T)  # the forward's
        torch.mm(torch.mm(rows, z.T), z, out=out[start : start + size])
    return out


def _room(device: torch.device) -> float:
    if device.type == "cuda":
        return 0.7 * torch.cuda.get_device_properties(device).total_memory
    return min(4e9, 0.5 * psutil.virtual_memory().available)


def _features(shape: Shape, device: torch.device) -> dict[str, Tensor]:
    z = normalize(torch.randn(shape["N"], shape["D"], device=device), dim=-1).to(shape.dtype("dtype"))
    return {"z": z.requires_grad_(), "labels": torch.randint(0, CLASSES, (shape["N"],), device=device)}


def _sizes(rows: int, width: int, regime: str, dtype: str = "bf16") -> Shape:
    return Shape({"N": rows, "D": width, "dtype": dtype}, regime)


@register
class SupCon(Op):
    name = "supcon_margin_loss"
    title = "Supervised contrastive loss, forward and backward (tau 0.1, margin 0, five classes)"
    floor = "4 N^2 D: each unordered pair once in the forward, once again and two products in the backward"
    axis = "N"
    shapes: ClassVar[Mapping[str, tuple[Shape, ...]]] = {
        "cpu": (
            _sizes(64, 128, "calls count", "fp32"),
            _sizes(256, 128, "a batch of two cores", "fp32"),
            _sizes(128, 128, "calls and arithmetic", "fp32"),
            _sizes(512, 128, "N x N about the L2 cache", "fp32"),
            _sizes(1024, 128, "N x N inside the last-level cache", "fp32"),
            _sizes(4096, 128, "N x N out of every cache", "fp32"),
        ),
        "cuda": (
            _sizes(32768, 128, "bound by the epilogue"),
            _sizes(65536, 128, "bound by the epilogue"),
            _sizes(65536, 512, "bound by the matrix units"),
            _sizes(65536, 768, "bound by the matrix units"),
            _sizes(4096, 128, "launches count"),
            _sizes(16384, 128, "the whole N x N still fits the eager formula"),
            _sizes(32768, 512, "bound by the matrix units"),
        ),
        "huge": (_sizes(1 << 20, 128, "a million rows: memory must be linear"),),
        "tiny": (_sizes(48, 16, "tiny", "fp32"),),
    }

    def inputs(self, shape: Shape, device: torch.device) -> Inputs:
        inputs = _features(shape, device)
        if shape["dtype"] != "fp32":
            inputs["z32"] = inputs["z"].detach().float().requires_grad_()
        return inputs

    def truth(self, inputs: Inputs) -> Outputs:
        rows = len(inputs["labels"])
        wide = torch.float64 if rows <= 1 << 17 else torch.float32  # a million rows in float64 take minutes
        z = inputs["z"].detach().to(wide).requires_grad_()
        return forward_backward(chunked(z, inputs["labels"], row_chunk, wide), z)

    def providers(self, shape: Shape, device: torch.device) -> Mapping[str, Provider]:
        low = shape["dtype"] != "fp32"
        full = "z32" if low else "z"
        dense = shape["N"] ** 2 * 4 * DENSE_TENSORS
        skip = "" if dense < _room(device) else f"about {dense / 1e9:.0f} GB for its N x N tensors"
        # Peers that round similarities to bfloat16 are allowed their own error; ours is not.
        exact, rounded = (2e-4 if low else 1e-4), 0.3

        def by(loss: Callable[[Tensor, Tensor], Tensor], key: str = "z") -> Callable[[Inputs], Outputs]:
            return lambda x: forward_backward(loss(x[key], x["labels"]), x[key])

        def ours(z: Tensor, labels: Tensor) -> Tensor:
            return supcon_margin_loss(z, labels, temperature=TAU, margin=0.0, pairing="label", reduction="mean_all")

        def autocast(z: Tensor, labels: Tensor) -> Tensor:
            with torch.autocast(z.device.type, torch.bfloat16):
                return supcontrast(z, labels)

        part = compiled(row_chunk, dynamic=True) if device.type == "cuda" else row_chunk
        found = {
            "ours": Provider(by(ours), 2e-2 if low else 2e-5),
            "eager": Provider(by(supcontrast, full), exact, skip=skip),
            "torch.compile": Provider(by(compiled(supcontrast), full), exact, skip=skip),
            "row chunks": Provider(by(partial(chunked, part=part)), rounded if low else exact),
            "bare products, 6 N^2 D": Provider(
                lambda x: (products(x["z"].detach()),), 3e-2 if low else 1e-4, truth=_products_truth
            ),
        }
        if low:
            found["eager, bf16 autocast"] = Provider(by(autocast, full), rounded, skip=skip)
        if importlib.util.find_spec("pytorch_metric_learning"):
            found["pytorch-metric-learning"] = Provider(by(_metric_learning, full), exact, graph=False, skip=skip)
        if device.type == "cuda" and low and importlib.util.find_spec("cut_cross_entropy"):
            found["cut-cross-entropy, one positive"] = Provider(by(_cut), rounded, truth=_one_positive, graph=False)
        if device.type == "cuda" and low and importlib.util.find_spec("liger_kernel"):
            found["liger-kernel, one positive"] = Provider(by(_liger), rounded, truth=_one_positive, graph=False)
        if device.type == "cuda" and importlib.util.find_spec("inf_cl"):
            found["Inf-CL, one positive"] = Provider(by(_inf, full), rounded, truth=_one_positive, graph=False)
        return found

    def bytes(self, shape: Shape) -> float:
        return 2 * shape["N"] * shape["D"] * shape.dtype("dtype").itemsize

    def flops(self, shape: Shape) -> float:
        return 4.0 * shape["N"] ** 2 * shape["D"]

    def targets(self, shape: Shape, device: torch.device) -> Mapping[str, float]:
        if device.type == "cuda":
            return {"row chunks": 1.5} | ({"eager": 20.0} if (shape["N"], shape["D"]) == (32768, 128) else {})
        return {"eager": 3.0 if shape["N"] == 4096 else 1.0}


def _products_truth(inputs: Inputs) -> Outputs:
    z = inputs["z"].detach().double()
    return (z @ (z.T @ z),)


def _metric_learning(z: Tensor, labels: Tensor) -> Tensor:
    from pytorch_metric_learning.distances import DotProductSimilarity
    from pytorch_metric_learning.losses import SupConLoss

    return SupConLoss(temperature=TAU, distance=DotProductSimilarity(normalize_embeddings=False))(z, labels)


def _partners(z: Tensor) -> Tensor:
    return torch.arange(len(z), device=z.device) ^ 1  # rows 2k and 2k+1 are each other's one positive


def _cut(z: Tensor, labels: Tensor) -> Tensor:
    """Cut cross-entropy on the single-positive case, each row among its own columns; its gradient filter is off."""
    from cut_cross_entropy import linear_cross_entropy

    return linear_cross_entropy(z / TAU, z, _partners(z), filter_eps=None)


def _liger(z: Tensor, labels: Tensor) -> Tensor:
    """Liger's fused linear cross-entropy, whose rows of logits are made in chunks; the same single-positive case."""
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    made = LigerFusedLinearCrossEntropyFunction.apply(z / TAU, z, _partners(z))
    loss = made[0] if isinstance(made, tuple) else made
    assert isinstance(loss, Tensor)
    return loss


def _inf(z: Tensor, labels: Tensor) -> Tensor:
    """Inf-CL's tiled loss on one GPU; it computes in float32 (tf32) whatever it is given."""
    from inf_cl import cal_flash_loss

    loss = cal_flash_loss(z, z, _partners(z), 1 / TAU, head_dim=min(256, z.shape[1])).mean()
    assert isinstance(loss, Tensor)
    return loss


def _one_positive(inputs: Inputs) -> Outputs:
    z = inputs["z"].detach().double().requires_grad_()
    size = max(64, (1 << 27) // len(z))

    def part(start: int) -> Tensor:
        rows = z[start : start + size]
        return cross_entropy(rows @ z.T / TAU, _partners(z)[start : start + size], reduction="sum")

    parts = [checkpoint(part, start, use_reentrant=False) for start in range(0, len(z), size)]
    return forward_backward(torch.stack(parts).sum() / len(z), z)


@register
class FusedHardNegatives(Op):
    name = "supcon_fused_negatives"
    title = "Contrastive margin loss with N/2 fused hard negatives, real anchors (tau 0.1, margin 0.1)"
    floor = "4 N^2 D over the anchors' pairs, 6 N K D over the fused columns (K = N/2); a fifth of the rows are anchors"
    axis = "N"
    baseline = "plain rows"
    shapes: ClassVar[Mapping[str, tuple[Shape, ...]]] = {
        "cpu": (_sizes(2048, 128, "columns out of the L2 cache", "fp32"),),
        "cuda": (_sizes(8192, 128, "bound by the epilogue"),),
        "tiny": (_sizes(48, 16, "tiny", "fp32"),),
    }

    def inputs(self, shape: Shape, device: torch.device) -> Inputs:
        inputs = _features(shape, device)
        z, labels, rows = inputs["z"], inputs["labels"], shape["N"]
        center = normalize(z.detach().float()[labels == 0].mean(0), dim=0).to(z.dtype)
        fused = fuse_hard_negatives(z, labels, center, n_hard=rows // 8, n_fused=rows // 2, seed=0)
        # Weight 1 and one source: rows of z as they are, through the same door.
        plain = FusedNegatives(fused.index_a, fused.index_a, torch.ones_like(fused.weight), center)
        return inputs | {"fused": fused, "plain": plain}

    def truth(self, inputs: Inputs) -> Outputs:
        return self._truth(inputs, inputs["fused"])

    def _truth(self, inputs: Inputs, negatives: FusedNegatives) -> Outputs:
        z = inputs["z"].detach().double().requires_grad_()
        loss, count = reference.supcon_margin_loss(
            z, inputs["labels"], temperature=TAU, margin=0.1, anchors="real", denominator="all", pairing="binary",
            positives=None, synthetic=None, fused=tuple(negatives), fusion_grad=False,  # type: ignore[arg-type]
        )  # fmt: skip
        return forward_backward(loss.sum() / (count > 0).sum(), z)

    def providers(self, shape: Shape, device: torch.device) -> Mapping[str, Provider]:
        def by(key: str) -> Callable[[Inputs], Outputs]:
            def run(x: Inputs) -> Outputs:
                z, labels = x["z"], x["labels"]
                loss = supcon_margin_loss(
                    z, labels, temperature=TAU, margin=0.1, anchors="real", fused_negatives=x[key]
                )
                return forward_backward(loss, z)

            return run

        tolerance = 2e-2 if shape["dtype"] != "fp32" else 2e-5
        return {
            "ours": Provider(by("fused"), tolerance),
            "plain rows": Provider(by("plain"), tolerance, truth=lambda x: self._truth(x, x["plain"])),
        }

    def bytes(self, shape: Shape) -> float:
        return 2 * shape["N"] * shape["D"] * shape.dtype("dtype").itemsize

    def flops(self, shape: Shape) -> float:
        rows, anchors = shape["N"], shape["N"] / CLASSES
        pairs = anchors * anchors / 2 + anchors * (rows - anchors)  # unordered pairs with an anchor
        return (8 * pairs + 6 * anchors * rows / 2) * shape["D"]

    def targets(self, shape: Shape, device: torch.device) -> Mapping[str, float]:
        return {"plain rows": 1 / 1.15}
