"""The two twins of a report say the same, need nothing else, and leave out what there is nothing to say of."""

import collections
import html.parser
import json
import re
import sys

import pytest
import study_results

from gptjax.errors import UserError
from gptjax.pages import numbers
from gptjax.study import report

NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")
PICTURE = re.compile(r"!\[(?:\\.|[^\]])*\]\((.*?)\)")
VOID = {"meta", "img", "br"}


class Page(html.parser.HTMLParser):
    """Visible text, attributes, and whether every tag is closed by its own."""

    def __init__(self, text: str):
        super().__init__()
        self.words, self.attributes, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.attributes += [(tag, *pair) for pair in attributes]
        self.open += [tag] if tag not in VOID else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "title", "nav"} & set(self.open):
            self.words.append(data)


@pytest.fixture(scope="module")
def results():
    return study_results.results()


@pytest.fixture(scope="module")
def folder(results, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    report.write(results, folder)
    return folder


@pytest.fixture(scope="module")
def page(folder):
    return Page((folder / "report.html").read_text())


def markdown_words(folder) -> str:
    text = (folder / "report.md").read_text()
    return re.sub(r"\\(.)", r"\1", PICTURE.sub("", text))


def section_titles(results, drawn=None, folder=None):
    return [section.title for section in report.contents(results, drawn or {}, folder)]


def test_every_number_of_the_one_twin_is_in_the_other(folder, page):
    of_page = collections.Counter(NUMBER.findall(" ".join(page.words)))
    of_markdown = collections.Counter(NUMBER.findall(markdown_words(folder)))
    assert of_page == of_markdown and len(of_page) > 400


def test_the_page_needs_nothing_outside_it(folder, page):
    text = (folder / "report.html").read_text()
    assert not re.search(r"https?:|<script|<link|@import|url\(|//[a-z]", re.sub(r"base64,[\w+/=]+", "", text))
    assert all(value.startswith("data:image/svg+xml;base64,") for _, name, value in page.attributes if name == "src")
    assert all(value.startswith("#") for _, name, value in page.attributes if name == "href")
    assert page.open == []


def test_every_picture_is_in_the_page_and_a_small_file_beside_the_markdown(folder, page):
    named = PICTURE.findall((folder / "report.md").read_text())
    assert len(named) == len(set(named)) == sum(name == "src" for _, name, _ in page.attributes) >= 9
    assert {f"pictures/{path.name}" for path in (folder / "pictures").glob("*.png")} == set(named)
    for path in (folder / "pictures").glob("*.png"):
        assert path.stat().st_size < 60_000 and path.with_suffix(".svg").read_bytes().startswith(b"<?xml")


def test_names_and_reasons_with_marks_of_html_or_markdown_are_shown_as_they_are(folder, page, results):
    words, said = " ".join(page.words), markdown_words(folder)
    for text in ("a <b>ladder</b> & more", "diverged at step 100 <nan>", "change <3>", "C = 6 N D <filled>"):
        assert text in words and text in said
    assert "b" not in {tag for tag, *_ in page.attributes}
    assert "<b>" not in re.sub(r"\\<", "", (folder / "report.md").read_text())


def test_a_cell_with_a_bar_or_a_line_break_stays_one_cell(results):
    from gptjax.pages.blocks import Section, Table
    from gptjax.study.report import markdown

    rows = markdown.text("t", [Section("s", [Table(["a", "b"], [["x | y\nz", "1"]])])], {}).splitlines()
    assert rows[-1] == r"| x \| y z | 1 |"


def test_the_json_is_the_results(folder, results):
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(results))


def test_the_verdict_is_first_and_its_numbers_stand_beside_their_intervals(results):
    first = report.contents(results, {}, None)[0]
    [table] = [block for block in first.blocks if getattr(block, "caption", "").startswith("Results that stand")]
    assert first.title == "Verdict"
    assert table.rows[0][1:] == ["0.513 [0.492, 0.533]", "0.487 [0.468, 0.507]", "1.817 [1.745, 1.890]"]


def test_a_refused_law_has_no_headline_and_says_why(results):
    reason = "E = 1.82 is not below the smallest loss"
    refused = {**results, "parametric": study_results.parametric(results["points"], refused=[reason])}
    alone = {**refused, "isoflop": None, "prediction": []}
    for given, stands in ((refused, ["IsoFLOP (approach 2)"]), (alone, [])):
        first = report.contents(given, {}, None)[0]
        rows = [row for block in first.blocks for row in getattr(block, "rows", []) if "approach" in str(row[0])]
        assert [row[0] for row in rows] == stands
        assert any(reason in item for block in first.blocks for item in getattr(block, "items", []))
    silent = report.contents({**alone, "verdict": None}, {}, None)[0]
    assert any("No law stands" in getattr(block, "text", "") for block in silent.blocks)


SECTIONS = {
    "parametric": {"Parametric law (approach 3)", "Extrapolation", "Sensitivity"},
    "isoflop": {"IsoFLOP (approach 2)"},
    "seed_noise": {"Noise between seeds"},
    "learning_rate": {"Learning rates"},
    "points_excluded": {"Left out (1)"},
}


@pytest.mark.parametrize("missing", SECTIONS)
def test_what_there_is_no_data_for_is_left_out(missing, results):
    whole = set(section_titles(results, folder=None))
    for nothing in ({}, None):
        assert whole - set(section_titles({**results, missing: nothing})) == SECTIONS[missing]


def nothing(value):
    """`value` with every number that a fit could not give as null."""
    if isinstance(value, dict):
        return {key: one if key in ("flops", "change", "run", "window") else nothing(one) for key, one in value.items()}
    if isinstance(value, list):
        return [nothing(one) for one in value]
    return None if isinstance(value, float) else value


def test_a_fit_without_a_single_number_is_shown_as_refused(results, tmp_path):
    empty = {name: {**nothing(results[name]), "refused": ["4 different (N, D)"]} for name in ("parametric", "isoflop")}
    for vertex in empty["isoflop"]["optima"]:
        vertex["refused"] = "3 sizes"
    report.write(
        {**results, **empty, "prediction": [], "curves": None, "loss_to_loss": None, "verdict": None}, tmp_path
    )
    text = (tmp_path / "report.md").read_text()
    assert text.count("Refused: 4 different (N, D)") == 2 and "No law stands" in text
    assert not re.search(r"\b(None|(?<!<)nan|null)\b", text)
    assert {path.stem for path in (tmp_path / "pictures").iterdir()} == {"learning_rate"}


def test_points_that_one_method_leaves_out_are_named_with_it_and_those_of_all_methods_once(results):
    by_all, alone = results["points_excluded"][0], {"run": "w9", "reason": "no curve"}
    fit = {**results["isoflop"], "points_excluded": [by_all, alone]}
    sections = report.contents({**results, "isoflop": fit}, {}, None)
    [isoflop] = [one for one in sections if one.title.startswith("IsoFLOP")]
    lists = [block.items for block in isoflop.blocks if hasattr(block, "items")]
    assert lists == [[f"C = 1.00e20: {fit['optima'][-1]['refused']}"], ["w9: no curve"]]


def test_points_alone_make_a_report_without_pictures_and_remove_those_of_the_last(results, tmp_path):
    points = [{key: point[key] for key in ("run", "params", "tokens", "flops", "loss")} for point in results["points"]]
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "isoflop.png").write_bytes(b"of the last report")
    (tmp_path / "pictures" / "mine.png").write_bytes(b"not ours")
    written = report.write({"points": points, "conventions": {"params": "total"}}, tmp_path)
    assert [path.name for path in written] == ["report.html", "report.md", "results.json"]
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["mine.png"]
    assert "## Runs (40)" in written[1].read_text() and "Infinity" not in written[2].read_text()


def test_another_family_of_models_follows_with_its_own_sections_and_pictures(results, tmp_path):
    lstm = {"points": study_results.points(budgets=(1e18, 1e19), sizes=4, seeds=1), "prediction": results["prediction"]}
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "lstm-isoflop.png").write_bytes(b"of the last report")
    report.write({"points": results["points"], "families": {"lstm": lstm}, "directory": str(tmp_path)}, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert text.index("## Runs (40)") < text.index("## The other family: lstm") < text.index("### Runs (8)")
    assert PICTURE.findall(text) == ["pictures/lstm-prediction.png"]
    assert {path.name for path in (tmp_path / "pictures").glob("*.png")} == {"lstm-prediction.png"}
    assert text.count("](runs/000000000007)") == 2


def test_runs_are_links_where_the_report_lies_in_the_study_s_folder_and_named_by_key_elsewhere(results, tmp_path):
    given = {"points": results["points"][:1], "directory": str(tmp_path / "study")}
    for place, expected in (("study/report", "../runs/000000000000"), ("docs", None)):
        [runs] = [one for one in report.contents(given, {}, tmp_path / place) if one.title == "Runs (1)"]
        cell = runs.blocks[0].rows[0][0]
        assert getattr(cell, "target", None) == expected
        assert expected or "(000000000000)" in cell


def test_without_matplotlib_one_line_says_what_to_install(results, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"pip install 'gptjax\[study\]'"):
        report.write(results, tmp_path / "none")
    with pytest.raises(UserError, match=r"pip install 'gptjax\[study\]'"):
        report.check(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_intervals_of_the_isoflop_law_stand_beside_the_law_s_numbers_not_the_vertex_s(results):
    fit, elsewhere = results["isoflop"], {"flops": 1e24, "params": 1e11, "tokens": 2e12, "loss": 2.0}
    law = {"params": 7.77e7, "tokens": 2e9, "loss": 3.5}
    optima = [{**fit["optima"][0], "law": law}, *fit["optima"][1:], elsewhere]
    given = {**results, "isoflop": {**fit, "optima": optima}}
    [isoflop] = [one for one in report.contents(given, {}, None) if one.title.startswith("IsoFLOP")]
    captions = {block.caption.split(",")[0]: block for block in isoflop.blocks if getattr(block, "caption", "")}
    parabolas, split = (
        captions["The parabola of each budget and its vertex"],
        captions["Best split of each budget by the power law through the vertices"],
    )
    first, *_, last = (dict(zip(split.header, row)) for row in split.rows)
    vertex = fit["optima"][0]
    shown = dict(zip(parabolas.header, parabolas.rows[0]))
    assert shown["vertex N"] == numbers.count(vertex["params"]) != first["N*"] == numbers.count(law["params"])
    assert (shown["residual (nats)"], shown["seed noise (nats)"]) == ("0.012", "0.0078")
    assert first["N* 95%"] == numbers.count_bounds(vertex["interval95"]["params"])
    assert len(parabolas.rows) == len(fit["optima"]) and last["loss"] == "2.0000"


def test_many_points_that_are_left_out_are_grouped_counted_and_folded_in_both_twins(results, tmp_path):
    """240 points, 222 of them without a vertex, filled a page with as many lines."""
    excluded = [
        {"run": f"line {i}", "reason": f"no vertex at {i}e+18 FLOPs: 1 sizes; 4 are needed"} for i in range(222)
    ]
    fit = {**results["isoflop"], "points_excluded": excluded}
    [isoflop] = [
        one for one in report.contents({**results, "isoflop": fit}, {}, None) if one.title.startswith("IsoFLOP")
    ]
    *_, group, each = isoflop.blocks
    assert group.items == ["222 (line 0, line 1, line 2, …): no vertex at … FLOPs: 1 sizes; 4 are needed"]
    assert each.summary == "All of them (222)" and len(each.block.items) == 222
    named = ("points", "points_excluded", "conventions", "verdict")  # without most of the pictures
    report.write({name: results[name] for name in named} | {"isoflop": fit}, tmp_path)
    text, page = (tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text()
    assert text.count("<details>\n<summary>") == text.count("\n\n</details>") == page.count("<details>") == 2
    assert text.count("line 117") == page.count("line 117") == 1, "in the folded list; the other is of all runs"
    read = Page(page)
    assert read.open == [] and "line 117" in " ".join(read.words)


def test_a_law_that_misses_its_points_or_contradicts_the_headline_does_not_stand(results):
    verdict = {**results["verdict"], "standing": ["isoflop"]}
    first = report.contents({**results, "verdict": verdict}, {}, None)[0]
    tables = {block.caption: [row[0] for row in block.rows] for block in first.blocks if getattr(block, "rows", None)}
    assert tables["Results that stand, with 95% intervals"] == ["IsoFLOP (approach 2)"]
    assert tables["Fitted, but not to be quoted: see the reasons above"] == ["Parametric law (approach 3)"]


def test_a_place_that_cannot_be_written_is_said_before_and_nothing_is_left_there(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "deeper", "/proc/report"):
        with pytest.raises(UserError, match=f"--report={place} cannot be written: .*; use another folder"):
            report.check(place)
    report.check(tmp_path / "new" / "folder")
    report.check(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_refused_changes_with_one_reason_are_one_line_and_a_table_without_numbers_is_left_out(results):
    """Thirteen rows said that some budgets have a usable vertex, beside no number."""
    change = {"points_used": 4, "a": None, "b": None, "refused": ["1 of 3 budgets have a usable vertex; 3 are needed"]}
    names = [f"change {i}" for i in range(12)]
    refused = {**results["isoflop"], "a": None, "b": None, "refused": change["refused"]}
    refused["sensitivity"] = [change | {"change": name} for name in names]
    sections = report.contents({**results, "isoflop": refused, "parametric": None}, {}, None)
    [sensitivity] = [one for one in sections if one.title == "Sensitivity"]
    _, bullets = sensitivity.blocks
    assert bullets.items == [f"12 (change 0, change 1, change 2, …): {change['refused'][0]}"]


def test_what_all_runs_share_is_said_once_and_a_column_that_repeats_another_is_left_out(results):
    points = [point | {"flops_exact": point["flops"], "stage": "grid"} for point in results["points"]]
    [section] = [one for one in report.contents({"points": points}, {}, None) if one.title == "Runs (40)"]
    said, folded = section.blocks
    assert said.text == "All runs: a batch of 524,288 tokens, learning rate 0.0003, stage grid, status done."
    header = folded.block.header
    assert header == ["run", "N total", "N non-embedding", "D", "steps", "C (FLOPs)", "loss", "seed"]


def test_several_reasons_of_a_refusal_stand_under_one_notice(results):
    refused = study_results.parametric(results["points"], refused=["A is not determined", "alpha is not determined"])
    sections = report.contents({**results, "parametric": refused}, {}, None)
    [law] = [one for one in sections if one.title.startswith("Parametric")]
    assert law.blocks[0].text == "Refused, for 2 reasons:" and law.blocks[1].items == refused["refused"]


def test_a_long_cell_of_words_is_given_room_and_a_short_one_keeps_its_line():
    from gptjax.pages import page
    from gptjax.pages.blocks import Table

    text = page.block(Table(["run", "note"], [["a" * 60, "b" * 60], ["c", "done"]], words=("note",)))
    assert text.count('class="words prose"') == 1 and f'<td class="words prose">{"b" * 60}' in text


def test_packages_are_folded_and_do_not_fill_the_page(results):
    [made] = [one for one in report.contents({**results, "versions": {f"p{i}": "1" for i in range(40)}}, {}, None)
              if one.title == "How this was made"]  # fmt: skip
    assert made.blocks[-1].summary == "Packages (40)"
