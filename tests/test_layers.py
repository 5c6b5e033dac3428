"""Who may import whom among the rooms of both packages.

A rule is about the imports of one room. The graph of what modules import while they are loaded has no cycles; what is
imported later stands in a list.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.imports import LATER, PACKAGES, TYPING, Import, cycle, inside, not_at_start, read_imports

ROOT = Path(__file__).parents[1]
# What is not imported when a module is loaded: importer, imported, when.
NOT_AT_START = {
    ("attention", "attention.decoding.cache", TYPING),
    ("attention", "attention.decoding.key_value_index", TYPING),
    ("attention", "attention.integrations.calibration", TYPING),
    ("attention", "attention.integrations.huggingface", TYPING),
    ("attention", "attention.integrations.patching", TYPING),
    ("attention", "attention.modules", TYPING),
    ("attention.integrations.records", "attention.report", TYPING),
    ("dci._api.config", "dci", LATER),  # the version, which dci/__init__.py has
}


class Rule(NamedTuple):
    """Of `packages`, `importer` imports only what lies in the rooms `only`, and nothing in the rooms `never`.

    A room that ends with "!" is that module alone. Stubs may also import from `stubs_too`.
    """

    name: str
    importer: str
    packages: tuple[str, ...]
    only: tuple[str, ...] | None = None
    never: tuple[str, ...] = ()
    stubs_too: tuple[str, ...] = ()
    public: bool = False  # no name and no module behind the room begins with an underscore

    def about(self, imports: Iterable[Import]) -> list[Import]:
        return [i for i in imports if inside(i.importer, self.importer) and i.target.split(".")[0] in self.packages]

    def broken(self, imports: Iterable[Import]) -> list[str]:
        return [f"{found} - {self.name}" for found in self.about(imports) if not self._allows(found)]

    def _allows(self, found: Import) -> bool:
        if any(inside(found.target, room) for room in self.never):
            return False
        if self.only is None:
            return True
        rooms = self.only + (self.stubs_too if found.stub else ())
        room = next((r for r in rooms if found.target + "!" == r or inside(found.target, r)), None)
        if room is None:
            return False
        behind = [*found.target.removeprefix(room.rstrip("!")).split("."), found.name]
        return not self.public or not any(re.match("_(?!_)", part) for part in behind)


ABOVE_SEARCH = ("dci._tuning", "dci._search.dispatch")

RULES = (
    Rule("dci never imports attention", "dci", ("attention",), only=()),
    Rule(
        "dci._native imports only itself, and for its stubs the names of types",
        "dci._native",
        PACKAGES,
        only=("dci._native",),
        stubs_too=("dci._runtime.types",),
    ),
    Rule(
        "dci._runtime imports only itself and the errors",
        "dci._runtime",
        PACKAGES,
        only=("dci._runtime", "dci.errors"),
    ),
    Rule(
        "dci._geometry stands on dci._runtime and dci._native",
        "dci._geometry",
        PACKAGES,
        only=("dci._geometry", "dci._runtime", "dci._native"),
    ),
    *(
        Rule(f"{searcher} knows neither tuning nor dispatch", searcher, ("dci",), never=ABOVE_SEARCH)
        for searcher in ("dci._search.exact", "dci._search.bounded", "dci._search.ranked")
    ),
    Rule(
        "attention._native stands on dci._native, and for its stubs on the names of types",
        "attention._native",
        PACKAGES,
        only=("attention._native", "dci._native"),
        stubs_too=("dci._runtime.types",),
    ),
    Rule(
        "attention._core does not know who calls it",
        "attention._core",
        PACKAGES,
        never=("attention.integrations", "attention.decoding"),
    ),
    Rule(
        "attention.decoding does not know the integrations",
        "attention.decoding",
        PACKAGES,
        never=("attention.integrations",),
    ),
    Rule(
        "attention uses what dci offers, and its floor",
        "attention",
        ("dci",),
        only=("dci!", "dci.errors", "dci._geometry", "dci._runtime", "dci._native"),
        public=True,
    ),
    Rule(
        "shards do not know who runs their tasks",
        "dci._shards",
        PACKAGES,
        never=("dci.dask", "attention"),
    ),
    Rule(
        "files know nothing of indexes",
        "dci._store.directory",
        PACKAGES,
        only=(
            "dci._store.container",
            "dci._store.files",
            "dci._store.journal",
            "dci._store.records",
            "dci._runtime",
            "dci.errors",
            "dci._store!",
        ),
    ),
)


# ---------------------------------------------------------------------------------------------------- the packages


@pytest.fixture(scope="module")
def imports() -> list[Import]:
    return read_imports(ROOT)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_layers(imports, rule):
    broken = rule.broken(imports)
    assert not broken, "\n".join(["", *broken])


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_have_no_cycle(imports, package):
    ring = cycle(imports, package)
    assert not ring, "\n".join(["", *map(str, ring)])


def test_what_is_imported_later_is_listed(imports):
    late = [i for i in not_at_start(imports) if (i.importer, i.target, i.when) not in NOT_AT_START]
    assert not late, "\n".join(["", *map(str, late)])


def test_what_is_listed_is_imported_later(imports):
    gone = NOT_AT_START - {(i.importer, i.target, i.when) for i in not_at_start(imports)}
    assert not gone


def test_imports_are_seen(imports):
    assert {Path(i.where.partition(":")[0]).suffix for i in imports} == {".py", ".pyi", ".pyx", ".pxd"}
    for rule in RULES[1:]:  # of the first there are none
        assert rule.about(imports), rule.name


# ------------------------------------------------------------------------------------- tests of the checks, on fakes

FAKE = {
    "dci/__init__.py": "from .index import DCI",
    "dci/errors.py": "",
    "dci/index.py": "from ._search.dispatch import search\nfrom .errors import E",
    "dci/_runtime/__init__.py": "",
    "dci/_runtime/types.py": "",
    "dci/_runtime/threads.py": "import threading\nfrom ..errors import E\nfrom .types import FloatArray",
    "dci/_native/__init__.py": "",
    "dci/_native/kernels.pyx": "import numpy as np\nfrom libc.stdlib cimport free",
    "dci/_native/kernels.pxd": "",
    "dci/_native/kernels.pyi": "from .._runtime.types import FloatArray",
    "dci/_native/cells.pyx": "from .kernels cimport (\n    LANES,\n    table,\n)",
    "dci/_geometry/__init__.py": "",
    "dci/_geometry/metric.py": "from .._native import kernels\nfrom .._runtime.threads import Work",
    "dci/_search/__init__.py": "",
    "dci/_search/dispatch.py": "from .._tuning.build import build\nfrom . import ranked",
    "dci/_search/exact.py": "from .._geometry.metric import Embedding",
    "dci/_search/ranked.py": "from .exact import block_rows",
    "dci/_store/__init__.py": "",
    "dci/_store/container.py": "",
    "dci/_store/directory.py": "from . import container",
    "dci/_store/codec.py": "from .._tuning.build import build",
    "dci/dask/__init__.py": "",
    "dci/dask/index.py": "from .._shards.shard import Shard",
    "dci/_shards/__init__.py": "",
    "dci/_shards/shard.py": "from ..index import DCI",
    "dci/_tuning/__init__.py": "",
    "dci/_tuning/build.py": "from .._search import exact, ranked",
    "attention/__init__.py": "from .functional import dci_attention",
    "attention/errors.py": "import dci\n\nclass E(dci.E): ...",
    "attention/functional.py": "from ._core.heads import run",
    "attention/modules.py": "",
    "attention/_core/__init__.py": "",
    "attention/_core/heads.py": "from dci._runtime.threads import Work\nfrom .._native import far_field\nimport dci",
    "attention/_native/__init__.py": "",
    "attention/_native/far_field.pyx": "from dci._native.kernels cimport LANES, table",
    "attention/decoding/__init__.py": "",
    "attention/decoding/cache.py": "from .._core.heads import run",
    "attention/integrations/__init__.py": "",
    "attention/integrations/hf.py": "from ..decoding.cache import Cache",
}


def fake(root: Path, **changed: str) -> list[Import]:
    """Imports of a tree that keeps the rules but for the files that are changed."""
    for name, text in (FAKE | changed).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return read_imports(root)


def test_a_tree_that_keeps_the_rules_passes(tmp_path):
    found = fake(tmp_path)
    assert [message for rule in RULES for message in rule.broken(found)] == []
    assert [cycle(found, package) for package in PACKAGES] == [[], []]
    assert not_at_start(found) == []


@pytest.mark.parametrize(
    ("rule", "file", "text", "seen"),
    [
        (0, "dci/errors.py", "import attention", ":1: dci.errors imports attention "),
        (0, "dci/index.py", "def f():\n    from attention.modules import M", ":2: dci.index imports M of attention.m"),
        (0, "dci/index.py", "import importlib\nimportlib.import_module('attention.modules')", ":2: dci.index imports"),
        (0, "dci/_native/cells.pyx", "from attention._native.far_field cimport x", ":1: dci._native.cells imports x"),
        (1, "dci/_native/cells.pyx", "\nfrom .._runtime.types import FloatArray", ":2: dci._native.cells imports Flo"),
        (1, "dci/_native/cells.pyi", "from ..errors import E", "cells.pyi:1: dci._native.cells imports E of dci.e"),
        (1, "dci/_native/cells.pxd", "cimport dci.index as i", "cells.pxd:1: dci._native.cells imports dci.index "),
        (2, "dci/_runtime/threads.py", "from .._native import kernels", ":1: dci._runtime.threads imports dci._nati"),
        (3, "dci/_geometry/metric.py", "from ..errors import E", ":1: dci._geometry.metric imports E of dci.errors"),
        (3, "dci/_geometry/metric.py", "from .._search.exact import x", ":1: dci._geometry.metric imports x of dci._s"),
        (4, "dci/_search/exact.py", "from .. import _tuning", ":1: dci._search.exact imports dci._tuning "),
        (4, "dci/_search/exact.py", "from . import dispatch", ":1: dci._search.exact imports dci._search.dispatch "),
        (5, "dci/_search/bounded.py", "from .._tuning import pilot", ":1: dci._search.bounded imports pilot of dci._t"),
        (6, "dci/_search/ranked.py", "import dci._tuning.build as b", ":1: dci._search.ranked imports dci._tuning.b"),
        (7, "attention/_native/far_field.pyx", "from dci._geometry cimport metric", "imports dci._geometry.metric "),
        (7, "attention/_native/far_field.pyx", "from ..errors import E", "imports E of attention.errors"),
        (8, "attention/_core/heads.py", "from ..integrations import hf", "imports attention.integrations.hf "),
        (8, "attention/_core/heads.py", "from ..decoding.cache import Cache", "imports Cache of attention.decoding.c"),
        (9, "attention/decoding/cache.py", "from ..integrations.hf import x", "imports x of attention.integrations.h"),
        (10, "attention/functional.py", "from dci._search.exact import x", "imports x of dci._search.exact"),
        (10, "attention/functional.py", "from dci.index import DCI", "imports DCI of dci.index"),
        (10, "attention/functional.py", "from dci._runtime.threads import _lock", "imports _lock of dci._runtime.thr"),
        (10, "attention/functional.py", "from dci import _private", "imports _private of dci "),
        (10, "attention/functional.py", "import dci\nx = dci._search.exact.f", ":2: attention.functional imports f of"),
        (10, "attention/functional.py", "import dci\nx = dci.index", ":2: attention.functional imports dci.index "),
        (11, "dci/_shards/shard.py", "from ..dask.index import x", "imports x of dci.dask.index"),
        (12, "dci/_store/directory.py", "from .codec import x", "imports x of dci._store.codec"),
        (10, "attention/functional.py", "from dci._runtime import threads\nthreads._x()", ":2: attention.functional i"),
    ],
)  # fmt: skip
def test_what_breaks_a_rule_is_named(tmp_path, rule, file, text, seen):
    (message,) = RULES[rule].broken(fake(tmp_path, **{file: text}))
    assert message.startswith(f"{file}:")
    assert seen in message
    assert message.endswith(RULES[rule].name)


def test_every_rule_has_a_fake_that_breaks_it():
    (parameters,) = (mark for mark in test_what_breaks_a_rule_is_named.pytestmark if mark.name == "parametrize")
    assert {case[0] for case in parameters.args[1]} == set(range(len(RULES)))


@pytest.mark.parametrize(
    ("package", "changed", "ring"),
    [
        ("dci", {"dci/_search/ranked.py": "from .ranked2 import x", "dci/_search/ranked2.py": "from . import ranked"},
         ["dci._search.ranked", "dci._search.ranked2"]),
        ("dci", {"dci/_search/exact.py": "import dci"}, None),
        ("dci", {"dci/_native/kernels.pxd": "from .cells cimport x"}, ["dci._native.cells", "dci._native.kernels"]),
        ("attention", {"attention/_core/__init__.py": "from ..functional import x"}, None),
        (
            "attention",
            {"attention/modules.py": "try:\n    from .functional import x\nexcept ImportError: ...",
             "attention/functional.py": "from .modules import x"},
            ["attention.functional", "attention.modules"],
        ),
    ],
)  # fmt: skip
def test_a_cycle_is_named(tmp_path, package, changed, ring):
    found = cycle(fake(tmp_path, **changed), package)
    assert found
    assert found[0].importer in {f.target for f in found} | {f.target.rpartition(".")[0] for f in found}
    assert any(f.where.startswith(tuple(changed)) for f in found)
    if ring:
        assert sorted({f.importer for f in found}) == ring


@pytest.mark.parametrize(
    ("file", "text", "when"),
    [
        ("dci/_search/ranked.py", "def f():\n    from .dispatch import x", LATER),
        ("dci/_search/ranked.py", "if TYPE_CHECKING:\n    from .dispatch import x", TYPING),
        ("dci/_native/kernels.pyx", "def f(a,\n      b):\n    if a:\n        from .cells import x", LATER),
    ],
)
def test_imports_that_are_made_later_make_no_cycle_and_are_told(tmp_path, file, text, when):
    found = fake(tmp_path, **{file: text})
    assert cycle(found, "dci") == []
    (late,) = not_at_start(found)
    assert late.when == when
    assert late.where.startswith(file)


def test_docstrings_and_comments_import_nothing(tmp_path):
    found = fake(tmp_path, **{"dci/_native/cells.pyx": '"""\nfrom .._search import exact\n"""\n# import dci.index'})
    assert not [i for i in found if i.importer == "dci._native.cells"]
