"""Indexes in files, in pickles and as copies."""

import copy
import errno
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path
from unittest import mock

import joblib
import numpy as np
import pytest
from sklearn.base import clone

import dci
from dci._store import codec, container
from tests.dci.store.indexes import KINDS, fitted, make, make_calibrated, points
from tests.processes import run_script, succeed

CONTENTS = Path(__file__).with_name("mutate_contents.py")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "index.dci"


def same_parameter(one, other):
    if isinstance(one, np.random.Generator):
        return one.bit_generator.state == other.bit_generator.state
    return np.array_equal(one, other) and isinstance(one, str) == isinstance(other, str)


def assert_same(one, other):
    """Parameters, points, and what is answered."""
    assert repr(one) == repr(other)
    mine, its = one.get_params(), other.get_params()
    assert all(same_parameter(mine[name], its[name]) for name in mine | its)
    assert np.array_equal(one.ids, other.ids)
    assert (one.n_points, one.dim, one.nbytes) == (other.n_points, other.dim, other.nbytes)
    if one._version is None:
        assert other._version is None
        return
    queries = points(30, 6, one.dim or 2)
    for options in ({}, {"recall": 1.0}, {"max_candidates": 9, "max_visits": 100}):
        expected, found = one.query(queries, 5, **options), other.query(queries, 5, **options)
        assert np.array_equal(expected.indices, found.indices)
        assert np.array_equal(expected.distances, found.distances)
    assert one.stats_ == other.stats_
    if len(one):
        assert np.array_equal(one.get(one.ids), other.get(one.ids))


def change(index):
    """Add enough to be put into cells, remove and update; return the index."""
    added = index.add(points(300, 11, index.dim))
    index.remove(added[::7])
    index.update(added[1:3], points(2, 12, index.dim))
    return index


# ---- round trips ----


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_index_is_the_saved_one(path, kind, mmap):
    index = make(kind)
    index.save(path)
    data = path.read_bytes()
    loaded = dci.load(path, mmap=mmap)
    assert_same(index, loaded)
    dci.verify(path)
    again = path.with_name("again.dci")
    make_pickle = pickle.dumps(loaded)
    loaded.save(again)
    assert again.read_bytes() == data
    assert_same(index, pickle.loads(make_pickle))
    if len(index) and index.random_state is not None:
        assert_same(change(index), change(loaded))
    assert path.read_bytes() == data, "the file or its map was written to"


@pytest.mark.parametrize("kind", ["quantized", "ip, max", "cosine", "float"])
def test_calibrations_come_along(path, kind):
    index = make_calibrated(kind)
    index.save(path)
    loaded = dci.load(path)
    engine, other = index._version.engine, loaded._version.engine
    assert engine.calibrations.keys() == other.calibrations.keys() != set()
    for key, calibration in engine.calibrations.items():
        assert np.array_equal(calibration.visits, other.calibrations[key].visits)
        assert calibration.budget(10, 0.9) == other.calibrations[key].budget(10, 0.9)


def test_what_was_fitted_stays_after_set_params(path):
    index = make("reset")
    expected = index.query(points(20, 6), 5)
    index.save(path)
    loaded = dci.load(path)
    assert loaded.metric == "cosine"
    assert loaded.stats_.metric == "l2"
    assert np.array_equal(loaded.query(points(20, 6), 5).distances, expected.distances)
    assert loaded.fit(points(200)).stats_.metric == "cosine"


def test_a_generator_goes_on_where_it_was(path):
    index = make("generator")
    index.save(path)
    loaded = dci.load(path)
    assert loaded.random_state is not index.random_state
    assert loaded.random_state.integers(2**60) == index.random_state.integers(2**60)


@pytest.mark.parametrize("state", [np.random.RandomState(0), np.random.Generator(np.random.MT19937(0))])
def test_other_generators_are_refused_before_anything_is_written(path, state):
    index = dci.DCI(random_state=state).fit(points(50))
    with pytest.raises(dci.InvalidTypeError, match="random_state: expected .* PCG64"):
        index.save(path)
    assert not path.exists()


# ---- maps ----


def test_two_processes_map_one_file(path):
    index = make("changed")
    index.save(path)
    expected = index.query(points(30, 6), 5)
    script = f"""
        import sys
        import numpy as np
        import dci
        sys.path.insert(0, {str(Path(__file__).parents[3])!r})
        from tests.dci.store.indexes import points

        index = dci.load({str(path)!r}, mmap=True)
        print("open", flush=True)
        sys.stdin.readline()
        print(index.query(points(30, 6), 5).indices.tolist())
    """
    processes = []
    for _ in range(2):
        process = run_script_with_input(script)
        assert process.stdout.readline() == "open\n"
        processes.append(process)
    path.unlink()  # while both have it
    for process in processes:
        output, errors = process.communicate("\n", timeout=60)
        assert process.returncode == 0, errors
        assert output.strip() == str(expected.indices.tolist())


def run_script_with_input(script):
    with mock.patch.object(
        subprocess, "Popen", lambda *args, popen=subprocess.Popen, **kw: popen(*args, stdin=subprocess.PIPE, **kw)
    ):
        return run_script(script)


def test_a_replaced_file_stays_mapped(path):
    index = make("quantized")
    index.save(path)
    mapped = dci.load(path, mmap=True)
    fitted(400, metric="ip").save(path)
    assert_same(index, mapped)
    mapped.save(path)  # over the one that was put there
    assert_same(index, dci.load(path))


@pytest.mark.alone
def test_a_map_is_opened_without_reading_its_points(path):
    n, dim = 20_000, 256
    dci.DCI(recall=1).fit(np.ones((n, dim), np.float32)).save(path)
    script = f"""
        import resource
        import dci
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        index = dci.load({str(path)!r}, mmap=True)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    assert int(succeed(script)) * 1024 < n * dim * 4 / 4


# ---- copies ----


def through_joblib(index):
    file = io.BytesIO()
    joblib.dump(index, file)
    return joblib.load(io.BytesIO(file.getvalue()))


def through_cloudpickle(index):
    return pickle.loads(pytest.importorskip("cloudpickle").dumps(index))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, through_joblib, through_cloudpickle])
@pytest.mark.parametrize("kind", ["unfitted", "exact", "changed", "max", "generator", "ip, queries"])
def test_copies_are_independent(copied, kind):
    index = make(kind)
    other = copied(index)
    assert_same(index, other)
    if len(index):
        before = index.ids
        change(other)
        assert np.array_equal(index.ids, before)
        change(index)
        assert np.array_equal(index.ids, other.ids)


def test_a_pickle_holds_the_points_once():
    X = points(5000, dim=64)
    index = dci.DCI(n_simple=4, random_state=0).fit(X)
    assert len(pickle.dumps(index)) <= 1.3 * X.nbytes
    changed = pickle.loads(pickle.dumps(index))
    changed.remove(np.arange(10))
    changed.add(X[:5])
    assert len(pickle.dumps(changed)) <= 1.3 * X.nbytes


def test_sklearns_clone_has_the_parameters_only():
    index = make("array")
    other = clone(index)
    assert other._version is None
    assert np.array_equal(other.directions, index.directions)


# ---- what fails ----


@pytest.fixture
def saved(path):
    index = make("changed")
    index.save(path)
    return index


def assert_kept(saved, path):
    assert_same(saved, dci.load(path))
    assert os.listdir(path.parent) == [path.name]


def test_a_full_disk_leaves_the_old_file(saved, path):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with mock.patch.object(os, "writev", full), pytest.raises(OSError, match="No space left"):
        make("quantized").save(path)
    assert_kept(saved, path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_directory_leaves_the_old_file(saved, path):
    path.parent.chmod(0o555)
    try:
        with pytest.raises(PermissionError):
            make("quantized").save(path)
        assert_kept(saved, path)
    finally:
        path.parent.chmod(0o755)


def test_a_directory_is_no_file(tmp_path):
    with pytest.raises(OSError, match="directory"):
        make("quantized").save(tmp_path)
    with pytest.raises(dci.FileFormatError, match="expected a regular file"):
        dci.load(tmp_path)


@pytest.mark.parametrize("mmap", [False, True])
def test_a_missing_file(path, mmap):
    with pytest.raises(FileNotFoundError):
        dci.load(path, mmap=mmap)
    with pytest.raises(FileNotFoundError):
        dci.verify(path)


def test_damage_is_seen(saved, path):
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    with pytest.raises(dci.FileFormatError, match="checksum"):
        dci.load(path)
    dci.load(path, mmap=True)
    with pytest.raises(dci.FileFormatError, match="checksum"):
        dci.verify(path)


def test_a_newer_content_is_refused(saved, path):
    meta, sections = codec.encode(saved._content())
    container.write(path, meta | {"content_version": 3}, sections)
    with pytest.raises(dci.FileFormatError, match="content_version: expected at most 2.* received 3"):
        dci.load(path)


@pytest.mark.parametrize("kind", ["changed", "exact", "cosine"])
def test_content_before_there_were_stores_is_float32(kind, path):
    index = make_calibrated(kind)
    meta, sections = codec.encode(index._content())
    for group, name in (("settings", "store"), ("params", "store"), ("engine", "ceilings")):
        meta[group] = {key: value for key, value in meta[group].items() if key != name}
    container.write(path, meta | {"content_version": 1}, sections)
    assert_same(index, dci.load(path))


@pytest.mark.parametrize(
    ("section", "value"),
    [
        ("points.steps", -1.0), ("points.steps", np.nan), ("points.steps", 1e37), ("points.offsets", np.inf),
        ("points.offsets", 1e30), ("points.steps", 0.0), ("points", None), ("points.steps", None),
        ("points.offsets", None),
    ],
)  # fmt: skip
def test_codes_that_would_not_be_read_as_finite_numbers_are_refused(section, value, path):
    meta, sections = codec.encode(make("int8")._content())
    sections[section] = sections[section].copy()
    sections[section].flat[3] = 0 if value is None else value
    if value is None:
        del sections[section]
    container.write(path, meta, sections)
    with pytest.raises(dci.FileFormatError, match="points"):
        dci.load(path)


@pytest.mark.parametrize(
    ("bits", "step"), [(0x7C00, 1.0), (0x7E00, 1.0), (0x7BFF, 1.0), (1, 1e-40), (1, 0.0), (1, 1e38)]
)
def test_halves_too(bits, step, path):
    meta, sections = codec.encode(make("float16")._content())
    halves = sections["points"].copy()
    halves[3, 1] = np.uint16(bits).view(np.float16)
    container.write(path, meta, sections | {"points": halves, "points.steps": np.array([step], np.float32)})
    with pytest.raises(dci.FileFormatError, match="points"):
        dci.load(path)


def test_points_of_another_store_than_the_parameters_are_refused(path):
    meta, sections = codec.encode(make("int8")._content())
    meta["params"] = meta["params"] | {"store": "float16"}
    container.write(path, meta, sections)
    with pytest.raises(dci.FileFormatError, match="expected float16, as in params.store"):
        dci.load(path)


def test_a_container_that_is_no_index(path):
    container.write(path, {"metric": "l2"}, {"points": np.ones((3, 2), np.float32)})
    with pytest.raises(dci.FileFormatError, match="kind: expected 'dci index', received None"):
        dci.load(path)
    path.write_text("id,x,y\n1,2,3\n")
    with pytest.raises(dci.FileFormatError, match="expected a file that begins with"):
        dci.load(path)


# ---- contents that were forged ----


def write_changed(path, kind, meta=(), **sections):
    """Save an index with other values, meta as (group, key, value), sections as functions of the old one."""
    content, arrays = codec.encode(make(kind)._content())
    for group, key, value in meta:
        (content[group] if group else content)[key] = value
    for name, function in sections.items():
        name = name.replace("__", ".")
        arrays[name] = function(arrays.get(name))
    container.write(path, content, {name: array for name, array in arrays.items() if array is not None})


def put(position, value):
    def function(array):
        array = array.copy()
        array[position] = value
        return array

    return function


@pytest.mark.parametrize(
    ("kind", "meta", "sections", "message"),
    [
        ("quantized", [("ranker", "quantized", 1)], {}, "ranker.quantized: expected true or false, received 1"),
        ("max", [("ranker", "quantized", True)], {}, "ranker.quantized: expected false"),
        ("quantized", [("", "calibrations", 3)], {}, "calibrations: expected a list"),
        ("quantized", [("", "calibrations", [[0, 0]])], {}, "at least one neighbour"),
        ("quantized", [("engine", "growth", 1e308)], {}, "engine.growth: expected a number from 1"),
        ("quantized", [("engine", "absmax", 10**400)], {}, "engine.absmax: expected a number"),
        ("quantized", [("settings", "random_state", {"bit_generator": "PCG64"})], {}, "random_state: expected a state"),
        ("quantized", [("settings", "random_state", -1)], {}, "settings: expected those of DCI"),
        ("no points", [("settings", "directions", [[64, 0]])], {}, "directions: expected a str"),
        ("no points", [("params", "directions", [[64, 0]])], {}, "directions: expected a str"),
        ("quantized", [("settings", "verbose", "no")], {}, "settings.verbose: expected true or false"),
        ("quantized", [("settings", "more", 1)], {}, "settings: expected metric"),
        ("quantized", [("points", "next_id", 601)], {}, "points.next_id: expected 600, received 601"),
        ("quantized", [("upkeep", "n_indexed", 599)], {}, "cells.rows"),
        ("emptied", [("params", "n_simple", 2**40)], {}, "directions"),
        ("quantized", [], {"cells__sizes": put(0, 0)}, "cells.sizes: expected the numbers of rows"),
        ("quantized", [], {"cells__rows": put(0, 600)}, "cells.rows: expected ints from -1 to 599"),
        ("quantized", [], {"cells__rows": put(0, 5)}, "cells.rows: expected each row"),
        ("quantized", [], {"cells__first_panel": put(1, 10**6)}, "cells.first_panel: expected ascending"),
        ("quantized", [], {"cells__bias": lambda bias: np.where(np.isinf(bias), 0, bias)}, "expected infinity where"),
        ("max", [], {"cells__coordinates": lambda a: np.where(np.isinf(a), 0, a)}, "expected infinity where"),
        ("quantized", [], {"cells__steps": lambda _: None}, "cells.steps: expected float32 of shape"),
        ("quantized", [], {"cells__centers": put((0, 0, 0), np.nan)}, "cells.centers: expected finite"),
        ("quantized", [], {"points": put((3, 1), np.inf)}, "points: expected finite numbers"),
        ("quantized", [], {"points": put((3, 1), 1e9)}, "points: expected numbers up to"),
        ("quantized", [], {"ranker__for_queries": put((0, 0), np.nan)}, "for_queries: expected finite"),
        ("quantized", [], {"known": put((0, 0), 600)}, None),
        ("changed", [], {"ids": put(4, 5)}, None),
        ("changed", [], {"gone": put(1, 2)}, "gone: expected ints from 0 to 1"),
        ("queries", [], {"queries": lambda queries: queries[:, :3].copy()}, "queries: expected float32"),
        ("array", [], {"directions": lambda _: None}, "directions: expected float32"),
    ],
)
def test_parts_that_do_not_fit_are_refused(path, kind, meta, sections, message):
    if message is None:
        message = next(iter(sections))
    if kind == "quantized" and "known" in sections:
        make_known(path, sections["known"])
    else:
        write_changed(path, kind, meta, **sections)
    with pytest.raises(dci.FileFormatError, match=message) as caught:
        dci.load(path)
    assert str(caught.value).startswith(f"{path}: ")


def make_known(path, function):
    meta, arrays = codec.encode(make("quantized")._content())
    known = np.zeros((1, 1), np.int64)
    container.write(path, meta, arrays | {"known": function(known)})


def run_contents(count, seed=0):
    """In a process of its own, since the worst that a file can do is a crash."""
    done = subprocess.run(
        [sys.executable, CONTENTS, str(count), str(seed)],
        env=os.environ | {"DCI_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=3000,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {what: int(number) for number, what in (line.split(maxsplit=1) for line in done.stdout.splitlines())}


def test_forged_contents_are_refused_or_work():
    outcomes = run_contents(300)
    assert sum(outcomes.values()) == 300
    assert outcomes["refused"] > 100
    assert outcomes["loaded"] > 30


@pytest.mark.slow
def test_many_forged_contents_are_refused_or_work():
    assert sum(run_contents(1_700, 1).values()) == 1_700
