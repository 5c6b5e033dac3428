"""True errors of `dci_attention` against the bounds that it reports: every head is tried, however short."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attention import AttentionOptions, dci_attention
from comparisons.attention.bench import AttentionBench
from comparisons.harness.results import Row


def rows(bench: AttentionBench, tolerances: tuple[float, ...]) -> list[Row]:
    """Return a row a tolerance, with figures for every head that was approximated.

    ``errors``, ``estimated`` and ``bounds`` are relative L2 errors of heads, ``row_errors`` median, 99 % quantile and
    largest of single queries' relative errors in all of them.
    """
    query, key, value = (part[None] for part in bench.tensors())
    exact = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=bench.causal)
    found = []
    for tolerance in tolerances:
        options = AttentionOptions(tolerance=tolerance, exact_below=0)
        out, report = dci_attention(query, key, value, is_causal=bench.causal, options=options, return_report=True)
        tried = [at for at, head in enumerate(report.heads) if head.method == "near+far"]
        some = [report.heads[at] for at in tried]
        found.append(
            {
                "method": f"dci_attention {tolerance:g}",
                "options": {"tolerance": tolerance},
                "heads": len(report.heads),
                "keys": sum(head.share for head in report.heads) / len(report.heads),
                "estimated": [head.error for head in some],
                "bounds": [head.error_bound for head in some],
                **_true_errors(out[0, tried], exact[0, tried]),
            }
        )
    return found


def _true_errors(out: Tensor, exact: Tensor) -> dict[str, Any]:
    off, size = (out - exact).double().norm(dim=-1), exact.double().norm(dim=-1)
    errors = off.norm(dim=-1) / size.norm(dim=-1)
    single = (off / size.clamp_min(1e-30)).flatten()
    if not len(single):
        return {"errors": [], "row_errors": []}
    at = torch.tensor([0.5, 0.99, 1.0], dtype=torch.float64)
    ranks = (at * (len(single) - 1)).round().long()
    return {"errors": errors.tolist(), "row_errors": single.sort().values[ranks].tolist()}
