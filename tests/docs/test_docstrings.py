"""Docstrings and signatures become what Sphinx expects."""

import docstrings

from diffjax.errors import UserError
from diffjax.process import q_sample
from diffjax.schedules import Scales


def restructured(text):
    return "\n".join(docstrings.restructured(text.split("\n"), lambda code: f"<{code}>")).rstrip()


def test_an_indented_block_is_literal_and_keeps_its_lines():
    assert restructured("The pair\n\n    a = b |x|^2   (1)\n    c = d* e_\n\nof (1).") == (
        "The pair\n\n.. code-block:: text\n\n   a = b |x|^2   (1)\n   c = d* e_\n\nof (1)."
    )


def test_code_is_shown_as_such():
    assert ".. code-block:: python" in restructured(
        "So:\n\n    import diffjax\n    diffjax.load(x)"
    )
    assert ".. code-block:: text" in restructured("So:\n\n    step k (of N) -> x_s")


def test_markup_of_plain_text_is_escaped():
    assert restructured("|x| a*b `a*b` x_ y_t") == r"\|x\| a\*b <a*b> x\_ y_t"
    assert restructured("(2) holds,\n(3) does not") == "\\(2) holds,\n\\(3) does not"
    assert restructured("`Grid`s of\n`two\nlines`") == "<Grid>\\ s of\n<two lines>"


def test_lists_stay_lists():
    assert restructured("* one\n  goes on\n* two") == "* one\n  goes on\n* two"


def test_sections_become_fields():
    text = restructured(
        "Sum.\n\nArgs:\n  a, b: numbers,\n    both.\n  **rest: more.\n\n"
        "Returns:\n  a + b: the sum.\n\nRaises:\n  ValueError: a < b."
    )
    assert "   * **a, b** --\n     numbers,\n     both." in text
    assert ":Arguments:" in text and r"**\*\*rest**" in text
    assert ":Returns:\n   a + b: the sum." in text
    assert ":raises ValueError:" in text and "a < b." in text


def test_items_within_an_entry_are_a_list():
    text = restructured(
        "Get.\n\nReturns:\n  A dictionary:\n    one: 1 of\n      many;\n    two: 2."
    )
    assert "   * one: 1 of\n     many;" in text and "   * two: 2." in text


def test_an_example_stays_an_example():
    assert restructured("Sum.\n\n>>> 1 + 1\n2") == "Sum.\n\n>>> 1 + 1\n2"


def test_signatures_are_those_of_the_source():
    shown, result = docstrings.signature(q_sample, {"Data": "a.Data", "Times": "a.Times"}.get)
    assert shown == "(schedule: Schedule, x_0: ~a.Data, *, t: ~a.Times, eps: ~a.Data)"
    assert result == "~a.Data"
    fields, _ = docstrings.signature(Scales, lambda name: None)
    assert fields == "(signal_scale: Numbers, noise_scale: Numbers)"
    assert docstrings.signature(UserError, lambda name: None) == ("", None)
    assert docstrings.signature(len, lambda name: None) is None
