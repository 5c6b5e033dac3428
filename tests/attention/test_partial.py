"""Attention to keys in parts, merged: against attention to all of them, in one process and in two."""

import math

import pytest
import torch

from attention import AttentionOptions, InvalidTypeError, InvalidValueError, dci_attention, merge_partial
from tests.processes import run_script

TOLERANCE = 0.05


def smooth_heads(length, n_keys, heads=2, width=32, seed=0):
    """Queries, keys and values that are smooth functions of a few numbers: what can be approximated."""
    generator = torch.Generator().manual_seed(seed)
    latent, mix = torch.randn(n_keys, 4, generator=generator), torch.randn(4, 3 * heads * width, generator=generator)
    made = torch.tanh(latent @ mix).view(n_keys, 3, heads, width).permute(1, 2, 0, 3)[:, None]
    query, key, value = made.contiguous().unbind()
    return query[..., :length, :] * 1.5, key, value


def exact_lse(query, key, mask=None, scale=None):
    scores = query.double() @ key.double().mT * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.logsumexp(-1)


def relative(found, expected):
    return float((found.double() - expected.double()).norm() / expected.double().norm())


class TestNormaliser:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    @pytest.mark.parametrize("shape", [(1, 4), (), (2, 3)])
    @pytest.mark.parametrize("kind", ["all", "causal", "bool", "added", "window", "padded"])
    def test_exact(self, dtype, shape, kind):
        torch.manual_seed(0)
        query, key, value = (torch.randn(*shape, n, 16, dtype=dtype) for n in (70, 90, 90))
        rows, columns = torch.arange(70)[:, None], torch.arange(90)
        masks = {
            "all": None, "causal": columns <= rows, "bool": torch.rand(70, 90) < 0.5,
            "added": torch.randn(70, 90, dtype=dtype), "window": (columns <= rows) & (columns > rows - 20),
            "padded": (columns < 33) & (rows < 1000),
        }  # fmt: skip
        mask = masks[kind]
        if kind == "bool":
            mask[5] = False  # sees nothing
        causal = kind == "causal"
        out, lse, report = dci_attention(
            query, key, value, None if causal else mask, is_causal=causal, return_lse=True, return_report=True
        )
        assert lse.shape == (*shape, 70)
        assert lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        tolerance = 1e-10 if dtype == torch.float64 else 2e-5
        torch.testing.assert_close(lse.double(), exact_lse(query, key, mask), atol=tolerance, rtol=tolerance)
        plain = dci_attention(query, key, value, None if causal else mask, is_causal=causal)
        loose = 2e-2 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(out, plain, atol=loose, rtol=loose)
        assert {head.method for head in report.heads} <= {"exact", "banded"}

    def test_grouped_heads_and_shared_keys(self):
        torch.manual_seed(0)
        query, key = torch.randn(2, 6, 30, 8), torch.randn(2, 2, 40, 8)
        _, lse = dci_attention(query, key, key, enable_gqa=True, return_lse=True)
        expected = exact_lse(query, key.repeat_interleave(3, 1))
        torch.testing.assert_close(lse.double(), expected, atol=1e-5, rtol=1e-5)
        mask = torch.rand(2, 1, 30, 40) < 0.7
        _, lse = dci_attention(query, key[:, :1], key[:, :1], mask, return_lse=True)
        torch.testing.assert_close(lse.double(), exact_lse(query, key[:, :1], mask), atol=1e-5, rtol=1e-5)

    def test_a_negative_scale_and_no_keys(self):
        query, key = torch.randn(2, 5, 8), torch.randn(2, 7, 8)
        _, lse = dci_attention(query, key, key, scale=-0.3, return_lse=True)
        torch.testing.assert_close(lse.double(), exact_lse(query, key, scale=-0.3), atol=1e-5, rtol=1e-5)
        out, lse = dci_attention(query, key[:, :0], key[:, :0], return_lse=True)
        assert (out == 0).all()
        assert (lse == -torch.inf).all()

    @pytest.mark.parametrize("causal", [False, True])
    def test_of_the_far_field(self, causal):
        query, key, value = smooth_heads(4096, 4096)
        options = AttentionOptions(tolerance=TOLERANCE, exact_below=256)
        mask = torch.ones(4096, 4096, dtype=torch.bool).tril() if causal else None
        out, lse, report = dci_attention(
            query, key, value, is_causal=causal, options=options, return_lse=True, return_report=True
        )
        assert {head.method for head in report.heads} == {"near+far"}
        torch.testing.assert_close(out, dci_attention(query, key, value, is_causal=causal, options=options))
        error = lse.double() - exact_lse(query, key, mask)
        assert error.square().mean().sqrt() < TOLERANCE

    def test_of_the_best_keys(self):
        query, key, value = smooth_heads(600, 600)
        options = AttentionOptions(top_k=600)
        for causal in (False, True):
            _, lse = dci_attention(query, key, value, is_causal=causal, options=options, return_lse=True)
            mask = torch.ones(600, 600, dtype=torch.bool).tril() if causal else None
            torch.testing.assert_close(lse.double(), exact_lse(query, key, mask), atol=1e-4, rtol=1e-4)


class TestMerge:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    @pytest.mark.parametrize("sizes", [[90], [1, 89], [30, 0, 40, 20]])
    def test_is_attention_to_all_keys(self, dtype, sizes):
        torch.manual_seed(1)
        query, key, value = (torch.randn(2, 3, n, 16, dtype=dtype) for n in (50, 90, 90))
        mask = torch.rand(50, 90) < 0.3
        mask[7] = False
        parts = zip(key.split(sizes, -2), value.split(sizes, -2), mask.split(sizes, -1), strict=True)
        done = [dci_attention(query, k, v, m, return_lse=True) for k, v, m in parts]
        out, lse = merge_partial(*zip(*done, strict=True))
        assert out.dtype == dtype
        loose = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2}[dtype]
        torch.testing.assert_close(out, dci_attention(query, key, value, mask), atol=loose, rtol=loose)
        torch.testing.assert_close(lse.double(), exact_lse(query, key, mask), atol=2e-5, rtol=2e-5)
        assert (out[..., 7, :] == 0).all()

    def test_in_any_order_and_by_halves(self):
        torch.manual_seed(2)
        outs, lses = torch.randn(4, 5, 3).double(), 50 * torch.randn(4, 5).double()
        whole = merge_partial(list(outs), list(lses))
        pairs = [merge_partial(outs[i : i + 2].unbind(), lses[i : i + 2].unbind()) for i in (2, 0)]
        for found, expected in zip(merge_partial(*zip(*pairs, strict=True)), whole, strict=True):
            torch.testing.assert_close(found, expected)

    def test_large_scores_do_not_overflow(self):
        out, lse = merge_partial([torch.ones(1, 2), torch.zeros(1, 2)], [torch.tensor([3e4]), torch.tensor([-3e4])])
        assert out.tolist() == [[1.0, 1.0]]
        assert lse.tolist() == [3e4]

    def test_of_far_fields(self):
        query, key, value = smooth_heads(4096, 8192)
        options = AttentionOptions(tolerance=TOLERANCE, exact_below=256)
        done, methods = [], set()
        for part in (slice(0, 4096), slice(4096, 8192)):
            out, lse, report = dci_attention(
                query, key[..., part, :], value[..., part, :], options=options, return_lse=True, return_report=True
            )
            done.append((out, lse))
            methods |= {head.method for head in report.heads}
        assert methods == {"near+far"}
        out, _ = merge_partial(*zip(*done, strict=True))
        expected = dci_attention(query, key, value, options=AttentionOptions(exact_below=10**9))
        for head in range(2):
            assert relative(out[0, head], expected[0, head]) < 1.5 * TOLERANCE

    @pytest.mark.parametrize(
        ("outputs", "lses", "error", "message"),
        [
            ([], [], InvalidValueError, "at least one, received 0 and 0"),
            ([torch.ones(2, 3)], [], InvalidValueError, "received 1 and 0"),
            ([torch.ones(2, 3)], [[0.0, 0.0]], InvalidTypeError, r"lses: .*received \['list'\]"),
            ([torch.ones(2, 3).long()], [torch.ones(2)], InvalidTypeError, r"outputs: .*received \['torch.int64'\]"),
            (
                [torch.ones(2, 3), torch.ones(2, 3).double()],
                [torch.ones(2)] * 2,
                InvalidTypeError,
                "expected one dtype",
            ),
            ([torch.ones(2, 3), torch.ones(2, 4)], [torch.ones(2)] * 2, InvalidValueError, r"\(2, 3\), \(2, 4\)"),
            ([torch.ones(2, 3)], [torch.ones(3)], InvalidValueError, r"received \[\(2, 3\)\] and \[\(3,\)\]"),
            ([torch.ones(3)], [torch.tensor(1.0)], InvalidValueError, "expected shapes"),
        ],
    )
    def test_refused(self, outputs, lses, error, message):
        with pytest.raises(error, match=message):
            merge_partial(outputs, lses)


SEQUENCE_PARALLEL = """
    import sys
    import torch
    import torch.distributed as dist
    from attention import AttentionOptions, dci_attention, merge_partial

    rank, place = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method="file://" + place + "/meet", rank=rank, world_size=2)
    for approximate in (False, True):
        length, n_keys = (2048, 4096) if approximate else (60, 100)
        data = torch.load(f"{place}/{approximate}.pt")
        keys = slice(rank * n_keys // 2, (rank + 1) * n_keys // 2)
        options = AttentionOptions(exact_below=256) if approximate else None
        query = data["query"]
        out, lse, report = dci_attention(query, data["key"][..., keys, :], data["value"][..., keys, :],
                                         options=options, return_lse=True, return_report=True)
        assert {head.method for head in report.heads} == {"near+far" if approximate else "exact"}
        outs, lses = [torch.empty_like(out) for _ in range(2)], [torch.empty_like(lse) for _ in range(2)]
        dist.all_gather(outs, out)
        dist.all_gather(lses, lse)
        merged, _ = merge_partial(outs, lses)
        torch.save(merged, f"{place}/{approximate}-{rank}.pt")
    dist.destroy_process_group()
"""


def test_two_processes(tmp_path):
    """Sequence parallel: each has half of the keys, and both have all queries."""
    torch.manual_seed(0)
    sets = {False: (torch.randn(1, 2, 60, 16), *torch.randn(2, 1, 2, 100, 16).unbind()), True: smooth_heads(2048, 4096)}
    for approximate, (query, key, value) in sets.items():
        torch.save({"query": query, "key": key, "value": value}, tmp_path / f"{approximate}.pt")
    started = [run_script(SEQUENCE_PARALLEL, str(rank), str(tmp_path)) for rank in range(2)]
    try:
        for process in started:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:
        for process in started:
            process.kill()
    for approximate, (query, key, value) in sets.items():
        one, two = (torch.load(tmp_path / f"{approximate}-{rank}.pt") for rank in range(2))
        assert torch.equal(one, two)
        expected = dci_attention(query, key, value, options=AttentionOptions(exact_below=10**9))
        assert relative(one, expected) < (1.5 * TOLERANCE if approximate else 1e-5)
