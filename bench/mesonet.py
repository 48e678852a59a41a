"""MesoNet (Afchar et al., WIFS 2018) as a peer: its four published models in torch.

The networks follow the authors' code: Meso4 and MesoInception4 on 256 px RGB in [0, 1]; convolution ("same"
padding), ReLU, then batch norm (Keras' eps of 1e-3), then max pooling; inception branches 1x1, 3x3, 3x3
dilated by 2 and by 3; the flattened map is channel-last; LeakyReLU 0.1. The sigmoid is P(real): they
trained with Keras' flow_from_directory, which numbers the folders df/ and real/ alphabetically.
`bench/validation.py` prints what the data say about it. A video's score is the mean over frames, as in
their paper. Their video pipeline feeds pixels of 0 to 255 to nets that were trained on 0 to 1; here all
inputs are 0 to 1.
"""

from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE = 256
MODELS = ("Meso4_DF", "Meso4_F2F", "MesoInception_DF", "MesoInception_F2F")


class Inception(nn.Module):
    """Four parallel branches, concatenated; widths as in the authors' InceptionLayer(a, b, c, d)."""

    def __init__(self, inputs: int, a: int, b: int, c: int, d: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(inputs, a, 1)])
        for width, dilation in ((b, 1), (c, 2), (d, 3)):
            self.convs.append(nn.Conv2d(inputs, width, 1))
            self.convs.append(nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation))

    def forward(self, x: Tensor) -> Tensor:
        branches = [F.relu(self.convs[0](x))]
        branches += [F.relu(self.convs[i + 1](F.relu(self.convs[i](x)))) for i in (1, 3, 5)]
        return torch.cat(branches, 1)


class MesoNet(nn.Module):
    """Meso4, or MesoInception4 where `inception`; gives P(real) [B] of images [B,3,256,256] in [0,1]."""

    def __init__(self, inception: bool) -> None:
        super().__init__()
        if inception:
            first: list[nn.Module] = [Inception(3, 1, 4, 4, 2), Inception(11, 2, 4, 4, 2)]
        else:
            first = [nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 5, padding=2)]
        widths = (11, 12) if inception else (8, 8)
        self.convs = nn.ModuleList([*first, nn.Conv2d(widths[1], 16, 5, padding=2), nn.Conv2d(16, 16, 5, padding=2)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(n, eps=1e-3) for n in (*widths, 16, 16)])
        self.hidden, self.out = nn.Linear(1024, 16), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm, pool in zip(self.convs, self.norms, (2, 2, 2, 4), strict=True):
            x = F.max_pool2d(norm(F.relu(conv(x))), pool)  # ReLU twice over an Inception changes nothing
        x = F.leaky_relu(self.hidden(x.permute(0, 2, 3, 1).flatten(1)), 0.1)
        return torch.sigmoid(self.out(x)).squeeze(1)


def load(path: Path) -> MesoNet:
    """Build the network of a converted weight file (.npz, keys `<keras layer>/<weight>`)."""
    with np.load(path) as archive:
        weights = {key: torch.from_numpy(archive[key]) for key in archive.files}
    model = MesoNet(inception="Inception" in path.name)

    def layers(kind: str) -> list[dict[str, Tensor]]:
        names = {key.split("/")[0] for key in weights if key.startswith(kind)}
        ordered = sorted(names, key=lambda name: int(name.rsplit("_", 1)[1]))
        return [{k.split("/")[1]: w for k, w in weights.items() if k.split("/")[0] == n} for n in ordered]

    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    for conv, layer in zip(convs, layers("conv2d"), strict=True):
        conv.load_state_dict({"weight": layer["kernel"].permute(3, 2, 0, 1), "bias": layer["bias"]})
    for norm, layer in zip(model.norms, layers("batch_normalization"), strict=True):
        mean, variance = layer["moving_mean"], layer["moving_variance"]
        state = {"weight": layer["gamma"], "bias": layer["beta"], "running_mean": mean, "running_var": variance}
        norm.load_state_dict(state | {"num_batches_tracked": torch.tensor(0)})
    for linear, layer in zip((model.hidden, model.out), layers("dense"), strict=True):
        linear.load_state_dict({"weight": layer["kernel"].T, "bias": layer["bias"]})
    return model.to(memory_format=torch.channels_last).eval()  # 2 to 3 times as fast on a CPU


@torch.inference_mode()
def fake_probability(model: MesoNet, crops: np.ndarray) -> np.ndarray:
    """P(fake) [B] of RGB uint8 crops [B,256,256,3]."""
    x = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255
    return np.concatenate([1 - model(part).numpy() for part in x.split(32)])


def aligned_crop(frame: np.ndarray, landmarks: np.ndarray, zoom: float = 1.3) -> np.ndarray:
    """The crop that the authors cut from videos: upright, centred on the nose, borders reflected.

    Its side is 2.2 x 1.3 times the larger of the distances between the eyes and from the eyes to the mouth.

    Args:
        frame: RGB uint8 [H,W,3].
        landmarks: [5,2] eyes, nose, mouth corners, pixels.
        zoom: their l_factor.
    """
    eyes, mouth = landmarks[:2].mean(0), landmarks[3:].mean(0)
    down = mouth - eyes
    side = 2.2 * zoom * max(float(np.linalg.norm(landmarks[1] - landmarks[0])), float(np.linalg.norm(down)))
    angle = np.degrees(np.arctan2(down[0], down[1]))
    centre = landmarks[2].astype(float)
    warp = cv2.getRotationMatrix2D((float(centre[0]), float(centre[1])), -angle, SIZE / side)
    warp[:, 2] += SIZE / 2 - centre
    # A linear warp aliases when it shrinks: the frame is first made smaller by area averaging.
    shrink = max(1.0, side / SIZE)
    if shrink > 1:
        height, width = frame.shape[:2]
        small = (max(1, round(width / shrink)), max(1, round(height / shrink)))
        frame = cv2.resize(frame, small, interpolation=cv2.INTER_AREA)
        warp[:, 0] *= width / small[0]
        warp[:, 1] *= height / small[1]
    return cv2.warpAffine(frame, warp, (SIZE, SIZE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
