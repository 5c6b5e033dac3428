"""Tests in a process of their own."""

import subprocess
import sys
import textwrap


def run_script(script, *arguments):
    """Start Python on an indented text."""
    return subprocess.Popen(
        [sys.executable, "-P", "-c", textwrap.dedent(script), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def succeed(script, timeout=60):
    """Run Python on an indented text, which must succeed in time; return what it printed."""
    process = run_script(script)
    try:
        output, errors = process.communicate(timeout=timeout)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    return output
