"""`gptjax watch`: where it writes, what it serves and to whom, the page of a study, and that its script draws."""

import contextlib
import dataclasses
import http.client
import json
import re
import shutil
import subprocess
import tempfile
import threading
import time

import buckets
import pytest
import studying

from gptjax import cli
from gptjax.config import config_file
from gptjax.errors import UserError
from gptjax.rundir import metrics, run_directory, runlock
from gptjax.study.running import layout, ledger
from gptjax.watch import page, serving
from gptjax.watch.run_page import RunPage
from gptjax.watch.study_page import StudyPage
from gptjax.watch.view import View


@pytest.fixture
def run(values, tmp_path):
    """A run directory with two logged steps of four."""
    config = config_file.from_dict(values | {"train": {"steps": 4, "batch_size": 16}}).with_vocabulary(65)
    directory = run_directory.open_run(str(tmp_path / "run"))
    directory.path.mkdir()
    directory.write_config(config)
    add_rows(directory, (1, 2))
    return directory


def add_rows(directory, steps, **more) -> None:
    with directory.metrics.open("a") as log:
        for step in steps:
            row = {"kind": "train", "step": step, "time": 1e9 + step, "loss": 5.0 - step, "tokens": 256 * step}
            log.write(json.dumps(row | {"learning_rate": 0.001} | more) + "\n")


@pytest.fixture
def study(run, tmp_path):
    """The folder of a study with a run in each of some states."""
    directory = layout.open_directory(str(tmp_path / "study"))
    entries = [
        ledger.Entry(name, "grid", {}, key=f"{number:012x}", params={"total": 1000 * (number + 1)}, steps=4, tokens=1024,
                     flops=10**6)
        for number, name in enumerate(("done<b>", "diverged", "failed", "partial", "planned"))
    ]  # fmt: skip
    ledger.Ledger(tuple(entries)).write(directory)
    shutil.copytree(run.path, directory.run(entries[3].key))
    studying.write_done_run(directory.run(entries[0].key), 4, 2.25)
    log = metrics.MetricsLog(
        folder(directory, entries[1]), resume_step=0, tensorboard=False, wandb_project=None, config=None
    )
    log.write("event", 3, event="diverged", reason="loss is nan")
    log.close()
    shutil.copytree(run.path, directory.run(entries[2].key))
    layout.write_json(directory.exit(entries[2].key), {"code": 1, "attempt": 1})
    return directory


def folder(directory, entry):
    path = directory.run(entry.key)
    path.mkdir(parents=True)
    return path


def test_the_page_of_a_run_is_written_into_it_or_where_out_says(run, tmp_path, capsys):
    assert cli.main(["watch", str(run.path)]) == 0
    assert capsys.readouterr().out.startswith(str(run.path / "watch.html"))
    assert cli.main(["watch", str(run.path), f"--out={tmp_path / 'page.html'}"]) == 0
    assert (tmp_path / "page.html").read_text() == (run.path / "watch.html").read_text()
    assert "Step 2 of 4 (50.0%)" in (tmp_path / "page.html").read_text()


def follow(path, monkeypatch, happenings) -> list[bool]:
    """Follows it while one of these happens in each pause. Returns whether the page was to be read again, in each pause."""
    read_again, left = [], iter(happenings)

    def pause(seconds):
        assert seconds == 10.0
        read_again.append('http-equiv="refresh"' in (path / "watch.html").read_text())
        next(left)()

    monkeypatch.setattr(time, "sleep", pause)
    assert cli.main(["watch", str(path), "--follow"]) == 0
    assert list(left) == [] and "refresh" not in (path / "watch.html").read_text()
    return read_again


def test_followed_it_is_written_and_read_again_until_the_run_is_done_also_while_nobody_trains(run, monkeypatch, capsys):
    held = contextlib.ExitStack()
    lock, free = lambda: held.enter_context(runlock.hold(run.path)), held.close
    step = lambda number: add_rows(run, (number,))  # noqa: E731
    happenings = [lambda: None, lock, lambda: step(3), free, lambda: None, lock, lambda: step(4), free]
    assert follow(run.path, monkeypatch, happenings) == [True] * 8
    assert "Step 4 of 4" in (run.path / "watch.html").read_text()
    waits = f"no process trains {run.path} now; --follow waits until one does (Ctrl-C ends it)"
    assert capsys.readouterr().out.splitlines()[1:] == [waits, waits, "the run is done; --follow ends"]


def test_a_run_that_is_not_started_yet_is_waited_for_and_one_that_diverged_is_not(run, monkeypatch, capsys):
    run.metrics.unlink()

    def diverge():
        add_rows(run, (1,))
        with run.metrics.open("a") as log:
            log.write(json.dumps({"kind": "event", "step": 1, "event": "diverged", "reason": "loss is nan"}) + "\n")

    assert follow(run.path, monkeypatch, [lambda: None, diverge]) == [True] * 2
    assert [line.partition(";")[0] for line in capsys.readouterr().out.splitlines()[1:]] == [
        f"no process trains {run.path} now", "the run diverged",
    ]  # fmt: skip


def test_a_study_is_followed_until_all_its_runs_have_ended(study, monkeypatch, capsys):
    def end_all():
        entries = ledger.read(study).entries
        ledger.Ledger(entries[:3]).write(study)  # done, diverged and failed

    assert follow(study.path, monkeypatch, [lambda: None, end_all]) == [True] * 2
    assert "all runs of the study have ended; --follow ends" in capsys.readouterr().out


def test_ctrl_c_ends_the_waiting(run, monkeypatch, capsys):
    def stop(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", stop)
    assert cli.main(["watch", str(run.path), "--follow"]) == 0
    assert "is no longer written" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, said",
    [
        (["--serve", "--out=x.html"], "--serve writes no file; leave out --out and --follow."),
        (["--out=nowhere/x.html"], "--out=nowhere/x.html cannot be written"),
    ],
)
def test_what_does_not_go_together_is_a_line(run, words, said, capsys):
    assert cli.main(["watch", str(run.path), *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("port", ["70000", "0", "x"])
def test_a_port_that_is_none_is_refused(run, port, capsys):
    assert cli.main(["watch", str(run.path), f"--serve={port}"]) == 2
    assert f"{port} is no port" in capsys.readouterr().err


def test_a_port_in_use_is_said(run):
    with serving.Server(0, RunPage(run)) as server:
        port = server.server_address[1]
        with pytest.raises(UserError, match=f"--serve={port}: .*in use"):
            serving.serve(RunPage(run), port, print)


def test_a_run_on_a_store_is_the_one_on_a_disk(run, tmp_path, monkeypatch, capsys):
    with buckets.mounted(tmp_path, monkeypatch) as bucket:
        shutil.copytree(run.path, bucket / "run")
        shown = RunPage(run_directory.open_run("gs://bucket/run"))
        here, there = RunPage(run).look(), shown.look()
        assert there.charts == here.charts and there.parts["head"] == here.parts["head"]
        with (bucket / "run" / "metrics.jsonl").open("a") as log:
            log.write(run.metrics.read_text().splitlines()[-1].replace('"step": 2', '"step": 3') + "\n")
        assert [one["series"][0]["x"] for one in shown.look().charts if one["id"] == "loss"] == [[1, 2, 3]]
        assert cli.main(["watch", "gs://bucket/run"]) == 0
        assert capsys.readouterr().out == "gs://bucket/run/watch.html\n"
        assert "Step 3 of 4" in (bucket / "run" / "watch.html").read_text()


# ---- the server


class Client:
    def __init__(self, shown):
        self.server = serving.Server(0, shown)
        for source in self.server._sources.values():
            source._seconds = 0  # each question looks anew
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def get(self, path: str, method: str = "GET", host: str | None = None):
        """(status, type, text)"""
        connection = http.client.HTTPConnection(*self.server.server_address)
        connection.request(method, path, headers={"Host": host} if host else {})
        answer = connection.getresponse()
        found = answer.status, answer.headers["Content-Type"], answer.read().decode()
        connection.close()
        return found


@pytest.fixture
def client(run):
    made = Client(RunPage(run))
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_it_answers_with_the_page_and_with_what_is_new(client, run):
    code, kind, text = client.get("/")
    assert (code, kind) == (200, "text/html; charset=utf-8") and '"poll_seconds":3.0' in text
    code, kind, text = client.get("/data?since=0")
    first = json.loads(text)
    assert (code, kind) == (200, "application/json; charset=utf-8")
    assert first["charts"]["loss"]["series"][0]["x"] == [1, 2] and "Step 2 of 4" in first["parts"]["head"]
    nothing = json.loads(client.get(f"/data?since={first['number']}")[2])
    assert nothing["charts"] == nothing["parts"] == {} and nothing["ids"] == list(first["charts"])
    add_rows(run, (3,), learning_rate="nan")
    news = json.loads(client.get(f"/data?since={first['number']}")[2])
    assert news["charts"]["loss"]["series"][0]["x"] == [1, 2, 3]
    assert "Step 3 of 4" in news["parts"]["head"] and "samples" not in news["parts"]


def test_a_chart_that_went_away_is_sent_whole_when_it_comes_back(client, run):
    first, rows = json.loads(client.get("/data")[2]), run.metrics.read_bytes()
    run.metrics.write_bytes(b"")
    gone = json.loads(client.get(f"/data?since={first['number']}")[2])
    run.metrics.write_bytes(rows)
    back = json.loads(client.get(f"/data?since={gone['number']}")[2])
    assert gone["ids"] == [] and back["charts"] == first["charts"] != {}


@pytest.mark.parametrize(
    "path", ["/config.json", "/../config.json", "/metrics.jsonl", "//etc/passwd", "/data/", "/watch.html"]
)
def test_it_serves_no_other_path(client, path):
    assert client.get(path)[0] == 404


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8750", "127.0.0.1.evil.example", "localhost@evil.example"]
)
def test_it_answers_to_no_other_host_so_that_a_page_elsewhere_reads_nothing(client, host):
    code, _, text = client.get("/data", host=host)
    assert code == 403 and "loss" not in text


def test_it_answers_where_its_port_is_forwarded(client):
    assert client.get("/data", host="localhost:9999")[0] == client.get("/data", host="127.0.0.1")[0] == 200


def test_it_listens_on_this_machine_alone_and_changes_nothing(client):
    assert client.server.server_address[0] == "127.0.0.1"
    assert {client.get("/data", method)[0] for method in ("POST", "PUT", "DELETE")} == {501}


def test_a_run_that_goes_away_is_an_answer_and_no_end(client, run):
    shutil.move(run.path, run.path.with_name("elsewhere"))
    code, _, text = client.get("/data")
    assert code == 503 and "no such directory" in text
    shutil.move(run.path.with_name("elsewhere"), run.path)
    assert client.get("/data")[0] == 200


# ---- a study


def test_the_page_of_a_study_has_a_row_for_each_run_with_its_state_and_all_curves(study):
    view = StudyPage(study).look()
    table = view.parts["runs"]
    for name, state in (("done&lt;b&gt;", "done"), ("diverged", "diverged"), ("failed", "failed"), ("partial", "partial"),
                        ("planned", "planned")):  # fmt: skip
        [row] = [row for row in table.split("<tr>") if f">{name}</td>" in row]
        assert f'class="state {state}"' in row
        assert ("2.2500" in row) == (state == "done") and ("loss is nan at step 3" in row) == (state == "diverged")
    curves, ends = view.charts
    assert [one["name"] for one in curves["series"]] == ["done<b>", "failed", "partial"]
    assert curves["series"][1]["x"] == [256, 512] and curves["x_label"] == "tokens"
    assert [(one["x"], one["y"]) for one in ends["series"]] == [([10**6], [2.25])]
    assert [one["group"] for one in curves["series"]] == ["N = 1.00k", "N = 3.00k", "N = 4.00k"]
    assert not view.going_on and "<b>" not in page.text(view)


def test_a_served_study_leads_to_the_page_of_each_run_and_to_no_other_folder(study):
    client = Client(StudyPage(study, links=True))
    key = f"{3:012x}"
    assert f'<a href="?run={key}">partial</a>' in client.get("/")[2]
    assert "Step 2 of 4" in client.get(f"/?run={key}")[2] and "Step 2 of 4" in client.get(f"/data?run={key}")[2]
    for other in ("../../run", "ffffffffffff"):
        assert client.get(f"/?run={other}")[0] == 503
    client.server.shutdown()
    client.server.server_close()


def test_the_link_to_a_run_is_quoted_whatever_its_key(study):
    key = 'a"&<b>'
    entry = dataclasses.replace(ledger.read(study).entries[3], key=key)
    shutil.copytree(study.run(f"{3:012x}"), study.run(key))
    ledger.Ledger((entry,)).write(study)
    shown = StudyPage(study, links=True)
    assert '<a href="?run=a%22%26%3Cb%3E">partial</a>' in shown.look().parts["runs"]


def test_the_command_writes_the_page_of_a_study(study):
    assert cli.main(["watch", str(study.path)]) == 0
    assert "5 runs" in (study.path / "watch.html").read_text()


# ---- the script


def drawn_by_chromium(file, *flags: str) -> str:
    """The page of a file after its script."""
    with tempfile.TemporaryDirectory() as profile:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
                 f"--user-data-dir={profile}", *flags]  # fmt: skip
        command = ["chromium", *flags, "--dump-dom", f"file://{file}"]
        return subprocess.run(command, capture_output=True, text=True, timeout=studying.SECONDS).stdout


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_the_script_draws_a_line_for_each_series_within_its_axes(run, tmp_path):
    views = RunPage(run).look()
    many = {"x": list(range(1, 1001)), "y": [2.0] * 1000, "lo": [1.0] * 1000, "hi": [3.0] * 1000, "bad": [500]}
    charts = [*views.charts, {"id": "many", "title": "Many", "x_label": "step", "series": [
        {"name": "a & b", "colour": "#123456", "kind": "line", **many}, {"name": "c", "colour": "#654321", "kind": "dots",
         "x": [5, 7], "y": [1.0, 2.0], "error": [0.5, 0.5]}]}]  # fmt: skip
    view: View = dataclasses.replace(views, charts=charts, marks=[{"x": 600, "text": "t", "bad": True}])
    file = tmp_path / "page.html"
    file.write_text(page.text(view))
    drawn = drawn_by_chromium(file)
    assert drawn.count("<svg") == len(charts) == 3
    [many] = [part.partition("<script")[0] for part in drawn.split('data-id="') if part.startswith("many")]
    assert many.count('stroke="#123456"') == 1 and many.count('fill="#123456"') == 1, "a line within its band"
    assert many.count("<circle") == 2 and many.count("not-finite") == 1 and many.count('class="mark bad"') == 1
    assert "a &amp; b" in many and "NaN" not in many and "Infinity" not in many


ANSWERS = """<script>
const answers = %s; // of one server after the other: {number asked for: news}
let turn = 0;
window.fetch = async (url) => {
  const since = new URLSearchParams(url.split("?")[1]).get("since");
  const news = answers[turn === 0 ? 0 : 1][since];
  turn += 1;
  return { ok: true, json: async () => structuredClone(news) };
};
</script>"""


def page_after(answers: list[dict], view: View, tmp_path) -> str:
    """The page of a view, after these servers have answered it in turn: the first once."""
    text = re.sub(r"<meta http-equiv=.Content-Security-Policy.*?>", "", page.text(view, poll_seconds=0.01))
    file = tmp_path / "page.html"
    file.write_text(text.replace("<script", ANSWERS % page.as_json(answers) + "<script", 1))
    drawn = drawn_by_chromium(file, "--virtual-time-budget=1000")
    return re.sub("<script.*?</script>", "", drawn, flags=re.DOTALL)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_an_open_page_goes_on_when_its_server_was_started_again(run, tmp_path):
    view, before = RunPage(run).look(), serving.Source(RunPage(run), seconds=0)
    for _ in range(5):
        before.view()
    first = before.news(0)
    add_rows(run, (3,))
    after = serving.Source(RunPage(run))
    answers = [
        {"0": first},
        {"0": after.news(0), str(first["number"]): after.news(first["number"]), "1": after.news(1)},
    ]
    assert first["number"] == 6 and answers[1]["6"]["charts"] == {} and first["start"] != after.start
    drawn = page_after(answers, view, tmp_path)
    assert "Step 3 of 4" in drawn and 'id="connection"' not in drawn


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_chart_that_an_open_page_does_not_know_is_asked_for_and_ends_nothing(run, tmp_path):
    view, source = RunPage(run).look(), serving.Source(RunPage(run))
    whole = source.news(0)
    unknown = {"charts": {}, "parts": {}, "ids": [*whole["ids"], "new"]}
    new = {"charts": {"new": whole["charts"]["loss"] | {"id": "new", "title": "New"}}, "ids": [*whole["ids"], "new"]}
    drawn = page_after([{"0": whole | unknown}, {"0": whole | new, "1": whole | unknown}], view, tmp_path)
    assert "<h3>New</h3>" in drawn and 'id="connection"' not in drawn
