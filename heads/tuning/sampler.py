"""Sampling that follows from the seed and the number of the trial, whoever asks for it."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler


class NumberedSampler(BaseSampler):  # type: ignore[misc]
    """An Optuna sampler that starts anew with every trial, from the seed and the trial's number.

    Processes that share a study thus draw different trials, and a study that goes on after a kill does
    not repeat its first draws.

    Parameters
    ----------
    name
        ``tpe`` (multivariate, with a group per head) or ``random``.
    seed
        The study's seed.
    """

    def __init__(self, name: str, seed: int) -> None:
        self._name, self._seed = name, seed
        self._sampler: Any = RandomSampler(seed)

    def before_trial(self, study: Any, trial: Any) -> None:
        """Start anew."""
        seed = int(np.random.SeedSequence([self._seed, trial.number]).generate_state(1)[0])
        if self._name == "random":
            self._sampler = RandomSampler(seed)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # groups
                self._sampler = TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
        """Return the parameters that are drawn together."""
        space: dict[str, Any] = self._sampler.infer_relative_search_space(study, trial)
        return space

    def sample_relative(self, study: Any, trial: Any, search_space: dict[str, Any]) -> dict[str, Any]:
        """Draw these."""
        drawn: dict[str, Any] = self._sampler.sample_relative(study, trial, search_space)
        return drawn

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        """Draw one parameter by itself."""
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)
