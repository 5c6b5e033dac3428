"""The extension modules; everything else about the distribution is in pyproject.toml.

Every file in dci/_native/csrc is compiled for the architecture's baseline, but those whose names end in an instruction
set (``*_avx2.c``) get its flags, and its macro (``DCI_HAVE_AVX2``) tells the dispatcher that they are there. So a
wheel built on any machine runs on every machine of its architecture.

Switches in the environment, for developers:

    DCI_DEBUG=1          Cython's bounds checks, C asserts, -O1 -g
    DCI_SANITIZE=thread  the sanitizers that follow -fsanitize=, C asserts, -O1 -g (see `make sanitize`)
    DCI_NO_BUILD=1       no extension modules: for editable installs (`setup.py build_ext --inplace` builds them)
"""

import os
from glob import glob
from pathlib import Path

import Cython
import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import PlatformError
from setuptools.modified import newer_group

# Cython modules. Those in OWNS_KERNELS link dci/_native/csrc; the others cimport its table, so that it exists once.
# The kernels take longest to compile, so they come first.
MODULES = (
    "dci._native.kernels",
    "attention._native.far_field",
    "attention._native.gains",
    "attention._native.growing_field",
    "attention._native.growing_cells",
    "attention._native.moments",
    "attention._native.near_field",
    "attention._native.strays",
    "attention._native.kd_order",
    "attention._native.workspace",
    "dci._native.cells",
    "dci._native.codes",
    "dci._native.exact_scan",
    "dci._native.rescore",
    "dci._native.rows",
    "dci._native.cell_edit",
    "dci._native.cell_search",
    "dci._native.file_rows",
)
OWNS_KERNELS = {"dci._native.kernels"}

# Architecture (as platform tags end) -> instruction set -> flags of the files *_<instruction set>.c.
X86_64 = {
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"],
}
ARM64 = {"neon": []}
INSTRUCTION_SETS = {"x86_64": X86_64, "amd64": X86_64, "aarch64": ARM64, "arm64": ARM64}


def switch(name):
    return os.environ.get(name, "0") not in ("", "0")


DEBUG, SANITIZE, NO_BUILD = switch("DCI_DEBUG"), os.environ.get("DCI_SANITIZE"), switch("DCI_NO_BUILD")

COMPILE = ["-std=gnu11", "-O3", "-g0", "-fno-math-errno"]
LINK = []
if DEBUG or SANITIZE:
    COMPILE += ["-O1", "-g", "-UNDEBUG"]
if SANITIZE:
    COMPILE += [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
    LINK += [f"-fsanitize={SANITIZE}"]

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": DEBUG,
    "initializedcheck": DEBUG,
    "wraparound": False,
    "cdivision": True,
}


def instruction_set(source):
    """The last word of a C file's name if it is an instruction set of any architecture, else None."""
    word = Path(source).stem.rpartition("_")[2]
    return word if any(word in sets for sets in INSTRUCTION_SETS.values()) else None


class BuildExt(build_ext):
    """Cythonize, give each C file its instruction set's flags, rebuild what is older than what it depends on."""

    def build_extensions(self):
        if self.compiler.compiler_type != "unix":
            raise PlatformError(
                f"dci-attention builds with gcc or clang; the compiler here is {self.compiler.compiler_type!r}, "
                "which is not supported (on Windows, build inside WSL)"
            )
        self.parallel = self.parallel or os.cpu_count()
        self.available = INSTRUCTION_SETS.get(self.plat_name.rpartition("-")[2].lower(), {})
        self.compile_plain, self.compiler._compile = self.compiler._compile, self.compile_one
        stamp = self.write_stamp()
        for extension in self.extensions:
            extension.sources = self.c_sources(extension)
            extension.depends.append(stamp)
            extension.define_macros += [(f"DCI_HAVE_{name.upper()}", "1") for name in self.available]
        self.depends = {source: extension.depends for extension in self.extensions for source in extension.sources}
        super().build_extensions()

    def c_sources(self, extension):
        """The C files to compile here, the Cython ones translated."""
        directory = f"build/cython-{Cython.__version__}{'-debug' if DEBUG else ''}"
        (translated,) = cythonize([extension], build_dir=directory, compiler_directives=DIRECTIVES)
        return [c for c in translated.sources if instruction_set(c) in (None, *self.available)]

    def compile_one(self, obj, source, ext, cc_args, extra_postargs, pp_opts):
        """Compile one file, unless that has been done: setuptools knows flags and age of an extension only.

        So the modules in place can link the objects of a wheel that was built before.
        """
        if not newer_group([source, *self.depends[source]], obj):
            return
        flags = self.available.get(instruction_set(source), [])
        self.compile_plain(f"{obj}.partial", source, ext, cc_args, [*extra_postargs, *flags], pp_opts)
        os.replace(f"{obj}.partial", obj)

    def write_stamp(self):
        """A file beside the objects that changes when the flags do."""
        stamp = Path(self.build_temp, "flags")
        versions = Cython.__version__, numpy.__version__
        text = repr((self.compiler.compiler_so, COMPILE, LINK, DIRECTIVES, self.available, versions))
        if not stamp.exists() or stamp.read_text() != text:
            stamp.parent.mkdir(parents=True, exist_ok=True)
            stamp.write_text(text)
        return str(stamp)


def extension(module):
    path = module.replace(".", "/")
    csrc = sorted(glob("dci/_native/csrc/*.c")) if module in OWNS_KERNELS else []
    return Extension(
        module,
        sources=[f"{path}.pyx", *csrc],
        depends=sorted([*glob("dci/_native/csrc/*.h"), *glob("dci/_native/*.pxd"), *glob("attention/_native/*.pxd")]),
        include_dirs=["dci/_native", numpy.get_include()],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")],
        extra_compile_args=COMPILE,
        extra_link_args=LINK,
    )


setup(
    ext_modules=[] if NO_BUILD else [extension(module) for module in MODULES],
    cmdclass={"build_ext": BuildExt},
)
