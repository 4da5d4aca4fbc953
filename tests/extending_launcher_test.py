"""A launcher of studies that gptjax does not have, added as anyone may add one: one class, one entry in one table."""

import shlex

import studying

from gptjax import cli
from gptjax.study.running import launching


class Queue(launching.Launcher):
    """Starts a run at another priority, and keeps a list of what it started beside the study."""

    survives = "nothing that was queued"

    def command(self, directory, key, attempt, words):
        [priority] = self.flags
        train = [*launching.gptjax_command(), "train", *launching.train_words(directory, key, words)]
        keep = f"echo {key} {attempt} >> {shlex.quote(str(directory.path / 'queue'))}"
        return ["bash", "-c", f"{keep}; exec {shlex.join(['nice', '-n', priority, *train])}"]


def test_a_launcher_of_ones_own_trains_the_runs_of_a_study(text, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(launching.LAUNCHERS, "queue", Queue)
    file, out = studying.write_study(tmp_path / "study.py", text, "tokens=(256,)"), tmp_path / "out"
    command = ["study", "run", str(file), f"--out={out}", "--launcher=queue", "--launcher_flag=3"]
    assert cli.main([*command, "--dry_run"]) == 0
    assert "nice -n 3" in capsys.readouterr().out and not out.exists()
    assert cli.main(command) == 0
    [known] = studying.states(out).values()
    assert known.state == "done" and known.step == 2
    assert (out / "queue").read_text() == f"{known.entry.key} 1\n"
