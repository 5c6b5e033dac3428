"""DCIAttention against torch's MultiheadAttention."""

import copy
import pickle

import pytest
import torch
from torch import nn

from attention import AttentionOptions, DCIAttention, InvalidTypeError, InvalidValueError, UnsupportedError

KINDS = {
    "plain": {},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False},
    "kdim, vdim": {"kdim": 10, "vdim": 6},
    "kdim, no bias": {"kdim": 10, "bias": False, "batch_first": True},
    "bias_kv": {"add_bias_kv": True},
    "zero_attn": {"add_zero_attn": True, "batch_first": True},
    "both": {"add_bias_kv": True, "add_zero_attn": True},
    "float64": {"dtype": torch.float64},
    "bfloat16": {"dtype": torch.bfloat16, "batch_first": True},
}


pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def torch_module(request):
    module = nn.MultiheadAttention(16, 4, **request.param).eval()
    for parameter in module.parameters():  # torch starts with biases of zero
        nn.init.normal_(parameter, std=0.3)
    return module


def inputs(module, length=9, n_keys=12, batch=3):
    shapes = [(length, module.embed_dim), (n_keys, module.kdim), (n_keys, module.vdim)]
    dtype = module.out_proj.weight.dtype
    query, key, value = (torch.randn(n, batch, width, dtype=dtype) for n, width in shapes)
    return [x.transpose(0, 1) for x in (query, key, value)] if module.batch_first else [query, key, value]


def padding_mask():
    padding = torch.zeros(3, 12, dtype=torch.bool)
    padding[0, 9:] = padding[1, :4] = padding[2, 5:7] = True
    return padding


CAUSAL = torch.ones(9, 12, dtype=torch.bool).triu(1)
MASKS = {
    "none": {},
    "causal": {"attn_mask": CAUSAL, "is_causal": True},
    "boolean": {"attn_mask": CAUSAL},
    "padding": {"key_padding_mask": padding_mask()},
    "padding, causal": {"key_padding_mask": padding_mask(), "attn_mask": CAUSAL, "is_causal": True},
    "a mask a head": {"attn_mask": torch.linspace(-3, 3, 12 * 9 * 12).sin().view(12, 9, 12)},
    "added padding": {"key_padding_mask": torch.linspace(-2, 2, 36).view(3, 12), "attn_mask": CAUSAL.float()},
}


def assert_same(found, expected):
    """Rows that see nothing: zeros here, NaN in torch."""
    tolerance = {"atol": 2e-2, "rtol": 2e-2} if found.dtype == torch.bfloat16 else {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(found, expected, **tolerance)


@pytest.mark.filterwarnings("ignore:Support for mismatched")
@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
def test_same_output(torch_module, masks):
    if "is_causal" in masks and (torch_module.bias_k is not None or torch_module.add_zero_attn):
        masks = {**masks, "is_causal": False}  # torch's hint hides the added keys, its mask does not
    dtype = torch_module.out_proj.weight.dtype
    masks = {name: x.to(dtype) if torch.is_tensor(x) and x.is_floating_point() else x for name, x in masks.items()}
    query, key, value = inputs(torch_module)
    expected, _ = torch_module(query, key, value, need_weights=False, **masks)
    found, weights = DCIAttention.from_torch(torch_module)(query, key, value, **masks)
    assert weights is None
    assert found.dtype == expected.dtype
    assert_same(found.nan_to_num(), expected.nan_to_num())


def test_not_batched(torch_module):
    query, key, value = (x.select(0 if torch_module.batch_first else 1, 1) for x in inputs(torch_module))
    padding = padding_mask()[1]
    expected, _ = torch_module(query, key, value, key_padding_mask=padding, need_weights=False)
    found, _ = DCIAttention.from_torch(torch_module)(query, key, value, key_padding_mask=padding)
    assert found.shape == query.shape
    assert_same(found, expected)


@pytest.mark.parametrize("added", [False, True])
def test_causal_without_a_mask(added):
    module = DCIAttention(16, 4, batch_first=True, add_bias_kv=added).eval()
    x = torch.randn(2, 9, 16)
    mask = torch.ones(9, 9, dtype=torch.bool).triu(1)
    assert_same(module(x, x, x, is_causal=True)[0], module(x, x, x, attn_mask=mask)[0])


def test_a_sequence_of_padding_gives_the_bias():
    module = DCIAttention(16, 4, batch_first=True).eval()
    nn.init.normal_(module.out_proj.bias)
    x = torch.randn(2, 9, 16)
    padding = torch.tensor([[False] * 9, [True] * 9])
    found, _ = module(x, x, x, key_padding_mask=padding)
    torch.testing.assert_close(found[1], module.out_proj.bias.expand(9, -1))


def test_within_the_tolerance():
    torch.manual_seed(0)
    options = AttentionOptions(tolerance=0.1, exact_below=0)
    module = nn.MultiheadAttention(32, 2, batch_first=True).eval()
    x = torch.tanh(torch.randn(1, 3000, 4) @ torch.randn(4, 32))
    exact, _ = module(x, x, x, need_weights=False)
    found, _ = DCIAttention.from_torch(module, options)(x, x, x)
    assert (found - exact).norm() <= 0.13 * exact.norm()


class TestParameters:
    def test_state_dict_both_ways(self, torch_module):
        arguments = {
            name: getattr(torch_module, name) for name in ("embed_dim", "num_heads", "batch_first", "kdim", "vdim")
        }
        arguments |= {"bias": torch_module.in_proj_bias is not None, "add_bias_kv": torch_module.bias_k is not None}
        arguments |= {"add_zero_attn": torch_module.add_zero_attn, "dtype": torch_module.out_proj.weight.dtype}
        ours, theirs = DCIAttention(**arguments).eval(), nn.MultiheadAttention(**arguments).eval()
        ours.load_state_dict(torch_module.state_dict())
        theirs.load_state_dict(ours.state_dict())
        query, key, value = inputs(torch_module)
        assert_same(ours(query, key, value)[0], theirs(query, key, value, need_weights=False)[0])

    def test_from_torch_shares(self, torch_module):
        ours = DCIAttention.from_torch(torch_module)
        theirs = dict(torch_module.named_parameters())
        assert theirs.keys() == dict(ours.named_parameters()).keys()
        assert all(parameter is theirs[name] for name, parameter in ours.named_parameters())
        assert not ours.training
        assert DCIAttention.from_torch(torch_module.train()).training

    def test_options(self):
        options = AttentionOptions(tolerance=0.2)
        assert DCIAttention(16, 4, options=options).options is options
        assert DCIAttention.from_torch(nn.MultiheadAttention(16, 4), options).options is options
        assert DCIAttention(16, 4).options is None

    @pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
    def test_copies(self, duplicate):
        module = DCIAttention(16, 4, options=AttentionOptions(tolerance=0.2)).eval()
        x = torch.randn(5, 2, 16)
        found = duplicate(module)
        assert found.options == module.options
        torch.testing.assert_close(found(x, x, x)[0], module(x, x, x)[0])


class TestErrors:
    x = torch.randn(2, 9, 16)

    @pytest.mark.parametrize("sizes", [(10, 3), (8, 0), (0, 1), (8, -2)])
    def test_sizes(self, sizes):
        with pytest.raises(InvalidValueError, match="multiple of the second, received"):
            DCIAttention(*sizes)

    def test_weights(self):
        with pytest.raises(UnsupportedError, match="need_weights"):
            DCIAttention(16, 4)(self.x, self.x, self.x, need_weights=True)

    def test_dropout(self):
        module = DCIAttention(16, 4, dropout=0.5)
        with pytest.raises(UnsupportedError, match="dropout"):
            module(self.x, self.x, self.x)
        module.eval()(self.x, self.x, self.x)

    def test_gradients(self):
        with torch.enable_grad(), pytest.raises(UnsupportedError, match="no_grad"):
            DCIAttention(16, 4)(self.x, self.x, self.x)

    @pytest.mark.parametrize(
        "shapes",
        [
            [(9, 2, 16), (9, 2, 16), (8, 2, 16)],
            [(9, 2, 16), (9, 2, 15), (9, 2, 16)],
            [(9, 2, 16), (9, 16), (9, 16)],
            [(9, 2, 16), (9, 3, 16), (9, 3, 16)],
            [(9, 1, 16), (9, 3, 16), (9, 3, 16)],
            [(16,), (16,), (16,)],
        ],
    )
    def test_shapes(self, shapes):
        with pytest.raises(InvalidValueError, match="query, key and value"):
            DCIAttention(16, 4)(*map(torch.randn, shapes))

    def test_masks(self):
        module = DCIAttention(16, 4, batch_first=True)
        with pytest.raises(InvalidValueError, match="attn_mask"):
            module(self.x, self.x, self.x, attn_mask=torch.zeros(9, 8))
        with pytest.raises(InvalidValueError, match="key_padding_mask"):
            module(self.x, self.x, self.x, key_padding_mask=torch.zeros(2, 8))

    def test_types(self):
        with pytest.raises(InvalidTypeError, match="options"):
            DCIAttention(16, 4, options=0.05)
        with pytest.raises(InvalidTypeError, match="MultiheadAttention"):
            DCIAttention.from_torch(nn.Linear(3, 3))
