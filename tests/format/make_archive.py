"""Write the frozen archive of the current format version; run once per version, never again.

``python tests/format/make_archive.py`` refuses to touch an archive that exists: what a release has
written must be readable for ever, so the bytes in the repository are the contract.
"""

from __future__ import annotations

import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

ARCHIVES = Path(__file__).parent / "archives"
sys.path.insert(0, str(Path(__file__).parents[2]))

from data.digest import Keys, as_keys, content_key  # noqa: E402
from featurestore.hdf5 import export_hdf5  # noqa: E402
from featurestore.layout import VERSION  # noqa: E402
from featurestore.maintenance import compact  # noqa: E402
from featurestore.spec import EncoderSpec  # noqa: E402
from featurestore.store import FeatureStore  # noqa: E402

DENSE = EncoderSpec(
    family="toy",
    modality="image",
    architecture={"name": "toy", "layers": [1, 2]},
    weights="0" * 64,
    preprocess={"size": 224, "mean": [0.5, 0.5, 0.5]},
    layer="projection",
    pooling="native",
    precision="fp16",
    dtype="float16",
    dim=5,
)
RAGGED = EncoderSpec(
    family="toy",
    modality="text",
    architecture={"name": "toy"},
    weights="1" * 64,
    preprocess={"tokenizer": "wörter"},
    layer="last_hidden_state",
    pooling="tokens",
    precision="fp32",
    dtype="float32",
    dim=3,
)
PROBE = np.arange(10, dtype=np.float32).reshape(2, 5) - 4
COUNT = 20


def keys(numbers: range) -> Keys:
    """Return the keys of samples known by number."""
    return as_keys(content_key(str(number).encode()) for number in numbers)


def vectors(numbers: range, dim: int) -> np.ndarray:
    """Return the embeddings of samples known by number: exact in float16."""
    return np.array([[number + column / 8 for column in range(dim)] for number in numbers], np.float32).reshape(-1, dim)


def bag_length(number: int) -> int:
    """Return the number of vectors of a ragged sample."""
    return number % 3


def fill(path: Path) -> FeatureStore:
    """Make a store that has everything the format knows."""
    store = FeatureStore(path, create=True)
    dense = store.open(DENSE, name="toy:image")
    store.open(DENSE, name="local-dir:copy of toy")
    dense.set_probe(PROBE)
    # Two parts, a replaced one, and a sample in both: the first counts.
    for start, stop, shift in [(0, 6, 0), (4, 12, 100), (12, COUNT, 0)]:
        numbers = range(start, stop)
        with dense.writer(written_by={"encoder": "toy:image", "torch": "2.15"}) as writer:
            names = [f"sample {number} ü" for number in numbers]
            writer.add(keys(numbers), vectors(numbers, 5) + shift * (np.arange(start, stop)[:, None] < 6), names)
        if stop == 12:
            compact(dense)
    bags = store.open(RAGGED, name="toy:text", ragged=True)
    lengths = [bag_length(number) for number in range(COUNT)]
    with bags.writer(written_by={"encoder": "toy:text"}) as writer:
        writer.add(
            keys(range(COUNT)),
            np.repeat(vectors(range(COUNT), 3), lengths, axis=0),
            [str(number) for number in range(COUNT)],
            offsets=np.concatenate([[0], np.cumsum(lengths)]),
        )
    store.ledger(dense.group).add(
        content_key(b"broken"), id="broken", source="broken.png", kind="truncated", message="broken.png: cut short"
    )
    return store


def main() -> None:
    """Write ``archives/v<version>/store.zip`` and ``features.h5``."""
    target = ARCHIVES / f"v{VERSION}"
    target.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        store = fill(Path(folder) / "store")
        export_hdf5(store.features(), target / "features.h5")
        with zipfile.ZipFile(target / "store.zip", "x", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(store.path.rglob("*")):
                archive.write(path, path.relative_to(store.path))


if __name__ == "__main__":
    main()
