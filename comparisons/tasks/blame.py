"""Where a model loses answers under a contender: which layer, which head, which rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from comparisons.attention.bench import Contender
from comparisons.tasks.evaluation import Evaluation
from comparisons.tasks.swap import swap

Table = list[list[str]]  # the first row is the header
Seen = list[list[list[tuple[Tensor, Tensor]]]]  # sequence, layer, head: its error, and those of its rows


def table(evaluation: Evaluation, contender: Contender) -> Table:
    """Return, for every layer and head, what is kept if this one alone is the contender's, and its errors.

    Errors are relative L2 errors: of the head, and of its rows, of those that are asked for an answer and of those
    whose answer is lost when the whole model is the contender's.
    """
    exact, _ = _run(evaluation, contender, lambda layer, head: False)
    mine, rows = _run(evaluation, contender, lambda layer, head: True)
    answers = evaluation.answers
    right, lost = exact.argmax(-1) == answers, (exact.argmax(-1) == answers) & (mine.argmax(-1) != answers)
    found = [["layer", "head", "kept, this head alone", "error", "rows: median", "99 %", "worst", "asked", "lost"]]
    config = evaluation.task.config
    for layer in range(config.layers):
        for head in range(config.heads):
            alone, _ = _run(evaluation, contender, lambda *place, wanted=(layer, head): place == wanted)
            kept = (alone.argmax(-1) == answers).sum() / right.sum()
            whole = torch.stack([sequence[layer][head][0] for sequence in rows]).mean()
            single = torch.cat([sequence[layer][head][1] for sequence in rows])
            asked = torch.cat([evaluation.rows_asked(at, seq[layer][head][1]) for at, seq in enumerate(rows)])
            cells = [f"{kept:.2%}", f"{whole:.4f}", *(f"{single.quantile(q):.4f}" for q in (0.5, 0.99, 1.0))]
            cells += [f"{asked.median():.4f}", f"{asked[lost].median():.4f}" if lost.any() else ""]
            found.append([str(layer), str(head), *cells])
    kept = (mine.argmax(-1) == answers).sum() / right.sum()
    found.append(["all", "all", f"{kept:.2%}", *[""] * 5, f"{lost.sum()} answers"])
    return found


def _run(evaluation: Evaluation, contender: Contender, chosen: Callable[[int, int], bool]) -> tuple[Tensor, Seen]:
    """Return logits with the chosen heads a contender's, and the errors of every head against exact attention."""
    layers, seen = evaluation.task.config.layers, []

    def watch(place: int, out: Tensor, exact: Tensor) -> Tensor:
        off, size = (out - exact)[0].norm(dim=-1), exact[0].norm(dim=-1)
        layer = place % layers
        if layer == 0:
            seen.append([])
        seen[-1].append([(o.norm() / s.norm(), o / s.clamp_min(1e-30)) for o, s in zip(off, size, strict=True)])
        mixed = exact.clone()
        for head in range(out.shape[1]):
            if chosen(layer, head):
                mixed[:, head] = out[:, head]
        return mixed

    with torch.no_grad(), swap(contender, evaluation.threads, judge=True, watch=watch):
        return evaluation.logits(), seen
