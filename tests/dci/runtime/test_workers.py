"""An index in worker processes: however they start, they answer as their parent does, and can change their copy."""

import subprocess
import sys
import textwrap

import pytest

PREPARED = """
    import warnings
    import numpy as np
    import dci

    warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
    X = np.tanh(np.random.default_rng(0).standard_normal((6000, 32), dtype=np.float32))  # joblib maps what is > 1 MB
    parts = np.array_split(X[:64], 4)

    def make():
        index = dci.DCI(n_simple=8, random_state=0, num_threads=2).fit(X)
        index.add(X[:300] + np.float32(0.5))
        return index

    def ask(index, part):
        found = index.query(part, 5)
        before = len(index)
        assert index.remove(index.add(part)) == len(part) and len(index) == before  # its own copy
        return found.indices, found.distances

    def check(index, answers):
        for part, (indices, distances) in zip(parts, answers, strict=True):
            expected = index.query(part, 5)
            assert np.array_equal(indices, expected.indices) and np.array_equal(distances, expected.distances)
        assert len(index) == 6300
"""


def run(tmp_path, script, *arguments):
    """Run a program from a file, which workers that are spawned import, too."""
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(PREPARED) + textwrap.dedent(script))
    command = [sys.executable, "-P", str(path), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


STARTS = ["spawn", "fork", "forkserver"] if sys.platform == "linux" else ["spawn"]


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("mapped", [False, True], ids=["pickled", "mapped"])
def test_multiprocessing(tmp_path, start, mapped):
    script = """
        import multiprocessing, pathlib, sys

        def ask_file(path, part):
            index = dci.load(path, mmap=True)
            found = index.query(part, 5)
            return found.indices, found.distances

        if __name__ == "__main__":
            _, start, mapped, path = sys.argv
            index = make()
            index.save(path)
            with multiprocessing.get_context(start).Pool(2) as pool:
                work, first = (ask_file, path) if mapped == "True" else (ask, index)
                check(index, pool.starmap(work, [(first, part) for part in parts]))
    """
    run(tmp_path, script, start, mapped, tmp_path / "index.dci")


@pytest.mark.parametrize("backend", ["loky", "multiprocessing", "threading"])
def test_joblib(tmp_path, backend):
    pytest.importorskip("joblib")
    changes = "ask" if backend != "threading" else "lambda index, part: tuple(index.query(part, 5))[::-1]"
    script = f"""
        import sys
        import joblib

        if __name__ == "__main__":
            index, work = make(), {changes}
            check(index, joblib.Parallel(n_jobs=2, backend="{backend}")(joblib.delayed(work)(index, p) for p in parts))
    """
    run(tmp_path, script)


@pytest.mark.parametrize("start", STARTS[:2])
def test_data_loader(tmp_path, start):
    """A dataset that looks neighbours up, in the workers of PyTorch."""
    pytest.importorskip("torch")
    script = """
        import sys
        from torch.utils.data import DataLoader, Dataset

        class Neighbours(Dataset):
            def __init__(self, index):
                self.index = index

            def __len__(self):
                return len(parts)

            def __getitem__(self, i):
                return ask(self.index, parts[i])

        if __name__ == "__main__":
            index = make()
            workers = {"num_workers": 2, "persistent_workers": True, "multiprocessing_context": sys.argv[1]}
            loader = DataLoader(Neighbours(index), batch_size=None, **workers)
            for _ in range(2):  # the second time by copies that have changed and changed back
                check(index, [(indices.numpy(), distances.numpy()) for indices, distances in loader])
    """
    run(tmp_path, script, start)
