"""Where a study lives: a journal file or a database, shared by all processes that work on it."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from data.errors import ConfigError

_IDENTITY = "frostline"


@contextmanager
def open_study(
    storage: str,
    name: str,
    *,
    direction: str,
    identity: Mapping[str, Any],
    planned: Sequence[Mapping[str, Any]],
    mark: str,
) -> Iterator[Any]:
    """Give a study, made or found, for as long as this process works on it.

    A trial whose process ended before it did is set to failed as soon as nobody else works on the journal.

    Parameters
    ----------
    storage
        A journal file, or the URL of a database.
    name
        The study's name in the storage.
    direction
        ``maximize`` or ``minimize``.
    identity
        What the study is about, JSON-ready; a study about something else is refused.
    planned
        Parameters of the trials to run before any are sampled.
    mark
        The attribute that tells these trials from others.

    Raises
    ------
    ConfigError
        If the storage cannot be used, or its study of that name is about something else.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with _presence(storage) as presence:
        study, made = _study(storage, name, direction)
        if made or (presence.alone and _IDENTITY not in study.user_attrs):
            for params in planned:
                study.enqueue_trial(dict(params), user_attrs={mark: True}, skip_if_exists=True)
            study.set_user_attr(_IDENTITY, dict(identity))
        _refuse_other(study.user_attrs.get(_IDENTITY, {}), identity, f"study {name!r} in {storage}")
        if presence.alone:
            for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                study.tell(trial.number, state=TrialState.FAIL)
        presence.share()
        yield study


def _study(storage: str, name: str, direction: str) -> tuple[Any, bool]:
    """Return a study, and whether it was made just now."""
    try:
        backend: Any = RDBStorage(storage) if _is_url(storage) else JournalStorage(JournalFileBackend(storage))
        try:
            return optuna.create_study(storage=backend, study_name=name, direction=direction), True
        except optuna.exceptions.DuplicatedStudyError:
            return optuna.load_study(storage=backend, study_name=name), False
    except (SQLAlchemyError, ImportError, optuna.exceptions.StorageInternalError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"--storage {storage}: the database cannot be used: {reason}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"--storage {storage}: is not the journal of a study; name another file") from error


def _refuse_other(found: Mapping[str, Any], expected: Mapping[str, Any], where: str) -> None:
    """Refuse a study about something else, and say what differs."""
    differ = sorted(key for key in {*found, *expected} if found.get(key) != expected.get(key))
    if differ:
        raise ConfigError(
            f"{where} was made with other {', '.join(differ)}; go on with those, or give another --out, "
            f"--study or --storage"
        )


class _Presence:
    """A process's lock on a journal: exclusive if it came first, until it is shared with those that come later."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.alone = True
        except BlockingIOError:
            fcntl.flock(self._file, fcntl.LOCK_SH)
            self.alone = False

    def share(self) -> None:
        """Let others in."""
        fcntl.flock(self._file, fcntl.LOCK_SH)

    def close(self) -> None:
        """Leave."""
        self._file.close()


class _Unknown:
    """The presence in a database: nobody can say who else works on it."""

    alone = False

    def share(self) -> None:
        """Let others in; they are."""

    def close(self) -> None:
        """Leave."""


@contextmanager
def _presence(storage: str) -> Iterator[_Presence | _Unknown]:
    try:
        presence = _Unknown() if _is_url(storage) else _Presence(Path(storage))
    except OSError as error:
        raise ConfigError(f"--storage {storage}: cannot be written: {error.strerror}") from error
    try:
        yield presence
    finally:
        presence.close()


def _is_url(storage: str) -> bool:
    return "://" in storage
