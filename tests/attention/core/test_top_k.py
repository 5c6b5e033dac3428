"""Attention to the k keys that an index finds, against exact top-k attention."""

import pytest
import torch

from attention import AttentionOptions
from attention.reference import topk_attention
from tests.attention.core.inputs import attend, exact, off, prefix, smooth


class TestTopK:
    OPTIONS = AttentionOptions(top_k=32, num_threads=2)

    @pytest.mark.parametrize("is_causal", [False, True])
    @pytest.mark.parametrize("width", [4, 16])
    @pytest.mark.parametrize("embedding", ["query", "random"])
    def test_on_easy_data_it_is_exact_top_k(self, is_causal, width, embedding):
        """Where weights are equal to 1e-6 either key will do, so outputs are compared, not keys."""
        query, key, value = smooth(1500, width, spread=4.0)
        out, head = attend(query, key, value, self.OPTIONS.replace(embedding=embedding), is_causal=is_causal)
        expected = torch.from_numpy(topk_attention(query, key, value, 32, is_causal=is_causal))
        assert head.method == "top-k"
        assert off(out, expected) < 0.02

    @pytest.mark.parametrize("is_causal", [False, True])
    @pytest.mark.parametrize("k", [600, 1499])
    def test_many_keys(self, is_causal, k):
        query, key, value = smooth(1500, 16)
        out, _ = attend(query, key, value, self.OPTIONS.replace(top_k=k), is_causal=is_causal)
        expected = torch.from_numpy(topk_attention(query, key, value, k, is_causal=is_causal))
        assert off(out, expected) < 1e-3

    @pytest.mark.parametrize("k", [1, 5, 64])
    def test_fewer_visible_than_k(self, k):
        """The first queries see fewer keys than k, and all of these."""
        query, key, value = smooth(1500, 16)
        out, _ = attend(query, key, value, self.OPTIONS.replace(top_k=k), is_causal=True)
        expected = exact(query, key, value, is_causal=True)
        torch.testing.assert_close(out[:, :k], expected[:, :k], atol=1e-5, rtol=1e-5)
        assert out.isfinite().all()

    def test_one_key_is_the_nearest(self):
        query, key, value = smooth(1500, 8, spread=3.0)
        out, _ = attend(query, key, value, self.OPTIONS.replace(top_k=1))
        best = value[0, (query[0] @ key[0].T).argmax(dim=1)]
        assert (out[0] - best).norm(dim=-1).lt(1e-5).float().mean() > 0.95

    def test_more_keys_err_less(self):
        tensors = smooth(3000, 32)
        looks = [attend(*tensors, self.OPTIONS.replace(top_k=k)) for k in (8, 64, 512)]
        errors = [off(out, exact(*tensors)) for out, _ in looks]
        assert errors[0] > errors[1] > errors[2]
        for (_, head), error in zip(looks, errors, strict=True):
            assert 0.5 < head.error / error < 2
        assert [head.keys_touched for _, head in looks] == [8, 64, 512]

    @pytest.mark.parametrize("is_causal", [False, True])
    def test_grouped_heads(self, is_causal):
        query, key, value = smooth(1500, 8, spread=3.0)
        query = torch.cat([query, query.flip(1)])
        out, _ = attend(query, key, value, self.OPTIONS, is_causal=is_causal, enable_gqa=True)
        expected = topk_attention(query, key, value, 32, is_causal=is_causal, enable_gqa=True)
        assert off(out, torch.from_numpy(expected)) < 0.02

    def test_prefix(self):
        query, key, value = smooth(1500, 8, spread=3.0)
        out, head = attend(query, key, value, self.OPTIONS, attn_mask=prefix(1500))
        expected = topk_attention(query, key, value, 32, mask=prefix(1500))
        assert head.method == "top-k"
        assert off(out, torch.from_numpy(expected)) < 0.02
