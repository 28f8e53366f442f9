"""The tokenizers of open_clip: texts cut at the limit, or in pieces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from data.digest import digest_json
from featurestore.chunks import Chunks
from featurestore.encoders._transformers import require_vocabulary, split_texts, tokenizer_digest
from featurestore.errors import EncoderError
from featurestore.text_encoder import Tokens


class OpenClipTokenizer:
    """A tokenizer of open_clip: texts in, `Tokens` out, always of the model's context length."""

    def __init__(self, encoder: str, tokenizer: Any) -> None:
        self._encoder = encoder
        self._tokenizer = tokenizer
        self._inner = getattr(tokenizer, "tokenizer", None)
        if self._inner is not None:
            require_vocabulary(encoder, self._inner)

    @property
    def vocabulary(self) -> Any:
        """The tokenizer of transformers that some models have; None of the others."""
        return self._inner

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Return the tokens of some texts."""
        ids = self._tokenizer(list(texts))
        padding = 0 if self._inner is None else self._inner.pad_token_id
        full = ids[:, -1] != padding
        truncated = sum(self._is_longer(text) for text, cut in zip(texts, full.tolist(), strict=True) if cut)
        return Tokens({"text": ids}, truncated)

    def chunks(self, texts: Sequence[str]) -> Chunks:
        """Return the tokens of some texts, those of long ones in pieces."""
        outer = self._tokenizer
        if getattr(outer, "tokenizer_mode", "") or getattr(outer, "reduction_fn", None):
            raise EncoderError(f"{self._encoder}: its tokenizer cannot split texts; leave +chunks out of --pooling")
        if self._inner is None:
            return self._simple_chunks(texts)
        cleaned = [outer.clean_fn(text) for text in texts]
        limits = {"max_length": outer.context_length, "padding": "max_length"}
        batch, owners, weights = split_texts(self._inner, cleaned, **limits)
        ids = batch["input_ids"]
        if outer.strip_sep_token:
            ids = ids.masked_fill(ids == self._inner.sep_token_id, 0)
        return Chunks({"text": ids}, owners, weights, len(texts))

    def _simple_chunks(self, texts: Sequence[str]) -> Chunks:
        """Return the pieces of CLIP's own tokenizer, each between the tokens of start and end."""
        outer = self._tokenizer
        room = outer.context_length - 2
        found = [outer.encode(text) for text in texts]
        pieces = [(i, ids[at : at + room]) for i, ids in enumerate(found) for at in range(0, max(len(ids), 1), room)]
        rows = [torch.tensor([outer.sot_token_id, *ids, outer.eot_token_id]) for _, ids in pieces]
        return Chunks(
            {"text": torch.stack([nn.functional.pad(row, (0, outer.context_length - len(row))) for row in rows])},
            torch.tensor([i for i, _ in pieces]),
            torch.tensor([float(max(len(ids), 1)) for _, ids in pieces]),
            len(texts),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything that decides the tokens of a text, as JSON-ready values."""
        outer = self._tokenizer
        content = digest_json(outer.encoder) if self._inner is None else tokenizer_digest(self._inner)
        functions = {name: getattr(outer, name, None) for name in ("clean_fn", "reduction_fn")}
        return {
            "class": type(outer).__name__,
            "tokenizer": content,
            "context_length": outer.context_length,
            **{name: getattr(function, "__name__", None) for name, function in functions.items()},
            "strip_sep_token": getattr(outer, "strip_sep_token", False),
            "mode": getattr(outer, "tokenizer_mode", ""),
        }

    def _is_longer(self, text: str) -> bool:
        outer = self._tokenizer
        if self._inner is None:
            return bool(len(outer.encode(text)) + 2 > outer.context_length)
        return bool(len(self._inner(outer.clean_fn(text), verbose=False)["input_ids"]) > outer.context_length)
