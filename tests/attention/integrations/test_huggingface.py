"""Models of transformers, small and randomly initialised, must do with "dci" what they do with "sdpa"."""

import contextlib
import subprocess
import sys

import pytest
import torch

import attention
from attention import AttentionOptions, UnsupportedError
from tests.caches import past

transformers = pytest.importorskip("transformers")

TIGHT = AttentionOptions(tolerance=1e-3)
FORCED = AttentionOptions(tolerance=0.01, exact_below=0)
SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
}
DECODER = {**SMALL, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}


@pytest.fixture(autouse=True)
def _inference():
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


@pytest.fixture(params=[TIGHT, FORCED], ids=["default path", "forced approximation"])
def options(request):
    attention.register("dci", request.param)
    return request.param


def bert(**changes):
    return transformers.BertModel(transformers.BertConfig(**{**SMALL, **changes})).eval()


def llama(**changes):
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**DECODER, **changes})).eval()


def gpt2(**changes):
    config = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "bos_token_id": 1}
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**{**config, "eos_token_id": None, "pad_token_id": 0, **changes})
    ).eval()


def mistral(window=8, **changes):
    return transformers.MistralForCausalLM(
        transformers.MistralConfig(**{**DECODER, "sliding_window": window, **changes})
    ).eval()


def modernbert(**changes):
    config = {
        **SMALL,
        "local_attention": 8,
        "global_attn_every_n_layers": 2,
        "pad_token_id": 0,
        "reference_compile": False,
    }
    return transformers.ModernBertModel(
        transformers.ModernBertConfig(
            **{**config, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2, **changes}
        )
    ).eval()


def qwen2_moe(**changes):
    config = {**DECODER, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_experts": 2}
    config |= {"num_experts_per_tok": 1, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    return transformers.Qwen2MoeForCausalLM(transformers.Qwen2MoeConfig(**{**config, **changes})).eval()


ENCODERS = [bert, modernbert]
DECODERS = [llama, gpt2, mistral, qwen2_moe]


def batch(n_tokens=24, left=(0, 5, 11), side="left"):
    """Tokens and a mask with so many of each sequence's tokens padded."""
    tokens = torch.randint(3, 64, (len(left), n_tokens))
    mask = torch.ones_like(tokens)
    for row, count in enumerate(left):
        padded = slice(0, count) if side == "left" else slice(n_tokens - count, n_tokens)
        tokens[row, padded], mask[row, padded] = 0, 0
    return {"input_ids": tokens, "attention_mask": mask}


def both(model, **inputs):
    """First outputs with sdpa and with dci."""
    outputs = []
    for implementation in ("sdpa", "dci"):
        model.set_attn_implementation(implementation)
        outputs.append(model(**inputs)[0])
    assert model.config._attn_implementation == "dci"
    return outputs


def assert_close(found, expected, options, real=...):
    """Compare outputs; what approximates may be off by some tolerances, through the layers."""
    found, expected = found[real], expected[real]
    off = (found - expected).norm() / expected.norm()
    assert off <= (1e-4 if options is TIGHT else 5 * options.tolerance)
    assert found.isfinite().all()


@pytest.mark.parametrize("make", ENCODERS + DECODERS)
class TestHiddenStates:
    def test_without_padding(self, make, options):
        expected, found = both(make(), input_ids=batch()["input_ids"])
        assert_close(found, expected, options)

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_padded(self, make, options, side):
        inputs = batch(side=side)
        expected, found = both(make(), **inputs)
        assert found.isfinite().all()
        assert_close(found, expected, options, inputs["attention_mask"].bool())

    def test_holes(self, make, options):
        inputs = batch()
        inputs["attention_mask"][0, 7:10] = 0
        expected, found = both(make(), **inputs)
        assert_close(found, expected, options, inputs["attention_mask"].bool())


@pytest.mark.parametrize("make", DECODERS)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
class TestCaches:
    def test_greedy_generation(self, make, cache):
        attention.register("dci", TIGHT)
        model, inputs = make(), batch()
        found = {}
        for implementation in ("sdpa", "dci"):
            model.set_attn_implementation(implementation)
            found[implementation] = model.generate(
                **inputs, max_new_tokens=16, do_sample=False, cache_implementation=cache, disable_compile=True
            )
        assert found["dci"].shape == (3, 40)
        assert found["dci"].tolist() == found["sdpa"].tolist()

    @pytest.mark.parametrize("padded", [False, True])
    def test_prefill_in_parts(self, make, cache, options, padded):
        """Queries are the last of the cached keys; a static cache has room for keys to come."""
        model, inputs = make(), batch()
        if not padded:
            inputs["attention_mask"][:] = 1
        position = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        outputs = []
        for implementation in ("sdpa", "dci"):
            model.set_attn_implementation(implementation)
            kinds = {"dynamic": transformers.DynamicCache, "static": transformers.StaticCache}
            cached = kinds[cache](config=model.config, **({"max_cache_len": 40} if cache == "static" else {}))
            parts = [
                model(
                    input_ids=inputs["input_ids"][:, part],
                    attention_mask=inputs["attention_mask"][:, : part.stop] if padded else None,
                    position_ids=position[:, part],
                    **past(cached),
                ).logits
                for part in (slice(0, 13), slice(13, 23), slice(23, 24))
            ]
            outputs.append(torch.cat(parts, 1))
        assert_close(outputs[1], outputs[0], options, inputs["attention_mask"].bool())


class TestMask:
    """Registered under the same name, it never makes queries × keys."""

    def mask(self, make_mask, attention_mask=None, length=16, **config):
        config = transformers.LlamaConfig(**{**DECODER, "attn_implementation": "dci", **config})
        embedded = torch.zeros(2, length, 32)
        return make_mask(
            config=config,
            inputs_embeds=embedded,
            attention_mask=attention_mask,
            position_ids=None,
            **past(None),
        )

    @pytest.mark.parametrize("name", ["create_causal_mask", "create_bidirectional_mask"])
    def test_plain(self, name, options):
        make_mask = getattr(transformers.masking_utils, name)
        if name == "create_bidirectional_mask":
            make_mask = lambda **kwargs: transformers.masking_utils.create_bidirectional_mask(  # noqa: E731
                **{k: v for k, v in kwargs.items() if k != "position_ids"}
            )
        assert self.mask(make_mask) is None
        assert self.mask(make_mask, torch.ones(2, 16)) is None
        padded = torch.ones(2, 16)
        padded[1, :3] = 0
        mask = self.mask(make_mask, padded)
        assert mask.dtype == torch.bool
        assert mask.tolist() == padded.bool().tolist()
        assert mask.rule.causal == (name == "create_causal_mask")

    def test_sliding_window(self, options):
        make_mask = transformers.masking_utils.create_sliding_window_causal_mask
        assert self.mask(make_mask, sliding_window=16) is None
        mask = self.mask(make_mask, sliding_window=15)
        assert mask.shape == (2, 16)
        assert mask.rule == (True, 15)

    def test_a_mask_of_the_users(self, options):
        model = llama()
        mask = torch.rand(1, 1, 24, 24) < 0.5
        mask |= torch.eye(24, dtype=torch.bool)
        expected, found = both(model, input_ids=batch()["input_ids"], attention_mask=mask)
        assert_close(found, expected, options)


class TestRefusals:
    @pytest.fixture(autouse=True)
    def _registered(self):
        attention.register("dci", TIGHT)

    def refused(self, model, match, **inputs):
        model.set_attn_implementation("dci")
        with pytest.raises(UnsupportedError, match=match) as caught:
            model(**({"input_ids": batch()["input_ids"]} | inputs))
        assert "eager" in str(caught.value)

    def test_softcap(self):
        config = transformers.Gemma2Config(**DECODER, head_dim=8)
        self.refused(transformers.Gemma2ForCausalLM(config).eval(), "softcap")

    def test_position_bias(self):
        """Of T5, which asks for it since it calls attention functions at all."""
        attend, module = transformers.AttentionInterface()["dci"], torch.nn.Module()
        with pytest.raises(UnsupportedError, match="position_bias.*eager"):
            attend(module, *torch.randn(3, 1, 2, 4, 8), None, position_bias=torch.zeros(1, 2, 4, 4))

    def test_sinks(self):
        config = transformers.GptOssConfig(**DECODER, head_dim=8, num_local_experts=2, num_experts_per_tok=1)
        self.refused(transformers.GptOssForCausalLM(config).eval(), "s_aux")

    def test_chunked(self):
        config = transformers.Llama4TextConfig(
            **{**DECODER, "head_dim": 8, "attention_chunk_size": 8, "num_local_experts": 2, "intermediate_size_mlp": 48}
        )
        self.refused(transformers.Llama4ForCausalLM(config).eval(), "chunked_overlay")

    def test_packed_sequences(self):
        position = torch.cat([torch.arange(10), torch.arange(14)])[None].expand(3, -1)
        self.refused(llama(), "packed", position_ids=position, use_cache=False)

    def test_combined_masks(self):
        make_mask = transformers.masking_utils.create_causal_mask
        config = transformers.LlamaConfig(**DECODER, attn_implementation="dci")
        arguments = {"config": config, "inputs_embeds": torch.zeros(1, 8, 32), "attention_mask": None}
        for kind in ("or_mask_function", "and_mask_function"):
            with pytest.raises(UnsupportedError, match="mask_function"):
                make_mask(**arguments, **past(None), **{kind: lambda b, h, q, k: q == k})

    @pytest.mark.parametrize("make", [bert, llama, gpt2])
    def test_weights(self, make):
        self.refused(make(), "output_attentions", output_attentions=True)

    def test_dropout(self):
        with pytest.raises(UnsupportedError, match="dropout"):
            both(llama(attention_dropout=0.5).train(), **batch())

    def test_gradients(self):
        with torch.inference_mode(False), torch.enable_grad():
            model = llama()
            with pytest.raises(UnsupportedError, match="no_grad"):
                both(model, input_ids=batch()["input_ids"])


class TestUse:
    """Around a model with the registered function, whose calls have options of their own."""

    @pytest.mark.parametrize("make", [llama, mistral, bert])
    def test_takes_no_part_of_a_call(self, make, options):
        model = make()
        model.set_attn_implementation("dci")
        for inputs in (batch(), batch(side="right"), {"input_ids": batch()["input_ids"]}):
            expected = model(**inputs)[0]
            with attention.use(AttentionOptions(tolerance=0.5)) as usage:
                found = model(**inputs)[0]
            assert torch.equal(found, expected)
            assert usage.report().taken == []
            assert usage.report().left == {}

    def test_takes_no_part_of_decoding(self, options):
        model, tokens = llama(), batch(90)["input_ids"]
        model.set_attn_implementation("dci")
        outs = []
        for usage in (contextlib.nullcontext(), attention.use(AttentionOptions(tolerance=0.5))):
            cache = attention.DCICache()
            with usage as used:
                steps = [model(some, **past(cache)).logits for some in tokens.split([60, 20, 9, 1], 1)]
            outs.append(torch.cat(steps, 1))
        assert torch.equal(*outs)
        assert used.report().taken == []
        assert used.report().left == {}


def test_a_negative_scale_sees_no_future():
    """Which the kernels of PyTorch, that hide keys behind -inf before they scale, would let in."""
    attention.register("dci", TIGHT)
    attend = transformers.AttentionInterface()["dci"]
    module = torch.nn.Module()
    module.is_causal = True
    query, key, value = torch.randn(3, 1, 2, 12, 8)
    other = value.clone()
    other[:, :, -1] = 100
    outs = [attend(module, query[:, :, 4:], key, x, None, scaling=-0.5)[0] for x in (value, other)]
    assert torch.equal(outs[0][:, :-1], outs[1][:, :-1])


class TestRegister:
    def test_in_the_config(self):
        attention.register("dci", TIGHT)
        model = llama(attn_implementation="dci")
        assert model.config._attn_implementation == "dci"
        found = model(**batch()).logits
        assert found.isfinite().all()

    def test_again_changes_the_options(self, monkeypatch):
        seen = self.options_seen(monkeypatch)
        model = llama(num_hidden_layers=1)
        for tolerance in (0.1, 0.2):
            attention.register("dci", AttentionOptions(tolerance=tolerance))
            model.set_attn_implementation("dci")
            model(batch()["input_ids"])
            assert seen.pop().tolerance == tolerance

    def test_several_names(self, monkeypatch):
        seen = self.options_seen(monkeypatch)
        attention.register("dci", AttentionOptions(tolerance=0.1))
        attention.register("dci-fine", AttentionOptions(tolerance=0.01))
        models = {name: llama(num_hidden_layers=1, attn_implementation=name) for name in ("dci", "dci-fine")}
        for name, tolerance in (("dci", 0.1), ("dci-fine", 0.01)):
            models[name](batch()["input_ids"])
            assert seen.pop().tolerance == tolerance

    def options_seen(self, monkeypatch):
        seen = []

        def attend(*args, options, **kwargs):
            seen.append(options)
            return attention.dci_attention(*args, options=options, **kwargs)

        monkeypatch.setattr("attention.integrations.huggingface.dci_attention", attend)
        return seen

    def test_bad_arguments(self):
        with pytest.raises(attention.InvalidTypeError, match="name"):
            attention.register(3)
        with pytest.raises(attention.InvalidTypeError, match="options"):
            attention.register("dci", {"tolerance": 0.1})

    def test_without_transformers(self):
        code = "import sys; sys.modules['transformers'] = None; import attention; attention.register()"
        run = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
        assert "ImportError: register needs transformers" in run.stderr
        assert "pip install" in run.stderr
