"""What gptjax says where a package is missing that it needs only for what was chosen: one line with the command for it."""

import ast
import json
import re
import subprocess
import sys
import tomllib

import pytest
from places import ROOT

from gptjax import cli
from gptjax.config import extras
from gptjax.config.extras import INSTALLED_BY
from gptjax.data.tokenizers.byte_level import byte_of_character
from gptjax.errors import UserError

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TOOLS = {"test", "gpu", "gpu-plan", "docs"}  # extras that hold nothing which gptjax imports by name


def packages_of(requirements: list[str]) -> set[str]:
    names = {re.match(r"[\w.-]+", line).group() for line in requirements}
    return {name.lower().replace("-", "_") for name in names}


@pytest.mark.parametrize("extra", sorted(PROJECT["optional-dependencies"].keys() - TOOLS))
def test_every_package_of_an_extra_has_the_command_that_installs_it(extra):
    packages = packages_of(PROJECT["optional-dependencies"][extra])
    packages = {"libtpu" if package == "jax" else package for package in packages}  # jax[tpu]
    installing = {package: INSTALLED_BY.get(package, "") for package in packages}
    for package, target in installing.items():
        assert target.startswith("gptjax["), f"{package} of the extra {extra} is not in extras.INSTALLED_BY"
        named = PROJECT["optional-dependencies"][target.removeprefix("gptjax[").rstrip("]")]
        assert package in packages_of(named) or package == "libtpu"


def test_a_package_that_gptjax_imports_is_a_dependency_or_has_the_command_that_installs_it():
    brought = {  # by a dependency or extra that cannot do without
        *("array_record", "jaxlib", "ml_dtypes", "nbformat", "PIL", "regex", "requests", "tiktoken_ext", "yaml"),
        *("absl", "etils", "orbax", "packaging", "google_crc32c", "tensorboardX", "ml_collections"),
    }
    elsewhere = {"tunix"}  # in an interpreter of its own, which gptjax bench --rl --tunix names
    known = packages_of(PROJECT["dependencies"]) | brought | elsewhere | INSTALLED_BY.keys()
    known |= {"gptjax", *sys.stdlib_module_names}
    for file in sorted((ROOT / "gptjax").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            unknown = {module.partition(".")[0] for module in modules} - known
            assert not unknown, f"{file.relative_to(ROOT)}:{node.lineno} imports {unknown}"


WITHOUT = """
import sys
from gptjax import cli
from gptjax.config import extras
for package in extras.INSTALLED_BY:
    sys.modules[package] = None  # an import of it fails as where it is not installed
for line in open(sys.argv[1]):
    print("$", cli.main(line.split()), file=sys.stderr)
"""


def test_a_command_without_the_package_it_needs_is_one_line_with_the_command_that_installs_it(tmp_path):
    files = {name: tmp_path / name for name in ("a.txt", "a.txt.zst", "a.parquet", "a.warc", "tokenizer.json")}
    for file in files.values():
        file.write_bytes(
            b"\x28\xb5\x2f\xfd" if file.suffix == ".zst" else b"{}"
        )  # packed files are known by their bytes
    vocabulary = {character: i for i, character in enumerate(byte_of_character())}
    files["tokenizer.json"].write_text(json.dumps({"model": {"type": "BPE", "vocab": vocabulary, "merges": []}}))
    quick, run = ROOT / "configs" / "quickstart.py", ROOT / "tests" / "golden" / "checkpoints" / "schema2"
    prepare = f"prepare --out={tmp_path / 'out'} --tokenizer=bytes --workers=1 --source"
    commands = {
        f"{prepare}={files['a.txt']} --clean=unicode": "ftfy",
        f"{prepare}={files['a.txt']} --clean=html": "trafilatura",
        f"{prepare}={files['a.txt']} --clean=language=en:0.5": "py3langid",
        f"{prepare}={files['a.txt']} --dedup=minhash": "rensa",
        f"tokenizer info bytes --source={files['a.txt.zst']}": "zstandard",
        f"tokenizer info bytes --source={files['a.parquet']}": "pyarrow",
        f"tokenizer info bytes --source={files['a.warc']}": "warcio",
        f"{prepare}=hf:wikitext": "datasets",
        f"tokenizer info hf:{files['tokenizer.json']}": "tokenizers",
        f"data --config={quick} --stats --picture={tmp_path / 'lengths.png'}": "matplotlib",
        f"coordcheck --config={quick} --out={tmp_path / 'flat.png'}": "matplotlib",
        f"study fit {ROOT / 'docs/manuals_ladder/points.csv'} --report={tmp_path / 'report'}": "matplotlib",
        f"plan --config={quick} --topology=v5p:2x2x1": "libtpu",
        f"eval --workdir={run} --tasks=two_digit_addition": "lm_eval",
        f"sample --workdir={run} --chat --prompt=a --chat_format=template:{files['a.txt']}": "jinja2",
    }
    (tmp_path / "commands").write_text("\n".join(commands))
    python = [sys.executable, "-c", WITHOUT, str(tmp_path / "commands")]
    done = subprocess.run(python, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    replies = done.stderr.split("\n$ ")
    for command, package, before, after in zip(commands, commands.values(), replies, replies[1:]):
        *_, line = before.splitlines()
        assert after.startswith("2") and line.startswith("gptjax: "), f"{command}\n{before}\n{after}"
        assert f" {package}; {extras.pip_install(package)}" in line, f"{command}\n{line}"


def test_a_package_that_is_there_but_lacks_another_or_is_broken_says_which(tmp_path, monkeypatch):
    (tmp_path / "wandb.py").write_text("import gcsfs")
    (tmp_path / "datasets.py").write_text("raise ImportError('libfoo.so is too old')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("wandb", "datasets", "gcsfs"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=re.escape("the log needs gcsfs; pip install 'etils[epath-gcs]'.")):
        extras.library("wandb", "the log")
    reason = "the text needs datasets, which is installed but cannot be imported (libfoo.so is too old); pip install datasets."
    with pytest.raises(UserError, match=re.escape(reason)):
        extras.library("datasets", "the text")


def test_an_import_deep_in_another_package_is_one_line_too(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "warcio", None)
    (tmp_path / "own.py").write_text("def get_config():\n    return 0\n")

    def run(args):
        import warcio  # noqa: F401

    monkeypatch.setattr("gptjax.commands.info.run", run)
    assert cli.main(["info", f"--config={tmp_path / 'own.py'}"]) == 2
    assert capsys.readouterr().err == "gptjax: this needs warcio; pip install 'gptjax[data]'.\n"
