"""Roads of small scripts: what is done is not done again, what has changed is told, and a kill changes nothing."""

import json
import random
import signal
import time

import pytest
import roads

from gptjax import cli, errors
from gptjax.errors import UserError
from gptjax.road import inputs, ledger
from gptjax.road import road as declaring


def run(road, out, *flags: str) -> int:
    return cli.main(["road", str(road), f"--out={out}", *flags])


def said(capsys) -> str:
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gptjax: ")]
    return line


def test_stages_run_once_and_a_finished_road_runs_none(tmp_path):
    road, out = roads.write(tmp_path), tmp_path / "out"
    assert run(road, out) == 0
    made = roads.outputs(out)
    assert list(made) == ["apart", "one", "two"] and made["two"].splitlines()[9] == f"9 b {len(made['one'])}"
    assert run(road, out) == 0
    assert roads.starts(out) == {"one": 1, "two": 1, "apart": 1} and roads.outputs(out) == made
    assert "three stages" in (out / "index.html").read_text()


def test_changed_inputs_are_refused_with_the_reason_and_made_anew_with_what_needs_them(tmp_path, capsys):
    road, out = roads.write(tmp_path), tmp_path / "out"
    run(road, out)
    before = roads.outputs(out)
    capsys.readouterr()
    assert run(road, out, "--set=word=longer") == errors.USER_ERROR
    line = said(capsys)
    assert "one: --word a -> longer; two: it needs one, which changes" in line and "--rerun" in line
    assert "apart:" not in line and roads.outputs(out) == before
    assert run(road, out, "--set=one.word=longer", "--rerun") == 0
    after = roads.outputs(out)
    assert after["one"] != before["one"] and after["two"] != before["two"] and after["apart"] == before["apart"]
    assert roads.starts(out) == {"one": 2, "two": 2, "apart": 1}
    assert (out / "former" / "one-1" / "steps.txt").read_text() == before["one"]


def test_a_script_that_says_something_else_is_another_input_and_one_with_a_comment_is_not(tmp_path):
    road = roads.write(tmp_path)
    keys = inputs.keys(declaring.load(str(road)))
    script = tmp_path / "stage.py"
    script.write_text(script.read_text() + "# a remark\n")
    assert inputs.keys(declaring.load(str(road))) == keys
    script.write_text(script.read_text() + "print('another')\n")
    assert not set(inputs.keys(declaring.load(str(road))).values()) & set(keys.values())


def test_a_stage_that_fails_is_named_with_its_log_and_the_code_and_tried_again(tmp_path, capsys):
    road, out = roads.write(tmp_path), tmp_path / "out"
    assert run(road, out, "--set=two.fails=because") == 1
    line = said(capsys)
    assert "stage 'two'" in line and f"{out}/logs/two.log" in line and line.endswith("a reason: because")
    assert ledger.read(out).is_done("one") and not ledger.read(out).is_done("two")
    assert run(road, out, "--rerun") == 0 and roads.starts(out) == {"one": 1, "two": 2, "apart": 1}


def test_a_killed_road_comes_to_what_an_undisturbed_one_does(tmp_path):
    """Inside stages and between them, wherever chance falls."""
    road = roads.write(tmp_path)
    assert run(road, tmp_path / "undisturbed") == 0
    out, draw = tmp_path / "killed", random.Random(0)
    slow = [f"--set={stage}.seconds=0.6" for stage in ("one", "two", "apart")]
    for steps in sorted(draw.sample(range(1, 30), 4)):  # of the 30 that the three stages take
        process = roads.start(road, out, *slow)
        while roads.steps(out) < steps and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        process.communicate()
    process = roads.start(road, out, *slow)
    assert process.communicate()[1] is not None and process.returncode == 0
    assert roads.outputs(out) == roads.outputs(tmp_path / "undisturbed")
    assert sum(roads.starts(out).values()) > 3


def test_ctrl_c_ends_the_stage_and_the_same_command_goes_on(tmp_path):
    road, out = roads.write(tmp_path), tmp_path / "out"
    process = roads.start(road, out, "--set=one.seconds=60")
    deadline = time.monotonic() + 60
    while not (out / "one" / "steps.txt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == errors.SAVED_AND_STOPPED and "run the same command again" in told
    assert not ledger.read(out).is_done("one") and "Traceback" not in told
    entry = json.loads((out / "road.json").read_text())["stages"]["one"]
    assert entry["attempts"] == entry["counted"] == 1 and entry["seconds"] > 0


@pytest.mark.slow
def test_two_roads_do_not_share_a_folder(tmp_path, capsys):
    road, out = roads.write(tmp_path), tmp_path / "out"
    process = roads.start(road, out, "--set=one.seconds=60")
    deadline = time.monotonic() + 60
    while not (out / "one" / "steps.txt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert run(road, out, "--set=one.seconds=60") == errors.USER_ERROR
    assert f"--out={out} is being written to" in said(capsys)
    process.terminate()
    process.communicate(timeout=60)


def test_a_folder_of_something_else_is_left_as_it_is(tmp_path, capsys):
    road, out = roads.write(tmp_path), tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("")
    assert run(road, out) == errors.USER_ERROR and "thesis.tex" in said(capsys)
    assert [file.name for file in out.iterdir()] == ["thesis.tex"]


def test_a_dry_run_prints_commands_and_what_is_done_and_starts_nothing(tmp_path, capsys):
    road, out = roads.write(tmp_path), tmp_path / "out"
    assert run(road, out, "--dry_run") == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[0] == f"cd {out}" and "stage.py --out=two --reads=one --word=b" in printed
    assert not out.exists()
    run(road, out)
    capsys.readouterr()
    run(road, out, "--dry_run", "--set=two.word=z")
    printed = capsys.readouterr().out
    assert "# one: done" in printed and "# two: to be made anew, with --rerun: --word b -> z" in printed


WRONG = {  # --set, and what is said
    "word": "expected PARAMETER=VALUE",
    "wrd=x": "no parameter 'wrd'; did you mean 'word'?",
    "seconds=fast": "expected a number, as its default 0.0",
    "word=3": "expected a text, as its default 'a'",
    "tow.word=x": "no stage 'tow'; did you mean 'two'?",
}


@pytest.mark.parametrize("change", WRONG)
def test_what_is_wrong_in_set_is_said_in_a_line(change, tmp_path, capsys):
    assert run(roads.write(tmp_path), tmp_path / "out", f"--set={change}") == errors.USER_ERROR
    assert WRONG[change] in said(capsys) and not (tmp_path / "out").exists()


def test_a_stage_that_needs_none_of_the_earlier_ones_is_refused():
    one = declaring.command("one", "prepare", ["two"])
    with pytest.raises(UserError, match="stage 'one' needs 'two', which is no stage before it"):
        declaring.Road("", (one, declaring.command("two", "prepare")))
    with pytest.raises(UserError, match="two stages called 'one'"):
        declaring.Road("", (declaring.command("one", "prepare"), declaring.command("one", "prepare")))
    with pytest.raises(UserError, match="shows 'rewrd'"):
        declaring.Road("", (declaring.command("reward", "prepare"),), reward="rewrd")


@pytest.mark.parametrize("name", ["small", "quickstart"])
def test_a_shipped_road_can_be_read_and_a_config_that_changes_reaches_what_needs_it(name, capsys):
    file = f"configs/roads/{name}.py"
    road = declaring.load(file)
    keys, changed = inputs.keys(road), inputs.keys(declaring.load(file, ["dpo.optim.peak_lr=1e-6"]))
    assert {stage for stage in keys if keys[stage] != changed[stage]} == {"dpo", "dpo_evaluation"}
    quiet = inputs.keys(declaring.load(file, ["sft.train.log_every=7"]))  # of which no result depends
    assert quiet == keys
    with pytest.raises(UserError, match="stage 'dpo' of the road: .*peak_rl"):
        declaring.load(file, ["dpo.optim.peak_rl=1e-6"])
