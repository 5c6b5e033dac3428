"""Keys that came long ago, in cells: when recent keys are folded into them, and attention to both."""

import math
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dci._runtime.blas import one_blas_thread
from dci._runtime.threads import Work
from dci._runtime.types import FloatArray

from .._native.near_field import LocalKeys
from ..options import AttentionOptions
from .prefix import Choice, Prefix, make_prefix
from .storage import Recent

# To measure these anew: python -m comparisons run --suite attention_decoding
_RECENT = 6.0  # times the root of the number of keys: folding and attending to recent keys then cost about the same
_WORTH_THREADS = 2_000_000  # numbers that the last token read
_RISKY = 0.4  # times the threshold, for a query that is suspected of too large an error
KEPT = 32  # recent keys that a fold leaves, for `KeyValueIndex.crop` to take back


def recent_before_fold(n_keys: int, exact: int) -> int:
    """How many recent keys make a fold, if so many are to be attended to exactly."""
    return int(exact + KEPT + _RECENT * math.sqrt(n_keys))


class FoldedKeys:
    """The first keys of every sequence and head in cells, and float32 copies of the recent ones.

    Attributes
    ----------
    count : int
        Keys that are in cells; the others are recent.
    prefixes : list of (list of Prefix or None), or None
        By sequence and head; None for sequences that are too short. None if there are no cells.
    """

    def __init__(self) -> None:
        self.count = 0
        self.prefixes: list[list[Prefix] | None] | None = None
        self._choices: list[list[Choice] | None] | None = None
        self._recent: Recent | None = None
        self._numbers = 0

    def __getstate__(self) -> dict[str, Any]:
        # Kernels' memory is not copied: cells are made anew.
        return self.__dict__ | {"prefixes": None, "_recent": None, "count": 0}

    def holds(self, sequence: int) -> bool:
        """Whether this sequence has cells."""
        return self.prefixes is not None and self.prefixes[sequence] is not None

    def drop_recent(self) -> None:
        """Drop the copies of recent keys, of which some are others now."""
        self._recent = None

    def select(self, chosen: list[int]) -> None:
        """Keep these sequences, in this order."""
        self._recent = None
        self.prefixes = None if self.prefixes is None else [self.prefixes[b] for b in chosen]
        self._choices = None if self._choices is None else [self._choices[b] for b in chosen]

    def fold(
        self,
        pair: tuple[Tensor, Tensor],
        samples: dict[int, list[FloatArray]],
        starts: list[int],
        boundary: int,
        scale: float,
        options: AttentionOptions,
    ) -> None:
        """Put the keys before `boundary` of some sequences into cells, instead of what is in cells now.

        Parameters
        ----------
        pair : Tensors of shape (B, H, n, E) and (B, H, n, Ev)
            All keys and values.
        samples : dict from sequence to list of H arrays of shape (tokens, G, E)
            Recent queries of the sequences that are worth cells.
        starts : list of B int
            Keys before these are seen by no query.
        boundary : int
        scale : float
        options : AttentionOptions
        """
        batch, n_heads = pair[0].shape[:2]
        old = self._choices or [None] * batch
        self.prefixes, self._recent, self.count = None, None, 0  # first, for the memory and in case of an error
        if not samples:
            return
        made: dict[tuple[int, int], Prefix] = {}

        def fold_head(item: tuple[int, int]) -> None:
            b, h = item
            key, value = (x[b, h, starts[b] : boundary].float().contiguous().numpy() for x in pair)
            choices = old[b]
            choice = None if choices is None else choices[h]
            made[item] = make_prefix(key, value, samples[b][h], scale, options, choice)

        with one_blas_thread(), Work(options.num_threads or torch.get_num_threads()) as work:
            work.run(fold_head, [(b, h) for b in samples for h in range(n_heads)])
        prefixes = [[made[b, h] for h in range(n_heads)] if b in samples else None for b in range(batch)]
        self.prefixes, self.count = prefixes, boundary
        self._choices = [None if of is None else [prefix.choice for prefix in of] for of in prefixes]

    def attend_folded(
        self,
        pair: tuple[Tensor, Tensor],
        query: Tensor,
        answered: Tensor,
        out: Tensor,
        length: int,
        options: AttentionOptions,
    ) -> float:
        """Attend with the sequences that have cells, to these and to recent keys.

        Parameters
        ----------
        pair : Tensors of shape (B, H, n, E) and (B, H, n, Ev)
            All keys and values.
        query : Tensor of shape (B, H, G * L, E), float32
        answered : Tensor of shape (B, H, G * L), bool
            Rows whose output is wanted.
        out : Tensor of shape (B, H, G * L, Ev), float32, written at these rows
        length : int
            L.
        options : AttentionOptions

        Returns
        -------
        float
            Keys and summaries of cells that a query touched, on average.
        """
        n_heads, rows, width = out.shape[1:]
        queries, outs = query.contiguous().flatten(0, 1).numpy(), out.flatten(0, 1).numpy()
        wanted = answered.flatten(0, 1).numpy()
        recent = self._copied(pair, length + options.window)
        n_recent = pair[0].shape[2] - self.count
        # Rows are g * L + i. Those of a token attend together, as those of the sample did: the error is that of it.
        tokens = np.arange(rows, dtype=np.int32).reshape(-1, length).T
        stops = np.arange(n_recent - length + 1, n_recent + 1, dtype=np.int64)
        heads = [(b * n_heads + h, p) for b, of in enumerate(self.prefixes or ()) if of for h, p in enumerate(of)]
        touched: dict[int, int] = {}
        risks = np.zeros(outs.shape[:2], np.float32)

        def attend_head(item: tuple[int, Prefix]) -> None:
            i, prefix = item
            attend = partial(prefix.field.attend_rows, queries[i], out=outs[i], local=LocalKeys(*recent[i], stops))
            touched[i] = 0
            for token in tokens:
                rows = token[wanted[i, token]]
                touched[i] += attend(rows, prefix.choice.threshold, risks=risks[i])[0]
                risky = rows[risks[i, rows] > prefix.most_risk[rows // length]]
                if len(risky):
                    touched[i] += attend(risky, _RISKY * prefix.choice.threshold)[0]

        n_threads = options.num_threads or torch.get_num_threads()
        with Work(n_threads if self._numbers >= _WORTH_THREADS else 1) as work:
            work.run(attend_head, heads)
        n_touched = sum(touched.values())
        self._numbers = n_touched * (queries.shape[-1] + width)
        return n_touched / (len(heads) * rows)

    def _copied(self, pair: tuple[Tensor, Tensor], exact: int) -> list[tuple[FloatArray, FloatArray]]:
        """Copy the recent keys and values to float32, those alone that are new; return them head by head."""
        keys, values = (x[:, :, self.count :] for x in pair)
        n_recent = keys.shape[2]
        if self._recent is None or self._recent.room < n_recent:
            room = n_recent + recent_before_fold(pair[0].shape[2], exact) // 2
            self._recent = Recent(keys, values, room)
        self._recent.fill(keys, values)
        return self._recent.heads
