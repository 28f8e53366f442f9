from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from data.errors import ManifestError, TaskError
from data.manifest import Manifest
from data.sources import read_manifest
from data.task import Kind, Task, count_classes, encode_targets, labelled, read_task

NAN = np.nan


def manifest(**columns: Sequence[object]) -> Manifest:
    n = len(next(iter(columns.values())))
    return Manifest(
        path=Path("m.csv"),
        columns={name: tuple(None if cell is None else str(cell) for cell in cells) for name, cells in columns.items()},
        ids=tuple(f"s{i}" for i in range(n)),
        sources=(None,) * n,
        input="text",
        modality="text",
        rows=tuple(range(2, n + 2)),
    )


class TestOneColumn:
    @pytest.mark.parametrize(
        ("cells", "kind", "classes", "y"),
        [
            (["dog", "cat", None, "dog"], "binary", ("cat", "dog"), [1, 0, -1, 1]),
            ([" b ", "a", "c", "nan"], "multiclass", ("a", "b", "c"), [1, 0, 2, -1]),
            (["1", "0.0", "NaN", "1.0"], "binary", ("0", "1"), [1, 0, -1, 1]),
            (["10", "9", "null", "2"], "multiclass", ("2", "9", "10"), [2, 1, -1, 0]),
            (["2", "1", "none", "1"], "binary", ("1", "2"), [1, 0, -1, 0]),
            (["none", "glioma", "", "other"], "multiclass", ("glioma", "none", "other"), [1, 0, -1, 2]),
            (["True", "False", None, "True"], "binary", ("False", "True"), [1, 0, -1, 1]),
        ],
    )
    def test_classes(self, cells: list[str | None], kind: Kind, classes: tuple[str, ...], y: list[int]) -> None:
        task, codes = read_task(manifest(label=cells), ["label"])
        assert (task.kind, task.classes, task.targets) == (kind, classes, ("label",))
        assert codes.tolist() == y
        assert codes.dtype == np.int64
        assert labelled(codes).tolist() == [code >= 0 for code in y]

    @pytest.mark.parametrize("cells", [["0.5", "1", "2", None], [*map(str, range(21)), None]])
    def test_quantities(self, cells: list[str | None]) -> None:
        task, y = read_task(manifest(score=cells), ["score"])
        assert (task.kind, task.classes) == ("regression", ())
        np.testing.assert_array_equal(y, [NAN if cell is None else float(cell) for cell in cells])
        assert y.dtype == np.float64

    @pytest.mark.parametrize("infinite", ["inf", "-Infinity", "1e999"])
    @pytest.mark.parametrize("kind", ["auto", "regression"])
    def test_an_infinite_number_is_named_by_row_and_column(self, infinite: str, kind: Kind) -> None:
        with pytest.raises(TaskError, match=rf"m\.csv, column 'age': expected .*finite.*found row 3: '{infinite}'"):
            read_task(manifest(age=["1.5", infinite, "", "none", "2"]), ["age"], kind=kind)
        task, _ = read_task(manifest(word=["inf", "sup", "inf"]), ["word"])
        assert task.classes == ("inf", "sup"), "among words it is a word"

    def test_twenty_whole_numbers_are_classes(self) -> None:
        task, _ = read_task(manifest(grade=[*range(20), 1]), ["grade"])
        assert task.kind == "multiclass"
        assert task.classes[-1] == "19"

    def test_delimited(self) -> None:
        task, y = read_task(manifest(f=["B|A", "A", "", "no_finding", "nan"]), ["f"], empty="negative")
        assert (task.kind, task.classes) == ("multilabel", ("A", "B"))
        np.testing.assert_array_equal(y, [[1, 1], [1, 0], [0, 0], [0, 0], [NAN, NAN]])
        assert y.dtype == np.float32
        assert count_classes(task, y) == {"A": 2, "B": 1}

    @pytest.mark.parametrize(("words", "empty"), [(["A|B", "A"], 0.0), (["A|B", "No Finding"], NAN)])
    def test_empty_cell_is_unknown_only_beside_the_word(self, words: list[str], empty: float) -> None:
        _, y = read_task(manifest(f=[*words, None]), ["f"])
        np.testing.assert_array_equal(y[-1], [empty, empty])

    def test_other_delimiter_and_words(self) -> None:
        task, y = read_task(manifest(f=["A, B", "fine"]), ["f"], delimiter=",", negative=["Fine"])
        assert task.classes == ("A", "B")
        np.testing.assert_array_equal(y, [[1, 1], [0, 0]])

    def test_positive_class_is_last(self) -> None:
        cells = ["abnormal", "normal"]
        assert read_task(manifest(x=cells), ["x"])[0].classes == ("abnormal", "normal")
        assert read_task(manifest(x=cells), ["x"], positive="abnormal")[0].classes == ("normal", "abnormal")
        assert read_task(manifest(x=["0", "1"]), ["x"], positive="0.0")[0].classes == ("1", "0")
        with pytest.raises(TaskError, match="no class 'abnorml' to be positive; did you mean 'abnormal'"):
            read_task(manifest(x=cells), ["x"], positive="abnorml")
        with pytest.raises(TaskError, match="only a binary task has one"):
            read_task(manifest(x=["a", "b", "c"]), ["x"], positive="a")

    def test_kind_can_be_insisted_on(self) -> None:
        assert read_task(manifest(x=[0, 1, 2]), ["x"], kind="regression")[1].tolist() == [0, 1, 2]
        assert read_task(manifest(x=[0, 1, 0]), ["x"], kind="multiclass")[0].kind == "multiclass"
        task, y = read_task(manifest(x=["1", "0", None]), ["x"], kind="multilabel")
        assert task.classes == ("x",)
        np.testing.assert_array_equal(y, [[1], [0], [NAN]])

    @pytest.mark.parametrize(
        ("cells", "kind", "message"),
        [
            (["1", "two", "3"], "regression", r"column 'x': expected a finite number; found row 3: 'two'"),
            (["1", "inf", "3.5"], "regression", r"row 3: 'inf'"),
            (["1", "1_000"], "regression", r"row 3: '1_000'"),
            (["a", "b", "c"], "binary", r"a binary task has 2 classes, found 3: a, b, c"),
            (["a", "a", None], "auto", r"all 2 labels are 'a'; there is nothing to tell apart"),
            (["1.5", "1.5"], "regression", r"all 2 known values are equal"),
            (["nan", None, ""], "auto", r"no sample has a label; all 3 are missing"),
            (["A|No Finding", "A"], "auto", r"either labels or one of No Finding, None, not both; found row 2"),
            (["No Finding", "none"], "multilabel", r"no row has a label"),
            ([f"name{i}" for i in range(30)], "auto", r"all 30 labels differ, as names do"),
            (["a", "b"], "multi-label", r"no kind of task is called 'multi-label'; did you mean 'multilabel'"),
        ],
    )
    def test_refusals(self, cells: list[str | None], kind: Kind, message: str) -> None:
        with pytest.raises(TaskError, match=message):
            read_task(manifest(x=cells), ["x"], kind=kind)


class TestSeveralColumns:
    def test_zeros_and_ones_are_multilabel(self) -> None:
        task, y = read_task(manifest(b=["1", "0.0", None], a=["true", "nan", "False"]), ["b", "a"])
        assert (task.kind, task.classes, task.outputs, task.delimiter) == ("multilabel", ("b", "a"), ("b", "a"), None)
        np.testing.assert_array_equal(y, [[1, 1], [0, NAN], [NAN, 0]])

    def test_numbers_are_regression(self) -> None:
        task, y = read_task(manifest(a=["1.5", "2", None], b=["1", "0", None]), ["a", "b"])
        assert (task.kind, task.outputs) == ("regression", ("a", "b"))
        np.testing.assert_array_equal(y, [[1.5, 1], [2, 0], [NAN, NAN]])
        assert labelled(y).tolist() == [True, True, False]
        assert count_classes(task, y) == {"a": 2, "b": 2}

    def test_uncertain_labels_are_not_taken_for_numbers(self) -> None:
        with pytest.raises(TaskError, match=r"column 'b': expected 0 and 1 .*; found row 3: '-1'"):
            read_task(manifest(a=["1", "0"], b=["0", "-1"]), ["a", "b"])

    @pytest.mark.parametrize(
        ("targets", "kind", "message"),
        [
            ([], "auto", "no target named"),
            (["a", "a"], "auto", "named twice: a"),
            (["a", "b"], "binary", "has one target column, 2 were named"),
            (["a", "b"], "multilabel", r"column 'b': expected 0, 1 or an empty cell; found row 3: 'x'"),
            (["a", "empty"], "auto", "column 'empty': no sample has a label"),
        ],
    )
    def test_refusals(self, targets: list[str], kind: Kind, message: str) -> None:
        table = manifest(a=["1", "0"], b=["1", "x"], empty=[None, ""])
        with pytest.raises(TaskError, match=message):
            read_task(table, targets, kind=kind)

    def test_missing_column_has_a_suggestion(self) -> None:
        with pytest.raises(ManifestError, match="did you mean 'label'"):
            read_task(manifest(label=["a", "b"]), ["lable"])


class TestSavedTask:
    def test_round_trip(self) -> None:
        for table, targets in ((manifest(f=["A|B", ""]), ["f"]), (manifest(f=["a", "b"]), ["f"])):
            task, _ = read_task(table, targets)
            assert Task.from_dict(task.to_dict()) == task
            assert all(not isinstance(value, tuple) for value in task.to_dict().values())

    @pytest.mark.parametrize("record", [{}, {"kind": "ranking", "targets": ["a"]}, {"kind": "binary", "target": "a"}])
    def test_foreign_record(self, record: dict[str, object]) -> None:
        with pytest.raises(TaskError):
            Task.from_dict(record)

    def test_codes_do_not_depend_on_what_the_other_manifest_holds(self) -> None:
        task, _ = read_task(manifest(x=["a", "b", "c"]), ["x"])
        assert encode_targets(task, manifest(x=["c", None, "c"])).tolist() == [2, -1, 2]
        with pytest.raises(TaskError, match=r"expected one of the classes a, b, c; found row 3: 'd'"):
            encode_targets(task, manifest(x=["a", "d"]))

    def test_numbers_match_however_they_are_written(self) -> None:
        task, _ = read_task(manifest(x=["0", "1", "2"]), ["x"])
        assert encode_targets(task, manifest(x=["1.0", "02", "None"])).tolist() == [1, 2, -1]

    def test_meaning_of_empty_cells_is_kept(self) -> None:
        task, _ = read_task(manifest(f=["A|B", "No Finding"]), ["f"])
        np.testing.assert_array_equal(encode_targets(task, manifest(f=["", "B"])), [[NAN, NAN], [0, 1]])

    def test_unknown_label(self) -> None:
        task, _ = read_task(manifest(f=["A|B", ""]), ["f"])
        with pytest.raises(TaskError, match=r"expected labels among A, B; found row 2: 'A\|C'"):
            encode_targets(task, manifest(f=["A|C"]))


@pytest.mark.real_data
def test_delimited_and_0_1_columns_of_nih_agree(datasets: Path) -> None:
    table = read_manifest(datasets / "nih_cxr_multilabel" / "manifest.csv")
    task, y = read_task(table, ["labels"])
    assert len(task.classes) == 14
    np.testing.assert_array_equal(y, read_task(table, task.classes)[1])
