"""notebooks/registry_corpus.py: its formats, what it writes, what it says of packages that are missing. Nothing is fetched."""

import gzip
import importlib.util
import io
import json
import pathlib
import sys
import tarfile

import pytest
from places import ROOT

SCRIPT = ROOT / "notebooks" / "registry_corpus.py"


@pytest.fixture(scope="module")
def corpus():
    spec = importlib.util.spec_from_file_location("registry_corpus", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["registry_corpus"] = module  # NamedTuple looks there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(corpus, tmp_path, monkeypatch):
    """Runs main on packages of its own, without any client; returns the exit code."""

    def run_it(*packages) -> int:
        monkeypatch.setattr(corpus, "PACKAGES", packages)
        monkeypatch.setattr(sys, "argv", ["registry_corpus.py", f"--out={tmp_path}"])
        monkeypatch.setenv("PATH", "/nowhere")
        return corpus.main()

    (tmp_path / "packages").mkdir()
    return run_it


def _pack(path: pathlib.Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def test_a_dictionary_is_read_entry_by_entry_with_offsets_in_base_64(corpus):
    text = "About this.\n" + "cat\n  a beast\n" + "x" * 70 + "\n" + "汉\n  a name\n"
    index = "00-database-info\tA\tM\ncat\tM\tO\nkitty\tM\tO\nlong\ta\tBH\nhan\tBh\tN\n"
    entries = list(corpus.dictionary([("a/d.dict.dz", text.encode()), ("a/d.index", index.encode())]))
    assert entries == [("cat@12", "cat\n  a beast\n"), ("long@26", "x" * 70 + "\n"), ("han@97", "汉\n  a name\n")]


def test_sayings_are_parted_by_percent_signs_and_lose_their_colours(corpus):
    text = "one \x1b[32mgreen\x1b[m\n%\n100 %\n50%\n%\n"
    assert [saying for _, saying in corpus.fortunes([("f", text.encode())])] == ["one green\n", "100 %\n50%\n", ""]


def test_poems_and_passages_and_fables_are_read_from_json(corpus):
    poem = [{"title": "夜", "author": "李白", "paragraphs": ["床前明月光，", "疑是地上霜。"], "id": "1"}]
    assert list(corpus.poems([("p", json.dumps(poem).encode())])) == [("p#0", "夜\n李白\n床前明月光，\n疑是地上霜。\n")]
    lines = b'{"0": "A. B.", "1": "B. A."}\n{"0": "C."}\n'
    assert list(corpus.passages([("p", lines)])) == [("p#0", "A. B."), ("p#1", "C.")]
    chat = {"input": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "寓言"}]}
    assert list(corpus.fables([("p", json.dumps(chat).encode())])) == [("p#0", "寓言")]


def test_a_file_that_is_not_utf_8_is_read_in_the_charset_it_names_or_latin_1(corpus):
    page = '<meta charset="euc-jp">日本'
    files = [("a", page.encode("euc-jp")), ("b", "Köln".encode("latin-1")), ("c", "Köln".encode())]
    assert [text for _, text in corpus.plain(files)] == [page, "Köln", "Köln"]


def test_the_files_that_match_become_documents_in_order_of_their_paths(corpus, run, tmp_path):
    files = {"p/b.md": b"B\n", "p/a.md.gz": gzip.compress(b"A\n"), "p/empty.md": b" \n", "p/c.png": b"\x89PNG"}
    _pack(tmp_path / "packages" / "some-1.0.tgz", files)
    code = run(
        corpus.Package("notes", "npm", "some@1.0", r"\.md", corpus.plain, "MIT"),
        corpus.Package("books", "npm", "some@1.0", r"\.md", corpus.plain, "MIT"),
    )
    lines = [json.loads(line) for line in (tmp_path / "notes" / "some.jsonl").read_text().splitlines()]
    assert lines == [{"text": "A\n", "id": "p/a.md.gz"}, {"text": "B\n", "id": "p/b.md"}]
    assert (tmp_path / "books" / "some.txt").read_text() == "A\n<|endoftext|>\nB\n<|endoftext|>\n"
    entry = json.loads((tmp_path / "manifest.json").read_text())["files"]["notes/some.jsonl"]
    assert (entry["documents"], entry["text_bytes"], entry["version"], entry["licence"]) == (
        2,
        4,
        "some-1.0.tgz",
        "MIT",
    )
    assert code == 1  # far from 100 MB


def test_a_second_run_makes_only_what_is_missing_and_the_same_bytes(corpus, run, tmp_path):
    _pack(tmp_path / "packages" / "some-1.0.tgz", {"p/a.html": b"<p>A"})
    packages = [corpus.Package(s, "npm", "some@1.0", "html", corpus.plain, "MIT") for s in ("html_manuals", "notes")]
    run(*packages)
    made = {name: tmp_path / name for name in ("html_manuals/some.jsonl.gz", "notes/some.jsonl")}
    before = {name: file.read_bytes() for name, file in made.items()}
    assert before["html_manuals/some.jsonl.gz"][4:8] == bytes(4)  # gzip's time of making
    kept = made["notes/some.jsonl"].stat().st_mtime_ns
    made["html_manuals/some.jsonl.gz"].unlink()
    run(*packages)
    assert {name: file.read_bytes() for name, file in made.items()} == before
    assert made["notes/some.jsonl"].stat().st_mtime_ns == kept


def test_a_package_that_is_missing_or_has_nothing_is_named_and_the_others_are_made(corpus, run, tmp_path, capsys):
    _pack(tmp_path / "packages" / "some-1.0.tgz", {"p/a.md": b"A\n"})
    run(
        corpus.Package("gone", "npm", "gone@1.0", "md", corpus.plain, "MIT"),
        corpus.Package("void", "npm", "some@1.0", "xyz", corpus.plain, "MIT"),
        corpus.Package("notes", "npm", "some@1.0", "md", corpus.plain, "MIT"),
    )
    said = capsys.readouterr().err
    assert "gone: gone@1.0 is left out: " in said and "npm" in said
    assert "void: some@1.0 is left out: some-1.0.tgz has no document whose path matches xyz" in said
    assert "expected 100 MB" in said
    assert (tmp_path / "notes" / "some.jsonl").exists() and not (tmp_path / "gone").exists()


def test_enough_text_ends_with_exit_code_0(corpus, run, tmp_path, monkeypatch):
    _pack(tmp_path / "packages" / "some-1.0.tgz", {"p/a.md": b"A" * 50})
    monkeypatch.setattr(corpus, "LEAST_BYTES", 50)
    assert run(corpus.Package("notes", "npm", "some@1.0", "md", corpus.plain, "MIT")) == 0
    monkeypatch.setattr(corpus, "LEAST_BYTES", 51)
    assert run(corpus.Package("notes", "npm", "some@1.0", "md", corpus.plain, "MIT")) == 1


def test_every_file_of_the_table_has_a_name_of_its_own(corpus):
    names = [f"{package.source}/{corpus._file_name(package)}" for package in corpus.PACKAGES]
    assert len(set(names)) == len(names)
