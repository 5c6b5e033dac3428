"""Bad arguments raise the package's errors, which say what was expected and what came."""

import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dci
from attention import AttentionOptions, dci_attention, functional
from attention.errors import AttentionError, InvalidTypeError, InvalidValueError, UnsupportedError
from attention.reference import dense_attention

Q = torch.randn(2, 4, 5, 8)
K = torch.randn(2, 4, 7, 8)


def test_family():
    assert issubclass(InvalidValueError, (AttentionError, dci.InvalidValueError, ValueError))
    assert issubclass(InvalidTypeError, (AttentionError, dci.InvalidTypeError, TypeError))
    assert issubclass(UnsupportedError, InvalidValueError)
    assert issubclass(AttentionError, dci.DCIError)


@pytest.mark.parametrize(
    ("query", "key", "value"),
    [
        (Q, K[..., :7], K),
        (Q, K, K[..., :6, :]),
        (Q, K[:, :3], K[:, :3]),
        (torch.cat([Q, Q[:1]]), K, K),
        (Q[0, 0, 0], K, K),
        (Q, K[0, 0, 0], K[0, 0, 0]),
    ],
)
def test_shapes(query, key, value):
    shapes = ", ".join(str(tuple(x.shape)) for x in (query, key))
    with pytest.raises(InvalidValueError) as raised:
        dci_attention(query, key, value)
    assert "query, key and value: expected shapes (…, L, E)" in str(raised.value)
    assert f"received {shapes} and {tuple(value.shape)}" in str(raised.value)


@pytest.mark.parametrize("heads", [(4, 3, 3), (4, 2, 4), (4, 8, 8), (4, 0, 0)])
def test_grouped_heads(heads):
    query, key, value = torch.randn(2, heads[0], 5, 8), torch.randn(2, heads[1], 7, 8), torch.randn(2, heads[2], 7, 8)
    with pytest.raises(InvalidValueError, match="Hq a multiple of H"):
        dci_attention(query, key, value, enable_gqa=True)


def test_grouped_heads_need_an_axis():
    with pytest.raises(InvalidValueError, match="Hq a multiple of H"):
        dci_attention(Q[0, 0], K[0, 0], K[0, 0], enable_gqa=True)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.uint8, torch.float8_e5m2], ids=str)
def test_dtypes(dtype):
    with pytest.raises(InvalidTypeError, match=f"expected one of float32.*received {dtype}"):
        dci_attention(Q.to(dtype), K.to(dtype), K.to(dtype))


def test_dtypes_that_differ():
    with pytest.raises(InvalidTypeError, match=r"the same for all, received torch.float32, torch.float16 and"):
        dci_attention(Q, K.half(), K)


@pytest.mark.parametrize("wrong", [None, [[1.0]], Q.numpy()])
def test_not_tensors(wrong):
    with pytest.raises(InvalidTypeError, match=r"key: expected a torch.Tensor, received (NoneType|list|ndarray)"):
        dci_attention(Q, wrong, K)


def test_other_devices():
    with pytest.raises(UnsupportedError, match="value: expected a tensor on the CPU, received one on meta"):
        dci_attention(Q, K, K.to("meta"))
    with pytest.raises(UnsupportedError, match="attn_mask: expected a tensor on the CPU, received one on meta"):
        dci_attention(Q, K, K, torch.zeros(5, 7, device="meta"))


@pytest.mark.parametrize("shape", [(7,), (5, 6), (6, 7), (3, 1, 5, 7), (1, 2, 4, 5, 7), (2, 4, 7, 5)], ids=str)
def test_mask_shapes(shape):
    with pytest.raises(InvalidValueError) as raised:
        dci_attention(Q, K, K, torch.zeros(shape))
    assert f"broadcasts to (2, 4, 5, 7), received {shape}" in str(raised.value)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64, torch.float16, torch.complex64], ids=str)
def test_mask_dtypes(dtype):
    with pytest.raises(InvalidTypeError, match=f"attn_mask: expected torch.bool, torch.float32 or .*received {dtype}"):
        dci_attention(Q, K, K, torch.zeros(5, 7, dtype=dtype))


def test_mask_that_is_no_tensor():
    with pytest.raises(InvalidTypeError, match=r"attn_mask: expected None or a torch.Tensor, received list"):
        dci_attention(Q, K, K, [[True]])


@pytest.mark.parametrize("dropout_p", [0.1, 1.0, -0.5])
def test_dropout(dropout_p):
    with pytest.raises(UnsupportedError, match=r"dropout_p: expected 0.0"):
        dci_attention(Q, K, K, dropout_p=dropout_p)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -float("inf")])
def test_scale_values(scale):
    with pytest.raises(InvalidValueError, match="scale: expected a finite number"):
        dci_attention(Q, K, K, scale=scale)


@pytest.mark.parametrize("scale", ["1", True, 1j, [1.0]])
def test_scale_types(scale):
    with pytest.raises(InvalidTypeError, match="scale: expected None or a number"):
        dci_attention(Q, K, K, scale=scale)


@pytest.mark.parametrize("options", [{"tolerance": 0.1}, 0.1, "auto", AttentionOptions])
def test_options(options):
    with pytest.raises(InvalidTypeError, match="options: expected None or AttentionOptions"):
        dci_attention(Q, K, K, options=options)


@pytest.mark.parametrize("which", range(4))
def test_gradients(which):
    tensors = [Q.clone(), K.clone(), K.clone(), torch.zeros(5, 7)]
    tensors[which].requires_grad_()
    with pytest.raises(UnsupportedError, match=r"torch\.no_grad\(\)"):
        dci_attention(*tensors)
    with torch.no_grad():
        assert not dci_attention(*tensors).requires_grad
    with torch.inference_mode():
        dci_attention(*tensors)


sizes = st.sampled_from([0, 1, 2, 3, 7])
leads = st.lists(st.sampled_from([1, 2, 3]), max_size=3).map(tuple)
dtypes = st.sampled_from([torch.float32] * 6 + [torch.float64, torch.bfloat16, torch.float16, torch.int32])
maybe = st.sampled_from([True, False, False])


@st.composite
def calls(draw):
    """Arguments that mostly fit each other."""
    torch.manual_seed(draw(st.integers(0, 2**32)))
    lead, length, n_keys, width = draw(leads), draw(sizes), draw(sizes), draw(sizes)
    dtype = draw(dtypes)

    def tensor(*shape):
        if draw(maybe) and draw(maybe):
            shape = (*shape[:-1], draw(sizes))
        if len(shape) > 2 and draw(maybe):
            shape = (draw(st.sampled_from([1, 2])), *shape[1:]) if draw(st.booleans()) else shape[1:]
        return (3 * torch.randn(shape)).to(draw(dtypes) if draw(maybe) and draw(maybe) else dtype)

    query, key = tensor(*lead, length, width), tensor(*lead, n_keys, width)
    value = tensor(*key.shape[:-1], draw(sizes))
    mask = None
    if draw(st.booleans()):
        mask = torch.rand([n if draw(st.booleans()) else 1 for n in (*lead, length, n_keys)][draw(st.integers(0, 3)) :])
        kind = draw(st.sampled_from(["bool", "causal", "bias", "-inf"]))
        mask = mask if kind == "bias" else mask > 0.4
        mask = mask.tril() if kind == "causal" and mask.dim() > 1 else mask
        mask = torch.zeros(mask.shape).masked_fill(mask, -torch.inf) if kind == "-inf" else mask
    arguments = {
        "attn_mask": mask,
        "is_causal": draw(maybe),
        "scale": draw(st.sampled_from([None, None, 0.5, 0.0, -1.0, float("nan")])),
        "enable_gqa": draw(maybe),
    }
    return (query, key, value), arguments


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(call=calls(), small=st.sampled_from([1 << 22, -1]))
def test_any_arguments_give_an_error_of_ours_or_the_right_answer(call, small):
    tensors, arguments = call
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functional, "_SMALL", small)
        try:
            out, report = dci_attention(*tensors, **arguments, return_report=True)
        except AttentionError:
            return
    dtype = tensors[0].dtype
    mask = arguments.pop("attn_mask")
    expected = dense_attention(*(x.double() for x in tensors), None if mask is None else mask.numpy(), **arguments)
    tolerance = {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 2e-2, torch.bfloat16: 0.2}[dtype]
    if mask is not None and mask.dtype == torch.float32:
        tolerance = max(tolerance, 2e-5)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), torch.from_numpy(expected), atol=tolerance, rtol=tolerance)
    assert str(report)


def test_without_torch_one_line_says_what_to_install():
    code = "import sys; sys.modules['torch'] = None\nimport attention"
    run = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    last = run.stderr.strip().splitlines()[-1]
    assert last == "ImportError: the package `attention` needs PyTorch: pip install 'dci-attention[torch]'"


def test_importing_attention_leaves_transformers_alone():
    code = "import sys, attention\nassert 'transformers' not in sys.modules\nassert 'use' in dir(attention)"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
    with pytest.raises(ImportError, match="cannot import name 'nonsense'"):
        from attention import nonsense  # noqa: F401
