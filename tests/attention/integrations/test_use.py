"""`use`: every call inside the block, and nothing outside of it."""

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import scaled_dot_product_attention as imported_earlier

import attention
from attention import AttentionOptions
from attention.integrations import torch_function

CALLS = {
    "torch.nn.functional": lambda *args, **kwargs: F.scaled_dot_product_attention(*args, **kwargs),
    "imported earlier": imported_earlier,
    "torch._C._nn": torch._C._nn.scaled_dot_product_attention,
    "aten": torch.ops.aten.scaled_dot_product_attention,
    "aten overload": torch.ops.aten.scaled_dot_product_attention.default,
}


pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture
def qkv():
    return torch.randn(3, 2, 4, 20, 8).unbind()


def count(usage):
    return sum(calls.count for calls in usage.report().taken)


def smooth(n, dim):
    """Queries, keys and values as smooth functions of one low-dimensional latent."""
    latent = torch.randn(n, 3)
    return [torch.tanh(latent @ torch.randn(3, 8)) @ torch.randn(8, dim) for _ in range(3)]


class TestCalls:
    @pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
    def test_by_any_name(self, call, qkv):
        expected = F.scaled_dot_product_attention(*qkv)
        with attention.use() as usage:
            found = call(*qkv)
        torch.testing.assert_close(found, expected)
        assert count(usage) == 1

    @pytest.mark.parametrize(
        "arguments",
        [
            {"is_causal": True},
            {"attn_mask": torch.ones(20, 20, dtype=torch.bool).tril(2)},
            {"attn_mask": torch.linspace(-1, 1, 400).view(20, 20), "scale": 0.3},
            {"scale": 2.0},
        ],
    )
    def test_arguments(self, arguments, qkv):
        expected = F.scaled_dot_product_attention(*qkv, **arguments)
        with attention.use() as usage:
            found = F.scaled_dot_product_attention(*qkv, **arguments)
            by_name = F.scaled_dot_product_attention(
                **dict(zip(("query", "key", "value"), qkv, strict=True)), **arguments
            )
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(by_name, expected)
        assert count(usage) == 2

    def test_grouped_heads(self, qkv):
        query, key, value = qkv[0], qkv[1][:, :2], qkv[2][:, :2]
        expected = F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
        with attention.use() as usage:
            found = F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
        torch.testing.assert_close(found, expected)
        assert count(usage) == 1

    def test_within_the_tolerance(self):
        query, key, value = (x[None, None] for x in smooth(3000, 16))
        exact = F.scaled_dot_product_attention(query, key, value)
        with attention.use(AttentionOptions(tolerance=0.1, exact_below=0)) as usage:
            found = F.scaled_dot_product_attention(query, key, value)
        assert (found - exact).norm() <= 0.13 * exact.norm()
        assert count(usage) == 1


class TestScope:
    def test_nothing_is_left_behind(self, qkv):
        with attention.use() as usage:
            pass
        F.scaled_dot_product_attention(*qkv)
        assert count(usage) == 0
        assert torch.overrides._get_current_function_mode() is None

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_exceptions(self, error):
        with pytest.raises(error), attention.use():
            raise error
        assert torch.overrides._get_current_function_mode() is None

    def test_inner_options_win(self, qkv, monkeypatch):
        seen = []

        def attend(*args, options, **kwargs):
            seen.append(options)
            return attention.dci_attention(*args, options=options, **kwargs)

        monkeypatch.setattr(torch_function, "dci_attention", attend)
        outer, inner = AttentionOptions(tolerance=0.1), AttentionOptions(tolerance=0.2)
        with attention.use(outer) as around:
            F.scaled_dot_product_attention(*qkv)
            with attention.use(inner) as within:
                F.scaled_dot_product_attention(*qkv)
            F.scaled_dot_product_attention(*qkv)
        assert seen == [outer, inner, outer]
        assert (count(around), count(within)) == (2, 1)

    def test_other_threads(self, qkv):
        with attention.use() as usage:
            thread = threading.Thread(target=lambda: F.scaled_dot_product_attention(*qkv))
            thread.start()
            thread.join()
        assert count(usage) == 0

    def test_calls_with_options_of_their_own(self, qkv):
        with attention.use(AttentionOptions(tolerance=0.5)) as usage:
            attention.dci_attention(*qkv)
        assert count(usage) == 0

    def test_as_a_decorator(self, qkv):
        @attention.use()
        def attend():
            assert torch.overrides._get_current_function_mode() is not None
            return F.scaled_dot_product_attention(*qkv)

        torch.testing.assert_close(attend(), F.scaled_dot_product_attention(*qkv))
        assert torch.overrides._get_current_function_mode() is None

    def test_options_of_a_wrong_type(self):
        with pytest.raises(attention.InvalidTypeError, match="options"), attention.use({"tolerance": 0.1}):
            pass


class TestLeftToTorch:
    def left(self, call):
        with attention.use() as usage:
            output = call()
        assert usage.report().taken == []
        (reason, number), *others = usage.report().left.items()
        assert (number, others) == (1, [])
        assert "left to torch" in str(usage.report())
        return output, reason

    def test_dropout(self, qkv):
        output, reason = self.left(lambda: F.scaled_dot_product_attention(*qkv, dropout_p=0.5))
        assert "dropout" in reason
        assert output.shape == qkv[0].shape

    def test_gradients(self, qkv):
        query = qkv[0].requires_grad_()
        with torch.enable_grad():
            output, reason = self.left(lambda: F.scaled_dot_product_attention(query, *qkv[1:]))
            output.sum().backward()
        assert "grad" in reason
        assert query.grad is not None

    def test_other_devices(self):
        x = torch.empty(1, 2, 5, 4, device="meta")
        output, reason = self.left(lambda: F.scaled_dot_product_attention(x, x, x))
        assert "meta" in reason
        assert output.device.type == "meta"

    @pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
    @pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
    def test_nested_tensors(self, layout):
        parts = [torch.randn(2, n, 4) for n in (3, 5)]
        if layout == torch.jagged:
            rows = [part.transpose(0, 1) for part in parts]
            nested = torch.nested.nested_tensor(rows, layout=layout).transpose(1, 2)
        else:
            nested = torch.nested.nested_tensor(parts)
        output, reason = self.left(lambda: F.scaled_dot_product_attention(nested, nested, nested))
        assert "nested" in reason
        for found, part in zip(output.unbind(), parts, strict=True):
            torch.testing.assert_close(found, F.scaled_dot_product_attention(part, part, part))

    def test_torch_raises_its_own_errors(self, qkv):
        with pytest.raises(RuntimeError), attention.use():
            F.scaled_dot_product_attention(qkv[0], qkv[1][..., :3], qkv[2])

    def test_weights(self):
        layer = nn.MultiheadAttention(16, 2, batch_first=True).eval()
        x = torch.randn(2, 7, 16)
        expected = layer(x, x, x)
        found, reason = self.left(lambda: layer(x, x, x))
        assert "need_weights" in reason
        torch.testing.assert_close(found, expected)


def modules():
    x, memory = torch.randn(2, 7, 16), torch.randn(2, 9, 16)
    longer = torch.randn(9, 6, 16)
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[1, 4:] = True
    causal = torch.ones(7, 7, dtype=torch.bool).triu(1)
    per_head = torch.randn(4, 7, 7)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2)
    decoder = nn.TransformerDecoderLayer(16, 2, 32, batch_first=True)
    heads = nn.MultiheadAttention(16, 2, batch_first=True)
    parts = nn.MultiheadAttention(16, 2, kdim=5, vdim=6)
    biased = nn.MultiheadAttention(16, 2, add_bias_kv=True, add_zero_attn=True, batch_first=True)
    for module in (layer, encoder, decoder, heads, parts, biased):
        module.eval()
        for parameter in module.parameters():  # torch starts with biases of zero
            nn.init.normal_(parameter, std=0.3)

    def attend(module, *inputs, **masks):
        return module(*inputs, need_weights=False, **masks)[0]

    return {
        "layer": (1, lambda: layer(x)),
        "layer, causal": (1, lambda: layer(x, src_mask=causal, is_causal=True)),
        "layer, padded": (1, lambda: layer(x, src_key_padding_mask=padding)[~padding]),
        "layer, padded and causal": (
            1,
            lambda: layer(x, src_mask=causal, src_key_padding_mask=padding, is_causal=True)[~padding],
        ),
        "layer, two masks": (1, lambda: layer(x, src_mask=causal, src_key_padding_mask=padding)[~padding]),
        "encoder": (2, lambda: encoder(x)),
        "encoder, padded": (2, lambda: encoder(x, src_key_padding_mask=padding)[~padding]),
        "encoder, mixed masks": (
            2,
            lambda: encoder(x, mask=causal.float() * -2, src_key_padding_mask=padding)[~padding],
        ),
        "decoder": (2, lambda: decoder(x, memory, tgt_mask=causal, tgt_is_causal=True)),
        "heads": (1, lambda: attend(heads, x, x, x)),
        "heads, a mask a head": (1, lambda: attend(heads, x, x, x, attn_mask=per_head)),
        "heads, a mask a head, padded": (
            1,
            lambda: attend(heads, x, x, x, attn_mask=per_head, key_padding_mask=padding.float() * -3),
        ),
        "heads, not batched": (1, lambda: attend(heads, x[1], x[1], x[1], key_padding_mask=padding[1])),
        "heads, crossed": (1, lambda: attend(heads, x, memory, memory)),
        "kdim, vdim": (1, lambda: attend(parts, longer[:4], longer[..., :5], longer[..., :6])),
        "bias_kv, zero_attn": (1, lambda: attend(biased, x, x, x)),
        "bias_kv, zero_attn, masked": (
            1,
            lambda: attend(biased, x, x, x, attn_mask=causal, key_padding_mask=padding, is_causal=True),
        ),
    }


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:Support for mismatched")
@pytest.mark.parametrize("name", modules())
def test_modules_of_torch(name):
    """Whose fast paths do not call scaled_dot_product_attention at all."""
    calls, module = modules()[name]
    expected = module()
    if name == "encoder, mixed masks":  # torch's fast path takes a float mask for a boolean one
        torch.backends.mha.set_fastpath_enabled(False)
        expected = module()
        torch.backends.mha.set_fastpath_enabled(True)
    with attention.use() as usage:
        found = module()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert count(usage) == calls
    assert usage.report().left == {}


def test_modules_in_training():
    torch.set_grad_enabled(True)
    layer = nn.TransformerEncoderLayer(16, 2, batch_first=True, dropout=0.0)
    with attention.use() as usage:
        layer(
            torch.randn(2, 7, 16), src_mask=nn.Transformer.generate_square_subsequent_mask(7), is_causal=True
        ).sum().backward()
    assert layer.self_attn.in_proj_weight.grad is not None
    assert usage.report().left


class TestReport:
    def test_numbers(self, qkv):
        with attention.use() as usage:
            assert "no attention" in str(usage.report())
            F.scaled_dot_product_attention(*qkv)
            F.scaled_dot_product_attention(*qkv)
        (calls,) = usage.report().taken
        assert (calls.query, calls.key) == ((2, 4, 20, 8), (2, 4, 20, 8))
        assert calls.count == 2
        assert calls.methods == {"exact": 16}
        assert calls.share == 1.0
        assert calls.error == 0.0
        assert calls.seconds > 0
        assert "2 × query (2, 4, 20, 8)" in str(usage.report())

    def test_a_report_does_not_change_later(self, qkv):
        with attention.use() as usage:
            F.scaled_dot_product_attention(*qkv)
            before = usage.report()
            F.scaled_dot_product_attention(*qkv)
        assert before.taken[0].count == 1
        assert usage.report().taken[0].count == 2

    def test_records_are_bounded(self):
        with attention.use() as usage:
            for n in range(1, 300):
                key = torch.zeros(1, 1, n, 4)
                F.scaled_dot_product_attention(key[:, :, :1], key, key)
                if n < 40:
                    F.scaled_dot_product_attention(key, key, key, dropout_p=n / 100)
        report = usage.report()
        assert len(report.taken) == 9
        assert max(calls.key for calls in report.taken) == (1, 1, 299, 4)
        assert sum(calls.count for calls in report.taken) == 299
        assert len(report.left) <= 17
        assert sum(report.left.values()) == 39


@pytest.mark.slow
def test_compiled():
    x = torch.randn(2, 4, 20, 8)

    def model(x):
        return F.scaled_dot_product_attention(x, x, x) + 1

    expected, compiled = model(x), torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)
    with attention.use():
        torch.testing.assert_close(compiled(x), expected)
    torch.testing.assert_close(compiled(x), expected)
