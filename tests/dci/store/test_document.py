"""The reader in the document reads what the library writes, and the tables have its numbers."""

import re
import struct
from pathlib import Path

import numpy as np
import pytest

from dci._store import codec, container, journal, layout, records
from tests.dci.store.indexes import KINDS, make, make_calibrated
from tests.dci.store.mutate import equal, sample

DOCUMENT = (Path(__file__).parents[3] / "docs" / "file-format.md").read_text()
(READER,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)


@pytest.fixture
def read_container():
    names = {}
    exec(READER, names)
    return names["read_container"]


def test_it_is_short_and_stands_alone():
    assert len(READER.splitlines()) <= 40
    assert set(re.findall(r"^(?:import|from) (\w+)", READER, re.MULTILINE)) == {"json", "struct", "zlib", "numpy"}


@pytest.mark.parametrize("content", [sample(), ({}, {}), ({"a": [1]}, {"none": np.empty((0, 2), np.int16)})])
def test_it_reads_what_the_library_writes(tmp_path, read_container, content):
    path = tmp_path / "some.dci"
    container.write(path, *content)
    assert equal(read_container(path), content)


def test_it_sees_damage(tmp_path, read_container):
    path = tmp_path / "some.dci"
    content = sample()
    container.write(path, *content)
    data = path.read_bytes()
    seen = 0
    for position in range(0, len(data), 7):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        try:
            found = read_container(path)
        except ValueError:
            seen += 1
        else:
            assert equal(found, content), "only padding may be damaged unseen"
    assert seen > len(data) / 7 / 2


@pytest.mark.parametrize("kind", ["changed", "emptied", "quantized", "exact", "float16", "int8"])
def test_it_answers_a_query_from_an_index(tmp_path, read_container, kind):
    index = make(kind)
    index.save(tmp_path / "index.dci")
    meta, arrays = read_container(tmp_path / "index.dci")
    (snippet,) = re.findall(r"```\n(rows = .*?)```", DOCUMENT, re.DOTALL)
    exec(snippet, names := {"arrays": arrays | {"points": arrays["points"].astype(np.float64)}})
    points = names["rows"]
    assert points.shape[1] == index.dim
    ids, gone = arrays.get("ids", np.arange(len(points))), arrays.get("gone", np.zeros(len(points), np.uint8))
    query = np.ones(points.shape[1], np.float32)
    distances = np.where(gone, np.inf, np.sqrt(np.square(points - query).sum(1)))
    nearest = np.argsort(distances, kind="stable")[: min(5, np.count_nonzero(gone == 0))]
    expected = index.query(query, 5, recall=1.0)
    assert meta["settings"]["metric"] == "l2"
    assert np.array_equal(ids[nearest], expected.indices[: len(nearest)])
    assert np.allclose(distances[nearest], expected.distances[: len(nearest)])


@pytest.mark.parametrize("kind", KINDS)
def test_all_parts_of_an_index_are_described(kind):
    meta, sections = codec.encode(make_calibrated(kind)._content())
    text = DOCUMENT.split("## Contents of an index")[1].split("## Versions")[0]
    named = {word for words in re.findall("`([^`]+)`", text) for word in words.split()}
    leaves = set(meta) | {key for value in meta.values() if isinstance(value, dict) for key in value}
    assert not leaves - named - {"bit_generator"}
    rows = re.findall(r"^\| (`[^|]+) \| ([^|]+) \((.+)\) \|", text.split("| section |")[1], re.MULTILINE)
    table = {name: row[1:] for row in rows for name in re.findall("`([^`]+)`", row[0])}
    for name, array in sections.items():
        dtypes, shape = table[re.sub(r"\d+\.\d+", "<K>.<effort>", name)]
        assert array.dtype.name in dtypes.split()
        assert array.ndim == len(shape.split(";")[0].rstrip(",").split(","))


@pytest.mark.parametrize(
    ("title", "layout_", "size"),
    [
        ("### Header", layout.HEADER, 64),
        ("### Entry of the directory", layout.ENTRY, 128),
        ("| offset | type | header |", journal.HEADER, 64),
        ("| offset | type | record |", records.RECORD, 40),
        ("| offset | type | array of a record |", records.ARRAY, 56),
    ],
)
def test_tables_have_the_offsets(title, layout_, size):
    assert layout_.size == size
    table = DOCUMENT.split(title)[1].split("\n\n")[1 if title.startswith("#") else 0]
    offsets = [int(offset) for offset in re.findall(r"^\| (\d+) \|", table, re.MULTILINE) if int(offset) < size]
    expected, end = [], 0
    for count, code in re.findall(r"(\d*)([sIQ])", layout_.format):
        expected.append(end)
        end += int(count or 1) * struct.calcsize("<" + code)
    assert offsets == expected
