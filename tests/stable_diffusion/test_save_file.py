"""Files of the original layout that are written, against those that diffusers' converters read."""

import numpy as np
import pytest
import safetensors

from diffjax import parametrisations, schedules
from diffjax.errors import UserError
from diffjax.stable_diffusion import families, save
from diffjax.stable_diffusion.folder import load_folder
from diffjax.stable_diffusion.save_file import save_file
from tests.stable_diffusion.test_single_file import check_same_model, file_of, original

FIXTURES = file_of, original
FULL_FAMILIES = dict(families.FAMILIES)


@pytest.mark.parametrize("name", ("sd15", "sd21", pytest.param("sdxl", marks=pytest.mark.slow)))
def test_a_written_file_is_the_original_one(original, file_of, folders, tmp_path, name):
    """The tensors whose names are confirmed by diffusers' converters."""
    _, state, folder = file_of(name)
    prediction = {"prediction": "v_prediction"} if name == "sd21" else {}
    loaded = load_folder(folder)
    path = save_file(loaded, tmp_path / "written.safetensors")
    with safetensors.safe_open(path, "numpy") as file:
        found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    missing = {n for n in state.keys() ^ found.keys() if not n.endswith(("ids", "logit_scale"))}
    assert not missing
    for key, array in found.items():
        np.testing.assert_array_equal(array, state[key].numpy(), err_msg=key)
    check_same_model(load_folder(path, tokenizer=folder / "tokenizer", **prediction), loaded)
    if name == "sd15":
        of_v = loaded.scheduler.prediction._replace(parametrisation=parametrisations.v)
        marked = save_file(save.with_process(loaded, of_v), tmp_path / "v.safetensors")
        read = load_folder(marked, tokenizer=folder / "tokenizer")
        assert read.scheduler.prediction.parametrisation.name == "v"


def test_what_is_not_written_as_a_file(file_of, tmp_path, monkeypatch):
    _, _, folder = file_of("sd15")
    loaded = load_folder(folder)
    with pytest.raises(UserError, match=r"name it model\.safetensors"):
        save_file(loaded, tmp_path / "model.ckpt")
    linear = loaded.scheduler.prediction._replace(schedule=schedules.linear_beta(1000))
    with pytest.raises(UserError, match="another schedule or prediction"):
        save_file(save.with_process(loaded, linear), tmp_path / "x.safetensors")
    monkeypatch.setattr(families, "FAMILIES", FULL_FAMILIES)
    with pytest.raises(UserError, match="of no family that files of the original layout"):
        save_file(loaded, tmp_path / "x.safetensors")
    assert not list(tmp_path.glob("x*"))
