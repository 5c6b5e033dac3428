"""The least versions of compilers are refused in a sentence, and the README names the same ones."""

import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LEAST = {"gcc": 11, "clang": 13}


def compile_as(*macros):
    """Compile the kernels' header by a compiler that says it is another."""
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    return subprocess.run(
        [compiler, "-fsyntax-only", *macros, "-x", "c", ROOT / "dci/_native/csrc/kernels.h"],
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("macros", "sentence"),
    [
        (["-D__GNUC__=10"], "builds with gcc 11 or later"),
        (["-D__clang__", "-D__clang_major__=12"], "builds with clang 13 or later"),
    ],
    ids=LEAST,
)
def test_older_compilers_are_refused(macros, sentence):
    assert compile_as().returncode == 0
    failed = compile_as("-U__GNUC__", "-U__clang__", "-U__clang_major__", *macros)
    assert failed.returncode != 0
    assert sentence in failed.stderr


def test_the_readme_names_the_least_compilers():
    text = (ROOT / "README.md").read_text()
    for name, version in LEAST.items():
        assert f"{name} {version}" in text
