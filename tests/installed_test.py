"""What `pip install -e .` of this checkout gives: gptjax from any folder, and the files that a wheel carries."""

import importlib.metadata
import json
import os
import subprocess
import sys
import tomllib
import urllib.parse

import pytest
from places import ROOT

from gptjax.rundir import run_directory


@pytest.fixture
def installed_editable():
    """Skips where gptjax is not installed by `pip install -e` from this checkout, as it is in .ci/run."""
    try:
        origin = json.loads(importlib.metadata.distribution("gptjax").read_text("direct_url.json") or "{}")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("gptjax is not installed")
    folder = urllib.parse.unquote(urllib.parse.urlparse(origin.get("url", "")).path)
    if not origin.get("dir_info", {}).get("editable") or os.path.realpath(folder) != str(ROOT):
        pytest.skip(f"gptjax is installed from {origin.get('url', 'a wheel')}, not by pip install -e from {ROOT}")


def test_the_folder_that_the_clone_lies_in_does_not_hide_the_package(installed_editable, tmp_path):
    (tmp_path / "gptjax").mkdir()  # as `git clone` names the checkout: to Python a package without a file
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    lines = "import gptjax; print(gptjax.__file__); gptjax.load"
    python = subprocess.run(
        [sys.executable, "-c", lines], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert python.returncode == 0, python.stderr
    assert python.stdout.strip() == str(ROOT / "gptjax" / "__init__.py")


def test_the_install_is_of_the_version_and_the_command_that_pyproject_names(installed_editable):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    distribution = importlib.metadata.distribution("gptjax")
    assert distribution.version == project["version"]
    scripts = {entry.name: entry.value for entry in distribution.entry_points if entry.group == "console_scripts"}
    assert scripts == project["scripts"]
    assert set(distribution.metadata.get_all("Provides-Extra")) == set(project["optional-dependencies"])


@pytest.mark.parametrize("quote", "'\"")
def test_a_manifest_names_no_packages_of_tests_however_the_build_backend_quotes_them(quote):
    lines = ["tensorboardX>=2.6", f"pytest>=8; extra == {quote}test{quote}", f"tokenizers; extra == {quote}data{quote}"]
    assert run_directory.required_names(lines) == {"tensorboardx", "tokenizers"}
