"""Tracking: curves of a run, always as JSON lines, and for whoever asks in TensorBoard, MLflow or Weights & Biases.

Trackers are told; they are never asked. A run computes the same with and without them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from data.errors import ConfigError, did_you_mean
from data.files import whole_text_file

FILE = "metrics.jsonl"

Values = Mapping[str, float]
"""Names such as ``train/loss`` and ``lr/head``, and their values."""


class Tracker(Protocol):
    """Is told of curves."""

    def log(self, step: int, values: Values) -> None:
        """Take the values of a step."""
        ...

    def close(self) -> None:
        """Write what is left; the run is over."""
        ...


class JsonLines:
    """A line per step in ``metrics.jsonl``.

    Parameters
    ----------
    run
        The run directory.
    until
        The step that a stopped run goes on from: lines of later ones are of steps that will be made again.
    """

    def __init__(self, run: Path, *, until: int) -> None:
        kept = read_lines(run, until=until)
        with whole_text_file(run / FILE) as file:
            file.writelines(json.dumps(values) + "\n" for values in kept)
        self._file = (run / FILE).open("a", encoding="utf-8")

    def log(self, step: int, values: Values) -> None:
        """Write a line."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoard:
    """Event files in ``RUN/tensorboard``."""

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        self._writer = _load("torch.utils.tensorboard", "tensorboard").SummaryWriter(str(run / "tensorboard"))
        self._writer.add_text("config", f"```\n{json.dumps(config, indent=1)}\n```")

    def log(self, step: int, values: Values) -> None:
        """Add scalars."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush."""
        self._writer.close()


class MLflow:
    """A run in the SQLite file ``RUN/mlflow.db``."""

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        self._mlflow = _load("mlflow", "mlflow")
        self._mlflow.set_tracking_uri(f"sqlite:///{(run / 'mlflow.db').absolute()}")
        self._mlflow.set_experiment("frostline")
        self._mlflow.start_run(run_name=run.name)
        self._mlflow.log_params({name: str(value)[:250] for name, value in config.items()})

    def log(self, step: int, values: Values) -> None:
        """Log metrics."""
        self._mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        """End the run."""
        self._mlflow.end_run()


class WandB:
    """A run of Weights & Biases, in ``RUN/wandb``; offline where ``WANDB_MODE=offline``."""

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        wandb = _load("wandb", "wandb")
        self._run = wandb.init(project="frostline", name=run.name, dir=str(run), config=dict(config))

    def log(self, step: int, values: Values) -> None:
        """Log values."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


_TRACKERS: dict[str, Callable[[Path, Mapping[str, Any]], Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WandB,
}


def check_trackers(names: Sequence[str]) -> None:
    """Raise ConfigError if a name of `--track` is unknown."""
    for name in names:
        if name not in _TRACKERS:
            raise ConfigError(f"--track {name}: {did_you_mean(name, _TRACKERS)}")


def open_trackers(names: Sequence[str], run: Path, config: Mapping[str, Any], *, until: int) -> list[Tracker]:
    """Return the trackers of a run, the JSON lines first.

    Raises
    ------
    ConfigError
        If a name is unknown, or its package is not installed.
    """
    check_trackers(names)
    chosen: list[Tracker] = [_TRACKERS[name](run, config) for name in names]
    return [JsonLines(run, until=until), *chosen]


def _load(module: str, distribution: str) -> ModuleType:
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigError(f"--track: needs a package that is not installed: pip install {distribution}") from error


def tell(trackers: Sequence[Tracker], step: int, values: Values) -> None:
    """Tell every tracker the values of a step; those that are no finite numbers are left out."""
    finite = {name: value for name, value in values.items() if math.isfinite(value)}
    for tracker in trackers:
        tracker.log(step, finite)


def read_lines(run: Path, *, until: int) -> list[dict[str, float]]:
    """Return what ``metrics.jsonl`` says of the steps up to one; a line that a crash cut short is of none."""
    path = run / FILE
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    found = []
    for line in lines:
        with suppress(ValueError):
            found.append(json.loads(line))
    return [values for values in found if values["step"] <= until]
