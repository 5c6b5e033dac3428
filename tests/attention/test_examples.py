"""The examples that README shows, run as they stand."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_runs(example, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # for the files that they write
    if example.stem == "huggingface":
        pytest.importorskip("transformers")
    names = runpy.run_path(str(example))
    output = names["logits" if example.stem == "huggingface" else "y"]
    assert output.isfinite().all()
    assert ("exact" in capsys.readouterr().out) == (example.stem in ("block", "layers"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_is_in_the_readme(example):
    readme = Path(__file__).parents[2] / "README.md"
    assert f"```python\n{example.read_text()}```" in readme.read_text()
