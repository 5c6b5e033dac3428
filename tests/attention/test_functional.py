"""`dci_attention` against the float64 oracle and against torch, over shapes, masks, dtypes and grouped heads."""

import subprocess
import sys

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from attention import AttentionOptions, HeadReport, dci_attention, functional
from attention._core import heads

DTYPES = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
LENGTHS = [1, 2, 15, 16, 17, 1000]
LEADS = [(), (3,), (2, 3), (2, 1, 3)]


def draw(*shapes, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def random_mask(*shape, seed=0):
    """A mask without structure that shows every query its first key."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) > 0.5
    mask[..., 0] = True
    return mask


def causal(length, n_keys):
    return torch.ones(length, n_keys, dtype=torch.bool).tril()


def additive(mask):
    return torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)


def sliding(length, n_keys, window):
    ids, ends = torch.arange(n_keys), torch.arange(length)[:, None]
    return (ids <= ends) & (ids > ends - window)


MASKS = {
    "random": random_mask,
    "causal": causal,
    "prefix": lambda length, n_keys: causal(length, n_keys) | (torch.arange(n_keys) < n_keys // 3),
    "sliding": lambda length, n_keys: sliding(length, n_keys, 5),
    "two-sided": lambda length, n_keys: (torch.arange(length)[:, None] - torch.arange(n_keys)).abs() < 4,
    "left padding": lambda length, n_keys: (torch.arange(n_keys) >= n_keys // 3).expand(1, n_keys),
    "left padding, causal": lambda length, n_keys: causal(length, n_keys) & (torch.arange(n_keys) >= n_keys // 3),
    "holes": lambda length, n_keys: (torch.arange(n_keys) % 3 != 1).expand(1, n_keys),
    "holes, causal": lambda length, n_keys: causal(length, n_keys) & (torch.arange(n_keys) % 3 != 1),
    "nothing": lambda length, n_keys: torch.zeros(length, n_keys, dtype=torch.bool),
    "some queries blind": lambda length, n_keys: random_mask(length, n_keys) & (torch.arange(length) % 2 == 0)[:, None],
    "queries only": lambda length, n_keys: (torch.arange(length) % 2 == 0)[:, None],
}


@pytest.fixture(params=["torch at once", "routed"])
def either_way(request, monkeypatch):
    """Small calls as they are, and again as if they were large, exact all the same."""
    if request.param == "routed":
        monkeypatch.setattr(functional, "_SMALL", -1)


@pytest.mark.usefixtures("either_way")
class TestExact:
    @pytest.mark.parametrize("length", LENGTHS)
    @pytest.mark.parametrize("n_keys", LENGTHS)
    @pytest.mark.parametrize("is_causal", [False, True])
    def test_lengths(self, length, n_keys, is_causal, exactly):
        query, key, value = draw((2, 3, length, 8), (2, 3, n_keys, 8), (2, 3, n_keys, 8))
        out = dci_attention(query, key, value, is_causal=is_causal)
        torch.testing.assert_close(out.double(), exactly(query, key, value, is_causal=is_causal), atol=2e-6, rtol=2e-6)
        assert out.dtype == torch.float32

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("lead", LEADS, ids=str)
    @pytest.mark.parametrize("width", [3, 8, 11])
    def test_dtypes_and_axes(self, dtype, lead, width, exactly):
        query, key, value = draw((*lead, 7, 8), (*lead, 9, 8), (*lead, 9, width), dtype=dtype)
        for arguments in ({}, {"is_causal": True}, {"attn_mask": random_mask(7, 9)}, {"scale": 0.2}):
            out = dci_attention(query, key, value, **arguments)
            expected = exactly(query, key, value, **arguments)
            assert out.shape == expected.shape
            assert out.dtype == dtype
            torch.testing.assert_close(out.double(), expected, atol=DTYPES[dtype], rtol=DTYPES[dtype])

    @pytest.mark.parametrize("name", MASKS)
    @pytest.mark.parametrize("kind", ["bool", "float"])
    @pytest.mark.parametrize("is_causal", [False, True])
    @pytest.mark.parametrize(("length", "n_keys"), [(1, 1), (1, 30), (30, 1), (20, 30), (30, 20), (300, 300)])
    def test_masks(self, name, kind, is_causal, length, n_keys, exactly):
        query, key, value = draw((2, 3, length, 8), (2, 3, n_keys, 8), (2, 3, n_keys, 5))
        mask = MASKS[name](length, n_keys)
        mask = mask if kind == "bool" else additive(mask)
        out = dci_attention(query, key, value, mask, is_causal=is_causal)
        expected = exactly(query, key, value, mask, is_causal=is_causal)
        torch.testing.assert_close(out.double(), expected, atol=2e-6, rtol=2e-6)

    @pytest.mark.parametrize("name", MASKS)
    @pytest.mark.parametrize("lead", [(2, 1), (1, 3), (2, 3), (3,)], ids=str)
    def test_masks_that_differ_along_leading_axes(self, name, lead, exactly):
        query, key, value = draw((2, 3, 12, 8), (2, 3, 16, 8), (2, 3, 16, 8))
        mask = MASKS[name](12, 16) & random_mask(*lead, 1, 16, seed=1)
        torch.testing.assert_close(
            dci_attention(query, key, value, mask).double(), exactly(query, key, value, mask), atol=2e-6, rtol=2e-6
        )

    @pytest.mark.parametrize("mask", [torch.randn(6, 9), torch.randn(2, 4, 6, 9), torch.randn(9, 1).expand(9, 6).T])
    def test_biases(self, mask, exactly):
        query, key, value = draw((2, 4, 6, 8), (2, 4, 9, 8), (2, 4, 9, 8))
        for is_causal in (False, True):
            out = dci_attention(query, key, value, mask, is_causal=is_causal)
            expected = exactly(query, key, value, mask, is_causal=is_causal)
            torch.testing.assert_close(out.double(), expected, atol=2e-6, rtol=2e-6)

    @pytest.mark.parametrize("heads", [(6, 6), (6, 3), (6, 2), (6, 1)])
    @pytest.mark.parametrize("lead", [(), (2,), (2, 2)], ids=str)
    @pytest.mark.parametrize("mask", [None, (7, 9), (6, 7, 9), (1, 7, 9), (1, 1, 9)], ids=str)
    def test_grouped_heads(self, heads, lead, mask, exactly):
        query, key, value = draw((*lead, heads[0], 7, 8), (*lead, heads[1], 9, 8), (*lead, heads[1], 9, 4))
        mask = None if mask is None else random_mask(*mask)
        out = dci_attention(query, key, value, mask, enable_gqa=True)
        expected = exactly(query, key, value, mask, enable_gqa=True)
        torch.testing.assert_close(out.double(), expected, atol=2e-6, rtol=2e-6)

    @pytest.mark.parametrize(
        "leads", [((2, 3), (1, 3), (1, 3)), ((2, 3), (2, 1), (3,)), ((), (2,), (2,)), ((3,), (2, 1), (2, 3))], ids=str
    )
    def test_leading_axes_broadcast(self, leads, exactly):
        query, key, value = draw((*leads[0], 7, 8), (*leads[1], 9, 8), (*leads[2], 9, 8))
        for mask in (None, random_mask(7, 9), random_mask(1, 9)):
            out = dci_attention(query, key, value, mask)
            torch.testing.assert_close(out.double(), exactly(query, key, value, mask), atol=2e-6, rtol=2e-6)

    def test_any_strides(self, exactly):
        query, key, value = (x.transpose(1, 2) for x in draw((2, 7, 3, 8), (2, 9, 3, 8), (2, 9, 3, 8)))
        expected = exactly(query, key, value)
        torch.testing.assert_close(dci_attention(query, key, value).double(), expected, atol=2e-6, rtol=2e-6)
        by_column = (x.mT.contiguous().mT for x in (query, key, value))
        torch.testing.assert_close(dci_attention(*by_column).double(), expected, atol=2e-6, rtol=2e-6)
        repeated = (query, *(x[:, :1].expand(-1, 3, -1, -1) for x in (key, value)))
        torch.testing.assert_close(dci_attention(*repeated).double(), exactly(*repeated), atol=2e-6, rtol=2e-6)

    @pytest.mark.parametrize("scale", [0, 0.0, -0.5, 2])
    @pytest.mark.parametrize("is_causal", [False, True])
    def test_any_finite_scale(self, scale, is_causal, exactly):
        query, key, value = draw(*[(2, 7, 8)] * 3)
        out = dci_attention(query, key, value, scale=scale, is_causal=is_causal)
        expected = exactly(query, key, value, scale=scale, is_causal=is_causal)
        torch.testing.assert_close(out.double(), expected, atol=2e-6, rtol=2e-6)

    @pytest.mark.parametrize(
        ("query", "key", "value"),
        [
            ((2, 0, 8), (2, 5, 8), (2, 5, 8)),
            ((2, 5, 8), (2, 0, 8), (2, 0, 8)),
            ((0, 5, 8), (0, 5, 8), (0, 5, 8)),
            ((2, 5, 0), (2, 6, 0), (2, 6, 3)),
            ((2, 5, 8), (2, 6, 8), (2, 6, 0)),
        ],
    )
    @pytest.mark.parametrize("is_causal", [False, True])
    def test_empty(self, query, key, value, is_causal, exactly):
        tensors = draw(query, key, value)
        out, _ = dci_attention(*tensors, is_causal=is_causal, return_report=True)
        torch.testing.assert_close(out.double(), exactly(*tensors, is_causal=is_causal), atol=2e-6, rtol=2e-6)

    def test_autocast_casts_as_torch_does(self):
        query, key, value = draw(*[(2, 3, 7, 8)] * 3)
        with torch.autocast("cpu", torch.bfloat16):
            out = dci_attention(query, key.bfloat16(), value, torch.zeros(7, 7))
            expected = scaled_dot_product_attention(query, key, value, torch.zeros(7, 7))
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out, expected)

    def test_inputs_stay_and_memory_is_not_shared(self):
        tensors = draw(*[(2, 7, 8)] * 3)
        before = [x.clone() for x in tensors]
        dci_attention(*tensors, scale=-1.0, is_causal=True).zero_()
        assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))

    def test_nan_spreads_as_in_torch(self):
        query, key, value = draw(*[(2, 3, 7, 8)] * 3)
        key[0, 1, 3, 0] = torch.nan
        assert torch.equal(
            dci_attention(query, key, value).isnan(), scaled_dot_product_attention(query, key, value).isnan()
        )


def manifold(n_heads, length, width=32, seed=0):
    """Queries near keys, values a smooth function of them: heads that can be approximated."""
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(n_heads, length, 6, generator=generator)
    maps = torch.randn(2, n_heads, 6, width, generator=generator) / 6**0.5
    key, value = 2 * torch.tanh(latent @ maps[0]), torch.tanh(latent @ maps[1])
    query = key[:, torch.randperm(length, generator=generator)]
    return query + 0.05 * torch.randn(query.shape, generator=generator), key, value


TOLERANCE = AttentionOptions(tolerance=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_long_sequences_are_within_tolerance(is_causal, dtype, exactly, errors_of):
    query, key, value = (x.to(dtype) for x in manifold(2, 4097))
    out, report = dci_attention(query, key, value, is_causal=is_causal, options=TOLERANCE, return_report=True)
    assert out.dtype == dtype
    assert errors_of(out, exactly(query, key, value, is_causal=is_causal)).max() < 1.3 * 0.05
    assert len(report.heads) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", MASKS)
def test_long_masks_are_within_tolerance(name, exactly, errors_of):
    query, key, value = manifold(2, 3000)
    mask = MASKS[name](3000, 3000)
    out = dci_attention(query, key, value, mask, options=TOLERANCE)
    assert errors_of(out, exactly(query, key, value, mask)).max() < 1.3 * 0.05


@pytest.mark.slow
def test_long_grouped_heads_are_within_tolerance(exactly, errors_of):
    _, key, value = manifold(2, 2500)
    query = torch.cat([manifold(2, 2500)[0] + 0.1 * i for i in range(2)])[[0, 2, 1, 3]]
    for mask in (None, torch.arange(2500) > 300):
        mask = mask if mask is None else mask[None]
        out = dci_attention(query, key, value, mask, enable_gqa=True, options=TOLERANCE)
        assert errors_of(out, exactly(query, key, value, mask, enable_gqa=True)).max() < 1.3 * 0.05


class TestWhatTheEngineGets:
    """The engine sees heads of keys once, and only keys that matter."""

    @pytest.fixture
    def calls(self, monkeypatch):
        calls = []

        def attend(query, key, value, stops, scale, options, lse):
            assert lse is None
            calls.append((query, key, value, stops, scale, options))
            report = HeadReport("near+far", 1.0, 1.0, 0.0, 0.0, "made up")
            return query.new_zeros((*query.shape[:-1], value.shape[-1])), [report] * len(key)

        monkeypatch.setattr(heads, "attend_heads", attend)
        return calls

    ALWAYS = AttentionOptions(exact_below=0)

    def shapes(self, calls):
        return [tuple(map(tuple, (query.shape, key.shape, value.shape))) for query, key, value, *_ in calls]

    def test_batch_and_heads_become_one_axis(self, calls):
        query, key, value = draw((2, 3, 7, 8), (2, 3, 9, 8), (2, 3, 9, 5), dtype=torch.bfloat16)
        dci_attention(query, key, value, options=self.ALWAYS)
        assert self.shapes(calls) == [((6, 1, 7, 8), (6, 9, 8), (6, 9, 5))]
        *tensors, stops, scale, options = calls[0]
        assert {x.dtype for x in tensors} == {torch.bfloat16}  # no copies of all heads
        assert (stops, scale, options) == (None, pytest.approx(8**-0.5), self.ALWAYS)

    def test_grouped_and_broadcast_heads_share_their_keys(self, calls):
        query, key, value = draw((2, 6, 7, 8), (2, 2, 9, 8), (2, 2, 9, 8))
        dci_attention(query, key, value, enable_gqa=True, options=self.ALWAYS)
        dci_attention(query, key[:, :1], value[:, :1], options=self.ALWAYS)
        dci_attention(query, key[:, :1].expand(-1, 6, -1, -1), value[:, :1].expand(-1, 6, -1, -1), options=self.ALWAYS)
        one = ((2, 6, 7, 8), (2, 9, 8), (2, 9, 8))
        assert self.shapes(calls) == [((4, 3, 7, 8), (4, 9, 8), (4, 9, 8)), one, one]
        assert calls[0][1].data_ptr() == key.data_ptr()

    def test_queries_find_their_heads(self, calls):
        query, key, value = draw((2, 6, 7, 8), (1, 6, 9, 8), (1, 6, 9, 8))
        dci_attention(query, key, value, options=self.ALWAYS)
        assert torch.equal(calls[0][0], query.transpose(0, 1))

    def test_causal(self, calls):
        query, key, value = draw((3, 7, 8), (3, 5, 8), (3, 5, 8))
        dci_attention(query, key, value, is_causal=True, options=self.ALWAYS)
        assert calls[0][3].tolist() == [1, 2, 3, 4, 5, 5, 5]

    def test_padding_is_cut_off(self, calls):
        query, key, value = draw(*[(2, 3, 9, 8)] * 3)
        kept = torch.tensor([[False] * 4 + [True] * 5, [True, False, True] * 3])[:, None, None]
        dci_attention(query, key, value, kept, options=self.ALWAYS)
        dci_attention(query, key, value, kept, is_causal=True, options=self.ALWAYS)
        widths = [((3, 1, 9, 8), (3, 5, 8), (3, 5, 8)), ((3, 1, 9, 8), (3, 6, 8), (3, 6, 8))]
        seeing = [((3, 1, 5, 8), (3, 5, 8), (3, 5, 8)), widths[1]]
        assert self.shapes(calls) == widths + seeing
        assert [call[3] if call[3] is None else call[3].tolist() for call in calls] == [
            None,
            None,
            [1, 2, 3, 4, 5],
            [1, 1, 2, 3, 3, 4, 5, 5, 6],
        ]
        assert torch.equal(calls[1][1], key[1][:, kept[1, 0, 0]])

    def test_a_batch_padded_alike_is_one_call(self, calls):
        query, key, value = draw(*[(2, 3, 9, 8)] * 3)
        mask = (torch.arange(9) > 2).repeat(2, 1, 9, 1)
        dci_attention(query, key, value, mask, options=self.ALWAYS)
        assert self.shapes(calls) == [((6, 1, 9, 8), (6, 6, 8), (6, 6, 8))]

    def test_strides_of_no_single_axis(self, calls):
        query, key, value = (x.transpose(1, 2) for x in draw(*[(2, 9, 3, 8)] * 3))
        dci_attention(query, key, value, options=self.ALWAYS)
        assert self.shapes(calls) == [((3, 1, 9, 8), (3, 9, 8), (3, 9, 8))] * 2
        assert calls[1][1].data_ptr() == key[1].data_ptr()

    def test_top_k_at_any_length(self, calls):
        query, key, value = draw(*[(3, 9, 8)] * 3)
        dci_attention(query, key, value, options=AttentionOptions(top_k=9))
        assert not calls
        dci_attention(query, key, value, options=AttentionOptions(top_k=8))
        assert len(calls) == 1

    @pytest.mark.parametrize("name", ["random", "sliding", "two-sided"])
    def test_not_called_for_other_masks(self, name, calls):
        query, key, value = draw(*[(3, 19, 8)] * 3)
        dci_attention(query, key, value, MASKS[name](19, 19), options=self.ALWAYS)
        assert not calls


MEMORY = """
import resource, torch
from attention import AttentionOptions, dci_attention
query, key, value = torch.randn(3, 1, 4, 8192, 16).unbind()
mask = torch.rand(8192, 8192) > 0.5
options = AttentionOptions(exact_below=10**6)
dci_attention(query[..., :64, :], key, value, options=options)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
dci_attention(query, key, value[..., :8], options=options)
dci_attention(query, key[:, :1], value[:, :1], enable_gqa=True, is_causal=True, options=options)
dci_attention(query, key, value, mask, options=options)
dci_attention(query, key, value, mask, is_causal=True, options=options)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.alone
@pytest.mark.slow
def test_memory_never_grows_with_queries_times_keys():
    run = subprocess.run([sys.executable, "-P", "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 100  # MB; one head's scores are 256
