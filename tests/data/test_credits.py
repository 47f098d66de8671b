"""What is known of a data set's authors and licence."""

import json

from diffjax.data import credits


def test_the_sets_that_come_with_diffjax():
    assert "arXiv:1708.07747" in credits.of("fashion_mnist")
    assert credits.of("tfds:fashion_mnist") == credits.of("fashion_mnist")
    assert "Alpaydin" in credits.of("digits")


def test_a_prepared_set_has_its_own(tmp_path):
    version = tmp_path / "mine" / "1.0.0"
    version.mkdir(parents=True)
    (version / "features.json").write_text("{}")
    info = {"citation": "@article{mine}", "redistributionInfo": {"license": "CC BY 4.0"}}
    (version / "dataset_info.json").write_text(json.dumps(info))
    assert credits.of("tfds:mine", str(tmp_path)) == "CC BY 4.0\n@article{mine}"
    (version / "dataset_info.json").write_text("{")
    assert credits.of("tfds:mine", str(tmp_path)) == ""
    assert credits.of("tfds:other", str(tmp_path)) == ""


def test_a_folder_has_its_files(tmp_path):
    (tmp_path / "CREDITS.txt").write_text("By several painters")
    (tmp_path / "LICENSE").write_text("CC0")
    (tmp_path / "licences.png").write_text("a picture")
    assert credits.of(f"folder:{tmp_path}") == "By several painters\nCC0"
    assert credits.of("my_set:pictures", str(tmp_path)) == "By several painters\nCC0"
    (tmp_path / "LICENSE").write_text("x" * 10_000)
    assert len(credits.of(f"folder:{tmp_path}")) < 2100


def test_nothing_is_known_of_others(tmp_path):
    assert credits.of("my_set:pictures") == ""
    assert credits.of(f"folder:{tmp_path / 'none'}") == ""
