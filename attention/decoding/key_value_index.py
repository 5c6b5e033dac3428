"""Keys and values that grow token by token, and attention to them at a small part of the exact cost.

Needs no transformers: `attention.cache.DCICache` has one `KeyValueIndex` a layer.
"""

import math
import operator
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dci._runtime.types import FloatArray

from .._core.exact import attend_last
from .._core.validation import check_inputs, check_settings
from ..errors import InvalidTypeError, InvalidValueError, UnsupportedError
from ..options import AttentionOptions
from .folding import KEPT, FoldedKeys
from .report import IndexReport
from .storage import LARGEST, Growing, Queries, usual

# To measure these anew: python -m comparisons run --suite attention_decoding
EXACT_BELOW = 8192  # keys: below it the exact kernel is as fast
AT_ONCE = 32  # of more tokens than this, attention is worth planning for them alone
_SAMPLE = 512  # tokens whose queries are remembered
_LEAST_SAMPLE = 16  # tokens, before which queries are not known well enough
_LEAST_KEYS = 16  # of a sequence


class KeyValueIndex:
    """A growing index a head of keys and values, for a batch of sequences of one length.

    Keys that came long ago lie in cells, as in `dci_attention`; recent ones are attended to exactly, and folded into
    the cells a few at a time. For few keys, and until 16 tokens' queries are known from `observe` or `attend`, all
    attention is exact.

    Parameters
    ----------
    options : AttentionOptions, optional
        `exact_below` counts the keys of a sequence, all of which the last token sees; None means 8,192. There is no
        `top_k` here.

    Raises
    ------
    InvalidTypeError, UnsupportedError
        Options that cannot be used.

    Notes
    -----
    n keys and values take up to 1.5 times their size in their own dtype, since they grow by halves. The cells take
    about 4.5 (E + Ev) bytes a key beside that, in float32, and their moments 4 (E + 17 Ev + 136) bytes a cell, of which
    a head has some 350 for 32,768 keys, growing as n^0.4. Both are there twice while cells are made anew, which they
    are when the keys have doubled. Not for several threads at once.

    A token puts at most 32 keys into cells. Every 24 √n tokens the tolerance is measured anew, or the cells are made
    anew. This is spread over the tokens that follow, some milliseconds each, by counts and not by the clock, so that
    results do not depend on it; what there was is used until all is done, and no key is put into cells meanwhile: up to
    about 1,000 are attended to exactly then. After more than 32 tokens at once, as a prompt's, all is done at once.

    The tolerance is kept on average over the tokens until it is measured again, for each query head, as far as 256 of
    the last 512 tokens tell: these are attended to exactly too, and a bound for others is within the tolerance, which
    allows for a heavy tail. It does not cover queries unlike those before, nor a rare token that attends mostly to
    one key which nothing of these attended to: its own error may be large.

    Examples
    --------
    >>> index = KeyValueIndex(AttentionOptions(tolerance=0.1))
    >>> index.append(torch.randn(1, 2, 100, 16), torch.randn(1, 2, 100, 16))
    >>> index.attend(torch.randn(1, 8, 1, 16)).shape  # queries of the last key, four heads for each of two
    torch.Size([1, 8, 1, 16])
    """

    _options: AttentionOptions | None = None
    _turn = 0

    def __init__(self, options: AttentionOptions | None = None) -> None:
        self.options = AttentionOptions() if options is None else options
        self.reset()

    @property
    def options(self) -> AttentionOptions:
        """The options; others than before undo the cells."""
        assert self._options is not None  # noqa: S101 - set by __init__
        return self._options

    @options.setter
    def options(self, options: AttentionOptions) -> None:
        check_options(options)
        if options != self._options:
            self._options = options
            self._invalidate()

    @property
    def turn(self) -> int:
        """Which of several indices this is that the same tokens go through, such as a model's layers; 0 at first.

        Where these are different numbers, few tokens do work of folds for several of them.
        """
        return self._turn

    @turn.setter
    def turn(self, turn: int) -> None:
        self._turn = self._cells.turn = turn

    def reset(self) -> None:
        """Drop everything but the options."""
        self._store: tuple[Growing, Growing] | None = None
        self._queries: Queries | None = None
        self._scale, self._starts = math.nan, list[int]()
        self._touched = 0.0
        self._invalidate()

    def _invalidate(self) -> None:
        """Drop the cells, and what was decided about them."""
        self._cells = FoldedKeys(self._turn)
        self._checked, self._are_sound = 0, list[bool]()  # keys that were looked at, and by sequence, what was found

    def __len__(self) -> int:
        return 0 if self._store is None else self._store[0].length

    @property
    def keys(self) -> Tensor:
        """All keys, (B, H, n, E), a view."""
        return self._filled()[0]

    @property
    def values(self) -> Tensor:
        """All values, (B, H, n, Ev), a view."""
        return self._filled()[1]

    def _filled(self) -> tuple[Tensor, Tensor]:
        keys, values = self._grown()
        return keys.filled, values.filled

    def _grown(self) -> tuple[Growing, Growing]:
        if self._store is None:
            raise InvalidValueError("keys and values: expected some to be appended first, received none")
        return self._store

    def append(self, key: Tensor, value: Tensor) -> None:
        """Add the keys and values of new tokens.

        Parameters
        ----------
        key, value : Tensor of shape (B, H, L, E) and (B, H, L, Ev)

        Raises
        ------
        InvalidTypeError, InvalidValueError, UnsupportedError
            Tensors that do not fit each other or those before, or that require gradients.
        """
        check_inputs(key, key, value, None, False)
        if key.dim() != 4 or value.dim() != 4 or key.shape[:3] != value.shape[:3]:
            raise InvalidValueError(
                "key and value: expected shapes (B, H, L, E) and (B, H, L, Ev), "
                f"received {tuple(key.shape)} and {tuple(value.shape)}"
            )
        store = (Growing(key), Growing(value)) if self._store is None else self._store
        for rows, new in zip(store, (key, value), strict=True):
            old = rows.all_rows
            if new.dtype != old.dtype or new.shape[:2] != old.shape[:2] or new.shape[3] != old.shape[3]:
                raise InvalidValueError(
                    f"key and value: expected {old.dtype} of shape ({old.shape[0]}, {old.shape[1]}, L, "
                    f"{old.shape[3]}) as before, received {new.dtype} of shape {tuple(new.shape)}"
                )
        for rows in store:  # both, before one of them grows
            rows.reserve(key.shape[2])
        for rows, new in zip(store, (key, value), strict=True):
            rows.append(new)
        self._store = store

    def observe(self, query: Tensor) -> None:
        """Remember the queries of a prompt that was attended to elsewhere: those to come will be like them.

        Parameters
        ----------
        query : Tensor of shape (B, Hq, L, E)
            Of consecutive tokens, Hq a multiple of H. The last 512 tokens count.
        """
        self._check_query(query)
        self._remember(self._grouped(query[:, :, -_SAMPLE:]))

    def _check_query(self, query: Tensor) -> None:
        keys = self._grown()[0].all_rows  # a view would take longer
        check_inputs(query, keys, keys, None, True)
        if query.dim() != 4 or query.shape[0] != keys.shape[0]:
            raise InvalidValueError(
                f"query: expected shape ({keys.shape[0]}, Hq, L, {keys.shape[3]}), received {tuple(query.shape)}"
            )

    def _grouped(self, query: Tensor) -> FloatArray:
        """Split heads into those that share keys, in float32, (B, H, G, L, E)."""
        batch, heads, length, width = query.shape
        n_heads = self._grown()[0].all_rows.shape[1]
        rows: FloatArray = query.detach().float().numpy()
        return rows.reshape(batch, n_heads, heads // n_heads, length, width)

    def _remember(self, grouped: FloatArray) -> None:
        if self._queries is None or self._queries.shape != _shape(grouped):
            self._queries = Queries(_shape(grouped), _SAMPLE)
        self._queries.append(grouped)

    def attend(
        self,
        query: Tensor,
        scale: float | None = None,
        starts: Sequence[int] | None = None,
        options: AttentionOptions | None = None,
    ) -> Tensor:
        """Attend with the queries of the last tokens, each to the keys up to its own.

        Parameters
        ----------
        query : Tensor of shape (B, Hq, L, E)
            Hq a multiple of H, L at most n.
        scale : float, optional
            1/√E if not given.
        starts : sequence of B int, optional
            How many of each sequence's first keys nothing sees: padding on the left, at most n - L.
        options : AttentionOptions, optional
            From this call on.

        Returns
        -------
        Tensor of shape (B, Hq, L, Ev)
            In the dtype of the queries. Queries that are not finite are answered as PyTorch does, and are no part of
            what is remembered.

        Raises
        ------
        InvalidTypeError, InvalidValueError, UnsupportedError
            Arguments that cannot be used; NaN or infinity in keys that are to go into cells. Nothing has changed then.

        Notes
        -----
        No key or value behind a query has any part in its output, nor in what is decided about cells that it attends
        to; for that, cells are made anew for more tokens at once than there are behind them. Queries behind it
        have a part: they are of the sample that the tolerance is measured with.
        """
        batch, _, _, width = self._grown()[0].all_rows.shape
        check_settings(0.0, scale, options)
        options = self.options if options is None else options
        check_options(options)
        self._check_query(query)
        n_keys, length = len(self), query.shape[2]
        if not 0 < length <= n_keys:
            raise InvalidValueError(
                f"query: expected shape ({batch}, Hq, L, {width}) with L from 1 to {n_keys}, "
                f"received {tuple(query.shape)}"
            )
        places = _checked_starts(starts, batch, n_keys - length)
        scale = max(width, 1) ** -0.5 if scale is None else float(scale)
        with torch._C.DisableTorchFunction():  # or `use` around this call would take its exact parts
            grouped = self._grouped(query)
            self._fold(grouped, scale, places, options)
            return self._attend_last(query, grouped)

    def _attend_last(self, query: Tensor, grouped: FloatArray) -> Tensor:
        """Attend by cells, where there are some, and where they can answer."""
        prefixes, length, starts = self._cells.prefixes, query.shape[2], self._starts
        if prefixes is None:
            keys, values = self._filled()
            self._touched = len(self) - sum(starts) / max(len(starts), 1)
            return attend_last(query, keys, values, starts, self._scale)
        batch, n_heads, group, _, width = grouped.shape
        queries = np.ascontiguousarray(grouped.reshape(batch * n_heads, group * length, width))
        answered = None
        if not (None not in prefixes and np.abs(queries).max(initial=0.0) < LARGEST):  # NaN is not smaller
            usual_rows = (np.abs(queries) < LARGEST).all(-1).reshape(batch, n_heads, -1)
            answered = (usual_rows & np.array([of is not None for of in prefixes])[:, None, None]).reshape(
                batch * n_heads, -1
            )
        out, self._touched = self._cells.attend_folded(self._grown(), queries, answered, length, self.options)
        whole = torch.from_numpy(out).view(batch, n_heads * group, length, -1).to(query.dtype)
        return whole if answered is None else self._with_exact(whole, ~torch.from_numpy(answered), query)

    def _with_exact(self, out: Tensor, left: Tensor, query: Tensor) -> Tensor:
        """Answer the rows that cells cannot with exact attention."""
        keys, values = self._filled()
        left = left.view(out.shape[:3])
        for b in left.flatten(1).any(1).nonzero().flatten().tolist():
            part = slice(b, b + 1)
            alone = attend_last(query[part], keys[part], values[part], self._starts[part], self._scale)
            out[b] = torch.where(left[b, :, :, None], alone[0], out[b])
        return out

    def _fold(self, query: FloatArray, scale: float, starts: list[int], options: AttentionOptions) -> None:
        """Remember the queries and the settings, and do this token's part of putting keys into cells."""
        same = scale == self._scale and starts == self._starts and options == self._options
        n_keys, length = len(self), query.shape[3]
        exact = length + options.window  # keys that the first query sees exactly, or not at all
        reaches = same and self._cells.reaches(n_keys - exact)  # keys that the cells hold are before all of these
        at_once = not reaches or n_keys - self._cells.attended > AT_ONCE  # as a prompt is attended to
        target = n_keys - exact - KEPT
        if reaches and self._cells.prefixes is not None:
            target = self._cells.next_boundary(target, at_once)
        due = scale > 0 and target > (self._cells.count if reaches else 0) and (self._cells.pending is None or at_once)
        sound, long = self._sound(query, target, starts, options, reaches) if due else ([], [])
        # Nothing has changed so far, and no argument is refused from here on.
        if not reaches:
            self._invalidate()  # and what was decided about cells, from keys that these queries may not see
        self._remember(query)
        self._scale, self._starts, self._options = scale, starts, options
        if sound:
            self._checked, self._are_sound = target, sound
        if long:
            self._cells.pending = None
            self._put(target, long)
        self._cells.work(self._filled, options, at_once)
        self._cells.attended = n_keys

    def _put(self, boundary: int, long: list[int]) -> None:
        """Put the keys before `boundary` of these sequences into cells, or begin to."""
        cells = self._cells
        if cells.prefixes is not None:
            cells.append(self._filled(), boundary, long)
            if not cells.is_due(boundary, long):
                return
        samples = self._samples(long)
        if samples:
            cells.begin(boundary, self._starts, samples, self._scale, self.options)

    def _sound(
        self, query: FloatArray, boundary: int, starts: list[int], options: AttentionOptions, reaches: bool
    ) -> tuple[list[bool], list[int]]:
        """Tell whose keys before `boundary` cells can hold, and which sequences are worth cells for them.

        Raise if keys are not finite. Both are empty where it is too early to ask.
        """
        keys, values = self._filled()
        least = EXACT_BELOW if options.exact_below is None else options.exact_below
        known = self._queries is not None and self._queries.shape == _shape(query)
        seen = query.shape[3] + (self._queries.seen if self._queries is not None and known else 0)
        if len(self) < least or seen < _LEAST_SAMPLE or keys.dtype == torch.float64:
            return [], []
        if not keys.shape[3] or not values.shape[3]:
            return [], []
        checked, sound = (
            (self._checked, list(self._are_sound)) if reaches and self._checked else (0, [True] * len(starts))
        )
        for b, start in enumerate(starts):
            new = keys[b, :, max(start, checked) : max(start, boundary)]
            if sound[b] and not all(usual(head).all() for head in new):
                sound[b] = False
            if not sound[b] and not all(torch.isfinite(head).all() for head in new):
                raise InvalidValueError("key: expected finite values, received NaN or infinity")
        return sound, [b for b, start in enumerate(starts) if sound[b] and boundary - start >= _LEAST_KEYS]

    def _samples(self, long: list[int]) -> dict[int, list[FloatArray]]:
        """Recent queries of these sequences, head by head, where they are known well enough."""
        samples: dict[int, list[FloatArray]] = {}
        _, n_heads, n_keys, _ = self.keys.shape
        for b in long:
            of = [self._queries.last(b, h, n_keys - self._starts[b]) for h in range(n_heads)] if self._queries else []
            if min(map(len, of), default=0) >= _LEAST_SAMPLE:
                samples[b] = of
        return samples

    def crop(self, length: int) -> None:
        """Keep the first `length` keys and values.

        Parameters
        ----------
        length : int
            Not negative; more than there are keeps all.

        Notes
        -----
        At least the last 32 are never in cells: taking these back costs nothing, going beyond makes a fold.
        """
        try:
            length = operator.index(length)
        except TypeError:
            raise InvalidTypeError(f"length: expected an int >= 0, received {type(length).__name__}") from None
        if length < 0:
            raise InvalidValueError(f"length: expected an int >= 0, received {length}")
        if self._store is None or length >= len(self):
            return
        for rows in self._store:
            rows.length = length
        self._cells.crop(length)
        if length < max(self._cells.count, self._checked) or length <= max(self._starts, default=0):
            self._invalidate()

    def select(self, indices: Tensor) -> None:
        """Keep these sequences of the batch, in this order and as often as they are named.

        Parameters
        ----------
        indices : Tensor of shape (any,), int64 or int32
        """
        received = getattr(indices, "dtype", type(indices).__name__)
        if received not in (torch.int64, torch.int32):
            raise InvalidTypeError(f"indices: expected a tensor of int64 or int32, received {received}")
        batch = 0 if self._store is None else len(self.keys)
        chosen = indices.flatten().tolist()
        if indices.dim() != 1 or (self._store is not None and not all(0 <= b < batch for b in chosen)):
            raise InvalidValueError(
                f"indices: expected shape (any,) and from 0 to {batch - 1}, received {tuple(indices.shape)}, {chosen}"
            )
        if self._store is None:
            return
        keys, values = (rows.select(indices) for rows in self._store)
        queries = None if self._queries is None else self._queries.select(indices)
        self._store, self._queries = (keys, values), queries
        self._starts = [self._starts[b] for b in chosen] if self._starts else []
        self._are_sound = [self._are_sound[b] for b in chosen] if self._are_sound else []
        self._cells.select(chosen)

    def report(self) -> IndexReport:
        """Say what the last token touched, and with what error."""
        heads = [prefix for of in self._cells.prefixes or () for prefix in of or ()]
        error = max((prefix.error for prefix in heads), default=0.0)
        share = self._touched / len(self) if len(self) else 0.0
        return IndexReport(len(self), self._cells.count, self._touched, share, error)


def check_options(options: AttentionOptions) -> None:
    """Raise one of the package's errors unless a growing index can follow these options."""
    if not isinstance(options, AttentionOptions):
        raise InvalidTypeError(f"options: expected AttentionOptions or None, received {type(options).__name__}")
    if options.top_k is not None:
        raise UnsupportedError(f"top_k: expected None where keys grow, received {options.top_k}")


def _shape(grouped: FloatArray) -> tuple[int, int, int, int]:
    """(B, H, G, E) of queries (B, H, G, L, E)."""
    batch, heads, group, _, width = grouped.shape
    return batch, heads, group, width


def _checked_starts(starts: Sequence[int] | None, batch: int, most: int) -> list[int]:
    """Check the starts of sequences and return them as a list."""
    try:
        places = [0] * batch if starts is None else [operator.index(start) for start in starts]
    except TypeError:
        raise InvalidTypeError(f"starts: expected {batch} int, received {starts!r:.60}") from None
    if len(places) != batch or not all(0 <= start <= most for start in places):
        raise InvalidValueError(f"starts: expected {batch} from 0 to {most}, received {places}")
    return places
