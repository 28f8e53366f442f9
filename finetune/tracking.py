"""Tracking: curves of a run, always as JSON lines, and for whoever asks in TensorBoard, MLflow or Weights & Biases.

Trackers are told; they are never asked. A run computes the same with and without them, and all they write is in its
directory. Where a run goes on, they begin anew and are told again what ``metrics.jsonl`` says of the steps before: they
have each step once, also after a crash.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
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
        from torch.utils.tensorboard import SummaryWriter

        _forget(run / "tensorboard")
        self._writer: Any = SummaryWriter(str(run / "tensorboard"))
        self._writer.add_text("config", f"```\n{json.dumps(config, indent=1)}\n```")

    def log(self, step: int, values: Values) -> None:
        """Add scalars."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush."""
        self._writer.close()


class MLflow:
    """A run in the SQLite file ``RUN/mlflow.db``; characters that MLflow has no names with are written ``_``."""

    _BATCH = 900  # MLflow takes at most 1000 values at once
    _SECONDS = 1.0  # a transaction for each step would cost more than a step of a small network

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        with _environment(MLFLOW_DISABLE_TELEMETRY="true"):
            mlflow: Any = import_module("mlflow")
            logging.getLogger("mlflow").setLevel(logging.WARNING)  # else it tells of each table that it makes
            # A client of its own: what the process has set elsewhere neither counts nor changes.
            self._client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{(run / 'mlflow.db').absolute()}")
            begun = self._client.get_experiment_by_name("frostline")
            for each in self._client.search_runs([begun.experiment_id]) if begun else ():
                self._client.delete_run(each.info.run_id)
            artifacts = (run / "mlflow").absolute().as_uri()
            experiment = begun.experiment_id if begun else self._client.create_experiment("frostline", artifacts)
            self._id = self._client.create_run(experiment, run_name=run.name).info.run_id
        self._metric = mlflow.entities.Metric
        self._waiting: list[Any] = []
        self._sent = time.monotonic()
        params = [mlflow.entities.Param(name, str(value)[:250]) for name, value in config.items()]
        self._client.log_batch(self._id, params=params)

    def log(self, step: int, values: Values) -> None:
        """Log metrics, at most once a second."""
        now = int(time.time() * 1000)
        self._waiting += [
            self._metric(re.sub(r"[^\w\-. :/]", "_", name), value, now, step) for name, value in values.items()
        ]
        if len(self._waiting) >= self._BATCH or time.monotonic() - self._sent > self._SECONDS:
            self._send()

    def close(self) -> None:
        """Log what waits and end the run."""
        self._send()
        self._client.set_terminated(self._id)

    def _send(self) -> None:
        while self._waiting:
            self._client.log_batch(self._id, metrics=self._waiting[: self._BATCH])
            del self._waiting[: self._BATCH]
        self._sent = time.monotonic()


class WandB:
    """A run of Weights & Biases in ``RUN/wandb``: offline, for ``wandb sync``, unless ``WANDB_MODE`` says otherwise.

    Raises
    ------
    ConfigError
        If it is to be online and cannot be begun there.
    """

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        wandb: Any = import_module("wandb")
        folder = run / "wandb"
        # A run that was online goes on there; one that was offline is written anew, under an id of its own.
        before = {path.name.rpartition("-")[2] for path in folder.glob("run-*-*")}
        _forget(folder)
        # Reports of its own errors go to a server, also from offline.
        with _environment(WANDB_ERROR_REPORTING="false", WANDB_CACHE_DIR=str(folder / "cache")):
            try:
                self._run = wandb.init(
                    project="frostline",
                    name=run.name,
                    id=min(before, default=None),
                    dir=str(run),
                    config=dict(config),
                    mode=os.environ.get("WANDB_MODE", "offline"),
                    settings=wandb.Settings(console="off", silent=True),
                )
            except wandb.Error as error:
                raise ConfigError(
                    f"--track wandb: {' '.join(str(error).split())}; log in with `wandb login`, or track offline "
                    f"without WANDB_MODE"
                ) from error

    def log(self, step: int, values: Values) -> None:
        """Log values."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def _forget(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


@contextmanager
def _environment(**defaults: str) -> Iterator[None]:
    """Set environment variables that are not set, for a while."""
    missing = {name: value for name, value in defaults.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)


_TRACKERS: dict[str, Callable[[Path, Mapping[str, Any]], Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WandB,
}


def check_trackers(names: Sequence[str]) -> None:
    """Refuse names of `--track` that cannot be used.

    Raises
    ------
    ConfigError
        If a name is unknown, or its package is not installed.
    """
    for name in names:
        if name not in _TRACKERS:
            raise ConfigError(f"--track {name}: {did_you_mean(name, _TRACKERS)}")
        if find_spec(name) is None:
            raise ConfigError(f"--track {name}: needs a package that is not installed: pip install {name}")


def open_trackers(names: Sequence[str], run: Path, config: Mapping[str, Any], *, until: int) -> list[Tracker]:
    """Return the trackers of a run, the JSON lines first; all know the steps up to the one it goes on from.

    Raises
    ------
    ConfigError
        If one cannot be used.
    """
    check_trackers(names)
    chosen: list[Tracker] = [_TRACKERS[name](run, config) for name in names]
    for values in read_lines(run, until=until):
        tell(chosen, int(values["step"]), {name: value for name, value in values.items() if name != "step"})
    return [JsonLines(run, until=until), *chosen]


def tell(trackers: Sequence[Tracker], step: int, values: Values) -> None:
    """Tell every tracker the values of a step; those that are no finite numbers are left out."""
    finite = {name: value for name, value in values.items() if math.isfinite(value)}
    for tracker in trackers:
        tracker.log(step, finite)


def read_lines(run: Path, *, until: int) -> list[dict[str, float]]:
    """Return what ``metrics.jsonl`` says of the steps up to one; a line that a crash cut short is of none.

    A run that goes on from step 0 is judged again before it, and so has no lines.
    """
    path = run / FILE
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() and until else []
    found = []
    for line in lines:
        with suppress(ValueError):
            found.append(json.loads(line))
    return [values for values in found if values["step"] <= until]
