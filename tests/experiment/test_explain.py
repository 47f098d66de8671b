"""--mode=config and --help=key: what a config comes to, and what its keys mean."""

import pytest

from diffjax.errors import UserError
from diffjax.experiment import backbone_keys, explain, schema
from diffjax.main import main


def test_the_listing_marks_what_differs(tiny_flags, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*tiny_flags, "--mode=config", "--config.sample.seed=7"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert "* config.sample.seed = 7  # default 0" in out
    assert "  config.sample.sampler = 'dpm_solver_pp_2m'" in out
    assert "* config.model.channels = 8  # default 96" in out
    keys = [line.split()[1] for line in out[:-1] if line.startswith("*")]
    assert out[-1] == f"{len(keys)} of {len(out) - 1} keys differ from their defaults (*)"
    assert not list(tmp_path.iterdir())  # nothing is written


def test_a_config_that_is_wrong_is_not_listed(tiny_flags, capsys):
    assert main([*tiny_flags, "--mode=config", "--config.train.steps=0"]) == 2
    assert "config.train.steps = 0: expected a whole number >= 1" in capsys.readouterr().err


@pytest.mark.parametrize("prefix", ["", "config.", "--config."])
def test_a_key_is_explained_with_its_names(capsys, prefix):
    assert main([f"--help={prefix}sample.sampler"]) == 0
    out = capsys.readouterr().out
    assert "default   'dpm_solver_pp_2m'" in out and "ddim(eta=0.0)" in out
    assert "'module:Name(argument=value)': a function (denoise, x_T" in out


def test_every_key_is_explained_and_every_named_table_exists():
    tables = (
        *(kind.keys for kind in schema.KINDS.values()),
        *backbone_keys.NETWORK_FIELDS.values(),
    )
    for table in tables:
        for key in table:
            assert table[key].meaning in explain.explain(key)
    named = {key for table in tables for key in table}
    assert explain.TABLES.keys() | explain.DOORS.keys() <= named


@pytest.mark.parametrize(("key", "near"), [("train.step", "train.steps"), ("ema", "ema.sigma_rel")])
def test_an_unknown_key_names_the_nearest(key, near):
    with pytest.raises(UserError, match=f"--help={key}: there is no such key: expected .*{near}"):
        explain.explain(key)


def test_a_config_finds_what_is_beside_it(tmp_path, capsys, monkeypatch):
    (tmp_path / "my_base_config.py").write_text(
        "from diffjax.experiment import defaults\n\n\ndef get_config():\n"
        "    config = defaults.diffusion()\n    config.data.name = 'digits'\n    return config\n"
    )
    (tmp_path / "child.py").write_text(
        "import my_base_config\n\n\ndef get_config():\n    return my_base_config.get_config()\n"
    )
    monkeypatch.chdir("/")
    assert main([f"--config={tmp_path / 'child.py'}", "--mode=config"]) == 0
    assert "* config.data.name = 'digits'" in capsys.readouterr().out
