"""The command line: tables, files, going on, and one clear line with exit code 2."""

import json

import numpy as np
import pytest

from comparisons.__main__ import main
from comparisons.harness import results
from comparisons.knn import adapters, suites


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A user's own file, in a directory of its own."""
    monkeypatch.chdir(tmp_path)
    np.save("mine.npy", np.random.default_rng(0).standard_normal((400, 8)).astype(np.float32))
    return tmp_path


def run(*arguments):
    return main(["run", "--threads", "1", "--repeats", "2", "--rivals", "flat,ivf", *arguments])


def test_a_users_data_gives_a_table_a_file_and_a_recommendation(mine, capsys):
    pytest.importorskip("faiss")
    assert run("--suite", "knn", "--data", "mine.npy", "--recall", "0.8") == 0
    out = capsys.readouterr().out
    assert "| mine | faiss flat" in out
    assert "mine (360 x 8), recall@10 of 0.8, 40 queries: " in out
    (path,) = (mine / "results").glob("knn-*.json")
    content = results.read(path)
    assert content["complete"]
    assert content["sessions"][0]["command"].endswith("--data mine.npy --recall 0.8")
    assert {r["rival"] for rows in content["steps"].values() for r in rows} == {"dci", "faiss flat", "faiss IVF"}


def test_an_interrupted_run_says_so_and_goes_on(mine, capsys, monkeypatch):
    pytest.importorskip("faiss")
    measure = adapters.FaissIVF.query
    monkeypatch.setattr(adapters.FaissIVF, "query", lambda *a, **b: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run("--data", "mine.npy", "--out", "run.json") == 130
    assert "keeps what was measured" in capsys.readouterr().err
    kept = json.loads((mine / "run.json").read_text())["steps"]
    assert kept
    monkeypatch.setattr(adapters.FaissIVF, "query", measure)
    assert run("--data", "mine.npy", "--out", "run.json") == 2
    assert "exists: --resume" in capsys.readouterr().err
    assert run("--data", "mine.npy", "--out", "run.json", "--resume") == 0
    assert kept.items() <= json.loads((mine / "run.json").read_text())["steps"].items()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "speed"], "unknown suite 'speed'"),
        (["--rivals", "annoy"], "unknown rival 'annoy'"),
        (["--data", "nothing.npy"], "unknown data set 'nothing.npy'"),
        (["--data", "cut.npy"], "cannot read cut.npy"),
        (["--data", "flat.npy"], "expected a numeric (n, d) array"),
        (["--data", "mine.npy", "--resume"], "nothing to resume"),
        (["--data", "mine.npy", "--out", "mine.npy/run.json"], "cannot write mine.npy/run.json"),
        (["--data", "mine.npy", "--resume", "--out", "cut.npy"], "cannot read cut.npy as a run"),
    ],
)
def test_what_the_user_can_put_right_is_one_line_and_code_2(mine, capsys, arguments, message):
    (mine / "cut.npy").write_bytes((mine / "mine.npy").read_bytes()[:500])
    np.save("flat.npy", np.ones(100))
    assert main(["run", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "option", [["--recall", "2"], ["--recall", "x"], ["--threads", "0"], ["--repeats", "-1"], ["--what"]]
)
def test_wrong_options_are_code_2(option, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["run", *option])
    assert stopped.value.code == 2


def test_a_missing_package_is_one_line_and_code_2(mine, capsys, monkeypatch):
    monkeypatch.setattr(adapters, "installed", lambda rival: False)
    monkeypatch.setitem(__import__("sys").modules, "lorann", None)
    assert main(["run", "--rivals", "lorann", "--data", "mine.npy"]) == 2
    assert "pip install lorann" in capsys.readouterr().err


def test_everything_is_listed(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for name in (*suites.SUITES, *adapters.RIVALS, "glove", "manifold-<n>k-<intrinsic>-<dim>"):
        assert name in out


def test_without_pytorch_all_but_attention_is_listed(capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert "pip install torch" in out
    assert "faiss IVF" in out
    assert main(["run", "--suite", "attention_layers", "--smoke"]) == 2
