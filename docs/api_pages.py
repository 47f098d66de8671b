"""The pages of reference/api, as MyST Markdown that has autodoc's directives."""

import inspect
from collections.abc import Iterator

from api import Member, Module, documented, load, modules, resolve

import diffjax

LONGEST_VALUE = 300
# page -> (title, what it has, modules with all that is in them), in the order of the contents.
PAGES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "schedules": ("Schedules", "Signal and noise as functions of time.", ("schedules",)),
    "process": (
        "Process, grids and randomness",
        "The forward process and its posterior, the times of a sampler's steps, random streams.",
        ("process", "grids", "rng"),
    ),
    "denoisers": (
        "Parametrisations and denoisers",
        "From what a network predicts to the estimates of x_0 and eps that samplers take.",
        ("parametrisations", "prediction", "denoisers", "flow_maps", "self_conditioning"),
    ),
    "losses": ("Losses", "Functions that are minimised, and what they are made of.", ("losses",)),
    "samplers": ("Samplers", "From x_T to x_0.", ("sampling.samplers",)),
    "guidance": (
        "Guidance and thresholding",
        "Functions of a denoiser that return a denoiser.",
        ("sampling.guidance", "sampling.thresholding"),
    ),
    "editing": (
        "Editing and inverse problems",
        "Given images, in whole or in part.",
        ("sampling", "sampling.editing", "sampling.inverse_problems", "sampling.memory"),
    ),
    "likelihood": ("Likelihood", "In nats or bits per dimension.", ("likelihood",)),
    "averages": ("Averages", "Of parameters over training.", ("ema", "posthoc_ema")),
    "categorical": ("Discrete data", "Diffusion of categories.", ("categorical",)),
    "augmentation": ("Augmentation", "Of small data sets.", ("augmentation", "images")),
    "models": ("Models", "Networks.", ("models",)),
    "conditioning": ("Conditioning", "What a network is given besides x_t.", ("conditioning",)),
    "latent": ("Latent spaces", "First stages and the space of x_0.", ("latent",)),
    "data": ("Data", "Sources and batches.", ("data",)),
    "perceptual": ("Perceptual networks", "Networks that judge images.", ("perceptual",)),
    "figures": ("Figures", "Pictures.", ("figures",)),
    "inference": ("Inference", "A trained model without its training.", ("inference",)),
    "stable_diffusion": ("Stable Diffusion", "Its folders and files.", ("stable_diffusion",)),
    "evaluation": ("Evaluation", "Distances, likelihoods, reports.", ("evaluation",)),
    "training": ("Training", "The train step, objectives and the loop.", ("training",)),
    "checkpoints": ("Checkpoints", "A run on disk.", ("checkpoints",)),
    "distributed": ("Distributed", "Devices and processes.", ("distributed",)),
    "accelerator": ("Accelerator", "Kernels for CPUs.", ("accelerator",)),
    "experiment": ("Experiments", "A config as functions.", ("experiment",)),
    "commands": ("Command line", "What runs a command.", ("main", "flags", "commands")),
    "foundations": (
        "Types, errors and files",
        "What the other modules share.",
        ("types", "checks", "arguments", "errors", "files", "torch_files", "torch_pickle"),
    ),
}


def pages() -> dict[str, str]:
    """File name -> text, of every page of reference/api."""
    made = {"index.md": _index(), "diffjax.md": _top()}
    for page, (title, about, roots) in _all_pages().items():
        parts = [f"# {title}\n\n{about}\n"]
        parts += [_section(modules()[name], roots) for name in _on(page)]
        made[f"{page}.md"] = "\n".join(parts)
    return made


def _all_pages() -> dict[str, tuple[str, str, tuple[str, ...]]]:
    """PAGES, and a page for each package or module that is on none of them."""
    listed = {root for _, _, roots in PAGES.values() for root in roots}
    found = dict(PAGES)
    for name in modules():
        root = name.split(".")[1] if "." in name else ""
        if root and not any(x == root or x.startswith(f"{root}.") for x in listed):
            title = root.replace("_", " ").capitalize()
            found[root] = (title, _summary(f"diffjax.{root}"), (root,))
    return found


def _on(page: str) -> list[str]:
    """The modules of a page, in order; a module is on the page of its longest root."""
    everywhere = {root for _, _, roots in _all_pages().values() for root in roots}
    names = []
    for root in _all_pages()[page][2]:
        for name in modules():
            path = name.removeprefix("diffjax.")
            if path != root and not path.startswith(f"{root}."):
                continue
            deeper = any(
                len(other) > len(root) and (path == other or path.startswith(f"{other}."))
                for other in everywhere
            )
            if not deeper and name not in names:
                names.append(name)
    return names


def _section(module: Module, roots: tuple[str, ...]) -> str:
    inside = max((root for root in roots if module.name.startswith(f"diffjax.{root}.")), default="")
    title = module.name.removeprefix(f"diffjax.{inside}.") if inside else module.name
    lines = [f"## {title}", "", "```{eval-rst}", f".. automodule:: {module.name}"]
    lines.append("   :no-members:")
    if documented()[module.name] in _names():  # a function that is called like its module
        lines.append("   :no-index:")
    lines.append("")
    for member in module.members:
        lines += [*_directive(member), ""]
    return "\n".join([*lines, "```", ""])


def _names() -> set[str]:
    return {member.path for module in modules().values() for member in module.members}


def _directive(member: Member) -> Iterator[str]:
    if member.kind != "data":
        # Exceptions have no arguments of their own, where autodoc looks for some.
        yield f".. auto{member.kind}:: {member.path}{'()' * (member.kind == 'exception')}"
        if member.kind == "class":
            yield "   :members:"
            yield "   :special-members: __call__"
            yield "   :member-order: bysource"
        return
    module, _, name = member.path.rpartition(".")
    yield f".. py:data:: {name}"
    yield f"   :module: {module}"
    if len(member.value) <= LONGEST_VALUE:
        yield f"   :value: {member.value}"
    yield ""
    yield f"   {member.comment}".replace("*", r"\*").replace("|", r"\|").replace("`", "``").rstrip()


def _index() -> str:
    lines = ["# API", "", "```{toctree}", ":hidden:", "", "diffjax"]
    lines += [*_all_pages(), "```", "", "| page | has | modules |", "| --- | --- | --- |"]
    lines.append(
        "| [diffjax](diffjax.md) | `import diffjax as dj`: the core's names in one place | |"
    )
    for page, (title, about, _) in _all_pages().items():
        names = [name.removeprefix("diffjax.") for name in _on(page)]
        few = ", ".join(f"`{name}`" for name in names[:3])
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        lines.append(f"| [{title}]({page}.md) | {about} | {few}{more} |")
    return "\n".join(lines) + "\n"


def _top() -> str:
    lines = [
        "# diffjax",
        "",
        "```{eval-rst}",
        ".. automodule:: diffjax",
        "   :no-members:",
        "",
        *(f".. auto{m.kind}:: {m.path}\n" for m in modules()["diffjax"].members),
        "```",
        "",
        "The other names of `dj`, each with where it is documented:",
        "",
        "| `dj.` | is | |",
        "| --- | --- | --- |",
    ]
    for name in diffjax.__all__:
        path = resolve(f"dj.{name}", "")
        if path and path != f"diffjax.{name}":
            role = "mod" if path in modules() else "obj"
            lines.append(f"| `{name}` | {{py:{role}}}`{path}` | {_summary(path)} |")
        elif path in modules():
            lines.append(f"| `{name}` | {{py:mod}}`{path}` | {_summary(path)} |")
    return "\n".join(lines) + "\n"


def _summary(path: str) -> str:
    """The first sentence of a docstring, for a table."""
    text = inspect.getdoc(load(path)) or ""
    return " ".join(text.split("\n\n")[0].split()).replace("|", r"\|")


__all__ = ["PAGES", "documented", "pages"]
