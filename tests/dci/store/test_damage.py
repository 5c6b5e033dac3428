"""Damaged and forged files, and killed writers; the scripts take other counts."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.dci.store import mutate

KILL = Path(__file__).with_name("kill.py")


def test_damage_and_forgeries_are_refused_or_harmless():
    outcomes = mutate.run(2000)
    assert sum(outcomes.values()) == 2000
    assert min(outcomes.values()) > 5, "every outcome has to occur, or the mutations are too coarse"
    assert len(outcomes) == 8


def run_kill(rounds):
    """In a process without other threads, which forks."""
    done = subprocess.run(
        [sys.executable, KILL, str(rounds)], capture_output=True, text=True, timeout=1200, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_killed_writers_leave_the_old_or_the_new():
    output = run_kill(7)
    assert output.count("7 killed") == 3
    assert "ended at a system call" in output


@pytest.mark.slow
def test_many_killed_writers_leave_the_old_or_the_new():
    assert run_kill(200).count("200 killed") == 3
