"""The configurations of the commands that fit and use heads; light enough for `frostline --help`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt

from data.config import Config, ManifestConfig, Many, Names, Settings, positional


class PromptOptions(Config):
    """How the prompts of the classes are made, for heads that need them."""

    prompt_encoder: str | None = Field(
        default=None, min_length=1, description="text encoder of the classes' prompts, for heads that need them"
    )
    template: Many = Field(
        default=(), description="a prompt of every class, with {finding} where the class goes; default: five of them"
    )
    prompts: Path | None = Field(
        default=None, description="a YAML or JSON file of templates, names and own prompts of classes"
    )
    prompt_average: Literal["mean", "renormalized"] = Field(
        default="mean", description="a class's prompts: mean of unit vectors, or that scaled to unit length again"
    )
    prompt_control: Literal["none", "zero", "shuffled"] = Field(
        default="none", description="a control: prompts of zeros, or those of other classes"
    )


class TaskConfig(ManifestConfig):
    """What every command can be told that predicts a target from stored features and judges it."""

    store: Path = Field(description="the feature store")
    encoder: Many = Field(
        min_length=1,
        description="encoder id as stored; several are joined side by side; augmented+ID: ID and its views to train on",
    )
    target: Names = Field(min_length=1, description="target column, or several joined by commas")
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
    bootstrap: int = Field(default=1000, ge=0, description="resamples of groups behind each interval")
    pooling: str | None = Field(default=None, description="which stored pooling to use, if there are several")
    precision: str | None = Field(default=None, description="which stored precision to use, if there are several")
    seed: int = Field(default=0, ge=0, description="seed of folds, fits and intervals")
    out: Path = Field(description="the run directory to write")
    overwrite: bool = Field(default=False, description="replace the run directory if it exists")


class FittingConfig(TaskConfig):
    """What every command that fits heads on stored features can be told."""

    view: str | None = Field(
        default=None, description="column of what each row of a bag shows, such as the angle of the camera"
    )
    folds: int = Field(default=5, ge=2, description="folds of the grouped, stratified cross-validation")
    threshold: str = Field(
        default="youden",
        description="chosen on out-of-fold scores: youden, gmean, 0.5, sensitivity=0.9 or specificity=0.9",
    )
    allow_leakage: bool = Field(
        default=False, description="fit in spite of shared groups or samples; the report says so"
    )
    refit: Literal["train", "train+val"] = Field(
        default="train+val",
        description="rows of the final head, which judges test rows; val rows are judged by a head of train rows",
    )
    per_label: PositiveInt | None = Field(
        default=None,
        description="fit on so many training samples of each class or label, and as many without a label; default: all",
    )


class FitConfig(PromptOptions, FittingConfig):
    """What `fit-head` can be told."""

    head: str = Field(default="linear", description="the head; `frostline heads` lists them")
    set: Settings = Field(default={}, description="a parameter of the head, key=value")
    normalize: Literal["none", "l2"] = Field(default="none", description="scale each embedding to unit length")
    missing: Literal["drop", "mask"] = Field(
        default="drop",
        description="drop samples that lack an encoder's embedding, or mask what they lack, for fusion heads",
    )
    calibration: Literal["none", "temperature", "isotonic"] = Field(
        default="none",
        description="learned out of fold; isotonic wants 1,000 rows or more",
    )
    coverage: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="share of rows whose prediction set shall hold the truth, e.g. 0.9",
    )
    sealed: bool = Field(default=False, description="leave the rows of the test split unjudged and unopened")


class CompareConfig(FitConfig):
    """What `compare` can be told; what `fit-head` can be told holds for every cell."""

    manifest: Path = Field(
        description="labelled samples, or a suite: a YAML file of data sets, encoders and heads",
        json_schema_extra=positional(1),
    )
    store: Path | None = Field(default=None, description="the feature store")  # type: ignore[assignment] # or a suite's
    encoder: Many = Field(default=(), description="an encoder id as stored, or several joined: a+b; one column each")
    target: Names = Field(default=(), description="target column, or several joined by commas")
    head: Many = Field(  # type: ignore[assignment] # a cell has one
        default=(), description="a head to compare; `frostline heads` lists them; default: linear"
    )
    repeats: int = Field(default=1, ge=1, description="times that the cross-validation is repeated, on other folds")
    judge: Literal["cv", "val", "test"] = Field(
        default="cv", description="the rows that heads are compared on: out-of-fold, val or test"
    )
    metric: Names = Field(default=(), description="metrics to test and rank by; default: the first three of the task")
    few_shot: int = Field(
        default=0, ge=0, description="draws of 1, 2, 4 ... samples per class behind a few-shot curve; 0: no curve"
    )
    no_baselines: bool = Field(default=False, description="leave out the prior and the zero-shot baseline")
    no_controls: bool = Field(
        default=False, description="leave out the controls of prompts: zeros, and prompts of other classes"
    )


class TuneConfig(PromptOptions, FittingConfig):
    """What `tune` can be told."""

    head: Many = Field(default=("linear",), min_length=1, description="a head to try; several may be given")
    set: Settings = Field(
        default={}, description="a parameter that is not searched, HEAD.KEY=VALUE, or KEY=VALUE for a single head"
    )
    normalize: Literal["search", "none", "l2"] = Field(
        default="search", description="whether embeddings are scaled to unit length"
    )
    space: Path | None = Field(
        default=None, description="a YAML file of ranges and choices per head that replace the heads' own"
    )
    trials: int = Field(ge=1, description="configurations to try in total, those of earlier runs of the study included")
    timeout: float | None = Field(default=None, gt=0, description="seconds after which the search stops")
    sampler: Literal["auto", "tpe", "random", "grid"] = Field(
        default="auto", description="grid tries every point of a space of choices; auto does so where --trials suffice"
    )
    batch: int = Field(default=16, ge=1, description="trials asked for at once and fitted together")
    pruner: Literal["halving", "none"] = Field(
        default="halving", description="whether the worse half of a batch is dropped after one fold, and again later"
    )
    metric: str | None = Field(default=None, description="what to choose by; default: the first metric of the task")
    holdout: float = Field(
        default=0.2, gt=0, lt=1, description="share of rows set aside for the final judgement without a split column"
    )
    study: str = Field(default="tune", description="name of the study in its storage")
    storage: str | None = Field(
        default=None, description="journal file, or URL of a database, that holds the study; default: in --out"
    )


class ZeroShotConfig(PromptOptions, TaskConfig):
    """What `zero-shot` can be told."""

    encoder: Many = Field(
        min_length=1, description="encoder id as stored, of images or texts, that encodes prompts too"
    )
    prompt_encoder: str | None = Field(
        default=None, min_length=1, description="text encoder of the prompts; default: the text tower of --encoder"
    )
    prompt_average: Literal["mean", "renormalized"] = Field(
        default="renormalized",
        description="a class's prompts: mean of unit vectors, or that scaled to unit length again",
    )
    set: Settings = Field(default={}, description="a parameter of the zero_shot head, key=value")
    allow_leakage: bool = Field(default=False, description="judge in spite of rows that the encoder was fine-tuned on")


class EvaluateConfig(ManifestConfig):
    """What `evaluate` can be told."""

    run: Path = Field(description="a run directory", json_schema_extra=positional(1))
    manifest: Path = Field(description="labelled samples: a table or an image folder", json_schema_extra=positional(2))
    store: Path | None = Field(default=None, description="the feature store; a fine-tuned run has one of its own")
    split: str | None = Field(default=None, description="evaluate only the rows of this split: train, val or test")
    view: str | None = Field(default=None, description="column of the rows' views; default: the run's own")
    split_column: str | None = Field(
        default=None, description="the column that --split refers to; default: the run's own"
    )
    bootstrap: int = Field(default=1000, ge=0, description="resamples of groups behind each interval")
    seed: int = Field(default=0, ge=0, description="seed of the intervals")
    allow_leakage: bool = Field(
        default=False, description="evaluate in spite of rows that the head or its encoder was trained on"
    )


class PredictConfig(Config):
    """What `predict` can be told."""

    run: Path = Field(description="a run directory", json_schema_extra=positional(1))
    manifest: Path = Field(
        description="a manifest, a folder or one file; what is not in the store is encoded",
        json_schema_extra=positional(2),
    )
    out: Path = Field(description="the CSV to write")
    store: Path | None = Field(default=None, description="a feature store to read from and add to")
    input: str | None = Field(default=None, description="column to encode")
    id: str | None = Field(default=None, description="column of unique sample names")
    bag: str | None = Field(
        default=None, description="column of what is predicted as a whole, such as the study; default: the run's own"
    )
    view: str | None = Field(default=None, description="column of the rows' views; default: the run's own")
    neighbours: PositiveInt | None = Field(
        default=None, description="list so many nearest training samples of each sample, in OUT's name.neighbours.csv"
    )
    retrieve: Names = Field(
        default=(),
        description="columns of the training manifest to predict from these: the mean of numbers, the commonest word",
    )
    device: str = Field(default="auto", description="where the encoder runs: auto, cpu, cuda or cuda:<i>")
    batch_size: Literal["auto"] | PositiveInt = Field(default="auto", description="samples per batch")
    workers: Literal["auto"] | PositiveInt = Field(default="auto", description="threads that decode")
    trust_remote_code: bool = Field(default=False, description="run code that comes with a checkpoint")
