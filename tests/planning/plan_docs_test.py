"""The table of docs/plans.md: what a row is made of, and that a run of it keeps the rows it does not make."""

import importlib.metadata

from places import ROOT

from gptjax import hardware
from gptjax.planning import plan_docs

CONFIGS = ROOT / "configs"


TPUS, GPUS, TEXTS = plan_docs.TABLES
HEADING = f"# Plans\n\n## TPUs\n\n{plan_docs.compilers(TPUS)}\n"


def test_every_gpt3_size_and_gpt2_have_a_row():
    sizes = {path.stem for path in CONFIGS.glob("gpt3_*.py")}
    assert sizes | {"gpt2_xl"} == set(TPUS.plans) and len(sizes) == 8
    assert sizes | {path.stem for path in CONFIGS.glob("gpt2_*.py")} == set(GPUS.plans)


def test_a_row_is_one_plan_and_the_others_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    monkeypatch.setitem(TPUS.plans, "gpt3_13b", "--topology=h100:8x16")
    monkeypatch.delitem(GPUS.plans, "gpt3_13b")
    file = tmp_path / "plans.md"
    others = "## GPUs\n\nCompiled by another and another.\n| gpt2_xl | kept too |\n"
    file.write_text(f"{HEADING}| gpt3_125m | kept |\n| gpt3_13b | old |\n\n{others}")
    assert plan_docs.main([str(file), "--only=gpt3_13b"]) == 0
    text = file.read_text()
    assert "| gpt3_125m | kept |" in text and "| gpt3_13b | old |" not in text
    assert "| gpt3_13b | h100:8x16 | 128 | fsdp=128 | none | 4 |" in text
    assert "Compiled by another and another." in text and "| gpt2_xl | kept too |" in text
    assert all(f"| {name} |" in text for name in hardware.CHIPS)


def test_a_plan_that_cannot_be_made_is_said_and_leaves_the_old_row(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(CONFIGS.parent)
    monkeypatch.setitem(TPUS.plans, "gpt3_13b", "--topology=v9:8x16")
    monkeypatch.delitem(GPUS.plans, "gpt3_13b")
    file = tmp_path / "plans.md"
    file.write_text(f"{HEADING}| gpt3_13b | old |\n")
    assert plan_docs.main([str(file), "--only=gpt3_13b"]) == 1
    said = capsys.readouterr().err
    assert "--topology=v9:8x16" in said and "'v9' is not known" in said and "| gpt3_13b | old |" in file.read_text()


def test_rows_of_two_compilers_do_not_stand_in_one_table(tmp_path, capsys):
    file = tmp_path / "plans.md"
    file.write_text("## TPUs\nCompiled by jax 0.9.0 and libtpu 0.0.30.\n| gpt3_125m | old |\n| gpt3_13b | old |\n")
    assert plan_docs.main([str(file), "--only=gpt3_13b"]) == 2
    assert "use --only=TPUs, all its rows" in capsys.readouterr().err and "old" in file.read_text()


def test_the_document_says_what_compiled_its_rows_and_where_gathers_are_fused():
    lines = {table.title: plan_docs.compilers(table) for table in plan_docs.TABLES}
    text = plan_docs.document({table.title: [] for table in plan_docs.TABLES}, lines)
    assert f"libtpu {importlib.metadata.version('libtpu')}." in text
    kinds = ("v4", "v5e", "v5p", "v6e", "tpu7x")
    assert [f"| {name} | yes | no |" in text for name in kinds] == [False, True, False, False, False]
    assert [f"| {name} | no | yes |" in text for name in kinds] == [False, False, True, True, False]


def test_a_wrong_name_is_answered_with_the_names(capsys):
    assert plan_docs.main(["plans.md", "--only=gpt4"]) == 2
    assert "gpt3_175b" in capsys.readouterr().err
