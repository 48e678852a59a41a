"""timm names for the branches of the shipped detector, as `timm.create_model("fastdetect_image_small")`."""

from typing import Any

import timm
from timm.models import register_model
from torch import nn

from fastdetect.errors import UsageError
from fastdetect.models.detector import TwoBranchDetector

_SHIPPED = "fastdetect-small"
_FROM_TIMM = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")  # that `timm.create_model` hands on


@register_model
def fastdetect_image_small(pretrained: bool = False, **options: Any) -> nn.Module:
    """Image branch of fastdetect-small with its own head: normalised face crops -> logits (real, fake)."""
    return _branch("image", pretrained, **options)


@register_model
def fastdetect_residual_small(pretrained: bool = False, **options: Any) -> nn.Module:
    """Residual branch of fastdetect-small with its own head: residuals in [-1,1] -> logits (real, fake)."""
    return _branch("residual", pretrained, **options)


def _branch(which: str, pretrained: bool, num_classes: int = 2, in_chans: int = 3, **options: Any) -> nn.Module:
    """The backbone of a branch; with `pretrained` its weights, and those of its head where there are two classes."""
    detector = TwoBranchDetector.from_pretrained(_SHIPPED)
    config, image = detector.config, which == "image"
    if in_chans != 3:
        raise UsageError(f"in_chans={in_chans}: the branches see RGB pictures, in_chans=3")
    built_with = config.image_backbone_args if image else config.residual_backbone_args
    told = built_with | {key: value for key, value in options.items() if key not in _FROM_TIMM}
    name = config.image_backbone if image else config.residual_backbone
    net: Any = timm.create_model(name, pretrained=False, num_classes=num_classes, **told)
    side = config.image_size if image else config.mim.size[0]
    net.pretrained_cfg = net.default_cfg = {
        "architecture": f"fastdetect_{which}_small", "input_size": (3, side, side), "num_classes": 2,
        "mean": config.mean if image else (0.0, 0.0, 0.0), "std": config.std if image else (1.0, 1.0, 1.0),
        "interpolation": "bilinear", "crop_pct": 1.0, "license": detector.info.license,
    }  # fmt: skip
    if pretrained:
        branch, head = getattr(detector, f"{which}_branch"), getattr(detector, f"{which}_head")
        missing, unknown = net.load_state_dict(branch.net.state_dict(), strict=False)
        if unknown or len(missing) > 2:
            misfit = ", ".join([*unknown, *missing][:3])
            raise UsageError(f"{name} with {told} does not fit the weights ({misfit}); drop the options")
        if num_classes == 2:
            net.get_classifier().load_state_dict(head.state_dict())
    return net
