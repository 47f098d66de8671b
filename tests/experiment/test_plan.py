"""A plan sees what a network recomputes; a run may change it as it goes on."""

import json

import pytest

from diffjax.checkpoints import workdir
from diffjax.errors import UserError
from diffjax.experiment import defaults, plan, schema


def test_what_is_computed_anew_is_work_and_no_memory(tiny_config):
    tiny_config.model.multipliers = (1,)
    tiny_config.train.batch_size = 2048

    def planned(remat):
        tiny_config.model.remat = remat
        return plan.plan_here(tiny_config)

    plain, saving = planned("none"), planned("full")
    assert plain.of_temporaries > 1.5 * saving.of_temporaries
    # A step is forwards and twice that backwards; now forwards twice, but for what is no block.
    assert 1.2 * plain.flops < saving.flops < 4 / 3 * plain.flops


def test_every_block_of_a_scanned_transformer_is_counted():
    def flops(depth):
        config = defaults.diffusion()
        config.data.name, config.model.name = "digits", "dit"
        config.model.update(width=64, depth=depth, head_channels=16, dtype="float32")
        config.train.batch_size = 64
        config.parallel.compile = False
        return plan.plan_here(schema.complete(config)).flops

    two, four, six = map(flops, (2, 4, 6))
    assert four - two == pytest.approx(six - four, rel=0.01)
    # Forwards and twice that backwards; of a token, 2 FLOPs for each weight of qkv, out and mlp.
    weights = 4 * 64 * 64 + 3 * 64 * (2 * 4 * 64 // 3)
    assert four - two == pytest.approx(2 * 3 * 2 * weights * 64 * 16, rel=0.2)


@pytest.mark.parametrize("before", ["none", False, True])
def test_a_run_goes_on_with_another_policy(tiny_config, tmp_path, before):
    stored = tiny_config.to_dict()
    stored["model"]["remat"] = before
    (tmp_path / "config.json").write_text(json.dumps(stored))
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    tiny_config.model.remat = "full"
    assert workdir.check(tmp_path, tiny_config)
    tiny_config.model.dropout = 0.5
    with pytest.raises(UserError, match=r"config\.model\.dropout = 0\.0, not 0\.5"):
        workdir.check(tmp_path, tiny_config)
