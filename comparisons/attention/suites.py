"""The questions about attention. Nothing here needs PyTorch before it is asked.

Rows hold ``method`` and its ``options``, ``length``, ``heads``, ``seconds`` of all heads together, ``error`` (relative
L2 of a head's output against exact attention, the median over heads), ``worst`` and ``errors`` (each head's), and
``keys``: the share of the keys, and of what stands for keys, that a query was compared with.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from comparisons.data import adversarial, heads
from comparisons.data.datasets import optional
from comparisons.harness.question import Options, Suite
from comparisons.harness.results import Run

if TYPE_CHECKING:
    from comparisons.attention.bench import AttentionBench

TOLERANCES = (0.05, 0.1)
KEYS = ("exact", "textbook", "dci", "dci-topk", "iceformer", "exact-topk", "ivf", "lsh")
KEYS += ("reformer", "nystrom", "performer", "window")
PAIR = ("exact", "dci")
LENGTHS = (128, 512, 1_024, 2_048, 4_096, 8_192, 16_384, 32_768, 65_536, 131_072)
LONGEST = {"smooth-64-peaked": 65_536, "noise": 16_384}  # others: all of them
LAYER_LENGTHS = {"heads": (4_096, 16_384, 32_768), "heads-causal": (16_384, 32_768)}  # others: (16,384, 65,536)
NEAR = (1, 32, 128, 512, 2_048)
FACTORS = (1 / 1_024, 1 / 512, 1 / 256, 1 / 128, 1 / 64, 1 / 32, 1 / 16, 1 / 8)  # shares of the keys
EXAMINED = (0.0025, 0.005, 0.01, 0.02, 0.05, 0.1)
TRUTH_TOLERANCES = (0.02, 0.05, 0.1)
TRUTH_LENGTHS = {"heads": (4_096, 8_192, 16_384, 32_768)}  # the others: (4,096, 8,192)
CACHED, DECODED = 32_768, 1_500  # keys, and tokens: enough for one fold
SMOKE_LENGTH = 2_560
NLIST = 128  # IVF's cells where only the number of keys changes; it searches those that hold four times as many


def known() -> dict[str, Any]:
    """Return the rivals by their keys; PyTorch is needed."""
    optional("torch", "attention's suites")
    from comparisons.attention import adapters as attention_adapters

    return attention_adapters.RIVALS


def _bench(run: Run, suite: Suite, name: str, length: int, **which: Any) -> AttentionBench:
    optional("torch", f"the suite {suite.name!r}")
    from comparisons.attention.bench import AttentionBench

    return AttentionBench(run, suite.name, name, length, **which)


def _contenders(suite: Suite, options: Options, settings: dict[str, list[tuple[dict[str, Any], str]]]) -> list[Any]:
    """Return the chosen rivals with their settings and labels; exact attention is always there."""
    from comparisons.attention.bench import Contender

    known_rivals, chosen = known(), suite.chosen(options)
    return [
        Contender(known_rivals[key], setting, label)
        for key, several in settings.items()
        if key == "exact" or known_rivals[key] in chosen
        for setting, label in several
    ]


def _pair() -> dict[str, list[tuple[dict[str, Any], str]]]:
    """Return exact attention, and `dci_attention` at each tolerance."""
    return {"exact": [({}, "")], "dci": [({"tolerance": t}, f"dci_attention {t:g}") for t in TOLERANCES]}


def _repeats(length: int, options: Options) -> int:
    """Fewer rounds where one takes long."""
    many = 15 if length <= 2_048 else 2 * options.repeats if length <= 8_192 else options.repeats
    return 1 if options.smoke else many if length <= 16_384 else 1


# ------------------------------------------------------------------------------------------------- the suites


def _length(suite: Suite, run: Run, name: str, options: Options) -> None:
    """One head of each layer at every length, two tolerances; the approximations on the real heads, to 16,384."""
    few = {"textbook": [({}, "")], "iceformer": [({"top_k": 64}, "")], "nystrom": [({"landmarks": 128}, "")]}
    few |= {"performer": [({"features": 256}, "")], "window": [({"window": 1_024}, "")]}
    lengths = (128, 1_024, SMOKE_LENGTH, 2 * SMOKE_LENGTH) if options.smoke else LENGTHS
    for length in (length for length in lengths if length <= LONGEST.get(name, LENGTHS[-1])):
        bench = _bench(run, suite, name, length, count=2 if options.smoke else 6)
        bench.compare(_contenders(suite, options, _pair()), _repeats(length, options))
        if length in (lengths[-2:-1] if options.smoke else (4_096, 8_192, 16_384)) and name.startswith(heads.ENCODER):
            bench.compare(_contenders(suite, options, few), 1)


def _layers(suite: Suite, run: Run, name: str, options: Options) -> None:
    """Every layer of the encoder, all its heads together; of other data the one that there is."""
    real = name.startswith(heads.ENCODER)
    for length in (SMOKE_LENGTH,) if options.smoke else LAYER_LENGTHS.get(name, (16_384, 65_536)):
        for layer in range(heads.N_LAYERS)[: 1 if options.smoke else None] if real else (None,):
            count = 2 if options.smoke or length > 32_768 else None
            bench = _bench(run, suite, name, length, layer=layer, count=count)
            bench.compare(_contenders(suite, options, _pair()), _repeats(length, options))


def _rivals(suite: Suite, run: Run, name: str, options: Options) -> None:
    """Every setting of every rival's grid once, error against time."""
    length = SMOKE_LENGTH if options.smoke else 16_384
    bench = _bench(run, suite, name, length, count=1 if options.smoke else 4)
    width = bench.heads().query.shape[2]
    grids = {key: rival.grid(length, width)[: 1 if options.smoke else None] for key, rival in known().items()}
    settings = {key: [(setting, "") for setting in grid] for key, grid in grids.items()}
    bench.compare(_contenders(suite, options, settings), 1)


def _keys(suite: Suite, run: Run, name: str, options: Options) -> None:
    """Top-k alone, through an index or exact, and the far field of both orders, by how many keys are touched."""
    length = SMOKE_LENGTH if options.smoke else 16_384
    bench = _bench(run, suite, name, length, count=1 if options.smoke else 6)
    counts = [max(1, int(share * length)) for share in FACTORS][:: 4 if options.smoke else 1]
    alone = {
        "exact-topk": [({"k": count}, "") for count in counts],
        "dci-topk": [({"top_k": count}, "") for count in counts],
        "iceformer": [({"top_k": count}, "") for count in counts],
        "ivf": [({"nlist": NLIST, "nprobe": max(2, NLIST * 4 * c // length), "k": c}, "") for c in counts],
        "lsh": [({"bits": 256, "k": count}, "") for count in counts],
    }
    bench.compare(_contenders(suite, options, alone), 1, sample=128 if options.smoke else 512)
    near = NEAR[:: 2 if options.smoke else 1]
    estimates = ("mean", "covariance")
    fields = {"dci": [({"near": n, "far_field": how}, f"far field, {how}") for how in estimates for n in near]}
    bench.compare(_contenders(suite, options, {"exact": [({}, "")]} | fields), 1)


def _sensitivity(suite: Suite, run: Run, name: str, options: Options) -> None:
    """`dci_attention` with one option changed at a time."""
    length = SMOKE_LENGTH if options.smoke else 16_384
    changed = [{"near": near} for near in NEAR] + [{"far_field": how} for how in ("mean", "covariance", "none")]
    changed += [{"directions": m} for m in (4, 8, 16, 32)] + [{"embedding": how} for how in ("query", "random")]
    changed += [{"tolerance": t} for t in (0.2, 0.1, 0.02, 0.01)]
    settings = {"exact": [({}, "")], "dci": [(setting, "") for setting in [{}, *changed[:: 4 if options.smoke else 1]]]}
    bench = _bench(run, suite, name, length, count=2 if options.smoke else 6)
    bench.compare(_contenders(suite, options, settings), 1 if options.smoke else options.repeats)


def _ranking(suite: Suite, run: Run, name: str, options: Options) -> None:
    """Find the attention mass that candidates hold at equal numbers of keys examined."""
    optional("torch", f"the suite {suite.name!r}")
    optional("faiss", f"the suite {suite.name!r}", "faiss-cpu")
    from comparisons.attention import ranking

    length = SMOKE_LENGTH if options.smoke else 16_384
    for layer in range(heads.N_LAYERS)[: 1 if options.smoke else None] if name == heads.ENCODER else (None,):
        bench = _bench(run, suite, name, length, layer=layer, count=1 if options.smoke else 4)
        bench.step("candidates", lambda bench=bench: ranking.rows(bench.heads(), EXAMINED, run.threads))


def _decoding(suite: Suite, run: Run, name: str, options: Options) -> None:
    """Token after token over many cached keys."""
    cached, tokens = (SMOKE_LENGTH, 50) if options.smoke else (CACHED, DECODED)
    bench = _bench(run, suite, name, cached + tokens, count=2 if options.smoke else 4)
    from comparisons.attention import decoding

    bench.step(f"{tokens} tokens", lambda: decoding.rows(bench.heads(), cached, TOLERANCES))


def _truth(suite: Suite, run: Run, name: str, options: Options) -> None:
    """Every head against exact attention: its true error, beside the bound that the report has."""
    base, _ = heads.split(name)
    for length in (SMOKE_LENGTH,) if options.smoke else TRUTH_LENGTHS.get(base, (4_096, 8_192)):
        for layer in range(heads.N_LAYERS)[: 1 if options.smoke else None] if base == heads.ENCODER else (None,):
            bench = _bench(run, suite, name, length, layer=layer, count=2 if options.smoke else None)
            from comparisons.attention import truth

            bench.step("errors", lambda bench=bench: truth.rows(bench, TRUTH_TOLERANCES))


_suite = partial(Suite, read=heads.check, known=known)
SMOOTH = ("smooth-64-diffuse", "smooth-64-peaked", "smooth-128-diffuse", "smooth-128-peaked")
LENGTH = _suite(
    "attention_length", "attention's time and error against length", 12,
    ("heads", "heads-causal", "smooth-64-peaked", "noise"), _length,
    ("exact", "dci", "textbook", "iceformer", "nystrom", "performer", "window"),
    ("heads", "heads-causal"), tabled=False,
)  # fmt: skip
LAYERS = _suite(
    "attention_layers", "whole layers: how many times faster than exact attention, within the tolerance", 8,
    ("heads", "heads-causal", *SMOOTH), _layers, PAIR, ("heads", "smooth-64-peaked"),
)  # fmt: skip
RIVALS = _suite(
    "attention_rivals", "every rival at attention, error against time", 3, ("heads", "smooth-64-peaked"), _rivals,
    KEYS, ("heads",),
)  # fmt: skip
TOPK = _suite(
    "attention_keys", "top-k alone against the far field, by the keys that are touched", 3,
    ("heads", "smooth-64-diffuse", "smooth-64-peaked", "needle"), _keys,
    ("exact", "dci", "exact-topk", "dci-topk", "iceformer", "ivf", "lsh"), ("heads",), tabled=False,
)  # fmt: skip
RANKING = _suite(
    "attention_ranking", "ranking against bucketing: attention mass recalled at equal numbers of keys examined", 2,
    ("heads", "needle"), _ranking, ("dci", "ivf", "lsh"), ("heads",),
)  # fmt: skip
SENSITIVITY = _suite(
    "attention_sensitivity", "near field, far field's order, directions of dci_attention, one at a time", 2,
    ("heads", "smooth-64-peaked"), _sensitivity, PAIR, ("heads",),
)  # fmt: skip

DECODING = _suite(
    "attention_decoding", "decoding: a token's time over 32,768 cached keys, four query heads for each of keys", 2,
    ("smooth-64-diffuse", "smooth-64-peaked"), _decoding, PAIR, ("smooth-64-diffuse",),
)  # fmt: skip

TRUTH = _suite(
    "attention_truth", "true errors against the bounds that are reported, real heads and adversarial ones", 15,
    tuple(
        name + suffix
        for name in ("heads", "smooth-64-diffuse", "smooth-64-peaked", "needle", "noise", *adversarial.HEADS)
        for suffix in ("", heads.CAUSAL)
    ),
    _truth, ("dci",), ("heads", "clusters-64-heavy"),
)  # fmt: skip

SUITES = (LENGTH, LAYERS, DECODING, RIVALS, TOPK, RANKING, SENSITIVITY, TRUTH)
