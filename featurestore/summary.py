"""What an extraction did, in figures and in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from featurestore.bandwidth import remark
from featurestore.describe import size


@dataclass(frozen=True, kw_only=True)
class ExtractSummary:
    """What an extraction did.

    Attributes
    ----------
    encoder, fingerprint, group, pooling
        The encoder's id, the identity of its values, the group of the store they are in, and how tokens were pooled.
    samples, cached, encoded, duplicates, absent
        Samples in the manifest; already stored; encoded now; same content as another sample; empty cell.
    failures
        One entry per sample that could not be decoded: id, source, kind, message.
    read
        Samples that were encoded for any of the levels of the run.
    truncated, chunked, fallbacks, splits
        Texts cut at the encoder's limit; texts encoded in pieces; batches repeated in fp32; batches split for want of
        memory.
    seconds, seconds_by_stage, bottleneck
        Wall time of the encoding loop and where it went.
    batch_size, precision, dtype, device
        What ``auto`` became.
    fidelity
        How close the vectors are to the library's own output; None if nothing was encoded.
    stored, bytes
        Rows of this encoder in the store, and their size on disk.
    bandwidths
        How many recordings reach up to which frequency, in Hz, by the rates of their files.
    interrupted
        The signal that ended the run early, or None.
    also
        The same of the other levels that were stored in the same run.
    """

    encoder: str
    fingerprint: str
    group: str
    pooling: str
    samples: int
    cached: int
    encoded: int
    duplicates: int
    absent: int
    failures: tuple[Mapping[str, str], ...]
    read: int
    truncated: int
    chunked: int
    fallbacks: int
    splits: int
    seconds: float
    seconds_by_stage: Mapping[str, float]
    bottleneck: str | None
    batch_size: int
    precision: str
    dtype: str
    device: str
    fidelity: Mapping[str, float] | None
    stored: int
    bytes: int
    bandwidths: Mapping[int, int] = field(default_factory=dict)
    interrupted: int | None = None
    also: tuple[ExtractSummary, ...] = ()

    @property
    def samples_per_second(self) -> float:
        """Encoded samples per second of the encoding loop; 0 if nothing was encoded."""
        return self.encoded / self.seconds if self.encoded and self.seconds else 0.0

    @property
    def truncation_rate(self) -> float:
        """Share of the texts read that were cut at the encoder's limit, from 0 to 1."""
        return self.truncated / self.read if self.read else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as JSON-ready values."""
        derived = {"samples_per_second": self.samples_per_second, "truncation_rate": self.truncation_rate}
        return {**asdict(self), **derived, "also": [each.to_dict() for each in self.also]}

    def explain(self) -> str:
        """Return the summary in words."""
        lines = [
            self._heading(),
            f"  {self.samples} samples: {self.cached} cached, {self.encoded} encoded, {len(self.failures)} failed",
        ]
        rest = {
            "have the content of another sample": self.duplicates,
            "have an empty cell": self.absent,
            **self._long_texts(),
            "batches were repeated in fp32": self.fallbacks,
            "batches were split for want of memory": self.splits,
        }
        lines += [f"  {count} {what}" for what, count in rest.items() if count]
        differing = remark(self.bandwidths)
        lines += [f"  {differing}"] if differing else []
        if self.encoded:
            stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds_by_stage.items())
            lines.append(
                f"  {self.samples_per_second:.1f} samples/s in batches of {self.batch_size}; "
                f"bound by {self.bottleneck} ({stages})"
            )
        lines += self._stored()
        for level in self.also:
            lines += [level._heading(), f"  {level.cached} cached, {level.encoded} encoded"]
            lines += [f"  {count} {what}" for what, count in level._long_texts().items() if count]
            lines += level._stored()
        return "\n".join(lines)

    def _long_texts(self) -> dict[str, int]:
        cut = f"texts ({self.truncation_rate:.1%} of those encoded) were cut at the encoder's limit"
        return {
            f"{cut}; --pooling auto+chunks encodes them whole": self.truncated,
            "texts were encoded in pieces": self.chunked,
        }

    def _heading(self) -> str:
        made = f"{self.precision} on {self.device} as {self.dtype}"
        return f"{self.encoder}  {self.pooling}  fingerprint {self.fingerprint[:12]}  {made}"

    def _stored(self) -> list[str]:
        lines = [f"  {self.stored} samples in the store, {size(self.bytes)}"]
        if self.fidelity is not None:
            lines.insert(
                0,
                f"  fidelity: cosine {self.fidelity['min_cosine']:.7f} and largest difference "
                f"{self.fidelity['max_abs']:.1e} against the library's own fp32 output",
            )
        return lines
