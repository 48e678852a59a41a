"""Faces in frames that stay where a GPU decoded them: torch tensors, of which the host gets boxes and scores."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdetect.errors import CheckpointError
from fastdetect.faces.centerface import MULTIPLE, CenterFaceDetector, Face
from fastdetect.faces.network import FEATURES, INPUT, OUTPUTS, Runtime, centerface_onnx
from fastdetect.onnx_wire import Node, read_graph

CHUNK_BYTES = 2**29  # of float frames in one network run; with what is made of them, about twice this


class CenterFaceModule(nn.Module):
    """CenterFace's network in torch, made of the ONNX file's own nodes and weights, batch norms folded.

    Args:
        dtype: of weights and activations, but for the last convolutions: a box whose log size is rounded is off.
    """

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype
        nodes, weights = read_graph(centerface_onnx())
        self.nodes = _without_batch_norm(nodes, weights)
        unknown = {node.op for node in self.nodes} - set(_OPERATIONS)
        if unknown:
            raise CheckpointError(f"CenterFace's file has operations {sorted(unknown)}, which are not known here")
        used = {name for node in self.nodes for name in node.inputs} & set(weights)
        self.names = {name: f"w{i}" for i, name in enumerate(sorted(used))}  # a buffer's name has no dots
        last = {name for node in self.nodes if FEATURES in node.inputs for name in node.inputs}
        for name, short in self.names.items():
            weight = torch.from_numpy(weights[name].copy())
            self.register_buffer(short, weight if name in last else weight.to(dtype), persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Run float32 [B, 3, H, W], 0 to 255, sides multiples of 32; returns the maps of OUTPUTS."""
        values = {INPUT: images.to(self.dtype)} | {name: getattr(self, short) for name, short in self.names.items()}
        for node in self.nodes:
            found = _OPERATIONS[node.op]([values[name] for name in node.inputs], dict(node.attributes))
            values[node.outputs[0]] = found.float() if FEATURES in node.outputs else found
        return [values[name] for name in OUTPUTS]


class DeviceFaceDetector(CenterFaceDetector):
    """CenterFace on a torch device, all frames of one size in one run; settings and results as its parent's.

    The scaled pictures are OpenCV's to the last bit or one level beside it, so boxes are the CPU's to a fraction of a
    pixel.

    Args:
        device: what torch takes; frames may be uint8 tensors [H, W, 3] there, or numpy arrays.
        options: as of `CenterFaceDetector`.
    """

    def __init__(self, device: str, **options: Any) -> None:
        self.device = torch.device(device)
        super().__init__(**options)

    def _load(self, runtime: Runtime, threads: int) -> str:
        if self.device.type == "cpu":
            torch.set_num_threads(threads)
        self._module = CenterFaceModule().eval().to(self.device)
        return f"centerface/torch-{torch.__version__.split('+')[0]}/{self.device.type}/fp32"

    @torch.inference_mode()
    def _candidates(self, frames: Sequence[Any], side: int) -> list[list[Face]]:
        sizes = defaultdict(list)
        for position, frame in enumerate(frames):
            sizes[frame.shape].append(position)
        found: dict[int, list[Face]] = {}
        for (height, width, _), positions in sizes.items():
            count = max(1, CHUNK_BYTES // (12 * height * width))
            for start in range(0, len(positions), count):
                some = positions[start : start + count]
                pictures = torch.stack([self._pixels(frames[i]) for i in some])
                scale = side / max(height, width)
                found.update(zip(some, self._run(pictures, scale), strict=True))
        return [found[i] for i in range(len(frames))]

    def _pixels(self, frame: Any) -> Tensor:
        return (frame if isinstance(frame, Tensor) else torch.tensor(frame)).to(self.device)

    def _run(self, pictures: Tensor, scale: float) -> list[list[Face]]:
        height, width = pictures.shape[1:3]
        size = max(1, round(height * scale)), max(1, round(width * scale))
        blob = resize(pictures.permute(0, 3, 1, 2).float(), *size).round_()
        pads = [math.ceil(n / MULTIPLE) * MULTIPLE - n for n in size]
        # the CPU's boxes, not to three digits, and the same in every run: cuDNN may add up-convolutions in any order
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            heat, *rest = self._module(F.pad(blob, (0, pads[1], 0, pads[0])))
        frame, _, row, column = torch.nonzero(heat > self.candidate_score, as_tuple=True)
        cells = [t[frame, :, row, column] for t in (heat, *rest)]
        places = torch.stack([frame, row, column], 1).to(heat.dtype)
        table = torch.cat([places, *cells], 1).cpu().numpy()  # the one copy to the host
        return [self._faces(table[table[:, 0] == i, 1:], scale, (height, width)) for i in range(len(pictures))]


def resize(images: Tensor, height: int, width: int) -> Tensor:
    """Scale float images [B, C, H, W] as OpenCV does for the detector: by area if a side shrinks, else bilinear."""
    rows, columns = images.shape[2:]
    if height < rows or width < columns:
        return _areas(rows, height, images) @ images @ _areas(columns, width, images).T
    if (height, width) == (rows, columns):
        return images.clone()
    return F.interpolate(images, size=(height, width), mode="bilinear", align_corners=False)


def _areas(source: int, target: int, like: Tensor) -> Tensor:
    """[target, source]: which share of each pixel goes into each one of the smaller picture; rows sum to 1."""
    edges = torch.arange(target + 1, dtype=torch.float64, device=like.device) * (source / target)
    pixels = torch.arange(source, dtype=torch.float64, device=like.device)
    low, high = edges[:-1, None].maximum(pixels), edges[1:, None].minimum(pixels + 1)
    return ((high - low).clamp(min=0) * (target / source)).to(like.dtype)


def _convolution(values: list[Tensor], a: dict[str, Any]) -> Tensor:
    x, weight, bias = values
    return F.conv2d(x, weight, bias, stride=a["strides"], padding=a["pads"][:2], groups=a["group"])


def _up_convolution(values: list[Tensor], a: dict[str, Any]) -> Tensor:
    x, weight, bias = values
    return F.conv_transpose2d(x, weight, bias, stride=a["strides"], padding=a["pads"][:2], groups=a["group"])


def _without_batch_norm(nodes: Sequence[Node], weights: dict[str, np.ndarray]) -> list[Node]:
    """Fold every batch norm into the up-convolution before it, which has no bias of its own; changes the weights."""
    kept: list[Node] = []
    for node in nodes:
        if node.op == "BatchNormalization":
            up = kept.pop()
            scale, bias, mean, variance = node.inputs[1:]
            factor = weights[scale] / np.sqrt(weights[variance] + node.attributes["epsilon"])
            weights[up.inputs[1]] = weights[up.inputs[1]] * factor[:, None, None]
            weights[bias] = weights[bias] - weights[mean] * factor
            node = replace(up, inputs=(*up.inputs, bias), outputs=node.outputs)
        kept.append(node)
    return kept


_OPERATIONS = {
    "Conv": _convolution,
    "ConvTranspose": _up_convolution,
    "Relu": lambda values, _: values[0].relu(),
    "Add": lambda values, _: values[0] + values[1],
    "Sigmoid": lambda values, _: values[0].sigmoid(),
}
