"""Options are checked once, tell one key from all, and survive the way through text."""

import dataclasses
import math

import numpy as np
import pytest

from attention import AttentionOptions
from attention.errors import InvalidTypeError, InvalidValueError
from attention.options import from_text

GOOD = {
    "tolerance": [0.001, 0.5, np.float32(0.25)],
    "top_k": [None, 1, np.int64(7)],
    "near": [None, 1, 64, 0.1, 1.0, np.float32(0.5)],
    "far_field": ["auto", "none", "mean", "covariance"],
    "exact_below": [None, 0, 10**6],
    "directions": ["auto", 1, 24],
    "embedding": ["auto", "query", "random"],
    "sink": [0, 4],
    "window": [0, 128],
    "random_state": [0, 2**40],
    "num_threads": [None, 1, 64],
}
WRONG_VALUE = {
    "tolerance": [0, 0.0, 1, 1.0, -0.1, math.nan, math.inf],
    "top_k": [0, -1],
    "near": [0, -3, 0.0, 1.5, -0.2, math.nan],
    "far_field": ["", "first", "0"],
    "exact_below": [-1],
    "directions": [0, -8],
    "embedding": ["published", ""],
    "sink": [-1],
    "window": [-1],
    "random_state": [-1],
    "num_threads": [0, -1, 1025],
}
WRONG_TYPE = {
    "tolerance": [None, "0.1", True, 1j],
    "top_k": [1.0, True, "8"],
    "near": [True, "all", [1]],
    "far_field": [True, False, None, 0, 1, 2, 2.0],
    "exact_below": [1.5, True],
    "directions": [None, 8.0, "all"],
    "embedding": [None, 1],
    "sink": [None, 1.0],
    "window": [None, False],
    "random_state": [None, 0.5],
    "num_threads": ["2", 2.0],
}


def cases(table):
    return [pytest.param(name, value, id=f"{name}={value!r}") for name, values in table.items() for value in values]


@pytest.mark.parametrize(("name", "value"), cases(GOOD))
def test_good_values(name, value):
    options = AttentionOptions(**{name: value})
    assert getattr(options, name) == value
    assert from_text(options.text) == options
    assert type(getattr(from_text(options.text), name)) is type(getattr(options, name))


@pytest.mark.parametrize(("name", "value"), cases(WRONG_VALUE))
def test_wrong_values(name, value):
    with pytest.raises(InvalidValueError, match=rf"^{name}: expected .*, received"):
        AttentionOptions(**{name: value})


@pytest.mark.parametrize(("name", "value"), cases(WRONG_TYPE))
def test_wrong_types(name, value):
    with pytest.raises(InvalidTypeError, match=rf"^{name}: expected .*, received"):
        AttentionOptions(**{name: value})


@pytest.mark.parametrize("wrong", [{"tol": 0.1}, {"tolerance": 0.1, "nearest": 3}])
def test_unknown_options_name_the_known(wrong):
    with pytest.raises(
        InvalidTypeError, match="expected some of tolerance, top_k.*num_threads, received '(tol|nearest)'"
    ):
        AttentionOptions(**wrong)


def test_too_many_options():
    with pytest.raises(InvalidTypeError, match="received 12 values"):
        AttentionOptions(*[None] * 12)


def test_every_option_is_covered():
    names = {f.name for f in dataclasses.fields(AttentionOptions) if f.init}
    assert names == set(GOOD) == set(WRONG_VALUE) == set(WRONG_TYPE)


def test_top_k_leaves_the_others_out():
    assert AttentionOptions(top_k=8).far_field == "none"
    assert AttentionOptions(top_k=8, far_field="none").far_field == "none"
    for far_field in ("mean", "covariance"):
        with pytest.raises(InvalidValueError, match="far_field: expected 'none' together with top_k=8"):
            AttentionOptions(top_k=8, far_field=far_field)
    with pytest.raises(InvalidValueError, match="near: expected None together with top_k=8"):
        AttentionOptions(top_k=8, near=16)


@pytest.mark.parametrize(("old", "new"), [(False, "none"), (0, "mean"), (2, "covariance")])
def test_far_fields_of_earlier_versions_name_the_new(old, new):
    with pytest.raises(InvalidTypeError, match=f"far_field: expected one of 'auto'.*received .* {old}.*'{new}'"):
        AttentionOptions(far_field=old)


def test_one_key_is_not_all_keys():
    one, every = AttentionOptions(near=1), AttentionOptions(near=1.0)
    assert one != every
    assert len({one, every}) == 2
    assert isinstance(from_text(one.text).near, int)
    assert isinstance(from_text(every.text).near, float)


def test_frozen_and_replaced():
    options = AttentionOptions(tolerance=0.1, sink=4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.sink = 5
    assert options.replace(sink=8) == AttentionOptions(tolerance=0.1, sink=8)
    assert options.sink == 4
    with pytest.raises(InvalidValueError):
        options.replace(sink=-1)


def test_no_text_is_the_defaults():
    assert from_text("") == AttentionOptions()
