"""Which views of a study are used: drawn by seed, epoch and row, one at least, all of them in evaluation."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.views import ViewChoice


def drawn(choice: ViewChoice, count: int, rows: int = 4000) -> list[list[int]]:
    return [choice.used(count, row=row, epoch=3).tolist() for row in range(rows)]


def test_without_options_every_view_is_used() -> None:
    assert drawn(ViewChoice(), 4, rows=20) == [[0, 1, 2, 3]] * 20


def test_the_draw_of_a_limit_is_what_it_was() -> None:
    """Runs of this seed have seen these views; new options must not change them."""
    choice = ViewChoice(limit=3, seed=7)
    for row in range(20):
        expected = np.sort(np.random.default_rng([7, 2, row]).choice(9, 3, replace=False))
        assert choice.used(9, row=row, epoch=2).tolist() == expected.tolist()
    assert choice.used(3, row=0, epoch=2).tolist() == [0, 1, 2]


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("dropout", [0.3, 0.95])
def test_views_are_left_out_by_chance_and_one_stays(count: int, dropout: float) -> None:
    found = drawn(ViewChoice(dropout=dropout), count)
    assert all(each and each == sorted(set(each)) for each in found)
    # A view is used where it was not left out, or where all were and it is the one that stays.
    expected = 1 - dropout + dropout**count / count
    for view in range(count):
        share = np.mean([view in each for each in found])
        assert share == pytest.approx(expected if count > 1 else 1, abs=4 * np.sqrt(0.25 / len(found)))


def test_a_study_is_seen_by_one_view_by_chance_any_as_likely() -> None:
    found = drawn(ViewChoice(single=0.3), 4)
    alone = [each[0] for each in found if len(each) == 1]
    assert len(alone) / len(found) == pytest.approx(0.3, abs=0.03)
    assert np.bincount(alone) / len(alone) == pytest.approx([0.25] * 4, abs=0.05)
    assert {len(each) for each in found} == {1, 4}


def test_both_and_a_limit_together() -> None:
    found = drawn(ViewChoice(limit=3, single=0.3, dropout=0.3), 10)
    lengths = np.bincount([len(each) for each in found], minlength=4) / len(found)
    several = [0, 3 * 0.3**2 * 0.7 + 0.3**3, 3 * 0.3 * 0.7**2, 0.7**3]
    assert lengths == pytest.approx(0.3 * np.eye(4)[1] + 0.7 * np.array(several), abs=0.03)


def test_draws_follow_from_seed_epoch_and_row() -> None:
    choice = ViewChoice(single=0.3, dropout=0.5, seed=1)

    def all_of(choice: ViewChoice, epoch: int) -> list[list[int]]:
        return [[*choice.used(8, row=row, epoch=epoch), choice.one(8, row=row, epoch=epoch)] for row in range(30)]

    assert all_of(choice, 0) == all_of(choice, 0)
    assert all_of(choice, 0) != all_of(choice, 1)
    assert all_of(choice, 0) != all_of(ViewChoice(single=0.3, dropout=0.5, seed=2), 0)


def test_any_view_may_be_the_one_seen_alone() -> None:
    found = [ViewChoice().one(4, row=row, epoch=0) for row in range(2000)]
    assert np.bincount(found) / len(found) == pytest.approx([0.25] * 4, abs=0.04)


def test_evaluation_uses_all_views_or_evenly_spaced_ones() -> None:
    choice = ViewChoice(limit=4, single=0.9, dropout=0.9, seed=5)
    assert choice.used(4, row=0, epoch=None).tolist() == [0, 1, 2, 3]
    assert choice.used(10, row=0, epoch=None).tolist() == [0, 3, 6, 9]
    assert ViewChoice(dropout=0.9).used(6, row=0, epoch=None).tolist() == list(range(6))
