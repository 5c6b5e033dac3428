"""The questions about tasks, a suite each. Nothing here needs PyTorch before it is asked.

A row has what `comparisons.tasks.rows` says. At every length there are exact attention and this project's, at both
tolerances; short sequences, which it leaves to exact attention, are also ranked by force, so that their accuracy says
something. At one length of each task there are all tolerances and all rivals.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from comparisons.data.datasets import ComparisonError, optional
from comparisons.harness.question import Options, Suite
from comparisons.harness.results import Run

NAMES = ("mqar", "digits", "text", "lm", "lines", "words", "variables", "listops")
KEYS = ("exact", "textbook", "dci", "iceformer", "exact-topk", "nystrom", "performer", "reformer", "window")
DECODING = "lm-decoding"  # the language model, token after token
CONTINUED = 200  # tokens
SHORT = 8_192  # up to this length, heads of few or causal queries may be left to exact attention


def known() -> dict[str, Any]:
    """Return the rivals by their keys; PyTorch is needed."""
    optional("torch", "the suites of tasks")
    from comparisons.attention.adapters import RIVALS

    return {key: RIVALS[key] for key in KEYS}


def check(name: str, smoke: bool = False) -> None:
    """Say in one line if there is no such task; `smoke` changes nothing."""
    if name not in (*NAMES, DECODING):
        raise ComparisonError(f"unknown task {name!r}: expected one of {', '.join((*NAMES, DECODING))}")


def _measure(suite: Suite, run: Run, name: str, options: Options) -> None:
    """One contender after the other, at every length."""
    optional("torch", f"the suite {suite.name!r}")
    from comparisons.attention.bench import Bench
    from comparisons.tasks import contenders, training
    from comparisons.tasks.evaluation import Evaluation
    from comparisons.tasks.registry import TASKS, TINY

    task = (TINY if options.smoke else TASKS)[name.removesuffix("-decoding")]
    chosen = {rival.key for rival in suite.chosen(options)} | {"exact"}
    model = training.trained(task, 1 if options.smoke else run.threads)  # steps of tiny ones are too short to share
    if name == DECODING:
        from comparisons.tasks import generation

        length, count = task.lengths[0], 10 if options.smoke else CONTINUED
        bench = Bench(run, suite.name, name, length)
        prompts = [task.held_out(length, at).tokens for at in range(2 * task.sequences)]
        llama = generation.as_llama(model)
        bench.step("continuations", lambda: generation.compare(llama, prompts, count, contenders.TOLERANCES))
        return
    for length in task.lengths:
        bench = Bench(run, suite.name, name, length)
        evaluation = Evaluation(task, model, length, run.threads, options.repeats)
        for contender in contenders.at(task, length, options.smoke):
            if contender.rival.key in chosen:
                key = f"{contender.method} {contender.settings}"
                bench.step(key, lambda contender=contender, evaluation=evaluation: [evaluation.row(contender)])


_suite = partial(Suite, measure=_measure, read=check, known=known)


def _task(name: str, question: str, minutes: int, *more: str) -> Suite:
    return _suite(f"task_{name}", question, minutes, (name, *more), rivals=KEYS, smoke_data=(name, *more))


MQAR = _task("mqar", "associative recall of many keys: what is kept", 5)
DIGITS = _task("digits", "64 handwritten digits, pixel by pixel: what is kept", 5)
TEXT = _task("text", "the package that a file is from, byte by byte: what is kept", 5)
LM = _task("lm", "a byte-level language model: what is kept of its perplexity and its next bytes", 5, DECODING)
LINES = _task("lines", "lines with a number, asked for at the end: what is kept", 5)
WORDS = _task("words", "the most frequent words: what is kept", 5)
VARIABLES = _task("variables", "variables named after others: what is kept", 5)
LISTOPS = _task("listops", "nested operations on lists of digits: what is kept", 5)

SUITES = (MQAR, DIGITS, TEXT, LM, LINES, WORDS, VARIABLES, LISTOPS)
