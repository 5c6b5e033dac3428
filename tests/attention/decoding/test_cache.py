"""A model with a `DCICache` generates what it generates with sdpa and a `DynamicCache`."""

import copy

import pytest
import torch

import attention
from attention import AttentionOptions, DCICache, InvalidTypeError, UnsupportedError
from tests.caches import past

transformers = pytest.importorskip("transformers")

FORCED = AttentionOptions(tolerance=1e-3, exact_below=0)  # cells for any length


@pytest.fixture(autouse=True)
def _inference():
    torch.manual_seed(0)
    attention.register("dci", AttentionOptions(tolerance=1e-3))
    with torch.inference_mode():
        yield


DECODER = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}


def llama(**changes):
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**DECODER, **changes})).eval()


def gpt2(**changes):
    config = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "bos_token_id": 1}
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**{**config, "eos_token_id": None, "pad_token_id": 0, **changes})
    ).eval()


def mistral():
    return transformers.MistralForCausalLM(transformers.MistralConfig(**DECODER, sliding_window=24)).eval()


def prompt(length=100, batch=1):
    return torch.randint(2, 64, (batch, length))


def generate(model, tokens, cache=None, name="sdpa", **arguments):
    model.set_attn_implementation(name)
    arguments = {"max_new_tokens": 40, "do_sample": False, "use_cache": True, **arguments}
    if cache is not None:
        arguments |= past(cache)
    return model.generate(tokens, **arguments)


def assert_used(cache, folded=True):
    reports = cache.report().layers
    assert len(reports) == 2
    for report in reports:
        assert (report.folded > 0) == folded


@pytest.mark.parametrize("model", [llama, gpt2])
@pytest.mark.parametrize("size", [20, 100])
def test_greedy_generation(model, size):
    model, tokens = model(), prompt(size)
    cache = DCICache(FORCED)
    assert torch.equal(generate(model, tokens, cache, "dci"), generate(model, tokens))
    assert_used(cache)
    assert cache.get_seq_length() == size + 39
    assert cache.report().layers[0].length == size + 39


@pytest.mark.parametrize("model", [llama, gpt2])
def test_padding_on_the_left(model):
    model, tokens = model(), prompt(100, 3)
    padding = torch.ones_like(tokens)
    padding[0, :37] = padding[2, :97] = 0
    tokens[padding == 0] = 0
    cache = DCICache(FORCED)
    out = generate(model, tokens, cache, "dci", attention_mask=padding)
    assert torch.equal(out, generate(model, tokens, attention_mask=padding))
    assert_used(cache)


def test_padding_on_the_right_is_left_to_exact_attention():
    model, tokens = llama(), prompt(60, 2)
    padding = torch.ones_like(tokens)
    padding[0, 50:] = 0
    cache = DCICache(FORCED)
    logits = []
    for name, used in (("sdpa", transformers.DynamicCache()), ("dci", cache)):
        model.set_attn_implementation(name)
        model(tokens, attention_mask=padding, **past(used))
        more = torch.cat([padding, torch.ones(2, 1, dtype=padding.dtype)], 1)
        logits.append(model(tokens[:, :1], attention_mask=more, **past(used)).logits)
    torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-4)
    assert_used(cache, folded=False)


def test_ordinary_cache_for_other_implementations():
    model, tokens = llama(), prompt(30, 2)
    cache = DCICache(FORCED)
    assert torch.equal(generate(model, tokens, cache, "sdpa"), generate(model, tokens))
    assert_used(cache, folded=False)
    key, value = cache.layers[0].keys, cache.layers[0].values
    assert key.shape == value.shape == (2, 2, 69, 8)


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 3},
        {"prompt_lookup_num_tokens": 6, "eos_token_id": 1},  # without one, some versions of transformers fail
        {"prefill_chunk_size": 16},
    ],
    ids=["beams", "several beams", "samples", "assisted", "chunks"],
)
def test_other_ways_to_generate(arguments):
    model, tokens = llama(), prompt(60)
    if "prompt_lookup_num_tokens" in arguments:
        tokens = tokens[:, :20].repeat(1, 3)
    outs, cache = [], DCICache(FORCED)
    for used, name in ((transformers.DynamicCache(), "sdpa"), (cache, "dci")):
        torch.manual_seed(0)
        outs.append(generate(model, tokens, used, name, **arguments))
    assert torch.equal(*outs)
    assert_used(cache)


def test_sliding_windows():
    model, tokens = mistral(), prompt(50)
    expected = generate(model, tokens)
    for cache in (DCICache(FORCED), DCICache(FORCED, config=model.config)):
        assert torch.equal(generate(model, tokens, cache, "dci"), expected)
    assert cache.report().layers == ()


def test_crop_and_go_on():
    model, tokens = llama(), prompt(120)
    model.set_attn_implementation("dci")
    cache = DCICache(FORCED)
    model(tokens, **past(cache))
    for at in range(3):
        model(tokens[:, at : at + 1], **past(cache))
    cache.crop(-23)
    assert cache.get_seq_length() == 100
    logits = model(tokens[:, 100:], **past(cache)).logits
    model.set_attn_implementation("sdpa")
    expected = model(tokens).logits[:, 100:]
    torch.testing.assert_close(logits, expected, rtol=1e-2, atol=2e-3)
    assert_used(cache)
    cache.reset()
    assert cache.get_seq_length() == 0
    assert torch.equal(generate(model, tokens[:, :50], cache, "dci"), generate(model, tokens[:, :50]))


def test_batches():
    model, tokens = llama(), prompt(80, 2)
    model.set_attn_implementation("dci")
    cache = DCICache(FORCED)
    model(tokens, **past(cache))
    model(tokens[:, :1], **past(cache))
    cache.batch_repeat_interleave(2)
    cache.reorder_cache(torch.tensor([3, 0, 1, 2]))
    cache.batch_select_indices(torch.tensor([0, 1, 3]))  # of the prompts 1, 0, 1
    chosen = tokens[[1, 0, 1]]
    assert cache.layers[0].keys.shape[0] == 3
    more = prompt(2, 3)
    logits = model(more, **past(cache)).logits
    model.set_attn_implementation("sdpa")
    expected = model(torch.cat([chosen, chosen[:, :1], more], 1)).logits[:, -2:]
    torch.testing.assert_close(logits, expected, rtol=1e-2, atol=2e-3)


def test_a_copy_of_a_prompt_serves_twice():
    model, tokens = llama(), prompt(80)
    model.set_attn_implementation("dci")
    cache = DCICache(FORCED)
    model(tokens, **past(cache))
    for ending in (prompt(3), prompt(5)):
        whole = torch.cat([tokens, ending], 1)
        assert torch.equal(generate(model, whole, copy.deepcopy(cache), "dci"), generate(model, whole))
    assert cache.get_seq_length() == 80


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    model, tokens = llama().to(dtype), prompt(100)
    cache = DCICache(FORCED.replace(tolerance=0.01))
    model.set_attn_implementation("dci")
    model(tokens, **past(cache))
    logits = model(tokens[:, :1], **past(cache)).logits
    assert cache.layers[0].keys.dtype == dtype
    assert_used(cache)
    model.set_attn_implementation("sdpa")
    expected = model(torch.cat([tokens, tokens[:, :1]], 1)).logits[:, -1:]
    torch.testing.assert_close(logits.float(), expected.float(), rtol=0.05, atol=0.02)


def test_options_of_the_implementation_count_if_the_cache_has_none():
    attention.register("dci", FORCED)
    model, tokens, cache = llama(), prompt(60), DCICache()
    generate(model, tokens, cache, "dci")
    assert_used(cache)
    assert cache.layers[0].index.options == FORCED
    own = DCICache(AttentionOptions(tolerance=0.2))
    generate(model, tokens, own, "dci")
    assert own.layers[0].index.options.tolerance == 0.2
    assert_used(own, folded=False)


def test_report():
    model, cache = llama(), DCICache(FORCED)
    assert str(cache.report()).count("\n") == 0
    assert cache.report().worst_error == 0
    generate(model, prompt(60), cache, "dci")
    report = cache.report()
    assert str(report).count("\n") == 2
    assert "99" in str(report)
    assert 0 <= report.worst_error <= 1e-3
    assert all(0 < layer.share <= 2 for layer in report.layers)


def test_repr_tells_what_every_layer_holds():
    cache = DCICache(FORCED)
    assert repr(cache) == "DCICache()"
    model = llama(num_hidden_layers=20)
    generate(model, prompt(60), cache, "dci")
    text = repr(cache).splitlines()
    assert len(text) == 2 + 9
    for i, line in ((0, text[1]), (3, text[4]), (16, text[6]), (19, text[9])):
        report = cache.layers[i].index.report()
        assert report.folded > 0
        assert line.strip() == (
            f"{i}: DCILayer({report.length} tokens, {report.folded} in cells, {report.keys_touched:.1f} keys touched, "
            f"error about {report.error:.1e}),"
        )
    assert "12 layers more" in text[5]
    assert len(repr(DCICache(config=mistral().config)).splitlines()) == 2 + 2


@pytest.mark.filterwarnings("error::FutureWarning", "error::DeprecationWarning")
def test_nothing_deprecated_is_called():
    model, tokens = llama(), prompt(40)
    generate(model, tokens, DCICache(FORCED), "dci")
    generate(model, tokens, DCICache(FORCED), "dci", num_beams=2)


def test_bad_input():
    with pytest.raises(InvalidTypeError, match="options"):
        DCICache(0.05)
    with pytest.raises(UnsupportedError, match="top_k"):
        DCICache(AttentionOptions(top_k=3))
    cache = DCICache()
    with pytest.raises(UnsupportedError, match="offload"):
        cache.layer_class_to_replicate().offload()
    with torch.inference_mode(False):
        model = llama(attn_implementation="dci")
        with pytest.raises(UnsupportedError, match="no_grad"):
            model(prompt(5), **past(cache))
