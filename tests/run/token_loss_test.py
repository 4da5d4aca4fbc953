import math

import numpy as np
import pytest

from gptjax.run.token_loss import TokenLoss

EURO = "€".encode()


def made(spelling, loss):
    return TokenLoss(np.arange(len(spelling)), spelling, np.float32(loss))


def test_mean_and_bits_per_byte_are_the_hand_worked_ones_and_leave_out_what_is_not_predicted():
    found = made([b"ab", b"cde", b""], [math.nan, 2.0, 1.0])
    assert found.mean == float(found) == 1.5 and found.total == 3.0 and len(found) == 3
    assert found.bits_per_byte == pytest.approx(3 / math.log(2) / 3)
    assert found.perplexity == pytest.approx(math.exp(1.5))
    assert str(found) == "TokenLoss(1.5000 nats/token, 1.4427 bits/byte, perplexity 4.48, 2 tokens)"
    assert math.isnan(made([b"a"], [math.nan]).mean)


def test_a_character_of_several_tokens_is_one_span_with_the_losses_of_each():
    found = made([b"a", EURO[:1], EURO[1:2], EURO[2:] + b"b", b"\xff", b"c"], [0.5, 1, 2, 3, 1, 1])
    assert found.tokens == ["a", "\\xe2", "\\x82", "\\xacb", "\\xff", "c"] and found.text == "a€b\ufffdc"
    page = found._repr_html_()
    assert page.count("<span") == 4
    assert ">€b</span>" in page and "rgba(220, 50, 47, 0.60)" in page, "1 + 2 + 3 of 10 nats"
    span = page[page.index("€b") - 260 : page.index("€b")]
    assert span.count(" nats, probability ") == 3 and "&#10;" in span


def test_the_page_escapes_what_the_text_has():
    page = made([b"<script>", b'"&', b"\xe2"], [20.0, 0.0, math.nan])._repr_html_()
    assert "<script>" not in page and "&lt;script&gt;" in page and "&quot;&amp;" in page
    assert "0, 47, 1.00" in page and "0, 47, 0.00" in page and "not predicted" in page
