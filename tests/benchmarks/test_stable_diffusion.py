"""The benchmark of Stable Diffusion, with a tiny folder in the place of the full one."""

import importlib.util
from pathlib import Path

import pytest

from benchmarks.stable_diffusion import __main__ as benchmark


@pytest.mark.slow
def test_every_side_loads_the_folder(tmp_path, capfd):
    for name in ("torch", "diffusers", "transformers"):
        pytest.importorskip(name)
    path = Path(__file__).parents[1] / "stable_diffusion" / "tiny.py"
    spec = importlib.util.spec_from_file_location("tests_benchmarks_tiny", path)
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    tiny.write(tmp_path / "sd", "sd15")
    given = ["--folder", str(tmp_path / "sd"), "--tasks", "load", "--dtypes", "float32"]
    assert benchmark.main(given) == 0
    rows = [line for line in capfd.readouterr().out.splitlines() if line.startswith("|")][2:]
    sides = [row.split("|")[1].strip() for row in rows]
    assert sides == ["diffjax auto float32", "diffusers eager float32"]
    for row in rows:
        seconds, ratio = row.split("|")[2:4]
        assert float(seconds.removesuffix("s ")) > 0 and float(ratio) >= 0


def test_an_unknown_task_is_an_error_of_usage(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        benchmark.main(["--folder", str(tmp_path), "--tasks", "sing"])
    assert ended.value.code == 2 and "sing" in capsys.readouterr().err
