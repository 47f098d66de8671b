"""The order of examples: every one once an epoch, a function of (seed, epoch), exact resume."""

import json

import numpy as np
import pytest

from diffjax.data import ArraySource, BatchIterator, StreamedSource, batches, epoch_permutation
from diffjax.errors import UserError


def numbered(size: int, **options) -> ArraySource:
    """A set whose every pixel and label say which example it is."""
    labels = np.arange(size)
    images = np.broadcast_to(labels[:, None, None, None], (size, 2, 3, 1)).astype(np.uint8)
    return ArraySource(images, labels, **options)


def streamed(source: ArraySource) -> StreamedSource:
    return StreamedSource(
        lambda i: (source.images[i], int(source.labels[i])),
        length=len(source),
        image_shape=source.image_shape,
        name=source.name,
        class_names=source.class_names,
    )


def labels_of(iterator: BatchIterator, steps: int) -> list[list[int]]:
    return [next(iterator)["label"].tolist() for _ in range(steps)]


@pytest.fixture(params=["memory", "grain"])
def kind(request):
    return (lambda source: source) if request.param == "memory" else streamed


def test_every_example_once_an_epoch_across_straddling_batches(kind):
    drawn = np.concatenate(labels_of(batches(kind(numbered(10)), batch_size=4, seed=3), 25))
    epochs = drawn.reshape(10, 10)
    assert (np.sort(epochs, axis=1) == np.arange(10)).all()
    assert len({tuple(epoch) for epoch in epochs}) > 8  # each epoch has an order of its own


def test_images_and_labels_stay_together(kind):
    batch = next(batches(kind(numbered(10)), batch_size=7, seed=0))
    assert batch["image"].shape == (7, 2, 3, 1) and batch["image"].dtype == np.uint8
    assert batch["label"].shape == (7,) and batch["label"].dtype == np.int32
    assert (batch["image"] == batch["label"][:, None, None, None]).all()


def test_order_depends_on_seed_only(kind):
    first, again, other = (
        labels_of(batches(kind(numbered(50)), batch_size=50, seed=seed), 2) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_first_epoch_of_one_seed_is_not_the_second_of_its_neighbour():
    orders = {
        tuple(epoch_permutation(40, seed=seed, epoch=epoch))
        for seed in range(5)
        for epoch in range(5)
    }
    assert len(orders) == 25


def test_permutations_are_uniform():
    # 24 orders of 4 things, 4,800 draws: chi-squared with 23 degrees of freedom exceeds 60 with
    # probability 4e-5, and the draws are fixed.
    counts: dict[tuple[int, ...], int] = {}
    for epoch in range(4800):
        order = tuple(epoch_permutation(4, seed=0, epoch=epoch).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    assert sum((count - 200) ** 2 / 200 for count in counts.values()) < 60


def test_permutation_is_pinned():
    # A saved run must see the same data after any change to this library or to NumPy.
    assert epoch_permutation(8, seed=0, epoch=0).tolist() == [0, 3, 7, 5, 1, 2, 6, 4]


def test_a_batch_may_be_larger_than_the_set(kind):
    [drawn] = labels_of(batches(kind(numbered(3)), batch_size=10, seed=0), 1)
    assert len(drawn) == 10
    assert all(sorted(drawn[i : i + 3]) == [0, 1, 2] for i in (0, 3, 6))


def test_memory_and_grain_give_the_same_batches():
    source = numbered(11)
    in_memory = labels_of(batches(source, batch_size=4, seed=5), 12)
    assert labels_of(batches(streamed(source), batch_size=4, seed=5), 12) == in_memory


@pytest.mark.parametrize("stop", [0, 1, 7])
def test_resume_is_exact_after_json(kind, stop):
    source = kind(numbered(10))
    whole = labels_of(batches(source, batch_size=4, seed=3), 20)
    iterator = batches(source, batch_size=4, seed=3)
    head = labels_of(iterator, stop)
    state = json.loads(json.dumps(iterator.get_state()))
    labels_of(iterator, 2)  # what runs on after the save must not matter
    resumed = batches(source, batch_size=4, seed=3)
    resumed.set_state(state)
    assert resumed.get_state() == state
    assert head + labels_of(resumed, 20 - stop) == whole


def test_set_state_goes_back_on_a_running_iterator(kind):
    iterator = batches(kind(numbered(10)), batch_size=3, seed=0)
    labels_of(iterator, 2)
    state = iterator.get_state()
    expected = labels_of(iterator, 5)
    iterator.set_state(state)
    assert labels_of(iterator, 5) == expected


def test_state_of_memory_resumes_grain():
    source = numbered(10)
    iterator = batches(source, batch_size=4, seed=0)
    labels_of(iterator, 3)
    other = batches(streamed(source), batch_size=4, seed=0)
    other.set_state(iterator.get_state())
    assert labels_of(other, 4) == labels_of(iterator, 4)


@pytest.mark.parametrize(
    ("source", "batch_size", "seed", "word"),
    [
        (numbered(11), 4, 0, "source_size"),
        (numbered(10), 5, 0, "batch_size"),
        (numbered(10), 4, 1, "seed"),
        (ArraySource(np.zeros((10, 3, 3, 1), np.uint8)), 4, 0, "height"),
        (numbered(10, class_names=tuple("abcdefghij")), 4, 0, "classes"),
    ],
)
def test_a_state_from_elsewhere_is_refused(kind, source, batch_size, seed, word):
    state = batches(numbered(10), batch_size=4, seed=0).get_state()
    iterator = batches(kind(source), batch_size=batch_size, seed=seed)
    with pytest.raises(UserError, match=word):
        iterator.set_state(state)


@pytest.mark.parametrize("position", [3, -4, None, "8"])
def test_a_damaged_position_is_refused(kind, position):
    iterator = batches(kind(numbered(10)), batch_size=4, seed=0)
    with pytest.raises(UserError, match="position"):
        iterator.set_state({**iterator.get_state(), "position": position})
    with pytest.raises(UserError, match="missing"):
        iterator.set_state({"position": 4})


def test_shards_together_are_the_whole_batch(kind):
    source = kind(numbered(10))
    whole = batches(source, batch_size=6, seed=0)
    shards = [batches(source, batch_size=6, seed=0, shard_index=i, shard_count=3) for i in range(3)]
    for _ in range(5):
        parts = [next(shard)["label"] for shard in shards]
        assert np.concatenate(parts).tolist() == next(whole)["label"].tolist()
    state = whole.get_state()
    assert all(shard.get_state() == state for shard in shards)
    shards[1].set_state(batches(source, batch_size=6, seed=0).get_state())
    whole.set_state(batches(source, batch_size=6, seed=0).get_state())
    assert next(shards[1])["label"].tolist() == next(whole)["label"][2:4].tolist()


def test_an_error_while_streaming_reaches_the_caller():
    def read(i):
        raise UserError("cannot read x.png")

    source = StreamedSource(read, length=3, image_shape=(2, 2, 1), name="broken")
    with pytest.raises(UserError, match=r"x\.png"):
        next(batches(source, batch_size=2, seed=0))


def test_a_streamed_image_of_another_shape_is_refused():
    source = StreamedSource(
        lambda i: (np.zeros((2, 3, 1), np.uint8), 0), length=3, image_shape=(2, 2, 1), name="s"
    )
    with pytest.raises(UserError, match="image_size"):
        source[0]


@pytest.mark.parametrize(
    "arguments",
    [
        {"batch_size": 0, "seed": 0},
        {"batch_size": 2.0, "seed": 0},
        {"batch_size": 2, "seed": -1},
        {"batch_size": 5, "seed": 0, "shard_count": 2},
        {"batch_size": 4, "seed": 0, "shard_index": 2, "shard_count": 2},
    ],
)
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(UserError):
        batches(numbered(4), **arguments)


def test_an_empty_or_ill_shaped_set_is_refused():
    for images, labels in [
        (np.zeros((0, 2, 2, 1), np.uint8), None),
        (np.zeros((3, 2, 2), np.uint8), None),
        (np.zeros((3, 2, 2, 2), np.uint8), None),
        (np.zeros((3, 2, 2, 1), int), None),
        (np.full((3, 2), np.nan), None),
        (np.zeros((3, 2, 2, 1), np.uint8), np.zeros(2, int)),
        (np.zeros((3, 2, 2, 1), np.uint8), np.zeros(3, float)),
    ]:
        with pytest.raises(UserError):
            ArraySource(images, labels)
    with pytest.raises(UserError, match="class names"):
        numbered(3, class_names=("a", "b"))
    with pytest.raises(UserError, match="the set is empty"):
        StreamedSource(lambda i: (np.zeros((1, 1, 1)), 0), length=0, image_shape=(1, 1, 1), name="")


def test_batches_in_memory_are_the_callers_own():
    source = numbered(4)
    next(batches(source, batch_size=4, seed=0))["image"][:] = 99
    assert source.images.max() == 3
