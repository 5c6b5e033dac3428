"""Answers about a long text, by a causal language model of transformers that lies in a folder.

The prompt goes through the attention of `attention.register`, the tokens after it through `attention.DCICache`::

    python examples/generate.py ~/models/Llama-3.2-1B-Instruct --text report.txt --question "What was decided?"
    python examples/generate.py ~/models/SmolLM2 --gguf-file SmolLM2-135M-Instruct.Q4_1.gguf     # weights in one file

``--exact`` does the same with torch's attention, to compare. Without a text it takes the language reference that comes
with Python. It needs pip install 'dci-attention[transformers]'.
"""

import argparse
import pydoc_data.topics
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, TextStreamer

import attention


class Clock(TextStreamer):
    """Print tokens as they come, and keep the times."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, then token after token."""
        self.times.append(time.perf_counter())
        super().put(value)  # type: ignore[no-untyped-call]


def load(folder: Path, gguf_file: str | None, implementation: str) -> tuple[Any, Any]:
    """Return the tokenizer and the model, which attends as its configuration says: "dci" or "sdpa"."""
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf_file)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf_file, attn_implementation=implementation)
    return tokenizer, model.eval()


def make_prompt(tokenizer: Any, text: str, question: str, length: int) -> torch.Tensor:
    """Return the tokens of a text, of which the first `length` are taken, and a question, (1, n)."""
    ids = tokenizer(text, add_special_tokens=False, truncation=True, max_length=length)["input_ids"]
    prompt = f"{tokenizer.decode(ids)}\n\n{question}\n"
    if tokenizer.chat_template is not None:
        message = [{"role": "user", "content": prompt}]
        prompt = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    tokens: torch.Tensor = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    return tokens


def main(arguments: list[str] | None = None) -> None:
    """Generate, and say how long it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of the model and its tokenizer")
    parser.add_argument("--gguf-file", help="name of the GGUF file in that folder, if it is one")
    parser.add_argument("--text", type=Path, help="file of the text (default: Python's language reference)")
    parser.add_argument("--question", default="Summarize the text above in a few sentences.")
    parser.add_argument("--prompt-tokens", type=int, default=7000, help="as much of the text (default 7000)")
    parser.add_argument("--new-tokens", type=int, default=64, help="tokens to generate at most (default 64)")
    parser.add_argument("--tolerance", type=float, default=0.05, help="relative error of a head (default 0.05)")
    parser.add_argument("--exact", action="store_true", help="use torch's attention")
    options = parser.parse_args(arguments)
    text = "\n".join(pydoc_data.topics.topics.values()) if options.text is None else options.text.read_text("utf-8")

    attention.register("dci", attention.AttentionOptions(tolerance=options.tolerance))
    tokenizer, model = load(options.model, options.gguf_file, "sdpa" if options.exact else "dci")
    cache = DynamicCache(config=model.config) if options.exact else attention.DCICache(config=model.config)
    prompt = make_prompt(tokenizer, text, options.question, options.prompt_tokens)
    clock = Clock(tokenizer)
    with torch.no_grad():
        model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            cache=cache,  # before transformers 5.24: past_key_values=cache
            max_new_tokens=options.new_tokens,
            do_sample=False,
            streamer=clock,
        )
    start, first, *rest = clock.times
    print(f"\nprompt of {prompt.shape[1]:,} tokens: {first - start:.2f} s to the first token", end="")
    print(f", then {len(rest) / (rest[-1] - first):.1f} tokens/s" if rest else "")
    if isinstance(cache, attention.DCICache):
        print(cache.report())


if __name__ == "__main__":
    main()
