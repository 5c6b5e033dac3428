"""Who takes the place of exact attention in a task: this project at its tolerances, and what needs no retraining."""

from __future__ import annotations

from comparisons.attention.adapters import RIVALS
from comparisons.attention.bench import Contender
from comparisons.knn.adapters import Arguments
from comparisons.tasks.suites import KEYS, SHORT
from comparisons.tasks.task import Task

TOLERANCES = (0.05, 0.1)
KNOB = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)  # tolerances of the plots
SHARES = (1 / 1_024, 1 / 256, 1 / 64, 1 / 16)  # of the keys, for what is told how many to take
TEXTBOOK_MOST = 16_384  # tokens; this form is tried at every length up to so many

EXACT = Contender(RIVALS["exact"])
TEXTBOOK = Contender(RIVALS["textbook"])


def ours(tolerance: float, forced: bool = False) -> Contender:
    """Return `dci_attention` at a tolerance; forced, it ranks short sequences too, which are else left to PyTorch."""
    options: Arguments = {"tolerance": tolerance} | ({"exact_below": 0} if forced else {})
    return Contender(RIVALS["dci"], options, f"dci_attention {tolerance:g}" + (" forced" if forced else ""))


def rivals(length: int, causal: bool, keys: tuple[str, ...] = KEYS) -> list[Contender]:
    """Return the rivals' settings at a length, in ascending order of effort; without exact attention and ours.

    Nyström has no causal form: its landmarks are means of earlier and of later keys.
    """
    counts = [max(1, int(share * length)) for share in SHARES]
    settings: dict[str, list[Arguments]] = {
        "textbook": [{}],
        "iceformer": [{"top_k": counts[-2]}],  # its ceiling, exact top-k, says how the others would do
        "exact-topk": [{"k": count} for count in counts],
        "nystrom": [{"landmarks": count} for count in (64, 256) if 4 * count <= length],
        "performer": [{"features": count} for count in (256, 1_024)],
        "reformer": [{"chunk": chunk, "rounds": rounds} for chunk, rounds in ((64, 2), (128, 4), (256, 8))],
        "window": [{"window": size} for size in (256, 1_024, 4_096) if size < length],
    }
    return [
        Contender(RIVALS[key], setting)
        for key, several in settings.items()
        if key in keys and (RIVALS[key].causal_too or not causal)
        for setting in several
    ]


def at(task: Task, length: int, smoke: bool = False) -> list[Contender]:
    """Return who is tried at a length of a task, exact attention first."""
    found = [EXACT, *(ours(tolerance) for tolerance in TOLERANCES)]
    if length <= SHORT:
        found += [ours(tolerance, forced=True) for tolerance in TOLERANCES]
    if length == task.at:
        knob = [ours(tolerance, forced=length <= SHORT) for tolerance in KNOB if tolerance not in TOLERANCES]
        others = tuple(key for key in KEYS if key != "textbook")
        found += (knob + rivals(length, task.config.causal, others))[:: 4 if smoke else 1]
    if length <= TEXTBOOK_MOST:
        found.append(TEXTBOOK)
    return found
