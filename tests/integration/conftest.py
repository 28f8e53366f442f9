from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import cli

TOY = Path(__file__).resolve().parent.parent / "assets" / "toy.py"


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line that an error ends in."""
        return self.err.strip().splitlines()[-1]


@pytest.fixture
def frostline(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run one command in this process."""

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def toy() -> str:
    """The id of the weightless image encoder."""
    return f"py:{TOY}:image"


@pytest.fixture
def toy_text() -> str:
    """The id of the weightless text encoder."""
    return f"py:{TOY}:text"
