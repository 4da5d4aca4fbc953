"""The page of a run: what its directory holds, whatever state that is in, and nothing that a browser would run."""

import ast
import html.parser
import json
import math
import re
import shutil

import pytest
import runs
from places import ROOT

from gptjax import cli
from gptjax.rundir import metrics, run_directory, runlock
from gptjax.watch import goodput, page, record
from gptjax.watch.run_page import RunPage

VOID = {"meta", "br"}


class Page(html.parser.HTMLParser):
    """The tags of a page, each closed by its own, and its visible text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.open, self.words, self.scripts = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.open += [tag] if tag not in VOID else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def data(self) -> dict:
        return json.loads(self.scripts[0])


@pytest.fixture(scope="module")
def directory(values, tmp_path_factory):
    """A run of 4 steps that was evaluated, saved and sampled from while it was trained."""
    folder = tmp_path_factory.mktemp("watch")
    short = runs.changed(
        values,
        train=dict(steps=4),
        checkpoint=dict(every_steps=2),
        eval=dict(every_steps=2, max_tokens=64, sample_tokens=8, sample_prompt="a", sample_every_steps=2),
    )
    assert cli.main(["train", runs.write_config(short, folder / "fields.py"), f"--workdir={folder / 'run'}"]) == 0
    return run_directory.open_run(str(folder / "run"))


@pytest.fixture
def copy(directory, tmp_path):
    """Of that run, to be changed."""
    return run_directory.open_run(str(shutil.copytree(directory.path, tmp_path / "run")))


def rows(directory) -> list[dict]:
    return metrics.read_metrics(directory.metrics)


def write(directory, given: list[dict], end: str = "") -> None:
    directory.metrics.write_text("".join(json.dumps(row) + "\n" for row in given) + end)


def shown(directory) -> Page:
    return Page(page.text(RunPage(directory).look()))


def series(directory, chart: str) -> list[dict]:
    return {one["id"]: one for one in RunPage(directory).look().charts}[chart]["series"]


def test_a_run_leaves_its_sample_its_devices_and_what_it_paused_for(directory):
    kept = rows(directory)
    [first] = [row for row in kept if row.get("event") == "first_call"]
    samples = [row for row in kept if row.get("event") == "sample"]
    assert first["devices"] == "8 x cpu" and [(row["step"], len(row["text"])) for row in samples] == [(2, 8), (4, 8)]
    [third] = [row for row in kept if row["kind"] == "train" and row["step"] == 3]
    assert all(third[f"seconds/{what}"] > 0 for what in ("evaluating", "saving", "sampling"))


def test_the_page_shows_losses_with_errors_speed_norms_facts_and_the_sample(directory):
    read, kept = shown(directory), rows(directory)
    training, held_out = {one["id"]: one for one in read.data["charts"]}["loss"]["series"]
    logged = [row for row in kept if row["kind"] == "train"]
    assert training["x"] == [1, 2, 3, 4] and training["y"] == pytest.approx([row["loss"] for row in logged], rel=1e-5)
    evaluated = [row for row in kept if row["kind"] == "eval"]
    assert held_out["x"] == [2, 4]
    assert held_out["error"] == pytest.approx([2 * row["standard_error"] for row in evaluated], rel=1e-5)
    assert {"learning_rate", "speed", "grad_norm", "param_norm"} < {one["id"] for one in read.data["charts"]}
    _, sample = [row for row in kept if row.get("event") == "sample"]
    for words in ("run done", "Step 2:", "Step 4:", "Step 4 of 4 (100.0%)", "2 layers, width 32, 4 heads of 8", "8 x cpu", "Goodput",
                  " ".join(sample["text"].split()), f"{evaluated[-1]['loss']:.4f} ± "):  # fmt: skip
        assert words in read.text, words


def test_mfu_is_shown_where_it_is_logged_as_on_accelerators(copy):
    write(copy, [row | ({"mfu": 0.4321} if row["kind"] == "train" else {}) for row in rows(copy)])
    read = shown(copy)
    assert "MFU 43.2%" in read.text and series(copy, "mfu")[0]["y"] == [0.4321] * 4
    assert "MFU" not in shown_without_mfu(copy)


def shown_without_mfu(copy) -> str:
    write(copy, [{name: value for name, value in row.items() if name != "mfu"} for row in rows(copy)])
    return shown(copy).text


def test_the_page_needs_nothing_outside_it(directory):
    text = page.text(RunPage(directory).look())
    assert not re.search(r"https?:(?!//www\.w3\.org/2000/svg)|<link|@import|url\(|src=", text)
    assert "default-src 'none'" in text


def test_text_of_samples_events_and_configs_is_never_read_as_html(copy):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    last = rows(copy)[-1] | {"kind": "event", "step": 4}
    write(copy, [*rows(copy), last | {"event": "sample", "prompt": evil, "text": evil},
                 last | {"event": "save_failed", "reason": evil}, last | {"event": evil}])  # fmt: skip
    manifest = copy.manifest() | {"command": ["gptjax", evil]}
    copy.write_json("manifest.json", manifest)
    read = shown(copy)
    assert read.tags.count("script") == 2 and "img" not in read.tags and len(read.scripts) == 2
    assert read.text.count("alert(2)") == 5, "it is shown as it is"
    assert [mark["text"] for mark in read.data["marks"]] == [f"saving failed: {evil}", evil]


def test_a_run_that_has_just_begun_is_shown_without_charts(copy):
    for rest in ("", '{"kind": "train", "st'):
        write(copy, [], rest)
        read = shown(copy)
        assert read.data["charts"] == [] and "not started" in read.text and "damaged" not in read.text
        assert "2 layers, width 32" in read.text
    with runlock.hold(copy.path):
        assert "starting" in shown(copy).text
    copy.metrics.unlink()
    assert "not started" in shown(copy).text


def test_a_torn_last_line_waits_until_it_is_whole_and_one_before_it_is_said_to_be_damaged(copy):
    *kept, row = [row for row in rows(copy) if row["kind"] == "train"]
    line = json.dumps(row)
    watched = RunPage(copy)
    steps = lambda: [one["series"][0]["x"] for one in watched.look().charts if one["id"] == "loss"]  # noqa: E731
    write(copy, kept, line[:20])
    assert steps() == [[1, 2, 3]]
    write(copy, kept, line + "\n")
    assert steps() == [[1, 2, 3, 4]] and "damaged" not in watched.look().parts["notices"]
    write(copy, kept, line[:20] + "\n" + line + "\n")
    assert steps() == [[1, 2, 3, 4]] and "1 lines of metrics.jsonl are damaged" in watched.look().parts["notices"]


def test_a_file_that_a_resume_or_a_rollback_writes_anew_replaces_what_was_shown(copy):
    watched, kept = RunPage(copy), [row for row in rows(copy) if row["kind"] == "train"]
    assert [mark["text"] for mark in watched.look().marks] == []
    event = {"kind": "event", "step": 2, "time": kept[1]["time"] + 9, "event": "rolled_back", "reason": "loss is nan"}
    write(copy, [*kept[:2], event | {"failed_step": 4}, kept[2] | {"loss": 1.25}])
    view = watched.look()
    [loss] = [chart["series"][0] for chart in view.charts if chart["id"] == "loss"]
    assert loss["x"] == [1, 2, 3] and loss["y"][-1] == 1.25
    assert [mark["text"] for mark in view.marks] == ["rolled back from step 4: loss is nan"]


def test_a_step_that_comes_again_takes_the_place_of_what_followed_the_first(copy):
    kept = [row for row in rows(copy) if row["kind"] == "train"]
    write(copy, [*kept, kept[1] | {"loss": 7.5}])
    [training] = series(copy, "loss")
    assert training["x"] == [1, 2] and training["y"][-1] == 7.5


def test_numbers_that_are_not_finite_are_marked_and_leave_the_page_readable(copy):
    kept = [row for row in rows(copy) if row["kind"] == "train"]
    write(copy, [*kept[:2], kept[2] | {"loss": "nan", "grad_norm": "inf"}, kept[3]])
    read = shown(copy)
    [training] = {one["id"]: one for one in read.data["charts"]}["loss"]["series"]
    assert training["x"] == [1, 2, 4] and training["bad"] == [3]
    assert all(map(math.isfinite, training["y"])) and "the training loss is nan" in read.text


def test_the_state_is_that_of_the_log_and_of_the_lock(copy):
    kept, states = rows(copy), {}
    half = [row for row in kept if row["step"] <= 2]
    cases = {"stopped": half, "diverged": [*half, half[-1] | {"kind": "event", "event": "diverged", "reason": "x"}]}
    for state, given in {**cases, "done": kept}.items():
        write(copy, given)
        states[state] = RunPage(copy).look()
        assert f">{state}<" in states[state].parts["head"] and not states[state].going_on
    assert "diverged: x" in states["diverged"].parts["notices"]
    write(copy, half)
    with runlock.hold(copy.path):
        view = RunPage(copy).look()
    assert ">training<" in view.parts["head"] and view.going_on and "time left" in view.parts["head"]


def test_the_parts_of_the_time_are_all_of_it_and_none_is_counted_twice(directory):
    found, kept = goodput.Goodput(), rows(directory)
    for row in kept:
        found.add(row)
    [first] = [row for row in kept if row.get("event") == "first_call"]
    whole = kept[-1]["time"] - first["time"] + first["seconds"]
    seconds = found.seconds()
    assert sum(seconds.values()) == pytest.approx(whole, abs=0.02)  # times are kept to the millisecond
    assert {"training", "starting and compiling", "evaluating", "saving", "sampling"} <= seconds.keys()


def test_the_last_save_and_the_last_evaluation_count_as_the_run_timed_them(directory):
    found, kept = goodput.Goodput(), rows(directory)
    for row in kept:
        found.add(row)
    [last] = [row for row in kept if row.get("event") == "rows_read"]
    assert last["seconds/saving"] > 0 and last["seconds/evaluating"] > 0
    for what in ("saving", "evaluating"):
        timed = sum(row.get(f"seconds/{what}", 0.0) for row in kept)
        assert found.seconds()[what] == pytest.approx(timed, rel=1e-9)


@pytest.mark.parametrize("finished, stopped", [(True, 0.0), (False, 985.0)])
def test_nobody_waits_for_a_run_that_has_taken_all_its_steps(finished, stopped):
    """Made longer after 1000 s, of which the start takes 15."""
    found = goodput.Goodput()
    for row in (
        dict(kind="event", step=1, time=20.0, event="first_call", seconds=20.0),
        dict(kind="event", step=1, time=21.0, event="rows_read", finished=finished),
        dict(kind="event", step=1, time=1010.0, event="resumed"),
        dict(kind="event", step=2, time=1021.0, event="first_call", seconds=15.0),
    ):
        found.add(row)
    assert found.seconds().get("stopped, or steps lost", 0.0) == stopped


@pytest.mark.parametrize(
    "evaluated, spent",
    [
        pytest.param(165.0, {"seconds/saving": 1.0, "seconds/evaluating": 4.0}, id="saved, then evaluated"),
        pytest.param(164.0, {}, id="evaluated, then saved, as older versions did"),
    ],
)
def test_goodput_worked_by_hand(evaluated, spent):
    """20 s to start; 10 steps of 1 s and a save of 3 s; a kill, 100 s later a start of 15 s; 9 steps in 10 of 12 s; a save and an
    evaluation."""
    log = [
        dict(kind="train", step=1, time=20.0, tokens=100),
        dict(kind="event", step=1, time=20.0, event="first_call", seconds=20.0),
        {"kind": "train", "step": 11, "time": 33.0, "tokens": 1100, "tokens_per_second": 100.0, "seconds/saving": 3.0},
        dict(kind="event", step=11, time=140.0, event="resumed"),
        dict(kind="event", step=12, time=148.0, event="first_call", seconds=15.0),
        dict(kind="train", step=21, time=160.0, tokens=2100, tokens_per_second=90.0),
        dict(kind="eval", step=21, time=evaluated, loss=2.0),
        dict(kind="event", step=21, time=165.0, event="rows_read") | spent,
        dict(kind="event", step=21, time=167.0, event="rolled_back"),
    ]
    found = goodput.Goodput()
    for row in log[:-1]:
        found.add(row)
    assert found.seconds() == {
        "training": 10.0 + 10.0,
        "starting and compiling": 20.0 + 15.0,
        "evaluating": 4.0,
        "saving": 3.0 + 1.0,
        "stopped, or steps lost": 100.0,
        "other": 2.0,
    }
    found.add(log[-1])
    assert found.seconds()["rolled back"] == 7.0, "from the last training row on, whatever it was spent on"


def events_written() -> dict[str, str]:
    """{event: a place} of all calls with event="..." and all dicts with "event": "..." of the package."""
    known = {}
    for file in (ROOT / "gptjax").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            pairs = zip(node.keys, node.values) if isinstance(node, ast.Dict) else ()
            values = [value for key, value in pairs if isinstance(key, ast.Constant) and key.value == "event"]
            if isinstance(node, ast.Call):
                values += [keyword.value for keyword in node.keywords if keyword.arg == "event"]
            for value in values:
                if isinstance(value, ast.Constant):
                    known[value.value] = f"{file.relative_to(ROOT)}:{value.lineno}"
    return known


def test_every_event_that_a_run_writes_has_its_words():
    written = events_written()
    assert {"resumed", "branched", "save_failed", "loss_above_uniform", "tasks_failed"} <= written.keys()
    assert not {name: place for name, place in written.items() if name not in (*record.SAID, *record.SILENT)}


def test_a_loss_above_that_of_guessing_is_marked_as_bad(copy):
    event = rows(copy)[0] | {"kind": "event", "event": "loss_above_uniform", "loss": 7.25, "limit": 4.5}
    write(copy, [*rows(copy), event])
    [mark] = RunPage(copy).look().marks
    assert mark["bad"] and mark["text"] == "the training loss stays above 4.5, worse than guessing, and is 7.25"


def test_a_loss_that_stands_out_is_an_event_once(copy):
    first = next(row for row in rows(copy) if row["kind"] == "train")
    losses = [2 + 0.01 * (i % 5) for i in range(60)]
    losses[40:43] = [9.0, 9.5, 9.0]
    write(copy, [first | {"step": i + 1, "loss": loss} for i, loss in enumerate(losses)])
    assert [(mark["x"], mark["text"].partition(",")[0]) for mark in RunPage(copy).look().marks] == [
        (41, "loss spike: 9")
    ]
