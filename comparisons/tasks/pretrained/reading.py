"""A language model reads a long text, with one contender after the other for its attention."""

from __future__ import annotations

import time
from typing import Any

from torch import Tensor
from torch.nn import functional

from comparisons.attention.bench import Contender
from comparisons.harness.results import Row
from comparisons.tasks import rows
from comparisons.tasks.clock import clocked
from comparisons.tasks.pretrained.answers import Answers

AT_ONCE = 512  # tokens whose logits are in memory
NONE = -100  # PyTorch's number for what is not asked


class Reading:
    """A text of one length, each of whose tokens is to be foretold.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        In evaluation mode, with ``attn_implementation="sdpa"``.
    tokens : Tensor of shape (1, length)
    threads : int
    unasked : int, optional
        A token that nobody has to foretell.
    judge : bool
        Find the errors of heads as well.
    **more
        For the model, beside the tokens.
    """

    def __init__(
        self, model: Any, tokens: Tensor, threads: int, unasked: int = NONE, judge: bool = True, **more: Any
    ) -> None:
        self.base, self.head = model.base_model, model.get_output_embeddings()
        self.mlps = [module for name, module in self.base.named_modules() if name.endswith(".mlp")]
        self.tokens, self.more = tokens, more
        self.answers = Answers(self._hidden, threads, judge)
        coming = tokens[0, 1:]
        self.coming = coming.masked_fill(coming == unasked, NONE)

    def row(self, contender: Contender) -> Row:
        """Return the row of a contender.

        Beside what `comparisons.tasks.rows` says it has ``divergence``, the mean Kullback-Leibler divergence from
        exact attention's next token, in nats, and the parts of the model's time: ``mlp_seconds`` and
        ``head_seconds`` (the logits); what is left are projections, norms and positions.
        """
        (hidden, mlp_seconds), row = self.answers.of(contender)
        found = self._compare(hidden)
        row["seconds"] = [row["seconds"][0] + found["head_seconds"]]
        row |= {"causal": True, "sequences": 1, "mlp_seconds": mlp_seconds, "head_seconds": found["head_seconds"]}
        row["divergence"] = found["divergence"]
        items = int((self.coming != NONE).sum())
        return row | rows.perplexity(found["loss"], found["exact_loss"], found["same"], items)

    def _hidden(self) -> tuple[Tensor, float]:
        """Return the last hidden states but one, (length - 1, width), and the seconds of the MLPs."""
        with clocked(self.mlps) as seconds:
            hidden = self.base(self.tokens, use_cache=False, **self.more).last_hidden_state[0]
        return hidden[:-1], seconds[0]

    def _compare(self, hidden: Tensor) -> dict[str, float]:
        """Hold logits against exact attention's, some tokens at a time."""
        total = dict.fromkeys(("loss", "exact_loss", "divergence", "same", "head_seconds"), 0.0)
        exact, n = self.answers.exact[0], 0
        for start in range(0, len(hidden), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            begin = time.perf_counter()
            mine = self.head(hidden[part])
            total["head_seconds"] += time.perf_counter() - begin
            asked = self.coming[part] != NONE
            mine, theirs, answers = mine[asked], self.head(exact[part])[asked], self.coming[part][asked]
            total["same"] += (mine.argmax(-1) == theirs.argmax(-1)).sum().item()
            mine, theirs = (logits.float().log_softmax(-1) for logits in (mine, theirs))
            total["loss"] += functional.nll_loss(mine, answers, reduction="sum").item()
            total["exact_loss"] += functional.nll_loss(theirs, answers, reduction="sum").item()
            total["divergence"] += functional.kl_div(mine, theirs, log_target=True, reduction="sum").item()
            n += len(answers)
        return {name: value if name == "head_seconds" else value / n for name, value in total.items()}
