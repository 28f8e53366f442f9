"""Up to which frequency the recordings of a manifest reach: where that differs, a head may learn the recorder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from data.digest import Keys
from data.duplicates import remembered
from data.filecache import FileCache
from data.manifest import Manifest, Source
from featurestore.spec import EncoderSpec

METHOD = "file-rate/1"
"""The name under which rates are remembered."""


def file_rates(manifest: Manifest, keys: Keys, cache: FileCache, *, workers: int) -> dict[int, int]:
    """Return how many samples are stored at each rate, in Hz; nothing for what is no manifest of recordings.

    Headers are read once and remembered by content, so that a later run opens no file. A sample of several files
    counts at the lowest of their rates, one that cannot be read does not count.

    Parameters
    ----------
    manifest, keys
        The samples and their content keys, shape (n, 2).
    cache
        Remembers the rates.
    workers
        Threads that read headers.
    """
    if manifest.modality != "audio":
        return {}
    from data.audio import file_rate

    def compute(source: Source) -> bytes:
        return file_rate(source).to_bytes(4, "big")

    found = remembered(METHOD, compute, manifest.sources, keys, cache, workers=workers)
    return dict(sorted(Counter(int.from_bytes(each, "big") for each in found if each is not None).items()))


def reach(rates: Mapping[int, int], spec: EncoderSpec) -> dict[int, int]:
    """Return how many samples reach up to which frequency, in Hz, as an encoder hears them: none beyond its ``fmax``.

    Parameters
    ----------
    rates
        How many samples are stored at each rate, in Hz.
    spec
        The encoder.
    """
    settings: Mapping[str, Any] = spec.preprocess.get("spectrogram", spec.preprocess)
    limit = float(settings.get("fmax", float("inf")))
    found: Counter[int] = Counter()
    for rate, count in rates.items():
        found[int(min(rate / 2, limit))] += count
    return dict(found)


def remark(reached: Mapping[int, int]) -> str | None:
    """Return what a user should know where recordings reach up to different frequencies; else None."""
    if len(reached) < 2:
        return None
    lists = ", ".join(f"{count:,} up to {hz:,} Hz" for hz, count in reached.items())
    return (
        f"the recordings hold different frequencies by the rates of their files: {lists}; a head may learn the "
        f"recorder: give one limit for all, as in audio:mfcc/fmax={max(min(reached), 500)}"
    )
