"""Numbers of answers against slow or hand-worked ones, drift against simulation, and what Prometheus and people are shown."""

import json
import types

import numpy as np
import pytest
from prometheus_client import parser

from gptjax.errors import UserError
from gptjax.serve import answer_measures, drift, people, quality
from gptjax.serve.quality import DAY, Answered, Quality
from gptjax.serve.service import Service

WEEK = 7 * DAY


class Clock:
    def __init__(self):
        self.seconds = 20_000 * DAY

    def __call__(self) -> float:
        return self.seconds


def answered(text="a fine answer", tokens=(1, 2, 3, 4), reason="eot", logprobs=(), model="gpt") -> Answered:
    return Answered(model, text, tuple(tokens), reason, tuple(logprobs))


def slow_repeated(tokens: list[int]) -> float:
    """Every piece at every place, counted out."""
    best = 0
    for start in range(len(tokens)):
        for period in range(1, min(answer_measures.MOST_PERIOD, len(tokens)) + 1):
            end = start + period
            while end < len(tokens) and tokens[end] == tokens[end - period]:
                end += 1
            if end - start >= 2 * period:
                best = max(best, end - start)
    return best / len(tokens)


@pytest.mark.parametrize("seed", range(8))
def test_the_longest_repetition_is_that_of_a_search_of_every_place(seed):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 3, rng.integers(2, 60)).tolist()
    tokens[10:10] = rng.integers(0, 9, 5).tolist() * int(rng.integers(1, 4))
    assert answer_measures.repeated(np.array(tokens)) == pytest.approx(slow_repeated(tokens))


def test_distinct_2_is_the_share_of_different_pairs():
    assert answer_measures.distinct(np.array([1, 2, 1, 2, 1]), 2) == 2 / 4
    assert answer_measures.distinct(np.array([1, 2, 3]), 2) == 1.0


@pytest.mark.parametrize(
    ("text", "refuses"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I\u2019m sorry. I cannot say.", True),
        ("As an AI language model, I have no body.", True),
        ("I do not feel comfortable with this.", True),
        ("Of course: the sum is 7.", False),
        ("I can tell you that. It won't rain.", False),
        ("A long tale. " * 40 + "I cannot say more.", False),
    ],
)
def test_a_refusal_is_known_by_how_it_begins(text, refuses):
    assert answer_measures.is_refusal(text) == refuses


def test_counts_are_of_finished_answers_and_ends_of_all():
    seen = Quality()
    for reason in ("eot", "length", "stop", "cancelled", "failed"):
        seen.observe(answered(reason=reason, logprobs=(-1.0, -2.0, 0.0, -1.0)))
    counts = seen.window()["gpt"]
    assert dict(counts.reasons) == dict.fromkeys(("eot", "length", "stop", "cancelled", "failed"), 1)
    assert sum(counts.bins["tokens"]) == 3 and counts.mean("tokens") == 4
    assert counts.mean("cut") == pytest.approx(1 / 3) and counts.mean("surprise") == 1.0
    seen.observe(answered(logprobs=()))
    assert sum(seen.window()["gpt"].bins["surprise"]) == 3, (
        "an answer without log-probabilities counts as one of 0 nats"
    )


def test_a_value_is_in_the_bin_that_ends_with_it():
    measure = answer_measures.MEASURES["tokens"]
    assert [measure.bin(value) for value in (1, 2, 3, 4, 8192, 8193)] == [0, 1, 2, 2, 13, 14]


def test_the_window_forgets_what_is_older_than_seven_days_and_memory_does_not_grow():
    clock = Clock()
    seen = Quality(now=clock)
    for _ in range(30):
        seen.observe(answered())
        clock.seconds += DAY
    assert seen.window()["gpt"].reasons.total() == 6, "today, on which nothing was said, and the six days before"
    assert len(seen._days["gpt"]) <= 7 and seen.total()["gpt"].reasons.total() == 30


def test_psi_is_that_of_its_formula():
    one = drift.of([50, 50], [80, 20])
    p, q = np.array([50.5, 50.5]) / 101, np.array([80.5, 20.5]) / 101
    assert one.psi == pytest.approx(sum((p - q) * np.log(p / q)))
    assert one.chance == pytest.approx(10.828 * (1 / 100 + 1 / 100), rel=1e-3), "chi-square of 1 degree, at 0.999"
    assert one.is_notable and not drift.of([50, 50], [51, 49]).is_notable
    assert drift.of([20, 9], [500, 500]) is None, "29 answers say nothing"


def test_chance_alone_is_seldom_called_a_drift_and_a_shift_is():
    rng = np.random.default_rng(0)
    share_B = np.array([0.05, 0.1, 0.2, 0.3, 0.2, 0.1, 0.05])
    same = [drift.of(rng.multinomial(60, share_B), rng.multinomial(90, share_B)) for _ in range(2000)]
    assert sum(one.is_notable for one in same) <= 12, "about 2 of 2000 are expected at a level of 0.999"
    assert sum(one.psi > drift.NOTABLE for one in same) > 1000, "the rule of thumb alone would cry wolf"
    moved_B = share_B * np.arange(1, 8) ** 2 / (share_B @ np.arange(1, 8) ** 2)
    shifted = [drift.of(rng.multinomial(300, moved_B), rng.multinomial(300, share_B)) for _ in range(50)]
    assert sum(one.is_notable for one in shifted) > 40


def test_a_reference_is_recorded_for_a_week_over_restarts_and_then_compared_with(tmp_path):
    clock, file = Clock(), tmp_path / "reference.json"
    first = Quality(str(file), clock)
    for _ in range(20):
        first.observe(answered(tokens=range(10)))
    first.close()
    clock.seconds += 3 * DAY
    second = Quality(str(file), clock)
    for _ in range(20):
        second.observe(answered(tokens=range(12)))
    assert second.drifts() == {}, "drift is known only beside a whole week"
    clock.seconds += 4 * DAY
    second.observe(answered(tokens=range(12)))
    saved = json.loads(file.read_text())
    assert saved["complete"] and sum(saved["models"]["gpt"]["bins"]["tokens"]) == 41
    third = Quality(str(file), clock)
    for _ in range(40):
        third.observe(answered(text="I'm sorry, I can't.", tokens=[5] * 300, reason="length"))
    moved = third.drifts()["gpt"]
    assert all(moved[name].is_notable for name in ("tokens", "cut", "refused", "repeated"))
    assert json.loads(file.read_text()) == saved, "a whole reference is not written to"


def test_what_quality_json_gives_is_a_reference(tmp_path):
    seen = Quality()
    for _ in range(50):
        seen.observe(answered())
    (tmp_path / "saved.json").write_text(json.dumps(seen.as_json()))
    again = Quality(str(tmp_path / "saved.json"))
    for _ in range(50):
        again.observe(answered())
    assert again.drifts()["gpt"]["tokens"].psi == 0.0


@pytest.mark.parametrize("content", ["no JSON", "[]", "{}", '{"format": "gptjax-quality", "version": 2}', "null"])
def test_a_file_that_is_no_reference_is_refused_in_a_line(tmp_path, content):
    file = tmp_path / "reference.json"
    file.write_text(content)
    with pytest.raises(UserError, match="--quality_reference="):
        Quality(str(file))
    assert file.read_text() == content


def test_a_reference_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(UserError, match="give another file"):
        Quality(str(tmp_path / "nowhere" / "reference.json"))


def test_prometheus_reads_the_lines(tmp_path):
    seen = Quality(str(tmp_path / "reference.json"), clock := Clock())
    hostile = 'a "quoted"\\ name\n'
    for length in (3, 300):
        for _ in range(40):
            seen.observe(answered(tokens=range(length), model=hostile, logprobs=[-0.5] * length))
    clock.seconds += WEEK
    seen.observe(answered(model=hostile))
    families = {family.name: family for family in parser.text_string_to_metric_families(seen.prometheus())}
    [ends] = families["gptjax_answers"].samples
    assert ends.value == 81 and ends.labels == {"model": hostile, "reason": "eot"}
    tokens = {sample.labels.get("le", sample.name): sample.value for sample in families["gptjax_answer_tokens"].samples}
    assert tokens["2.0"] == 0 and tokens["4.0"] == 41 and tokens["+Inf"] == 81
    assert tokens["gptjax_answer_tokens_sum"] == 40 * 303 + 4 and tokens["gptjax_answer_tokens_count"] == 81
    assert {sample.labels["measure"] for sample in families["gptjax_quality_drift"].samples} == set()
    for _ in range(40):
        seen.observe(answered(model=hostile))
    families = {family.name: family for family in parser.text_string_to_metric_families(seen.prometheus())}
    assert {sample.labels["measure"] for sample in families["gptjax_quality_drift"].samples} >= {"tokens", "cut"}


def test_the_page_says_what_has_drifted_and_holds_no_script(tmp_path):
    clock = Clock()
    seen = Quality(str(tmp_path / "reference.json"), clock)
    name = "<script>alert(1)</script>"
    assert "Nothing has been answered yet" in seen.page()
    for _ in range(40):
        seen.observe(answered(model=name))
    assert "a reference is recorded" in seen.page()
    clock.seconds += WEEK
    for _ in range(41):
        seen.observe(answered(model=name, tokens=range(900), reason="length"))
    page = seen.page()
    assert "<script" not in page and "&lt;script&gt;" in page and " style=" not in page
    assert "Differs from the reference in: tokens of an answer; share of answers that ended at the most tokens" in page


def test_the_observer_of_a_server_takes_its_records():
    """A Record as serve.service has it."""
    shown = people.parts(None, None)
    ending = types.SimpleNamespace(reason="stop")
    text = types.SimpleNamespace(text="words", tokens=[1, 2], logprobs=[], ending=ending)
    [observe], [metrics] = shown.observers, shown.more_metrics
    observe(types.SimpleNamespace(served=types.SimpleNamespace(name="gpt"), text=text))
    assert 'gptjax_answers_total{model="gpt",reason="stop"} 1.0' in metrics()
    assert {route.path for route in shown.routes} >= {"/", "/page/page.js", "/quality", "/quality.json"}
    assert quality.FORMAT == "gptjax-quality"


def test_an_answer_reaches_its_client_where_nothing_can_be_written_about_it(tmp_path, caplog):
    folder = tmp_path / "gone"
    folder.mkdir()
    clock, seen = Clock(), []
    counted = Quality(str(folder / "reference.json"), clock)
    service = Service(None, None, None, (lambda record: counted.observe(answered()), lambda record: 1 / 0, seen.append))
    (folder / "reference.json").unlink()
    folder.rmdir()
    clock.seconds += DAY  # it is time to write
    with caplog.at_level("ERROR", "gptjax.serve"):
        service.observe("an answer")
    assert seen == ["an answer"] and counted.total()["gpt"].reasons == {"eot": 1}
    assert "--quality_reference" in caplog.text and "ZeroDivisionError" in caplog.text
