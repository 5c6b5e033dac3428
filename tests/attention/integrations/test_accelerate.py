"""`accelerate`: the layers asked for, and all as before when restored."""

import copy
import io
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import scaled_dot_product_attention as sdpa

import attention
from attention import AttentionOptions

pytestmark = pytest.mark.usefixtures("no_grad")


class Direct(nn.Module):
    """Calls the function itself; its name does not tell."""

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(16, 48)

    def forward(self, x):
        query, key, value = self.project(x).unflatten(-1, (2, 3, 8)).unbind(-2)
        return self.attend(query, key, value).flatten(-2)

    def attend(self, query, key, value):
        query, key, value = (y.transpose(1, 2) for y in (query, key, value))
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)


class UnderAnotherName(Direct):
    def attend(self, query, key, value):
        return sdpa(*(y.transpose(1, 2) for y in (query, key, value))).transpose(1, 2)


def attend_outside(query, key, value):
    return F.scaled_dot_product_attention(query, key, value)


class ByHelper(Direct):
    def attend(self, query, key, value):
        return attend_outside(*(y.transpose(1, 2) for y in (query, key, value))).transpose(1, 2)


class EagerAttention(nn.Module):
    """Multiplies matrices instead."""

    def forward(self, x):
        return torch.softmax(x @ x.mT, -1) @ x


class UnusedAttention(EagerAttention):
    pass


class AttentionBlock(nn.Module):
    """Attention by name, but it only contains attention."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


class Weights(nn.Module):
    """Wants the weights, as nn.MultiheadAttention gives by default."""

    def __init__(self):
        super().__init__()
        self.heads = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x):
        return self.heads(x, x, x)[0]


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.direct = AttentionBlock(Direct())
        self.renamed = UnderAnotherName()
        self.helped = ByHelper()
        self.eager = EagerAttention()
        self.weights = Weights()
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.unused = UnusedAttention()
        self.own = attention.DCIAttention(16, 2, batch_first=True)

    def forward(self, x):
        for module in (self.direct, self.renamed, self.helped, self.eager, self.weights, self.encoder):
            x = module(x)
        return self.own(x, x, x)[0]


NAMES = [
    "direct.inner",
    "renamed",
    "helped",
    "eager",
    "weights.heads",
    "encoder.self_attn",
    "unused",
    "own",
]


@pytest.fixture
def mixed():
    return Mixed().eval()


def encoder(n_layers=3):
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    return nn.TransformerEncoder(layer, n_layers).eval()


X = torch.linspace(-1, 1, 2 * 9 * 16).sin().view(2, 9, 16)


class TestLayers:
    def test_which_are_taken_and_why_not(self, mixed):
        expected = mixed(X)
        with attention.accelerate(mixed) as handle:
            torch.testing.assert_close(mixed(X), expected)
            report = handle.report()
        assert [layer.name for layer in report.layers] == NAMES
        assert report.taken == ["direct.inner", "renamed", "helped", "encoder.self_attn"]
        assert report.left.keys() == {"eager", "weights.heads", "unused", "own"}
        assert "did not call scaled_dot_product_attention" in report.left["eager"]
        assert "need_weights=True" in report.left["weights.heads"]
        assert report.left["unused"] == "never called"
        assert "of its own" in report.left["own"]
        for name in NAMES:
            assert f"{name}:" in str(report)
        assert all(layer.calls.taken[0].count == 1 for layer in report.layers if not layer.why_not)

    @pytest.mark.parametrize(
        ("layers", "taken"),
        [
            (None, [0, 1, 2]),
            (0, [0]),
            (-1, [2]),
            ([2, 0], [0, 2]),
            ("layers.1.*", [1]),
            ("*self_attn", [0, 1, 2]),
            (["*.0.*", -1], [0, 2]),
            ((1, "layers.1.self_attn"), [1]),
        ],
    )
    def test_chosen(self, layers, taken):
        model = encoder()
        expected = model(X)
        with attention.accelerate(model, layers=layers) as handle:
            torch.testing.assert_close(model(X), expected, atol=1e-5, rtol=1e-5)
            report = handle.report()
        assert report.taken == [f"layers.{i}.self_attn" for i in taken]
        assert set(report.left.values()) <= {"not chosen"}

    def test_the_model_itself(self):
        model = Direct().eval()
        with attention.accelerate(model) as handle:
            model(X)
            assert handle.report().taken == [""]

    @pytest.mark.parametrize("layers", [3, -4, "decoder.*", [0, "nothing"]])
    def test_unknown(self, layers):
        with pytest.raises(attention.InvalidValueError, match=r"3 attention layers \(0 'layers.0.self_attn', 1 "):
            attention.accelerate(encoder(), layers=layers)

    @pytest.mark.parametrize("layers", [1.5, True, [None], {0: 1}, b"x"])
    def test_of_a_wrong_type(self, layers):
        with pytest.raises(attention.InvalidTypeError, match="layers"):
            attention.accelerate(encoder(), layers=layers)

    def test_none_there(self):
        with pytest.raises(attention.InvalidValueError, match="received Linear without any"):
            attention.accelerate(nn.Linear(3, 3))

    def test_bad_options_change_nothing(self):
        model = encoder()
        with pytest.raises(attention.InvalidTypeError, match="options"):
            attention.accelerate(model, options=0.1)
        assert untouched(model)


def untouched(model):
    return not any("forward" in vars(module) for module in model.modules())


class TestRestore:
    def test_restored_and_again(self, mixed):
        before = {name: dict(vars(module)) for name, module in mixed.named_modules()}
        handle = attention.accelerate(mixed)
        assert not untouched(mixed)
        handle.restore()
        handle.restore()
        assert {name: dict(vars(module)) for name, module in mixed.named_modules()} == before
        mixed(X)
        assert handle.report().taken == []

    @pytest.mark.parametrize("first", [0, 1])
    def test_layers_apart_in_either_order(self, first):
        model = encoder()
        handles = [attention.accelerate(model, layers=[0, 1]), attention.accelerate(model, layers=2)]
        model(X)
        assert [len(handle.report().taken) for handle in handles] == [2, 1]
        for handle in (handles[first], handles[1 - first]):
            handle.restore()
        assert untouched(model)
        model(X)
        assert [len(handle.report().taken) for handle in handles] == [2, 1]

    def test_not_twice(self):
        model = encoder()
        with attention.accelerate(model, layers=1) as handle:
            with pytest.raises(attention.InvalidValueError, match="layers.1.self_attn.*restore"):
                attention.accelerate(model)
            model(X)
            assert handle.report().taken == ["layers.1.self_attn"]
        assert untouched(model)

    def test_a_forward_that_was_replaced_before(self):
        model = Direct().eval()
        original = model.forward
        model.forward = lambda x: original(x) + 1
        replaced, expected = model.forward, model(X)
        with attention.accelerate(model) as handle:
            torch.testing.assert_close(model(X), expected)
            assert handle.report().taken == [""]
        assert model.forward is replaced

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_exceptions_leave_nothing_behind(self, error):
        model = AttentionBlock(Direct()).eval()

        def fail(*_):
            raise error

        model.inner.project.register_forward_hook(fail)
        with attention.accelerate(model), pytest.raises(error):
            model(X)
        assert torch.overrides._get_current_function_mode() is None
        assert untouched(model)

    def test_state_dict(self, mixed):
        before = mixed.state_dict()
        with attention.accelerate(mixed):
            assert mixed.state_dict().keys() == before.keys()


class TestUsage:
    @pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
    def test_padded_encoder(self):
        """Which packs its input into nested tensors otherwise."""
        model = encoder()
        padding = torch.zeros(2, 9, dtype=torch.bool)
        padding[1, 5:] = True
        with attention.accelerate(model, layers=[1]) as handle:
            found = model(X, src_key_padding_mask=padding)
            assert handle.report().taken == ["layers.1.self_attn"]
        expected = model(X, src_key_padding_mask=padding)
        torch.testing.assert_close(found[~padding], expected[~padding], atol=1e-5, rtol=1e-5)

    def test_options_reach_the_layers(self):
        torch.manual_seed(1)
        model = Direct().eval()
        x = torch.tanh(torch.randn(1, 2000, 3) @ torch.randn(3, 16))
        exact = model(x)
        with attention.accelerate(model, AttentionOptions(tolerance=0.1, exact_below=0)) as handle:
            found = model(x)
            assert handle.report().taken == [""]
        assert (found - exact).norm() <= 0.13 * exact.norm()

    def test_inside_use(self):
        """The layers' options are the inner ones."""
        model = encoder()
        with attention.accelerate(model, layers=0) as handle, attention.use() as usage:
            model(X)
            F.scaled_dot_product_attention(X, X, X)
        assert handle.report().taken == ["layers.0.self_attn"]
        assert sum(calls.count for calls in usage.report().taken) == 3

    def test_threads(self):
        model = Direct().eval()
        with attention.accelerate(model) as handle:
            threads = [threading.Thread(target=lambda: [_no_grad(model, X) for _ in range(50)]) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            (layer,) = handle.report().layers
        assert layer.calls.taken[0].count == 200
        assert layer.calls.left == {}

    @pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x)), "save"])
    def test_copies(self, duplicate):
        """A copy runs with its own parameters and outlives the original's restore."""
        model = encoder()
        with attention.accelerate(model) as handle:
            duplicated = saved(model) if duplicate == "save" else duplicate(model)
        for parameter in duplicated.parameters():
            parameter.mul_(0.5)
        scaled = encoder()
        scaled.load_state_dict(duplicated.state_dict())
        torch.testing.assert_close(duplicated(X), scaled(X), atol=1e-5, rtol=1e-5)
        assert untouched(model)
        assert handle.report().taken == []


def saved(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def _no_grad(model, x):
    with torch.no_grad():  # which is a setting of the thread
        return model(x)


class TestTransformers:
    @pytest.fixture
    def models(self):
        transformers = pytest.importorskip("transformers")
        small = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        small["intermediate_size"] = 48
        return {
            "bert": transformers.BertModel(transformers.BertConfig(**small)).eval(),
            "llama": transformers.LlamaModel(transformers.LlamaConfig(**small, num_key_value_heads=2)).eval(),
            "gpt2": transformers.GPT2Model(
                transformers.GPT2Config(
                    vocab_size=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=None
                )
            ).eval(),
        }

    @pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
    def test_attention_functions_chosen_at_run_time(self, models, name):
        model = models[name]
        tokens = torch.randint(3, 64, (2, 24))
        mask = torch.ones_like(tokens)
        mask[0, :5] = 0
        inputs = {"input_ids": tokens, "attention_mask": mask}
        model.set_attn_implementation("sdpa")
        expected = model(**inputs)[0]
        with attention.accelerate(model, layers=-1) as handle:
            found = model(**inputs)[0]
            report = handle.report()
        torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=1e-5)
        assert len(report.layers) == 2
        assert report.taken == [report.layers[1].name]

    def test_eager(self, models):
        models["bert"].set_attn_implementation("eager")
        with attention.accelerate(models["bert"]) as handle:
            models["bert"](torch.randint(3, 64, (2, 24)))
            left = handle.report().left
        assert len(left) == 2
        assert all("'eager'" in why for why in left.values())
