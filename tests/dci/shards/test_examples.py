"""The examples of shards, run as they stand, and as docs/sharding.md shows them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import dci

ROOT = Path(__file__).parents[3]
BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "sharding.md").read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("library", ["joblib", "ray"])
def test_the_document(library, assert_neighbours, tmp_path):
    """Twenty lines with another library, run as they stand."""
    pytest.importorskip(library)
    (text,) = (block for block in BLOCKS if re.search(rf"^(import|from) {library}\b", block, re.MULTILINE))
    assert len([line for line in text.splitlines() if line]) <= 20
    script, found = tmp_path / "script.py", tmp_path / "found.npz"
    script.write_text(f"{text}np.savez({str(found)!r}, *nearest, X, Q)\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, env=os.environ)
    assert done.returncode == 0, done.stderr
    distances, indices, X, Q = np.load(found).values()
    assert_neighbours((distances, indices), X, Q, 10)


def test_the_script(tmp_path):
    """Fits, saves, kills, reloads and asks."""
    command = [sys.executable, str(ROOT / "examples" / "sharded.py"), "--points", "8000", "--directory", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ)
    assert done.returncode == 0, done.stderr
    for what in ("fitted", "with a worker lost", "loaded"):
        assert re.search(rf"^{what}: recall (0\.9[5-9]|1\.0)\d*, 2000 of 2000 neighbours$", done.stdout, re.M), (
            done.stdout
        )
    assert "added: [ True]" in done.stdout
    assert "loaded by one worker: <ShardedDCI l2, 8000 x 64, 4 shards>" in done.stdout
    assert len(list(tmp_path.glob("shard-*.dci"))) == 4
    assert sum(len(dci.load(path)) for path in tmp_path.glob("shard-*.dci")) == 8000
