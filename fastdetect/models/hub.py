"""Models by name, and models to the Hugging Face Hub. Importing this gives timm the branches' names, too."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from fastdetect.errors import CheckpointError
from fastdetect.models import timm_entries as timm_entries  # registers its names
from fastdetect.models.detector import TwoBranchDetector
from fastdetect.models.folder import CONFIG_FILE, WEIGHTS_FILE, ModelFolder, find_folder, read_config, sha256_of
from fastdetect.models.masked_image_model import MaskedImageModel

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_DETECTORS = {"two_branch_detector": TwoBranchDetector}
_CARD = "README.md"


class AutoDetector:
    """The detector of a model folder, whatever its architecture.

    Example:
        >>> AutoDetector.from_pretrained("fastdetect-small").info.model_id
        'fastdetect-small'
    """

    @staticmethod
    def from_pretrained(name: str | Path) -> TwoBranchDetector:
        """Load (fp32, eval mode) from a folder, a shipped name, or an id of the Hugging Face Hub: `owner/name`,
        `owner/name@revision`.

        Raises:
            CheckpointError: there is none, it cannot be fetched, it is no detector, or its hash is wrong.
        """
        folder = find_folder(name)
        kind = read_config(folder).model_type
        if kind not in _DETECTORS:
            raise CheckpointError(f"{name} holds a {kind!r}, no detector; known are {', '.join(_DETECTORS)}")
        return _DETECTORS[kind].from_pretrained(folder)


def push_to_hub(
    model: str | Path | TwoBranchDetector | MaskedImageModel,
    repo: str,
    *,
    private: bool | None = None,
    message: str = "Upload model",
    api: "HfApi | None" = None,
) -> str:
    """Upload a model folder: weights, configuration and model card, in one commit.

    A folder without README.md gets a card that says what config.json does.

    Args:
        model: a model, or its folder or shipped name.
        repo: `owner/name`; made where it does not exist.
        private: of a repository that is made; None: the owner's default.
        message: of the commit.
        api: client with another token or endpoint than the environment's.
    Returns:
        URL of the commit.
    Raises:
        CheckpointError: the folder is not whole, or the Hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    if isinstance(model, TwoBranchDetector | MaskedImageModel):
        with tempfile.TemporaryDirectory() as scratch:
            folder = model.save_pretrained(Path(scratch) / repo.rpartition("/")[2])
            return push_to_hub(folder, repo, private=private, message=message, api=api)
    folder = find_folder(model)
    config, weights = read_config(folder), folder / WEIGHTS_FILE
    if not weights.is_file() or sha256_of(weights) != config.weights_sha256:
        raise CheckpointError(f"{weights} is missing or not what {CONFIG_FILE} names; save the model again")
    card = (folder / _CARD).read_bytes() if (folder / _CARD).is_file() else model_card(config).encode()
    files: dict[str, str | bytes] = {WEIGHTS_FILE: str(weights), CONFIG_FILE: str(folder / CONFIG_FILE), _CARD: card}
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in files.items()]
    client = api or HfApi()
    try:
        client.create_repo(repo, private=private, exist_ok=True)
        return str(client.create_commit(repo, operations, commit_message=message).commit_url)
    except (OSError, ValueError) as error:  # hub and network errors derive from OSError, bad names from ValueError
        raise CheckpointError(
            f"cannot push to {repo} ({type(error).__name__}: {str(error).strip().splitlines()[0]}); "
            "check the name owner/name, the network, and that `hf auth login` was done with a token that may write"
        ) from error


def model_card(config: ModelFolder) -> str:
    """Return a model card from what config.json says."""
    size = f"{config.preprocess.size} px, margin {config.preprocess.margin}" if config.preprocess else "see config.json"
    calibrated = f"calibration {config.calibration['id']}" if config.calibration else "not calibrated: no verdicts"
    return f"""---
library_name: fastdetect
license: other
license_name: {config.license or "unknown"}
tags: [deepfake-detection, {config.model_type.replace("_", "-")}]
---

# {config.model_id}

A `{config.model_type}` of fastdetect. Input: square RGB face crops ({size}); {calibrated}. Scores are estimates, not
evidence. SHA-256 of the weights: `{config.weights_sha256}`.
"""
