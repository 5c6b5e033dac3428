"""Suites, adapters and timing of k-NN search."""
