"""Answers to queries: dispatch, ranked search, exact search."""
