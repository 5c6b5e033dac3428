"""`calibrate`: the output stays within the bound, by options of layers that every way into a model takes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attention
from attention import AttentionOptions, LayerOptions
from attention.errors import InvalidTypeError, InvalidValueError
from attention.integrations.calibration import logit_change, share_out
from tests.caches import past

N = 800
SHORT = AttentionOptions(exact_below=256)  # of these lengths, exact attention is faster: it is not about time here


class Layer(nn.Module):
    """Attention whose scores are `sharpness` times as far apart, and that counts for `weight` in what comes out."""

    def __init__(self, sharpness, weight):
        super().__init__()
        self.project = nn.Linear(32, 96)
        self.sharpness, self.weight = sharpness, weight

    def forward(self, x):
        query, key, value = self.project(x).unflatten(-1, (2, 48)).transpose(1, 2).split(16, -1)
        out = F.scaled_dot_product_attention(self.sharpness * query, key, value)
        return x + self.weight * out.transpose(1, 2).flatten(2)


class Model(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(Layer(*layer) for layer in layers)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def model():
    """The layers ask for different tolerances: the second counts for most."""
    return Model((2, 0.5), (2, 5), (2, 0.5)).eval()


@pytest.fixture
def x():
    # Smooth, so that keys lie in cells.
    return torch.randn(1, N // 16, 32).repeat_interleave(16, 1) + 0.2 * torch.randn(1, N, 32)


@pytest.fixture
def llama():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2 * N, pad_token_id=0,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def tokens(n=N):
    return torch.randint(1, 64, (1, n))


def changed(model, options, x):
    with torch.no_grad():
        exact = model(x)
        with attention.accelerate(model, options):
            return logit_change(exact, model(x))


class TestBound:
    @pytest.mark.parametrize("bound", [1e-1, 3e-3, 1e-5])
    def test_the_output_stays_within(self, model, x, bound):
        tuned = attention.calibrate(model, x, max_logit_change=bound, options=SHORT)
        assert tuned.change <= bound
        assert changed(model, tuned, x) == pytest.approx(tuned.change, rel=1e-3, abs=1e-9)

    def test_looser_bounds_have_larger_tolerances(self, model, x):
        loose, tight = (attention.calibrate(model, x, max_logit_change=bound, options=SHORT) for bound in (1e-1, 3e-3))
        assert loose.change > tight.change
        assert loose.options["layers.1"].tolerance > tight.options["layers.1"].tolerance

    def test_a_layer_that_counts_for_more_is_more_exact(self, model, x):
        options = attention.calibrate(model, x, max_logit_change=2e-2, options=SHORT).options
        assert options["layers.1"].tolerance < min(options[f"layers.{i}"].tolerance for i in (0, 2))

    def test_what_cannot_be_kept_is_exact(self, model, x):
        tuned = attention.calibrate(model, x, max_logit_change=1e-12, options=SHORT)
        assert set(tuned.options.values()) == {LayerOptions.EXACT}
        assert tuned.change == 0

    def test_a_metric(self, model, x):
        def moved(exact, output):
            return (exact.argmax(-1) != output.argmax(-1)).double().mean()

        tuned = attention.calibrate(model, x, metric=moved, max_metric=0.01, options=SHORT)
        with torch.no_grad(), attention.accelerate(model, tuned):
            found = model(x)
        assert moved(model(x), found) <= 0.01

    def test_several_calls_are_all_within(self, model, x):
        calls = [x, (x.flip(1),), {"x": 0.5 * x}]
        tuned = attention.calibrate(model, calls, max_logit_change=1e-2, options=SHORT)
        changes = [changed(model, tuned, one) for one in (x, x.flip(1), 0.5 * x)]
        assert max(changes) == pytest.approx(tuned.change, rel=1e-3)

    def test_layers_that_are_not_asked_for_have_no_part(self, model, x):
        tuned = attention.calibrate(model, x, max_logit_change=1e-1, options=SHORT, layers=[0, "layers.2"])
        assert list(tuned.options) == ["layers.0", "layers.2"]

    def test_layers_of_noise_are_left_exact(self, x):
        model = Model((2, 1), (200, 1)).eval()
        options = attention.calibrate(model, x, max_logit_change=1e-1, options=SHORT.replace(tolerance=0.05)).options
        assert options["layers.1"] == LayerOptions.EXACT


class TestSharing:
    def test_changes_add_up_to_the_aim(self):
        alone = {"a": 1e-3, "b": 4e-3, "c": 2e-2}
        tolerances = share_out(alone, 0.05, 0.03)
        assert math.hypot(*(alone[name] * tolerances[name] / 0.05 for name in alone)) == pytest.approx(0.03, rel=0.01)
        assert tolerances["a"] > tolerances["b"] > tolerances["c"]

    def test_no_more_than_the_largest_tolerance(self):
        assert share_out({"a": 1e-3, "b": 0.0}, 0.05, 100.0) == {"a": 0.3, "b": 0.3}

    def test_without_room_nothing_is_left(self):
        assert share_out({"a": 1.0, "b": 1.0}, 0.05, 1e-9) == {}


class TestWaysIn:
    @pytest.fixture
    def tuned(self, llama):
        inputs = {"input_ids": tokens(), "use_cache": False}
        return attention.calibrate(llama, inputs, max_logit_change=1e-2, options=SHORT)

    def test_register_finds_the_layers(self, llama, tuned):
        x = tokens()
        with torch.no_grad():
            with attention.accelerate(llama, tuned):
                expected = llama(x).logits
            attention.register("dci", tuned)
            llama.set_attn_implementation("dci")
            torch.testing.assert_close(llama(x).logits, expected, rtol=1e-4, atol=1e-5)

    def test_each_layer_has_its_own_options(self, llama, monkeypatch):
        of = [AttentionOptions(tolerance=0.1 + i / 100, exact_below=256) for i in range(3)]
        names = [f"model.layers.{i}.self_attn" for i in range(3)]
        options = LayerOptions(dict(zip(names, of, strict=True)), {name: i for i, name in enumerate(names)})
        seen = []
        from attention.integrations import huggingface

        real = huggingface.dci_attention
        monkeypatch.setattr(
            huggingface,
            "dci_attention",
            lambda *a, options, **k: seen.append(options) or real(*a, options=options, **k),
        )
        attention.register("dci", options)
        llama.set_attn_implementation("dci")
        with torch.no_grad():
            llama(tokens(), use_cache=False)
        assert seen == of

    @pytest.mark.parametrize("given", [True, False], ids=["to the cache", "to the attention function"])
    def test_the_cache_has_them(self, llama, given):
        names = [f"model.layers.{i}.self_attn" for i in range(3)]
        of = [AttentionOptions(tolerance=0.1, exact_below=64), LayerOptions.EXACT, AttentionOptions(exact_below=64)]
        options = LayerOptions(dict(zip(names, of, strict=True)), {name: i for i, name in enumerate(names)})
        attention.register("dci", None if given else options)
        llama.set_attn_implementation("dci")
        cache = attention.DCICache(options) if given else attention.DCICache()
        with torch.no_grad():
            llama(tokens(), **past(cache))
            llama(tokens(1), **past(cache))
        assert [layer.index.options for layer in cache.layers] == of
        assert [report.folded > 0 for report in cache.report().layers] == [True, False, True]

    def test_a_cache_with_a_config(self, llama, tuned):
        cache = attention.DCICache(tuned, config=llama.config)
        assert [layer.index.options for layer in cache.layers] == list(tuned.options.values())

    def test_a_model_with_more_layers_is_refused(self, llama):
        one = LayerOptions({"model.layers.0.self_attn": SHORT}, {"model.layers.0.self_attn": 0})
        with pytest.raises(InvalidValueError, match=r"expected those of layers \[0, 1, 2\], received those of \[0\]"):
            attention.DCICache(one, config=llama.config)
        attention.register("dci", one)
        llama.set_attn_implementation("dci")
        with torch.no_grad(), pytest.raises(InvalidValueError, match=r"LlamaAttention with layer_idx 1, .* \[0\]"):
            llama(tokens(8))

    def test_names_that_the_model_lacks_are_refused(self, model):
        with pytest.raises(InvalidValueError, match=r"attention layers, \['layers\.0', .*received \['layers\.7'\]"):
            attention.accelerate(model, LayerOptions({"layers.0": SHORT, "layers.7": SHORT}))

    def test_which_layers_stand_in_the_options(self, model):
        with pytest.raises(InvalidTypeError, match="layers: expected None with LayerOptions"):
            attention.accelerate(model, LayerOptions({"layers.0": SHORT}), layers=0)

    def test_use_does_not_know_layers(self):
        with (
            pytest.raises(InvalidTypeError, match="options: expected None or AttentionOptions"),
            attention.use(LayerOptions({"layers.0": SHORT})),
        ):
            pass


GOOD = {"max_logit_change": 0.1}


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "error", "says"),
        [
            ({}, InvalidTypeError, "expected either max_logit_change, or metric and max_metric, received none of them"),
            (
                GOOD | {"metric": max, "max_metric": 1},
                InvalidTypeError,
                "received max_logit_change, metric, max_metric",
            ),
            ({"metric": max}, InvalidTypeError, "received metric$"),
            ({"metric": 3, "max_metric": 1}, InvalidTypeError, "^metric: expected a callable, received"),
            ({"max_logit_change": "1"}, InvalidTypeError, "^max_logit_change: expected a number above 0, received"),
            ({"max_logit_change": 0}, InvalidValueError, "^max_logit_change: expected a finite number above 0, rec"),
            ({"max_logit_change": math.nan}, InvalidValueError, "^max_logit_change: expected a finite number above 0"),
            ({"metric": max, "max_metric": -1}, InvalidValueError, "^max_metric: expected a finite number above 0"),
            (GOOD | {"options": 0.1}, InvalidTypeError, "^options: expected AttentionOptions or None, received float"),
            (GOOD | {"options": AttentionOptions(top_k=8)}, InvalidValueError, "^options: expected neither top_k nor"),
            (GOOD | {"layers": 9}, InvalidValueError, "^layers: expected some of the model's 3 attention layers"),
            (GOOD | {"inputs": []}, InvalidValueError, "^inputs: expected one call or more, received an empty list"),
            (GOOD | {"inputs": "x"}, InvalidTypeError, "^inputs: expected a Tensor, tuple, dict or list of these"),
            (GOOD | {"model": 1}, InvalidTypeError, r"^model: expected a torch\.nn\.Module, received int"),
            (GOOD | {"model": nn.Linear(2, 2).eval()}, InvalidValueError, "^model: expected a nn.MultiheadAttention,"),
        ],
    )
    def test_wrong_arguments(self, model, x, arguments, error, says):
        with pytest.raises(error, match=says):
            attention.calibrate(**{"model": model, "inputs": x} | arguments)

    def test_training_mode(self, model, x):
        with pytest.raises(InvalidValueError, match=r"^model: expected it in eval mode.*model\.eval\(\)"):
            attention.calibrate(model.train(), x, max_logit_change=0.1)

    def test_inputs_that_are_too_short(self, model, x):
        with pytest.raises(InvalidValueError, match=r"(?s)^inputs: expected some that layers approximate.*layers\.2"):
            attention.calibrate(model, x, max_logit_change=0.1)

    @pytest.mark.parametrize(("value", "error"), [("much", InvalidTypeError), (math.nan, InvalidValueError)])
    def test_a_metric_that_says_nothing(self, model, x, value, error):
        with pytest.raises(error, match="^metric: expected to return a "):
            attention.calibrate(model, x, metric=lambda *_: value, max_metric=1, options=SHORT)

    def test_an_output_without_logits(self, model, x):
        model.register_forward_hook(lambda *_: "text")
        with pytest.raises(InvalidTypeError, match="^model: expected to return a float Tensor, .*received str: give a"):
            attention.calibrate(model, x, max_logit_change=1, options=SHORT)

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    @pytest.mark.parametrize("at", [1, 2, 4])
    def test_the_model_is_as_before_whatever_happens(self, model, x, error, at):
        calls = []

        def stop(*_):
            calls.append(0)
            if len(calls) == at:
                raise error

        handle = model.layers[1].project.register_forward_hook(stop)
        with pytest.raises(error):
            attention.calibrate(model, x, max_logit_change=0.1, options=SHORT)
        handle.remove()
        assert not any("forward" in vars(module) for module in model.modules())
        assert torch.is_grad_enabled()
        expected = model(x)
        torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
