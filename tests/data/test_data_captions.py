"""Captions: in sources and batches, in folders with a metadata table, and in what is kept."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffjax.data import ArraySource, StreamedSource, batches, decoded, has_split, load
from diffjax.data.sources import number_captions
from diffjax.errors import UserError

IMAGES = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1)
TEXTS = ["b", "a", "c", "a", "b", "é"]


def captioned(texts: list[str] = TEXTS, **options) -> ArraySource:
    captions, numbers = number_captions(texts)
    return ArraySource(IMAGES[: len(texts)], captions=captions, caption_numbers=numbers, **options)


def streamed(source: ArraySource) -> StreamedSource:
    return StreamedSource(
        lambda i: (source.images[i], int(source.labels[i])),
        length=len(source),
        image_shape=source.image_shape,
        name=source.name,
        captions=source.captions,
        caption_numbers=source.caption_numbers,
    )


def test_captions_are_distinct_sorted_and_numbered():
    source = captioned()
    assert source.captions == ("a", "b", "c", "é")
    for each in (source, streamed(source)):
        assert [each.captions[each[i]["caption"]] for i in range(6)] == TEXTS
        assert each[0]["caption"].dtype == np.int32 and each[0]["caption"].shape == ()
        assert set(each[0]) == {"image", "label", "caption"}


@pytest.mark.parametrize("kind", [lambda source: source, streamed], ids=["memory", "streamed"])
def test_a_batch_holds_the_captions_of_its_images(kind):
    source = kind(captioned())
    iterator = batches(source, batch_size=4, seed=3)
    for _ in range(5):
        batch = next(iterator)
        assert batch["caption"].dtype == np.int32 and batch["caption"].shape == (4,)
        for image, number in zip(batch["image"], batch["caption"], strict=True):
            assert source.captions[number] == TEXTS[int(image.flat[0])]


def test_shards_share_out_the_captions():
    whole = next(batches(captioned(), batch_size=4, seed=0))["caption"]
    for index in range(2):
        part = batches(captioned(), batch_size=4, seed=0, shard_index=index, shard_count=2)
        assert (next(part)["caption"] == whole[2 * index : 2 * index + 2]).all()


@pytest.mark.parametrize("kind", [lambda source: source, streamed], ids=["memory", "streamed"])
def test_without_captions_nothing_is_new(kind):
    source = kind(ArraySource(IMAGES))
    iterator = batches(source, batch_size=2, seed=0)
    assert source.captions == ()
    assert set(source[0]) == set(next(iterator)) == {"image", "label"}
    assert "captions_crc32" not in iterator.get_state()


def test_a_state_knows_its_captions():
    state = batches(captioned(), batch_size=2, seed=0).get_state()
    json.dumps(state)
    batches(captioned(), batch_size=2, seed=0).set_state(state)
    batches(streamed(captioned()), batch_size=2, seed=0).set_state(state)
    others = captioned(["x", *TEXTS[1:]]), ArraySource(IMAGES)
    for other in others:
        iterator = batches(other, batch_size=2, seed=0)
        with pytest.raises(UserError, match="captions_crc32"):
            iterator.set_state(state)
    bare = batches(ArraySource(IMAGES), batch_size=2, seed=0).get_state()
    with pytest.raises(UserError, match="captions_crc32 missing"):
        batches(captioned(), batch_size=2, seed=0).set_state(bare)


@pytest.mark.parametrize(
    ("captions", "numbers", "message"),
    [
        (("a",), None, "captions without caption_numbers"),
        ((), np.zeros(6, int), "caption_numbers without captions"),
        (("b", "a"), np.zeros(6, int), "distinct and sorted"),
        (("a", "a"), np.zeros(6, int), "distinct and sorted"),
        (("a",), np.zeros(5, int), r"\(5,\)"),
        (("a",), np.zeros(6), "float64"),
        (("a",), np.ones(6, int), r"are in \[1, 1\]; expected \[0, 0\]"),
        (("a",), np.full(6, -1), r"are in \[-1, -1\]"),
    ],
)
def test_captions_that_do_not_fit_are_refused(captions, numbers, message):
    with pytest.raises(UserError, match=message):
        ArraySource(IMAGES, captions=captions, caption_numbers=numbers)
    with pytest.raises(UserError, match=message):
        StreamedSource(
            lambda i: (IMAGES[i], 0),
            length=6,
            image_shape=(1, 1, 1),
            name="x",
            captions=captions,
            caption_numbers=numbers,
        )


def test_kept_sets_keep_their_captions(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = captioned()
    decoded.keep("with", source)
    decoded.keep("without", ArraySource(IMAGES))
    found = decoded.find("with", name="n", memory_limit_mb=1)
    assert found is not None and found.captions == source.captions
    assert (found.caption_numbers == source.caption_numbers).all()
    bare = decoded.find("without", name="n", memory_limit_mb=1)
    assert bare is not None and bare.captions == () and bare.caption_numbers is None


# Folders


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "set"


def write(folder: Path, rows: list[dict], *, table: str = "metadata.jsonl") -> None:
    """Writes a grey image for each row, valued by its number, and the table."""
    for value, row in enumerate(rows):
        path = folder / row["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (3, 2), value).save(path)
    if table.endswith("csv"):
        lines = [",".join(rows[0]), *(",".join(str(v) for v in row.values()) for row in rows)]
    else:
        lines = [json.dumps(row) for row in rows]
    (folder / table).write_text("\n".join(lines) + "\n", encoding="utf-8")


ROWS = [
    {"file_name": "b/1.png", "text": "a dog", "licence": "CC0"},
    {"file_name": "a.png", "text": "a cat", "licence": "CC0"},
    {"file_name": "c/d/2.png", "text": "a dog", "licence": "MIT"},
]


def texts(source) -> list[str]:
    return [source.captions[source[i]["caption"]] for i in range(len(source))]


@pytest.mark.parametrize("limit", [1024, 0], ids=["memory", "streamed"])
@pytest.mark.parametrize("table", ["metadata.jsonl", "metadata.csv"])
def test_a_folder_with_a_table_has_captions_and_no_classes(root, table, limit):
    write(root, ROWS, table=table)
    source = load(f"folder:{root}", memory_limit_mb=limit)
    assert type(source) is (ArraySource if limit else StreamedSource)
    assert source.captions == ("a cat", "a dog") and source.class_names == ()
    assert texts(source) == ["a cat", "a dog", "a dog"]
    assert [int(source[i]["image"].flat[0]) for i in range(3)] == [1, 0, 2]
    assert source[0]["label"] == -1


@pytest.mark.parametrize("table", ["metadata.jsonl", "metadata.csv"])
def test_a_column_label_gives_classes(root, table):
    rows = [{**row, "label": label} for row, label in zip(ROWS, [10, 9, 10], strict=True)]
    write(root, rows, table=table)
    source = load(f"folder:{root}")
    assert source.class_names == ("9", "10")
    assert [int(source[i]["label"]) for i in range(3)] == [0, 1, 1]
    assert texts(source) == ["a cat", "a dog", "a dog"]


def test_each_split_has_its_own_captions_and_the_classes_of_train(root):
    write(root / "train", [{"file_name": f"{x}.png", "text": x, "label": x} for x in "abc"])
    write(root / "test", [{"file_name": "1.png", "text": "new", "label": "b"}])
    assert has_split(f"folder:{root}", split="test")
    assert not has_split(f"folder:{root}", split="val")
    train, test = (load(f"folder:{root}", split=split) for split in ("train", "test"))
    assert train.captions == ("a", "b", "c") and test.captions == ("new",)
    assert train.class_names == test.class_names == ("a", "b", "c")
    assert int(test[0]["label"]) == 1


def test_text_is_read_as_it_is_meant(root):
    write(root, [{"file_name": "./a.png", "text": '  two\u2028lines, "quoted" é 猫 \n'}])
    path = root / "metadata.jsonl"
    path.write_text("\ufeff" + path.read_text(encoding="utf-8") + "\n\n", encoding="utf-8")
    assert load(f"folder:{root}").captions == ('two\u2028lines, "quoted" é 猫',)


GOOD = '{"file_name": "a.png", "text": "x"}'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no row for a.png"),
        (GOOD + '\n{"file_name": "b.png", "text": "x"}', "names b.png, which is not an image"),
        (GOOD + '\n{"file_name": "../a.png", "text": "x"}', "names ../a.png, which is not"),
        (GOOD + "\n\n" + GOOD, "line 3: a.png is listed twice"),
        (GOOD + "\n{oops", "line 2 is not JSON"),
        ("[" * 100_000, "line 1 is not JSON"),
        ("[1]", r"line 1 is '\[1\]'; expected a JSON object"),
        ('{"file_name": "a.png"}', "line 1 has no text"),
        ('{"file_name": "a.png", "text": " "}', "line 1 has text ' '"),
        ('{"file_name": "a.png", "text": null}', "line 1 has text None"),
        ('{"file_name": "a.png", "text": ["x"]}', r"line 1 has text \['x'\]"),
        ('{"text": "x"}', "line 1 has no file_name"),
        ('{"file_name": "a.png", "text": "\\ud800"}', "a lone surrogate"),
        ('{"file_name": "a.png", "text": "x", "label": 1.5}', "label 1.5"),
        ('{"file_name": "a.png", "text": "x", "label": true}', "label True"),
        (
            '{"file_name": "a.png", "text": "x", "label": 1}\n{"file_name": "b", "text": "x"}',
            "line 2 has no label, line 1 has one",
        ),
    ],
)
def test_bad_lines_are_named(root, content, message):
    write(root, [{"file_name": "a.png", "text": "x"}])
    (root / "metadata.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        load(f"folder:{root}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begins with nothing; expected a header"),
        (b"name,text\na.png,x\n", "begins with name,text; expected a header"),
        (b"file_name,text\na.png\n", "line 2 has text None"),
        (b"file_name,text\na.png,x\na.png,y\n", "line 3: a.png is listed twice"),
        (b"file_name,text\na.png,\xff\n", "cannot read .*UTF-8"),
    ],
)
def test_bad_csv_rows_are_named(root, content, message):
    write(root, [{"file_name": "a.png", "text": "x"}], table="metadata.csv")
    (root / "metadata.csv").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load(f"folder:{root}")
    assert "\n" not in str(caught.value)


def test_a_table_that_is_not_utf8_is_no_traceback(root):
    write(root, ROWS)
    (root / "metadata.jsonl").write_bytes(b'{"file_name": "\xff"}')
    with pytest.raises(UserError, match=r"cannot read .*UTF-8"):
        load(f"folder:{root}")


@pytest.mark.parametrize("other", ["labels.csv", "metadata.csv"])
def test_two_tables_are_one_too_many(root, other):
    write(root, ROWS)
    (root / other).write_text("file,label\n")
    with pytest.raises(UserError, match=r"has both .*; keep one of them"):
        load(f"folder:{root}")


def test_a_table_beside_the_splits_is_refused(root):
    write(root / "train", ROWS)
    write(root / "test", ROWS)
    (root / "metadata.jsonl").write_text(GOOD)
    with pytest.raises(UserError, match=r"metadata.jsonl is next to the splits"):
        load(f"folder:{root}")


def test_a_caption_set_and_a_class_set_are_not_one(root):
    write(root / "train", [{**row, "label": "x"} for row in ROWS])
    write(root / "test", ROWS)
    with pytest.raises(UserError, match="one has labels, the other has none"):
        load(f"folder:{root}", split="test")
