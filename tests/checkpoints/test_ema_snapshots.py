"""Stored averages: what comes back, what is rebuilt from them, and what faults leave."""

import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import ema
from diffjax.checkpoints import ema_snapshots
from diffjax.errors import UserError
from diffjax.posthoc_ema import Profile

WIDTHS = (0.05, 0.1)


def params(value, size=3):
    return {"conv": {"kernel": jnp.full((2, size), value), "bias": jnp.full(size, -value)},
            "file": [jnp.float32(value)]}  # fmt: skip


LIKE = jax.eval_shape(lambda: params(0.0))


@pytest.fixture
def folder(tmp_path):
    """Two widths at steps 10, 20, ..., 60 of parameters that drift, as a run would leave them."""
    folder = tmp_path / "ema"
    averages = {width: np.zeros(()) for width in WIDTHS}
    for step in range(60):
        for width in WIDTHS:
            decay = ema.power_decay(step, sigma_rel=width)
            averages[width] = ema.update(averages[width], drift(step), decay=float(decay))
        if (step + 1) % 10 == 0:
            ema_snapshots.save(folder, step + 1, {w: params(float(averages[w])) for w in WIDTHS})
    return folder


def drift(step):
    return 5 + np.sin(step / 9) + step / 20


def one_line(caught):
    return "\n" not in str(caught.value)


def test_what_is_saved_is_listed_and_comes_back(tmp_path):
    tree = {"a": np.linspace(-1, 1, 7, dtype=np.float32).reshape(7, 1), "b": (np.float32(0.1),)}
    written = ema_snapshots.save(tmp_path / "ema", 1200, {0.1: tree, 0.05: {"half": np.ones(2)}})
    ema_snapshots.save(tmp_path / "ema", 30, {1e-5: {"half": jnp.ones(2, jnp.bfloat16)}})
    (tmp_path / "ema" / "notes.txt").write_text("mine")
    found = ema_snapshots.listing(tmp_path / "ema")
    assert [s.profile for s in found] == [
        Profile(30, 1e-5),
        Profile(1200, 0.05),
        Profile(1200, 0.1),
    ]
    assert {s.path for s in written} < {s.path for s in found}
    back = ema_snapshots.load(found[2].path, tree)
    jax.tree.map(np.testing.assert_array_equal, back, tree)
    assert jax.tree.leaves(ema_snapshots.load(found[0].path, {"half": np.ones(2)}))[0].dtype == "f4"
    # Another reader of the format.
    with np.load(found[2].path, allow_pickle=False) as stored:
        np.testing.assert_array_equal(stored["['a']"], tree["a"])


def test_a_stored_average_is_rebuilt_from_its_own_file(folder):
    rebuilt = ema_snapshots.rebuild(folder, LIKE, sigma_rel=0.1, step=40)
    assert [s.profile for s in rebuilt.used] == [Profile(40, 0.1)]
    assert rebuilt.step == 40 and rebuilt.residual < 1e-6
    stored = ema_snapshots.load(rebuilt.used[0].path, LIKE)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), rebuilt.params, stored)


def test_another_length_is_rebuilt_in_the_types_asked_for(folder):
    exact = np.zeros(())
    for step in range(60):
        decay = ema.power_decay(step, sigma_rel=0.075)
        exact = ema.update(exact, drift(step), decay=float(decay))
    rebuilt = ema_snapshots.rebuild(folder, LIKE, sigma_rel=0.075)
    assert rebuilt.step == 60 and 1e-4 < rebuilt.residual < 0.05 and len(rebuilt.used) > 2
    nearest = min(
        abs(float(ema_snapshots.load(s.path, LIKE)["file"][0] - exact))
        for s in ema_snapshots.listing(folder)
    )
    np.testing.assert_allclose(rebuilt.params["conv"]["kernel"], exact, rtol=0, atol=nearest / 20)
    np.testing.assert_allclose(rebuilt.params["file"][0], exact, rtol=0, atol=nearest / 20)
    half = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), LIKE)
    assert (
        ema_snapshots.rebuild(folder, half, sigma_rel=0.075).params["file"][0].dtype == "bfloat16"
    )
    # In the middle of two snapshots five of forty-five updates are unknown.
    between = ema_snapshots.rebuild(folder, LIKE, sigma_rel=0.1, step=45)
    assert between.step == 45 and between.residual > 0.1
    assert all(s.profile.step <= 45 for s in between.used)


def test_a_run_that_goes_on_forgets_what_came_after(folder, tmp_path):
    removed = ema_snapshots.drop_after(folder, 40)
    assert [s.profile.step for s in removed] == [50, 50, 60, 60]
    assert {s.profile.step for s in ema_snapshots.listing(folder)} == {10, 20, 30, 40}
    assert ema_snapshots.drop_after(folder, 40) == []
    assert ema_snapshots.drop_after(tmp_path / "none", 0) == []
    again = ema_snapshots.save(folder, 40, {0.1: params(7.0)})
    assert len(ema_snapshots.listing(folder)) == 8
    assert ema_snapshots.load(again[0].path, LIKE)["file"][0] == 7


def test_what_was_rebuilt_is_kept_until_its_step_is_gone(folder):
    rebuilt = ema_snapshots.rebuild(folder, LIKE, sigma_rel=0.15, step=50)
    path = ema_snapshots.save_rebuilt(folder, rebuilt)
    assert path not in {s.path for s in ema_snapshots.listing(folder)}
    back = ema_snapshots.load_rebuilt(folder, LIKE)
    assert (back.step, back.sigma_rel, back.residual) == (50, 0.15, rebuilt.residual)
    jax.tree.map(np.testing.assert_array_equal, back.params, rebuilt.params)
    half = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), LIKE)
    assert ema_snapshots.load_rebuilt(folder, half).params["file"][0].dtype == "bfloat16"
    # Another reader of the format.
    with np.load(path, allow_pickle=False) as stored:
        assert (stored["step"], stored["sigma_rel"]) == (50, 0.15)
    ema_snapshots.drop_after(folder, 50)
    assert path.exists()
    ema_snapshots.drop_after(folder, 49)
    assert not path.exists()
    with pytest.raises(UserError, match=r"there is no .*rebuilt.npz: rebuild .*--mode=ema"):
        ema_snapshots.load_rebuilt(folder, LIKE)


def test_what_was_rebuilt_is_refused_where_it_is_torn_or_another(folder):
    rebuilt = ema_snapshots.rebuild(folder, LIKE, sigma_rel=0.15)
    path = ema_snapshots.save_rebuilt(folder, rebuilt)
    for like, message in [
        ({**LIKE, "more": np.ones(1)}, r"lacks \['more'\], unlike this config"),
        (params(0.0, size=4), r"has \['conv'\]\['bias'\] of \(3,\) where .* \(4,\)"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            ema_snapshots.load_rebuilt(folder, like)
        assert one_line(caught)
    whole = path.read_bytes()
    snapshot = ema_snapshots.listing(folder)[0].path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", snapshot):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"rebuilt.npz is damaged .*rebuild it") as caught:
            ema_snapshots.load_rebuilt(folder, LIKE)
        assert one_line(caught)
    # A run that goes on does not stumble over it, and leaves it to be looked at.
    ema_snapshots.drop_after(folder, 10)
    assert path.exists()


def test_nothing_to_rebuild_from(folder, tmp_path):
    assert ema_snapshots.listing(tmp_path / "none") == []
    for call, message in [
        (lambda: ema_snapshots.rebuild(tmp_path / "none", LIKE, sigma_rel=0.1),
         "there are no snapshots in .*none: expected the ema folder"),
        (lambda: ema_snapshots.rebuild(folder, LIKE, sigma_rel=0.1, step=61),
         "step 61 is outside of .*: use one from 10 to 60"),
        (lambda: ema_snapshots.rebuild(folder, LIKE, sigma_rel=0.1, step=9), "step 9 is outside"),
        (lambda: ema_snapshots.rebuild(folder, LIKE, sigma_rel=0.3), "sigma_rel must be .*not 0.3"),
        (lambda: ema_snapshots.load(folder / "000000001_0.1.npz", LIKE), "there is no snapshot"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=message) as caught:
            call()
        assert one_line(caught)


@pytest.mark.parametrize("fault", ["half", "empty", "text", "flipped", "array"])
def test_a_torn_file_is_named(folder, fault):
    path = ema_snapshots.listing(folder)[-1].path
    whole = path.read_bytes()
    at = whole.index(np.float32(ema_snapshots.load(path, LIKE)["file"][0]).tobytes())
    flipped = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    if fault == "array":
        with open(path, "wb") as file:
            np.save(file, np.ones(3))
    else:
        content = {"half": whole[: len(whole) // 2], "empty": b"", "text": b"hello" * 99,
                   "flipped": flipped}  # fmt: skip
        path.write_bytes(content[fault])
    with pytest.raises(UserError, match=f"{path.name} is damaged .*remove it") as caught:
        ema_snapshots.rebuild(folder, LIKE, sigma_rel=0.075)
    assert one_line(caught)


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({**LIKE, "more": np.ones(1)}, r"lacks \['more'\], unlike this config"),
        ({"conv": LIKE["conv"]}, r"has \['file'\]\[0\], unlike this config"),
        ({"other": np.ones(1)}, r"lacks \['other'\]"),
        (params(0.0, size=4), r"has \['conv'\]\['bias'\] of \(3,\) where this config has \(4,\)"),
    ],
)
def test_another_structure_is_refused(folder, like, message):
    with pytest.raises(UserError, match=message) as caught:
        ema_snapshots.load(ema_snapshots.listing(folder)[0].path, like)
    assert one_line(caught)


def test_a_disk_that_fills_up_keeps_the_snapshots_before(folder):
    """As far as a process can stage it: writes past 20 kB fail."""
    before = ema_snapshots.listing(folder)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
    try:
        with pytest.raises(UserError, match=r"can't write .*000000060_0.1.npz") as caught:
            ema_snapshots.save(folder, 60, {0.1: params(1.0, size=100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert one_line(caught)
    assert ema_snapshots.listing(folder) == before
    assert sorted(folder.iterdir()) == sorted(s.path for s in before)
    ema_snapshots.load(before[-1].path, LIKE)


@pytest.mark.parametrize(("step", "width"), [(0, 0.1), (1, 0.3)])
def test_profiles_out_of_range_are_not_written(tmp_path, step, width):
    with pytest.raises(ValueError, match=r"step must be 1 or more|sigma_rel must be"):
        ema_snapshots.save(tmp_path, step, {width: params(1.0)})
    assert list(tmp_path.iterdir()) == []
