"""Suites, adapters and timing of attention."""
