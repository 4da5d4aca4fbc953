"""`gptjax watch`: where it writes, what it serves and to whom, the page of a study, and that its script draws."""

import dataclasses
import http.client
import json
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


def test_followed_it_is_written_and_read_again_until_training_ends(run, monkeypatch, capsys):
    written, file = [], run.path / "watch.html"

    def next_step(seconds):
        written.append((seconds, 'http-equiv="refresh"' in file.read_text()))
        if len(written) == 1:
            add_rows(run, (3,))
        else:
            held.__exit__(None, None, None)

    held = runlock.hold(run.path)
    held.__enter__()
    monkeypatch.setattr(time, "sleep", next_step)
    assert cli.main(["watch", str(run.path), "--follow"]) == 0
    assert written == [(10.0, True)] * 2 and "Step 3 of 4" in file.read_text()
    assert "refresh" not in file.read_text(), "nothing more is to come"


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
    with pytest.raises(SystemExit, match="2"):
        cli.main(["watch", str(run.path), f"--serve={port}"])
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


def test_the_command_writes_the_page_of_a_study(study):
    assert cli.main(["watch", str(study.path)]) == 0
    assert "5 runs" in (study.path / "watch.html").read_text()


# ---- the script


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
    with tempfile.TemporaryDirectory() as profile:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
                 f"--user-data-dir={profile}"]  # fmt: skip
        command = ["chromium", *flags, "--dump-dom", f"file://{file}"]
        drawn = subprocess.run(command, capture_output=True, text=True, timeout=studying.SECONDS).stdout
    assert drawn.count("<svg") == len(charts) == 3
    [many] = [part.partition("<script")[0] for part in drawn.split('data-id="') if part.startswith("many")]
    assert many.count('stroke="#123456"') == 1 and many.count('fill="#123456"') == 1, "a line within its band"
    assert many.count("<circle") == 2 and many.count("not-finite") == 1 and many.count('class="mark bad"') == 1
    assert "a &amp; b" in many and "NaN" not in many and "Infinity" not in many
