"""The configurations of the commands that fill and tend the store; light enough for `frostline --help`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt

from data.config import ManifestConfig, Many, Names


class ExtractConfig(ManifestConfig):
    """What `extract` can be told."""

    store: Path = Field(description="the feature store, a directory; made if it does not exist")
    encoder: Many = Field(
        default=(),
        description="encoder id or alias; several share one decode; augmented+ID: views to train heads on, mirrored "
        "and rotated unless told otherwise (a mirror swaps left and right); default: the offline encoder of the "
        "modality",
    )
    pooling: Names = Field(
        default=(),
        description="how tokens become one vector: native, cls, mean or max; or tokens, all of them; several are read "
        "off one pass; for texts, +chunks behind it (auto+chunks) encodes what is longer than the encoder's limit in "
        "pieces and averages them; default: auto, the encoder's own",
    )
    batch_size: Literal["auto"] | PositiveInt = Field(default="auto", description="samples per batch")
    device: str = Field(default="auto", description="where the encoder runs: auto, cpu, cuda or cuda:<i>")
    precision: Literal["auto", "fp32", "fp16", "bf16"] = Field(
        default="auto",
        description="arithmetic: fp32 is the library's own output to the letter; auto is fp16 on a GPU, else fp32",
    )
    dtype: Literal["auto", "float16", "float32"] = Field(
        default="auto", description="stored type; auto: float32 for vectors of fp32, else float16"
    )
    workers: Literal["auto"] | PositiveInt = Field(default="auto", description="threads that decode")
    limit: int | None = Field(default=None, ge=1, description="only the first N samples")
    shard: str = Field(
        default="0/1", description="this process takes part i of n, written i/n, of the batches; all fill one store"
    )
    flush_seconds: float = Field(
        default=120.0, gt=0, description="commit what is encoded at least this often; a crash loses no more than that"
    )
    trust_remote_code: bool = Field(default=False, description="run code that comes with a checkpoint")
