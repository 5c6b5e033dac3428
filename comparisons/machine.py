"""The machine: what it is, how much memory a rival needs on it, and results on disk."""

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

from comparisons.adapters import Arguments
from comparisons.datasets import Dataset, optional
from comparisons.harness import THREADS, Setting, plain


def memory_growth(name: str, wanted: float, threads: int = THREADS) -> Arguments:
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
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])


def own_memory_growth(setting: Setting, data: Dataset, k: int, threads: int) -> Arguments:
    """Do the work of `memory_growth` in this process (Linux: the peak is reset through /proc)."""
    rival = setting.rival(threads, **setting.build)
    optional("dci", "the memory measurement", "dci-attention")  # code is not what is measured
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_bytes("VmRSS")
    rival.fit(data.points)
    after_fit = _status_bytes("VmHWM")
    rival.query(data.queries, k, **setting.search)
    growth = _status_bytes("VmHWM") - before
    return {
        "label": setting.label,
        "data_bytes": data.points.nbytes,
        "fit_growth_bytes": after_fit - before,
        "growth_bytes": growth,
        "times_data": growth / data.points.nbytes,
    }


def _status_bytes(entry: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(entry + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {entry}")


def environment(threads: int) -> Arguments:
    """Return versions, CPU, instruction set, load and thread count."""
    versions = {}
    for package in ("dci-attention", "numpy", "faiss-cpu", "scikit-learn", "torch"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    cpu, config = platform.processor(), ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    with contextlib.suppress(ImportError):
        import dci

        with contextlib.redirect_stdout(io.StringIO()) as printed:
            dci.show_config()
        config = printed.getvalue()
    faiss_options = ""
    with contextlib.suppress(ImportError):
        import faiss

        faiss_options = faiss.get_compile_options()
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "cpu": cpu,
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        "threads": threads,
        "dci": config.splitlines(),
        "faiss": faiss_options.split(),
    }


def save(path: Path, content: Arguments) -> None:
    """Write JSON whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(plain(content), indent=1) + "\n")
    os.replace(partial, path)
