"""The documents say what the program does."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import util
from pathlib import Path

import cli

ROOT = Path(__file__).resolve().parents[2]


def generator():
    spec = util.spec_from_file_location("generate_cli", ROOT / "docs" / "generate_cli.py")
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_reference_is_up_to_date() -> None:
    written = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert written.split() == generator().reference().split(), "run: python docs/generate_cli.py"


def test_every_command_is_in_the_reference() -> None:
    commands = {command.name or command.callback.__name__ for command in cli.app.registered_commands}
    store = {f"store {command.name}" for command in cli.store_app.registered_commands}
    assert commands | store == set(generator().COMMANDS)


def test_links_in_the_documents_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    heavy = (
        "torch",
        "transformers",
        "open_clip",
        "timm",
        "sklearn",
        "lightgbm",
        "optuna",
        "zarr",
        "scipy",
        "matplotlib",
        "soundfile",
        "soxr",
    )
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import cli; code = cli.run(['--help']); "
        f"print([name for name in {heavy!r} if name in sys.modules], code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[] 0"), done.stdout
