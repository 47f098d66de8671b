"""The samplers' catalogue: what `samplers.md` says of each, kept next to the core's own list.

Names, first sentences and options are read from `diffjax.samplers`; the rest is written here. A
sampler without an entry, or an entry without a sampler, stops the manual's build, and a test counts
the evaluations.
"""

import inspect
from collections.abc import Callable
from typing import NamedTuple

import diffjax as dj

# What a sampler asks the denoiser on a grid of N steps.
EVALUATIONS: dict[str, Callable[[int], int]] = {
    "N": lambda n: n,
    "N + 1": lambda n: n + 1,
    "N + 9": lambda n: n + 9,
    "2N − 1": lambda n: 2 * n - 1,
    "2N − 2": lambda n: 2 * n - 2,
}
# Parameters that all of them have; `schedule` is the grid's.
_COMMON = {"denoise", "jump", "x_T", "x_0", "grid", "key", "cond", "keep_trajectory", "schedule"}


class Entry(NamedTuple):
    """A row.

    Attributes:
      family: the module of `diffjax.sampling.samplers` it is of.
      order: of convergence to the probability-flow ODE, of the part without noise.
      evaluations: a key of `EVALUATIONS` with the default options, or a text where it depends.
      noise: whether it draws noise: "no", "yes" or "with" an option that is off by default.
      use: what it is for, and its source.
    """

    family: str
    order: str
    evaluations: str
    noise: str
    use: str


ENTRIES: dict[str, Entry] = {
    "ancestral": Entry(
        "one_step", "1", "N", "yes",
        "The reverse chain as DDPM has it; every step of the schedule, or 100 and more. The one "
        "that the variational bound is of. Ho et al. 2020, algorithm 2.",
    ),
    "ddim": Entry(
        "one_step", "1", "N", "with eta > 0",
        "The baseline; eta = 0 is the ODE (for encoding, interpolation, distillation), eta = 1 has "
        "the law of `ancestral`, forgives a network's errors and is what `fashion_mnist.py:quick` "
        "samples with, in 50 steps. Song et al. 2021a, equations 12 and 16.",
    ),
    "euler": Entry(
        "one_step", "1", "N", "no",
        "Flows: x + (s − t) velocity on a rectified flow; equal to `ddim` in every geometry. Liu "
        "et al. 2023; Karras et al. 2022, section 3.",
    ),
    "euler_ancestral": Entry(
        "one_step", "1", "N", "yes",
        "k-diffusion's name of `ddim` with eta = 1: same steps, same numbers.",
    ),
    "heun": Entry(
        "one_step", "2", "2N − 1", "no",
        "EDM's own, with `grids.karras`; steady, and no start-up as of a multistep solver. Karras "
        "et al. 2022, algorithm 1.",
    ),
    "dpm_solver_2m": Entry(
        "dpm_multistep", "2", "N", "no",
        "As `dpm_solver_pp_2m`, on eps: unguided models. Lu et al. 2022a's code.",
    ),
    "dpm_solver_3m": Entry(
        "dpm_multistep", "3; 2 as published", "N", "no",
        "As `dpm_solver_pp_3m`, on eps. Lu et al. 2022a's code.",
    ),
    "dpm_solver_pp_2m": Entry(
        "dpm_multistep", "2", "N", "no",
        "The default: 10 to 40 steps, also under strong guidance and thresholding, which act on "
        "x_0. Lu et al. 2022b, algorithm 2.",
    ),
    "dpm_solver_pp_3m": Entry(
        "dpm_multistep", "3; 2 as published", "N", "no",
        "20 steps and more, where accuracy counts. Lu et al. 2022b.",
    ),
    "sde_dpm_solver_pp": Entry(
        "dpm_multistep", "1 to 3", "N", "yes",
        "The SDE in few steps: 20 to 50, where noise helps and `ddim(eta=1)` is too coarse. Lu et "
        "al. 2022b, section 5.",
    ),
    "deis": Entry(
        "multistep", "1 to 3", "N", "no",
        "5 to 20 steps without guidance; variable=\"log_rho\" is diffusers'. Zhang & Chen 2022, "
        "equation 15.",
    ),
    "lms": Entry(
        "multistep", "2 seen; 1 to 4", "N", "no",
        "k-diffusion's linear multistep: `deis` with polynomials in noise / signal.",
    ),
    "ipndm": Entry(
        "multistep", "2 seen; 1 to 4", "N", "no",
        "Very few steps: the least error in `benchmarks/samplers.md` at 10 evaluations. Zhang & "
        "Chen 2022, appendix H.2.",
    ),
    "pndm": Entry(
        "pndm", "2 seen", "N + 9", "no",
        "To reproduce what was made with it; a Runge-Kutta start. Liu et al. 2022, algorithm 2.",
    ),
    "plms": Entry(
        "pndm", "2 seen", "N + 1", "no",
        "What Stable Diffusion 1's folders name (PNDM without its start). Liu et al. 2022, as "
        "latent diffusion's code has it.",
    ),
    "unipc": Entry(
        "unipc", "order + 1", "N", "no",
        "The least error in `benchmarks/samplers.md` from 20 evaluations on, with order=3; its "
        "authors take order=2 under guidance. Zhao et al. 2023, algorithms 1 and 2.",
    ),
    "sa_solver": Entry(
        "sa_solver", "1 to 3, corrected to 4", "N", "yes",
        "An SDE whose noise has a strength tau, within a range of noise levels. Xue et al. 2023, "
        "algorithm 1.",
    ),
    "dpm_solver_2": Entry(
        "singlestep", "2", "N", "no",
        "A step keeps nothing of the one before, so that the guidance or the condition may change "
        "on the way. Lu et al. 2022a, algorithm 4.",
    ),
    "dpm_solver_3": Entry(
        "singlestep", "3", "N", "no",
        "As `dpm_solver_2`; 15 evaluations and more. Lu et al. 2022a, algorithm 5.",
    ),
    "dpm_solver_pp_2s": Entry(
        "singlestep", "2", "N", "no",
        "As `dpm_solver_2`, on x_0: with guidance. Lu et al. 2022b, algorithm 1.",
    ),
    "dpm_solver_pp_3s": Entry(
        "singlestep", "3", "N", "no",
        "As `dpm_solver_3`, on x_0. Lu et al. 2022b's code.",
    ),
    "dpm2": Entry(
        "singlestep", "2", "N", "no",
        "k-diffusion's DPM2, the midpoint rule in noise / signal. Karras et al. 2022.",
    ),
    "midpoint": Entry(
        "runge_kutta", "2", "N", "no",
        "Flows; its last step needs no estimate at clean data.",
    ),
    "heun3": Entry("runge_kutta", "3", "N", "no", "Flows; three stages. Heun 1900."),
    "rk4": Entry(
        "runge_kutta", "4", "2N − 2", "no",
        "Flows, as a reference: accurate when there are many evaluations. N is even here; 2N − 1 "
        "for odd N.",
    ),
    "edm_stochastic": Entry(
        "stochastic", "2", "2N − 1", "yes",
        "EDM's stochastic sampler, 50 steps and more; its four settings are tuned for each data "
        "set. Karras et al. 2022, algorithm 2.",
    ),
    "euler_churn": Entry(
        "stochastic", "1", "N", "yes",
        "`euler` with EDM's churn, k-diffusion's `sample_euler` with s_churn.",
    ),
    "predictor_corrector": Entry(
        "stochastic", "1", "2N − 1", "yes",
        "Ancestral steps, each followed by Langevin steps: score models of many steps. Song et "
        "al. 2021b, algorithms 2 to 5.",
    ),
    "restart": Entry(
        "stochastic", "2", "2N − 1, and 2 for each step taken again", "yes",
        "Heun's steps that go back up in noise now and then: the noise of an SDE, the accuracy of "
        "an ODE. Xu et al. 2023, algorithm 1.",
    ),
    "dpm2_churn": Entry(
        "two_stage", "2", "2N − 1", "yes",
        "`dpm2` with EDM's churn, k-diffusion's `sample_dpm_2` with s_churn.",
    ),
    "dpm2_ancestral": Entry(
        "two_stage", "2", "2N − 1", "yes",
        "k-diffusion's `sample_dpm_2_ancestral`: images made with it elsewhere.",
    ),
    "dpm_solver_pp_2s_ancestral": Entry(
        "two_stage", "2", "2N − 1", "yes",
        "k-diffusion's `sample_dpmpp_2s_ancestral`: images made with it elsewhere.",
    ),
    "adaptive": Entry(
        "adaptive", "3", "3 a try, and 1", "no",
        "To a tolerance instead of a number of steps: ground truth, and models of which nothing "
        "is known. Bogacki & Shampine 1989.",
    ),
    "dpm_solver_adaptive": Entry(
        "dpm_adaptive", "2 or 3", "order a try", "no",
        "The same with DPM-Solver's steps and k-diffusion's controller. Lu et al. 2022a, section "
        "3.4.",
    ),
    "ddim_inversion": Entry(
        "inversion", "1", "N", "no",
        "From data to the noise that `ddim` makes them of; iterations=3 or so is nearly exact, "
        "for N (1 + iterations) evaluations. Song et al. 2021a, section 4.3; Pan et al. 2023.",
    ),
    "multistep_inversion": Entry(
        "inversion", "2", "N", "no",
        "The same by a multistep solver: a quarter to a hundredth of DDIM's error on a mixture of "
        "Gaussians, for as many evaluations. Zhang & Chen 2022, equation 15.",
    ),
    "consistency": Entry(
        "few_step", "", "N", "yes",
        "Consistency models and distribution matching, 1 to 4 steps. Song et al. 2023, algorithm "
        "1.",
    ),
    "flow_map": Entry(
        "few_step", "", "N", "no",
        "Flow maps (mean flow, shortcut) in the denoiser's place, 1 to 4 steps. Geng et al. 2025.",
    ),
}  # fmt: skip


def check() -> None:
    """Raises ValueError where the catalogue and `diffjax.samplers` have not the same samplers."""
    known = {name for name in dj.samplers.__all__ if inspect.isfunction(getattr(dj.samplers, name))}
    if known != set(ENTRIES):
        raise ValueError(
            f"docs/concepts/catalogue.py lacks {sorted(known - set(ENTRIES))} and has "
            f"{sorted(set(ENTRIES) - known)}, which are no samplers"
        )


def options(name: str) -> str:
    """The parameters that are a sampler's own, with their defaults."""
    parameters = inspect.signature(getattr(dj.samplers, name)).parameters.values()
    own = [p for p in parameters if p.name not in _COMMON]
    return " ".join(f"`{p.name}={p.default!r}`" for p in own)


def table(*families: str) -> str:
    """The Markdown of the samplers of some modules, in their order."""
    check()
    lines = [
        "| sampler, options | order | evaluations | noise | when; source |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, entry in ENTRIES.items():
        if entry.family in families:
            reference = f"{{py:obj}}`{name} <diffjax.samplers.{name}>`"
            cells = (f"{reference} {options(name)}".strip(), *entry[1:])
            lines.append(f"| {' | '.join(cells)} |")
    if len(lines) == 2:
        raise ValueError(f"no sampler is of {', '.join(families)}")
    return "\n".join(lines)
