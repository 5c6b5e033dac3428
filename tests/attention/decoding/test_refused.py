"""A call that is refused leaves a growing index, and a cache, as they were."""

import pytest
import torch

import attention
from attention import AttentionError, AttentionOptions
from attention.decoding.key_value_index import KeyValueIndex

OPTIONS = AttentionOptions(tolerance=0.1, exact_below=0)
BATCH, HEADS, LENGTH, WIDTH = 2, 2, 150, 8


def rows(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def filled():
    """An index with cells, some keys behind them, and remembered queries."""
    index = KeyValueIndex(OPTIONS)
    index.append(rows(BATCH, HEADS, LENGTH, WIDTH), rows(BATCH, HEADS, LENGTH, WIDTH - 1))
    index.observe(rows(BATCH, 4, 40, WIDTH))
    index.attend(rows(BATCH, 4, 1, WIDTH))
    assert index.report().folded > 0
    return index


def state(value):
    """All that an object holds, as plain values; cells never change, so it matters only which they are."""
    if isinstance(value, torch.Tensor):
        return value.shape, value.dtype, value.nan_to_num(7.0).tolist()
    if isinstance(value, list | tuple):
        return [state(x) for x in value]
    if isinstance(value, dict):
        return {name: state(x) for name, x in value.items()}
    if type(value).__name__ in ("Growing", "Queries", "FoldedKeys", "DCILayer", "KeyValueIndex"):
        return {name: state(x) for name, x in vars(value).items()} | {"filled": state(getattr(value, "filled", None))}
    if type(value).__name__ in ("Prefix", "Choice", "Recent", "ndarray", "device", "Tensor", "AttentionOptions"):
        return id(value)
    assert value is None or isinstance(value, int | float | str | bool | torch.dtype), type(value)
    return repr(value)


def with_gradients(*shape):
    return torch.zeros(*shape, requires_grad=True)


def nan_key(index):
    """Have the next fold meet a key that is not finite."""
    bad = rows(BATCH, HEADS, 200, WIDTH)
    bad[1, 1, 20, 3] = torch.nan
    index.append(bad, rows(BATCH, HEADS, 200, WIDTH - 1))


ONE = (BATCH, HEADS, 1)
CALLS = {
    "append: axes": lambda i: i.append(rows(2, 3), rows(2, 3)),
    "append: more axes of values": lambda i: i.append(rows(*ONE, WIDTH), rows(BATCH, HEADS, 1, 1, WIDTH - 1)),
    "append: lengths": lambda i: i.append(rows(*ONE, WIDTH), rows(BATCH, HEADS, 2, WIDTH - 1)),
    "append: keys as wide as others": lambda i: i.append(rows(*ONE, WIDTH + 1), rows(*ONE, WIDTH - 1)),
    "append: values as wide as others": lambda i: i.append(rows(*ONE, WIDTH), rows(*ONE, WIDTH)),
    "append: batch": lambda i: i.append(rows(1, HEADS, 1, WIDTH), rows(1, HEADS, 1, WIDTH - 1)),
    "append: dtype": lambda i: i.append(*(rows(*ONE, w, dtype=torch.bfloat16) for w in (WIDTH, WIDTH - 1))),
    "append: dtypes": lambda i: i.append(rows(*ONE, WIDTH), rows(*ONE, WIDTH - 1, dtype=torch.bfloat16)),
    "append: gradients": lambda i: i.append(rows(*ONE, WIDTH), with_gradients(*ONE, WIDTH - 1)),
    "append: no tensor": lambda i: i.append([1.0], [1.0]),
    "observe: axes": lambda i: i.observe(rows(4, 1, WIDTH)),
    "observe: batch": lambda i: i.observe(rows(1, 4, 1, WIDTH)),
    "observe: heads": lambda i: i.observe(rows(BATCH, 3, 1, WIDTH)),
    "observe: width": lambda i: i.observe(rows(BATCH, 4, 1, WIDTH - 1)),
    "observe: dtype": lambda i: i.observe(rows(BATCH, 4, 1, WIDTH, dtype=torch.float16)),
    "attend: axes": lambda i: i.attend(rows(4, 1, WIDTH)),
    "attend: batch": lambda i: i.attend(rows(1, 4, 1, WIDTH)),
    "attend: heads": lambda i: i.attend(rows(BATCH, 3, 1, WIDTH)),
    "attend: no query": lambda i: i.attend(rows(BATCH, 4, 0, WIDTH)),
    "attend: too many queries": lambda i: i.attend(rows(BATCH, 2, LENGTH + 201, WIDTH)),
    "attend: other heads, too many queries": lambda i: i.attend(rows(BATCH, 8, LENGTH + 201, WIDTH)),
    "attend: dtype": lambda i: i.attend(rows(BATCH, 4, 1, WIDTH, dtype=torch.float64)),
    "attend: gradients": lambda i: i.attend(with_gradients(BATCH, 4, 1, WIDTH)),
    "attend: number of starts": lambda i: i.attend(rows(BATCH, 4, 1, WIDTH), starts=[0]),
    "attend: starts": lambda i: i.attend(rows(BATCH, 4, 1, WIDTH), starts=[0, 1000]),
    "attend: negative starts": lambda i: i.attend(rows(BATCH, 4, 1, WIDTH), starts=[0, -1]),
    "attend: starts between keys": lambda i: i.attend(rows(BATCH, 4, 1, WIDTH), starts=[0, 0.5]),
    "attend: scale": lambda i: i.attend(rows(BATCH, 4, 1, WIDTH), scale=float("inf")),
    "attend: type of scale": lambda i: i.attend(rows(BATCH, 4, 1, WIDTH), scale="1"),
    "attend: type of options": lambda i: i.attend(rows(BATCH, 4, 1, WIDTH), options=0.1),
    "attend: options": lambda i: i.attend(rows(BATCH, 4, 1, WIDTH), options=AttentionOptions(top_k=3)),
    "attend: keys that are not finite": lambda i: i.attend(rows(BATCH, 4, 1, WIDTH)),
    "attend: such keys, other scale": lambda i: i.attend(rows(BATCH, 4, 1, WIDTH), scale=2.0),
    "attend: such keys, other starts": lambda i: i.attend(rows(BATCH, 4, 1, WIDTH), starts=[0, 3]),
    "attend: such keys, other heads": lambda i: i.attend(rows(BATCH, 2, 20, WIDTH)),
    "attend: such keys, other options": lambda i: i.attend(
        rows(BATCH, 4, 1, WIDTH), options=OPTIONS.replace(tolerance=0.2)
    ),
    "crop: negative": lambda i: i.crop(-1),
    "crop: no int": lambda i: i.crop(3.5),
    "select: axes": lambda i: i.select(torch.tensor([[0]])),
    "select: beyond": lambda i: i.select(torch.tensor([0, 2])),
    "select: negative": lambda i: i.select(torch.tensor([-1])),
    "select: dtype": lambda i: i.select(torch.tensor([0.0])),
    "select: no tensor": lambda i: i.select([0]),
    "options: type": lambda i: setattr(i, "options", 0.1),
    "options: top_k": lambda i: setattr(i, "options", AttentionOptions(top_k=2)),
}


@pytest.mark.parametrize("name", CALLS)
def test_refused_calls_change_nothing(name):
    index = filled()
    nan_key(index)
    before = state(index)
    with pytest.raises(AttentionError):
        CALLS[name](index)
    assert state(index) == before
    index.crop(LENGTH)
    assert torch.isfinite(index.attend(rows(BATCH, 4, 1, WIDTH))).all()


@pytest.mark.parametrize("fault", ["axes", "more axes of values", "lengths", "dtypes", "gradients", "no tensor"])
def test_a_refused_first_append_leaves_an_empty_index(fault):
    name = f"append: {fault}"
    index = KeyValueIndex(OPTIONS)
    with pytest.raises(AttentionError):
        CALLS[name](index)
    assert len(index) == 0
    assert index._store is None


class TestCache:
    @pytest.fixture
    def layer(self):
        pytest.importorskip("transformers")
        cache = attention.DCICache()
        return cache.layer_class_to_replicate()

    def test_a_refused_update_initialises_nothing(self, layer):
        before = state(vars(layer))
        with pytest.raises(AttentionError):
            layer.update(rows(*ONE, 8), rows(BATCH, HEADS, 2, 8))
        assert state(vars(layer)) == before
        layer.update(rows(*ONE, 8), rows(*ONE, 8))
        assert layer.is_initialized
        before = state(vars(layer))
        for bad in (rows(BATCH, 1, 1, 8), rows(*ONE, 9)):
            with pytest.raises(AttentionError):
                layer.update(rows(*ONE, 8), bad)
            assert state(vars(layer)) == before

    @pytest.mark.parametrize("length", [1, 20, 60])
    @pytest.mark.parametrize("refused", ["top_k", "dtype", "gradients", "keys"])
    def test_the_attention_function_refuses_before_it_changes_the_index(self, layer, length, refused):
        from attention.integrations.huggingface import _attention_function

        options = AttentionOptions(top_k=3) if refused == "top_k" else OPTIONS
        keys = rows(BATCH, HEADS, 600, 8)
        if refused == "keys":
            keys[0, 0, 5, 5] = torch.inf
        key, value = layer.update(keys, rows(BATCH, HEADS, 600, 8))
        query = rows(BATCH, 4, length, 8, dtype=torch.float16 if refused == "dtype" else torch.float32)
        layer.index.observe(rows(BATCH, 4, 40, 8))
        if refused == "gradients":
            query.requires_grad_()
        module = torch.nn.Module()
        module.is_causal = True
        before = state(vars(layer))
        function = _attention_function(lambda module: options)
        with pytest.raises(AttentionError):
            function(module, query, key, value, None)
        assert state(vars(layer)) == before
