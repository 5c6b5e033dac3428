"""Coordinates: metrics, projection directions, k-means.

Part of the floor that `attention` stands on, with `dci._runtime` and `dci._native`; imports only these two.
"""
