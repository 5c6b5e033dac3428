"""Heads: what is made, kept, read and refused."""

import numpy as np
import pytest

from comparisons.data import adversarial, heads
from comparisons.data.datasets import ComparisonError, MissingPackageError


@pytest.mark.parametrize("name", heads.HEADS)
def test_made_heads_are_seeded_and_float32(name):
    made = heads.load(name, 300)
    count, width = (6, 32) if name in adversarial.HEADS else (4, 128 if "128" in name else 64)
    for part, again in zip((made.query, made.key, made.value), heads.HEADS[name](300), strict=True):
        assert part.shape == (count, 300, width)
        assert part.dtype == np.float32
        np.testing.assert_array_equal(part, again)
    assert made.some(2).shape == f"2 heads of 300 x {width}"


def top_share(name, n_top=16):
    made = heads.load(name, 1_000)
    scores = made.query[0] @ made.key[0].T / np.sqrt(made.key.shape[2])
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    return -np.sort(-weights, axis=1)[:, :n_top].sum(axis=1)


def test_peaked_heads_are_more_peaked_than_diffuse_ones():
    assert top_share("smooth-64-peaked").mean() > 3 * top_share("smooth-64-diffuse").mean()


def test_needles_outweigh_the_other_keys_of_their_queries():
    largest = top_share("needle", 1)
    assert np.median(largest[-heads.NEEDLES :]) > 0.6
    assert np.median(largest[: -heads.NEEDLES]) < 0.5


def test_names_of_causal_attention():
    assert heads.split("heads-causal") == ("heads", True)
    assert heads.split("noise") == ("noise", False)
    np.testing.assert_array_equal(heads.load("noise-causal", 64).key, heads.load("noise", 64).key)


@pytest.fixture
def encoder(tmp_path, monkeypatch):
    """Six layers of twelve heads of three numbers, whose values tell layer and head; counts how often it runs."""
    torch = pytest.importorskip("torch")
    demo = pytest.importorskip("attention.demo")
    monkeypatch.setenv("DCI_DATA", str(tmp_path))
    monkeypatch.setattr(heads, "SIZES", (8, 16))
    heads._file.cache_clear()
    runs = []

    def real_heads(n_tokens):
        runs.append(n_tokens)
        for layer in range(6):
            rows = torch.arange(12.0)[:, None, None].expand(12, n_tokens, 3) + 20 * layer
            yield rows + 200, rows + 400, rows + 600

    monkeypatch.setattr(demo, "real_heads", real_heads)
    yield runs
    heads._file.cache_clear()


def test_real_heads_are_made_once_and_read_in_part(encoder, tmp_path):
    layer = heads.load("heads-causal", 5, layer=2)
    assert layer.key.shape == (12, 5, 3)
    assert layer.key[7, 0, 0] == 447
    picked = heads.load("heads", 5)
    assert picked.value[:, 0, 0].tolist() == [600 + 20 * at + at for at in range(6)] + [
        606 + 20 * at + at for at in range(6)
    ]
    assert encoder == [8]
    assert len(list(tmp_path.glob("heads-8-*.npy"))) == 6
    heads._file.cache_clear()
    heads.load("heads", 8)
    assert encoder == [8]
    assert heads.load("heads", 9, 0).key.shape == (12, 9, 3)
    assert encoder == [8, 16]
    with pytest.raises(ComparisonError, match="at most 16 tokens, 17 were asked for"):
        heads.load("heads", 17)


def test_a_missing_encoder_is_one_line(encoder, monkeypatch):
    from attention import demo

    def missing(n_tokens):
        raise demo.DemoError("no encoder")

    monkeypatch.setattr(demo, "real_heads", missing)
    with pytest.raises(MissingPackageError, match="the real heads: no encoder"):
        heads.load("heads", 5)


def test_a_users_heads_are_read(tmp_path):
    rows = np.random.default_rng(0).standard_normal((3, 2, 50, 4))
    np.savez(tmp_path / "mine.npz", query=rows[0], key=rows[1], value=rows[2])
    heads.check(str(tmp_path / "mine.npz"))
    mine = heads.load(str(tmp_path / "mine.npz"), 20)
    assert mine.name == "mine"
    np.testing.assert_array_equal(mine.value, rows[2, :, :20].astype(np.float32))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"query": np.ones((2, 9, 4))}, "cannot read"),
        ({"query": np.ones((2, 9, 4)), "key": np.ones((2, 9, 4)), "value": np.ones((2, 9, 5))}, "of one shape"),
        ({"query": np.ones((9, 4)), "key": np.ones((9, 4)), "value": np.ones((9, 4))}, "of one shape"),
        ({name: np.full((2, 9, 4), np.nan) for name in ("query", "key", "value")}, "finite"),
    ],
)
def test_what_is_no_heads_is_one_line(tmp_path, arrays, message):
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)
    with pytest.raises(ComparisonError, match=message) as caught:
        heads.check(str(path))
    assert "\n" not in str(caught.value)
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(ComparisonError, match="cannot read"):
        heads.check(str(path))
    with pytest.raises(ComparisonError, match="unknown heads 'nothing': expected one of heads, smooth-64-diffuse"):
        heads.check("nothing")


def test_a_name_too_long_for_a_file_is_unknown():
    with pytest.raises(ComparisonError, match="unknown heads"):
        heads.check("x" * 5000)
