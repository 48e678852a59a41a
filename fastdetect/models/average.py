"""Average the weights of models that were trained from one another."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdetect.errors import CheckpointError, UsageError
from fastdetect.models.checkpoint import load_backbone_weights
from fastdetect.models.detector import TwoBranchDetector
from fastdetect.models.folder import find_folder, read_config
from fastdetect.models.masked_image_model import MaskedImageModel

_TYPES: dict[str, type[TwoBranchDetector] | type[MaskedImageModel]] = {
    "two_branch_detector": TwoBranchDetector,
    "masked_image_model": MaskedImageModel,
}

_TRAINED_WITH = {"drop_rate", "drop_path_rate", "token_selection", "block_keep"}


def average_models(
    models: Sequence[str | Path],
    output: str | Path,
    *,
    shares: Sequence[float] | None = None,
    start: float = 0.0,
    dtype: torch.dtype = torch.float16,
) -> Path:
    """Write the weighted mean of models' weights (a "model soup") as a model folder without a calibration.

    A model that was trained further on other data, averaged with the one that it came from, is often better on both
    kinds of data than either [Wortsman et al., CVPR 2022]; of models that were trained apart the mean is worthless.

    Args:
        models: folders, shipped names or Hub ids of one architecture; two or more, or with `start` one.
        output: folder; gets the first one's preprocess contract, id and licence.
        shares: weight of each; they are divided by their sum. None: equal.
        start: share of the ImageNet weights that the image branch began with (efficientnet-lite0), in [0, 1); the
            others get the rest. What was learnt beside them is what holds elsewhere least [Wortsman et al., CVPR
            2022, "Robust fine-tuning of zero-shot models"].
        dtype: storage type, see `write_folder`.
    Raises:
        UsageError: fewer models than two, or shares that do not fit.
        CheckpointError: a model cannot be loaded, its architecture is another, or `start` has no weights for it.
        MissingDependencyError: the package of these weights is not installed.
    """
    shares = [1.0] * len(models) if shares is None else shares
    fewest = 1 if start else 2
    if len(models) < fewest or len(shares) != len(models) or min(shares) < 0 or not sum(shares):
        raise UsageError(
            f"{len(models)} models and shares {list(shares)}; wanted two or more (one with `start`), a share of 0 or "
            "more each"
        )
    if not 0 <= start < 1:
        raise UsageError(f"start {start}; wanted a share from 0 to below 1")
    folders = [find_folder(name) for name in models]
    configs = [read_config(folder) for folder in folders]
    kind = _TYPES.get(configs[0].model_type)
    if kind is None:
        raise CheckpointError(f"{models[0]} is a {configs[0].model_type}; wanted one of {', '.join(_TYPES)}")
    for name, config in zip(models, configs, strict=True):
        if config.model_type != configs[0].model_type:
            raise CheckpointError(f"{name} is a {config.model_type}, {models[0]} a {configs[0].model_type}")
    loaded = [kind.from_pretrained(folder) for folder in folders]
    mean = loaded[0]
    for name, model in zip(models, loaded, strict=True):
        if _shape(model) != _shape(mean):
            raise CheckpointError(f"{name} has another architecture than {models[0]}: their weights have no mean")
    states: list[dict[str, Tensor]] = [model.state_dict() for model in loaded]
    mean.load_state_dict({name: _mean([state[name] for state in states], shares) for name in states[0]})
    if start:
        _toward_start(mean, start)
    if isinstance(mean, TwoBranchDetector):
        mean.info = mean.info.model_copy(update={"calibration": None})  # it was of other scores
    return mean.save_pretrained(output, dtype=dtype)


def _toward_start(model: TwoBranchDetector | MaskedImageModel, share: float) -> None:
    """Move the image branch by a share of the way back to its ImageNet weights."""
    if not isinstance(model, TwoBranchDetector):
        raise CheckpointError("a masked image model has no ImageNet weights to go back to: leave `start` out")
    learnt = model.image_branch.net
    begun = copy.deepcopy(learnt)
    load_backbone_weights(begun)
    ends = learnt.state_dict(), begun.state_dict()
    learnt.load_state_dict({name: _mean([end[name] for end in ends], [1 - share, share]) for name in ends[0]})


def _shape(model: TwoBranchDetector | MaskedImageModel) -> dict[str, Any]:
    """What of a model's configuration its weights depend on."""
    return model.config.model_dump(exclude=_TRAINED_WITH)


def _mean(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    if not tensors[0].is_floating_point():
        return tensors[0]
    parts = torch.stack([tensor.double() * share for share, tensor in zip(shares, tensors, strict=True)])
    return (parts.sum(0) / sum(shares)).to(tensors[0].dtype)
