"""The sequences of each task, made from a seed or of text that is at hand."""
