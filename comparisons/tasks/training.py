"""Training the small models, once, on this machine; their weights are kept beside the other prepared data."""

from __future__ import annotations

import hashlib
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from comparisons.data.datasets import cache_dir, optional
from comparisons.tasks.models import Transformer
from comparisons.tasks.task import Batch, Stage, Task

TOLD = 15.0  # seconds between two lines about the progress
WARM_UP = 50  # steps of the first stage


def trained(task: Task, threads: int) -> Transformer:
    """Return a task's model from its file, trained first if there is none of the same recipe."""
    path = weights_path(task)
    if not path.is_file():
        print(f"training {task.name}, once: this takes some minutes", file=sys.stderr, flush=True)
        train(task, threads)
    safetensors = optional("safetensors.torch", "a trained model", "safetensors")
    model = Transformer(task.config)
    model.load_state_dict(safetensors.load_file(path))
    return model.eval()


def weights_path(task: Task) -> Path:
    """Return where a task's weights are kept; the name changes with the recipe, and with the data of training."""
    recipe = hashlib.sha256(repr((sorted(asdict(task.config).items()), task.stages)).encode())
    for stage in range(len(task.stages)):
        batch = task.training(stage, 0)
        for part in (batch.tokens, batch.at, batch.answers, batch.places):
            recipe.update(b"" if part is None else part.numpy().tobytes())
    return cache_dir() / f"task-{task.name}-{recipe.hexdigest()[:8]}.safetensors"


def train(task: Task, threads: int) -> Path:
    """Train a task's model from its seed and keep the weights.

    The same machine, threads and versions give the same weights.

    Parameters
    ----------
    task : Task
    threads : int
        Of PyTorch.

    Returns
    -------
    Path
        The file of weights.
    """
    safetensors = optional("safetensors.torch", "training", "safetensors")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model = fit(task, tell=lambda text: print(text, file=sys.stderr, flush=True))
    finally:
        torch.set_num_threads(before)
    path = weights_path(task)
    partial = path.with_suffix(".partial")
    safetensors.save_file(model.state_dict(), partial)
    os.replace(partial, path)
    return path


def fit(task: Task, tell: Callable[[str], None] = lambda text: None) -> Transformer:
    """Train a task's model from its seed; `tell` is given lines about the progress."""
    torch.manual_seed(0)
    model = Transformer(task.config)
    parameters = list(model.parameters())
    tell(f"{task.name}: {sum(p.numel() for p in parameters):,} parameters")
    matrices = [p for p in parameters if p.dim() == 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": [p for p in parameters if p.dim() != 2]}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)
    start = told = time.monotonic()
    for at, stage in enumerate(task.stages):
        for step in range(stage.steps):
            for group in optimizer.param_groups:
                group["lr"] = rate(stage, step) * (min(1.0, (step + 1) / WARM_UP) if at == 0 else 1.0)
            loss, right = learn(model, optimizer, task.training(at, step))
            if time.monotonic() - told > TOLD or step == stage.steps - 1:
                told = time.monotonic()
                where = f"length {stage.length:,}, step {step + 1:,} of {stage.steps:,}"
                tell(f"{task.name}: {told - start:.0f} s, {where}: loss {loss:.3f}, right {right:.3f}")
    return model.eval()


def rate(stage: Stage, step: int) -> float:
    """Return the learning rate of a step: half a cosine, down to a part of it."""
    down = (1 + math.cos(math.pi * step / stage.steps)) / 2
    return stage.rate * (stage.last + (1 - stage.last) * down)


def learn(model: Transformer, optimizer: torch.optim.Optimizer, batch: Batch) -> tuple[float, float]:
    """Take one step; return the loss and the share of right answers."""
    logits = model(batch.tokens, batch.at, batch.places).flatten(0, 1)
    answers = batch.answers.flatten()
    loss = functional.cross_entropy(logits, answers)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item(), right(logits, answers)


def right(logits: Tensor, answers: Tensor) -> float:
    """Return the share of right answers."""
    return (logits.argmax(-1) == answers).float().mean().item()
