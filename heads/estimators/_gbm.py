"""What boosted heads share: bins made once for heads that learn from the same rows, targets and members."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from threading import Lock
from typing import Any, ClassVar, Self

import lightgbm as lgb
import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from heads.base import Context, Floats, Head, HeadState, Range, SearchSpace, Training
from heads.errors import HeadError
from heads.folds import side_by_side
from heads.many import Job
from heads.together import checked, prepared, sharing
from heads.training.members import Course, inner_splits, mean_history

FEATURES_PER_TREE = 20
"""At least so many features are tried for a tree where `feature_fraction` is ``auto``."""
SMALLEST_FRACTION = 0.05

# LightGBM writes to stdout by itself; whatever it has to say goes where the application's log goes.
lgb.register_logger(logging.getLogger("lightgbm"))


class BoostedHead(Head):
    """What the two heads share: the parameters of the trees, and one boosting per target and member.

    Attributes
    ----------
    models_
        LightGBM's text of each model: all members of the first target, then of the second, and so on.
    best_rounds_
        Number of rounds kept of each model.
    history_
        ``train_loss`` and ``monitor_loss`` after every round, means over the models; one that has
        stopped counts as it is kept.
    """

    learning_rate: float
    num_leaves: int
    min_leaf: int
    l2: float
    feature_fraction: float | str
    max_bin: int
    max_rounds: int
    patience: int
    validation_fraction: float
    members: int
    random_state: int

    name = "gbm"
    varied: ClassVar[frozenset[str]] = frozenset(
        {
            *("learning_rate", "num_leaves", "min_leaf", "l2", "feature_fraction", "max_rounds", "patience"),
            *("validation_fraction", "members", "loss", "huber_delta"),
        }
    )

    @classmethod
    def search_space(cls) -> SearchSpace:
        """Return the parameters worth searching, with their bounds."""
        return {
            "learning_rate": Range(0.02, 0.3, log=True),
            "num_leaves": Range(3, 31, log=True),
            "min_leaf": Range(2, 40, log=True),
            "l2": Range(0.1, 100.0, log=True),
            "feature_fraction": Range(0.01, 1.0, log=True),
        }

    @property
    def feature_importances_(self) -> NDArray[np.float64]:
        """Share of each feature in the total gain of all splits, shape (d,); all 0 if nothing was split."""
        check_is_fitted(self)
        gain = np.sum([model.feature_importance("gain") for model in self._boosters], axis=0)
        share: NDArray[np.float64] = gain / max(gain.sum(), np.finfo(np.float64).tiny)
        return share

    def get_state(self) -> HeadState:
        """Return everything learned; the models as texts."""
        state = super().get_state()
        models = state.meta.pop("models_", [])
        return replace(state, texts={f"model-{i:04d}.txt": text for i, text in enumerate(models)})

    @classmethod
    def from_state(cls, params: Mapping[str, Any], state: HeadState) -> Self:
        """Return the fitted head that `get_params` and `get_state` described."""
        head = super().from_state(params, state)
        head._keep([state.texts[name] for name in sorted(state.texts)])
        return head

    def _keep(self, models: list[str]) -> None:
        self.models_ = models
        self._boosters = [lgb.Booster(model_str=text) for text in models]

    @classmethod
    def fit_together(
        cls,
        jobs: Sequence[Job],
        X: Any,
        y: NDArray[Any],
        *,
        groups: NDArray[Any] | None = None,
        context: Context | None = None,
    ) -> Iterator[Head | HeadError]:
        """Yield the head of each job; those that learn from the same rows share their bins, and each runs by itself."""
        work: list[tuple[int, _Shared, int]] = []
        for positions in sharing(jobs, cls.varied):
            shared = _Shared([jobs[position] for position in positions], X=X, y=y, groups=groups, context=context)
            work += [(position, shared, place) for place, position in enumerate(positions)]
        done: dict[int, Head | HeadError] = {}
        position = 0
        fitted = side_by_side(lambda each: each[1].fit(each[2]), work, torch_threads=False)
        for (own, _, _), head in zip(work, fitted, strict=True):
            done[own] = head
            while position in done:
                yield done.pop(position)
                position += 1

    def _fit(self, training: Training) -> None:
        self._learn(training, self._bins(training))

    @abstractmethod
    def _learn(self, training: Training, bins: lgb.Dataset) -> None:
        """Learn from rows that are binned."""

    def _bins(self, training: Training) -> lgb.Dataset:
        """Return the binned features of the rows."""
        return lgb.Dataset(training.X, params=self._binning(), free_raw_data=False).construct()

    def _boost(
        self, training: Training, bins: lgb.Dataset, y: NDArray[Any], weight: NDArray[np.float64], **settings: Any
    ) -> None:
        """Fit all members of all targets, the columns of `y`."""
        monitors = inner_splits(
            self, training, fraction=self.validation_fraction, members=self.members, seed=self.random_state
        )
        params = self._parameters(training.X.shape[1]) | settings
        models, courses = [], []
        for values, known in zip(y.T, weight.T, strict=True):
            for member, monitor in enumerate(monitors):
                parts = [_part(bins, values, known, (known > 0) & held) for held in (~monitor, monitor)]
                text, course = self._boost_one(params | {"seed": self._seed(member)}, parts)
                models.append(text)
                courses.append(course)
        self._keep(models)
        self.best_rounds_ = [course.best + 1 for course in courses]
        self.history_ = mean_history(courses)

    def _boost_one(self, params: dict[str, Any], parts: list[lgb.Dataset | None]) -> tuple[str, Course]:
        """Return one model, cut at its best round, and the way there."""
        train, monitor = parts
        losses: dict[str, dict[str, list[float]]] = {}
        callbacks = [lgb.record_evaluation(losses)]
        if monitor is not None:
            callbacks.append(lgb.early_stopping(self.patience, verbose=False))
        sets = {"train": train} | ({} if monitor is None else {"monitor": monitor})
        model = lgb.train(
            params,
            train,
            num_boost_round=self.max_rounds,
            valid_sets=list(sets.values()),
            valid_names=list(sets),
            callbacks=callbacks,
        )
        rounds = model.best_iteration if monitor is not None else model.current_iteration()
        series: dict[str, Sequence[float | None]] = {f"{name}_loss": next(iter(losses[name].values())) for name in sets}
        series.setdefault("monitor_loss", [None] * len(series["train_loss"]))
        return model.model_to_string(num_iteration=rounds), Course(series, rounds - 1)

    def _parameters(self, features: int) -> dict[str, Any]:
        fraction = self.feature_fraction
        if fraction == "auto":
            fraction = min(1.0, max(SMALLEST_FRACTION, FEATURES_PER_TREE / features))
        return self._binning() | {
            "learning_rate": self.learning_rate,
            "num_leaves": self.num_leaves,
            "min_data_in_leaf": self.min_leaf,
            "lambda_l2": self.l2,
            "feature_fraction": fraction,
        }

    def _binning(self) -> dict[str, Any]:
        """Return what bins depend on, and how LightGBM works; LightGBM wants it to be the same of bins and trees."""
        return {
            "max_bin": self.max_bin,
            # The bins are shared by targets, members and heads, so no feature is dropped for the sake of one of them.
            "feature_pre_filter": False,
            # Fits run side by side, one per core; by columns, unused features cost nothing.
            "num_threads": 1,
            "force_col_wise": True,
            "deterministic": True,
            "verbosity": -1,
        }

    def _seed(self, member: int) -> int:
        return int(np.random.SeedSequence([self.random_state, member]).generate_state(1)[0] >> 1)

    def _outputs(self, X: Floats) -> NDArray[np.float64]:
        """Return the members' mean prediction of each target, shape (T, n) or (T, n, C)."""
        outputs = np.stack([model.predict(X) for model in self._boosters])
        means: NDArray[np.float64] = outputs.reshape(-1, self.members, *outputs.shape[1:]).mean(axis=1)
        return means


def _part(
    binned: lgb.Dataset, values: NDArray[Any], weight: NDArray[np.float64], rows: NDArray[np.bool_]
) -> lgb.Dataset | None:
    """Return some rows of binned features with the labels and weights of one target; None for no rows."""
    chosen = np.flatnonzero(rows)
    if not len(chosen):
        return None
    # Labels given before the subset is constructed are lost.
    return binned.subset(chosen).construct().set_label(values[chosen]).set_weight(weight[chosen])


class _Shared:
    """What heads share that learn from the same rows: made by the first of them, forgotten by the last."""

    def __init__(self, jobs: Sequence[Job], **data: Any) -> None:
        self._job, self._data = jobs[0], data
        self._heads = [checked(job.head) for job in jobs]
        self._left = len(jobs)
        self._made: tuple[Training, lgb.Dataset] | None = None
        self._lock = Lock()

    def fit(self, place: int) -> Head | HeadError:
        """Fit one of the heads; called once for each, from several threads."""
        head = self._heads[place]
        try:
            if isinstance(head, BoostedHead):
                training, bins = self._training()
                if training.y.size:
                    head._learn(training, bins)
        except HeadError as error:
            return error
        finally:
            with self._lock:
                self._left -= 1
                if not self._left:
                    self._made = None
        return head

    def _training(self) -> tuple[Training, lgb.Dataset]:
        with self._lock:
            if self._made is None:
                heads = [head for head in self._heads if isinstance(head, BoostedHead)]
                training = prepared(heads, self._job, **self._data)
                self._made = training, heads[0]._bins(training)
            return self._made
