"""Every path in inference mode, which is a setting of one thread: workers must not write to its tensors."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attention
from attention import AttentionOptions
from attention.decoding.key_value_index import KeyValueIndex
from tests.caches import past

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
OPTIONS = AttentionOptions(near=0.5, exact_below=0, num_threads=2)  # never exact because that would be faster
HEADS, LENGTH, WIDTH = 4, 1500, 16


@pytest.fixture(autouse=True, params=DTYPES, ids=str)
def dtype(request, monkeypatch):
    """Several threads, however little there is to do."""
    monkeypatch.setattr("attention.decoding.folding._WORTH_THREADS", 0)
    torch.manual_seed(0)
    with torch.inference_mode():
        yield request.param


def tensors(dtype, heads=HEADS):
    """Queries, keys and values that depend on few latent numbers, (1, H, n, E)."""
    latent = torch.randn(1, heads, LENGTH, 4)
    return [torch.tanh(latent @ torch.randn(4, WIDTH) / 2).to(dtype) for _ in range(3)]


def assert_near(found, expected):
    assert found.dtype == expected.dtype
    off = (found.float() - expected.float()).norm(dim=-1).norm(dim=-1)
    assert (off <= 0.11 * expected.float().norm(dim=-1).norm(dim=-1)).all()


def approximated(report):
    return sum(calls.methods.get("near+far", 0) for calls in report.taken)


@pytest.mark.parametrize("causal", [False, True])
def test_dci_attention_and_use(dtype, causal):
    query, key, value = tensors(dtype)
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
    assert_near(attention.dci_attention(query, key, value, is_causal=causal, options=OPTIONS), expected)
    with attention.use(OPTIONS) as usage:
        assert_near(F.scaled_dot_product_attention(query, key, value, is_causal=causal), expected)
    assert usage.report().left == {}
    assert approximated(usage.report()) == HEADS


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.project = nn.Linear(4, 3 * HEADS * WIDTH)

    def forward(self, x):
        heads = torch.tanh(self.project(x)).unflatten(-1, (3, HEADS, WIDTH)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(*heads)


def test_accelerate(dtype):
    model = Attention().to(dtype).eval()
    x = torch.randn(1, LENGTH, 4).to(dtype)
    expected = model(x)
    with attention.accelerate(model, OPTIONS) as handle:
        found = model(x)
        (layer,) = handle.report().layers
    assert_near(found, expected)
    assert approximated(layer.calls) == HEADS


def llama(dtype):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=LENGTH + 8,
        pad_token_id=0,
        attn_implementation="sdpa",
    )
    return transformers.LlamaForCausalLM(config).to(dtype).eval()


@pytest.mark.parametrize("cached", [False, True], ids=["register", "DCICache"])
def test_models_of_transformers(dtype, cached, monkeypatch):
    methods, attend = [], attention._core.dispatch.attend_visible

    def watched(*args):
        out, reports = attend(*args)
        methods.extend(report.method for report in reports)
        return out, reports

    monkeypatch.setattr("attention._core.dispatch.attend_visible", watched)
    model, tokens = llama(dtype), torch.randint(3, 64, (1, LENGTH))
    steps = [tokens] if not cached else [tokens[:, : LENGTH - 8], *tokens[:, LENGTH - 8 :].split([1, 1, 5, 1], 1)]
    expected = model(tokens).logits
    attention.register("dci", OPTIONS)
    model.set_attn_implementation("dci")
    cache = attention.DCICache() if cached else None
    found = torch.cat([model(some, **past(cache), use_cache=cached).logits for some in steps], 1)
    assert_near(found, expected)
    assert methods == ["near+far"] * 2  # the prompt's
    assert not cached or cache.report().layers[0].folded > 0


def test_growing_keys(dtype):
    query, key, value = tensors(dtype)
    index = KeyValueIndex(OPTIONS)
    outs = []
    for start, stop in ((0, 1400), (1400, 1401), (1401, 1408), (1408, LENGTH)):
        index.append(key[:, :, start:stop], value[:, :, start:stop])
        outs.append(index.attend(query[:, :, start:stop]))
    assert index.report().folded > 0
    index.select(torch.tensor([0, 0]))
    index.crop(1450)
    index.append(*(x[:, :, 1450:1451].expand(2, -1, -1, -1) for x in (key, value)))
    twice = index.attend(query[:, :, 1450:1451].expand(2, -1, -1, -1))
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    assert torch.cat(outs, 2).dtype == dtype
    expected = expected.float()
    assert (torch.cat(outs, 2).float() - expected).norm() <= 0.1 * expected.norm()
    for each in twice.float():
        assert (each - expected[0, :, 1450:1451]).norm() <= 0.2 * expected[0, :, 1450].norm()
    with torch.inference_mode(False), torch.no_grad():  # what was made here goes on elsewhere
        more = torch.randn(2, HEADS, 1, WIDTH, dtype=dtype)
        index.append(more, more)
        assert torch.isfinite(index.attend(more)).all()
