"""gptjax's own files as they lie on disk, which a git revision does not tell of where they were changed.

Every byte counts here: a manifest says what ran, and hosts have to run the same. What a study holds for the same code is
asked more kindly, by syntax trees: study/running/identity.py.
"""

import hashlib
import pathlib

import gptjax


def hashes() -> dict[str, str]:
    """{"models/gpt.py": sha256 in hex}, in the order of the paths."""
    package = pathlib.Path(gptjax.__file__).parent
    files = sorted(package.rglob("*.py"))
    return {str(file.relative_to(package)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def digest() -> str:
    """sha256 of all of them, with their names."""
    whole = hashlib.sha256()
    for name, file_hash in hashes().items():
        whole.update(f"{name}\0".encode() + bytes.fromhex(file_hash))
    return whole.hexdigest()
