"""One line in a user's code: the fused masked patch loss inside other people's masked autoencoders."""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastdetect.errors import UsageError
from fastdetect.ops import masked_patch_loss, reference


class Patched:
    """What `patch_vit_mae` did to a model; `unpatch()`, or the end of a with block, takes it back.

    `model` is the patched one: inside a `torch.compile` wrapper, the wrapped.
    """

    def __init__(self, model: nn.Module, method: str, replacement: Callable[..., Any]) -> None:
        self.model, self.method, self.replacement = model, method, replacement
        setattr(model, method, replacement)

    def unpatch(self) -> None:
        """Give the model its own method back; a second call does nothing."""
        if self.model.__dict__.get(self.method) is self.replacement:
            delattr(self.model, self.method)

    def __enter__(self) -> "Patched":
        return self

    def __exit__(self, *_: object) -> None:
        self.unpatch()


def patch_vit_mae(model: nn.Module) -> Patched:
    """Put `masked_patch_loss` in the place of a masked autoencoder's loss: same value, same gradients, one pass.

    Takes transformers' `ViTMAEForPreTraining`, and models in the manner of MAE's code: a method `forward_loss(imgs,
    pred, mask)` that means MAE's loss [paper], with `patchify(imgs)`, `norm_pix_loss` and a patch size on the model,
    its `patch_embed` or its `config`. Only this instance is changed, its weights are not. Images that require a
    gradient go the model's own way. A deep copy or a pickle of a patched model is patched as well, with weights and
    options of its own; `del copy.forward_loss` (transformers 5: `del copy.forward`) unpatches it.

    Args:
        model: the masked autoencoder; of what `torch.compile` made of one, the model inside is patched.

    Returns:
        The patch, with `unpatch()`; also a context manager.

    Raises:
        UsageError: the model is patched already, or is none of these: no loss to replace, no patch size, rectangular
            patches, or a `patchify` of another order than (row, column, channel).

    Example:
        patched = patch_vit_mae(model)  # the one line
        loss = model(pixel_values).loss
        patched.unpatch()
    """
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper passes some attributes on and keeps others
    method = "forward_loss" if callable(getattr(model, "forward_loss", None)) else "forward"
    if method in model.__dict__:
        raise UsageError(f"{type(model).__name__} is patched already, or its {method} was replaced: unpatch() first")
    if method == "forward" and _transformers_class(model) is None:
        raise UsageError(
            f"{type(model).__name__}: got a model without forward_loss(imgs, pred, mask), want transformers' "
            "ViTMAEForPreTraining or a model in the manner of MAE's code"
        )
    size = _patch_size(model)
    _check_patchify(model, size)
    replacement = _transformers_forward if method == "forward" else _forward_loss
    return Patched(model, method, partial(replacement, model, size))  # a partial is copied and pickled with its model


def _forward_loss(model: Any, size: int, imgs: Tensor, pred: Tensor, mask: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if imgs.requires_grad:
        own: Tensor = type(model).forward_loss(model, imgs, pred, mask, *args, **kwargs)
        return own
    return masked_patch_loss(pred, imgs, mask, patch_size=size, norm_pix=_norm_pix(model))


def _transformers_class(model: nn.Module) -> Any:
    return next((c for c in type(model).__mro__ if c.__name__ == "ViTMAEForPreTraining"), None)


def _transformers_forward(
    model: Any,
    size: int,
    pixel_values: Tensor | None = None,
    noise: Tensor | None = None,
    interpolate_pos_encoding: bool | None = None,
    **kwargs: Any,
) -> Any:
    """transformers 5 has the loss inside forward, so forward is replaced; up to 4 it has forward_loss."""
    if pixel_values is None or pixel_values.requires_grad:
        return type(model).forward(model, pixel_values, noise, interpolate_pos_encoding, **kwargs)
    from transformers.utils import can_return_tuple

    return can_return_tuple(_fused_forward)(model, size, pixel_values, noise, interpolate_pos_encoding, **kwargs)


def _fused_forward(
    model: Any,
    size: int,
    pixel_values: Tensor,
    noise: Tensor | None,
    interpolate_pos_encoding: bool | None,
    **kwargs: Any,
) -> Any:
    output: Any = vars(sys.modules[_transformers_class(model).__module__])["ViTMAEForPreTrainingOutput"]
    encoded = model.vit(pixel_values, noise=noise, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
    decoded = model.decoder(
        encoded.last_hidden_state, encoded.ids_restore, interpolate_pos_encoding=interpolate_pos_encoding
    )
    loss = masked_patch_loss(decoded.logits, pixel_values, encoded.mask, patch_size=size, norm_pix=_norm_pix(model))
    return output(
        loss=loss,
        logits=decoded.logits,
        mask=encoded.mask,
        ids_restore=encoded.ids_restore,
        hidden_states=encoded.hidden_states,
        attentions=encoded.attentions,
    )


def _norm_pix(model: Any) -> bool:
    """Read at each call, as the models do."""
    owner = model if hasattr(model, "norm_pix_loss") else getattr(model, "config", None)
    return bool(getattr(owner, "norm_pix_loss", False))


def _patch_size(model: Any) -> int:
    owners = (getattr(model, "config", None), getattr(model, "patch_embed", None), model)
    found = [getattr(owner, "patch_size", None) for owner in owners]
    size = next((value for value in found if value is not None), None)
    if size is None:
        raise UsageError(
            f"{type(model).__name__}: no patch size found, want it as model.config.patch_size, "
            "model.patch_embed.patch_size or model.patch_size"
        )
    sizes = {int(value) for value in (size if isinstance(size, (tuple, list)) else (size,))}
    if len(sizes) != 1:
        raise UsageError(f"{type(model).__name__}: got patches of {tuple(size)}, want square ones")
    return sizes.pop()


def _check_patchify(model: Any, size: int) -> None:
    """The values must lie in a patch as the loss reads them; 2 x 2 patches tell."""
    patchify = getattr(model, "patchify", None)
    if patchify is None:
        return
    projection = getattr(getattr(model, "patch_embed", None), "proj", None)
    channels = int(getattr(getattr(model, "config", projection), "num_channels", getattr(projection, "in_channels", 3)))
    images = torch.arange(channels * 4 * size * size, dtype=torch.float32).reshape(1, channels, 2 * size, 2 * size)
    try:
        got = patchify(images)
    except (AssertionError, RuntimeError, ValueError) as error:  # it may want its own image size, channels or device
        raise UsageError(
            f"{type(model).__name__}: patchify refuses images of {tuple(images.shape)} ({error}), so the order of its "
            "values cannot be checked"
        ) from error
    if not torch.equal(got, reference.patchify(images, size)):
        raise UsageError(
            f"{type(model).__name__}: patchify does not order a patch's values by (row, column, channel), as MAE does"
        )
