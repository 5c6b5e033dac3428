"""The command line, in processes of its own."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import dci
from dci.__main__ import main

RNG = np.random.default_rng(0)
X = RNG.standard_normal((300, 6)).astype(np.float32)
Q = RNG.standard_normal((20, 6)).astype(np.float32)


def start(*arguments):
    command = [sys.executable, "-P", "-m", "dci", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(*arguments):
    process = start(*arguments)
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


def succeed(*arguments):
    code, output, errors = run(*arguments)
    assert code == 0, errors
    return output


def fail(capsys, *arguments):
    """Run a command here, which has to fail with one line; return the line."""
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("dci: ")
    assert captured.err.count("\n") == 1
    return captured.err


def refuse(capsys, *arguments):
    """Arguments that the parser does not take."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    assert caught.value.code == 2
    return capsys.readouterr().err


@pytest.fixture
def files(tmp_path):
    np.save(tmp_path / "X.npy", X)
    np.save(tmp_path / "Q.npy", Q)
    return tmp_path


@pytest.fixture
def index(files):
    dci.DCI(random_state=0).fit(X).save(files / "index.dci")
    return files / "index.dci"


def test_from_vectors_to_answers_and_back(files):
    index = files / "index.dci"
    output = succeed(
        "fit", files / "X.npy", index, "--recall", "0.9", "--metric", "cosine", "--queries", files / "Q.npy"
    )
    assert "300 points x 6, cosine" in output
    assert dci.load(index).recall == 0.9
    np.save(files / "more.npy", X[:3] + 5)
    np.save(files / "ids.npy", [7000, 7001, 7002])
    assert "added 3 points, ids 300 to 302; 303 in all" in succeed("add", index, files / "more.npy")
    assert "ids 7000 to 7002; 306 in all" in succeed("add", index, files / "more.npy", "--ids", files / "ids.npy")
    assert "removed 2 points; 304 in all" in succeed("remove", index, "--ids", "0,7001")
    assert "20 queries, 4 neighbours each" in succeed(
        "query", index, files / "Q.npy", "-k", 4, "--out", files / "out.npz"
    )
    expected = dci.load(index).query(Q, 4)
    with np.load(files / "out.npz") as found:
        assert np.array_equal(found["ids"], expected.indices)
        assert np.array_equal(found["distances"], expected.distances)
    assert "304 points x 6, cosine, exact" in succeed("info", index)
    assert "all checksums match" in succeed("verify", index)
    assert sorted(os.listdir(files)) == ["Q.npy", "X.npy", "ids.npy", "index.dci", "more.npy", "out.npz"]


def test_bench_and_true_recall(files, index):
    output = succeed("bench", files / "X.npy", "-k", 5)
    assert "recall@5" in output
    assert output.count("1.0000") == 2
    output = succeed("verify", index, "--data", files / "X.npy", "--queries", files / "Q.npy", "-k", 5)
    assert "recall@5 1.0000 of 20 queries; 0.95 was asked for" in output


def test_true_recall_is_that_of_other_data(capsys, files, index):
    np.save(files / "X.npy", X[:150])
    dci.DCI().fit(X[150:]).save(index)
    assert main(["verify", str(index), "--data", str(files / "X.npy"), "-k", "1"]) == 0
    assert "recall@1 0.0000 of 150" in capsys.readouterr().out


def test_csv(capsys, files, index):
    assert main(["query", str(index), str(files / "Q.npy"), "-k", "3", "--out", str(files / "out.csv")]) == 0
    assert main(["query", str(index), str(files / "Q.npy"), "-k", "3"]) == 0
    printed = capsys.readouterr().out
    assert (files / "out.csv").read_text() in printed
    table = np.loadtxt(files / "out.csv", delimiter=",", skiprows=1)
    expected = dci.load(index).query(Q, 3)
    assert np.array_equal(table[:, 0], np.repeat(np.arange(20), 3))
    assert np.array_equal(table[:, 2], expected.indices.ravel())
    assert np.array_equal(table[:, 3].astype(np.float32), expected.distances.ravel())


def test_answers_that_there_are_not(capsys, files):
    dci.DCI().fit(X[:2]).save(files / "two.dci")
    assert main(["query", str(files / "two.dci"), str(files / "Q.npy"), "-k", "5"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 2 * 20


def test_directories(capsys, files):
    path = files / "store"
    with dci.open(path, sync=False) as index:
        index.fit(X)
    assert main(["add", str(path), str(files / "Q.npy")]) == 0
    assert main(["remove", str(path), "--ids", "5,900", "--ignore-missing"]) == 0
    assert main(["verify", str(path), "--queries", str(files / "Q.npy")]) == 0
    assert main(["info", str(path)]) == 0
    assert "recall@10 1.0000" in capsys.readouterr().out
    with dci.open(path) as index:
        assert len(index) == 319
        assert f"process {os.getpid()}" in fail(capsys, "info", path)


def test_progress_is_asked_for(files):
    for more in ([], ["--verbose"]):
        code, _, errors = run("fit", files / "X.npy", files / "index.dci", *more)
        assert code == 0
        assert ("points" in errors) == bool(more)
    assert not dci.load(files / "index.dci").verbose


@pytest.mark.parametrize("command", ["fit", "query", "add", "remove", "info", "verify", "bench"])
def test_help_has_examples(capsys, command):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    output = capsys.readouterr().out
    assert f"python -m dci {command} " in output.split("examples:")[1]
    assert "Exit codes: 0, 2" in output


# ---- what goes wrong ----


def test_errors_are_one_line(files, index):
    code, output, errors = run("query", files / "none.dci", files / "Q.npy")
    assert (code, output, errors) == (2, "", f"dci: {files / 'none.dci'}: No such file or directory\n")
    assert run("frobnicate")[0] == 2
    assert run()[0] == 2


def test_what_the_user_can_put_right(capsys, files, index):
    X_npy, before = files / "X.npy", index.read_bytes()
    np.save(files / "wide.npy", np.ones((3, 9)))
    np.save(files / "nan.npy", np.full((3, 6), np.nan))
    assert "expected a 2-D array of shape (n, 6)" in fail(capsys, "add", index, files / "wide.npy")
    assert "finite" in fail(capsys, "add", index, files / "nan.npy")
    assert "received 900" in fail(capsys, "remove", index, "--ids", "1,900")
    assert "either a file of them or --ids" in fail(capsys, "remove", index)
    assert "expected a 2-D array of shape (n, 6)" in fail(capsys, "query", index, files / "wide.npy")
    assert "metric" in fail(capsys, "fit", X_npy, index, "--metric", "l3")
    assert "recall" in fail(capsys, "fit", X_npy, index, "--recall", "2")
    assert "num_threads" in fail(capsys, "fit", X_npy, index, "--threads", "0")
    assert "k" in fail(capsys, "query", index, X_npy, "-k", "0")
    assert "expected a name that ends in .npz or .csv" in fail(capsys, "query", index, X_npy, "--out", "o.txt")
    assert "begins with" in fail(capsys, "info", X_npy)
    assert "expected a directory there" in fail(capsys, "fit", X_npy, files / "no" / "where.dci")
    assert "received a directory" in fail(capsys, "fit", X_npy, files)
    assert "expected a file, or a directory made by dci.open" in fail(capsys, "info", files)
    assert "invalid" in refuse(capsys, "remove", index, "--ids", "1,x")
    assert index.read_bytes() == before


def test_an_interrupt(files):
    latent = RNG.standard_normal((400_000, 6), dtype=np.float32)  # so that ranking pays, and fitting takes its time
    np.save(files / "large.npy", np.tanh(latent @ RNG.standard_normal((6, 64), dtype=np.float32)))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what is ignored here is ignored there too
    process = start("fit", files / "large.npy", files / "index.dci", "--verbose", "--recall", "0.99")
    signal.signal(signal.SIGINT, before)
    while not (shown := process.stderr.read(1)):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert shown
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert not (files / "index.dci").exists()


def test_a_reader_that_had_enough(files, index):
    np.save(files / "many.npy", RNG.standard_normal((3000, 6)))
    process = start("query", index, files / "many.npy", "-k", 50)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) == 0
    assert process.stderr.read() == ""
