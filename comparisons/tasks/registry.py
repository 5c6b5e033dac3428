"""The tasks: their models, trainings and lengths."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from comparisons.tasks.data import listops, pixels, recall, text, words
from comparisons.tasks.models import Config
from comparisons.tasks.task import Make, Stage, Task

MQAR = Task(
    "mqar", "associative recall of many keys, far beyond the length of training", "values recalled",
    Config(recall.pairs_vocab(), recall.VALUES, width=64, heads=2, trained=128, taps=3),
    recall.pairs,
    (Stage(64, 32, 600, 4e-3), Stage(1_024, 2, 150), Stage(4_096, 1, 80), Stage(8_192, 1, 40, 1e-3)),
    (4_096, 8_192, 16_384, 32_768), 16_384, 2,
)  # fmt: skip
DIGITS = Task(
    "digits", "64 handwritten digits in one image, pixel by pixel, each to be named", "digits named",
    Config(pixels.VOCAB, 10, width=64, heads=2, causal=False, rotated=0, learned=(pixels.CELLS,)),
    pixels.digits,
    (Stage(256, 16, 700, 4e-3), Stage(1_024, 4, 100), Stage(4_096, 1, 40, 1e-3)),
    (1_024, 4_096), 4_096, 8,
)  # fmt: skip
TEXT = Task(
    "text", "the package that a file of source code and documentation is from, byte by byte", "packages named",
    Config(text.HASHES, len(text.PACKAGES), width=64, heads=2, causal=False),
    text.packages,
    (Stage(256, 16, 300, 4e-3), Stage(1_024, 4, 150), Stage(4_096, 2, 50, 1e-3)),
    (4_096, 16_384), 4_096, 100,
)  # fmt: skip
LM = Task(
    "lm", "the next byte of source code and documentation", "same next byte",
    Config(256, 256, width=96, heads=3, layers=3, rotated=1.0, base=100_000.0),
    text.continuation,
    (Stage(512, 4, 900, 3e-3), Stage(2_048, 1, 200, 1e-3), Stage(8_192, 1, 20, 5e-4)),
    (8_192, 16_384, 32_768), 16_384, 1,
)  # fmt: skip
LINES = Task(
    "lines", "lines with a number, asked for at the end (LongEval)", "contents recalled",
    Config(recall.lines_vocab(), recall.NUMBERS, width=64, heads=1, rotated=0.0, trained=256, taps=4),
    recall.lines,
    (
        Stage(48, 32, 600, 5e-3), Stage(192, 8, 300, 3e-3), Stage(1_024, 2, 200),
        Stage(4_096, 1, 120), Stage(8_192, 1, 40, 1e-3),
    ),
    (4_096, 8_192, 16_384, 32_768), 16_384, 4,
)  # fmt: skip
WORDS = Task(
    "words", "the three most frequent words (RULER)", "words named",
    Config(words.words_vocab(), words.WORDS, width=64, heads=2, rotated=0.25, taps=2),
    words.words,
    (Stage(256, 16, 400, 4e-3), Stage(1_024, 4, 200), Stage(4_096, 1, 60, 1e-3)),
    (4_096, 8_192, 16_384, 32_768), 16_384, 8,
)  # fmt: skip
VARIABLES = Task(
    "variables", "variables named after others, asked for at the end (RULER)", "values found",
    Config(words.variables_vocab(), words.VALUES, width=64, layers=4, heads=1, rotated=0.0, trained=256, taps=3),
    words.variables,
    (Stage(64, 32, 800, 5e-3), Stage(256, 8, 600, 4e-3), Stage(1_024, 2, 350), Stage(4_096, 1, 60, 1e-3)),
    (4_096, 8_192, 16_384, 32_768), 16_384, 4,
)  # fmt: skip
LISTOPS = Task(
    "listops", "nested operations on lists of digits (Long Range Arena)", "lists computed",
    Config(
        listops.VOCAB, listops.DIGITS, width=64, layers=4, heads=2, causal=False, learned=(listops.DEEPEST + 2,)
    ),
    listops.listops,
    (Stage(64, 32, 900, 3e-3), Stage(256, 8, 300, 1.5e-3), Stage(1_000, 2, 80, 1e-3), Stage(2_000, 1, 60, 5e-4)),
    (2_000,), 2_000, 40,
)  # fmt: skip

TASKS = {task.name: task for task in (MQAR, DIGITS, TEXT, LM, LINES, WORDS, VARIABLES, LISTOPS)}


def _tiny(task: Task, config: Config, make: Make, stages: tuple[Stage, ...], length: int, sequences: int) -> Task:
    """Return the same on little data, trained within seconds, for tests and smoke runs."""
    some = {"config": config, "make": make, "stages": stages, "lengths": (length,), "at": length}
    return replace(task, name=f"{task.name}-tiny", sequences=sequences, **some)


_WIDTH = {"width": 64, "heads": 2}
TINY = {
    "mqar": _tiny(
        MQAR, Config(recall.pairs_vocab(32, 16), 16, layers=1, rotated=0.0, trained=64, taps=2, **_WIDTH),
        partial(recall.pairs, keys=32, values=16), (Stage(64, 16, 150, 8e-3),), 2_048, 4,
    ),
    "digits": _tiny(
        DIGITS, replace(DIGITS.config, layers=1, learned=(16,)),
        partial(pixels.digits, cells=16), (Stage(256, 8, 60, 6e-3),), 1_024, 8,
    ),
    "text": _tiny(
        TEXT, Config(text.HASHES, 2, layers=1, causal=False, **_WIDTH),
        partial(text.packages, kinds=2), (Stage(256, 8, 100, 6e-3),), 1_024, 20,
    ),
    "lm": _tiny(
        LM, Config(256, 256, rotated=1.0, **_WIDTH), text.continuation, (Stage(128, 8, 80, 6e-3),), 2_048, 2,
    ),
    "lines": _tiny(
        LINES, Config(recall.lines_vocab(16), 16, width=64, layers=1, heads=1, rotated=0.0, trained=48, taps=3),
        partial(recall.lines, numbers=16), (Stage(48, 32, 200, 8e-3),), 2_048, 2,
    ),
    "words": _tiny(
        WORDS, Config(words.words_vocab(16), 16, layers=1, rotated=0.0, taps=2, **_WIDTH),
        partial(words.words, count=16), (Stage(128, 16, 120, 8e-3),), 2_048, 4,
    ),
    "variables": _tiny(
        VARIABLES,
        Config(words.variables_vocab(32, 8), 8, width=64, layers=3, heads=1, rotated=0.0, trained=64, taps=3),
        partial(words.variables, names=32, values=8), (Stage(64, 16, 80, 8e-3),), 2_048, 2,
    ),
    "listops": _tiny(
        LISTOPS, Config(listops.VOCAB, listops.DIGITS, causal=False, learned=LISTOPS.config.learned, **_WIDTH),
        listops.listops, (Stage(32, 32, 100, 6e-3),), 512, 20,
    ),
}  # fmt: skip
