"""Options of layers are checked, say what they are, and come back from their file as they were."""

import json

import pytest

from attention import AttentionOptions, LayerOptions
from attention.errors import InvalidTypeError, InvalidValueError

LOOSE = AttentionOptions(tolerance=0.1, sink=4)
TWO = LayerOptions({"a.0": LOOSE, "a.1": LayerOptions.EXACT}, {"a.0": 0, "a.1": 1}, 0.03)


def test_they_can_be_printed():
    assert str(TWO) == "a.0: tolerance 0.1, sink 4\na.1: exact"


def test_they_are_found_by_index():
    assert TWO.by_index() == {0: LOOSE, 1: LayerOptions.EXACT}


@pytest.mark.parametrize("indices", [{}, {"a.0": 0}, {"a.0": 1, "a.1": 1}])
def test_layers_without_an_index_of_their_own_are_for_accelerate(indices):
    with pytest.raises(InvalidValueError, match=r"layer_idx each, all different, received .*a\.0.*accelerate"):
        LayerOptions(TWO.options, indices).by_index()


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        (([LOOSE],), InvalidTypeError, "^options: expected a dict by the layers' names, received"),
        (({0: LOOSE},), InvalidTypeError, "^options: expected a dict by the layers' names, received"),
        (({"a": None},), InvalidTypeError, "^options: expected AttentionOptions of 'a', received None"),
        (({},), InvalidValueError, "^options: expected those of a layer or more, received none"),
        (({"a": LOOSE}, {"b": 0}), InvalidValueError, r"^indices: expected .* one of \['a'\], received 0 of 'b'"),
        (({"a": LOOSE}, {"a": -1}), InvalidValueError, "^indices: expected an int >= 0 .*, received -1 of 'a'"),
        (({"a": LOOSE}, {"a": 0.5}), InvalidValueError, r"^indices: expected an int >= 0 .*, received 0\.5 of 'a'"),
        (({"a": LOOSE}, 3), InvalidTypeError, "^indices: expected a dict"),
    ],
)
def test_wrong_ones_are_refused(wrong, error, says):
    with pytest.raises(error, match=says):
        LayerOptions(*wrong)


def test_they_do_not_change_with_what_they_were_made_of():
    given = {"a": LOOSE}
    options = LayerOptions(given)
    given.clear()
    assert list(options.options) == ["a"]


class TestFile:
    @pytest.mark.parametrize(
        "options",
        [
            TWO,
            LayerOptions({"ä b": AttentionOptions(near=1)}),
            LayerOptions({"x": AttentionOptions(near=1.0, window=8)}, {"x": 7}),
        ],
    )
    def test_round_trip(self, options, tmp_path):
        options.save(tmp_path / "tuned.json")
        assert LayerOptions.load(str(tmp_path / "tuned.json")) == options
        assert [path.name for path in tmp_path.iterdir()] == ["tuned.json"]

    def test_it_can_be_read_by_people(self, tmp_path):
        TWO.save(tmp_path / "tuned.json")
        content = json.loads((tmp_path / "tuned.json").read_text())
        assert content["layers"] == {
            "a.0": {"options": {"tolerance": 0.1, "sink": 4}, "index": 0},
            "a.1": {"options": "exact", "index": 1},
        }

    def test_a_failure_leaves_the_file_that_was_there(self, tmp_path, monkeypatch):
        path = tmp_path / "tuned.json"
        path.write_text("before")

        def full(*_, **__):
            raise OSError("no space left")

        monkeypatch.setattr("pathlib.Path.replace", full)
        with pytest.raises(OSError, match="no space"):
            TWO.save(path)
        assert path.read_text() == "before"
        assert list(tmp_path.iterdir()) == [path]

    def test_a_missing_file_is_an_oserror(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            LayerOptions.load(tmp_path / "none.json")

    @pytest.mark.parametrize(
        "changes",
        [
            {"format": "attention.LayerOptions 2"},
            {"layers": {}},
            {"layers": []},
            {"layers": {"a": {}}},
            {"layers": {"a": {"options": "exactly"}}},
            {"layers": {"a": {"options": {"tolerance": 2}}}},
            {"layers": {"a": {"options": {"colour": 2}}}},
            {"layers": {"a": {"options": {}, "index": "0"}}},
            {"change": "small"},
            {"change": float("nan")},
        ],
    )
    def test_something_else_is_refused(self, changes, tmp_path):
        path = tmp_path / "tuned.json"
        TWO.save(path)
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        with pytest.raises(InvalidValueError, match=r"tuned\.json: expected a file of LayerOptions\.save, received"):
            LayerOptions.load(path)

    @pytest.mark.parametrize("text", ["", "[]", "3", '{"format": 1', "\x00"])
    def test_other_files_are_refused(self, text, tmp_path):
        (tmp_path / "x").write_text(text)
        with pytest.raises(InvalidValueError, match=r"x: expected a file of LayerOptions\.save"):
            LayerOptions.load(tmp_path / "x")
