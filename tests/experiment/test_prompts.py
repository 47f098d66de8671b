"""Prompts from a flag or a file."""

import pytest

from diffjax.errors import UserError
from diffjax.experiment import prompts


def test_one_several_none_and_a_file(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a red apple\n\n  a blue | green heart \n")
    assert prompts.read("  ", key="sample.prompt") == ()
    assert prompts.read(" a dog ", key="sample.prompt") == ("a dog",)
    assert prompts.read("a | b|c", key="sample.prompt") == ("a", "b", "c")
    assert prompts.read(f"file:{file}", key="sample.prompt") == (
        "a red apple",
        "a blue | green heart",
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a||b", "is empty"), ("a|", "is empty"), ("file:NOWHERE", "No such file"),
     ("file:EMPTY", "no line"), ("file:BINARY", "not UTF-8")],
)  # fmt: skip
def test_bad_prompts_are_told_in_one_line(tmp_path, text, expected):
    (tmp_path / "EMPTY").write_text("\n \n")
    (tmp_path / "BINARY").write_bytes(b"\xff\xfe\xfa")
    text = text.replace("file:", f"file:{tmp_path}/")
    with pytest.raises(UserError, match=expected) as caught:
        prompts.read(text, key="sample.prompt")
    assert "config.sample.prompt" in str(caught.value) and "\n" not in str(caught.value)
