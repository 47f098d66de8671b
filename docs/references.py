"""What autodoc and Sphinx are given of diffjax: signatures, docstrings and the targets of names."""

import builtins
import collections.abc
import inspect
import re
import typing
from typing import Any

import api
import docstrings
import links
from docutils import nodes
from sphinx.application import Sphinx

# Names of other packages in annotations.
_OF_OTHERS = re.compile(
    r"^(jax|jnp|np|numpy|flax|nn|nnx|optax|jaxtyping|typing|collections|pathlib|argparse|"
    r"ml_collections|flags|ocp|types|Image|io|os|re|threading|ast|logging)\b"
)
_KNOWN = {*vars(builtins), *vars(typing), *vars(collections.abc)}


def setup(app: Sphinx) -> dict[str, bool]:
    """Connects the handlers below."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", _docstring)
    app.connect("autodoc-process-signature", _signature)
    app.connect("autodoc-skip-member", _skip)
    app.connect("missing-reference", _missing)
    app.connect("source-read", _source)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _module(what: str, name: str, obj: Any) -> str:
    return name if what == "module" else getattr(obj, "__module__", None) or ""


def _docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list) -> None:
    module = _module(what, name, obj)
    own = docstrings.parameters(obj)

    def named(written: str) -> str:
        path = None if written in own else api.resolve(written.rstrip("()"), module)
        if path is None or path == name:
            return f"``{written}``"
        return f":py:obj:`{written} <{path}>`"

    lines[:] = docstrings.restructured(lines, named)


def _signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: Any, result: Any
) -> tuple[str | None, str | None] | None:
    if what not in ("function", "method", "class", "exception"):
        return None
    module = getattr(obj, "__module__", "")
    return docstrings.signature(obj, lambda written: api.resolve(written, module), what)


def _skip(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    # The fields of a NamedTuple are described with the class, and so are functions in fields.
    field = type(obj).__name__ == "_tuplegetter"
    return True if field or (inspect.isfunction(obj) and obj.__name__ != name) else None


def _missing(app: Sphinx, env: Any, node: Any, contnode: Any) -> nodes.Node | None:
    """A name by another of its paths, such as `dj.samplers.ddim`; names of others, without link."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    module = node.get("py:module") or ""
    path = api.resolve(target, module) or api.resolve(target, "")
    domain = env.get_domain("py")
    if path and path in domain.objects:
        entry = domain.objects[path]
        reference = nodes.reference("", "", contnode, internal=True, reftitle=path)
        reference["refuri"] = (
            app.builder.get_relative_uri(node["refdoc"], entry.docname) + f"#{entry.node_id}"
        )
        return reference
    of_others = _OF_OTHERS.match(target) or target in _KNOWN or node["reftype"] in ("class", "exc")
    return contnode if of_others and not target.startswith(("diffjax", "dj.")) else None


def _source(app: Sphinx, docname: str, content: list[str]) -> None:
    suffix = app.env.doc2path(docname, base=False).suffix
    content[0] = links.rewritten(content[0], f"{docname}{suffix}")
