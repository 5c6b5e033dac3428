"""Keys that came long ago, in cells: when recent keys are folded into them, and attention to both."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dci._runtime.threads import Work
from dci._runtime.types import FloatArray

from .._native.near_field import LocalKeys
from ..options import AttentionOptions
from .fold import Fold, Pair, rows_of
from .prefix import Prefix
from .storage import Growing, Recent

# To measure these anew: python -m comparisons run --suite attention_decoding
_WORTH_THREADS = 2_000_000  # numbers that the last token read
KEPT = 32  # recent keys that a fold leaves, for `KeyValueIndex.crop` to take back
AT_A_TIME = 32  # keys that a token puts into cells
_MEASURED = 24.0  # times the root of the number of keys: after so many keys more, thresholds are measured anew
_GROWTH = 2.0  # times the keys that a plan was made for: it is made anew
_GOLDEN = (math.sqrt(5) - 1) / 2  # multiples of which lie far apart, modulo 1
# Multiply-adds of a pending fold that a token does: in a call at least; for each head at 32,768 keys, by the root of
# their number; in a call at most, which takes about 10 ms.
_AT_LEAST, _A_HEAD, _AT_MOST = 32_000_000, 4_000_000, 160_000_000


class FoldedKeys:
    """The first keys of every sequence and head in cells, and how the recent ones are attended to.

    Parameters
    ----------
    turn : int
        Which of several indices this is that the same tokens go through: their folds fall on different tokens.

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

    def __init__(self, turn: int = 0) -> None:
        self.count = self.attended = 0
        self.turn = turn
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
        if at_once:
            return most
        behind, in_turn = most - self.count, (most + self.turn) % AT_A_TIME == 0
        return self.count + (AT_A_TIME if behind >= (1 if in_turn else 2) * AT_A_TIME else 0)

    def crop(self, length: int) -> None:
        """Forget what was copied of keys that are no more; those in cells, and on their way there, still are."""
        self._recent = None
        self.attended = min(self.attended, length)

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
        growth = self._growth()
        return any(of is None or not all(p.fits(growth) for p in of) for of in (self.prefixes[b] for b in long))

    def _growth(self) -> float:
        return _GROWTH * (1 - self._apart() / 4)

    def _apart(self) -> float:
        """Return a number in [0, 1) that is unlike those of other turns."""
        return self.turn * _GOLDEN % 1

    def append(self, pair: Pair, boundary: int, long: list[int]) -> None:
        """Put the keys before `boundary` into the cells of these sequences; others that have cells lose them."""
        prefixes, start = self.prefixes, self.count
        assert prefixes is not None  # noqa: S101 - the caller has looked
        self.prefixes, self.count, self._recent = None, 0, None  # in case of an error
        known: set[int] = set()
        for b, of in enumerate(prefixes):
            own = [p.copy() if id(p.field) in known else p for p in of or ()]  # copies of a sequence go their own ways
            known.update(id(prefix.field) for prefix in own)
            prefixes[b] = own if own and b in long else None
        for b, of in enumerate(prefixes):
            for h, prefix in enumerate(of or ()):
                prefix.append(*rows_of(pair, b, h)(start, boundary))
        if any(prefixes):
            self.prefixes, self.count = prefixes, boundary

    def begin(
        self,
        boundary: int,
        starts: list[int],
        samples: dict[int, list[FloatArray]],
        scale: float,
        options: AttentionOptions,
    ) -> None:
        """Have `work` make cells of the keys before `boundary`, or measure them anew (see `Fold`)."""
        self.pending = Fold(boundary, starts, samples, self.prefixes, self._growth(), scale, options)

    def work(self, filled: Callable[[], Pair], options: AttentionOptions, at_once: bool) -> None:
        """Do a token's part of the pending fold, or all of it, given what returns all keys and values."""
        fold, self.pending, self.worked = self.pending, None, 0
        if fold is None:
            return
        pair = filled()
        made: list[list[Prefix] | None] | None
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
        if at_once:  # by all indices together
            self._measured -= int((0.5 - self._apart()) * _MEASURED * math.sqrt(fold.boundary))

    def _part(self, pair: Pair) -> int:
        """How much of a pending fold a token does: at least so much, and a step more."""
        batch, n_heads, n_keys = pair[0].shape[:3]
        part = _A_HEAD * math.sqrt(max(1.0, n_keys / 32768))
        if self.prefixes is None:  # a token attends to all keys exactly, and may take as long for the fold
            part = max(part, 8.0 * n_keys * pair[0].shape[3])
        return int(min(_AT_MOST, max(_AT_LEAST, batch * n_heads * part)))

    def attend_folded(
        self,
        store: tuple[Growing, Growing],
        queries: FloatArray,
        answered: npt.NDArray[np.bool_] | None,
        length: int,
        options: AttentionOptions,
    ) -> tuple[FloatArray, float]:
        """Attend with the sequences that have cells, to these and to recent keys.

        Parameters
        ----------
        store : (Growing, Growing)
            All keys and values.
        queries : (B * H, G * L, E) float32, C-contiguous
            Rows g * L + i.
        answered : (B * H, G * L) bool, optional
            Rows whose output is wanted, where not all are.
        length : int
            L.
        options : AttentionOptions

        Returns
        -------
        out : (B * H, G * L, Ev) float32
            Anything in rows that are not wanted.
        touched : float
            Keys and summaries of cells that a query touched, on average.
        """
        (_, n_heads, _, width), n_rows = store[1].all_rows.shape, queries.shape[1]
        out = np.empty((*queries.shape[:2], width), np.float32)
        recent = self._seen(store, length)
        heads = [(b * n_heads + h, p) for b, of in enumerate(self.prefixes or ()) if of for h, p in enumerate(of)]
        touched: dict[int, int] = {}
        every = np.arange(n_rows, dtype=np.int32)

        def attend_head(item: tuple[int, Prefix]) -> None:
            i, prefix = item
            some = every if answered is None else np.flatnonzero(answered[i]).astype(np.int32)
            most = prefix.most_risk if length == 1 else prefix.most_risk.repeat(length)
            attend = prefix.field.attend_rows
            touched[i] = attend(queries[i], some, prefix.choice.threshold, out[i], recent[i], None, most)

        n_threads = options.num_threads or torch.get_num_threads()
        with Work(n_threads if self._numbers >= _WORTH_THREADS else 1) as work:
            work.run(attend_head, heads)
        n_touched = sum(touched.values())
        self._numbers = n_touched * (queries.shape[2] + width)
        return out, n_touched / (len(heads) * n_rows)

    def _seen(self, store: tuple[Growing, Growing], length: int) -> list[LocalKeys]:
        """Return the recent keys of each head, as `length` tokens see them."""
        n_keys = store[0].length
        if self._recent is None or not self._recent.holds(n_keys):
            n_recent = n_keys - self.count
            self._recent = Recent(*store, self.count, n_recent + n_recent // 2 + 2 * AT_A_TIME)
        return self._recent.seen(n_keys, length)
