"""Keys and values that grow token by token, and attention to them at a small part of the exact cost.

Needs no transformers: `attention.cache.DCICache` has one `KeyValueIndex` a layer.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dci._linalg import one_blas_thread
from dci._threads import Work

from ._buffers import Growing, Queries, Recent
from ._cache_report import IndexReport
from ._inputs import check_inputs, check_settings
from ._last import attend_last
from ._prefix import Choice, Prefix, make_prefix
from .errors import InvalidTypeError, InvalidValueError, UnsupportedError
from .options import AttentionOptions

EXACT_BELOW = 8192  # keys: measured, below it the exact kernel is as fast
AT_ONCE = 32  # of more tokens than this, attention is worth planning for them alone
_SAMPLE = 256  # tokens whose queries are remembered
_LEAST_SAMPLE = 16  # tokens, before which queries are not known well enough
_LEAST_KEYS = 16  # of a sequence
_KEPT = 32  # recent keys that a fold leaves, for `crop` to take back
_RECENT = 6.0  # times the root of the number of keys: folding and attending to recent keys then cost about the same
_WORTH_THREADS = 2_000_000  # numbers that the last token read


class KeyValueIndex:
    """A growing index a head of keys and values, for a batch of sequences of one length.

    Keys that came long ago lie in cells, as in `dci_attention`; recent ones are attended to exactly, and folded into
    the cells in blocks. For few keys, and until 16 tokens' queries are known from `observe` or `attend`, all
    attention is exact.

    Parameters
    ----------
    options : AttentionOptions, optional
        `exact_below` counts keys. There is no `top_k` here.

    Raises
    ------
    InvalidTypeError, UnsupportedError
        Options that cannot be used.

    Notes
    -----
    n keys and values take up to 1.5 times their size in their own dtype, since they grow by halves. The cells take
    about 4 (E + Ev + 16) bytes a key beside that, in float32, and a head's keys and values in float32 while it is
    folded. A fold comes every 6 √n tokens or so and is linear in n. Not for several threads at once.

    Examples
    --------
    >>> index = KeyValueIndex(AttentionOptions(tolerance=0.1))
    >>> index.append(torch.randn(1, 2, 100, 16), torch.randn(1, 2, 100, 16))
    >>> index.attend(torch.randn(1, 8, 1, 16)).shape  # queries of the last key, four heads for each of two
    torch.Size([1, 8, 1, 16])
    """

    _options: AttentionOptions | None = None

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
        if not isinstance(options, AttentionOptions):
            raise InvalidTypeError(f"options: expected AttentionOptions or None, received {type(options).__name__}")
        if options.top_k is not None:
            raise UnsupportedError(f"top_k: expected None where keys grow, received {options.top_k}")
        if options != self._options:
            self._options = options
            self._unfold()

    def reset(self) -> None:
        """Forget everything but the options."""
        self._store: tuple[Growing, Growing] | None = None
        self._queries: Queries | None = None
        self._scale, self._starts = math.nan, [0]
        self._numbers, self._touched = 0, 0.0
        self._unfold()

    def _unfold(self) -> None:
        """Undo the cells, and what was decided about them."""
        self._prefixes: list[list[Prefix] | None] | None = None  # of sequences; None for those that are too short
        self._choices: list[list[Choice] | None] | None = None
        self._recent: Recent | None = None
        self._folded = 0

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
        if self._store is None:
            raise InvalidValueError("keys and values: expected some to be appended first, received none")
        return self._store[0].filled, self._store[1].filled

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
        if key.dim() != 4 or key.shape[:3] != value.shape[:3]:
            raise InvalidValueError(
                "key and value: expected shapes (B, H, L, E) and (B, H, L, Ev), "
                f"received {tuple(key.shape)} and {tuple(value.shape)}"
            )
        if self._store is None:
            self._store = Growing(key), Growing(value)
        for rows, new in zip(self._store, (key, value), strict=True):
            old = rows.filled
            if new.dtype != old.dtype or new.shape[:2] != old.shape[:2] or new.shape[3] != old.shape[3]:
                raise InvalidValueError(
                    f"key and value: expected {old.dtype} of shape ({old.shape[0]}, {old.shape[1]}, L, "
                    f"{old.shape[3]}) as before, received {new.dtype} of shape {tuple(new.shape)}"
                )
        self._store[0].append(key)
        self._store[1].append(value)

    def observe(self, query: Tensor) -> None:
        """Remember the queries of a prompt that was attended to elsewhere: those to come will be like them.

        Parameters
        ----------
        query : Tensor of shape (B, Hq, L, E)
            Of consecutive tokens, Hq a multiple of H. The last 256 tokens count.
        """
        keys = self.keys
        check_inputs(query, keys, keys, None, True)
        grouped = query.unflatten(1, (keys.shape[1], -1))
        shape = (*grouped.shape[:3], grouped.shape[4])
        if self._queries is None or self._queries.shape != shape:
            self._queries = Queries(shape, _SAMPLE)
        self._queries.append(grouped)

    def attend(self, query: Tensor, scale: float | None = None, starts: list[int] | None = None) -> Tensor:
        """Attend with the queries of the last tokens, each to the keys up to its own.

        Parameters
        ----------
        query : Tensor of shape (B, Hq, L, E)
            Hq a multiple of H, L at most n.
        scale : float, optional
            1/√E if not given.
        starts : list of B int, optional
            How many of each sequence's first keys nothing sees: padding on the left, at most n - L.

        Returns
        -------
        Tensor of shape (B, Hq, L, Ev)
            In the dtype of the queries.

        Raises
        ------
        InvalidTypeError, InvalidValueError, UnsupportedError
            Arguments that cannot be used; NaN or infinity in what goes into cells.
        """
        keys, values = self._filled()
        check_settings(0.0, scale, None)
        self.observe(query)
        batch, n_heads, n_keys, _ = keys.shape
        length, width = query.shape[2:]
        starts = [0] * batch if starts is None else starts
        if query.dim() != 4 or len(query) != batch or len(starts) != batch or not 0 < length <= n_keys:
            raise InvalidValueError(
                f"query and starts: expected shape ({batch}, Hq, L, {width}) with L from 1 to {n_keys}, and {batch} "
                f"starts, received {tuple(query.shape)} and {len(starts)}"
            )
        if min(starts) < 0 or max(starts) > n_keys - length:
            raise InvalidValueError(f"starts: expected from 0 to {n_keys - length}, received {starts}")
        scale = width**-0.5 if scale is None else float(scale)
        self._fold(length, scale, starts)
        if self._prefixes is None:
            self._touched = n_keys - sum(starts) / batch
            return attend_last(query, keys, values, starts, scale)
        with torch.inference_mode(False):
            out = torch.empty((batch, n_heads, query.shape[1] // n_heads * length, values.shape[3]))
        self._near_and_far(query.detach().reshape(*out.shape[:3], width).float(), out, length, scale)
        out = out.view(batch, -1, length, out.shape[3]).to(query.dtype)
        for b in range(batch):
            if self._prefixes[b] is None:
                part = slice(b, b + 1)
                out[part] = attend_last(query[part], keys[part], values[part], starts[part], scale)
        return out

    def _near_and_far(self, query: Tensor, out: Tensor, length: int, scale: float) -> None:
        """Attend with the sequences that have cells, (B, H, G * L, E) to (B, H, G * L, Ev)."""
        n_heads, rows, width = out.shape[1:]
        queries, outs = query.contiguous().flatten(0, 1).numpy(), out.flatten(0, 1).numpy()
        keys, values = (x[:, :, self._folded :] for x in self._filled())
        n_recent = keys.shape[2]
        if self._recent is None or self._recent.room < n_recent:
            self._recent = Recent(keys, values, n_recent + self._fold_after(length) // 2)
        self._recent.fill(keys, values)
        recent = self._recent.heads
        # Rows are g * L + i; those of one token are neighbours.
        order = np.arange(rows, dtype=np.int32).reshape(-1, length).T.ravel()
        stops = np.arange(n_recent - length + 1, n_recent + 1, dtype=np.int64)
        keep_far = self.options.far_field is not False
        heads = [(b * n_heads + h, p) for b, of in enumerate(self._prefixes or ()) if of for h, p in enumerate(of)]
        touched: dict[int, int] = {}

        def attend(item: tuple[int, Prefix]) -> None:
            i, prefix = item
            local_keys, local_values = recent[i]
            touched[i], _ = prefix.field.attend(
                queries[i], order, scale, prefix.choice.threshold, keep_far, outs[i], stops,
                local_keys=local_keys, local_values=local_values,
            )  # fmt: skip

        n_threads = self.options.num_threads or torch.get_num_threads()
        with Work(n_threads if self._numbers >= _WORTH_THREADS else 1) as work:
            work.run(attend, heads)
        n_touched = sum(touched.values())
        self._numbers = n_touched * (queries.shape[-1] + width)
        self._touched = n_touched / (len(heads) * rows)

    def _fold_after(self, length: int) -> int:
        """How many recent keys make a fold."""
        return int(max(length, self.options.window) + _KEPT + _RECENT * math.sqrt(len(self)))

    def _fold(self, length: int, scale: float, starts: list[int]) -> None:
        """Put the keys before the last tokens into cells, if it is time."""
        if scale != self._scale or starts != self._starts:
            self._unfold()
            self._scale, self._starts = scale, list(starts)
        n_keys = len(self)
        if self._folded and n_keys - self._folded <= self._fold_after(length):
            return
        keys, values = self._filled()
        batch, n_heads = keys.shape[:2]
        least = EXACT_BELOW if self.options.exact_below is None else self.options.exact_below
        boundary = n_keys - max(length, self.options.window) - _KEPT
        long = [b for b in range(batch) if boundary - starts[b] >= _LEAST_KEYS]
        if n_keys < least or not long or self._queries is None or self._queries.seen < _LEAST_SAMPLE:
            return
        if not scale > 0 or keys.dtype == torch.float64 or not keys.shape[3] or not values.shape[3] or not n_heads:
            return
        old, sample = self._choices or [None] * batch, self._queries
        self._prefixes, self._recent, self._folded = None, None, 0  # first, for the memory and in case of an error
        made: dict[tuple[int, int], Prefix] = {}

        def fold(item: tuple[int, int]) -> None:
            b, h = item
            key, value = (x[b, h, starts[b] : boundary].float().contiguous().numpy() for x in (keys, values))
            choices = old[b]
            made[item] = make_prefix(
                key,
                value,
                sample.last(b, h, n_keys - starts[b]),
                scale,
                self.options,
                None if choices is None else choices[h],
            )

        with one_blas_thread(), Work(self.options.num_threads or torch.get_num_threads()) as work:
            work.run(fold, [(b, h) for b in long for h in range(n_heads)])
        prefixes = [[made[b, h] for h in range(n_heads)] if b in long else None for b in range(batch)]
        self._prefixes, self._folded = prefixes, boundary
        self._choices = [None if of is None else [prefix.choice for prefix in of] for of in prefixes]

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
        if length < 0:
            raise InvalidValueError(f"length: expected an int >= 0, received {length}")
        if self._store is None or length >= len(self):
            return
        for rows in self._store:
            rows.length = length
        self._recent = None
        if length < self._folded:
            self._prefixes, self._folded = None, 0
        if length <= max(self._starts):
            self._unfold()

    def select(self, indices: Tensor) -> None:
        """Keep these sequences of the batch, in this order and as often as they are named, (any,) int64."""
        if self._store is None:
            return
        for rows in self._store:
            rows.select(indices)
        if self._queries is not None:
            self._queries.select(indices)
        chosen = indices.tolist()
        self._starts = [self._starts[b] for b in chosen] if len(self._starts) > 1 else self._starts
        self._prefixes = None if self._prefixes is None else [self._prefixes[b] for b in chosen]
        self._choices = None if self._choices is None else [self._choices[b] for b in chosen]
        self._recent = None

    def __getstate__(self) -> dict[str, Any]:
        # Kernels' memory is not copied: cells are made anew.
        return self.__dict__ | {"_prefixes": None, "_recent": None, "_folded": 0}

    def report(self) -> IndexReport:
        """Say what the last token touched, and with what error."""
        heads = [prefix for of in self._prefixes or () for prefix in of or ()]
        error = max((prefix.error for prefix in heads), default=0.0)
        share = self._touched / len(self) if len(self) else 0.0
        return IndexReport(len(self), self._folded, self._touched, share, error)
