"""Every rival: grids that fit the data, and right answers at the greatest effort."""

import sys

import numpy as np
import pytest

from comparisons.data.datasets import ComparisonError, Dataset
from comparisons.harness.results import Run
from comparisons.knn import adapters
from comparisons.knn.adapters import RIVALS, FaissIVF
from comparisons.knn.bench import Bench, Setting

EXACT = ("dci", "exact", "flat", "ivf", "hnsw", "hnswlib", "sklearn")


@pytest.fixture(scope="module")
def wide():
    rows = np.random.default_rng(0).standard_normal((660, 64), dtype=np.float32)
    return Dataset("wide", rows[:600], rows[600:])


@pytest.mark.parametrize("key", RIVALS)
def test_every_rival_answers_and_is_good_at_its_greatest_effort(wide, key):
    rival = RIVALS[key]
    pytest.importorskip(rival.module)
    build = rival.build_grid(*wide.points.shape, 0.9)[-1]
    setting = Setting(rival, build, rival.search_grid(build)[-1])
    (measured,) = Bench(wide, 5, Run(threads=1)).measure([setting])
    assert measured.recall >= (0.999 if key in EXACT else 0.85 if key == "dci" else 0.3)


@pytest.mark.parametrize("key", RIVALS)
def test_single_queries_may_be_asked_in_other_ways(wide, key):
    rival = RIVALS[key]
    pytest.importorskip(rival.module)
    build = rival.build_grid(*wide.points.shape, 0.9)[0]
    for search in rival.single(rival.search_grid(build)[-1]):
        index = rival(1, **build)
        index.fit(wide.points)
        assert index.query(wide.queries[:1], 5, **search).shape == (1, 5)


@pytest.mark.parametrize("key", RIVALS)
@pytest.mark.parametrize(("n", "dim"), [(20, 1), (1_500, 64), (390_000, 784)])
def test_grids_fit_the_data(key, n, dim):
    builds = RIVALS[key].build_grid(n, dim, 0.9)
    assert builds or key == "lorann"
    assert len({str(build) for build in builds}) == len(builds)
    for build in builds:
        assert RIVALS[key].search_grid(build)
        assert 1 <= build.get("nlist", 1) <= n
        assert 1 <= build.get("n_clusters", 1) <= n


@pytest.mark.parametrize("n", [1, 20, 1_500, 390_000])
def test_every_recall_can_be_reached_by_ivf(n):
    for build in FaissIVF.build_grid(n, 8, 0.9):
        probes = [search["nprobe"] for search in FaissIVF.search_grid(build)]
        assert probes == sorted(set(probes))
        assert probes[-1] == build["nlist"]


def test_rivals_are_named_on_the_command_line(monkeypatch):
    pytest.importorskip("faiss")
    assert adapters.named("ivf, hnsw,ivf") == ["dci", "ivf", "hnsw"]
    for text in ("annoy", "", ","):
        with pytest.raises(ComparisonError, match="expected some of dci, exact"):
            adapters.named(text)
    monkeypatch.setattr(adapters, "installed", lambda rival: False)
    monkeypatch.setitem(sys.modules, "lorann", None)
    with pytest.raises(ComparisonError, match="pip install lorann"):
        adapters.named("lorann")
