"""Bad input of a benchmark is one line and exit code 2."""

import runpy
import sys

import pytest

MISSING = "--workdir=/nonexistent"
EMOJI, AVATARS = (f"--config=examples/{n}/text_to_image.py:tiny" for n in ("emoji", "avatars"))
GARMENTS = "--config=experiments/fashion_mnist_conditional.py:quick"

PAIRS = [
    word
    for name, kind in (("pixels", ""), ("latents", "_latent"), ("first_stage", "_autoencoder"))
    for word in (f"--{name}", f"experiments/fashion_mnist{kind}.py", "/nonexistent")
]


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("avatars", [AVATARS, MISSING]),
        ("avatars", [AVATARS, MISSING, "--prompts=/nonexistent.txt"]),
        ("few_step", ["--teacher=/nonexistent"]),
        ("latent_against_pixels", PAIRS),
        ("obedience", [EMOJI, MISSING]),
        ("objectives", ["--config=/nonexistent.py"]),
        ("prior", ["--config=examples/emoji/prior.py:tiny", MISSING]),
        ("restoration", [GARMENTS, MISSING]),
        ("super_resolution", ["--upscaler=/nonexistent"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(module, arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"benchmarks.{module}", run_name="__main__")
    lines = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 2
    assert "error: " in lines[-1] and "Traceback" not in "".join(lines)
