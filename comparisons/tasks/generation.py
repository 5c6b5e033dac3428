"""Generating with the language model: token after token through `DCICache`, beside exact attention.

The model becomes one of transformers (Llama's architecture), since that is where the cache is used.
"""

from __future__ import annotations

import time
from inspect import signature
from typing import Any

import torch
from torch import Tensor

import attention
from comparisons.data.datasets import optional
from comparisons.harness.results import Row
from comparisons.tasks import rows
from comparisons.tasks.models import Transformer

NAME = "dci-tasks"  # under which the attention is registered


def as_llama(model: Transformer) -> Any:
    """Return a model whose whole heads RoPE turns as `transformers.LlamaForCausalLM`, with the same logits."""
    transformers = optional("transformers", "generation")
    config, first = model.config, model.layers[0]
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab,
            hidden_size=config.width,
            intermediate_size=first.mlp.up.out_features,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            max_position_embeddings=1 << 17,
            rope_parameters={"rope_type": "default", "rope_theta": config.base},
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    weights = {"model.embed_tokens.weight": model.embed.weight, "model.norm.weight": model.norm.weight}
    weights["lm_head.weight"] = model.head.weight
    for at, layer in enumerate(model.layers):
        parts = {"input_layernorm": layer.before, "post_attention_layernorm": layer.between}
        parts |= {"self_attn.o_proj": layer.out, "mlp.gate_proj": layer.mlp.gate, "mlp.up_proj": layer.mlp.up}
        parts |= {"mlp.down_proj": layer.mlp.down}
        weights |= {f"model.layers.{at}.{name}.weight": part.weight for name, part in parts.items()}
        for name, weight in zip("qkv", layer.qkv.weight.chunk(3), strict=True):
            weights[f"model.layers.{at}.self_attn.{name}_proj.weight"] = weight
    llama.load_state_dict(weights)
    return llama.eval()


def continued(model: Any, prompt: Tensor, count: int, told: Tensor | None = None) -> tuple[Tensor, float, float]:
    """Continue a prompt greedily, with exact attention or through a `DCICache`.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Its attention implementation decides: registered as `NAME`, or ``"sdpa"``.
    prompt : Tensor of shape (1, length)
    count : int
    told : Tensor of shape (count,), optional
        The tokens that are said to have been chosen, whatever the model chooses: another's continuation.

    Returns
    -------
    chosen : Tensor of shape (count,)
        The most likely tokens.
    first, each : float
        Seconds to the first token, and of every other one.
    """
    transformers = optional("transformers", "generation")
    ours = model.config._attn_implementation == NAME
    name = "cache" if "cache" in signature(model.forward).parameters else "past_key_values"
    past = {name: attention.DCICache() if ours else transformers.DynamicCache()}
    start = time.perf_counter()
    logits = model(prompt, logits_to_keep=1, **past).logits
    first = time.perf_counter() - start
    chosen = [logits[0, -1].argmax()]
    for at in range(count - 1):
        token = chosen[-1] if told is None else told[at]
        chosen.append(model(token.view(1, 1), **past).logits[0, -1].argmax())
    return torch.stack(chosen), first, (time.perf_counter() - start - first) / (count - 1)


def compare(llama: Any, prompts: list[Tensor], count: int, tolerances: tuple[float, ...]) -> list[Row]:
    """Return rows of greedy continuations of prompts: exact attention's, and ours after exact's tokens.

    ``diverged`` has, for each prompt, how many tokens are the same as exact attention's before one differs: what a
    free continuation would have in common. ``first_seconds`` and ``token_seconds`` are medians of the prompts.
    """
    exact = [continued(llama, prompt, count) for prompt in prompts]
    found = [_row("torch exact", {}, exact, exact)]
    for tolerance in tolerances:
        attention.register(NAME, attention.AttentionOptions(tolerance=tolerance))
        llama.set_attn_implementation(NAME)
        mine = [continued(llama, prompt, count, told) for prompt, (told, _, _) in zip(prompts, exact, strict=True)]
        found.append(_row(f"DCICache {tolerance:g}", {"tolerance": tolerance}, mine, exact))
    return found


def _row(method: str, options: dict[str, float], mine: list, exact: list) -> Row:
    same = torch.stack([ours[0] == theirs[0] for ours, theirs in zip(mine, exact, strict=True)])
    row = {"method": method, "options": options, "forced": False, "causal": True}
    row |= {"first_seconds": _median(mine, 1), "token_seconds": _median(mine, 2)}
    row["seconds"] = [row["first_seconds"] + row["token_seconds"] * (same.shape[1] - 1)]
    row["diverged"] = same.int().cumprod(1).sum(1).tolist()
    return row | rows.accuracy("same next token, decoded", same.float().mean().item(), 1.0, same.numel())


def _median(found: list, at: int) -> float:
    return torch.tensor([some[at] for some in found], dtype=torch.float64).median().item()
