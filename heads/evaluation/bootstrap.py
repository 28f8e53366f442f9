"""Percentile bootstrap intervals that resample whole groups, for many statistics in one pass.

A resample is a row of *weights*: how often each sample was drawn. A statistic therefore maps weights
(b, n) to values (b, ...) with array arithmetic, and the point value is the same statistic on a row of
ones. Groups (patients, studies), not rows, are drawn: rows of one patient are not independent, and
resampling them one by one makes intervals too narrow.

The draws are those of ``scipy.stats.bootstrap(method="percentile")`` with the same seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from heads.errors import HeadError

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""Maps weights, shape (b, n), to values, shape (b, ...); NaN where the statistic is undefined."""

CHUNK = 1 << 20
"""Weights held at once; a few arrays of this size (8 MiB each) are alive in a statistic."""


class Estimate(TypedDict):
    """A metric as the record stores it: ``{"value", "low", "high"}`` and what to know about them."""

    value: float | None
    low: float | None
    high: float | None
    reason: NotRequired[str]
    undefined_resamples: NotRequired[int]
    partial_resamples: NotRequired[int]


def format_estimate(estimate: Mapping[str, Any]) -> str:
    """Return an estimate as text, such as ``0.912 [0.880, 0.940]``; without a value, an en dash."""
    if estimate["value"] is None:
        return "–"
    if estimate["low"] is None:
        return format_number(estimate["value"])
    return f"{format_number(estimate['value'])} [{format_number(estimate['low'])}, {format_number(estimate['high'])}]"


def format_number(value: float) -> str:
    """Return a number with three decimals, or with four digits where it is large."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 1000 else f"{value:.4g}"


@dataclass(frozen=True, slots=True)
class Series:
    """A statistic on the data and on every resample.

    Attributes
    ----------
    values
        Shape (1 + n_boot,), the point value first, NaN where it is undefined.
    reason
        Why it is undefined, where it is.
    partial
        Of a mean over classes, shape (1 + n_boot,): where some of the classes were undefined.
    centred
        Whether resamples are biased, so that their interval is moved onto the value; see `Bootstrap.estimate`.
    """

    values: Floats
    reason: str
    partial: NDArray[np.bool_] | None = None
    centred: bool = False


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Which rows are drawn together, how often and from which seed.

    Attributes
    ----------
    cluster
        The cluster of each row, shape (n,), 0 to `n_clusters` - 1.
    n_clusters
        Number of clusters; each is drawn as a whole.
    n_boot
        Number of resamples; 0 gives values without intervals.
    seed
        Seed of the draws.
    level
        Coverage of the intervals, e.g. 0.95.
    """

    cluster: NDArray[np.intp]
    n_clusters: int
    n_boot: int = 1000
    seed: int = 0
    level: float = 0.95

    @classmethod
    def of(
        cls, n: int, groups: Sequence[Any] | NDArray[Any] | None, *, n_boot: int, seed: int, level: float
    ) -> Bootstrap:
        """Return the plan for `n` rows.

        Parameters
        ----------
        n
            Number of rows.
        groups
            The group of each row, shape (n,); None makes each row its own. A row whose group is None
            is its own as well.
        n_boot, seed, level
            See the attributes.

        Raises
        ------
        HeadError
            If there are no rows, or the arguments do not fit.
        """
        if n == 0:
            raise HeadError("metrics need at least one sample, got none")
        if n_boot < 0 or not 0 < level < 1:
            raise HeadError(f"a bootstrap needs n_boot >= 0 and 0 < level < 1, got {n_boot} and {level}")
        if groups is None:
            return cls(np.arange(n), n, n_boot, seed, level)
        if len(groups) != n:
            raise HeadError(f"groups: expected one per sample ({n}), got {len(groups)}")
        names = [("row", str(i)) if group is None else ("group", str(group)) for i, group in enumerate(groups)]
        number = {name: i for i, name in enumerate(dict.fromkeys(names))}
        return cls(np.array([number[name] for name in names], dtype=np.intp), len(number), n_boot, seed, level)

    def of_rows(self, rows: NDArray[Any]) -> Bootstrap:
        """Return the plan for some of the rows, by positions or a mask; it draws the same clusters."""
        return replace(self, cluster=self.cluster[rows])

    def weights(self) -> Iterator[Floats]:
        """Yield the weights: first a row of ones, then the resamples, in chunks of shape (b, n)."""
        n = len(self.cluster)
        yield np.ones((1, n))
        rng = np.random.default_rng(self.seed)
        rows_at_once = max(1, CHUNK // n)
        own = np.array_equal(self.cluster, np.arange(self.n_clusters))
        for start in range(0, self.n_boot, rows_at_once):
            b = min(rows_at_once, self.n_boot - start)
            draws = rng.integers(0, self.n_clusters, size=(b, self.n_clusters))
            draws += self.n_clusters * np.arange(b)[:, None]
            counts = np.bincount(draws.ravel(), minlength=b * self.n_clusters).reshape(b, -1).astype(np.float64)
            yield counts if own else counts.take(self.cluster, axis=1)

    def replicate(self, statistics: Mapping[str, Statistic]) -> dict[str, Floats]:
        """Return each statistic on the data and on every resample.

        Returns
        -------
        dict
            For each name, shape (1 + n_boot, ...): the point value first.
        """
        parts: dict[str, list[Floats]] = {name: [] for name in statistics}
        for weights in self.weights():
            for name, statistic in statistics.items():
                parts[name].append(statistic(weights))
        return {name: np.concatenate(values) for name, values in parts.items()}

    def estimate(
        self, values: Floats, reason: str, *, partial: NDArray[np.bool_] | None = None, centred: bool = False
    ) -> Estimate:
        """Return the value and its percentile interval.

        Parameters
        ----------
        values
            The statistic, shape (1 + n_boot,), the point value first, NaN where it is undefined.
        reason
            Why the statistic is undefined, if its point value is.
        partial
            For a mean over classes, shape (1 + n_boot,): where some of the classes were undefined.
        centred
            Whether the interval is corrected for the median bias of the resamples, by which it is moved: ``low`` and
            ``high`` are the percentiles minus (median of the resamples - value), and not below 0. It holds the value.
            For statistics of 0 or more that noise can only raise, as the calibration error: each resample adds noise
            to that of the sample, so that most or all of the resamples may lie above the value. The correction of
            Efron (1987, doi:10.1080/01621459.1987.10478410) is undefined where all do.

        Returns
        -------
        Estimate
            Undefined resamples are left out and counted. There is no interval where half of the
            resamples or more are undefined, or where there is only one group to draw.
        """
        if np.isnan(values[0]):
            return {"value": None, "low": None, "high": None, "reason": reason}
        estimate: Estimate = {"value": float(values[0]), "low": None, "high": None}
        drawn = values[1:]
        defined = drawn[~np.isnan(drawn)]
        undefined = len(drawn) - len(defined)
        if self.n_boot == 0:
            estimate["reason"] = "no interval: no resamples were asked for"
        elif self.n_clusters < 2:
            estimate["reason"] = "no interval: there is only one group to resample"
        elif 2 * undefined >= len(drawn):
            estimate["reason"] = f"no interval: undefined in {undefined} of {len(drawn)} resamples ({reason})"
        else:
            tail = 50 * (1 - self.level)
            low, median, high = np.percentile(defined, [tail, 50, 100 - tail])
            if centred:
                low, high = max(0.0, low - median + values[0]), high - median + values[0]
            estimate["low"], estimate["high"] = float(low), float(high)
        if undefined:
            estimate["undefined_resamples"] = undefined
        if partial is not None and (n_partial := int(partial[1:].sum())):
            estimate["partial_resamples"] = n_partial
        return estimate

    def estimate_all(self, measured: Any) -> Any:
        """Return nested mappings with an `Estimate` in the place of every `Series`; the rest as it is."""
        if isinstance(measured, Series):
            return self.estimate(measured.values, measured.reason, partial=measured.partial, centred=measured.centred)
        if isinstance(measured, dict):
            return {name: self.estimate_all(value) for name, value in measured.items()}
        return measured
