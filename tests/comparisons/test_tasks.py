"""The tasks, tiny: models trained within seconds keep their accuracy when attention is swapped."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from comparisons.attention.adapters import RIVALS
from comparisons.attention.bench import Contender
from comparisons.tasks import blame, contenders, generation, suites, training
from comparisons.tasks.data import listops, pixels, recall, text, words
from comparisons.tasks.evaluation import Evaluation
from comparisons.tasks.models import Transformer
from comparisons.tasks.registry import TASKS, TINY
from comparisons.tasks.task import Source

LEARNED = {"mqar": 0.5, "words": 0.5, "text": 0.55, "lines": 0.25}  # within seconds; others answer by guessing still
FORCED = Contender(RIVALS["dci"], {"near": 128, "exact_below": 0})  # causal heads as short as these are else exact


@pytest.fixture(scope="module")
def evaluations():
    """Each task's evaluation, its model trained when it is first asked for; by one thread, as steps are short."""
    made, threads = {}, torch.get_num_threads()

    def of(name):
        if name not in made:
            made[name] = Evaluation(TINY[name], training.fit(TINY[name]), TINY[name].at, 1)
        return made[name]

    torch.set_num_threads(1)
    yield of
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_a_trained_model_keeps_its_accuracy(evaluations, name):
    evaluation = evaluations(name)
    with torch.no_grad():
        assert evaluation.row(contenders.EXACT)["accuracy"] >= LEARNED.get(name, 0.0)
        for contender in (contenders.ours(0.05, forced=True), FORCED):
            row = evaluation.row(contender)
            assert row["agreement"] >= 0.9  # with exact attention's answers, right or wrong
            assert row.get("growth", 0.0) <= 0.01
            if name in LEARNED:
                assert row["kept"] >= 0.95
        assert row["approximated"] > 0.5


@pytest.mark.slow
def test_the_far_field_finds_frequent_words_and_top_k_does_not(evaluations):
    evaluation = evaluations("words")  # which may have to be trained
    with torch.no_grad():
        ours, topk = (evaluation.row(contender) for contender in (FORCED, Contender(RIVALS["exact-topk"], {"k": 128})))
    assert topk["kept"] < 0.8 < ours["kept"]


def test_blame_names_every_head_and_what_it_loses():
    task = replace(TINY["mqar"], sequences=2, config=replace(TINY["mqar"].config, layers=2))
    torch.manual_seed(0)
    evaluation = Evaluation(task, Transformer(task.config).eval(), 256, 1)
    head, *lines, everything = blame.table(evaluation, Contender(RIVALS["window"], {"window": 16}))
    assert [line[:2] for line in lines] == [[str(layer), str(head)] for layer in range(2) for head in range(2)]
    assert all(len(line) == len(head) for line in (*lines, everything))
    assert all(0 < float(line[3]) < float(line[6]) for line in lines)
    assert everything[0] == "all"


def test_a_language_model_is_one_of_transformers_too():
    pytest.importorskip("transformers")
    task = TINY["lm"]
    torch.manual_seed(0)
    model = Transformer(task.config).eval()
    tokens = task.held_out(100, 0).tokens
    with torch.no_grad():
        llama = generation.as_llama(model)
        torch.testing.assert_close(llama(tokens).logits, model(tokens, torch.arange(100)[None]), rtol=1e-4, atol=1e-5)
        prompts = [tokens[:, start : start + 60] for start in (0, 40)]
        exact, ours = generation.compare(llama, prompts, 12, (0.05,))
    assert exact["diverged"] == [12, 12]
    assert ours["method"] == "DCICache 0.05"
    assert ours["accuracy"] >= 0.9
    assert ours["token_seconds"] > 0


# ------------------------------------------------------------------------------------------------------- data


def source(held_out=True, seed=0):
    return Source(held_out, seed)


def asked(batch):
    """Give the tokens before and at each place that is asked about, with the answers, of the first sequence."""
    tokens, at, answers = (x[0].numpy() for x in (batch.tokens, batch.at, batch.answers))
    return tokens, at, answers


def test_pairs_are_told_once_and_asked_for_once():
    tokens, at, answers = asked(recall.pairs(256, 2, source(), keys=32, values=16))
    assert len(at) == 32
    for place, answer in zip(at, answers, strict=True):
        first, second = np.flatnonzero(tokens == tokens[place])
        assert second == place >= 128 > first
        assert tokens[first + 1] == 32 + answer


def test_lines_have_the_contents_that_are_asked_for():
    tokens, at, answers = asked(recall.lines(512, 2, source()))
    lines = {}
    for start in np.flatnonzero(tokens == 2 * recall.NUMBERS):
        lines[tuple(tokens[start + 1 : start + 3])] = tokens[start + 4] - recall.NUMBERS
    assert len(lines) == 57
    assert len(at) == 42
    for place, answer in zip(at, answers, strict=True):
        assert lines[tuple(tokens[place - 2 : place])] == answer


def test_the_asked_words_are_the_most_frequent():
    tokens, at, answers = asked(words.words(4_096, 2, source()))
    counts = np.bincount(tokens[tokens < words.WORDS], minlength=words.WORDS)
    best = np.argsort(-counts)[: words.BEST]
    assert (answers.reshape(-1, words.BEST) == best).all()
    for start in at[:: words.BEST]:
        assert tokens[start] == words.words_vocab() - 1
        assert (tokens[start + 1 : start + words.BEST] == words.WORDS + best[:-1]).all()


def test_variables_have_the_values_that_a_reader_finds():
    batch = words.variables(1_024, 2, source())
    tokens, at, answers = asked(batch)
    mask, values, becomes = batch.asked[0].numpy(), {}, words.variables_vocab() - 2
    for place in np.flatnonzero(tokens == becomes):
        source_ = tokens[place + 1]
        values[tokens[place - 1]] = values[source_] if source_ < words.NAMES else source_ - words.NAMES
    assert mask.sum() == 128
    assert (tokens[at[mask] - 1] == becomes + 1).all()
    assert [values[name] for name in tokens[at[mask]]] == answers[mask].tolist()


def test_digits_stand_in_their_cells():
    batch = pixels.digits(1_024, 2, source())
    assert batch.tokens.shape == (2, 1_024)
    assert batch.answers.shape == (2, 16)
    tokens, places, at = (x[1].numpy() for x in (batch.tokens, batch.places, batch.at))
    assert len(set(places)) == 16
    assert (tokens[at] % 64 == 63).all()
    # The same digits, cut out of the image, are among those that evaluation has.
    images, names = pixels._digits(True)
    cut = (tokens // 64).reshape(4, 8, 4, 8).transpose(0, 2, 1, 3).reshape(16, 8, 8)
    for image, name in zip(cut, batch.answers[1].numpy(), strict=True):
        assert name in names[(images == image).all((1, 2))]


def test_windows_of_packages_are_read_at_their_ends():
    batch = text.packages(600, 8, source())
    assert batch.tokens.shape == (8, 600)
    assert (batch.at == 599).all()
    for tokens, kind in zip(batch.tokens.numpy(), batch.answers[:, 0].tolist(), strict=True):
        content = text._content(text.PACKAGES[kind], True).astype(np.int64)
        threes = (content[:-2] << 16) + (content[1:-1] << 8) + content[2:]
        hashed = threes * 2_654_435_761 % 2**32 * text.HASHES >> 32
        starts = np.flatnonzero(hashed == tokens[0])
        assert any((hashed[start : start + 600] == tokens[: len(hashed) - start]).all() for start in starts)


def evaluated(tokens):
    """Compute the ListOps expression that some tokens begin with, by a stack."""
    stack = [[]]
    for token in tokens:
        if token == listops.END:
            operator, *values = stack.pop()
            stack[-1].append(listops.OPERATORS[operator - listops.DIGITS](values))
            if len(stack) == 1:
                break
        elif token < listops.DIGITS:
            stack[-1].append(int(token))
        elif token < listops.END:
            stack.append([int(token)])
    (value,) = stack[0]
    return value


def test_expressions_have_their_values_and_lengths():
    batch = listops.listops(400, 20, source())
    for row, tokens in enumerate(batch.tokens.numpy()):
        assert 100 <= (tokens != listops.PAD).sum() <= 400
        places = batch.at[row, batch.asked[row]].tolist()
        lists = np.flatnonzero((tokens >= listops.DIGITS) & (tokens < listops.END)).tolist()
        assert places[0] == 0
        assert len(set(places)) == len(places) == min(len(lists), 50)
        assert set(places) <= set(lists)
        for place, answer in zip(batch.at[row].tolist(), batch.answers[row].tolist(), strict=True):
            assert evaluated(tokens[place:]) == answer


def test_levels_of_nested_lists():
    low, high = listops.DIGITS, listops.DIGITS + 1
    tokens = np.array([[low, 1, high, 2, 3, listops.END, 4, listops.END, listops.PAD]])
    assert listops.levels(tokens).tolist() == [[1, 2, 2, 3, 3, 2, 2, 1, 0]]


@pytest.mark.parametrize("name", TINY)
def test_data_come_from_a_seed_and_are_not_those_of_training(name):
    task = TINY[name]
    one, again, other, trained = (
        task.held_out(task.at, 0), task.held_out(task.at, 0), task.held_out(task.at, 1), task.training(0, 0)
    )  # fmt: skip
    assert torch.equal(one.tokens, again.tokens)
    assert torch.equal(one.answers, again.answers)
    assert not torch.equal(one.tokens, other.tokens)
    few = task.stages[0].length
    assert not torch.equal(task.held_out(few, 0).tokens[0], trained.tokens[0])
    for batch in (one, trained):
        assert batch.tokens.max() < task.config.vocab
        assert batch.answers.max() < task.config.outputs


def test_weights_are_kept_under_a_name_that_goes_with_the_recipe_and_the_data(monkeypatch, tmp_path):
    monkeypatch.setenv("DCI_DATA", str(tmp_path))
    task = TINY["mqar"]
    others = [replace(task, stages=task.stages * 2), replace(task, config=replace(task.config, layers=3))]
    others.append(replace(task, make=lambda *given: task.make(*given, keys=31)))
    paths = [training.weights_path(some) for some in (task, replace(task, sequences=1), *others)]
    assert paths[0] == paths[1]
    assert len(set(paths)) == 4


def test_every_task_has_a_suite_and_a_tiny_one():
    assert tuple(TASKS) == tuple(TINY) == suites.NAMES
    assert [suite.name for suite in suites.SUITES] == [f"task_{name}" for name in TASKS]
    for task in TASKS.values():
        assert task.at in task.lengths
        assert task.count(task.at) == task.sequences
    assert TASKS["text"].count(4 * TASKS["text"].at) == TASKS["text"].sequences // 4
    assert TASKS["words"].count(TASKS["words"].at // 4) == 4 * TASKS["words"].sequences
    assert TASKS["lm"].count(32_768) == 1
