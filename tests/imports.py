"""What the modules of both packages import, read from their sources without importing them.

Python and stubs are parsed; of Cython, statements of import and cimport are read.
"""

import ast
import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGES = ("dci", "attention")
START, LATER, TYPING, USE = "at start", "in a function", "for types", "as an attribute"


class Import(NamedTuple):
    """One name of a module, or the module itself if `name` is empty."""

    where: str
    importer: str
    target: str
    name: str
    when: str
    stub: bool

    def __str__(self) -> str:
        what = f"{self.name} of {self.target}" if self.name else self.target
        return f"{self.where}: {self.importer} imports {what} ({self.when})"


def inside(module: str, room: str) -> bool:
    return module == room or module.startswith(room + ".")


def read_imports(root: Path) -> list[Import]:
    """Find the imports of the packages' modules in all modules of the packages."""
    paths = sorted(
        path
        for package in PACKAGES
        for path in (root / package).rglob("*")
        if path.suffix in (".py", ".pyi", ".pyx", ".pxd")
    )
    modules = {module_of(path, root) for path in paths}
    return [found for path in paths for found in Source(path, root, modules).imports() if found.target in modules]


def module_of(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


class Source:
    """One file: its imports with relative ones resolved."""

    def __init__(self, path: Path, root: Path, modules: set[str]) -> None:
        self.path, self.modules = path, modules
        self.shown = path.relative_to(root)
        self.module = module_of(path, root)
        self.package = self.module if path.stem == "__init__" else self.module.rpartition(".")[0]
        self.bound: dict[str, str] = {}  # what names of this file are modules

    def imports(self) -> Iterator[Import]:
        text = self.path.read_text()
        if self.path.suffix in (".pyx", ".pxd"):
            yield from self._cython(text)
        else:
            tree = ast.parse(text, str(self.path))
            yield from self._python(tree, START)
            yield from self._uses(tree)

    def _import(self, line: int, target: str, name: str, when: str) -> Import:
        if f"{target}.{name}" in self.modules:
            target, name = f"{target}.{name}", ""
        return Import(f"{self.shown}:{line}", self.module, target, name, when, self.path.suffix == ".pyi")

    def _absolute(self, dots: int, module: str) -> str:
        if not dots:
            return module
        base = self.package.split(".")
        return ".".join([*base[: len(base) - dots + 1], *filter(None, [module])])

    def _python(self, node: ast.AST, when: str) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    self.bound[alias.asname or alias.name.split(".")[0]] = (
                        alias.name if alias.asname else alias.name.split(".")[0]
                    )
                    yield self._import(child.lineno, alias.name, "", when)
            elif isinstance(child, ast.ImportFrom):
                for alias in child.names:
                    target = self._absolute(child.level, child.module or "")
                    found = self._import(alias.lineno, target, alias.name, when)
                    if not found.name:
                        self.bound[alias.asname or alias.name] = found.target
                    yield found
            elif isinstance(child, ast.Call) and ast.unparse(child.func).endswith(("import_module", "__import__")):
                for argument in child.args[:1]:
                    if isinstance(argument, ast.Constant):
                        dots = len(argument.value) - len(argument.value.lstrip("."))
                        target = self._absolute(dots, argument.value.lstrip("."))
                        yield self._import(child.lineno, target, "", when)
            elif isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
                yield from self._python(ast.Module(child.body, []), TYPING)
                yield from self._python(ast.Module(child.orelse, []), when)
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                yield from self._python(child, LATER)
            else:
                yield from self._python(child, when)

    def _uses(self, tree: ast.AST) -> Iterator[Import]:
        """Attributes of imported modules: `dci._search` after `import dci`."""
        attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
        inner = {id(node.value) for node in attributes}
        for node in attributes:
            if id(node) in inner or not re.fullmatch(r"[\w.]+", ast.unparse(node)):
                continue
            first, *rest = ast.unparse(node).split(".")
            target = self.bound.get(first, "")
            while len(rest) > 1 and f"{target}.{rest[0]}" in self.modules:
                target = f"{target}.{rest.pop(0)}"
            yield self._import(node.lineno, target, rest[0], USE)

    def _cython(self, text: str) -> Iterator[Import]:
        text = re.sub(r'("""|\'\'\').*?\1', lambda quoted: "\n" * quoted[0].count("\n"), text, flags=re.DOTALL)
        lines = [line.split("#")[0].rstrip() for line in text.split("\n")]
        for i, line in enumerate(lines):
            statement = re.match(r"(\s*)(?:from\s+(\.*)\s*([\w.]*)\s+)?c?import\s+(.*)", line)
            if not statement:
                continue
            indent, dots, module, names = statement.groups()
            last = i
            while names.count("(") > names.count(")") or names.endswith("\\"):
                last += 1
                names = names.rstrip("\\") + " " + lines[last]
            when = LATER if _in_function(lines[:i], len(indent)) else START
            for part in names.strip(" ()").split(","):
                if name := part.split(" as ")[0].strip():
                    target = name if module is None else self._absolute(len(dots), module)
                    yield self._import(i + 1, target, "" if module is None else name, when)


def _in_function(before: list[str], indent: int) -> bool:
    for line in reversed(before):
        here = len(line) - len(line.lstrip())
        if line.strip() and here < indent:
            if re.match(r"\s*(def|cdef|cpdef)\b.*\(|.*\)[^()]*:$", line):
                return True
            indent = here
    return False


def cycle(imports: Iterable[Import], package: str) -> list[Import]:
    """Find imports that lead from a module of the package back to it, all of them made at start; [] if none do."""
    edges: dict[str, dict[str, Import]] = {}
    for found in imports:
        if found.when != START or found.stub or not (inside(found.importer, package) and inside(found.target, package)):
            continue
        parts = found.target.split(".")
        # Who imports a module imports the packages around it, but for those that it lies in itself.
        for size in range(1, len(parts) + 1):
            target = ".".join(parts[:size])
            if found.importer != target and (size == len(parts) or not inside(found.importer, target)):
                edges.setdefault(found.importer, {}).setdefault(target, found)
    done: set[str] = set()

    def follow(module: str, path: list[str]) -> list[Import]:
        if module in path:
            ring = [*path[path.index(module) :], module]
            return [edges[a][b] for a, b in itertools.pairwise(ring)]
        if module in done:
            return []
        done.add(module)
        return next((ring for target in edges.get(module, ()) if (ring := follow(target, [*path, module]))), [])

    return next((ring for module in list(edges) if (ring := follow(module, []))), [])


def not_at_start(imports: Iterable[Import]) -> list[Import]:
    """Imports within one package that are made in functions or for types alone."""
    late = [i for i in imports if i.when in (LATER, TYPING) and not i.stub]
    return [i for i in late if i.importer.split(".")[0] == i.target.split(".")[0]]
