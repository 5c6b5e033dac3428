"""Any sequence of calls: outputs are those of exact attention, and no key behind a query has any part in them."""

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from attention import AttentionOptions
from attention.decoding.key_value_index import KeyValueIndex
from attention.reference import dense_attention

HEADS, GROUP, WIDTH, POOL = 2, 2, 16, 4096


def pool():
    """Keys, values and queries that depend on few latent numbers, (1, H, POOL, WIDTH)."""
    rng = np.random.default_rng(0)
    latent = rng.standard_normal((HEADS * GROUP, POOL, 4))
    to_key, to_value = rng.standard_normal((2, 32, WIDTH)) / 3
    rows = np.sin(0.4 * latent @ rng.standard_normal((4, 32)) + rng.uniform(0, 6, 32))
    key, value = (torch.from_numpy((rows @ to).astype(np.float32))[None] for to in (to_key, to_value))
    return key[:, :HEADS], value[:, :HEADS], 2 * key


KEY, VALUE, QUERY = pool()


class Growth(RuleBasedStateMachine):
    """Two indices that differ in one key and value, of the token `marked`: queries before it must not tell them apart.

    Bit for bit: they see none of it, and nothing is decided about cells that they attend to by it.
    """

    @initialize(
        tolerance=st.sampled_from([1e-3, 0.1]),
        window=st.sampled_from([0, 0, 40]),
        start=st.sampled_from([None, 0, 7]),
    )
    def begin(self, tolerance, window, start):
        self.options = AttentionOptions(tolerance=tolerance, window=window, exact_below=0, num_threads=1)
        self.start = start
        self.batch = 1 if start is None else 2
        self.indices = [KeyValueIndex(self.options) for _ in range(2)]
        self.keys = self.values = torch.empty(self.batch, HEADS, 0, WIDTH)
        self.marked = None
        self.at = 0
        self.append(150, False)
        self.observe(60)

    def take(self, source, length):
        """Rows of the pool that were not taken yet, a little different for every sequence."""
        places = torch.arange(self.at, self.at + length) % POOL
        self.at += length
        return torch.cat([source[:, :, (places + 11 * b) % POOL] for b in range(self.batch)])

    @rule(length=st.sampled_from([1, 2, 20, 33, 150]), mark=st.booleans())
    def append(self, length, mark):
        n_keys = self.keys.shape[2]
        if n_keys + length > 700:
            return
        key, value = self.take(KEY, length), self.take(VALUE, length)
        self.keys, self.values = torch.cat([self.keys, key], 2), torch.cat([self.values, value], 2)
        self.indices[0].append(key, value)
        if mark and self.marked is None:
            self.marked = n_keys + length // 2
            key, value = key.clone(), value.clone()
            key[:, :, length // 2] *= -3
            value[:, :, length // 2] = 1e3
        self.indices[1].append(key, value)

    @rule(length=st.sampled_from([1, 40, 600]))
    def observe(self, length):
        query = self.take(QUERY, length)
        for index in self.indices:
            index.observe(query)

    @precondition(lambda self: self.keys.shape[2])
    @rule(length=st.sampled_from([1, 1, 1, 2, 7, 32, 90, 300]))
    def attend(self, length):
        n_keys = self.keys.shape[2]
        starts = None if self.start is None else [0, min(self.start, n_keys - 1)]
        length = min(length, n_keys - max(starts or [0]))
        query = self.take(QUERY, length)
        outs = [index.attend(query, starts=starts) for index in self.indices]
        ends = torch.arange(n_keys - length, n_keys)
        seen = torch.arange(n_keys) <= ends[:, None]
        seen = seen & (torch.arange(n_keys) >= torch.tensor(starts or [0])[:, None, None, None])
        expected = dense_attention(query, self.keys, self.values, seen.numpy(), enable_gqa=True)
        error = np.linalg.norm(outs[0].numpy() - expected) / np.linalg.norm(expected)
        assert error <= 2 * self.options.tolerance
        before = length if self.marked is None else int((ends < self.marked).sum())
        assert torch.equal(outs[0][:, :, :before], outs[1][:, :, :before])
        for index in self.indices:  # the keys of a query's window are attended to exactly
            assert index.report().folded <= max(0, n_keys - length + 1 - self.options.window)

    @rule(back=st.sampled_from([1, 5, 31, 32, 33, 120, 500]))
    def crop(self, back):
        length = max(0, self.keys.shape[2] - back)
        for index in self.indices:
            index.crop(length)
        self.keys, self.values = self.keys[:, :, :length], self.values[:, :, :length]
        if self.marked is not None and self.marked >= length:
            self.marked = None

    @precondition(lambda self: self.batch == 2)
    @rule()
    def swap(self):
        if self.start is not None and self.start > 0:
            return  # starts belong to sequences
        for index in self.indices:
            index.select(torch.tensor([1, 0]))
        self.keys, self.values = self.keys.flip(0), self.values.flip(0)

    @invariant()
    def as_long(self):
        assert all(len(index) == self.keys.shape[2] for index in self.indices)


TestGrowth = Growth.TestCase
TestGrowth.settings = settings(max_examples=40, stateful_step_count=25, derandomize=True, deadline=None, database=None)
