"""What the encoders that stand on transformers share: checkpoints, tokenizers and the BERT family."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import transformers
from torch import Tensor, device, float32, nn
from transformers import AutoModel, AutoTokenizer

from data.digest import digest_json
from featurestore.blocks import listed_blocks, with_blocks
from featurestore.chunks import Chunks, make_text_encoder
from featurestore.encoder import Embeddings, Encoder, EncoderOptions
from featurestore.errors import EncoderError, WeightsUnavailable
from featurestore.forward import freeze
from featurestore.hub import UNLOADABLE, from_cache_or_hub
from featurestore.pooling import choose_text_poolings, level_specs, pool_or_keep
from featurestore.spec import EncoderSpec
from featurestore.text_encoder import Tokens
from featurestore.weights import first_line, seeded, weights_digest

T = TypeVar("T")

_UNUSED_HEADS = ("pooler.", "classifier.", "lm_head.", "cls.")
"""Parameters no embedding depends on: a checkpoint may lack them."""

_NOISE = {
    "_attn_implementation", "_attn_implementation_internal", "_commit_hash", "_name_or_path", "architectures", "dtype",
    "id2label", "initializer_factor", "initializer_range", "label2id", "problem_type", "torch_dtype",
    "transformers_version", "use_cache",
}  # fmt: skip
"""Keys of a configuration that say where a checkpoint was, or how it is used, and not what it computes."""

_BUCKET = 64
"""On a GPU, lengths are rounded up to a multiple of this: few shapes, few kernels."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model on the hub or in a folder, in the layout of transformers.

    Attributes
    ----------
    encoder
        The encoder's id, for messages.
    source
        A folder, or a repository ``org/name``.
    revision
        Branch, tag or commit of a repository; None is its main branch.
    seed
        Seed of random weights; None loads those of the checkpoint.
    trust_remote_code
        Whether code in the checkpoint may run.
    """

    encoder: str
    source: str
    revision: str | None = None
    seed: int | None = None
    trust_remote_code: bool = False

    @property
    def is_local(self) -> bool:
        """Whether the source is a folder."""
        return Path(self.source).is_absolute()

    @property
    def settings(self) -> dict[str, Any]:
        """Return the arguments of every ``from_pretrained``."""
        return {
            "pretrained_model_name_or_path": self.source,
            "revision": self.revision or "main",
            "trust_remote_code": self.trust_remote_code,
            "local_files_only": self.is_local,
        }

    def load(self, load: Callable[[], T]) -> T:
        """Run a loader of this checkpoint, quietly, with its failures as our errors.

        Raises
        ------
        WeightsUnavailable
            If a file is missing or damaged.
        """
        with _quiet():
            if not self.is_local:
                return from_cache_or_hub(load, encoder=self.encoder, repo=self.source)
            try:
                return load()
            except UNLOADABLE as error:
                if isinstance(error, EncoderError):
                    raise
                raise WeightsUnavailable(f"{self.encoder}: cannot be loaded: {first_line(error)}") from error

    def model(self, model_class: Any, config: Any) -> nn.Module:
        """Return a model with the checkpoint's weights, or random ones where a seed was named; still on the CPU.

        Raises
        ------
        WeightsUnavailable
            If the checkpoint lacks weights that the embedding depends on.
        """
        if self.seed is not None:
            with seeded(self.seed):
                made: nn.Module = (
                    AutoModel.from_config(config, trust_remote_code=self.trust_remote_code)
                    if model_class is AutoModel
                    else model_class(config)
                )
                return made
        model, report = model_class.from_pretrained(
            **self.settings, config=config, dtype=float32, output_loading_info=True
        )
        missing = sorted(name for name in report["missing_keys"] if not name.startswith(_UNUSED_HEADS))
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise WeightsUnavailable(
                f"{self.encoder}: the checkpoint lacks weights of {type(model).__name__}, which would be random: "
                f"{', '.join(missing[:3])}{more}"
            )
        loaded: nn.Module = model
        return loaded

    def tokenizer(self) -> Any:
        """Return the checkpoint's tokenizer.

        Raises
        ------
        WeightsUnavailable
            If the checkpoint has no vocabulary; transformers would make every word unknown in silence.
        """
        tokenizer = AutoTokenizer.from_pretrained(**self.settings)
        require_vocabulary(self.encoder, tokenizer)
        return tokenizer


class HubTokenizer:
    """A tokenizer of transformers with fixed limits: texts in, `Tokens` out.

    Parameters
    ----------
    tokenizer
        The tokenizer of transformers.
    max_length
        Longest sequence, special tokens included; what is longer is cut and counted.
    padding
        ``longest`` of the batch, or always to ``max_length``.
    inputs
        The arguments that the network takes.
    run_on
        The torch device the tokens are for.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        max_length: int,
        padding: Literal["longest", "max_length"] = "longest",
        inputs: Sequence[str],
        run_on: str,
    ) -> None:
        self._tokenizer = tokenizer
        self._inputs = tuple(inputs)
        self._max_length = max_length
        self._padding = padding
        on_gpu = device(run_on).type == "cuda"
        self._bucket = _BUCKET if on_gpu and padding == "longest" and max_length % _BUCKET == 0 else None

    @property
    def vocabulary(self) -> Any:
        """The tokenizer of transformers."""
        return self._tokenizer

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Return the tokens of some texts."""
        batch = self._tokenizer(
            list(texts),
            truncation=True,
            max_length=self._max_length,
            padding=self._padding,
            pad_to_multiple_of=self._bucket,
            return_attention_mask=True,
            return_tensors="pt",
        )
        full = batch["attention_mask"].sum(1) == self._max_length
        truncated = sum(self._is_longer(text) for text, cut in zip(texts, full.tolist(), strict=True) if cut)
        return Tokens({name: batch[name] for name in self._inputs if name in batch}, truncated)

    def chunks(self, texts: Sequence[str]) -> Chunks:
        """Return the tokens of some texts, those of long ones in pieces."""
        batch, owners, weights = split_texts(
            self._tokenizer,
            texts,
            max_length=self._max_length,
            padding=self._padding,
            pad_to_multiple_of=self._bucket,
        )
        return Chunks({name: batch[name] for name in self._inputs if name in batch}, owners, weights, len(texts))

    def to_dict(self) -> dict[str, Any]:
        """Return everything that decides the tokens of a text, as JSON-ready values."""
        return {
            "tokenizer": tokenizer_digest(self._tokenizer),
            "max_length": self._max_length,
            "padding": self._padding,
            "inputs": list(self._inputs),
        }

    def _is_longer(self, text: str) -> bool:
        return len(self._tokenizer(text, truncation=False, verbose=False)["input_ids"]) > self._max_length


def split_texts(tokenizer: Any, texts: Sequence[str], **limits: Any) -> tuple[Any, Tensor, Tensor]:
    """Tokenise texts, long ones in pieces.

    Parameters
    ----------
    tokenizer
        A tokenizer of transformers.
    texts
        The texts.
    limits
        Its arguments ``max_length`` and ``padding``, and others like them.

    Returns
    -------
    batch
        What the tokenizer gives, one row per piece.
    owners, weights
        The text of each piece, int64, and its number of tokens without special ones, float32; both of shape (m,).

    Raises
    ------
    EncoderError
        If the tokenizer cannot split texts.
    """
    if not tokenizer.is_fast:
        raise EncoderError(f"{type(tokenizer).__name__} cannot split long texts; leave +chunks out of --pooling")
    batch = tokenizer(
        list(texts),
        truncation=True,
        return_overflowing_tokens=True,
        return_special_tokens_mask=True,
        return_attention_mask=True,
        return_tensors="pt",
        **limits,
    )
    own = (batch["special_tokens_mask"] == 0).sum(1)
    # A text of characters that the tokenizer knows nothing of has special tokens only.
    return batch, batch["overflow_to_sample_mapping"], own.clamp(min=1).float()


def bert_encoder(
    checkpoint: Checkpoint,
    options: EncoderOptions,
    *,
    family: str,
    config: Any,
    max_length: int | None = None,
) -> Encoder:
    """Return a text encoder of the BERT family: the last hidden states, pooled or as they are.

    BERT's own pooler is never used: it was trained to tell which sentence comes next, and many
    checkpoints lack it.

    Parameters
    ----------
    checkpoint
        Where it is.
    options
        ``mean`` (default, padding left out), ``cls`` or ``max`` pooling, each also with ``+chunks``, or ``tokens``,
        all of them also behind a block; precision, stored type, device.
    family
        For the specification.
    config
        The checkpoint's configuration.
    max_length
        Longest sequence; None takes the checkpoint's limit.

    Raises
    ------
    WeightsUnavailable
        If weights or vocabulary are missing.
    EncoderError
        If the network is no encoder of text, or the pooling is unknown.
    """
    offered, blocks = ("mean", "cls", "max", "tokens"), getattr(config, "num_hidden_layers", 0)
    poolings = choose_text_poolings(options, offered, encoder=checkpoint.encoder, blocks=blocks)
    if getattr(config, "is_encoder_decoder", False) or not getattr(config, "vocab_size", None):
        raise EncoderError(
            f"{checkpoint.encoder}: model_type {config.model_type!r} is no encoder of text such as BERT; wrap it as "
            f"py:module:factory"
        )
    tokenizer, model = checkpoint.load(lambda: (checkpoint.tokenizer(), checkpoint.model(AutoModel, config)))
    if hasattr(model, "pooler"):
        model.register_module("pooler", None)
    model = freeze(model, options.device)
    tokenize = HubTokenizer(
        tokenizer,
        max_length=max_length or text_limit(checkpoint.encoder, tokenizer, config, model),
        inputs=tokenizer.model_input_names,
        run_on=options.device,
    )

    def compute(inputs: Mapping[str, Tensor], poolings: Sequence[str]) -> tuple[Embeddings, ...]:
        hidden = model(**inputs).last_hidden_state
        return tuple(pool_or_keep(hidden, pooling, mask=inputs["attention_mask"]) for pooling in poolings)

    spec = EncoderSpec(
        family=family,
        modality="text",
        architecture=architecture(model, config),
        weights=weights_digest(model),
        preprocess=tokenize.to_dict(),
        layer="last_hidden_state",
        pooling=poolings[0],
        precision=options.precision,
        dtype=options.dtype,
        dim=config.hidden_size,
    )
    tokens, dims = {"order": "text", "prefix": [], "special": "kept"}, [spec.dim] * len(poolings)
    levels = level_specs(spec, poolings, options, layer=spec.layer, dims=dims, tokens=tokens)
    found = listed_blocks(checkpoint.encoder, model, poolings, count=blocks)
    reading = with_blocks(compute, found, poolings, mask_of=lambda inputs: inputs["attention_mask"])
    return make_text_encoder(levels=levels, tokenizer=tokenize, compute=reading, network=model, device=options.device)


def require_vocabulary(encoder: str, tokenizer: Any) -> None:
    """Refuse a tokenizer that knows its special tokens only: transformers makes one in silence where files lack.

    Raises
    ------
    WeightsUnavailable
        If there is no vocabulary.
    """
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise WeightsUnavailable(f"{encoder}: the checkpoint has no vocabulary; expected tokenizer.json or its like")


def text_limit(encoder: str, tokenizer: Any, config: Any, model: nn.Module | None = None) -> int:
    """Return the longest sequence that tokenizer and network agree on.

    Raises
    ------
    EncoderError
        If neither states a limit.
    """
    positions = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    if isinstance(table, nn.Embedding) and table.padding_idx is not None:
        # RoBERTa counts positions from behind its padding index.
        positions -= table.padding_idx + 1
    limit = min(int(positions), int(tokenizer.model_max_length))
    if limit > 10**6:
        raise EncoderError(f"{encoder}: neither tokenizer nor configuration states the longest text")
    return limit


def architecture(model: nn.Module, config: Any) -> dict[str, Any]:
    """Return the model's class and what its configuration changes of the defaults, without names and versions."""
    stated, defaults = config.to_dict(), type(config)().to_dict()
    # Only what differs: a release that adds a field leaves the identity of older checkpoints alone.
    changed = {name: value for name, value in stated.items() if name not in defaults or value != defaults[name]}
    return {"class": type(model).__name__, "config": _without_noise(changed)}


def tokenizer_digest(tokenizer: Any) -> str:
    """Return the SHA-256 of a tokenizer's content: vocabulary, rules and special tokens, not its file or name."""
    content: dict[str, Any] = {"vocabulary": tokenizer.get_vocab()}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules = json.loads(backend.to_str())
        # State of the last call, and the format's number.
        content = {name: value for name, value in rules.items() if name not in ("padding", "truncation", "version")}
    settings = {
        "class": type(tokenizer).__name__,
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "sides": [tokenizer.padding_side, tokenizer.truncation_side],
    }
    return digest_json({"settings": settings, "content": content})


def _without_noise(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _without_noise(item) for key, item in value.items() if key not in _NOISE}
    return [_without_noise(item) for item in value] if isinstance(value, list | tuple) else value


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from writing load reports and bars to the terminal; failures are raised all the same."""
    log = transformers.utils.logging
    before, had_bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(before)
        if had_bars:
            log.enable_progress_bar()
