"""The clients of gptjax bench --serve, before a small server of another process, and what the command refuses."""

import pathlib
import sys
import time

import pytest
from places import ROOT

from gptjax import cli
from gptjax.diagnostics import bench_serve
from gptjax.diagnostics.bench_serve import Round, Server
from gptjax.errors import UserError

SCRIPT = str(ROOT / "tests" / "support" / "completing.py")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    port = bench_serve.free_port()
    server = Server([sys.executable, SCRIPT, str(port)], port, "good", {}, tmp_path_factory.mktemp("log") / "log")
    yield server
    server.close()


def test_all_clients_are_answered_and_their_tokens_counted(server):
    answer = server.ask("Once", tokens=5)
    assert answer.tokens == 5 and 0 < answer.seconds_to_first < answer.seconds
    made = bench_serve.one_round(server, 8)
    assert made.tokens_per_second > 0 and made.seconds_to_first > 0


def test_an_answer_that_has_finished_is_whole_without_done(server, monkeypatch):
    """As transformers serve sends it."""
    monkeypatch.setattr(server, "model", "without [DONE]")
    assert server.ask("Once", tokens=5).tokens == 5


def test_a_server_runs_in_its_turn_alone(server):
    def is_stopped(expected: bool) -> bool:
        """Whether it is soon: a signal takes a moment."""
        for _ in range(500):
            status = pathlib.Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()[0]
            if (status == "T") == expected:
                return True
            time.sleep(0.01)
        return False

    with server.turn():
        assert is_stopped(False)
        inside = bench_serve.in_turn({"a": server}, 2, seconds=0)
    assert is_stopped(True) and len(inside["a"]) == bench_serve.LEAST_ROUNDS
    with server.turn():
        assert server.ask("Once").tokens == bench_serve.NEW_TOKENS


def test_what_a_server_refuses_or_breaks_off_is_said(server):
    with server.turn():
        for model, said in (
            ("none", "none: 404.*no model none"),
            ("failing", "failing: .*ended the answer: out of memory Its log ends"),
        ):
            asked = server.model
            server.model = model
            with pytest.raises(UserError, match=said):
                server.ask("Once")
            server.model = asked


def test_a_server_that_does_not_begin_is_refused_with_what_it_said(tmp_path):
    command = [sys.executable, "-c", "raise SystemExit('no such model')"]
    with pytest.raises(UserError, match="did not begin to serve: no such model"):
        Server(command, bench_serve.free_port(), "good", {}, tmp_path / "log")
    with pytest.raises(UserError, match="nowhere/python: No such file"):
        Server(["nowhere/python"], 1, "good", {}, tmp_path / "log")


def test_the_hand_worked_medians_and_ratios():
    ours = [Round(100.0, 0.1), Round(300.0, 0.2), Round(200.0, 0.3)]
    theirs = [Round(50.0, 0.4), Round(100.0, 0.4), Round(100.0, 0.9)]
    summary = bench_serve._summary({"gptjax serve": ours, "theirs": theirs}, "theirs")
    assert summary == pytest.approx(
        {"tokens_per_second": 100, "seconds_to_first": 0.4, "ratio": 2, "ratio_to_first": 3, "rounds": 3}
    )
    rows = [{"clients": 8, "sides": {"gptjax serve": summary, "theirs": summary}}]
    results = {"new_tokens": 64, "rows": rows, "peak_bytes": {"gptjax serve": 2**30}}
    assert "ours is 2.00 times as fast, its first token 3.00 times" in bench_serve.table(results)
    assert bench_serve.table(results).endswith("peak memory: gptjax serve 1,024 MiB")


@pytest.mark.parametrize(
    "flags,said",
    [
        ([], "measures either a config or a server; give --config=FILE, or --serve=RUN"),
        (["--serve=runs/a", "--config=configs/quickstart.py"], "measures either a config or a server"),
        (["--config=configs/quickstart.py", "--transformers=python"], "--transformers=python is only for"),
        (["--serve=runs/a", "--config.model.n_layers=2"], "--config.model.n_layers=2 is for a config"),
        (["--serve=runs/a", "--clients=8", "--clients=0"], "--clients=0 is too small"),
        (["--config=configs/quickstart.py", "--clients=8"], "--clients=8 is only for"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(flags, said, capsys):
    assert cli.main(["bench", *flags]) == 2
    assert said in capsys.readouterr().err
