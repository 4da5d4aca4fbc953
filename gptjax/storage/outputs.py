"""Whether a file or folder can be written where a flag says, asked before long work instead of found out after it."""

from etils import epath

from gptjax.errors import UserError, first_line

PROBE = ".gptjax-probe"


def check_folder(flag: str, path: str) -> None:
    """Raises UserError: nothing can be written into this folder, local or gs://. One that is not there is not left behind."""
    folder = epath.Path(path).expanduser()
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / PROBE).write_text("")
        (folder / PROBE).unlink()
        for one in made if "://" not in str(folder) else ():  # the innermost first
            one.rmdir()
    except Exception as error:  # of the file system, or of whatever library reads a bucket
        raise UserError(f"{flag}={path} cannot be written: {_reason(error)}; use another folder.") from error


def check_file(flag: str, path: str) -> None:
    """Raises UserError: no such file can be written, local or gs://. A file that is there stays as it is."""
    file = epath.Path(path).expanduser()
    if file.is_dir():
        raise UserError(f"{flag}={path} is a folder; name a file in it.")
    probe = file.with_name(f"{file.name}{PROBE}")
    try:
        probe.write_text("")
        probe.unlink()
    except Exception as error:
        raise UserError(f"{flag}={path} cannot be written: {_reason(error)}; use a folder that exists.") from error


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or first_line(error)
