"""Words and details."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.words import DETAIL_BYTES_MAX, cut_detail, is_code


@pytest.mark.parametrize("text", ["a", "key_unknown", "a1_" * 10, "x" * 32])
def test_stable_words_are_codes(text):
    """A code is lower case letters, digits and underscores, and begins with a letter."""
    assert is_code(text)


@pytest.mark.parametrize("text", ["", "A", "1a", "_a", "a b", "a\n", "é", "x" * 33, "a-b"])
def test_other_texts_are_no_codes(text):
    """Anything else is none."""
    assert not is_code(text)


@given(st.text(max_size=700))
def test_detail_is_a_short_printable_line(text):
    """A detail is printable, at most so many bytes, and left as it is if it was so already."""
    cut = cut_detail(text)
    assert cut.isprintable()
    assert len(cut.encode()) <= DETAIL_BYTES_MAX
    assert cut_detail(cut) == cut
    if text.isprintable() and len(text.encode()) <= DETAIL_BYTES_MAX:
        assert cut == text


def test_detail_is_not_cut_inside_a_character():
    """A long detail ends with a whole character."""
    assert cut_detail("x" + "é" * 400) == "x" + "é" * 255
