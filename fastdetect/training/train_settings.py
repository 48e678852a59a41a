"""Settings of `fastdetect train`."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from fastdetect.models.detector import DetectorConfig
from fastdetect.training.settings import Positive, RunSettings


class TrainConfig(RunSettings):
    """Everything of a training run; the resolved one is written beside its results.

    Args:
        pack: face pack, see `fastdetect data pack`: reals, beside fakes made from them while it trains; or
        manifest: folder of `fastdetect data extract`: a data set's own reals and fakes, in groups.
        methods, compressions: of the manifest, only these; null: all.
        group_fakes: fakes in a group of the manifest, which has three reals.
        detector: architecture.
        init: detector folder to start from; its masked image model and branches are taken over.
        mim: the masked image model: its folder, a detector that has one, or a shipped name; needed with `residual`
            unless `init` has it.
        image_weights: "efficientnet-lite0" starts the image branch from that package's ImageNet weights; null: random
            ones. `init` goes before it.
        residual_weights: the same for the residual branch, also where there is `init`; "init": those of `init`; null:
            random ones.
        residual: train both branches; without it only the image branch and its head (a first stage), which then decide
            alone in what is saved.
        freeze_image: leave the image branch as `init` has it and train the rest (a cheap second stage).
        hold_fused: leave the fused head as it starts, which with `init` is the image branch's: for a residual branch
            that is not good enough to have a say.
        freeze_depthwise: leave the depthwise kernels of the image backbone, and of a residual backbone that does not
            start from random weights, as they are: their gradient is the slowest part of a step on a CPU.
        freeze_stages: stages of the image backbone, stem included, that stay as they are.
        shares: weight of each source of the pack (see `PairSource`); null: by its number of persons.
        redraw: share of fakes whose face the masked image model has drawn again.
        pieces: folder in which every picture that a run learns from is kept, inpainted, for runs that differ by their
            losses and networks alone: they neither forge nor inpaint again. Needs a pack and `steps`.
        pairs: reals in a step's batch, with as many fakes, over all processes; with a manifest: groups.
        lr, weight_decay, warmup: AdamW's, with linear warm-up over `warmup` of the budget, then cosine.
        resynthesis: share, of the fakes that are not redrawn, whose whole picture was resynthesised; the others are
            self-blends and swaps, 55 to 45.
        matched: share of the reals that are changed as a whole, as the pasted part of a fake is, see
            `fastdetect.data.forgery.Forged`.
        h264: share of the pairs, or groups, whose pictures, the real and its fakes alike, go through libx264 and back
            after all other changes, see `fastdetect.data.augment.recompress`; not those of validations.
        loss: "ce" alone, or with it "supcon" or "real-centric" on the embeddings [METHODS 2.5].
        contrast_weight, temperature, margin: of that second term; the margin is real-centric's only.
        synthesis, fusion: whether real-centric makes hard positives and hard negatives.
        branch_weight: weight of each branch's own cross-entropy [ours: 0.5].
        map_weight: of the cross-entropy that asks each branch that learns, at a sixteenth of its resolution, which
            cells of a fake were changed [ours]; of a pack only, and of convolutional backbones.
        label_smoothing: of all cross-entropies.
        easy_until: share of the budget over which fakes go from easy to as faint as they get.
        val_faces: held-out faces of a validation, half of them fake.
        others: see `RunSettings`.
    """

    pack: Path | None = None
    manifest: Path | None = None
    methods: list[str] | None = None
    compressions: list[str] | None = None
    group_fakes: int = Field(default=3, ge=1, le=32)
    detector: DetectorConfig = DetectorConfig()
    init: Path | None = None
    mim: Path | None = None
    image_weights: Literal["efficientnet-lite0"] | None = "efficientnet-lite0"
    residual_weights: Literal["efficientnet-lite0", "init"] | None = "efficientnet-lite0"
    residual: bool = True
    freeze_image: bool = False
    hold_fused: bool = False
    freeze_stages: int = Field(default=0, ge=0)
    freeze_depthwise: bool = False
    shares: dict[str, float] | None = None
    redraw: float = Field(default=0.2, ge=0, le=1)
    pieces: Path | None = None
    pairs: int = Field(default=32, gt=0)
    lr: Positive = 5e-4
    weight_decay: float = 0.02
    warmup: float = Field(default=0.02, ge=0, lt=1)
    resynthesis: float = Field(default=0.27, ge=0, le=1)
    matched: float = Field(default=0.0, ge=0, le=1)
    h264: float = Field(default=0.0, ge=0, le=1)
    loss: Literal["ce", "supcon", "real-centric"] = "ce"
    contrast_weight: float = Field(default=0.1, ge=0)
    temperature: Positive = 0.1
    margin: float = Field(default=0.1, ge=0)
    synthesis: bool = True
    fusion: bool = True
    branch_weight: float = 0.5
    map_weight: float = Field(default=0.0, ge=0)
    label_smoothing: float = Field(default=0.05, ge=0, lt=1)
    easy_until: float = Field(default=0.5, ge=0, le=1)
    val_faces: int = Field(default=384, ge=2)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.pack is None) == (self.manifest is None):
            raise ValueError("give a pack (fakes made from its reals) or a manifest (its own fakes), one of them")
        if self.manifest and self.map_weight:
            raise ValueError("map_weight needs a pack: a manifest's fakes come without masks; set it to 0")
        if self.residual_weights == "init" and not self.init:
            raise ValueError("residual_weights=init takes the residual branch of `init`: give init, or other weights")
        if self.pieces and (not self.pack or not self.steps or self.detector.token_selection):
            raise ValueError("pieces needs a pack, a budget in steps, and a detector without token_selection")
        return self
