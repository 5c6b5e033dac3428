"""The machine: what it is, and how much memory `dci` needs on it."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

from comparisons.data.datasets import ComparisonError, Dataset
from comparisons.knn.adapters import DCI, Arguments

PACKAGES = ("dci-attention", "numpy", "dask", "faiss-cpu", "hnswlib", "lorann", "scikit-learn", "torch", "transformers")


def memory_growth(name: str, wanted: float, threads: int) -> Arguments:
    """Measure, in a process of its own, how much memory fit and query need on top of the data.

    Returns
    -------
    dict
        ``data_bytes``, ``growth_bytes`` (peak resident size less the size before fit), ``times_data``.
    """
    command = [sys.executable, "-m", "comparisons", "memory", "--data", name]
    command += ["--recall", str(wanted), "--threads", str(threads)]
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), root]))
    environ = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ComparisonError(f"the memory measurement failed: {' '.join(done.stderr.split())[-300:]}")
    return json.loads(done.stdout.splitlines()[-1])


def own_memory_growth(wanted: float, data: Dataset, k: int, threads: int) -> Arguments:
    """Do the work of `memory_growth` in this process (Linux: the peak is reset through /proc)."""
    rival = DCI(threads, recall=wanted)
    DCI.load()  # code is not what is measured
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = status_bytes("VmRSS")
    rival.fit(data.points)
    after_fit = status_bytes("VmHWM")
    rival.query(data.queries, k)
    growth = status_bytes("VmHWM") - before
    return {
        "data_bytes": data.points.nbytes,
        "fit_growth_bytes": after_fit - before,
        "growth_bytes": growth,
        "times_data": growth / data.points.nbytes,
    }


def status_bytes(entry: str) -> int:
    """Return an entry of /proc/self/status, which counts in kB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(entry + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {entry}")


def environment(threads: int) -> Arguments:
    """Return versions, CPU, instruction set, load and thread count."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    cpu = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "commit": _commit(),
        "versions": versions,
        "cpu": cpu,
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "threads": threads,
        "instruction_set": _instruction_set(),
        "faiss_options": _faiss_options(),
    }


def _instruction_set() -> str:
    with contextlib.suppress(ImportError):
        import dci

        with contextlib.redirect_stdout(io.StringIO()) as printed:
            dci.show_config()
        for line in printed.getvalue().splitlines():
            if line.startswith("instruction set:"):
                return line.partition(":")[2].strip()
    return ""


def _faiss_options() -> str:
    with contextlib.suppress(ImportError):
        import faiss

        return faiss.get_compile_options().strip()
    return ""


def _commit() -> str:
    """Return the commit of this source tree, with a + if it is changed."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+"]
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return ""
