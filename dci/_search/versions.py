"""Queries to a version of an index: its structure and the rows behind it, as one answer in the caller's ids."""

from dataclasses import replace

import numpy as np

from .._api.answers import Neighbors, Request
from .._runtime.threads import Work
from .._tuning.living import Version
from .dispatch import answer
from .merging import merge


def answer_version(version: Version, request: Request, work: Work) -> Neighbors:
    """Find the k nearest points of a version; `allowed` and `exclude` of the request are rows."""
    start, allowed, exclude = version.n_indexed, request.allowed, request.exclude
    inside = request if allowed is None else replace(request, allowed=allowed.before(start))
    found = answer(version.engine, inside, work)
    if version.pending is not None:
        exact, live = version.pending
        if allowed is not None:
            live = allowed.ids_from(start)
        own = None if exclude is None else (exclude - start).astype(np.int32)
        distances, rows = exact.search(request.queries, request.absmax, request.k, work.silent(), live, own)
        pending = Neighbors(distances, np.where(rows < 0, -1, rows + start))
        found = merge([found, pending], request.k, descending=exact.metric == "ip")
    return Neighbors(found.distances, version.points.ids_of(found.indices))
