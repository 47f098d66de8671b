"""What data sets and batches say of wrong arguments: one line that names the argument."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import data
from tests.messages import refuses

PIXELS = np.zeros((4, 8, 8, 1), np.uint8)
POINTS = np.linspace(-1, 1, 8, dtype=np.float32).reshape(4, 2)
LABELS = np.array([0, 1, 0, 1])
SET = data.ArraySource(PIXELS, LABELS)
NOT_WHOLE = (None, "2", 1.5, 2.0, True, [2], np.nan)
NOT_TEXTS = ("ab", 3, [1, 2], None, {"a": 1})


class Broken:
    def __len__(self):
        return 3

    def __getitem__(self, i):
        return {"image": PIXELS[0], "label": "one"}


LOADS = [
    *[(dict(name=name), "name") for name in (None, 3, b"digits", ["digits"], POINTS)],
    *[(dict(split=split), "split") for split in (None, 3, ["train"])],
    *[(dict(image_size=size), "image_size") for size in
      ("28", 0, -1, 28.0, True, (28,), (28, "28"), (1, 2, 3), 1e9, np.nan, {"a": 1}, 10**6)],
    *[(dict(channels=channels), "channels") for channels in ("1", 2, 0, 1.5, True, [1], POINTS)],
    *[(dict(memory_limit_mb=n), "memory_limit_mb") for n in (None, "1", True, np.nan, -1, [1])],
    *[(dict(on_broken=value), "on_broken") for value in (None, "ignore", 3, True, [1])],
    *[(dict(caption=value), "caption") for value in (3, ["text"], "text")],
    *[(dict(name="tfds:cifar10", data_dir=value), "data_dir") for value in (3, [1], b"a")],
    *[(dict(name="fashion_mnist", data_dir=value), "data_dir") for value in (3, [1], b"a")],
]  # fmt: skip
BATCHES = [
    *[(dict(source=source), "source") for source in (None, 3, "digits", PIXELS, [PIXELS])],
    *[(dict(batch_size=size), "batch_size") for size in (0, -1, *NOT_WHOLE)],
    *[(dict(seed=seed), "seed") for seed in (-1, *NOT_WHOLE)],
    *[(dict(shard_index=index), "shard") for index in (-1, 1, *NOT_WHOLE)],
    *[(dict(shard_count=count), "shard") for count in (0, *NOT_WHOLE)],
    (dict(shard_count=3), "processes"),
]  # fmt: skip
SOURCES = [
    *[(dict(found=found), "rings") for found in
      (None, 3, {1, 2}, "text", b"text", 1j * POINTS, POINTS.astype(object), POINTS.astype(int),
       np.array(["a"]), POINTS[:0], np.nan * POINTS, Broken, dict(a=PIXELS), [[1], [2, 3]], [])],
    *[(dict(name=name), "name") for name in (None, 3)],
]  # fmt: skip
ARRAYS = [
    *[(dict(images=images), "images") for images in
      (None, 3, "text", PIXELS[0], PIXELS[:0], PIXELS.astype(int), PIXELS.repeat(2, -1),
       PIXELS.astype(object), 1j * POINTS, POINTS[0], [[1], [2, 3]], PIXELS > 0, np.inf * POINTS)],
    *[(dict(labels=labels), "labels") for labels in
      (3, "0101", LABELS[:3], LABELS / 2, LABELS[:, None], ["a"] * 4, [None] * 4,
       LABELS > 0, {0: 1})],
    (dict(labels=LABELS, class_names=("a",)), "labels"),
    (dict(labels=-LABELS, class_names=("a", "b")), "labels"),
    *[(dict(class_names=names), "class_names") for names in NOT_TEXTS],
    *[(dict(captions=captions, caption_numbers=LABELS), "captions") for captions in NOT_TEXTS],
    *[(dict(captions=("a", "b"), caption_numbers=numbers), "caption_numbers") for numbers in
      (None, 3, "0101", LABELS[:3], LABELS / 2, LABELS + 1, LABELS - 1, [None] * 4)],
    *[(dict(name=name), "name") for name in (None, 3)],
    *[(dict(held_out=held_out), "held_out") for held_out in (3, "test", PIXELS, [1])],
]  # fmt: skip
STREAMED = [
    *[(dict(read=read), "read") for read in (None, 3, PIXELS)],
    *[(dict(length=length), "length") for length in NOT_WHOLE],
    (dict(length=0), "empty"), (dict(length=-1), "length"),
    *[(dict(image_shape=shape), "image_shape") for shape in
      (None, 8, (8, 8), "888", (8, 8, 2), (0, 8, 1), (8.0, 8, 1))],
    *[(dict(name=name), "name") for name in (None, 3)],
    *[(dict(class_names=names), "class_names") for names in NOT_TEXTS],
]  # fmt: skip


def tone(i):
    return PIXELS[i], 0


RIGHT = {
    "load": (data.load, dict(name="digits")),
    "has_split": (data.has_split, dict(name="digits", split="test")),
    "batches": (data.batches, dict(source=SET, batch_size=2, seed=0)),
    "as_source": (data.as_source, dict(found=POINTS, name="rings")),
    "ArraySource": (data.ArraySource, dict(images=PIXELS)),
    "StreamedSource": (
        data.StreamedSource, dict(read=tone, length=4, image_shape=(8, 8, 1), name="tones"),
    ),
    "describe": (data.describe, dict(source=SET)),
    "epoch_permutation": (data.epoch_permutation, dict(size=3, seed=0, epoch=0)),
}  # fmt: skip
SPLITS = [
    (changes, word) for changes, word in LOADS if set(changes) <= {"name", "split", "data_dir"}
]
DESCRIBED = [(dict(source=source), "source") for source in (None, 3, "digits", PIXELS, [1])]
ORDERS = [
    (({name: value}), name)
    for name in ("size", "seed", "epoch") for value in (-1, *NOT_WHOLE)
]  # fmt: skip
CALLS = [
    (name, *case)
    for name, cases in (
        ("load", LOADS), ("has_split", SPLITS), ("batches", BATCHES), ("as_source", SOURCES),
        ("ArraySource", ARRAYS), ("StreamedSource", STREAMED), ("describe", DESCRIBED),
        ("epoch_permutation", ORDERS),
    )
    for case in cases
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "word"), CALLS)
def test_a_wrong_argument_is_named(name, changes, word):
    function, right = RIGHT[name]
    call = {**right, **changes}
    first = {"load": "name", "has_split": "name", "batches": "source", "as_source": "found",
             "ArraySource": "images", "StreamedSource": "read", "describe": "source",
             "epoch_permutation": "size"}[name]  # fmt: skip
    refuses(lambda: function(call.pop(first), **call), word)


def test_an_example_of_another_kind_is_named():
    refuses(lambda: data.as_source(Broken(), name="mine")[0], "mine", "example 0", "label")


def test_numpy_and_jax_and_lists_are_as_good():
    source = data.load("digits", image_size=np.int64(8), channels=np.int64(1))
    assert source.image_shape == (8, 8, 1)
    batch = next(data.batches(source, batch_size=np.int64(3), seed=np.uint32(1)))
    same = next(data.batches(source, batch_size=3, seed=1))
    np.testing.assert_array_equal(batch["image"], same["image"])
    for images in (POINTS, jnp.asarray(POINTS), POINTS.tolist()):
        made = data.ArraySource(images, [0, 1, 0, 1], class_names=["a", "b"])
        np.testing.assert_array_equal(made.images, POINTS)
        assert made.class_names == ("a", "b") and made.labels.dtype == np.int32
        assert isinstance(made.images, np.ndarray)
    assert data.as_source(jnp.asarray(POINTS), name="rings").image_shape == (2,)
    assert len(data.as_source([POINTS[0], POINTS[1]], name="rings")) == 2
