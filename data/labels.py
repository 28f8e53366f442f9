"""Read the cells of a target column: what is missing, a number, a yes or no, a set of labels."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from functools import cached_property

from data.errors import TaskError
from data.manifest import Manifest
from data.tables import shorten

_MISSING = frozenset({"", "nan", "null", "<na>"})
_TRUTH = {"true": "1", "false": "0"}


class LabelColumn:
    """One target column.

    Parameters
    ----------
    manifest
        The samples.
    name
        The column.

    Attributes
    ----------
    cells : list of str or None
        The cells without the blanks around them; None where the label is missing.
    written : list of bool
        Whether the cell holds anything: ``nan`` is missing but written, an empty cell is not.
    """

    def __init__(self, manifest: Manifest, name: str) -> None:
        self.manifest, self.name = manifest, name
        stripped = [None if cell is None else cell.strip() for cell in manifest.column(name)]
        self.cells = [None if cell is None or cell.casefold() in _MISSING else cell for cell in stripped]
        self.written = [bool(cell) for cell in stripped]

    @cached_property
    def distinct(self) -> set[str]:
        """The different labels, as written."""
        return {cell for cell in self.cells if cell is not None}

    @cached_property
    def numbers(self) -> set[float] | None:
        """The different numbers, or None if this is no column of numbers."""
        numbers = [as_number(cell) for cell in self.distinct if not is_none(cell)]
        known = {number for number in numbers if number is not None}
        return known if known and len(numbers) == sum(number is not None for number in numbers) else None

    @property
    def is_binary(self) -> bool:
        """Whether all labels are 0 or 1."""
        return all(as_truth(cell) is not None or is_none(cell) for cell in self.distinct)

    def is_quantity(self, most: int) -> bool:
        """Return whether these are numbers that are not all whole, or more than `most` different ones."""
        numbers = self.numbers
        return numbers is not None and (len(numbers) > most or not all(number.is_integer() for number in numbers))

    def fail(self, positions: Iterable[int], expected: str) -> TaskError:
        """Return the error that these cells are not what was expected."""
        wrong = list(positions)
        rows = shorten((f"row {self.manifest.rows[at]}: {self.cells[at]!r}" for at in wrong), len(wrong))
        return TaskError(f"{self.manifest.path}, column {self.name!r}: expected {expected}; found {rows}")

    def refuse_infinite(self) -> None:
        """Refuse infinities among numbers: without them, this would be a column of numbers."""
        infinite = {cell for cell in self.distinct if is_infinite(cell)}
        rest = [cell for cell in self.distinct - infinite if not is_none(cell)]
        if infinite and rest and all(as_number(cell) is not None for cell in rest):
            wrong = (at for at, cell in enumerate(self.cells) if cell in infinite)
            raise self.fail(wrong, "finite numbers, or an empty cell where the value is unknown")

    def refuse_empty(self) -> None:
        """Refuse a column without any label."""
        if not self.distinct:
            raise TaskError(
                f"{self.manifest.path}, column {self.name!r}: no sample has a label; all {len(self.cells)} are missing"
            )


def as_number(cell: str) -> float | None:
    """Return a finite number, or None; ``1_000`` is a name, though Python reads it as a number."""
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in cell else None


def is_infinite(cell: str) -> bool:
    """Return whether a cell is an infinite number: ``inf``, ``-Infinity``, ``1e999``."""
    try:
        return math.isinf(float(cell))
    except ValueError:
        return False


def as_truth(cell: str) -> float | None:
    """Return 0.0 or 1.0 (also for false and true), or None."""
    number = as_number(_TRUTH.get(cell.casefold(), cell))
    return number if number in (0.0, 1.0) else None


def as_class(number: float) -> str:
    """Return one name for one number, so that 1, 1.0 and 01 are one class."""
    return str(int(number)) if number.is_integer() else repr(number)


def is_none(cell: str) -> bool:
    """Return whether the cell says ``none``, which is a missing number but may be the name of a class."""
    return cell.casefold() == "none"


def split_labels(cell: str, delimiter: str) -> list[str]:
    """Return the labels of a delimited cell."""
    return [label.strip() for label in cell.split(delimiter) if label.strip()]


def normal(word: str) -> str:
    """Return a word without regard to letter case, blanks, ``_`` and ``-``."""
    return re.sub(r"[\s_-]+", " ", word).strip().casefold()
