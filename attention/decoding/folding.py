"""Keys that came long ago, in cells: when recent keys are folded into them, and attention to both."""

import math
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dci._runtime.threads import Work
from dci._runtime.types import FloatArray

from .._native.near_field import LocalKeys
from ..options import AttentionOptions
from .fold import Fold, Pair, rows_of
from .prefix import Prefix
from .storage import Recent

# To measure these anew: python -m comparisons run --suite attention_decoding
_WORTH_THREADS = 2_000_000  # numbers that the last token read
_RISKY = 0.4  # times the threshold, for a query that is suspected of too large an error
KEPT = 32  # recent keys that a fold leaves, for `KeyValueIndex.crop` to take back
AT_A_TIME = 64  # keys that a token puts into cells
_MEASURED = 24.0  # times the root of the number of keys: after so many keys more, thresholds are measured anew
# Multiply-adds of a pending fold that a token does: in a call at least; for each head at 32,768 keys, by the root of
# their number; in a call at most, which takes about 10 ms.
_AT_LEAST, _A_HEAD, _AT_MOST = 32_000_000, 4_000_000, 160_000_000


class FoldedKeys:
    """The first keys of every sequence and head in cells, and float32 copies of the recent ones.

    Attributes
    ----------
    count : int
        Keys that are in cells; the others are recent.
    prefixes : list of (list of Prefix or None), or None
        By sequence and head; None for sequences without cells. None if there are no cells.
    pending : Fold or None
        Making cells, or measuring thresholds, of keys before a boundary. No keys are put into cells meanwhile.
    attended : int
        Keys that there were when a query attended last; 0 when cells are to be made at once.
    worked : int
        Multiply-adds of the last call of `work`.
    """

    def __init__(self) -> None:
        self.count = self.attended = 0
        self.prefixes: list[list[Prefix] | None] | None = None
        self.pending: Fold | None = None
        self.worked = 0
        self._measured = 0  # keys, when thresholds were measured
        self._recent: Recent | None = None
        self._numbers = 0

    def __getstate__(self) -> dict[str, Any]:
        # Kernels' memory is not copied: cells are made anew.
        return self.__dict__ | {"prefixes": None, "pending": None, "_recent": None, "count": 0, "attended": 0}

    def holds(self, sequence: int) -> bool:
        """Whether this sequence has cells."""
        return self.prefixes is not None and self.prefixes[sequence] is not None

    def reaches(self, stop: int) -> bool:
        """Whether no keys from `stop` on are in cells, or on their way there."""
        return self.count <= stop and (self.pending is None or self.pending.boundary <= stop)

    def next_boundary(self, most: int, at_once: bool) -> int:
        """Before which keys are to be in cells now, `most` at most."""
        if at_once or most - self.count < AT_A_TIME:
            return most if at_once else self.count
        return self.count + AT_A_TIME

    def crop(self, length: int) -> None:
        """Forget what was copied or begun of keys that are no more; those in cells are still there."""
        self._recent = None
        self.attended = min(self.attended, length)
        if self.pending is not None and self.pending.boundary > length:
            self.pending = None

    def select(self, chosen: list[int]) -> None:
        """Keep these sequences, in this order."""
        self._recent = None
        self.prefixes = None if self.prefixes is None else [self.prefixes[b] for b in chosen]
        if self.pending is not None:
            self.pending.select(chosen)

    def is_due(self, n_keys: int, long: list[int]) -> bool:
        """Whether these sequences want their cells made or measured anew, with so many keys in cells."""
        if self.prefixes is None or n_keys - self._measured >= _MEASURED * math.sqrt(n_keys):
            return True
        return any(of is None or not all(p.fits() for p in of) for of in (self.prefixes[b] for b in long))

    def append(self, pair: Pair, boundary: int, long: list[int]) -> None:
        """Put the keys before `boundary` into the cells of these sequences; others that have cells lose them."""
        prefixes, start = self.prefixes, self.count
        assert prefixes is not None  # noqa: S101 - the caller has looked
        self.prefixes, self.count, self._recent = None, 0, None  # in case of an error
        known: set[int] = set()
        for b, of in enumerate(prefixes):
            if of is None or b not in long:
                prefixes[b] = None
                continue
            for h, prefix in enumerate(of):
                if id(prefix.field) in known:  # another sequence has put keys of its own there
                    of = prefixes[b] = [*of[:h], prefix.copy(), *of[h + 1 :]]
                known.add(id(of[h].field))
                of[h].append(*rows_of(pair, b, h)(start, boundary))
        self.prefixes, self.count = prefixes, boundary

    def begin(self, fold: Fold) -> None:
        """Have `work` make what a fold is to make."""
        self.pending = fold

    def work(self, pair: Pair, options: AttentionOptions, at_once: bool) -> None:
        """Do a token's part of the pending fold, or all of it."""
        fold, self.pending, self.worked = self.pending, None, 0
        if fold is None:
            return
        if at_once:
            made = fold.finish(pair, options.num_threads or torch.get_num_threads())
        else:
            made = fold.advance(pair, self._part(pair))
            self.worked = fold.worked
        if made is None:
            self.pending = fold
            return
        self._recent = None
        self.prefixes = made if any(of is not None for of in made) else None
        self.count = self._measured = fold.boundary if self.prefixes else 0

    def _part(self, pair: Pair) -> int:
        """How much of a pending fold a token does: at least so much, and a step more."""
        batch, n_heads, n_keys = pair[0].shape[:3]
        part = _A_HEAD * math.sqrt(max(1.0, n_keys / 32768))
        if self.prefixes is None:  # a token attends to all keys exactly, and may take as long for the fold
            part = max(part, 8.0 * n_keys * pair[0].shape[3])
        return int(min(_AT_MOST, max(_AT_LEAST, batch * n_heads * part)))

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
        recent = self._copied(pair)
        n_recent = pair[0].shape[2] - self.count
        stops = np.arange(n_recent - length + 1, n_recent + 1, dtype=np.int64)  # of row g * L + i, for i
        heads = [(b * n_heads + h, p) for b, of in enumerate(self.prefixes or ()) if of for h, p in enumerate(of)]
        touched: dict[int, int] = {}
        risks = np.zeros(outs.shape[:2], np.float32)
        groups = np.arange(rows) // length

        def attend_head(item: tuple[int, Prefix]) -> None:
            i, prefix = item
            attend = partial(prefix.field.attend_rows, queries[i], out=outs[i], local=LocalKeys(*recent[i], stops))
            some = np.flatnonzero(wanted[i]).astype(np.int32)
            touched[i] = attend(some, prefix.choice.threshold, risks=risks[i])
            risky = some[risks[i, some] > prefix.most_risk[groups[some]]]
            if len(risky):
                touched[i] += attend(risky, _RISKY * prefix.choice.threshold)

        n_threads = options.num_threads or torch.get_num_threads()
        with Work(n_threads if self._numbers >= _WORTH_THREADS else 1) as work:
            work.run(attend_head, heads)
        n_touched = sum(touched.values())
        self._numbers = n_touched * (queries.shape[-1] + width)
        return n_touched / (len(heads) * rows)

    def _copied(self, pair: Pair) -> list[tuple[FloatArray, FloatArray]]:
        """Copy the recent keys and values to float32, those alone that are new; return them head by head."""
        keys, values = (x[:, :, self.count :] for x in pair)
        n_recent = keys.shape[2]
        if self._recent is None or self._recent.room < n_recent:
            self._recent = Recent(keys, values, n_recent + n_recent // 2 + 2 * AT_A_TIME)
        self._recent.fill(keys, values)
        return self._recent.heads
