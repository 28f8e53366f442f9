"""Real data through real weights: commands run in this process, stores shared by the tests of a session."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import cli


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(scope="session")
def frostline() -> Callable[..., Result]:
    """Run one command in this process; unlike pytest's `capsys` it can serve fixtures of a whole session."""

    def run(*arguments: object) -> Result:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.run([str(argument) for argument in arguments])
        return Result(code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture(scope="session")
def extracted(frostline, tmp_path_factory) -> Callable[..., tuple[Path, dict[str, Any]]]:
    """Extract a manifest into a store of its own; return the store and the summary."""

    def extract(manifest: Path, encoder: str, *options: object) -> tuple[Path, dict[str, Any]]:
        store = tmp_path_factory.mktemp("store")
        result = frostline("extract", manifest, "--store", store, "--encoder", encoder, *options, "--json")
        assert result.code == 0, result.err
        return store, result.json

    return extract
