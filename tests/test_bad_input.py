"""Bad input, as much as could be thought of: one line that names it, exit code 2, nothing written.

What `main` refuses is listed as (what is typed, what the line must hold); the value itself must be
in the line too. Nearly all of it is found out before anything is compiled.
"""

import io
import json
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from diffjax import flags
from diffjax.main import main
from tests.conftest import TINY_FLAGS

DIGITS = TINY_FLAGS[0]
WHOLE, NUMBER, TUPLE = "expected a whole number", "expected a number", "expected a tuple"
NAME = "expected 'name', 'name(argument=number)'"
ESCAPE, HALF = "\x1b[31m", "\udcff"  # what colours a terminal; a byte that is not UTF-8


def shown(text):
    """The text within a line: as it is, or as repr writes it."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def content(folder):
    """Every file below a folder with its size and time."""
    return {
        path: (os.lstat(path).st_size, os.lstat(path).st_mtime_ns)
        for path in folder.rglob("*")
    }  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder in which everything happens; its sub-folder cwd is empty and stays so."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "cwd").mkdir()
    return folder


@pytest.fixture
def refused(capsys, monkeypatch, place):
    """refused(*arguments) -> the one line, after it was seen that nothing was written."""

    def run(*arguments):
        monkeypatch.chdir(place / "cwd")
        before = content(place)
        assert main(list(arguments)) == 2
        printed = capsys.readouterr()
        lines = [line for line in printed.err.splitlines() if line]
        assert len(lines) == 1 and lines[0].startswith("error: "), printed.err
        assert "Traceback" not in printed.out + printed.err
        assert lines[0].isprintable() and len(lines[0]) < 2100
        assert content(place) == before
        return lines[0]

    return run


def check(line, *words):
    for word in words:
        assert word in line or repr(word)[1:-1] in line, line


# Typed values: (--config.key=value, what was expected).
VALUES = [
    *((f"train.steps={value}", WHOLE) for value in ("", "1e3", "-5", "True", "0x10", "x", "1.0")),
    ("train.steps=2147483648", "whole number >= 1"),
    ("seed=-1", "in [0, 2**32)"),
    ("seed=4294967296", "in [0, 2**32)"),
    *((f"train.learning_rate={v}", NUMBER) for v in ("", "-1", "0", "fast", "inf", "-inf", "nan")),
    ("train.ema_decay=1", "in [0, 1)"),
    ("train.ema_decay=nan", "in [0, 1)"),
    ("train.grad_clip=-1", "a number >= 0"),
    ("train.grad_clip=inf", "that is finite"),
    ("train.warmup_steps=-1", "whole number >= 0"),
    ("train.batch_size=0", "whole number >= 1"),
    ("train.batch_size=99999999999999", "whole number >= 1"),
    ("data.channels=2", "0 (as stored), 1 or 3"),
    ("data.image_size=-1", "whole number in [0, 8192]"),
    ("data.image_size=100000000", "whole number in [0, 8192]"),
    ("data.image_size=8192", "at most 256 for digits"),
    ("data.memory_limit_mb=-1", "whole number >= 0"),
    ("data.flip=2", "Non-boolean argument"),
    ("data.flip=", "Non-boolean argument"),
    ("model.scale_shift=maybe", "Non-boolean argument"),
    *((f"model.multipliers={value}", TUPLE) for value in (
        "()", "(0,)", "(1, -1)", "(1, 2.5)", "(1, 'a')", "(True,)", "x", "\0",
        "__import__('os')", "(1, None)", "99999999999999999999")),
    ("model.multipliers={1: 2}", "values in parentheses"),
    ("model.attention_resolutions=('a',)", TUPLE),
    ("model.attention_resolutions=(8.0,)", TUPLE),
    ("model.fourier=(1.5,)", TUPLE),
    ("model.fourier=(1000000,)", "in [0, 24]"),
    ("model.fourier=(-1,)", "in [0, 24]"),
    ("model.channels=0", WHOLE),
    ("model.channels=1000000000000", WHOLE),
    ("model.channels=7", "head_channels must divide"),
    ("model.head_channels=0", WHOLE),
    ("model.head_channels=3", "head_channels must divide"),
    ("model.blocks=0", WHOLE),
    ("model.patch=0", WHOLE),
    ("model.transformer_depth=0", WHOLE),
    ("model.dropout=1", "in [0, 1)"),
    ("model.dropout=-0.1", "in [0, 1)"),
    ("diffusion.log_snr_shift=nan", NUMBER),
    ("diffusion.log_snr_shift=1", "needs a continuous schedule"),
    ("diffusion.self_conditioning=1", "in [0, 1)"),
    ("diffusion.offset_noise=-1", "a number >= 0"),
    ("diffusion.offset_noise=inf", "that is finite"),
    ("diffusion.condition_dropout=2", "in [0, 1)"),
    ("train.ema_snapshots=('a',)", TUPLE),
    ("train.ema_snapshots=(0.9,)", "sigma_rel must be in (0, "),
    ("train.ema_snapshots=(0,)", "sigma_rel must be in (0, "),
    ("sample.steps=1001", "take at most 1000"),
    ("sample.steps=1000000000000", "<= 1000000"),
    ("sample.count=0", WHOLE),
    ("sample.batch_size=0", WHOLE),
    ("sample.seed=-1", "in [0, 2**32)"),
    ("sample.labels=(1.5,)", TUPLE),
    ("sample.labels={1, 2}", "values in parentheses"),
    *((f"sample.checkpoint={value}", "'latest', 'best', 'ema' or a step")
      for value in ("newest", "-1", "1.5", "best ", "٣", "9" * 5000)),
    ("evaluate.scales=(1, 'a')", TUPLE),
    ("evaluate.scales=(1e+31,)", TUPLE),
    ("evaluate.num_samples=1", "whole number >= 2"),
    ("ema.sigma_rel=0", "a number > 0"),
    ("ema.sigma_rel=inf", "that is finite"),
    ("ema.step=-1", "whole number >= 0"),
    ("first_stage.checkpoint=ema", "'latest', 'best' or a step"),
    ("first_stage.tile=-1", WHOLE),
]  # fmt: skip

# Names of functions and their arguments.
CHOICES = [
    *((f"train.optimizer={value}", NAME) for value in (
        "", "adam(", "adam(0.9)", "adam(**{})", "a\nb", "lambda: 1", "adam; 1", "adam()()",
        "__import__('os').system('touch ran')", "(" * 5000, "adam(b1=0.1, b1=0.2)", "\0", HALF)),
    ("train.optimizer=sgd", "expected one of adam, adamw"),
    ("train.optimizer=adam(b1=2)", "b1 and b2 must be in [0, 1)"),
    ("train.optimizer=adam(b1='x')", "b1 must be a number such as 0.9"),
    ("train.optimizer=adamw(weight_decay=-1)", "weight_decay must be at least 0"),
    ("train.optimizer=adamw(beta=1)", "unexpected keyword argument 'beta'"),
    ("train.schedule=step", "expected one of constant, cosine"),
    ("train.ema=power(sigma_rel=9)", "sigma_rel must be in (0, "),
    ("train.ema=inverse(power='x')", "power must be a number"),
    ("train.ema=inverse(power=0)", "power must be above 0"),
    ("diffusion.schedule=linear_beta(T=0)", "needs T >= 1 steps, not 0"),
    ("diffusion.schedule=linear_beta(T=2.5)", "T must be a whole number such as 1000"),
    ("diffusion.schedule=linear_beta(T='a')", "T must be a whole number such as 1000"),
    ("diffusion.schedule=linear_beta(T=None)", "T must be a whole number such as 1000"),
    ("diffusion.schedule=cosine(T=True)", "T must be a whole number such as 1000"),
    ("diffusion.schedule=linear_beta(T=10**3)", NAME),
    ("diffusion.schedule=linear_beta(T=1000000000000)", "T may be 1000000 at most"),
    ("diffusion.schedule=linear_beta(beta_start='x')", "beta_start must be a number"),
    ("diffusion.schedule=linear_beta(beta_start=-1)", "values in (0, 1]"),
    ("diffusion.schedule=cosine(offset=1e400)", "offset must be a number such as 0.008"),
    ("diffusion.schedule=cosine(offset=-2)", "offset must be a number >= 0"),
    ("diffusion.schedule=sigmoid(temperature=0)", "temperature > 0"),
    ("diffusion.schedule=sigmoid(start=3, end=3)", "start < end"),
    ("diffusion.schedule=linear_alpha_bar(alpha_bar_end=-1)", "in [0, 1)"),
    ("diffusion.schedule=karras(sigma_min=0)", "0 < sigma_min < sigma_max"),
    ("diffusion.schedule=karras(rho=0)", "rho must be above 0"),
    ("diffusion.schedule=continuous_cosine(log_snr_min=5, log_snr_max=-5)", "less than"),
    ("diffusion.schedule=rectified_flow(shift=2)", "unexpected keyword argument"),
    ("diffusion.schedule=vp_sde(beta_min=0)", "0 < beta_min <= beta_max"),
    ("diffusion.schedule=polynomial(power='x')", "power must be a number such as 2.0"),
    ("diffusion.schedule=Cosine", "expected one of linear_beta"),
    ("diffusion.parametrisation=edm(sigma_data=0)", "sigma_data must be above 0"),
    ("diffusion.parametrisation=edm(sigma_data='x')", "sigma_data must be a number such as 0.5"),
    ("diffusion.parametrisation=categorical(levels=1)", "levels must be at least 2"),
    ("diffusion.loss_target=z", "expected one of x0, eps"),
    ("diffusion.loss_target=categorical", "logits are not a target"),
    ("diffusion.weighting=min_snr(gamma=-1)", "gamma must be above 0"),
    ("diffusion.weighting=min_snr(gamma='a')", "gamma must be a number such as 5.0"),
    ("diffusion.weighting=p2(k=-1)", "k and gamma must be at least 0"),
    ("diffusion.weighting=edm(sigma_data=0)", "sigma_data must be above 0"),
    ("diffusion.weighting=snr(3)", NAME),
    ("diffusion.weighting=soft_min_snr(gamma=0)", "gamma must be above 0"),
    ("diffusion.weighting=logit_normal(std=0)", "std must be above 0"),
    ("diffusion.time_sampling=logit_normal(std=0)", "std must be above 0"),
    ("diffusion.time_sampling=mode(scale=2)", "scale must be in [-1, 2 / (pi - 2)]"),
    ("diffusion.time_sampling=log_normal(std=-1)", "std must be above 0"),
    ("diffusion.time_sampling=log_normal(mean='x')", "mean must be a number such as -1.2"),
    ("diffusion.objective=hybrid(vlb_weight=-1)", "vlb_weight must be at least 0"),
    ("diffusion.objective=vdm", "needs a continuous, variance preserving schedule"),
    ("diffusion.objective=vdm(learn_ends='maybe')", "learn_ends must be True or False"),
    ("diffusion.objective=vdm(gamma=3)", "gamma must be a string"),
    ("model.block=convnext(expansion=0)", "expansion must be at least 1"),
    ("model.block=convnext(expansion=1.5)", "expansion must be a whole number such as 2"),
    ("model.attention=linear(1)", NAME),
    ("model.resample=fir", "expected one of conv, average, adm"),
    ("model.time_features=fourier(scale='x')", "scale must be a number such as 0.016"),
    ("model.dtype=float16", "expected one of float32, bfloat16"),
    ("model.kernels=cuda", "expected one of auto, onednn, xla"),
    ("model.remat=all", "expected one of none, dots, layers, full"),
    ("sample.sampler=ddim(eta='a')", "eta must be a number such as 0.0"),
    ("sample.sampler=ddim(eta=None)", "eta must be a number such as 0.0"),
    ("sample.sampler=ddim(grid=1)", "ddim takes eta, not grid"),
    ("sample.sampler=lms(order='a')", "order must be a whole number"),
    ("sample.sampler=adaptive(rtol='x')", "rtol must be a number"),
    ("sample.sampler=ancestral(variance=3)", "variance must be a string"),
    ("sample.grid=karras(rho='a')", "rho must be a number such as 7.0"),
    ("sample.grid=karras(rho=0)", "rho must be above 0"),
    ("sample.grid=leading(shift=1)", "leading takes offset, last, not shift"),
    ("sample.grid=leading(offset='a')", "offset must be a"),
    ("sample.grid=flow_shift(shift=0)", "shift must be positive"),
    ("sample.grid=polyexponential(rho=-1)", "rho must be above 0"),
    ("sample.grid=sections(counts=(1,))", "sum to 1, but the grid has 3 steps"),
    ("sample.grid=sections(counts='a')", "'10,10,15' or 'ddim25', not 'a'"),
    ("sample.guidance=classifier_free", "give one of scale"),
    ("sample.guidance=classifier_free(scale='a')", "scale must be a number"),
    ("sample.guidance=classifier_free(scale=1e999)", "scale must be a number"),
    ("sample.guidance=classifier_free(scale=1, papers_scale=2)", "give one of scale"),
    ("sample.guidance=cfg_zero_star(scale=2, zero_steps=-1)", "zero_steps must be a whole number"),
    ("sample.guidance=cfg_zero_star(scale=2, zero_steps='a')", "zero_steps must be a whole number"),
    ("sample.guidance=adaptive_projected(scale=2, momentum=1)", "momentum must be in (-1, 1)"),
    ("sample.guidance=adaptive_projected(scale=2, momentum='a')", "momentum must be a number"),
    ("sample.guidance=tangential", "give one of scale"),
    ("sample.guidance=compose(labels=(1,), weights=())", "must have the same length"),
    ("sample.guidance=autoguidance", "missing 2 required"),
    ("sample.guidance=autoguidance(workdir=3, scale=2)", "workdir must be a string"),
    ("sample.guidance=autoguidance(workdir='/nope', scale=2)", "/nope holds no run"),
    ("sample.guidance=perturbed_attention(scale=2, blocks='a')", "blocks must be"),
    ("sample.threshold=clip(low='a')", "low must be a number such as -1.0"),
    ("condition.text=minilm(length='a')", "length must be a whole number such as 32"),
    ("condition.text=transformer(width=0)", "width must be a whole number >= 1"),
    ("condition.text=transformer", "has no captions"),
    ("condition.text=clip", "missing 1 required"),
    ("condition.map=low_resolution(factor=0)", "factor must be a whole number >= 2"),
    ("first_stage.workdir=/nope", "holds no run"),
]  # fmt: skip

# What takes the network's shapes to find out; the line names the argument, not the whole choice.
TRACED = [
    ("sample.sampler=ddim(eta=2)", "eta must be in [0, 1], not 2"),
    ("sample.sampler=lms(order=100)", "lms has orders 1 to 4, not 100"),
    ("sample.sampler=edm_stochastic(churn=-1)", "churn must be at least 0, not -1"),
    ("sample.sampler=adaptive(rtol=-1)", "rtol and atol must be positive, not -1"),
    ("sample.sampler=ancestral(variance='x')", "'beta_tilde', 'beta' or 'learned', not 'x'"),
    ("sample.threshold=clip(low=1, high=-1)", "needs low < high, not [1, -1]"),
    ("sample.threshold=dynamic(percentile=101)", "must be in (0, 100], not 101"),
    ("sample.threshold=dynamic(cap=0)", "cap must be at least 1, not 0"),
    ("condition.text=t5(folder='/nope')", "found no folder /nope"),
    ("sample.labels=(10,)", "has 10: expected classes 0..9"),
    ("sample.prompt=a cat", "'a cat' but the model takes no text"),
    ("sample.prompt=" + "cat " * 10_000, "the model takes no text"),
    ("sample.prompt=a||b", "one of the prompts is empty"),
    ("sample.prompt=file:/nope", "No such file"),
    ("sample.prompt=file:/dev/zero", "it is not a regular file"),
    ("sample.prompt=a\x07b", r"has the character '\x07'"),
    ("sample.prompt=caf" + HALF, r"has the character '\udcff'"),
    ("sample.negative_prompt=" + ESCAPE, "the model takes no text"),
    ("sample.maps=/nope", "the model takes no map"),
]  # fmt: skip

# Names of data sets.
DATA = [
    *((name, "expected one of fashion_mnist, digits") for name in (
        "", "folder:", "tfds:", "Digits", "digits ", "digits\nx", HALF, "http://x/y.zip")),
    ("folder:\0", "is missing; expected a folder"),
    ("folder:" + HALF, "is missing; expected a folder"),
    ("folder:~nobody-of-that-name/x", "is missing; expected a folder"),
    ("folder:/dev/null", "is a file; expected a folder"),
    ("folder:/nope" + ESCAPE, "is missing; expected a folder"),
    ("folder:/nope\nerror: all is well", "is missing; expected a folder"),
    ("tfds:../../etc", "is not a TFDS name"),
    ("emoji", "python examples/emoji/fetch.py"),
]  # fmt: skip


@pytest.mark.parametrize(("override", "expected"), [*VALUES, *CHOICES], ids=lambda x: x[:60])
def test_overrides(refused, override, expected):
    line = refused(*TINY_FLAGS, f"--config.{override}", "--mode=sample")
    key, _, value = override.partition("=")
    check(line, key.rpartition(".")[2], expected)
    if len(value) < 200 and not value.replace(".", "").lstrip("-").isdecimal():
        check(line, value)


@pytest.mark.parametrize(("override", "expected"), TRACED, ids=lambda x: x[:60])
def test_overrides_that_need_the_models_shapes(refused, override, expected):
    check(refused(*TINY_FLAGS, f"--config.{override}", "--mode=sample"), expected)


@pytest.mark.parametrize(("name", "expected"), DATA, ids=lambda x: x[:60])
def test_names_of_data_sets(refused, name, expected):
    line = refused(*TINY_FLAGS, f"--config.data.name={name}", "--mode=sample")
    check(line, name.removeprefix("folder:").removeprefix("~"), expected)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--mode="], "train|sample|edit|evaluate|ema"),
        (["--mode=Train "], "train|sample|edit|evaluate|ema"),
        (["--workdir="], "--workdir= is empty"),
        (["--workdir"], "workdir"),
        (["--debug=maybe"], "maybe"),
        (["--nodebug=1"], "does not take an argument"),
        (["--noconfig.data.flip=1"], "does not take an argument"),
        (["--config.nope=1"], "unknown key 'nope'"),
        (["--config.=3"], "unknown key ''"),
        (["--config.train.=3"], "unknown key ''"),
        (["--config..steps=3"], "unknown key ''"),
        (["--config.train.steps.x=3"], "unknown key 'x'"),
        (["--config.data=x"], "is a section"),
        (["--config.__class__=x"], "unknown key '__class__'"),
        (["--config.train.keys=3"], "unknown key 'keys'"),
        (["--config.train.steps"], WHOLE),
        (["-config.train.steps=x"], WHOLE),
        (["--config.seed", ""], WHOLE),
        (["--noconfig.train.step"], "expected steps"),
        (["--noconfig.train.steps"], "is not a boolean"),
        (["--flagfile=/nope"], "/nope"),
        (["--config=/nope.py"], "expected one config file"),
        (["--mode=sample", "--mode=fly"], "fly"),
        (["stray\nline"], "is not a flag"),
        (["--wr\x1bdir=x"], "Unknown command line flag"),
        (["--", "x"], "'x' is not a flag"),
        (["--cluster=pbs"], "<|slurm|cloud_tpu|gke_tpu"),
        (["--cluster=slurm", "--process=0"], "leave out --coordinator"),
        (["--cluster=slurm"], "--cluster=slurm: the processes could not be connected"),
        (["--process=1"], "need --coordinator=host:port"),
        (["--processes=two"], "two"),
        (["--coordinator=here", "--processes=2", "--process=0"], "expected host:port"),
        (["--coordinator=a:80", "--processes=-2", "--process=0"], "at least 1"),
        (["--coordinator=a:80", "--processes=2", "--process=2"], "in [0, 2)"),
    ],
    ids=str,
)
def test_flags(refused, arguments, expected):
    check(refused(DIGITS, *arguments), expected)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (b"import sys; sys.exit(3)", "SystemExit: 3"),
        (bytes(range(256)), "Error"),
        (b"\0\0", "null bytes"),
        (b"# \xff\n", "expected a Python file with get_config()"),
        (b"(" * 500, "Error"),
        (b"import nope_nope", "No module named 'nope_nope'"),
        (b"get_config = 3", "TypeError"),
        (b"def get_config(): return 3", "must return a ConfigDict"),
        (b"def get_config(): return {}", "must return a ConfigDict"),
        (b"def get_config(): raise KeyError('a\\nb')", "KeyError"),
        (b"def get_config(a, b): pass", "TypeError"),
        (b"def get_config(): return get_config()", "RecursionError"),
        (
            b"from ml_collections import ConfigDict\nget_config = ConfigDict",
            "config.data.name = ''",
        ),
        (b"raise ValueError('\\033[31m' * 3)", r"\x1b[31m"),
    ],
)
def test_config_files(refused, place, code, expected):
    path = place / "made.py"
    path.write_bytes(code)
    line = refused(f"--config={path}", "--mode=sample")
    check(line, expected)
    assert str(path) in line or expected.startswith("config.")


@pytest.mark.parametrize("name", ["", "a\nb.py", HALF, ESCAPE, "a" * 5000, "/dev/null", "."])
def test_names_of_config_files(refused, name):
    check(refused(f"--config={name}"), "config")


@pytest.fixture(scope="module")
def run_folder(place):
    """make(name, **files) -> a workdir of that name that could be a run's, with these files."""

    def make(name, **files):
        folder = place / name
        (folder / "checkpoints" / "3").mkdir(parents=True, exist_ok=True)
        stored = flags.parse(TINY_FLAGS).config.to_dict()
        (folder / "config.json").write_text(json.dumps(stored))
        for file, data in files.items():
            (folder / f"{file}.json").write_bytes(data)
        return folder

    return make


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"config": b"{"}, "is not JSON"),
        ({"config": b""}, "is not JSON"),
        ({"config": b"\xff\xfe"}, "is not JSON"),
        ({"config": b"[" * 100_000}, "is not JSON"),
        ({"config": b"9" * 5000}, "is not JSON"),
        ({"config": b"[1]"}, "holds a list, expected a JSON object"),
        ({"config": b"null"}, "holds a NoneType, expected a JSON object"),
        ({"config": b"{}"}, "holds a run with config."),
        ({"config": b'{"model": 3}'}, "holds a run with config."),
        ({"identity": b"[1]"}, "holds a list, expected a JSON object"),
        ({"identity": b"{"}, "is not JSON"),
        ({"identity": b'{"first_stage": "abc"}'}, "another first stage"),
        ({"identity": b'{"text": 3}'}, "another text encoder"),
        ({}, "checkpoint"),  # a step's folder with nothing in it
    ],
    ids=str,
)
def test_workdirs_that_are_damaged(refused, run_folder, files, expected):
    folder = run_folder(f"run{abs(hash(str(files)))}", **files)
    check(refused(*TINY_FLAGS, f"--workdir={folder}", "--mode=sample"), str(folder), expected)


def test_workdirs_that_can_not_be(refused, place):
    (place / "afile").write_text("mine")
    (place / "loop").symlink_to(place / "loop")
    for name in ("afile", "loop", "a" * 300, "\0"):
        check(refused(*TINY_FLAGS, f"--workdir={place / name}", "--mode=sample"), name[:100])


# Images: what a file holds, and why it is refused.


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width, height, depth=8, colour=0, pixels=b""):
    """A PNG put together by hand, so that its header may say anything."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(pixels)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )


GREY = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 3)
WHOLE_PNG = encoded(GREY)
MOVING = [Image.new("RGB", (8, 8), c) for c in ("red", "blue", "green")]
BROKEN = {
    "empty": (b"", "the file is empty"),
    "text": (b"hello, this is no image", "not a PNG, JPEG or WebP"),
    "html": (b"<!DOCTYPE html><html>404</html>", "not a PNG, JPEG or WebP"),
    "pickle": (b"\x80\x04\x95.", "not a PNG, JPEG or WebP"),
    "signature alone": (WHOLE_PNG[:8], ""),
    "cut in the header": (WHOLE_PNG[:20], ""),
    "cut in the pixels": (WHOLE_PNG[:45], ""),
    "no pixels": (png(8, 8), ""),
    "zero wide": (png(0, 8), ""),
    "over the limit": (png(10_000, 10_000), "is over"),
    "bomb": (png(2**31 - 1, 2**31 - 1), ""),
    "bomb of zeros": (png(60_000, 60_000, pixels=bytes(10**6)), ""),
    "unknown depth": (png(8, 8, depth=5), ""),
    "unknown colour": (png(8, 8, colour=5), ""),
    "cut JPEG": (encoded(GREY, "JPEG")[:200], ""),
    "JPEG's start": (b"\xff\xd8\xff\xe0", ""),
    "WebP's start": (b"RIFF\x24\x00\x00\x00WEBPVP8 ", ""),
    "GIF": (encoded(GREY, "GIF"), "not a PNG, JPEG or WebP"),
    "TIFF": (encoded(GREY, "TIFF"), "not a PNG, JPEG or WebP"),
    "moving PNG": (encoded(MOVING[0], save_all=True, append_images=MOVING[1:]), "animated"),
    "moving WebP": (
        encoded(MOVING[0], "WEBP", save_all=True, append_images=MOVING[1:]), "animated",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_images_of_a_data_set(refused, place, name):
    data, reason = BROKEN[name]
    folder = place / "sets" / name
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(WHOLE_PNG)
    (folder / "b.png").write_bytes(data)
    line = refused(
        *TINY_FLAGS, f"--config.data.name=folder:{folder}", "--mode=sample",
        "--config.model.class_conditional=False",
    )  # fmt: skip
    # A size is told before the pixels are looked at.
    assert "b.png" in line and (reason in line or "differ in size" in line)


def loop(path):
    path.symlink_to(path)


SPECIAL = {
    "loop": (loop, ""),
    "dangling": (lambda path: path.symlink_to(path.with_name("gone")), ""),
    "pipe": (os.mkfifo, "regular file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "regular file"),
}


@pytest.mark.parametrize("name", SPECIAL)
@pytest.mark.parametrize("streamed", [False, True])
def test_files_that_are_none(refused, place, name, streamed):
    make, reason = SPECIAL[name]
    folder = place / "special" / f"{name}-{streamed}"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(WHOLE_PNG)
    make(folder / "b.png")
    line = refused(
        *TINY_FLAGS, f"--config.data.name=folder:{folder}", "--mode=sample",
        "--config.model.class_conditional=False",
        f"--config.data.memory_limit_mb={0 if streamed else 1024}",
    )  # fmt: skip
    check(line, "b.png", reason)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, "holds no images"),
        ({"a.gif": b"x"}, "convert or move"),
        ({"a.png": WHOLE_PNG, "labels.csv": b""}, "begins with nothing"),
        ({"a.png": WHOLE_PNG, "labels.csv": b"file,label\nb.png,1"}, "names b.png"),
        ({"a.png": WHOLE_PNG, "labels.csv": b"file,label\na.png,"}, "has no label"),
        ({"a.png": WHOLE_PNG, "labels.csv": b"\xff\xfe\x00"}, "cannot read"),
        ({"a.png": WHOLE_PNG, "metadata.jsonl": b"{"}, "is not JSON"),
        ({"a.png": WHOLE_PNG, "metadata.jsonl": b"9" * 5000}, "is not JSON"),
        ({"a.png": WHOLE_PNG, "metadata.jsonl": b"[" * 100_000}, "is not JSON"),
        ({"a.png": WHOLE_PNG, "metadata.jsonl": b'["a"]'}, "expected a JSON object"),
        ({"a.png": WHOLE_PNG, "metadata.jsonl": b"\xff"}, "expected JSON lines in UTF-8"),
        ({"a.png": WHOLE_PNG, "metadata.jsonl": b'{"file_name": "a.png"}'}, "has no text"),
        ({"a.png": WHOLE_PNG, "metadata.jsonl": b'{"file_name": "a.png", "text": "\\ud800"}'},
         "has a lone surrogate"),
        ({"a.png": WHOLE_PNG, "metadata.csv": b"file_name\na.png"}, "expected a header"),
        ({"a.png": WHOLE_PNG, "x/b.png": WHOLE_PNG}, "both class folders"),
    ],
    ids=lambda x: str(x)[-50:],
)  # fmt: skip
def test_folders_of_images(refused, place, files, expected):
    folder = place / "folders" / str(len(list((place / "folders").glob("*"))))
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    line = refused(*TINY_FLAGS, f"--config.data.name=folder:{folder}", "--mode=sample")
    check(line, str(folder), expected)


@pytest.mark.parametrize("name", [*BROKEN, *SPECIAL])
def test_images_to_edit(refused, place, name):
    path = place / "edits" / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    if name in BROKEN:
        path.write_bytes(BROKEN[name][0])
    else:
        SPECIAL[name][0](path)
    line = refused(*TINY_FLAGS, f"--config.edit.images={path}", "--mode=edit")
    check(line, f"{name}.png", "config.edit.images")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["images="], "config.edit.images is empty"),
        (["images=/nope"], "there is no such file or folder"),
        (["images=~nobody-of-that-name"], "there is no such file or folder"),
        (["images=\0"], "there is no such file or folder"),
        (["images=CWD"], "holds no image"),
        (["images=IMAGE", "task=fly"], "expected one of inpaint"),
        (["images=IMAGE", "task=vary(strength=0)"], "strength must be in (0, 1]"),
        (["images=IMAGE", "task=vary(strength='x')"], "strength must be a number such as 0.5"),
        (["images=IMAGE", "task=repaint(jump=0)"], "jump must be a whole number"),
        (["images=IMAGE", "task=interpolate"], "needs 2 images"),
        (["images=IMAGE", "task=inpaint"], "config.edit.mask"),
        (["images=IMAGE", "task=inpaint", "mask=/nope"], "config.edit.mask"),
        (["images=IMAGE", "task=deblur(std=-1)"], "std"),
        (["images=IMAGE", "task=super_resolution(factor=0)"], "factor must be a whole number"),
        (["images=IMAGE", "task=colourise(method='x')"], "method must be one of"),
        (["images=IMAGE", "labels=(10,)"], "has 10: expected classes 0..9"),
        (["images=IMAGE", "labels=(1, 2)"], "has 2 labels for 1 images"),
        (["images=IMAGE", "prompt=a cat"], "the model takes no text"),
        (["images=IMAGE", "prompt=" + ESCAPE], "has the character"),
        (["images=IMAGE", "count=0"], WHOLE),
    ],
    ids=str,
)
def test_edits(refused, place, overrides, expected):
    (place / "good.png").write_bytes(WHOLE_PNG)
    places = {"=IMAGE": f"={place / 'good.png'}", "=CWD": f"={place / 'cwd'}"}
    arguments = [f"--config.edit.{override}" for override in overrides]
    for name, path in places.items():
        arguments = [argument.replace(name, path) for argument in arguments]
    check(refused(*TINY_FLAGS, *arguments, "--mode=edit"), expected)


COLOUR = GREY.convert("RGB")
ACCEPTED = {
    "16 bits": encoded(Image.fromarray(np.full((8, 8), 32896, np.uint16))),
    "CMYK": encoded(COLOUR.convert("CMYK"), "JPEG"),
    "palette": encoded(COLOUR.convert("P")),
    "two levels": encoded(GREY.convert("1")),
    "transparent": encoded(GREY.convert("LA")),
    "another size": encoded(GREY.resize((13, 9))),
    "WebP by the name of a PNG": encoded(COLOUR, "WEBP"),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_a_still_image_is_converted(refused, place, name):
    """Not refused: what each becomes is said, and tested, in data/images.py's own tests."""
    path = place / "good" / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(ACCEPTED[name])
    line = refused(*TINY_FLAGS, f"--config.edit.images={path}", "--mode=edit")
    assert "has no checkpoint: train first" in line  # all else was found right


@pytest.fixture(scope="module")
def captioned(place):
    """Flags of a model with text, on two images."""
    folder = place / "captioned"
    folder.mkdir()
    rows = [{"file_name": f"{name}.png", "text": f"a {name} cat"} for name in ("red", "blue")]
    for row in rows:
        (folder / row["file_name"]).write_bytes(WHOLE_PNG)
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return (
        *TINY_FLAGS, f"--config.data.name=folder:{folder}", "--mode=sample",
        "--config.model.class_conditional=False",
        "--config.condition.text=transformer(width=8, layers=1, heads=1, length=4)",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("|", "one of the prompts is empty"),
        ("cat\0", r"has the character '\x00'"),
        ("cat" + HALF, r"has the character '\udcff'"),
        ("cat\ndog", r"has the character '\n'"),
        ("file:/nope", "No such file"),
        ("file:.", "not a regular file"),
        ("file:BINARY", "it is not UTF-8"),
        ("file:EMPTY", "has no line with a prompt"),
        ("file:CONTROL", r"has the character '\x07'"),
    ],
)
def test_prompts_of_a_model_with_text(refused, place, captioned, prompt, expected):
    files = {"BINARY": b"\xff\xfe\xfa", "EMPTY": b" \n \n", "CONTROL": b"a cat\nring\x07\n"}
    for name, data in files.items():
        (place / name).write_bytes(data)
        prompt = prompt.replace(f":{name}", f":{place / name}")
    check(refused(*captioned, f"--config.sample.prompt={prompt}"), "config.sample.prompt", expected)


@pytest.mark.parametrize("prompt", ["", "a red cat", "naïve café 🐈", "cat " * 10_000, "\tcat "])
def test_prompts_that_are_taken(refused, captioned, prompt):
    """Words beyond the encoder's length are cut with a warning, as captions are."""
    line = refused(*captioned, f"--config.sample.prompt={prompt}")
    assert "has no checkpoint: train first" in line
