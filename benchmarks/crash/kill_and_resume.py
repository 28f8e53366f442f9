"""Kill `frostline extract` with SIGKILL at random moments, resume, and compare with an uninterrupted run.

::

    python benchmarks/crash/kill_and_resume.py --kills 50

The extraction runs in a process of its own, through a small encoder that is slowed down so that kills
land in reading, encoding, writing and committing alike. After the last kill one run is left alone. The
store must then hold the very values of an uninterrupted run, none lost and none twice.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
ENCODER = f"py:{Path(__file__).resolve().parent / 'slow_encoder.py'}:load"


def write_pictures(folder: Path, count: int) -> Path:
    """Write small random pictures with a manifest."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = ["id,path"]
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, size=(24, 24, 3), dtype=np.uint8)).save(folder / "images" / f"{i}.png")
        rows.append(f"s{i},images/{i}.png")
    manifest = folder / "manifest.csv"
    manifest.write_text("\n".join(rows) + "\n")
    return manifest


def start(manifest: Path, store: Path) -> subprocess.Popen[bytes]:
    """Start one extraction that commits four times a second."""
    arguments = ["extract", str(manifest), "--store", str(store), "--encoder", ENCODER, "--batch-size", "7"]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "cli.py"), *arguments, "--flush-seconds", "0.25", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def values(store: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return all keys and vectors of a store in key order."""
    from featurestore.store import FeatureStore

    (features,) = FeatureStore(store).features()
    keys, x = features.load()
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    return keys[order], x[order]


def committed(store: Path) -> int:
    """Return how many samples are committed, 0 if there is no store yet."""
    from featurestore.store import FeatureStore

    if not (store / "features.zarr" / "zarr.json").exists():
        return 0
    return sum(len(features) for features in FeatureStore(store).features())


def first_commit(process: subprocess.Popen[bytes], store: Path, before: int) -> float:
    """Wait until an extraction has committed something new or ended; return the seconds since the call."""
    began = time.monotonic()
    while process.poll() is None and committed(store) == before and time.monotonic() - began < 60:
        time.sleep(0.05)
    return time.monotonic() - began


def run(kills: int, count: int, seed: int) -> dict[str, object]:
    """Return what the kills did and whether the values are equal."""
    rng = random.Random(seed)
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory(prefix="frostline-kill-") as scratch:
        folder = Path(scratch)
        manifest = write_pictures(folder / "data", count)
        whole = start(manifest, folder / "whole")
        warm = first_commit(whole, folder / "whole", 0)
        out, err = whole.communicate()
        if whole.returncode != 0:
            raise SystemExit(err.decode())
        seconds = json.loads(out)["seconds"]
        done, progress, lost = 0, [], 0
        while done < kills:
            before = committed(folder / "killed")
            if before == count:
                # A complete store cannot be killed in the middle of anything: begin another one.
                _, x = values(folder / "killed")
                lost += not np.array_equal(x, values(folder / "whole")[1])
                (folder / "killed").rename(folder / f"complete-{done}")
                before = 0
            process = start(manifest, folder / "killed")
            if rng.random() < 0.3:
                time.sleep(rng.uniform(0, warm))  # while it starts, or before anything is committed
            else:
                first_commit(process, folder / "killed", before)
                time.sleep(rng.uniform(0, seconds / 3))  # in the middle of encoding, writing, committing
            process.send_signal(signal.SIGKILL)
            process.communicate()
            after = committed(folder / "killed")
            lost += after < before
            done += 1
            progress.append(after - before)
        last = start(manifest, folder / "killed")
        out, err = last.communicate()
        if last.returncode != 0:
            raise SystemExit(err.decode())
        keys, x = values(folder / "killed")
        whole_keys, whole_x = values(folder / "whole")
        return {
            "kills": done,
            "kills_after_progress": sum(step > 0 for step in progress),
            "samples": count,
            "stored": len(keys),
            "stores_that_lost_rows": lost,
            "equal_bytes": bool(np.array_equal(keys, whole_keys) and np.array_equal(x, whole_x)),
        }


def main() -> None:
    """Run and exit with 1 unless everything is equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    result = run(options.kills, options.count, options.seed)
    print(json.dumps(result, indent=2))
    whole = result["equal_bytes"] and result["stored"] == options.count and not result["stores_that_lost_rows"]
    sys.exit(0 if whole else 1)


if __name__ == "__main__":
    main()
