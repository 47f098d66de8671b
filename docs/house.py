"""The drawing of the house on the page of the architecture: imports go down, or to the right."""

from html import escape
from typing import NamedTuple


class Room(NamedTuple):
    """A box: its modules, what is in them, and its share of the storey's width."""

    names: tuple[str, ...]
    has: str
    share: float = 1.0


# From the top: (what a storey may import besides those below it, its rooms).
STOREYS: tuple[tuple[str, tuple[Room, ...]], ...] = (
    (
        "absl",
        (
            Room(("__main__", "main"), "argv to one command and its exit code", 1.2),
            Room(("playground",), "a page to play with", 0.8),
            Room(("flags", "commands"), "flags; one file a mode"),
        ),
    ),
    (
        "ml_collections",
        (Room(("experiment",), "the only room that reads a config: schema, specs, builders"),),
    ),
    (
        "optax, in training",
        (
            Room(("training",), "step, objectives, loop"),
            Room(("evaluation",), "distances, bits/dim"),
            Room(("inference",), "a trained model without them", 1.2),
            Room(("stable_diffusion",), "its folders and files", 1.1),
        ),
    ),
    (
        "orbax",
        (
            Room(("latent",), "the space of x_0"),
            Room(("checkpoints",), "store, restore"),
            Room(("distributed",), "devices, processes"),
        ),
    ),
    (
        "matplotlib, Pillow",
        (
            Room(("figures",), "pictures"),
            Room(("accelerator",), "kernels for CPUs"),
            Room(("conditioning", "perceptual"), "texts, maps; networks that judge", 1.6),
        ),
    ),
    (
        "flax; grain, TFDS",
        (
            Room(("models",), "networks and their blocks; no diffusion maths"),
            Room(("data",), "sources, and batches by (seed, step)"),
        ),
    ),
    (
        "jax, numpy, jaxtyping",
        (
            Room(("losses",), "weightings, times", 0.8),
            Room(("likelihood", "prediction", "self_conditioning"), "bounds; a model's parts", 1.7),
            Room(("sampling",), "samplers, guidance, editing", 1.1),
        ),
    ),
    (
        "the same",
        (
            Room(("flow_maps", "denoisers"), "estimates of x_0 and eps", 1.1),
            Room(("images", "grids", "categorical", "augmentation"), "times; other data", 1.4),
            Room(("parametrisations", "posthoc_ema", "ema"), "outputs; averages", 1.4),
        ),
    ),
    (
        "the same",
        (
            Room(("rng", "process"), "streams; q", 0.8),
            Room(
                ("torch_files", "torch_pickle", "progress", "files", "arguments"),
                "files; waits; what is given",
                1.6,
            ),
            Room(("schedules",), "t to (signal, noise)", 0.9),
            Room(("errors", "checks", "types"), "", 0.8),
        ),
    ),
)
CORE = 3  # storeys, from below
WIDTH, LEFT, RIGHT, HEIGHT, GAP = 860.0, 30.0, 136.0, 54.0, 12.0


def svg() -> str:
    """The drawing, in the colours of the page, light or dark."""
    height = len(STOREYS) * (HEIGHT + GAP) + GAP + 16
    lines = [
        f'<svg class="house" viewBox="0 0 {WIDTH:g} {height:g}" role="img" '
        'xmlns="http://www.w3.org/2000/svg" aria-label="The rooms of diffjax, one above another; '
        'each may import what is below it">',
        _STYLE,
    ]
    core = GAP + (len(STOREYS) - CORE) * (HEIGHT + GAP) - GAP / 2
    lines.append(
        f'<rect class="core" x="{LEFT - 8:g}" y="{core:g}" width="{WIDTH - LEFT - RIGHT + 16:g}" '
        f'height="{CORE * (HEIGHT + GAP):g}" rx="6"/>'
        f'<text class="label" x="{LEFT - 4:g}" y="{core + CORE * (HEIGHT + GAP) + 14:g}">the '
        "functional core: import diffjax as dj</text>"
    )
    for i, (packages, rooms) in enumerate(STOREYS):
        y = GAP + i * (HEIGHT + GAP)
        whole = WIDTH - LEFT - RIGHT - GAP * (len(rooms) - 1)
        total = sum(room.share for room in rooms)
        x = LEFT
        for room in rooms:
            width = whole * room.share / total
            names = _wrapped(room.names, width)
            lines.append(
                f'<rect class="room" x="{x:.1f}" y="{y:g}" width="{width:.1f}" '
                f'height="{HEIGHT:g}" rx="4"/>'
            )
            texts = [("name", name) for name in names] + [("has", room.has)] * bool(room.has)
            step = 15.0
            first = y + HEIGHT / 2 - step * (len(texts) - 1) / 2 + 4.5
            for j, (kind, text) in enumerate(texts):
                lines.append(
                    f'<text class="{kind}" x="{x + width / 2:.1f}" y="{first + j * step:.1f}">'
                    f"{escape(text)}</text>"
                )
            x += width + GAP
        lines.append(
            f'<text class="label" x="{WIDTH - RIGHT + 16:g}" y="{y + HEIGHT / 2 + 4:g}">'
            f"{escape(packages)}</text>"
        )
    bottom = height - 24
    lines.append(f'<path class="arrow" d="M10 {GAP:g} V{bottom:g} m-5 -8 l5 8 l5 -8"/></svg>')
    return "\n".join(lines)


def _wrapped(names: tuple[str, ...], width: float) -> list[str]:
    """Names in lines of at most the width, at some 7.4 units a character."""
    lines = [""]
    for name in names:
        longer = f"{lines[-1]}, {name}".removeprefix(", ")
        if len(longer) * 7.4 <= width - 8 or not lines[-1]:
            lines[-1] = longer
        else:
            lines[-1] += ","
            lines.append(name)
    return lines


_STYLE = """<style>
.house { width: 100%; height: auto; margin: 1rem 0; }
.house rect { fill: none; stroke: var(--pst-color-border, #888); }
.house .room { fill: var(--pst-color-surface, #f4f4f4); }
.house .core { stroke: var(--pst-color-primary, #176de8); stroke-dasharray: 5 4; }
.house text { fill: var(--pst-color-text-base, currentColor); font: 12px sans-serif; }
.house .name { font: 600 12px monospace; text-anchor: middle; }
.house .has { text-anchor: middle; fill: var(--pst-color-text-muted, #555); }
.house .label { fill: var(--pst-color-text-muted, #555); font-size: 11px; }
.house .arrow { fill: none; stroke: var(--pst-color-text-muted, #555); stroke-width: 1.5; }
</style>"""
