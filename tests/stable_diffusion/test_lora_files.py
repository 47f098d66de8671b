"""LoRA files: names by diffusers' converters, merged weights by torch's convolutions and sums."""

import json
import re

import jax
import numpy as np
import pytest
from flax import traverse_util

import diffjax
from diffjax.errors import UserError
from diffjax.models import lora
from diffjax.stable_diffusion import lora_files, names
from diffjax.stable_diffusion.folder import load_folder

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def save(torch):
    return pytest.importorskip("safetensors.torch").save_file


@pytest.fixture(scope="module")
def loaded(folders):
    """family -> (folder, diffusers' pipeline), loaded once."""
    made = {}

    def of(family):
        if family not in made:
            path, pipeline = folders(family)
            made[family] = load_folder(path), pipeline
        return made[family]

    return of


def factors(torch, module, rank, seed):
    """Random down and up of a module of torch, and what they add to its weight."""
    generator = torch.Generator().manual_seed(seed)
    out, inside, *window = module.weight.shape
    down = 0.1 * torch.randn(rank, inside, *window, generator=generator)
    up = 0.1 * torch.randn(out, rank, *[1] * len(window), generator=generator)
    if window:
        # The definition: the second convolution after the first.
        ones = torch.eye(inside)[..., None, None] * 1.0
        pad = window[0] - 1
        kernel = torch.nn.functional.conv2d(
            torch.nn.functional.conv2d(torch.nn.functional.pad(ones, (pad,) * 4), down.flip(2, 3)),
            up,
        )  # (inside, out, window)
        return down, up, kernel.transpose(0, 1)
    return down, up, up @ down


def layers_of(model, ends):
    return {
        name: module
        for name, module in model.named_modules()
        if name.endswith(ends) and getattr(module, "weight", None) is not None
        and module.weight.ndim in (2, 4)
    }  # fmt: skip


def weight_of(folder, name, number=0):
    """A weight of diffjax's tree by its name in diffusers, with torch's axes."""
    tree = folder.params if number == 0 else folder.texts[number - 1].params
    if number == 0:
        of = names.of_unet(len(folder.unet.module.channels))
    else:
        layers = folder.texts[number - 1].encoder.module.layers
        of = names.of_text(lora_files.module_names(layers))
    for path, leaf in traverse_util.flatten_dict(tree).items():
        if path[-1] == "kernel" and (name,) in of("/".join(path[:-1])):
            return np.asarray(leaf).transpose((1, 0) if leaf.ndim == 2 else (3, 2, 0, 1))
    raise AssertionError(name)


def kohya(name):
    return f"lora_unet_{name.replace('.', '_')}"


def check_merged(folder, base, changes, scale, number=0):
    """Every changed weight is base + scale * change, and no other one changed."""
    for name, (weight, change) in changes.items():
        found = weight_of(folder, name, number)
        wanted = weight.detach().numpy() + scale * change.numpy()
        np.testing.assert_allclose(found, wanted.reshape(found.shape), atol=2e-6)
    trees = [f.params if number == 0 else f.texts[number - 1].params for f in (folder, base)]
    new, old = map(traverse_util.flatten_dict, trees)
    changed = {path for path in new if not np.array_equal(new[path], old[path])}
    assert len(changed) == len(changes)


@pytest.mark.parametrize("family", (pytest.param("sd15", marks=pytest.mark.slow), "sdxl"))
def test_kohyas_names(torch, save, loaded, tmp_path, family):
    """Linear maps and convolutions, alphas, different ranks, text encoders."""
    base, pipeline = loaded(family)
    state, unet_changes = {}, {}
    ends = (*ATTENTION, "proj_in", "proj_out", "ff.net.0.proj", "conv1", "conv_shortcut",
            "time_emb_proj", "conv", "conv_in", "linear_1")  # fmt: skip
    for i, (name, module) in enumerate(layers_of(pipeline.unet, ends).items()):
        rank, alpha = 1 + i % 3, 0.5 + i % 2
        down, up, change = factors(torch, module, rank, i)
        key = kohya(name)
        state |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        if i % 5:
            state[f"{key}.alpha"] = torch.tensor(alpha)
            change = change * alpha / rank
        unet_changes[name] = module.weight, change
    prefixes = {1: "lora_te_"} if family == "sd15" else {1: "lora_te1_", 2: "lora_te2_"}
    text_changes = {}
    for number, prefix in prefixes.items():
        model = pipeline.text_encoder if number == 1 else pipeline.text_encoder_2
        ends = (*TEXT, "text_projection")
        text_changes[number] = {}
        for i, (name, module) in enumerate(layers_of(model, ends).items()):
            down, up, change = factors(torch, module, 2, 100 * number + i)
            short = name.removeprefix("text_model.")
            key = short if short == "text_projection" else f"text_model.{short}"
            key = prefix + key.replace(".", "_")
            state |= {f"{key}.lora_down.weight": down.half(), f"{key}.lora_up.weight": up.half(),
                      f"{key}.alpha": torch.tensor(1.0)}  # fmt: skip
            change = up.half().float() @ down.half().float() / 2
            name = name if name == "text_projection" else f"text_model.{short}"
            text_changes[number][name] = module.weight, change
    path = tmp_path / "style.safetensors"
    save({name: tensor.contiguous() for name, tensor in state.items()}, path)
    found = lora_files.merged(base, lora_files.opened((path, 0.7)))
    check_merged(found, base, unet_changes, 0.7)
    for number, changes in text_changes.items():
        assert len(changes) >= 18
        check_merged(found, base, changes, 0.7, number)
    assert found.text_digest != base.text_digest


def forms(family):
    """Ways of writing a layer's factors: (layer, side) -> name."""
    made = {
        "peft": lambda name, side: f"unet.{name}.lora_{'AB'[side]}.weight",
        "peft_named": lambda name, side: f"unet.{name}.lora_{'AB'[side]}.default_0.weight",
        "diffusers": lambda name, side: f"unet.{name}.lora.{('down', 'up')[side]}.weight",
        "processor": lambda name, side: (
            "unet." + name.replace(".to_", ".processor.to_").removesuffix(".0")
            + f"_lora.{('down', 'up')[side]}.weight"
        ),
    }  # fmt: skip
    made["old"] = lambda name, side: made["processor"](name, side).removeprefix("unet.")
    return made


@pytest.mark.parametrize("form", ("peft", "peft_named", "diffusers", "processor", "old"))
def test_diffusers_names(torch, save, loaded, tmp_path, form):
    base, pipeline = loaded("sd15")
    state, changes = {}, {}
    for i, (name, module) in enumerate(layers_of(pipeline.unet, (*ATTENTION, "proj_in")).items()):
        down, up, change = factors(torch, module, 2, i)
        for side, factor in enumerate((down, up)):
            state[forms("sd15")[form](name, side)] = factor
        changes[name] = module.weight, change
    path = tmp_path / "pytorch_lora_weights.safetensors"
    save(state, path)
    check_merged(lora_files.merged(base, lora_files.opened(path)), base, changes, 1.0)
    torch.save(state, tmp_path / "pytorch_lora_weights.bin")
    found = lora_files.merged(base, lora_files.opened([tmp_path / "pytorch_lora_weights.bin"]))
    check_merged(found, base, changes, 1.0)


@pytest.mark.parametrize("form", ("lora_A", "lora_linear_layer.down", "to_q_lora.down"))
def test_diffusers_names_of_text_encoders(torch, save, loaded, tmp_path, form):
    base, pipeline = loaded("sd15")
    state, changes = {}, {}
    for i, (name, module) in enumerate(layers_of(pipeline.text_encoder, "q_proj").items()):
        down, up, change = factors(torch, module, 2, i)
        name = f"text_model.{name.removeprefix('text_model.')}"
        key = f"text_encoder.{name}.{form}.weight"
        key = key.replace("q_proj.to_q", "to_q")
        state[key] = down
        state[key.replace("lora_A", "lora_B").replace("down", "up")] = up
        changes[name] = module.weight, change
    path = tmp_path / "a.safetensors"
    save(state, path)
    found = lora_files.merged(base, lora_files.opened(path))
    check_merged(found, base, changes, 1.0, 1)


@pytest.mark.parametrize("family", ("sd15", "sdxl"))
def test_original_blocks_are_what_diffusers_makes_of_them(torch, save, loaded, tmp_path, family):
    """A kohya file of original names: diffusers converts the names, and is the truth."""
    utils = pytest.importorskip("diffusers.loaders.lora_conversion_utils")
    base, pipeline = loaded(family)
    table = lora_files._table(base, lora_files._shapes(base))
    keys = [
        key for key in table
        if re.match("lora_unet_(input|middle|output)_block", key)
        # An upsampler is second or third in its block; diffusers reads only the third.
        and not re.search("_blocks_[0-9]+_1_conv", key)
    ]  # fmt: skip
    state = {}
    for i, key in enumerate(keys):
        state |= {f"{key}.lora_down.weight": torch.full((1, 1), float(i)),
                  f"{key}.lora_up.weight": torch.full((1, 1), float(i))}  # fmt: skip
    assert len(keys) > 40
    mapped = utils._maybe_map_sgm_blocks_to_diffusers(dict(state), pipeline.unet.config)
    converted, _ = utils._convert_non_diffusers_lora_to_diffusers(mapped)
    found = 0
    for name, tensor in converted.items():
        if name.endswith("down.weight"):
            layer = lora_files._FACTOR.fullmatch(name)["layer"].removeprefix("unet.")
            assert table[layer] == table[keys[int(tensor[0, 0])]], name
            found += 1
    assert found == len(keys)


def test_alphas_of_metadata(torch, save, loaded, tmp_path):
    base, pipeline = loaded("sd15")
    modules = list(layers_of(pipeline.unet, ("attn1.to_q", "attn2.to_q")).items())
    state, changes = {}, {}
    for i, (name, module) in enumerate(modules):
        down, up, change = factors(torch, module, 4, i)
        state |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
        changes[name] = module.weight, change * (8.0 if "attn2" in name else 2.0) / 4
    config = {"unet.r": 4, "unet.lora_alpha": 2, "unet.alpha_pattern": {"attn2.to_q": 8},
              "unet.use_dora": False}  # fmt: skip
    path = tmp_path / "a.safetensors"
    save(state, path, metadata={"format": "pt", lora_files.METADATA: json.dumps(config)})
    check_merged(lora_files.merged(base, lora_files.opened(path)), base, changes, 1.0)
    # peft's rule of rank-stabilised adapters: alpha / sqrt(rank).
    stable = {"unet.lora_alpha": 2, "unet.use_rslora": True}
    save(state, path, metadata={lora_files.METADATA: json.dumps(stable)})
    changes = {name: (weight, change * (0.25 if "attn2" in name else 1.0) * 2)
               for name, (weight, change) in changes.items()}  # fmt: skip
    check_merged(lora_files.merged(base, lora_files.opened(path)), base, changes, 1.0)
    for text, message in ((json.dumps({"unet.use_dora": True}), "use_dora"), ("{", "JSON")):
        save(state, path, metadata={lora_files.METADATA: text})
        with pytest.raises(UserError, match=message):
            lora_files.merged(base, lora_files.opened(path))


def test_pefts_own_files(torch, save, loaded, tmp_path):
    base, pipeline = loaded("sd15")
    ((name, module), *_) = layers_of(pipeline.unet, "attn1.to_q").items()
    down, up, change = factors(torch, module, 4, 0)
    path = tmp_path / "adapter_model.safetensors"
    save({f"base_model.model.{name}.lora_A.weight": down,
          f"base_model.model.{name}.lora_B.weight": up}, path)  # fmt: skip
    with pytest.raises(UserError, match=r"found no adapter_config\.json"):
        lora_files.merged(base, lora_files.opened(path))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 8, "r": 4}))
    found = lora_files.merged(base, lora_files.opened(path))
    check_merged(found, base, {name: (module.weight, 2 * change)}, 1.0)


@pytest.fixture
def file_of(torch, save, loaded, tmp_path):
    """Writes a small file for SD 1.5; returns its path."""
    _, pipeline = loaded("sd15")
    ((name, module), *_) = layers_of(pipeline.unet, "attn2.to_k").items()
    down, up, _ = factors(torch, module, 2, 0)
    key = kohya(name)

    def made(changes=(), without=(), file="lora.safetensors"):
        state = {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up,
                 f"{key}.alpha": torch.tensor(1.0)} | dict(changes)  # fmt: skip
        state = {n: t for n, t in state.items() if not n.endswith(tuple(without))}
        save({n: t.contiguous() for n, t in state.items()}, tmp_path / file)
        return tmp_path / file

    made.key = key
    return made


def refused(pattern, loaded, path):
    with pytest.raises(UserError, match=pattern) as error:
        lora_files.merged(loaded("sd15")[0], lora_files.opened(path))
    assert "\n" not in str(error.value)


def test_other_adapters_are_refused(torch, loaded, file_of, tmp_path):
    key = file_of.key
    for end, kind in (("dora_scale", "DoRA"), ("lora_magnitude_vector.weight", "DoRA"),
                      ("hada_w1_a", "LoHa"), ("lokr_w1", "LoKr"), ("lora_mid.weight", "third"),
                      ("oft_blocks", "OFT"), ("diff", "difference"), ("lora_B.bias", "unknown"),
                      ("anything", "unknown")):  # fmt: skip
        path = file_of({f"{key}.{end}": torch.ones(2, 2)})
        refused(rf"found {key}\.{end} .*{kind}", loaded, path)
    refused(
        "of no layer",
        loaded,
        file_of(
            {
                "lora_unet_no.lora_down.weight": torch.ones(1, 1),
                "lora_unet_no.lora_up.weight": torch.ones(1, 1),
            }
        ),
    )
    refused(
        "of no layer",
        loaded,
        file_of(
            {
                "lora_te2_no.lora_down.weight": torch.ones(1, 1),
                "lora_te2_no.lora_up.weight": torch.ones(1, 1),
            }
        ),
    )
    refused("without its other factor", loaded, file_of(without=["lora_up.weight"]))
    refused("no LoRA in", loaded, file_of(without=["weight"]))
    refused("without factors", loaded, file_of({"lora_unet_no.alpha": torch.tensor(1.0)}))
    refused(r"lora_down\.weight of shape \(2, 5\).* expected \(2, 32\)", loaded,
            file_of({f"{key}.lora_down.weight": torch.ones(2, 5)}))  # fmt: skip
    refused(r"lora_up\.weight of shape \(64, 3\)", loaded,
            file_of({f"{key}.lora_up.weight": torch.ones(64, 3)}))  # fmt: skip
    refused(r"alpha of shape \(2,\)", loaded, file_of({f"{key}.alpha": torch.ones(2)}))
    refused("found no none.safetensors", loaded, tmp_path / "none.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(file_of().read_bytes()[:-10])
    refused("cannot read", loaded, cut)
    for wrong, message in (((file_of(), "much"), "scale of a LoRA"), (3, "lora is 3"),
                           ((file_of(), 1, 2), "expected FILE")):  # fmt: skip
        refused(message, loaded, wrong)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)


def with_text(torch, file_of):
    """A file that changes a text encoder, too."""
    name = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    down, up = torch.ones(2, 32), torch.ones(37, 2)
    return file_of(
        {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}, file="both.safetensors"
    )


def test_scales_of_a_pipeline(torch, folders, file_of):
    folder, _ = folders("sd15")
    path = file_of()
    model = diffjax.load(folder)
    strong = model.with_lora(path, scale=8.0)
    different = [not np.array_equal(*pair) for pair in zip(*map(jax.tree.leaves, (
        model.params, strong.params)), strict=True)]  # fmt: skip
    assert sum(different) == 1
    assert strong._generators is model._generators
    same(model, diffjax.load(folder))
    same(strong.with_lora([(path, 4.0)], scale=2.0), strong)
    same(strong.with_lora([]), model)
    same(diffjax.load(folder, lora=[(path, 8.0)]), strong)
    same(strong.at_size(32, 16), strong)
    assert strong.at_size(32, 16).with_lora(path).space.image_shape[:2] == (32, 16)
    changed = model.with_lora(with_text(torch, file_of))
    assert changed._generators is not model._generators
    same(changed.with_lora(path, scale=8.0), strong)
    with pytest.raises(UserError, match="scale is 'much'"):
        model.with_lora(path, scale="much")
    with pytest.raises(UserError, match="lora is a setting of Stable Diffusion"):
        diffjax.load(folder / "unet", lora=path)


@pytest.mark.slow
def test_images_of_a_pipeline(torch, folders, file_of):
    folder, _ = folders("sd15")
    model, path = diffjax.load(folder), file_of()
    how = {"prompts": ["a red cat"], "steps": 2, "guidance": "none", "seed": 3}
    plain = model.sample(**how)
    compiled = dict(model._generators)
    drawn = model.with_lora(path, scale=8.0).sample(**how)
    assert not np.array_equal(drawn, plain) and dict(model._generators) == compiled
    np.testing.assert_array_equal(model.sample(**how), plain)
    text = model.with_lora(with_text(torch, file_of), scale=8.0).sample(**how)
    assert not np.array_equal(text, drawn)


def test_with_diffusers_and_peft(folders, loaded, file_of):
    pytest.importorskip("peft")
    base, pipeline = loaded("sd15")
    path = file_of()
    pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
    pipeline.fuse_lora(lora_scale=0.7)
    found = lora_files.merged(base, lora_files.opened((path, 0.7)))
    for name, module in layers_of(pipeline.unet, "attn2.to_k.base_layer").items():
        weight = weight_of(found, name.removesuffix(".base_layer"))
        np.testing.assert_allclose(weight, module.weight.detach().numpy(), atol=1e-6)
    pipeline.unfuse_lora()
    pipeline.unload_lora_weights()


def test_bfloat16_kernels_are_rounded_once():
    kernel = jax.numpy.asarray([[1.0, 2.0]], jax.numpy.bfloat16)
    adapter = lora.Adapter(np.full((1, 2), 0.5), np.full((2, 2), 0.25), 1.0)
    merged = lora.merge({"a": {"kernel": kernel}}, {("a", "kernel"): adapter})
    np.testing.assert_array_equal(merged["a"]["kernel"].astype(np.float32), [[1.125, 2.125]])
    with pytest.raises(ValueError, match="fits no parameter"):
        lora.merge({"a": {"kernel": kernel}}, {("b", "kernel"): adapter})
