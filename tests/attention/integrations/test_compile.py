"""The operator and `torch.compile`."""

import pytest
import torch
from torch import nn

from attention import AttentionOptions, UnsupportedError, dci_attention

CALLS = {
    "plain": ([(2, 4, 10, 8)] * 3, None, False, None, False),
    "causal": ([(2, 4, 10, 8)] * 3, None, True, None, False),
    "mask": ([(2, 4, 10, 8), (2, 4, 6, 8), (2, 4, 6, 3)], (10, 6), False, 0.5, False),
    "grouped": ([(2, 4, 10, 8), (2, 2, 6, 8), (2, 2, 6, 3)], None, False, None, True),
    "broadcast": ([(4, 10, 8), (2, 1, 6, 8), (2, 1, 6, 8)], None, False, None, False),
    "two axes": ([(10, 8), (6, 8), (6, 8)], None, False, None, False),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("options", [None, AttentionOptions(tolerance=0.1, far_field="mean")])
def test_opcheck(name, options):
    shapes, mask, *rest = CALLS[name]
    mask = None if mask is None else torch.ones(mask, dtype=torch.bool).tril()
    arguments = (*map(torch.randn, shapes), mask, *rest, "" if options is None else options.text)
    torch.library.opcheck(torch.ops.dci.attention.default, arguments)
    out = torch.ops.dci.attention(*arguments)
    torch.testing.assert_close(out, dci_attention(*arguments[:4], 0.0, *arguments[4:7], options=options))
    assert out.is_contiguous()


class Layer(nn.Module):
    def __init__(self, options=None):
        super().__init__()
        self.project = nn.Linear(32, 96)
        self.options = options

    def forward(self, x):
        query, key, value = self.project(x).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        out = dci_attention(query, key, value, is_causal=True, options=self.options)
        return x + out.transpose(1, 2).flatten(-2)


@pytest.fixture
def layer():
    torch.manual_seed(0)
    torch._dynamo.reset()
    return Layer(AttentionOptions(tolerance=0.1)).eval()


@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_model_does_the_same(backend, layer):
    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    with torch.no_grad():
        for length in (5, 20, 33):  # the second length makes shapes dynamic
            x = torch.randn(2, length, 32)
            torch.testing.assert_close(compiled(x), layer(x))


def test_options_reach_the_operator(layer):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    with torch.no_grad():
        torch.compile(layer, backend=backend, fullgraph=True)(torch.randn(2, 5, 32))
    calls = [node for node in graphs[0].graph.nodes if "dci.attention" in str(node.target)]
    assert [call.args[-1] for call in calls] == [layer.options.text]


def test_gradients_are_refused_in_compiled_code_too(layer):
    compiled = torch.compile(layer, backend="eager")
    with pytest.raises(UnsupportedError, match=r"torch\.no_grad\(\)"):
        compiled(torch.randn(2, 5, 32))


def test_exported_program_holds_the_operator(layer):
    with torch.no_grad():
        x = torch.randn(2, 5, 32)
        program = torch.export.export(layer, (x,))
        assert any("dci.attention" in str(node.target) for node in program.graph.nodes)
        torch.testing.assert_close(program.module()(x), layer(x))
