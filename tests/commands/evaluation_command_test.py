import json
import os
import shutil
import signal
import threading
import time

import pytest

import gptjax
from gptjax import cli, errors
from gptjax.commands import reading
from gptjax.errors import UserError
from gptjax.hosts import interrupt
from gptjax.rundir import metrics, run_directory


@pytest.fixture
def command(trained, capsys):
    """command(*flags) -> (exit code, stdout, stderr) of gptjax eval on the run."""

    def run(*flags):
        code = cli.main(["eval", f"--workdir={trained}", *flags])
        return code, *capsys.readouterr()

    return run


def logged(trained, step: int, name: str = "loss") -> float:
    return [
        row for row in metrics.read_metrics(trained / "metrics.jsonl", "eval") if row["step"] == step and name in row
    ][0][name]


def test_every_number_says_what_it_is(command, trained):
    code, output, _ = command()
    assert code == 0
    head, text, convention, numbers = output.splitlines()
    assert head == f"{trained}: step 6 (the newest)" and text == "text: the run's held-out text"
    assert convention.startswith("loss in nats/token (chars tokenizer of 9); windows of 16 tokens, stride 16; +- is")
    assert f"loss {logged(trained, 6):.4f} +- {logged(trained, 6, 'standard_error'):.4f}" in numbers
    assert "bits/byte" in numbers and "perplexity" in numbers and "(200 tokens, 200 bytes)" in numbers


def test_all_steps_are_a_table_and_the_json_has_the_same(command, trained):
    code, output, _ = command("--step=all")
    assert code == 0 and [line.split()[1] for line in output.splitlines()[-2:]] == ["4", "6"]
    code, output, _ = command("--step=all", "--json")
    facts = json.loads(output)
    assert code == 0 and [row["step"] for row in facts["steps"]] == [4, 6]
    for row in facts["steps"]:
        assert row["loss"] == pytest.approx(logged(trained, row["step"]), rel=1e-6)
    assert facts["convention"]["stride"] == 16 and facts["convention"]["loss"] == "nats per token"


def test_the_averaged_parameters_are_those_that_training_logged(command, trained):
    code, output, _ = command("--ema", "--json")
    facts = json.loads(output)
    assert facts["parameters"] == "ema" and facts["loss"] == pytest.approx(logged(trained, 6, "ema_loss"), rel=1e-6)


def test_max_tokens_all_takes_the_whole_held_out_text(command):
    _, output, _ = command("--max_tokens=all", "--json", "--stride=8", "--batch_size=24", "--mesh=fsdp=2,tensor=2")
    facts = json.loads(output)
    assert facts["tokens"] > 2000 and facts["convention"]["stride"] == 8


def test_the_best_step_is_the_lowest_logged_loss_among_the_steps_with_a_checkpoint(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    directory = run_directory.open_run(str(tmp_path / "run"))
    losses = {2: 0.1, 4: 1.5, 6: 2.5}  # step 2 has no checkpoint
    rows = [{"kind": "eval", "step": step, "loss": loss, "ema_loss": -loss} for step, loss in losses.items()]
    directory.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    steps, why = reading.chosen_steps(directory, "best", ema=False)
    assert steps == [4] and "lowest held-out loss in metrics.jsonl, 1.5000, of 2 evaluated steps" in why
    assert reading.chosen_steps(directory, "best", ema=True)[0] == [6]
    assert gptjax.load(directory.path, "best").step == 4
    directory.metrics.write_text(json.dumps({"kind": "eval", "step": 4, "loss": "nan"}) + "\n")
    with pytest.raises(UserError, match="has no loss for any step with a checkpoint .4, 6.*--catch_up"):
        reading.chosen_steps(directory, "best", ema=False)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--step=5"], "has no checkpoint of step 5; there are: 4, 6"),
        (["--step=newest"], "--step=newest: expected a number, all or best"),
        (["--stride=17"], "--stride=17 must be from 1 to the context length, 16"),
        (["--stride=0"], "--stride=0 is too small"),
        (["--mesh=fdsp=2"], "--mesh: the axis='fdsp' is not known; did you mean 'fsdp'"),
        (["--mesh=fsdp=0"], "--mesh=fsdp=0: fsdp=0 is not a size"),
        (["--max_tokens=few"], "--max_tokens=few: expected a number of tokens, or all"),
        (["--protocol=wikitext2"], "is for a data set; give --data too"),
        (["--protocol=wiki", "--data=x"], "--protocol='wiki' is not known"),
        (["--data=text:/nowhere/x.txt"], "/nowhere/x.txt"),
        (["--text_field=body"], "says how --data are read; give --data too"),
        (["--protocol=lambada", "--data=x", "--stride=4"], "predicts last words only; leave out"),
        (["--dtype=float16"], "dtype='float16' is not known"),
    ],
)
def test_what_cannot_be_evaluated_is_said_in_one_line(command, flags, message):
    code, output, errors = command(*flags)
    assert code == 2 and message in errors and not output and errors.count("\n") == 1


def test_last_words_of_passages_by_the_command(command, tmp_path):
    (tmp_path / "test.txt").write_text("a cab bad face\nhe had a bed\n")
    code, output, _ = command(f"--data={tmp_path}/test.txt", "--protocol=lambada", "--json")
    facts = json.loads(output)
    assert (
        code == 0
        and facts["passages"] == 2
        and facts["perplexity"] > 1
        and facts["convention"]["protocol"] == "lambada"
    )


def test_a_model_that_came_without_a_text_asks_for_one(trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "run")
    file = tmp_path / "run/manifest.json"
    known = json.loads(file.read_text())
    del known["data"]
    file.write_text(json.dumps(known | {"imported": {"folder": "gpt2"}}))
    assert cli.main(["eval", f"--workdir={tmp_path}/run"]) == 2
    assert "imported from gpt2" in (errors := capsys.readouterr().err) and "give --data=KIND:PATH" in errors
    (tmp_path / "text.txt").write_text("abc def. abc")
    (tmp_path / "text.txt").write_text("abcdefgh hgf abc" * 4)
    assert cli.main(["eval", f"--workdir={tmp_path}/run", f"--data={tmp_path}/text.txt"]) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_evaluation_between_two_batches(trained, capsys, number):
    def send():
        deadline = time.monotonic() + 60
        while not isinstance(getattr(signal.getsignal(number), "__self__", None), interrupt.StopRequest):
            if time.monotonic() > deadline:
                return
            time.sleep(0.001)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    code = cli.main(["eval", f"--workdir={trained}", "--stride=1", "--batch_size=8", "--max_tokens=all"])
    sender.join()
    said = capsys.readouterr().err
    assert code == errors.SAVED_AND_STOPPED and f"{number.name}: stopped; step 6 is not evaluated" in said


def test_progress_says_how_far_it_is_and_how_long_it_takes():
    """20 windows and 50 tokens in 10 seconds; 70 windows are left."""
    line = reading.progress_line("text", 100, 30, 200.0, 75.0, since=(10.0, 10, 25.0))
    assert line == "text: 30 of 100 windows  loss 2.6667  5 tok/s  left 0:35"
    assert reading.progress_line("text", 9, 1, 2.0, 1.0, since=(0.0, 1, 1.0)) == "text: 1 of 9 windows  loss 2.0000"
    pairs = reading.progress_line("pairs", 9, 4, 2.0, 4.0, (1.0, 2, 2.0), reading.EXAMPLE_UNITS)
    assert pairs == "pairs: 4 of 9 examples  loss 0.5000  2 examples/s  left 0:02"
