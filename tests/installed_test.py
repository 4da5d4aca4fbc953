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
def installed():
    """The distribution that `pip install -e` made of this checkout, as it is in .ci/run. Skips where there is none."""
    for distribution in importlib.metadata.distributions(name="gptjax"):
        origin = json.loads(distribution.read_text("direct_url.json") or "{}")  # an egg-info of a build has none
        folder = urllib.parse.unquote(urllib.parse.urlparse(origin.get("url", "")).path)
        if origin.get("dir_info", {}).get("editable") and os.path.realpath(folder) == str(ROOT):
            return distribution
    pytest.skip(f"gptjax is not installed here by pip install -e from {ROOT}")


def test_the_folder_that_the_clone_lies_in_does_not_hide_the_package(installed, tmp_path):
    (tmp_path / "gptjax").mkdir()  # as `git clone` names the checkout: to Python a package without a file
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    lines = "import gptjax; print(gptjax.__file__); gptjax.load"
    python = subprocess.run(
        [sys.executable, "-c", lines], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert python.returncode == 0, python.stderr
    assert python.stdout.strip() == str(ROOT / "gptjax" / "__init__.py")


def test_the_install_is_of_the_version_and_the_command_that_pyproject_names(installed):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert installed.version == project["version"]
    scripts = {entry.name: entry.value for entry in installed.entry_points if entry.group == "console_scripts"}
    assert scripts == project["scripts"]
    assert set(installed.metadata.get_all("Provides-Extra")) == set(project["optional-dependencies"])


@pytest.mark.parametrize("quote", "'\"")
def test_a_manifest_names_no_packages_of_tests_however_the_build_backend_quotes_them(quote):
    lines = ["tensorboardX>=2.6", f"pytest>=8; extra == {quote}test{quote}", f"tokenizers; extra == {quote}data{quote}"]
    assert run_directory.required_names(lines) == {"tensorboardx", "tokenizers"}
