"""The questions about pretrained models, a suite each. Nothing here needs PyTorch before it is asked.

Rows are those of `comparisons.tasks.suites`; those of a language model also have what `Reading.row` says.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from comparisons.data.datasets import ComparisonError, optional
from comparisons.harness.question import Options, Suite
from comparisons.harness.results import Run
from comparisons.tasks.suites import KEYS, known

SMOLLM2_DATA = (
    "smollm2", "smollm2-docstrings", "smollm2-bfloat16", "smollm2-needles", "smollm2-lines", "smollm2-decoding",
)  # fmt: skip
LENGTHS = {"smollm2": (8_192, 16_384, 32_768)}  # others: 8,192
AT = 8_192  # where the rivals, and all tolerances, are tried
JUDGED = 16_384  # beyond that, the errors of heads would take longer to find than all else
PROMPTS, CONTINUED, CONTINUATIONS = 2, 64, 2
DOCUMENTS = {512: 48, 4_096: 24, 8_192: 12}  # by their length
MGM_LENGTHS = (4_096, 8_192, 16_384)
SAMPLES = 320
ACROSS = "mgm-across"  # samples see those before them
FEW = ("exact", "textbook", "dci", "window")  # who is tried unless others are named, which take their time
SMOKE_LENGTH = 2_560


def _check(names: tuple[str, ...], name: str, smoke: bool = False) -> None:
    """Say in one line if there is no such model; `smoke` changes nothing."""
    if name not in names:
        raise ComparisonError(f"unknown model {name!r}: expected one of {', '.join(names)}")


def _smollm2(suite: Suite, run: Run, name: str, options: Options) -> None:
    """Read texts, answer questions about them, continue them."""
    torch = optional("torch", f"the suite {suite.name!r}")
    from comparisons.attention.bench import Bench
    from comparisons.tasks.pretrained import prompts, smollm2, texts
    from comparisons.tasks.pretrained.reading import Reading

    kind = name.removeprefix("smollm2").removeprefix("-")
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    for length in (SMOKE_LENGTH,) if options.smoke else LENGTHS.get(name, (AT,)):
        bench = Bench(run, suite.name, name, length)
        with smollm2.prepared(dtype, length) as (model, tokenizer):
            if kind == "decoding":
                bench.step("continuations", lambda m=model, t=tokenizer, n=length: _continued(m, t, n, options.smoke))
                continue
            if kind in prompts.KINDS:
                asked = prompts.Questions(model, tokenizer, kind, length, 1 if options.smoke else PROMPTS, run.threads)
            else:
                text = texts.TEXTS["docstrings" if kind == "docstrings" else "documentation"]()
                tokens = smollm2.tokens(tokenizer, text, length)
                asked = Reading(model, tokens, run.threads, judge=length <= JUDGED)
            _compare(suite, options, bench, asked, closely=name == "smollm2" and length == AT)


def _continued(model: Any, tokenizer: Any, length: int, smoke: bool) -> list[Any]:
    """Return rows of continuations of documentation."""
    from comparisons.tasks import contenders, generation
    from comparisons.tasks.pretrained import smollm2, texts

    text = texts.documentation()[200_000:]
    prompts = list(smollm2.tokens(tokenizer, text, CONTINUATIONS * length).view(CONTINUATIONS, 1, length))
    try:
        if smoke:
            return generation.compare(model, prompts[:1], 4, contenders.TOLERANCES)
        return generation.compare(model, prompts, CONTINUED, contenders.TOLERANCES)
    finally:
        model.set_attn_implementation("sdpa")


def _minilm(suite: Suite, run: Run, name: str, options: Options) -> None:
    """Find long documents."""
    optional("torch", f"the suite {suite.name!r}")
    from comparisons.attention.bench import Bench
    from comparisons.tasks.pretrained.minilm import Retrieval

    for length, count in ({SMOKE_LENGTH: 4} if options.smoke else DOCUMENTS).items():
        asked = Retrieval(length, count, run.threads)
        _compare(suite, options, Bench(run, suite.name, name, length), asked, causal=False)


def _mgm(suite: Suite, run: Run, name: str, options: Options) -> None:
    """Foretell the genera of microbiome samples, each of which sees itself alone, or those before it too."""
    optional("torch", f"the suite {suite.name!r}")
    from comparisons.attention.bench import Bench
    from comparisons.tasks.pretrained import mgm
    from comparisons.tasks.pretrained.reading import Reading

    model, across = mgm.load(), name == ACROSS
    some = mgm.samples(64 if options.smoke else SAMPLES)
    lengths = (SMOKE_LENGTH,) if options.smoke else MGM_LENGTHS
    for length in lengths:
        tokens, places = mgm.packed(some, length)
        # From places alone, transformers concludes that a sample sees no other, and makes a mask.
        more = {"attention_mask": tokens.new_ones(tokens.shape)} if across else {}
        asked = Reading(model, tokens, run.threads, unasked=mgm.BEGIN, position_ids=places, **more)
        last = across and length == max(lengths)
        _compare(suite, options, Bench(run, suite.name, name, length), asked, closely=last)


def _compare(
    suite: Suite,
    options: Options,
    bench: Any,
    asked: Any,
    causal: bool = True,
    closely: bool = False,
) -> None:
    """Measure exact attention and ours; `closely`: at all tolerances, and the rivals too."""
    from comparisons.tasks import contenders

    chosen = {rival.key for rival in suite.chosen(replace(options, rivals=options.rivals or FEW))} | {"exact"}
    tolerances = [*contenders.TOLERANCES, *(t for t in contenders.KNOB if closely and t not in contenders.TOLERANCES)]
    found = [contenders.EXACT, *(contenders.ours(tolerance, forced=options.smoke) for tolerance in tolerances)]
    found += contenders.rivals(bench.length, causal) if closely else []
    for contender in found:
        if contender.rival.key in chosen:
            key = f"{contender.method} {contender.settings}"
            bench.step(key, lambda contender=contender: [asked.row(contender)])


def _suite(name: str, question: str, minutes: int, measure: Any, data: tuple[str, ...], smoke: int = 1) -> Suite:
    read = partial(_check, data)
    return Suite(f"task_{name}", question, minutes, data, measure, KEYS, data[:smoke], read, known)


SMOLLM2 = _suite(
    "smollm2", "a pretrained language model, SmolLM2-135M-Instruct: what is kept of its next tokens", 60,
    _smollm2, SMOLLM2_DATA,
)  # fmt: skip
MINILM = _suite("minilm", "long documents found by a pretrained encoder: what is kept", 12, _minilm, ("minilm",))
MGM = _suite(
    "mgm",
    "a pretrained model of microbiome samples: what is kept of its next tokens",
    10,
    _mgm,
    ("mgm", ACROSS),
    smoke=2,
)

SUITES = (SMOLLM2, MINILM, MGM)
