import pathlib
import shutil

import gptjax
from gptjax.storage import code


def test_every_byte_and_every_name_of_the_package_counts(tmp_path, monkeypatch):
    package = shutil.copytree(pathlib.Path(gptjax.__file__).parent, tmp_path / "gptjax", ignore=lambda *_: ["corpus"])
    assert "models/gpt.py" in code.hashes()
    known = {code.digest()}
    monkeypatch.setattr(gptjax, "__file__", str(package / "__init__.py"))
    assert {code.digest()} == known
    (package / "models" / "gpt.py").write_text((package / "models" / "gpt.py").read_text() + "# a comment\n")
    known.add(code.digest())
    (package / "models" / "gpt.py").rename(package / "models" / "other.py")
    known.add(code.digest())
    assert len(known) == 3
