"""gs://bucket as a folder of this machine, behind the library that epath asks for any store."""

import contextlib
import sys


@contextlib.contextmanager
def mounted(folder, monkeypatch):
    """Gives folder/bucket, which is gs://bucket within the `with`."""
    import fsspec
    from etils.epath import backend
    from fsspec.implementations.dirfs import DirFileSystem

    class Bucket(DirFileSystem):
        protocol = ("gs", "gcs")

        def __init__(self, **options):
            super().__init__(path=str(folder), fs=fsspec.filesystem("file"))

    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "gcs", Bucket)
    backend.fsspec_backend._get_filesystem.cache_clear()
    (folder / "bucket").mkdir()
    yield folder / "bucket"
    backend.fsspec_backend._get_filesystem.cache_clear()
