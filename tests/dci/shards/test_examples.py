"""The examples of shards, run as they stand, and as docs/sharding.md shows them."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import dci

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted((Path(__file__).parent / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_runs(example, assert_neighbours):
    pytest.importorskip(example.stem.removeprefix("with_"))
    names = runpy.run_path(str(example))
    assert_neighbours(names["nearest"], names["X"], names["Q"], 10)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_is_in_the_document(example):
    text = example.read_text()
    assert f"```python\n{text}```" in (ROOT / "docs" / "sharding.md").read_text()
    assert len([line for line in text.splitlines() if line]) <= 20


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
