import json
import math

import judging
import numpy as np
import pytest

from gptjax.errors import UserError
from gptjax.evaluation import protocols, run_loss

WIKITEXT = """ = Heading = 
 
 It cost 1 @,@ 000 ( 5 @.@ 5 % of a three @-@ year plan ) ; the boys ' team won " at last " . 
 = = Part = = 
 It was 4 ° C ! 
"""  # noqa: W291, as the data set has it
DETOKENISED = """ = Heading =

It cost 1,000 (5.5 % of a three-year plan); the boys' team won "at last".
== Part ==
It was 4°C!
"""


def test_wikitext_is_given_back_as_it_was_written():
    assert protocols.detokenise(WIKITEXT, "wikitext103") == DETOKENISED
    assert protocols.detokenise(WIKITEXT, "wikitext2") == DETOKENISED


def test_apostrophes_are_taken_for_quotes_in_pairs_as_others_who_publish_do():
    assert protocols.detokenise("it 's the boys ' team", "wikitext2") == "it's the boys' team"
    assert protocols.detokenise("the boys ' team , it 's", "wikitext2") == "the boys'team, it's"


def test_neighbouring_marks_are_joined_one_kind_after_the_other():
    """str.replace for ; and then for . gives a;. b, one pass over both would leave a space."""
    assert protocols.detokenise("a ; . b", "wikitext2") == "a;. b"


def test_penn_treebank_is_given_back_as_it_was_written():
    text = " the bank 's $ N fund did n't pay \n no . # N \n"
    assert protocols.detokenise(text, "ptb") == " the bank's $1 fund didn't pay\nno . # N\n"


def test_words_are_those_of_the_data_set_with_one_for_each_line_end():
    assert protocols.count_words(" = Heading = \n \n It cost 1 @,@ 000 \n") == 3 + 1 + 0 + 1 + 5 + 1


def test_perplexity_per_word_divides_the_whole_text_by_the_data_sets_own_words(tmp_path):
    one, text = judging.made_run("bytes"), " a dog , it 's \n \n said . \n"
    (tmp_path / "wiki.test.tokens").write_text(text)
    spec = f"text:{tmp_path}/wiki.test.tokens"
    [result] = one.evaluate(spec, protocol="wikitext2", stride=4).values()
    changed = " a dog, it's\n\nsaid. \n".replace(". \n", ".\n")
    assert protocols.detokenise(text, "wikitext2") == changed
    assert result.words == 7 + 3 and result.tokens == len(changed.encode()) - 1  # no end-of-text is among them
    assert result.word_perplexity == pytest.approx(math.exp(result.loss * result.tokens / 9))
    (tmp_path / "plain.txt").write_text(changed.rstrip("\n"))
    plain = one.evaluate(f"{tmp_path}/plain.txt", stride=4)["plain.txt"]  # the same, with end-of-text for the last \n
    assert plain.words is None and plain.tokens == result.tokens
    assert plain.loss != result.loss and plain.loss == pytest.approx(result.loss, rel=0.2)


def test_lines_of_a_data_set_are_one_text(tmp_path):
    one, lines = judging.made_run("bytes"), [" a dog , it 's \n", "", " said . \n"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    (tmp_path / "file.tokens").write_text(" a dog , it 's \n\n said . \n")
    by_row, whole = (
        one.evaluate(spec, protocol="wikitext103")
        for spec in (f"{tmp_path}/rows.jsonl", f"text:{tmp_path}/file.tokens")
    )
    assert list(by_row.values()) == list(whole.values())


def test_a_protocol_is_for_a_whole_text_of_its_own(tmp_path):
    one = judging.made_run("bytes")
    with pytest.raises(UserError, match="^protocol=wikitext2 is for a data set; give texts too"):
        one.evaluate(protocol="wikitext2")
    with pytest.raises(UserError, match="counts the words of a whole text; leave out max_tokens=5"):
        one.evaluate("text:x", protocol="wikitext2", max_tokens=5)
    with pytest.raises(UserError, match="'wikitext9' is not known; did you mean"):
        run_loss.check_protocol("wikitext9")


# ---- LAMBADA


def test_last_words_of_hand_worked_passages():
    """Log-probabilities of ln 1/2 and ln 1/8: perplexity 4; one of two right."""
    found = protocols.last_words([math.log(1 / 2), math.log(1 / 8)], [True, False], [True, True])
    assert found.accuracy == 0.5 and found.last_token_accuracy == 1.0 and found.passages == 2
    assert found.accuracy_error == pytest.approx(0.5)
    assert found.perplexity == pytest.approx(4)
    assert found.standard_error == pytest.approx(math.log(2))
    assert found.perplexity_interval == pytest.approx((4 / 2**1.96, 4 * 2**1.96))


def test_passages_are_lines_of_a_text_or_documents_and_their_last_word_has_its_space(tmp_path):
    texts = ["a cab bad face", "he had a bed"]
    (tmp_path / "test.txt").write_text("\n".join(texts) + "\n")
    (tmp_path / "test.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    one = judging.made_run()
    for name in ("test.txt", "test.jsonl"):
        found = protocols.passages(f"{tmp_path}/{name}", one.tokenizer, one.config.data)
        assert [one.tokenizer.decode(passage.context) for passage in found] == ["a cab bad", "he had a"]
        assert [one.tokenizer.decode(passage.word) for passage in found] == [" face", " bed"]
    (tmp_path / "test.txt").write_text("alone\n")
    with pytest.raises(UserError, match="the passage 'alone' has no word before its last one"):
        protocols.passages(f"{tmp_path}/test.txt", one.tokenizer, one.config.data)


def test_last_words_are_scored_from_all_before_them(tmp_path):
    one, texts = judging.made_run(), ["a cab bad face", "he had a bed", "a bad egg . a gag"]
    (tmp_path / "test.txt").write_text("\n".join(texts))
    [found] = run_loss.last_words(one, f"{tmp_path}/test.txt").values()
    nats = []
    for text in texts:
        ids, n_word = one.tokenizer.encode(text), len(text.split(" ")[-1]) + 1
        nats.append(-judging.log_probability(one, ids[-17:])[-n_word:].sum())
    assert found.loss == pytest.approx(np.mean(nats), rel=1e-5)
    assert found.standard_error == pytest.approx(np.std(nats, ddof=1) / math.sqrt(3), rel=1e-4)
