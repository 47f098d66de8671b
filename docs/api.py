"""What the API pages document: every public module, and each public name under its shortest path.

A package that imports names of its modules shows them as its own, so `samplers.ddim` is documented
as `diffjax.sampling.samplers.ddim` and not by the file that it is in.
"""

import ast
import functools
import importlib
import inspect
from pathlib import Path
from typing import Any, NamedTuple

import diffjax

PACKAGE = Path(diffjax.__file__).resolve().parent


class Member(NamedTuple):
    """A public name.

    Attributes:
      path: where a user imports it from.
      kind: "function", "class", "exception" or "data".
      comment: of data, the comments above it or on its line.
      value: of data, its source.
    """

    path: str
    kind: str
    comment: str = ""
    value: str = ""


class Module(NamedTuple):
    """A public module: its name and what it defines, in the order of its source."""

    name: str
    members: tuple[Member, ...]


@functools.cache
def modules() -> dict[str, Module]:
    """Every public module of diffjax by name, packages before what is in them."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py"), key=lambda p: p.with_suffix("").parts):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        if not any(part.startswith("_") for part in parts[1:]):
            found[".".join(parts)] = path
    names = sorted(found)
    return {name: Module(name, tuple(_members(name, found[name]))) for name in names}


def _members(name: str, path: Path) -> list[Member]:
    lines = path.read_text(encoding="utf-8").splitlines()
    members = []
    for node in tree(name).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            kind = "class" if isinstance(node, ast.ClassDef) else "function"
            bases = [ast.unparse(base) for base in getattr(node, "bases", ())]
            kind = "exception" if any(b.endswith(("Error", "Exception")) for b in bases) else kind
            members.append(Member(_shortest(name, node.name), kind))
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and not target.id.startswith("_"):
                members.append(
                    Member(
                        _shortest(name, target.id),
                        "data",
                        _comment(lines, node.lineno - 1, (node.end_lineno or node.lineno) - 1),
                        ast.unparse(node.value),
                    )
                )
    return members


def _comment(lines: list[str], first: int, last: int) -> str:
    """The comment above a definition, and the one on its line."""
    above = first
    while above and lines[above - 1].startswith("#"):
        above -= 1
    on_line = lines[last].partition("  # ")[2]
    found = [line.lstrip("# ") for line in lines[above:first]] + [on_line]
    return " ".join(
        line for line in found if line and not line.startswith(("type:", "noqa", "fmt"))
    )


def _shortest(module: str, name: str) -> str:
    """The path by a package that imports the name from its module."""
    parts = module.split(".")
    for size in range(2, len(parts)):
        package = ".".join(parts[:size])
        if _imports(package).get(name) == f"{module}.{name}":
            return f"{package}.{name}"
    return f"{module}.{name}"


@functools.cache
def tree(module: str) -> ast.Module:
    """The syntax tree of a module of diffjax; an empty one for others."""
    path = PACKAGE.parent.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    inside = module.split(".")[0] == "diffjax" and path.is_file()
    return ast.parse(path.read_text(encoding="utf-8") if inside else "")


@functools.cache
def _imports(module: str) -> dict[str, str]:
    """Names that a module imports -> what they are of, without executing it."""
    found = {}
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.asname: a.name for a in node.names if a.asname}
    return found


@functools.cache
def documented() -> dict[str, str]:
    """Paths of modules and public names, as defined and as shown -> as shown."""
    found = {}
    for name, module in modules().items():
        found[name] = name
        for member in module.members:
            last = member.path.rpartition(".")[2]
            found[f"{name}.{last}"] = found[member.path] = member.path
    return found


def resolve(written: str, module: str) -> str | None:
    """The documented path that a name in the source or the docstring of a module means.

    Args:
      written: such as "Data", "grids.trailing", "loop.run" or "dj.samplers.ddim".
      module: where it is written; "" for a page of the manual.
    """
    head, dot, rest = written.partition(".")
    roots = [f"{module}.{head}"] if module else []
    if module in modules() and head in _imports(module):
        roots.append(_imports(module)[head])
    if dot:
        package = module if f"{module}.{head}" in modules() else module.rpartition(".")[0]
        roots += [f"{package}.{head}", f"diffjax.{head}"]
        roots.append("diffjax" if head in ("dj", "diffjax") else _imports("diffjax").get(head, ""))
    else:
        parts = module.split(".")
        roots += [".".join([*parts[:size], head]) for size in range(len(parts) - 1, 1, -1)]
    for root in filter(None, roots):
        if path := _documented(f"{root}{dot}{rest}"):
            return path
    return None


def _documented(path: str) -> str | None:
    """The documented path of one that may lead over imports and into classes."""
    for _ in range(4):
        if path in documented():
            return documented()[path]
        owner, _, name = path.rpartition(".")
        while owner and owner not in modules():
            last, name = owner.rpartition(".")[2], name
            owner, name = owner.rpartition(".")[0], f"{last}.{name}"
        head, dot, rest = name.partition(".")
        if owner and f"{owner}.{head}" in documented():  # an attribute of a class
            shown = documented()[f"{owner}.{head}"]
            return f"{shown}{dot}{rest}" if _has(shown, rest) else None
        if not owner or head not in _imports(owner):
            return None
        path = f"{_imports(owner)[head]}{dot}{rest}"
    return None


def _has(path: str, attribute: str) -> bool:
    """Whether a class has a method or property that its documentation shows."""
    owner = load(path)
    for part in attribute.split("."):
        if not inspect.isclass(owner) or part.startswith("_"):
            return False
        owner = vars(owner).get(part)
    if isinstance(owner, staticmethod | classmethod):
        owner = owner.__func__
    return (inspect.isfunction(owner) or isinstance(owner, property)) and bool(owner.__doc__)


def load(path: str) -> Any:
    """The object at a documented path."""
    owner, _, name = path.rpartition(".")
    return importlib.import_module(path) if path in modules() else getattr(load(owner), name)
