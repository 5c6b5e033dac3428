"""No function is long, and none takes more than a handful of arguments: read from the sources of both packages.

Signatures, docstrings, comments and blank lines are not counted, nor are self and cls.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
MOST_LINES = 60
MOST_PARAMETERS = 8

# Public functions, whose parameters those of other libraries' functions or an estimator's settings dictate.
MANY_PARAMETERS = {
    ("dci/index.py", "DCI.__init__"),
    ("dci/sklearn.py", "DCITransformer.__init__"),
    ("attention/functional.py", "dci_attention"),
    ("attention/modules.py", "DCIAttention.__init__"),
    ("attention/reference.py", "topk_attention"),
    ("attention/integrations/hf_masks.py", "padding_mask"),
    ("attention/integrations/huggingface.py", "_attention_function.attention"),
    ("attention/_core/batching.py", "attend_batch"),
    ("attention/_core/multi_head.py", "multi_head_attention"),
    ("attention/integrations/torch_operator.py", "attention"),
    ("attention/integrations/torch_operator.py", "_fake"),
}


class Function(NamedTuple):
    file: str
    line: int
    name: str  # with the names of what it is in
    lines: int
    parameters: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.name} has {self.lines} lines, {self.parameters} parameters"


def functions(root: Path) -> list[Function]:
    """Find the functions of both packages."""
    out: list[Function] = []
    for path in sorted(path for package in ("dci", "attention") for path in (root / package).rglob("*.py*")):
        if path.suffix in (".py", ".pyx"):
            read = in_python if path.suffix == ".py" else in_cython
            out += [Function(str(path.relative_to(root)), *found) for found in read(path.read_text())]
    return out


def in_python(text: str) -> Iterator[tuple[int, str, int, int]]:
    tree = ast.parse(text)
    code = code_lines(text, tree)

    def walk(node: ast.AST, names: tuple[str, ...]) -> Iterator[tuple[int, str, int, int]]:
        for child in ast.iter_child_nodes(node):
            inner = names
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                inner = (*names, child.name)
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                a = child.args
                named = [one.arg for one in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
                body = range(child.body[0].lineno, (child.end_lineno or 0) + 1)
                lines = len(code.intersection(body))
                yield child.lineno, ".".join(inner), lines, len(named) - (named[:1] in (["self"], ["cls"]))
            yield from walk(child, inner)

    yield from walk(tree, ())


def code_lines(text: str, tree: ast.AST) -> set[int]:
    """Numbers of lines that are no docstring, no comment and not blank."""
    code = {i for i, line in enumerate(text.split("\n"), 1) if line.strip() and not line.strip().startswith("#")}
    for node in ast.walk(tree):
        holder = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if holder and ast.get_docstring(node, clean=False) is not None:
            code.difference_update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return code


def in_cython(text: str) -> Iterator[tuple[int, str, int, int]]:
    # A string in three quotes at the beginning of a line is a docstring.
    text = re.sub(r'(?m)^[ ]*r?("""|\'\'\')(?s:.*?)\1', lambda doc: "\n" * doc[0].count("\n"), text)
    lines = [line.split("#")[0].rstrip() for line in text.split("\n")]
    classes: list[tuple[int, str]] = []
    for i, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if line:
            classes = [(depth, name) for depth, name in classes if depth < indent]
        if found := re.match(r"\s*(?:cdef\s+)?class\s+(\w+)", line):
            classes.append((indent, found[1]))
        start = re.match(r"\s*(?:def|cdef|cpdef)\b(?!\s+class\b)[^=]*?(\w+)\(", line)
        if not start:
            continue
        last, signature = i, line[start.end() :]
        while signature.count("(") >= signature.count(")") and last + 1 < len(lines):
            last += 1
            signature += " " + lines[last]
        if not signature.endswith(":"):  # a declaration or a variable
            continue
        body = []
        for below in lines[last + 1 :]:
            if below and len(below) - len(below.lstrip()) <= indent:
                break
            body.append(below)
        names = ".".join([*(name for _, name in classes), start[1]])
        yield i + 1, names, sum(map(bool, body)), cython_parameters(signature)


def cython_parameters(signature: str) -> int:
    """Count the parameters of what follows the opening parenthesis."""
    depth, parts = 0, [""]
    for character in signature:
        if character == ")" and depth == 0:
            break
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    named = [part.strip() for part in parts if part.strip() and not part.strip().startswith("*")]
    return len(named) - (named[:1] in (["self"], ["cls"]))


def beyond(found: list[Function]) -> list[Function]:
    return [
        one
        for one in found
        if one.lines > MOST_LINES or (one.parameters > MOST_PARAMETERS and (one.file, one.name) not in MANY_PARAMETERS)
    ]


def test_functions_are_short_and_take_few_arguments():
    assert not beyond(functions(ROOT)), "\n".join(["", *map(str, beyond(functions(ROOT)))])


def test_exceptions_exist():
    gone = MANY_PARAMETERS - {(one.file, one.name) for one in functions(ROOT)}
    assert not gone


def test_functions_are_seen():
    seen = {(one.file, one.name) for one in functions(ROOT)}
    assert ("dci/_native/kernels.pyx", "Reservoirs.clear") in seen
    assert ("dci/_native/cells.pyx", "nearest") in seen
    assert ("dci/index.py", "DCI.query") in seen
    assert ("dci/_store/living_index.py", "LivingIndex.fit") in seen


# ------------------------------------------------------------------------------------- tests of the checks, on fakes

DOCSTRING = '    """What it does.\n\n    In\n    many lines.\n    """\n'
NAMES = [f"p{i}" for i in range(9)]


def body(lines: int) -> str:
    return "".join(f"    x = {i}\n\n    # a comment\n" for i in range(lines))


@pytest.mark.parametrize("suffix", [".py", ".pyx"])
@pytest.mark.parametrize(("lines", "too_long"), [(60, False), (61, True)])
def test_long_functions_are_found(tmp_path, suffix, lines, too_long):
    (tmp_path / "dci").mkdir()
    (tmp_path / f"dci/a{suffix}").write_text(f"import x\n\n\ndef f(a, b):\n{DOCSTRING}{body(lines)}\n\ny = 1\n")
    (found,) = functions(tmp_path)
    assert found == (f"dci/a{suffix}", 4, "f", lines, 2)
    assert beyond([found]) == [found] * too_long


@pytest.mark.parametrize(
    ("suffix", "text", "name", "parameters"),
    [
        (".py", f"def f({', '.join(NAMES)}): ...", "f", 9),
        (".py", f"class A:\n    def f(self, {', '.join(NAMES[:8])}, *more, **named): ...", "A.f", 8),
        (".py", f"class A:\n    def f(self, a, /, b, *, {', '.join(NAMES[:7])}): ...", "A.f", 9),
        (".py", f"def f():\n    async def g({', '.join(NAMES)}): ...", "f.g", 9),
        (".pyx", f"def f({', '.join(NAMES)}):\n    pass", "f", 9),
        (
            ".pyx",
            f"cdef class A:\n    x = 1\n    cpdef f(self,\n        {', '.join(NAMES)},\n    ):\n        pass",
            "A.f",
            9,
        ),
        (".pyx", f"cdef const A *f(const float[:, ::1] a, {', '.join(NAMES[:7])}) noexcept nogil:\n    pass", "f", 8),
        (".pyx", f"cdef f(int (*g)(int, int), a=(1, 2), {', '.join(NAMES[:7])}) except +check():\n    pass", "f", 9),
    ],
)
def test_parameters_are_counted(tmp_path, suffix, text, name, parameters):
    (tmp_path / "attention").mkdir()
    (tmp_path / f"attention/a{suffix}").write_text(text)
    found = functions(tmp_path)[-1]
    assert (found.name, found.parameters) == (name, parameters)
    assert (found in beyond([found])) == (parameters > MOST_PARAMETERS)


def test_declarations_and_calls_are_no_functions():
    text = "cdef class A(B):\n    x = 1\ncdef int f(int a, int b) nogil\ncdef int x = f(1, 2)\n"
    text += "cdef extern from 'a.h' nogil:\n    int g(int a)\n"
    assert list(in_cython(text)) == []


def test_an_exception_is_for_parameters_alone():
    file, name = next(iter(MANY_PARAMETERS))
    assert beyond([Function(file, 1, name, 60, 20)]) == []
    assert len(beyond([Function(file, 1, name, 61, 20)])) == 1
    assert len(beyond([Function("dci/other.py", 1, name, 60, 20)])) == 1
