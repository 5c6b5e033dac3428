"""A tolerance for each layer of a model, so that what the model says stays within a bound."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dci._runtime.scalars import describe, is_int, is_real

from ..errors import InvalidTypeError, InvalidValueError
from ..layer_options import LayerOptions
from ..modules import DCIAttention
from ..options import AttentionOptions
from .layers import Layers, choose
from .patching import accelerate
from .records import LayerReport

Metric = Callable[[Any, Any], float]

_LEAST, _MOST = 0.005, 0.3  # tolerances; a layer that needs a smaller one is left exact
_TRIES = 6
_AIM = 0.9  # of the bound: changes of layers add up about like independent ones
# The time of a layer falls about with the inverse of its tolerance, and the squares of changes add up: the least time
# within a sum of squares has tolerances proportional to the inverse changes to this power.
_POWER = 2 / 3
_AT_ONCE = 1 << 22  # logits that are compared


def calibrate(
    model: nn.Module,
    inputs: Any,
    *,
    max_logit_change: float | None = None,
    metric: Metric | None = None,
    max_metric: float | None = None,
    options: AttentionOptions | None = None,
    layers: Layers = None,
) -> LayerOptions:
    """Find a tolerance for each attention layer, so that the model's output stays within a bound.

    Give either `max_logit_change`, or `metric` and `max_metric`.

    Parameters
    ----------
    model : nn.Module
        In eval mode; its attention layers are found as `accelerate` finds them, so models of transformers have
        ``attn_implementation="sdpa"`` here. It is called without gradients and left as it was, whatever happens.
    inputs : Tensor, tuple, dict, or list of these
        What the model is called with: one argument, positional or keyword arguments; a list holds several calls.
        Sequences like those to come, and as long: what is short is attended to exactly, and tells nothing.
    max_logit_change : float, optional
        Above 0. Most that logits may change, as root mean square over all positions and classes of a call. Logits are
        the output, a Tensor of any shape, or its attribute ``logits`` or ``last_hidden_state``, or the first of a
        tuple. Probabilities change by at most about this share; 0.05 is little.
    metric : callable, optional
        ``metric(exact, output)`` of what the model returned returns a number, 0 for equal ones and larger for worse:
        one minus the share of equal predictions, say.
    max_metric : float, optional
        Above 0. Most that `metric` may return for any of the calls.
    options : AttentionOptions, optional
        What all layers have in common. With their tolerance each layer is tried alone.
    layers : int, str or list of them, optional
        As in `accelerate`; the other layers have no part.

    Returns
    -------
    LayerOptions
        Tolerances from 0.005 to 0.3 by layer; layers that have to be more exact, and those that all heads were left
        to the exact kernel in, are exact. `change` is what was measured with them, at most the bound. ``save`` and
        ``LayerOptions.load`` keep them as JSON.

    Raises
    ------
    InvalidTypeError, InvalidValueError
        Arguments that cannot be used; a model in training mode; a metric that returns something other than a finite
        number; inputs that no layer approximates: the message has the layers' reasons.

    Notes
    -----
    The bound holds on `inputs`, exactly as measured; on others about as far as they are alike. The model runs once
    for each layer, and up to eight times more, and the exact output is kept meanwhile. Outputs that are larger than
    needed take memory: of a language model, pass ``logits_to_keep`` and ``use_cache=False`` along.

    Examples
    --------
    >>> import torch, attention
    >>> layer = torch.nn.TransformerEncoderLayer(32, 4, batch_first=True)
    >>> model = torch.nn.TransformerEncoder(layer, num_layers=2).eval()
    >>> tuned = attention.calibrate(
    ...     model, torch.randn(1, 700, 32), max_logit_change=0.01, options=attention.AttentionOptions(exact_below=256)
    ... )
    >>> list(tuned.options), tuned.change <= 0.01
    (['layers.0.self_attn', 'layers.1.self_attn'], True)
    >>> handle = attention.accelerate(model, tuned)
    """
    _check_model(model)
    metric, bound = _measure(max_logit_change, metric, max_metric)
    options = _common(options)
    calls = _calls(inputs)
    chosen = {name: module for name, module in choose(model, layers).items() if not isinstance(module, DCIAttention)}
    if not chosen:
        raise InvalidValueError("layers: expected some without options of their own, received DCIAttention alone")
    with torch.no_grad():
        run = _Run(model, calls, metric)
        _, reports = run(dict.fromkeys(chosen, options))
        trying = [report.name for report in reports if _approximated(report)]
        if not trying:
            reasons = "\n".join(str(report) for report in reports if report.name in chosen)
            raise InvalidValueError(f"inputs: expected some that layers approximate, received exact ones:\n{reasons}")
        alone = {name: run({name: options})[0] for name in trying}
        own, change = _together(run, alone, options, bound)
    indices = {name: getattr(module, "layer_idx", None) for name, module in chosen.items()}
    return LayerOptions(
        {name: own.get(name, LayerOptions.EXACT) for name in chosen},
        {name: int(index) for name, index in indices.items() if is_int(index) and index is not None},
        change,
    )


class _Run:
    """Runs a model with options by layer, and holds what it returns against what it returns exactly."""

    def __init__(self, model: nn.Module, calls: Sequence[Any], metric: Metric) -> None:
        self._model, self._calls, self._metric = model, calls, metric
        self._exact = [_call(model, call) for call in calls]

    def __call__(self, options: dict[str, AttentionOptions]) -> tuple[float, list[LayerReport]]:
        """Return the largest change of a call, and what became of the layers."""
        change = 0.0
        with accelerate(self._model, LayerOptions(options)) as handle:
            for call, exact in zip(self._calls, self._exact, strict=True):
                change = max(change, _number(self._metric(exact, _call(self._model, call))))
            return change, handle.report().layers


def _together(
    run: _Run, alone: dict[str, float], options: AttentionOptions, bound: float
) -> tuple[dict[str, AttentionOptions], float]:
    """Find options of the layers that are not left exact, from the changes that each makes alone; and their change."""
    aim = bound
    for _ in range(_TRIES):
        tolerances = share_out(alone, options.tolerance, aim)
        if not tolerances:
            break
        own = {name: options.replace(tolerance=tolerance) for name, tolerance in tolerances.items()}
        change, reports = run(own)
        if change <= bound:
            # Layers that turn out exact need not be planned again for that.
            return {report.name: own[report.name] for report in reports if _approximated(report)}, change
        aim *= _AIM * bound / change
    return {}, 0.0


def share_out(alone: dict[str, float], tolerance: float, aim: float) -> dict[str, float]:
    """Share a change among layers, as tolerances.

    Parameters
    ----------
    alone : dict from str to float
        The change that each layer makes alone at `tolerance`; it is taken to be proportional to that.
    tolerance : float
    aim : float
        The change of all layers together.

    Returns
    -------
    dict from str to float
        Without the layers whose tolerance would be below the least.
    """
    least = max(max(alone.values()), 1e-30) * 1e-6
    slopes = {name: max(change, least) / tolerance for name, change in alone.items()}

    def at(scale: float) -> dict[str, float]:
        wanted = {name: min(_MOST, scale * slope**-_POWER) for name, slope in slopes.items()}
        return {name: value for name, value in wanted.items() if value >= _LEAST}

    low, high = math.log(1e-30), math.log(1e30)
    for _ in range(100):
        middle = (low + high) / 2
        change = math.hypot(*(slopes[name] * value for name, value in at(math.exp(middle)).items()))
        low, high = (middle, high) if change <= aim else (low, middle)
    return {name: float(f"{value:.3g}") for name, value in at(math.exp(low)).items()}


def logit_change(exact: Any, output: Any) -> float:
    """Root mean square of the change of what `calibrate` calls logits, over all their entries."""
    before, after = _logits(exact), _logits(output)
    if before.shape != after.shape:
        raise InvalidValueError(
            f"model: expected logits of one shape for the same inputs, received {tuple(before.shape)} and then "
            f"{tuple(after.shape)}"
        )
    total = 0.0
    for some, others in zip(before.flatten().split(_AT_ONCE), after.flatten().split(_AT_ONCE), strict=True):
        # Logits of -inf are those of classes that a model rules out.
        total += float(torch.where(some == others, 0.0, some.double() - others.double()).square().sum())
    return math.sqrt(total / max(1, before.numel()))


def _logits(output: Any) -> Tensor:
    found = output
    if isinstance(output, tuple | list) and output:
        found = output[0]
    for name in ("last_hidden_state", "logits"):
        found = getattr(output, name, found)
    if not isinstance(found, Tensor) or not found.is_floating_point():
        raise InvalidTypeError(
            "model: expected to return a float Tensor, a tuple that begins with one, or logits or last_hidden_state, "
            f"received {type(output).__name__}: give a metric"
        )
    return found


def _approximated(report: LayerReport) -> bool:
    return any(calls.methods["near+far"] for calls in report.calls.taken)


def _call(model: nn.Module, call: Any) -> Any:
    if isinstance(call, Mapping):
        return model(**call)
    return model(*call) if isinstance(call, tuple) else model(call)


def _calls(inputs: Any) -> list[Any]:
    calls = inputs if isinstance(inputs, list) else [inputs]
    if not calls:
        raise InvalidValueError("inputs: expected one call or more, received an empty list")
    for call in calls:
        if not isinstance(call, Tensor | tuple | Mapping):
            raise InvalidTypeError(
                f"inputs: expected a Tensor, tuple, dict or list of these, received {describe(call)}"
            )
    return calls


def _check_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise InvalidTypeError(f"model: expected a torch.nn.Module, received {type(model).__name__}")
    if model.training:
        raise InvalidValueError("model: expected it in eval mode, received it in training mode: call model.eval()")


def _measure(max_logit_change: Any, metric: Any, max_metric: Any) -> tuple[Metric, float]:
    """Return what is measured, and its bound."""
    if (max_logit_change is None) == (metric is None) or (metric is None) != (max_metric is None):
        given = {"max_logit_change": max_logit_change, "metric": metric, "max_metric": max_metric}
        received = ", ".join(name for name, value in given.items() if value is not None) or "none of them"
        raise InvalidTypeError(f"expected either max_logit_change, or metric and max_metric, received {received}")
    if metric is not None and not callable(metric):
        raise InvalidTypeError(f"metric: expected a callable, received {describe(metric)}")
    name, bound = ("max_logit_change", max_logit_change) if metric is None else ("max_metric", max_metric)
    if not is_real(bound):
        raise InvalidTypeError(f"{name}: expected a number above 0, received {describe(bound)}")
    if not 0 < bound < math.inf:
        raise InvalidValueError(f"{name}: expected a finite number above 0, received {bound}")
    return logit_change if metric is None else metric, float(bound)


def _common(options: Any) -> AttentionOptions:
    if not isinstance(options, AttentionOptions | None):
        raise InvalidTypeError(f"options: expected AttentionOptions or None, received {type(options).__name__}")
    if options is not None and (options.top_k, options.near) != (None, None):
        raise InvalidValueError(
            "options: expected neither top_k nor near, with which the tolerance decides nothing, received "
            f"top_k={options.top_k}, near={options.near}"
        )
    return options or AttentionOptions()


def _number(value: Any) -> float:
    """Check what a metric has returned."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if not is_real(value):
        raise InvalidTypeError(f"metric: expected to return a number, received {describe(value)}")
    if not math.isfinite(value):
        raise InvalidValueError(f"metric: expected to return a finite number, received {value}")
    return float(value)
