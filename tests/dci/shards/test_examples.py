"""The scripts of docs/sharding.md, run as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import dci

BLOCKS = re.findall(
    r"^```python\n(.*?)^```", (Path(__file__).parents[3] / "docs" / "sharding.md").read_text(), re.MULTILINE | re.DOTALL
)


def the_block(pattern):
    """The block of the document with a line of that pattern, which has to be one."""
    (text,) = (block for block in BLOCKS if re.search(pattern, block, re.MULTILINE))
    return text


def run(text, path, *arguments):
    path.write_text(text)
    done = subprocess.run(
        [sys.executable, path, *arguments], capture_output=True, text=True, timeout=120, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("library", ["joblib", "ray"])
def test_another_library(library, assert_neighbours, tmp_path):
    """Twenty lines with another library."""
    pytest.importorskip(library)
    text = the_block(rf"^(import|from) {library}\b")
    assert len([line for line in text.splitlines() if line]) <= 20
    found = tmp_path / "found.npz"
    run(f"{text}np.savez({str(found)!r}, *nearest, X, Q)\n", tmp_path / "script.py")
    distances, indices, X, Q = np.load(found).values()
    assert_neighbours((distances, indices), X, Q, 10)


def test_dask(tmp_path):
    """Fits, saves, kills, reloads and asks."""
    output = run(the_block("^from distributed import Client, LocalCluster"), tmp_path / "script.py", tmp_path / "kept")
    for what in ("fitted", "with a worker lost", "loaded"):
        assert re.search(rf"^{what}: recall (0\.9[5-9]|1\.0)\d*, 2000 of 2000 neighbours$", output, re.M), output
    assert "added: [ True]" in output
    assert "loaded by one worker: <ShardedDCI l2, 8000 x 64, 4 shards>" in output
    shards = [dci.load(path) for path in (tmp_path / "kept").glob("shard-*.dci")]
    assert len(shards) == 4
    assert sum(map(len, shards)) == 8000
