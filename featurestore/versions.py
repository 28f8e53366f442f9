"""Which versions of the libraries made what is stored."""

from __future__ import annotations


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that take part in the values."""
    from importlib import metadata

    names = (
        *("torch", "torchvision", "transformers", "open_clip_torch", "timm", "numpy", "scipy"),
        *("pillow", "simplejpeg", "av", "soundfile", "soxr"),
    )
    return {name: metadata.version(name) for name in names}
