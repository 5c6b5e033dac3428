"""An index as the meta and sections of a container, and back.

What comes back is checked before anything uses it: lengths fit each other and whatever is an index lies in its range,
so that no file makes a kernel read elsewhere. `docs/file-format.md` lists the contents.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._api import validation as check
from .._api.params import Params
from .._api.subset import Subset
from .._geometry.metric import MetricEmbedding
from .._geometry.quantization import Coding, Matrix, are_steps, is_within
from .._native.cells import CellArrays, Cells
from .._native.codes import Codes
from .._native.kernels import LANES
from .._runtime.types import DoubleArray, FloatArray, IndexArray
from .._search.exact import ExactSearch
from .._search.ranked import MOST_CELLS, Ranker, RankingPlan
from .._tuning.calibration import Calibration
from .._tuning.engine import HELD_OUT, MAX_K, Engine
from .._tuning.living import Version
from .points import Points, PointStore
from .reader import Array, Reader, decode_random_state

KIND = "dci index"
CONTENT_VERSION = 2  # 1 has no `store`: float32
SETTINGS = (
    "metric", "directions", "ranking", "n_composite", "n_simple", "n_levels", "recall", "store",
    "random_state", "num_threads", "verbose",
)  # fmt: skip
STRUCTURE = SETTINGS[:8]
_FLOAT32 = float(np.finfo(np.float32).max)
_MOST_DIRECTIONS = 2**20  # an index that asks for more takes all memory when it is built anew
_MOST_DIRECTION = 1e15  # as for directions that are given
Sample = tuple[FloatArray, float]  # queries and their largest magnitude


@dataclass(frozen=True)
class Index:
    """All that an index is made of.

    Attributes
    ----------
    settings : dict
        Arguments of `DCI`, as they were given; "array" for directions that are in `directions`.
    directions : (L * m, d) float32, optional
    version : Version, optional
        None before a fit.
    queries : (t, d) float32 and float, optional
        A sample of the queries that `fit` was given.
    """

    settings: dict[str, Any]
    directions: FloatArray | None = None
    version: Version | None = None
    queries: Sample | None = None


def encode(index: Index) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return meta and sections of an index; arrays are not copied."""
    meta: dict[str, Any] = {"kind": KIND, "content_version": CONTENT_VERSION, "settings": index.settings}
    sections: dict[str, Array | None] = {"directions": index.directions}
    if index.queries is not None:
        sections["queries"], meta["queries_absmax"] = index.queries
    version = index.version
    if version is not None:
        points, engine = version.points, version.engine
        meta["points"] = {"next_id": points.next_id, "absmax": points.absmax}
        meta["upkeep"] = {
            "n_indexed": version.n_indexed, "built": version.built, "measured": version.measured,
            "surprise": version.surprise, "unmeasured": version.unmeasured,
        }  # fmt: skip
        sections |= {
            **_encode_rows(points.rows), "ids": points.ids,
            "gone": None if points.gone is None else points.gone.view(np.uint8),
        }  # fmt: skip
        params = {name: getattr(engine.params, name) for name in STRUCTURE}
        if not isinstance(params["directions"], str):
            sections["params.directions"], params["directions"] = params["directions"], "array"
        meta["params"] = params
        _encode_engine(engine, meta, sections)
    return meta, {name: array for name, array in sections.items() if array is not None}


def _encode_rows(rows: Matrix) -> dict[str, Array | None]:
    if isinstance(rows, Codes):
        return {"points": rows.array, "points.steps": rows.steps, "points.offsets": rows.offsets}
    return {"points": rows}


def _encode_engine(engine: Engine, meta: dict[str, Any], sections: dict[str, Array | None]) -> None:
    ranker = engine.ranker
    meta["engine"] = {
        "most_cost": None if math.isinf(engine.most_cost) else engine.most_cost, "reason": engine.reason,
        "held_out_absmax": engine.held_out_absmax, "growth": engine.growth, "absmax": engine.exact.absmax,
        "ceilings": engine.ceilings.tolist(),
    }  # fmt: skip
    if ranker is None:
        return
    sections |= {"held_out": engine.held_out, "held_out_rows": engine.held_out_ids, "known": engine.known}
    plan, embedding, arrays = ranker.plan, ranker.embedding, ranker.cells.arrays
    meta["ranker"] = {
        "directions": plan.directions, "n_composite": plan.n_composite, "n_simple": plan.n_simple,
        "ranking": plan.ranking, "n_cells": plan.n_cells, "quantized": plan.quantized, "mean_gap": ranker.mean_gap,
    }  # fmt: skip
    meta["embedding"] = {"lifted": embedding.lifted, "scale": embedding.scale, "absmax": embedding.absmax}
    row_scale, extra = embedding.of_points
    sections |= {
        "ranker.for_points": plan.for_points,
        "ranker.for_queries": plan.for_queries,
        "embedding.center": embedding.center,
        "embedding.row_scale": row_scale,
        "embedding.extra": extra,
        "cells.coordinates": arrays.coordinates,
        "cells.bias": arrays.bias,
        "cells.rows": arrays.ids,
        "cells.first_panel": arrays.first_panel,
        "cells.sizes": arrays.sizes,
        "cells.centers": arrays.centers,
        "cells.center_bias": arrays.center_bias,
        "cells.steps": arrays.steps,
    }
    known = sorted(engine.calibrations.items())
    meta["calibrations"] = [list(key) for key, _ in known]
    for (size, effort), calibration in known:
        sections[f"calibration.{size}.{effort}.visits"] = calibration.visits
        sections[f"calibration.{size}.{effort}.ranks"] = calibration.ranks


def decode(meta: dict[str, Any], sections: Mapping[str, Array], name: str, *, data: bool = True) -> Index:
    """Return the index of a container.

    Parameters
    ----------
    meta : dict
    sections : mapping of str to ndarray
        Used as they are, not copied; they may be read-only.
    name : str
        What messages call the file.
    data : bool
        Look at all points: that they are finite. Without it only what leads elsewhere is looked at: O(n) numbers.

    Raises
    ------
    FileFormatError
        This is no index, of a newer version, or its parts do not fit each other.
    """
    read = Reader(meta, sections, name, data)
    if meta.get("kind") != KIND:
        raise read.error("kind", repr(KIND), repr(meta.get("kind"))[:60])
    content = read.count("content_version", 1, 2**31)
    if content > CONTENT_VERSION:
        raise read.error("content_version", f"at most {CONTENT_VERSION}, written by this or an older release", content)
    settings, directions = _decode_settings(read)
    if "points" not in meta:
        return Index(settings, directions)
    points = _decode_points(read)
    dim = points.rows.shape[1]
    queries = None
    if "queries" in sections:
        queries = read.matrix("queries", (None, dim), 1), read.number("queries_absmax")
    params = _decode_params(read, dim)
    if Coding.of(points.rows).dtype != params.store:
        raise read.error("points", f"{params.store}, as in params.store", Coding.of(points.rows).dtype)
    if isinstance(params.directions, str) and params.directions == "query" and queries is None:
        raise read.error("queries", 'a sample for the directions "query"', "no such section")
    n_indexed = read.count("upkeep.n_indexed", 0, len(points.rows))
    engine = _decode_engine(read, points, n_indexed, params)
    built, measured = (read.count(f"upkeep.{key}", 0, 2**31) for key in ("built", "measured"))
    surprise, unmeasured = (read.number(f"upkeep.{key}") for key in ("surprise", "unmeasured"))
    version = Version(points, PointStore(points), engine, built, measured, surprise, unmeasured)
    return Index(settings, directions, version, queries)


def _decode_settings(read: Reader) -> tuple[dict[str, Any], FloatArray | None]:
    settings = _with_store(read.group("settings"))
    if set(settings) != set(SETTINGS):
        raise read.error("settings", ", ".join(SETTINGS), ", ".join(map(repr, settings))[:200])
    directions = None
    values = {name: settings[name] for name in STRUCTURE}
    read.check_str(settings, "directions")
    if settings["directions"] == "array":
        values["directions"] = directions = read.matrix("directions", (None, None), 1)
    if type(settings["verbose"]) not in (bool, int):
        raise read.error("settings.verbose", "true or false", repr(settings["verbose"])[:60])
    try:
        Params.checked(values)
        check.check_num_threads(settings["num_threads"])
        check.check_random_state(decode_random_state(settings["random_state"]))
    except (TypeError, ValueError) as error:
        raise read.error("settings", "those of DCI", f"others: {error}") from error
    return settings, directions


def _with_store(values: dict[str, Any]) -> dict[str, Any]:
    return {"store": "float32"} | values  # which files of version 1 do not name


def _decode_params(read: Reader, dim: int) -> Params:
    values = _with_store(read.group("params"))
    if set(values) != set(STRUCTURE):
        raise read.error("params", ", ".join(STRUCTURE), ", ".join(map(repr, values))[:200])
    values = {name: "auto" if value is None else value for name, value in values.items()}
    read.check_str(values, "directions")
    if values["directions"] == "array":
        values["directions"] = read.matrix("params.directions", (None, dim), 1)
    try:
        params = Params.checked(values)
    except (TypeError, ValueError) as error:
        raise read.error("params", "those of DCI", f"others: {error}") from error
    if (params.n_composite or 1) * (params.n_simple or 1) > _MOST_DIRECTIONS:
        raise read.error("params", f"at most {_MOST_DIRECTIONS} directions", "more")
    return params


def _decode_points(read: Reader) -> Points:
    absmax = read.number("points.absmax", most=_FLOAT32)
    rows = _decode_rows(read, absmax)
    n, dim = rows.shape
    if n >= 2**31 or dim >= 2**31 or (n and not dim):
        raise read.error("points", "fewer than 2^31 rows of some columns", rows.shape)
    ids = read.optional("ids", np.int64, (n,))
    gone = read.optional("gone", np.uint8, (n,))
    next_id = read.count("points.next_id", 0, 2**63)
    live = n
    if gone is not None:
        read.in_range("gone", gone, 0, 2)
        gone = gone.view(np.bool_)
        live = n - int(np.count_nonzero(gone))
    if ids is None:
        if next_id != n:
            raise read.error("points.next_id", f"{n}", next_id)
        return Points(rows, absmax, None, True, gone, live, next_id)
    read.in_range("ids", ids, -(2**63), next_id)
    ascending = bool(np.all(ids[1:] > ids[:-1]))
    if not ascending:  # the same id may come again, after it was removed
        order = np.argsort(ids, kind="stable")
        earlier = order[:-1][ids[order[1:]] == ids[order[:-1]]]
        if len(earlier) and (gone is None or not gone[earlier].all()):
            raise read.error("ids", "different ones", "some twice")
    return Points(rows, absmax, ids, ascending, gone, live, next_id)


def _decode_rows(read: Reader, absmax: float) -> Matrix:
    kind = read.sections["points"].dtype.name if "points" in read.sections else ""
    if kind not in ("float16", "int8"):
        if read.data:
            return read.matrix("points", (None, None), absmax=absmax)
        return read.array("points", np.float32, (None, None))
    array = read.array("points", kind, (None, None))
    dim = array.shape[1] - (kind == "int8")
    if dim < 0:
        raise read.error("points", "a column of factors", array.shape)
    steps = read.matrix("points.steps", (dim if kind == "int8" else 1,), most=_FLOAT32)
    offsets = read.needed("points.offsets", kind == "int8", (dim,))
    if offsets is not None:
        offsets = read.matrix("points.offsets", (dim,), most=_FLOAT32)
    if not are_steps(steps, offsets):
        raise read.error("points.steps", "positive numbers", "others")
    rows = Codes(array, steps, offsets)
    if read.data and not is_within(rows, absmax):
        raise read.error("points", f"finite numbers up to {absmax}", "others")
    return rows


def _decode_engine(read: Reader, points: Points, n: int, params: Params) -> Engine:
    rows = points.rows[:n]
    group = read.group("engine")
    most_cost = math.inf if group.get("most_cost") is None else read.number("engine.most_cost")
    exact = ExactSearch(rows, read.number("engine.absmax", most=_FLOAT32), params.metric)
    gone = None if points.gone is None else points.gone[:n]
    engine = Engine(exact, params, most_cost, reason=str(group.get("reason", "")))
    engine.live = None if gone is None or not gone.any() else Subset(n, mask=~gone)
    engine.growth = read.number("engine.growth", 1.0, 2.0**31)
    engine.ceilings = _decode_ceilings(read)
    if "ranker" not in read.meta:
        return engine
    if n < 2:
        raise read.error("upkeep.n_indexed", "at least 2 where there is a ranker", n)
    engine.held_out = read.matrix("held_out", (None, rows.shape[1]), 1)
    if len(engine.held_out) > HELD_OUT:
        raise read.error("held_out", f"at most {HELD_OUT} rows", len(engine.held_out))
    engine.held_out_absmax = read.number("engine.held_out_absmax", most=_FLOAT32)
    held = read.optional("held_out_rows", np.int32, (len(engine.held_out),))
    if held is not None:
        engine.held_out_ids = read.in_range("held_out_rows", held, 0, n)
    known = read.array("known", np.int64, (None, None))
    if len(known) > len(engine.held_out):
        raise read.error("known", f"at most {len(engine.held_out)} rows", len(known))
    engine.known = read.in_range("known", known, -1, n)
    engine.ranker = _decode_ranker(read, rows, engine.live, params)
    _decode_calibrations(read, engine, engine.ranker)
    return engine


def _decode_ceilings(read: Reader) -> DoubleArray:
    values = read.group("engine").get("ceilings", [])
    fits = isinstance(values, list) and len(values) <= MAX_K
    if not fits or not all(type(value) in (int, float) and 0 <= value <= 1 for value in values):
        raise read.error("engine.ceilings", f"at most {MAX_K} numbers from 0 to 1", repr(values)[:60])
    return np.array(values, np.float64)


def _decode_calibrations(read: Reader, engine: Engine, ranker: Ranker) -> None:
    width, dim = ranker.plan.n_composite * ranker.plan.n_simple, engine.X.shape[1]
    keys = read.meta.get("calibrations")
    if not isinstance(keys, list):
        raise read.error("calibrations", "a list", type(keys).__name__)
    for key in keys:
        if not (isinstance(key, list) and len(key) == 2 and all(type(i) is int and 0 <= i < 2**31 for i in key)):
            raise read.error("calibrations", "pairs of counts", repr(key)[:60])
        size, effort = key
        name = f"calibration.{size}.{effort}"
        if size == 0:
            raise read.error(name, "at least one neighbour", size)
        visits = read.array(f"{name}.visits", np.int64, (len(engine.held_out), size))
        ranks = read.array(f"{name}.ranks", np.int64, visits.shape)
        read.in_range(f"{name}.visits", visits, 0, 2**32)
        read.in_range(f"{name}.ranks", ranks, 0, 2**63)
        engine.calibrations[size, effort] = Calibration(visits, ranks, width, dim, ranker.cells.n_centers)


def _decode_ranker(read: Reader, rows: Matrix, live: Subset | None, params: Params) -> Ranker:
    n, dim = rows.shape
    group = read.group("ranker")
    lifted = read.flag("embedding.lifted")
    if lifted and params.metric != "ip":
        raise read.error("embedding.lifted", 'true for the metric "ip" only', params.metric)
    width = dim + lifted
    m, n_composite = (read.count(f"ranker.{key}", 1, _MOST_DIRECTIONS) for key in ("n_simple", "n_composite"))
    plan = RankingPlan(
        for_points=read.matrix("ranker.for_points", (width, m * n_composite), most=_MOST_DIRECTION),
        for_queries=read.matrix("ranker.for_queries", (width, m * n_composite), most=_MOST_DIRECTION),
        directions=str(group.get("directions")),
        n_composite=n_composite,
        n_simple=m,
        ranking=read.choice("ranker.ranking", ("max", "sum")),
        n_cells=read.count("ranker.n_cells", 0, MOST_CELLS),
        quantized=read.flag("ranker.quantized"),
    )
    asked = {"n_composite": params.n_composite, "n_simple": params.n_simple, "ranking": params.ranking}
    for key, value in asked.items():
        if value not in (None, "auto", getattr(plan, key)):
            raise read.error(f"ranker.{key}", f"{value!r}, as in params", repr(getattr(plan, key)))
    if not isinstance(params.directions, str) and len(params.directions) != m * n_composite:
        raise read.error("params.directions", f"{m * n_composite} rows", len(params.directions))
    if (plan.n_cells == 0) != (params.n_levels == 1):
        raise read.error("ranker.n_cells", "0 where params.n_levels is 1, and only there", plan.n_cells)
    if plan.quantized and (plan.n_cells == 0 or plan.ranking == "max"):
        raise read.error("ranker.quantized", "false without cells and for the ranking by max", "true")
    embedding = MetricEmbedding.restored(
        rows, params.metric, lifted, read.number("embedding.absmax", most=_FLOAT32),
        read.number("embedding.scale", most=2.0**150),
        read.matrix("embedding.center", (width,)),
        (
            read.needed("embedding.row_scale", params.metric == "cosine", (n,)),
            read.needed("embedding.extra", lifted, (n,)),
        ),
    )  # fmt: skip
    return Ranker.restored(embedding, plan, _decode_cells(read, plan, n, live), read.number("ranker.mean_gap"))


def _decode_cells(read: Reader, plan: RankingPlan, n: int, live: Subset | None) -> Cells:
    first_panel = read.array("cells.first_panel", np.int32, (plan.n_cells + 2,))
    starts: IndexArray = first_panel.astype(np.int64)
    panels = starts[1:] - starts[:-1]
    if first_panel[0] != 0 or (panels < 0).any():
        raise read.error("cells.first_panel", "ascending numbers from 0", "others")
    total, m = int(first_panel[-1]), plan.n_simple
    kind = np.int16 if plan.quantized else np.float32
    held = read.array("cells.rows", np.int32, (total * LANES,))
    read.in_range("cells.rows", held, -1, n)
    taken = held >= 0
    seen = np.zeros(n + 1, np.bool_)
    seen[held] = True  # the last one stands for -1
    there = seen[:n]
    if np.count_nonzero(taken) != np.count_nonzero(there) or not (there if live is None else there == live.mask).all():
        raise read.error("cells.rows", "each row that is indexed and not gone, once", "others")
    cell = np.repeat(np.arange(len(panels)), panels)
    of_panels = np.bitwise_count(np.packbits(taken).view(np.uint16))  # a panel is 16 rows
    counts = np.bincount(cell, of_panels, len(panels))
    sizes = read.array("cells.sizes", np.int32, (plan.n_cells + 1,))
    if not np.array_equal(sizes, counts):
        raise read.error("cells.sizes", "the numbers of rows in the cells", "others")
    coordinates = read.array("cells.coordinates", kind, (plan.n_composite, total, m, LANES))
    bias = read.array("cells.bias", np.float32, (plan.n_composite, total * LANES))
    empty = np.flatnonzero(~taken)  # an infinite score keeps them from being answers
    panel, lane = np.divmod(empty, LANES)
    for composite in range(plan.n_composite):
        reached = np.isposinf(bias[composite, empty]).all()
        if plan.ranking == "max":
            reached &= np.isposinf(coordinates[composite, panel, :, lane]).all()
        if not reached:
            raise read.error("cells.bias, cells.coordinates", "infinity where cells.rows is -1", "others")
    center_panels = -(-plan.n_cells // LANES)
    return Cells(
        CellArrays(
            coordinates=coordinates,
            bias=bias,
            ids=held,
            first_panel=first_panel,
            sizes=sizes,
            centers=read.matrix("cells.centers", (center_panels, plan.n_composite * m, LANES), most=1e18),
            center_bias=read.array("cells.center_bias", np.float32, (center_panels * LANES,)),
            n_centers=plan.n_cells,
            steps=read.needed("cells.steps", plan.quantized, (plan.n_composite, total * LANES)),
        )
    )
