"""The evaluations of a run as a part of its page, from the JSON files of `--mode=evaluate`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffjax.figures import page

# What a distance is called, by the features' name.
_SHORT = {"classifier": "CFD", "inception": "FID"}
# Settings that an evaluation varies -> what the column is called.
_SWEPT = {"scale": "guidance scale", "augmentation_level": "augmentation level"}


def evaluation(folder: Path, problems: list[str]) -> str:
    """All evaluations of a workdir as HTML; "" if there are none.

    Args:
      folder: the workdir.
      problems: gets a sentence for each file that can't be read.
    """
    parts: list[str] = []
    for path in sorted([*folder.glob("evaluation*.json"), *folder.glob("likelihood_*.json")]):
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(report, list):
                parts.append(_sweep(report))
            elif "bits_per_dim" in report:
                parts.append(_likelihood(report))
            elif "psnr" in report:
                parts.append(_reconstruction(report))
            else:
                parts.append(_distances(report))
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            problems.append(f"{path.name} can't be read: {type(error).__name__}: {error}")
            continue
        picture = path.with_suffix(".png")
        if picture.is_file():
            parts.append(page.picture(picture.read_bytes(), picture.stem, alone=True))
        parts.append(page.details(path.name, page.listing(json.dumps(report, indent=2))))
    return "".join(parts)


def _value(value: Any, digits: int = 4) -> str:
    return "" if value is None else f"{value:.{digits}g}"


def _name(report: Mapping[str, Any]) -> str:
    features = report.get("features", "classifier")
    return f"Fréchet distance ({_SHORT.get(features, features)})"


def _floor(report: Mapping[str, Any]) -> str:
    """The distance of real images, with the range of its draws."""
    floor, among = report.get("floor_equal_count"), report.get("floor_equal_count_range")
    if floor is None:
        halves = report.get("floor_halves")
        if halves is None:
            return ""
        each = report.get("floor_halves_images")
        return f"{_value(halves)} between two halves of {each} training images each"
    span = ""
    if among and among[0] != among[1]:
        span = f" ({_value(among[0])} to {_value(among[1])} in 10 draws)"
    return f"{_value(floor)}{span}"


def _distances(report: Mapping[str, Any]) -> str:
    rows: list[Sequence[str]] = [
        (_name(report), _value(report["frechet_distance"]), _floor(report))
    ]
    for key in ("precision", "recall"):
        if report.get(key) is not None:
            rows.append((key, _value(report[key], 3), _value(report.get(f"test_{key}"), 3)))
    count, images = report.get("num_samples"), report.get("num_train_images")
    equal = report.get("floor_equal_count_images")
    about = f"Of step {report.get('step')}: {count} samples against {images} training images."
    if equal:
        about += f" The right column has {equal} test images in the place of samples."
    predicted = report.get("class_counts")
    of_classes = ""
    if predicted:
        accuracy = report.get("classifier_accuracy")
        share = f", right for {accuracy:.1%} of real images" if accuracy else ""
        of_classes = page.details(
            f"Classes of the samples, by a classifier{share}", page.counts(predicted)
        )
    return (
        page.table(("", "samples", "real images"), rows)
        + page.paragraph(about, kind="soft")
        + _sampled(report.get("sample"))
        + "".join(page.paragraph(note, kind="note") for note in report.get("notes", ()))
        + of_classes
    )


def _sampled(sample: Any) -> str:
    """How the samples were drawn, where a config says it."""
    if not sample or "sampler" not in sample:
        return ""
    guidance = sample.get("guidance", "none")
    guided = "" if guidance == "none" else f", {guidance}"
    how = f"Drawn by {sample['sampler']} in {sample.get('steps')} steps{guided}."
    return page.paragraph(how, kind="soft")


def _sweep(reports: Sequence[Mapping[str, Any]]) -> str:
    if not reports:
        return ""
    key = next((name for name in _SWEPT if name in reports[0]), "")
    rows = [
        (
            _value(one.get(key)),
            _value(one.get("frechet_distance")),
            _value(one.get("precision"), 3),
            _value(one.get("recall"), 3),
            _floor(one),
        )
        for one in reports
    ]
    head = (_SWEPT.get(key, ""), _name(reports[0]), "precision", "recall", "real images' distance")
    return page.table(head, rows)


def _likelihood(report: Mapping[str, Any]) -> str:
    bits, error = report["bits_per_dim"], report.get("standard_error")
    spread = "" if error is None else f" ± {error:.2g}"
    rows = [("bits per dimension", f"{bits:.4f}{spread}", "")]
    rows += [(part, f"{value:.4g}", "a part of it") for part, value in report["parts"].items()]
    about = f"Of step {report.get('step')}, given {report.get('given')}: {report.get('what')}."
    of = f"{report.get('of')}; ± is the standard error of the mean over images."
    return (
        page.table((report.get("likelihood", ""), "", ""), rows)
        + page.paragraph(f"{about} Mean over {of}", kind="soft")
    )  # fmt: skip


def _reconstruction(report: Mapping[str, Any]) -> str:
    names = {
        "psnr": "PSNR in dB",
        "ssim": "SSIM",
        "l1": "L1 distance of pixels in [-1, 1]",
        "classifier_frechet_distance": "Fréchet distance (CFD) of reconstructions",
        "embedding_frechet_distance": f"Fréchet distance ({report.get('features')})",
        "perceptual_frechet_distance": "Fréchet distance (perceptual network)",
        "floor": "the same of the original images",
        "codes_used": "share of the codes that are used",
        "codebook_perplexity": "perplexity of the codes",
    }
    rows = [
        (name, _value(report[key])) for key, name in names.items() if report.get(key) is not None
    ]
    about = f"Of step {report.get('step')}: {report['images']} {report.get('split')} images."
    return page.table(("", "reconstructions"), rows) + page.paragraph(about, kind="soft")
