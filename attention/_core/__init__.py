"""One call of attention, from any leading axes to single heads: validation, batching, dispatch, planning, kernels."""
