import json
import os

import pytest

from gptjax.errors import UserError
from gptjax.tasks import task_files

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{word}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture
def folder(tmp_path):
    """Of a task `one`, a group of it, a file that others include, and data in a folder beside them."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "one.jsonl").write_text(json.dumps({"text": "a", "word": " b"}) + "\n")
    (tmp_path / "one.yaml").write_text(TASK.format(name="one", data="data/one.jsonl"))
    (tmp_path / "all.yaml").write_text("group: all_of_them\ntask: [one]\n")
    (tmp_path / "base.yaml").write_text("dataset_path: json\ndataset_kwargs: {data_files: {test: data/one.jsonl}}\n")
    return tmp_path


def test_a_folder_stands_for_its_tasks_and_a_file_for_its_own(folder):
    assert task_files.select([str(folder)]).names == ["one"]
    assert task_files.select([f"{folder}/one.yaml", str(folder), "arc_easy "]).names == ["one", "arc_easy"]
    group = task_files.select([f"{folder}/all.yaml"])
    assert group.names == ["all_of_them"] and {file.name for file in group.files} == {"one", "all_of_them"}


def test_only_what_needs_the_network_is_not_offline(folder):
    assert task_files.select([str(folder)]).offline
    assert not task_files.select([str(folder), "arc_easy"]).offline
    (folder / "hub.yaml").write_text("task: hub\ndataset_path: someone/data\n")
    assert not task_files.select([str(folder)]).offline


def test_fields_are_those_of_included_files_too_and_functions_are_not_run(folder):
    (folder / "two.yaml").write_text("include: base.yaml\ntask: two\nprocess_docs: !function nowhere.f\n")
    file = task_files.read(folder / "two.yaml")
    assert file.fields["dataset_kwargs"] == {"data_files": {"test": "data/one.jsonl"}} and not file.needs_network


@pytest.mark.parametrize(
    "text,message",
    [
        ("task: [", "x.yaml is no YAML: .*line 1"),
        ("- a", "x.yaml holds a list; expected the fields of a task"),
        ("dataset_path: json", "x.yaml defines no task: it has no field `task` or `group`"),
        ("include: x.yaml\ntask: x", "x.yaml includes itself"),
        ("include: y.yaml\ntask: x", "y.yaml: no such file"),
    ],
)
def test_a_file_that_is_no_task_is_refused_in_a_line(tmp_path, text, message):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        task_files.select([f"{tmp_path}/x.yaml"])
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_named_with_what_may_have_been_meant(folder, tmp_path):
    with pytest.raises(UserError, match="onw.yaml: no such file; did you mean 'one.yaml'"):
        task_files.select([f"{folder}/onw.yaml"])
    with pytest.raises(UserError, match="data is a folder without a task file"):
        task_files.select([f"{folder}/data"])
    with pytest.raises(UserError, match="--tasks is empty"):
        task_files.select(["", " "])
    (folder / "again.yaml").write_text("task: one")
    with pytest.raises(UserError, match=r"again.yaml and .*one.yaml both define 'one'; rename one"):
        task_files.select([str(folder)])


def test_data_beside_a_task_file_is_found_from_anywhere(folder, tmp_path_factory, monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    (folder / "two.yaml").write_text("include: one.yaml\ntask: two\n")
    path = os.path.relpath(folder)
    for specs in ([path], [f"{path}/one.yaml", f"{path}/two.yaml"]):
        loaded = task_files.load(task_files.select(specs))
        assert list(loaded["tasks"]) == ["one", "two"]
        assert [list(task.eval_docs) for task in loaded["tasks"].values()] == [[{"text": "a", "word": " b"}]] * 2
    loaded = task_files.load(task_files.select([f"{path}/all.yaml"]))
    assert list(loaded["groups"]) == ["all_of_them"] and list(loaded["tasks"]) == ["one"]


def test_a_task_whose_data_is_missing_is_refused_in_a_line(folder):
    pytest.importorskip("lm_eval")
    (folder / "data" / "one.jsonl").unlink()
    with pytest.raises(UserError, match="--tasks=one could not be loaded: FileNotFoundError") as caught:
        task_files.load(task_files.select([f"{folder}/one.yaml"]))
    assert "\n" not in str(caught.value)


@pytest.mark.slow  # lm-eval reads thousands of files
def test_a_name_that_lm_eval_does_not_know_is_refused_with_the_nearest():
    pytest.importorskip("lm_eval")
    with pytest.raises(UserError, match="no such file or folder, and lm-eval .* did you mean 'arc_easy'"):
        task_files.load(task_files.select(["arc_eazy"]))
