"""The report: what it says, that it needs nothing but itself, and that nothing in a run can break it."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from data.task import Task
from heads.errors import RunError
from heads.pages.page import Html, element, table
from heads.pages.report import write_plots, write_report
from heads.pages.sections import metric_name
from heads.record import RunRecord

VOID = {"meta", "img", "br", "line", "circle"}


class Outline(HTMLParser):
    """Collects elements, text and links, and checks that every element is closed where it was opened."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.words, self.attributes = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.attributes.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return "".join(self.words)


def read(path):
    return Outline(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel", "regression"])
def test_every_kind_of_run_gets_a_whole_page(make_run, kind):
    run = make_run(kind, splits=(("cv", 90), ("test", 70)), n_boot=20)
    plots = write_plots(run)
    page = read(write_report([run], run / "report.html"))
    record = RunRecord.read(run)
    assert page.elements.count("img") == len(plots)
    assert page.elements.count("h1") == 1
    for words in (
        "Results",
        "Data",
        "Features and head",
        "How to reproduce",
        record.command,
        "c0ffeec0ffee",
        "In brackets",
    ):
        assert words in page.text
    assert ("Thresholds" in page.text) == bool(record.thresholds)
    headline = record.metrics["test"][{"binary": "roc_auc", "regression": "mae"}.get(kind, "macro_f1")]
    assert f"{headline['value']:.3f} [{headline['low']:.3f}, {headline['high']:.3f}]" in page.text


def test_the_page_loads_nothing(make_run):
    run = make_run("multiclass", splits=(("cv", 90),), n_boot=5)
    write_plots(run)
    page = read(write_report([run], run / "report.html"))
    policy = next(a["content"] for tag, a in page.attributes if tag == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'")
    assert "script" not in page.elements
    assert "link" not in page.elements
    for tag, attributes in page.attributes:
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("data:image/png;base64,", "#")), tag
    style = re.search(r"<style>(.*?)</style>", (run / "report.html").read_text(), re.DOTALL).group(1)
    assert "url(" not in style
    assert "@import" not in style


def test_every_picture_says_what_it_shows(make_run):
    run = make_run("binary", splits=(("cv", 90), ("test", 70)), n_boot=5)
    write_plots(run)
    pictures = [a for tag, a in read(write_report([run], run / "report.html")).attributes if tag == "img"]
    assert len({picture["alt"] for picture in pictures}) == len(pictures)
    assert any(re.match(r"ROC, test: .*; 0\.\d{3} \[", picture["alt"]) for picture in pictures)
    assert all(int(picture["width"]) <= 960 for picture in pictures)


def test_nothing_in_a_run_is_taken_for_markup(make_run):
    evil = "<script>alert(1)</script>"
    task = Task(kind="multiclass", targets=(evil,), classes=(evil, '"quoted" & more', "plain"))
    run = make_run("multiclass", task=task, splits=(("cv", 60),), n_boot=5, command=evil, warnings=(evil,), head=evil)
    write_plots(run)
    page = read(write_report([run, run], run / "report.html"))
    assert "script" not in page.elements
    assert page.text.count(evil) > 5
    assert '"quoted" & more' in page.text


def test_what_a_reader_must_know_comes_before_the_numbers(make_run):
    run = make_run(
        "multilabel",
        splits=(("cv", 60), ("test", 40)),
        n_boot=5,
        warnings=("leakage allowed: 133 near-duplicates",),
        counts={
            "samples": 100,
            "groups": 50,
            "splits": {},
            "dropped": {"no label": {"count": 7, "ids": []}, "not in the store": {"count": 2, "ids": []}},
        },
    )
    text = read(write_report([run], run / "report.html")).text
    assert text.index("133 near-duplicates") < text.index("Results")
    assert "9 samples were left out (no label: 7; not in the store: 2)" in text
    assert "macro averages leave out" in text


def test_undefined_metrics_are_named_with_their_reason(make_run):
    run = make_run("binary", splits=(("cv", 60), ("test", 2)), n_boot=5, seed=4)
    text = read(write_report([run], run / "report.html")).text
    assert re.search(r"Test: ROC AUC.* needs positives and negatives", text)


def test_runs_are_compared_best_first_and_linked(make_run):
    runs = [
        make_run("binary", name=head, head=head, seed=seed, splits=(("cv", 90), ("test", 70)), n_boot=10)
        for seed, head in enumerate(("linear", "knn", "gbm"))
    ]
    page = read(write_report(runs, runs[0].parent / "out/report.html"))
    values = {run.name: RunRecord.read(run).metrics["test"]["roc_auc"]["value"] for run in runs}
    best_first = sorted(values, key=lambda name: -values[name])
    targets = [a["href"] for tag, a in page.attributes if tag == "a"]
    anchors = {a["id"]: None for tag, a in page.attributes if tag == "h2"}
    assert set(targets) == {f"#{anchor}" for anchor in anchors}
    assert sorted(best_first, key=page.text.index) == best_first
    assert page.elements.count("circle") == 3


def test_runs_on_other_samples_are_compared_with_a_warning(make_run):
    one = make_run("binary", name="one", splits=(("cv", 60),), n_boot=5)
    two = make_run("binary", name="two", splits=(("cv", 60),), n_boot=5, manifest_digest="0" * 64)
    text = read(write_report([one, two], one.parent / "report.html")).text
    assert "different manifests" in text
    assert "linear (one)" in text


def test_runs_of_different_kinds_stand_side_by_side_uncompared(make_run):
    one, two = make_run("binary", name="one", n_boot=5), make_run("regression", name="two", n_boot=5)
    text = read(write_report([one, two], one.parent / "report.html")).text
    assert "share no kind of task" in text


def test_a_directory_that_is_no_run_is_refused(make_run, tmp_path):
    run = make_run("binary", splits=(("cv", 60),), n_boot=5)
    with pytest.raises(RunError, match="not a run directory"):
        write_report([run, tmp_path], tmp_path / "report.html")
    with pytest.raises(RunError, match="at least one"):
        write_report([], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_an_unwritable_page_is_one_clear_line(make_run, tmp_path):
    run = make_run("binary", splits=(("cv", 60),), n_boot=5)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        write_report([run], tmp_path / "file" / "report.html")


def test_elements_escape_text_and_attributes():
    assert element("p", "a < b", Html("<b>x</b>"), title='"') == '<p title="&quot;">a &lt; b<b>x</b></p>'
    assert "&lt;i&gt;" in table(["", "<i>"], [["a", "b"]], label="l")


@pytest.mark.parametrize(
    ("metric", "name"),
    [("roc_auc", "ROC AUC"), ("macro_f1", "Macro F1"), ("pearson_r", "Pearson r"), ("r2", "R²"), ("ece", "ECE")],
)
def test_metrics_are_named_as_people_write_them(metric, name):
    assert metric_name(metric) == name
