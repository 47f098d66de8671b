"""`--mode=evaluate`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffjax import figures
from diffjax.commands import Request
from diffjax.commands.setup import (
    parameters_of,
    resolve,
    results_folder,
    say_if_other_data,
    say_kernels,
)
from diffjax.distributed import processes
from diffjax.errors import UserError
from diffjax.experiment.evaluation import features
from diffjax.experiment.restore import restore_params
from diffjax.experiment.schema import is_cascade, section
from diffjax.files import atomic_write, cache_folder
from diffjax.progress import note_if_long


def run(request: Request) -> int:
    """Runs the evaluation of config.evaluate on the config's data."""
    if is_cascade(request.config):
        return _cascade(request)
    with note_if_long("reading the data set and building the model"):
        setup = resolve(request.config, trains=False)
    say_kernels(setup)
    say_if_other_data(setup, request.workdir)
    measure = {
        "autoencoder": _reconstruction,
        "pixelcnn": _pixelcnn,
        "gan": _distances,
        "diffusion": _diffusion,
    }[section(request.config)]
    return measure(setup, request)


def _diffusion(setup: Any, request: Request) -> int:
    wanted = request.config.evaluate.likelihood != "none"
    return (_likelihood if wanted else _distances)(setup, request)


def _pixelcnn(setup: Any, request: Request) -> int:
    from diffjax.experiment.pixelcnn import wants_likelihood

    wanted = wants_likelihood(request.config)
    return (_exact_likelihood if wanted else _distances)(setup, request)


def _distances(setup: Any, request: Request) -> int:
    if not setup.about.images:
        raise UserError(
            f"config.data.name = {setup.config.data.name!r} holds arrays of {setup.about.shape}, "
            "and Fréchet distances need images: use diffjax.load(workdir).log_likelihood, or your "
            "own metric"
        )
    scales = setup.config.evaluate.get("scales", ())  # of diffusion models alone
    at_scales = [(scale, setup.at_guidance_scale(scale)) for scale in scales]
    network = features(setup.config, setup.about.class_names)  # before minutes of sampling
    step, params = _restored(setup, request.workdir)
    folder = results_folder(request)
    if not scales:
        return _one_report(_report(setup, params, step, network), folder)
    return _swept(
        _Sweep("scale", "scale", "evaluation_scales", "guidance scale w (1: none)"),
        [(scale, partial(_report, one, params, step, network)) for scale, one in at_scales],
        folder,
    )


def _restored(setup: Any, workdir: Path) -> tuple[int, Any]:
    """The step and the parameters of a run; without one those of a folder's model."""
    if getattr(setup, "folder", None) is None:
        return restore_params(setup, workdir)
    return parameters_of(setup.model, workdir)


def _cascade(request: Request) -> int:
    """Distances between a cascade's samples and its last stage's data, by augmentation level."""
    from diffjax.experiment import cascade

    setup = cascade.resolve(request.config)
    levels = setup.config.evaluate.augmentation_levels
    at_levels = [(level, setup.at_level(level)) for level in levels]
    network = features(setup.config, setup.about.class_names)
    of_last_stage = setup.load_data()
    folder = results_folder(request)

    def report(one: Any) -> dict[str, Any]:
        how = {"cascade": one.config.cascade.to_dict()}
        measured = of_last_stage._replace(config=one.config, generator=one.generator)
        return _report(measured, one.params, one.step, network) | how

    if not levels:
        return _one_report(report(setup), folder)
    return _swept(
        _Sweep(
            "augmentation_level",
            "level",
            "evaluation_levels",
            "augmentation level s of the last stage's low-resolution image (0: no noise)",
        ),
        [(level, partial(report, one)) for level, one in at_levels],
        folder,
    )


class _Sweep(NamedTuple):
    """A setting of sampling that an evaluation varies.

    Attributes:
      key: of its value in a report.
      name: in the lines that are printed.
      stem: of the files.
      label: of the plot's axis.
    """

    key: str
    name: str
    stem: str
    label: str


def _one_report(report: dict[str, Any], folder: Path) -> int:
    _write_json(folder / "evaluation.json", report)
    print(json.dumps(report, indent=2))
    return 0


def _swept(
    sweep: _Sweep, at: Sequence[tuple[float, Callable[[], dict[str, Any]]]], folder: Path
) -> int:
    """A report at each value of a setting, to a JSON and a plot."""
    reports = []
    for value, report_at in at:
        print(f"{sweep.name} {value:g}:")
        reports.append({sweep.key: value, **report_at()})
        _write_json(folder / f"{sweep.stem}.json", reports)  # keep partial results
    if not processes.is_primary():
        return 0
    figures.plot_scales(folder / f"{sweep.stem}.png", reports, over=sweep.key, label=sweep.label)
    for report in reports:
        distance = report["frechet_distance"]
        print(f"{sweep.name} {report[sweep.key]:g}: Fréchet distance {distance:.4f}")
    print(f"wrote {folder / sweep.stem}.json\nwrote {folder / sweep.stem}.png")
    return 0


def _likelihood(setup: Any, request: Request) -> int:
    from diffjax.experiment.likelihood import drawn_schedules, likelihood, restore_learned

    if setup.folder is not None:
        raise UserError(
            f"config.evaluate.likelihood = {request.config.evaluate.likelihood!r} is not supported "
            "for a model of texts: set it to 'none', for distances of samples"
        )
    step, params, learned = restore_learned(setup, request.workdir)
    folder = results_folder(request)
    measured = likelihood(setup, learned)
    report, each, written = _bits_per_dim(setup, measured, step, params, folder)
    if measured.name != "ode" and processes.is_primary():
        figures.plot_bound(
            folder / f"likelihood_{measured.name}.png",
            each,
            title=f"{report['bits_per_dim']:.3f} bits/dim",
            schedules=drawn_schedules(setup, learned),
        )
        written.append(f"likelihood_{measured.name}.png")
    print("wrote " + ", ".join(str(folder / file) for file in written))
    return 0


def _exact_likelihood(setup: Any, request: Request) -> int:
    from diffjax.experiment.pixelcnn import likelihood

    step, params = restore_params(setup, request.workdir)
    folder = results_folder(request)
    _, _, written = _bits_per_dim(setup, likelihood(setup), step, params, folder)
    print("wrote " + ", ".join(str(folder / file) for file in written))
    return 0


def _bits_per_dim(
    setup: Any, measured: Any, step: int, params: Any, folder: Path
) -> tuple[dict[str, Any], dict[str, np.ndarray], list[str]]:
    """The report of a likelihood, its values of each image, and the files they are written to."""
    from diffjax.evaluation.likelihood import evaluate_likelihood

    config = setup.config
    test = setup.load_held_out()
    report, each = evaluate_likelihood(
        lambda batch, numbers: measured.batch(params, batch, numbers),
        test or setup.source,
        what=measured.what,
        split="test" if test else "training",
        num_images=config.evaluate.images,
        batch_size=config.sample.batch_size,
    )
    report = {
        "step": step,
        "likelihood": config.evaluate.likelihood,
        "given": "the class" if setup.conditions.num_classes else "nothing",
        **report,
    }
    name = f"likelihood_{measured.name}"
    _write_json(folder / f"{name}.json", report)
    _write_arrays(folder / f"{name}.npz", each)
    print(json.dumps(report, indent=2))
    return report, each, [f"{name}.json", f"{name}.npz"]


def _reconstruction(setup: Any, request: Request) -> int:
    from diffjax.evaluation.reconstruction import codebook_use, evaluate_reconstruction
    from diffjax.experiment.reconstructions import reconstructed

    config = setup.config
    names = setup.source.class_names
    # Without classes, "auto" is the perceptual network that the autoencoder was trained with.
    is_perceptual = config.evaluate.features.strip() == "auto" and len(names) < 2
    network = None if is_perceptual else features(config, names)
    step, frozen = restore_params(setup, request.workdir)
    folder = results_folder(request)

    def reconstruct(images: Any) -> Any:
        return reconstructed(setup, frozen, images, batch_size=config.sample.batch_size)

    test = setup.load_held_out()
    report = {"step": step} | evaluate_reconstruction(
        reconstruct,
        train=setup.source,
        test=test,
        num_images=config.evaluate.num_samples,
        cache_dir=cache_folder() / "evaluation",
        network=network,
        features=setup.objective.reconstruction_loss.features,
    )
    codes = setup.codes(frozen, test or setup.source)
    if codes is not None:
        report |= codebook_use(codes, len(frozen.codebook.codes))
    _write_json(folder / "evaluation.json", report)
    print(json.dumps(report, indent=2))
    return 0


def _report(setup: Any, params: Any, step: int | str, network: Any) -> dict[str, Any]:
    """Distances between a model's samples and its data, in JSON types."""
    from diffjax.evaluation.report import evaluate

    config = setup.config
    batch_size = min(config.sample.batch_size, config.evaluate.num_samples)

    def generate(start: int, count: int) -> Any:
        # A smaller last batch is drawn at the full size, to avoid a second compilation.
        draw = setup.generator(params, start=start, count=count, batch_size=batch_size)
        return draw.images

    draw = _drawn_together(generate, config.evaluate.num_samples, batch_size)
    if not processes.is_primary():
        return {}
    report = evaluate(
        draw,
        name=config.data.name,
        train=setup.source,
        load_test=setup.load_held_out,
        cache_dir=cache_folder() / "evaluation",
        network=network,
        num_samples=config.evaluate.num_samples,
        batch_size=batch_size,
    )
    return {"step": step, "sample": config.sample.to_dict(), **report}


def _drawn_together(
    generate: Callable[[int, int], Any], count: int, batch_size: int
) -> Callable[[int, int], Any]:
    """With several processes, draws all samples first, since only process 0 evaluates them."""
    if not processes.is_multiprocess():
        return generate
    drawn = [
        generate(start, min(batch_size, count - start)) for start in range(0, count, batch_size)
    ]
    return lambda start, _: drawn[start // batch_size]


def _write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    if processes.is_primary():
        atomic_write(path, lambda file: np.savez_compressed(file, **arrays))


def _write_json(path: Path, content: Any) -> None:
    text = json.dumps(content, indent=2) + "\n"
    if processes.is_primary():
        atomic_write(path, lambda file: file.write(text.encode()))
