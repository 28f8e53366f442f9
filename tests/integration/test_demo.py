"""`demo` with one head: real digits, real weights, a report that stands alone; the second run encodes nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from featurestore.image_encoder import ImageEncoder
from heads.demo import DemoResult, run_demo

DIGITS = 1797

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[Path, DemoResult]:
    """The demo's directory and its first result."""
    out = tmp_path_factory.mktemp("demo")
    return out, run_demo(out, heads={"knn": {}})


def test_the_demo_encodes_every_digit_and_reads_them(demo) -> None:
    out, result = demo
    assert result.extraction.failures == ()
    assert result.extraction.encoded + result.extraction.duplicates == DIGITS
    assert len(list((out / "digits" / "images").glob("*.png"))) == DIGITS
    record = json.loads((out / "runs" / "knn" / "record.json").read_text(encoding="utf-8"))
    assert record["leakage"]["clean"]
    assert record["counts"]["samples"] == DIGITS
    accuracy = record["metrics"]["test"]["accuracy"]
    assert accuracy["low"] < accuracy["value"] < accuracy["high"]
    assert accuracy["low"] > 0.8  # chance is 0.1
    assert re.search(rf"knn.*{accuracy['value']:.3f}|{accuracy['value']:.3f}.*knn", result.table, re.DOTALL)


def test_the_report_needs_nothing_else(demo) -> None:
    out, result = demo
    assert result.report == out / "report.html"
    page = result.report.read_text(encoding="utf-8")
    sources = re.findall(r'\ssrc="([^"]*)"', page)
    assert len(sources) >= 3
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    links = re.findall(r'\shref="([^"]*)"', page)
    assert all(link.startswith(("#", "data:")) for link in links), links
    assert not re.search(r"<(link|script|iframe)\b[^>]*\b(src|href)=", page)
    assert "@import" not in page
    assert "url(http" not in page


def test_a_second_demo_encodes_nothing(demo, monkeypatch) -> None:
    out, first = demo
    predictions = (out / "runs" / "knn" / "predictions.csv").read_bytes()

    def refuse(*_: object) -> None:
        raise AssertionError("the encoder was asked although everything is stored")

    monkeypatch.setattr(ImageEncoder, "encode", refuse)
    monkeypatch.setattr(ImageEncoder, "encode_reference", refuse)
    second = run_demo(out, heads={"knn": {}})
    assert second.extraction.encoded == 0
    assert second.extraction.cached == first.extraction.encoded
    assert second.extraction.fingerprint == first.extraction.fingerprint
    assert (out / "runs" / "knn" / "predictions.csv").read_bytes() == predictions
