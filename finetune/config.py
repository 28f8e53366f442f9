"""The configuration of `finetune`; light enough for `frostline --help`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt

from data.config import ManifestConfig, Many, Names, Settings


class FinetuneConfig(ManifestConfig):
    """What `finetune` can be told."""

    encoder: str = Field(min_length=1, description="the encoder that is trained: an id or alias, as of extract")
    text_encoder: str | None = Field(default=None, description="the encoder of the texts that --text names")
    pooling: str = Field(
        default="auto",
        description="how tokens become the vector: a pooling of the encoder, or trained ones, learned:attention or "
        "learned:cls_token; default: the encoder's own",
    )
    text_pooling: str = Field(default="auto", description="the same of --text-encoder")
    text: str | None = Field(default=None, description="column of the text that belongs to each sample")
    target: Names = Field(default=(), description="target column, or several joined by commas")
    kind: Literal["auto", "binary", "multiclass", "multilabel", "regression"] = Field(
        default="auto", description="what kind of task it is"
    )
    positive: str | None = Field(
        default=None, description="the positive class of a binary task; default: the last in order"
    )
    delimiter: str = Field(default="|", min_length=1, description="separates the labels of one cell")
    min_positives: int = Field(
        default=1, ge=1, description="labels with fewer positives are left out of macro averages"
    )
    sample_weight: str | None = Field(
        default=None,
        description="column of how much each training row counts, such as the severity of a finding: classification, "
        "contrastive and sigmoid weigh by it; other rows are not read",
    )
    template: Many = Field(
        default=(),
        description="a prompt of every class, with {finding} where the class goes: pairs with a --target are judged by "
        "these as well; default: five of them",
    )
    prompts: Path | None = Field(
        default=None, description="a YAML or JSON file of templates, names and own prompts of classes, for the same"
    )
    objective: Names = Field(
        min_length=1,
        description="what is minimised: classification, contrastive, sigmoid, triplet, captioning, masked; "
        "several joined by commas are summed",
    )
    unfreeze: str = Field(
        default="none",
        description="what is trained of --encoder: none, last:K blocks, all, frozen:S (all but the share S of the "
        "blocks, from 0 for all to 1 for none) or frozen:S:FORM:E (a share that goes down to S in E epochs, constant, "
        "linear, cosine or step), gradual:E:K (nothing for E epochs, then the last K blocks and the norms), lora:R",
    )
    text_unfreeze: str | None = Field(default=None, description="the same of --text-encoder; default: as --unfreeze")
    dim: PositiveInt | None = Field(
        default=None, le=65536, description="length of the common space that linear layers map pairs to; default: 512"
    )
    aggregate: str = Field(
        default="mean",
        description="how a study's views become one vector: mean, or transformer[:DEPTH[:HEADS]]",
    )
    max_views: PositiveInt | None = Field(
        default=None,
        description="views of a study that are used at most: drawn in training, evenly spaced otherwise; default: all",
    )
    single_view: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="chance that training sees a study by a single view, drawn anew every epoch",
    )
    view_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="chance that training leaves out a view of a study; one always stays"
    )
    consistency: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="weight of 1 - cos between the vector of a study and that of one of its views, in training",
    )
    warm_start: Path | None = Field(
        default=None, description="a run of fit-head on the same features whose head the classifier begins with"
    )
    teacher: Path | None = Field(
        default=None,
        description="a run of fit-head whose probabilities of the training rows, from features in --store, the "
        "classifier learns beside the targets",
    )
    augment: Names = Field(
        default=(),
        description="for training images, and for clips, all frames alike: flip, rotation=DEGREES, "
        "randaugment[=MAGNITUDE]",
    )
    cache_depth: bool = Field(
        default=False, description="compute what is frozen of each encoder once and keep it in --store"
    )
    epochs: PositiveInt = Field(default=10, description="passes over the training rows")
    batch_size: PositiveInt = Field(default=32, description="samples per forward pass, over all processes")
    accumulate: PositiveInt = Field(
        default=1,
        description="forward passes per step of the optimizer, which is that of one batch of all their samples",
    )
    lr: float = Field(
        default=1e-3, gt=0, le=1e30, description="peak learning rate of classifiers, projections and decoders"
    )
    encoder_lr: float = Field(
        default=0.05, gt=0, le=1e6, description="learning rate of --encoder, as a multiple of --lr"
    )
    text_lr: float | None = Field(
        default=None, gt=0, le=1e6, description="the same of --text-encoder; default: as --encoder-lr"
    )
    layer_decay: float = Field(
        default=1.0, gt=0, le=1, description="each block's learning rate as a multiple of the one above it"
    )
    weight_decay: float = Field(default=0.01, ge=0, description="decoupled; none on biases, norms and temperatures")
    schedule: Literal["constant", "linear", "cosine", "restarts", "polynomial", "step"] = Field(
        default="cosine", description="how the learning rate goes down after its warm-up"
    )
    warmup: float = Field(default=0.1, ge=0, lt=1, description="share of the steps, or epochs, in which it goes up")
    schedule_by: Literal["step", "epoch"] = Field(
        default="step", description="whether the learning rate changes at every step of the optimizer or every epoch"
    )
    lr_floor: float = Field(default=0.0, ge=0, lt=1, description="share of the peak that the learning rate ends at")
    clip_norm: float = Field(default=1.0, gt=0, description="norm that gradients are clipped to")
    choose: str = Field(
        default="loss",
        description="what chooses the best epoch or step: loss or a metric, on val rows or an inner split",
    )
    judge_every: PositiveInt | None = Field(
        default=None,
        description="steps of the optimizer between two looks at the rows that choose; default: those of an epoch",
    )
    patience: PositiveInt | None = Field(
        default=None,
        description="stop after so many epochs, or looks of --judge-every, without a better one; default: never",
    )
    validation_fraction: float = Field(
        default=0.1, gt=0, lt=1, description="share of the training rows that choose the epoch where there is no val"
    )
    threshold: str = Field(
        default="youden",
        description="chosen on the rows that choose the epoch: youden, gmean, 0.5, sensitivity=0.9, specificity=0.9",
    )
    weight: Settings = Field(
        default={},
        description="weight of an objective in the sum, such as captioning=0.5, or a ramp over steps, "
        "form:start:stop:begin:end, such as captioning=cosine:0:1:1000:10000; default: 1",
    )
    set: Settings = Field(default={}, description="a parameter of an objective, such as contrastive.temperature=0.07")
    amp: Literal["no", "fp16", "bf16"] = Field(default="no", description="arithmetic of the forward pass")
    track: Names = Field(default=(), description="also write the curves for tensorboard, mlflow or wandb")
    device: str = Field(default="auto", description="where to compute: auto, cpu, cuda or cuda:<i>")
    workers: Literal["auto"] | PositiveInt = Field(default="auto", description="threads that decode")
    store: Path | None = Field(
        default=None,
        description="a feature store for hashes, openings of test rows and --cache-depth; default: "
        "the directory store beside --out",
    )
    bootstrap: int = Field(default=1000, ge=0, description="resamples of groups behind each interval")
    seed: int = Field(
        default=0, ge=0, lt=2**32, description="seed of weights, order, dropout, augmentation and intervals"
    )
    allow_leakage: bool = Field(
        default=False, description="train in spite of shared groups or samples; the report says so"
    )
    trust_remote_code: bool = Field(default=False, description="run code that comes with a checkpoint")
    out: Path = Field(description="the run directory; the same command again goes on where it was stopped")
    overwrite: bool = Field(default=False, description="begin anew and replace the run directory")

    @property
    def pairs(self) -> bool:
        """Whether samples are pairs of an input and a text."""
        return self.text_encoder is not None
