"""Seeded, offline, checksummed data: points and queries, heads of attention."""
