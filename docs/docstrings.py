"""Docstrings and signatures of diffjax as reStructuredText, for Sphinx's autodoc.

The docstrings are plain text for the reader of a source file: equations and tables are indented
blocks, code is in single backticks, arguments are in Google's sections. `restructured` makes of
that what Sphinx expects, and `signature` takes a signature from the source, where an annotation is
the name that a reader knows (`Data`) rather than the type that it is an alias of.
"""

import ast
import copy
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import api

SECTION = re.compile(r"(Args|Attributes|Returns|Yields|Raises)( \(.*\))?:$")
_FIELDS = {"Args": "Arguments", "Yields": "Returns"}
# A list's bullet, `code`, or what reStructuredText would take for markup: "(2)" that begins a line
# is an equation's number.
_SPAN = re.compile(
    r"(?P<bullet>^ *\* )|(?P<code>`[^`]+`)|[\\*|`]|(?<=\w)_(?!\w)|^(?P<number> *)(?=\(\w+\) )",
    flags=re.MULTILINE,
)
_ITEM = re.compile(r"\s*([*-]|\d+\.) ")
_ENTRY = re.compile(r"  (?P<names>\*{0,2}\w+(?:, \*{0,2}\w+)*): ?(?P<rest>.*)$")


def restructured(lines: Sequence[str], named: Callable[[str], str]) -> list[str]:
    """A docstring's lines, with plain text escaped, indented blocks literal, sections as fields.

    Args:
      lines: the docstring.
      named: what is in backticks -> the markup for it.
    """
    result: list[str] = []
    base = 0  # indentation of the paragraph before a block
    for block in _blocks(lines):
        indent = _indent(block[0])
        if match := SECTION.match(block[0]):
            result += [*_section(match, block[1:], named), ""]
        elif block[0].lstrip().startswith(">>>"):
            result += [*block, ""]
        elif result and indent >= base + 2:
            kind = "python" if _is_python(block) else "text"
            pad = " " * base
            shown = textwrap.dedent("\n".join(block)).split("\n")
            result += [f"{pad}.. code-block:: {kind}", "", *(f"{pad}   {s}" for s in shown), ""]
        else:
            result += [*_escaped("\n".join(block), named).split("\n"), ""]
            item = _ITEM.match(block[0])
            base = item.end() if item else indent
    return result


def _blocks(lines: Sequence[str]) -> Iterator[list[str]]:
    """Paragraphs and sections; an indented block keeps the empty lines within it."""
    block: list[str] = []
    rest = [line.rstrip() for line in lines]
    for i, line in enumerate(rest):
        example = bool(block) and block[0].lstrip().startswith(">>>")
        section = bool(block) and SECTION.match(block[0]) is not None
        starts = bool(SECTION.match(line)) or (line.lstrip().startswith(">>>") and not example)
        if block and line and (starts or (section and not _indent(line))):
            yield block
            block = []
        if line:
            block.append(line)
        elif block:
            following = next((later for later in rest[i:] if later), "")
            goes_on = _indent(following) >= (2 if section else 4)
            if goes_on and not example and (section or _indent(block[0]) >= 4):
                block.append("")
            else:
                yield block
                block = []
    if block:
        yield block


def _section(
    match: re.Match[str], lines: Sequence[str], named: Callable[[str], str]
) -> Iterator[str]:
    """Google's sections as fields: names with what they are, errors, or what is returned."""
    title = match[1]
    title = _FIELDS.get(title, title)
    if title == "Returns":
        yield f":{title}:"
        yield from _listed(lines, named)
        return
    if title != "Raises":
        yield f":{title}:"
    for names, text in _entries(lines):
        yield f":raises {names}:" if title == "Raises" else f"   * **{_escaped(names, named)}** --"
        yield from (f"  {line}" for line in _listed(text, named))
    yield ""


def _entries(lines: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    names, text = "", []
    for line in lines:
        if match := _ENTRY.match(line):
            if names:
                yield names, text
            names, text = match["names"], [f"    {match['rest']}"] if match["rest"] else []
        else:
            text.append(line)
    if names:
        yield names, text


def _listed(lines: Sequence[str], named: Callable[[str], str]) -> Iterator[str]:
    """Text of an entry; where it has lines of two indentations, those of the lesser are items."""
    levels = sorted({_indent(line) for line in lines if line})
    item = levels[-2] if len(levels) > 1 else -1
    for line in _escaped("\n".join(lines), named).split("\n"):
        depth = _indent(line)
        text = line.strip()
        if item < 0 or not text:
            yield f"   {text}"
        elif depth < item:
            yield ""
            yield f"   {text}"
        elif depth == item:
            yield ""
            yield f"   * {text}"
        else:
            yield f"     {text}"


def _escaped(text: str, named: Callable[[str], str]) -> str:
    def written(match: re.Match[str]) -> str:
        if match["bullet"]:
            return match[0]
        if not match["code"]:
            return f"{match[0]}\\" if match["number"] is not None else f"\\{match[0]}"
        before, after = text[: match.start()][-1:], text[match.end() :][:1]
        markup = named(" ".join(match[0].strip("`").split()))
        return ("\\ " if before.isalnum() else "") + markup + ("\\ " if after.isalnum() else "")

    return _SPAN.sub(written, text)


def _is_python(block: Sequence[str]) -> bool:
    code = textwrap.dedent("\n".join(block))
    if not re.search(r"^(from|import|def|class|@|with)\b|\w\(.*\)", code, flags=re.MULTILINE):
        return False
    try:
        ast.parse(code)
    except SyntaxError:
        return False
    return True


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def signature(
    obj: Any, path_of: Callable[[str], str | None], what: str = "function"
) -> tuple[str, str | None] | None:
    """(arguments, result) of a function or class as its source has them; None without a source.

    Args:
      obj: the function or class.
      path_of: a name in an annotation -> where it is documented, or None.
      what: "method" leaves out the first argument, unless it is static.
    """
    node = definition(obj)
    if node is None:
        return None
    node = _Qualified(path_of).visit(copy.deepcopy(node))
    if isinstance(node, ast.ClassDef):
        return _of_class(node)
    static = any(ast.unparse(d) == "staticmethod" for d in node.decorator_list)
    return _of_function(node, bound=what == "method" and not static)


def parameters(obj: Any) -> set[str]:
    """The names of a function's arguments, or of a class's fields."""
    node = definition(obj)
    if isinstance(node, ast.FunctionDef):
        arguments = node.args
        return {a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
    if isinstance(node, ast.ClassDef):
        return {f.target.id for f in _fields(node)}
    return set()


def definition(obj: Any) -> ast.FunctionDef | ast.ClassDef | None:
    """The syntax tree of a function or class; None where there is no source."""
    obj = inspect.unwrap(obj) if callable(obj) else obj
    name = getattr(obj, "__qualname__", None)
    if not isinstance(name, str):
        return None
    body: list[ast.stmt] = api.tree(getattr(obj, "__module__", None) or "").body
    found = None
    for part in name.split("."):
        kinds = (ast.FunctionDef, ast.ClassDef)
        found = next((n for n in body if isinstance(n, kinds) and n.name == part), None)
        body = found.body if found else []
    return found


class _Qualified(ast.NodeTransformer):
    """Annotations with names as `~path`, which Sphinx shows as the name with a link."""

    def __init__(self, path_of: Callable[[str], str | None]) -> None:
        self._path_of = path_of

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = self._annotation(node.annotation)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign:
        node.annotation = self._annotation(node.annotation)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.returns = self._annotation(node.returns)
        self.visit(node.args)
        return node

    def _annotation(self, annotation: Any) -> Any:
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            try:
                annotation = ast.parse(annotation.value, mode="eval").body
            except SyntaxError:
                return annotation
        return annotation and _Paths(self._path_of).visit(annotation)


class _Paths(ast.NodeTransformer):
    def __init__(self, path_of: Callable[[str], str | None]) -> None:
        self._path_of = path_of

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self._linked(node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        return self._linked(node)

    def _linked(self, node: ast.expr) -> ast.expr:
        path = self._path_of(ast.unparse(node))
        return ast.Name(f"~{path}") if path else node


def _of_function(node: ast.FunctionDef, *, bound: bool) -> tuple[str, str | None]:
    arguments = node.args
    if bound:
        del (arguments.posonlyargs or arguments.args)[:1]
    return f"({ast.unparse(arguments)})", ast.unparse(node.returns) if node.returns else None


def _of_class(node: ast.ClassDef) -> tuple[str, str | None]:
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return _of_function(item, bound=True)[0], None
    bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
    fields = _fields(node)
    if not fields or "Protocol" in bases:
        return "", None
    written = (
        f"{field.target.id}: {ast.unparse(field.annotation)}"
        + (f" = {ast.unparse(field.value)}" if field.value else "")
        for field in fields
    )
    return f"({', '.join(written)})", None


def _fields(node: ast.ClassDef) -> list[ast.AnnAssign]:
    return [
        item
        for item in node.body
        if isinstance(item, ast.AnnAssign)
        and isinstance(item.target, ast.Name)
        and not item.target.id.startswith("_")
    ]
