"""Write docs/cli.md from the commands themselves: ``python docs/generate_cli.py``."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

COMMANDS = (
    "extract", "fit-head", "zero-shot", "tune", "compare", "difference", "finetune", "evaluate", "predict", "report",
    "store ls", "store info", "store verify", "store gc", "store compact", "store export", "store import",
    "encoders", "heads", "doctor", "demo",
)  # fmt: skip


def reference() -> str:
    """Return the reference of all commands as Markdown."""
    os.environ["COLUMNS"] = "110"
    os.environ["TERMINAL_WIDTH"] = "110"
    import cli

    parts = ["# Commands\n\nWritten by `python docs/generate_cli.py`.\n"]
    for name in COMMANDS:
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            cli.run([*name.split(), "--help"])
        parts.append(f"## frostline {name}\n\n```\n{text.getvalue().strip()}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    Path(__file__).with_name("cli.md").write_text(reference(), encoding="utf-8")
