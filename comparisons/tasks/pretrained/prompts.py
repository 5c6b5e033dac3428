"""Prompts that ask a chat model for what stands somewhere in a long text: needles, and lines with a number.

A prompt asks many questions, one after the other, each followed by its answer: so that one pass over the text shows
which of them the model would have answered. An answer is right if all its tokens are the most likely ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from comparisons.attention.bench import Contender
from comparisons.harness.results import Row
from comparisons.tasks import rows
from comparisons.tasks.pretrained.answers import Answers
from comparisons.tasks.pretrained.texts import documentation

QUESTIONS = 16
_WORDS = """amber anchor apple arrow autumn badge basket beacon bishop blanket bottle branch bridge bucket butter button
cabin camera candle canyon carpet castle cellar cherry circle clover copper corner cotton cradle crayon crystal curtain
dancer desert diamond dinner donkey dragon eagle echo elbow ember engine falcon feather fiddle finger flower forest
fountain garden ginger glacier goblet guitar hammer harbor helmet hermit hollow honey island ivory jacket jungle kettle
kitten ladder lantern lemon letter lily lizard magnet maple marble meadow mirror monkey mountain needle noodle ocean
olive orange orchid oyster paddle parrot pencil pepper pillow planet pocket puddle quartz rabbit raven ribbon river
rocket saddle sailor salmon shadow silver spider spring summer temple thunder ticket timber tomato tunnel turtle valley
velvet violin walnut whistle willow window winter wizard yellow zebra"""
WORDS = _WORDS.split()


@dataclass(frozen=True)
class Prompt:
    """A prompt with its questions and answers.

    Attributes
    ----------
    tokens : Tensor of shape (1, length)
    answers : list of slice
        The tokens of each answer.
    """

    tokens: Tensor
    answers: list[slice]


def needles(tokenizer: Any, length: int, seed: int) -> Prompt:
    """Return documentation in which sentences with a number stand, at random places."""
    rng = np.random.default_rng(seed)
    names = rng.choice(WORDS, QUESTIONS, replace=False)
    numbers = [str(number) for number in rng.integers(10_000, 100_000, QUESTIONS)]
    told = [f"\nThe magic number of the {name} is {number}.\n" for name, number in zip(names, numbers, strict=True)]
    asked = [f"What is the magic number of the {name}?" for name in names]
    begun = [f"The magic number of the {name} is " for name in names]
    paragraphs = documentation().split("\n\n")
    start = int(rng.integers(0, len(paragraphs) // 2))
    places = np.sort(rng.random(QUESTIONS))

    def text(size: int) -> str:
        some = paragraphs[start : start + size]
        for place, sentence in zip(places[::-1], told[::-1], strict=True):
            some.insert(int(place * len(some)), sentence)
        return "Read this text and remember the magic numbers in it.\n\n" + "\n\n".join(some)

    order = rng.permutation(QUESTIONS)
    return _prompt(tokenizer, length, text, [(asked[i], begun[i], numbers[i]) for i in order])


def lines(tokenizer: Any, length: int, seed: int) -> Prompt:
    """Return lines with a name and a number each, as LongEval has them (Li et al. 2023)."""
    rng = np.random.default_rng(seed)
    pairs = rng.permutation(len(WORDS) ** 2)
    names = [f"{WORDS[pair // len(WORDS)]}-{WORDS[pair % len(WORDS)]}" for pair in pairs]
    numbers = [str(number) for number in rng.integers(10_000, 100_000, len(names))]
    share = rng.permutation((np.arange(QUESTIONS) + rng.random(QUESTIONS)) / QUESTIONS)

    def text(size: int) -> str:
        told = [f"line {names[i]}: REGISTER_CONTENT is <{numbers[i]}>" for i in range(size)]
        return "Below are lines. Remember the REGISTER_CONTENT of each line.\n\n" + "\n".join(told)

    def questions(size: int) -> list[tuple[str, str, str]]:
        chosen = (share * size).astype(int)
        asked = [f"What is the REGISTER_CONTENT in line {names[i]}?" for i in chosen]
        begun = [f"The REGISTER_CONTENT in line {names[i]} is <" for i in chosen]
        return [(question, start, numbers[i]) for question, start, i in zip(asked, begun, chosen, strict=True)]

    return _prompt(tokenizer, length, text, questions)


KINDS = {"needles": needles, "lines": lines}


def _prompt(tokenizer: Any, length: int, text: Any, questions: Any) -> Prompt:
    """Return the largest prompt of at most `length` tokens, with documentation before it that makes up the rest."""

    def make(size: int) -> tuple[list[int], list[slice]]:
        asked = questions(size) if callable(questions) else questions
        return _told(tokenizer, text(size), asked)

    low, high = 0, 1
    while len(make(high)[0]) <= length:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if len(make(middle)[0]) <= length else (low, middle)
    ids, answers = make(low)
    missing = length - len(ids)
    before = tokenizer(documentation()[: 8 * missing], add_special_tokens=False)["input_ids"][:missing]
    shifted = [slice(at.start + missing, at.stop + missing) for at in answers]
    return Prompt(torch.tensor([before + ids]), shifted)


def _told(tokenizer: Any, text: str, questions: list[tuple[str, str, str]]) -> tuple[list[int], list[slice]]:
    """Return the tokens of a conversation about a text, and where its answers stand."""
    ids: list[int] = []
    answers = []
    for at, (question, begun, answer) in enumerate(questions):
        asked = f"{text}\n\n{question}" if at == 0 else question
        message = [{"role": "user", "content": asked}]
        turn = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        if at:  # the template may begin every conversation with a system's message
            turn = "\n" + turn[turn.rindex("<|im_start|>user") :]
        ids += tokenizer(turn + begun, add_special_tokens=False)["input_ids"]
        told = tokenizer(answer, add_special_tokens=False)["input_ids"]
        answers.append(slice(len(ids), len(ids) + len(told)))
        ids += [*told, *tokenizer("<|im_end|>", add_special_tokens=False)["input_ids"]]
    return ids, answers


class Questions:
    """Prompts of one kind and length, for one contender after the other.

    Parameters
    ----------
    model, tokenizer
        As `smollm2.prepared` gives them.
    kind : {"needles", "lines"}
    length, count, threads : int
    """

    def __init__(self, model: Any, tokenizer: Any, kind: str, length: int, count: int, threads: int) -> None:
        self.model = model
        self.answers = Answers(self._chosen, threads, judge=False)
        self.prompts = [KINDS[kind](tokenizer, length, seed) for seed in range(count)]

    def row(self, contender: Contender) -> Row:
        """Return the row of a contender; ``agreement`` is the share of the answers' tokens that are as with exact."""
        chosen, row = self.answers.of(contender)
        exact = self.answers.exact
        right, best = (self._right(some) for some in (chosen, exact))
        same = torch.cat([mine == theirs for mine, theirs in zip(chosen, exact, strict=True)]).float().mean()
        row |= {"causal": True, "sequences": len(self.prompts), "agreement": same.item()}
        return row | rows.accuracy("questions answered", right, best, QUESTIONS * len(self.prompts))

    def _chosen(self) -> list[Tensor]:
        """Return the most likely tokens in place of the answers, of each prompt."""
        found = []
        for prompt in self.prompts:
            hidden = self.model.model(prompt.tokens, use_cache=False).last_hidden_state[0]
            at = torch.cat([torch.arange(answer.start, answer.stop) for answer in prompt.answers])
            found.append(self.model.lm_head(hidden[at - 1]).argmax(-1))
        return found

    def _right(self, chosen: list[Tensor]) -> float:
        """Return the share of the questions with all tokens right."""
        hits = []
        for prompt, tokens in zip(self.prompts, chosen, strict=True):
            parts = tokens.split([answer.stop - answer.start for answer in prompt.answers])
            hits += [torch.equal(prompt.tokens[0, at], part) for at, part in zip(prompt.answers, parts, strict=True)]
        return sum(hits) / len(hits)
