"""The folder of a study: what lies where. Whatever is known of a study is read from here.

study.json       the runs, and what was declared        configs/KEY.json  the resolved config of a run
runs/KEY/        run directories                        logs/KEY.log      output of a run's processes
prediction.json  of the larger runs, before they start  logs/KEY.exit.json  how its last attempt ended
writer.lock      who runs the study now (runlock.py)
"""

import dataclasses
import json

from etils import epath

from gptjax.errors import UserError
from gptjax.storage.writing import replace_whole


@dataclasses.dataclass(frozen=True)
class StudyDirectory:
    path: epath.Path

    @property
    def study(self) -> epath.Path:
        return self.path / "study.json"

    @property
    def prediction(self) -> epath.Path:
        return self.path / "prediction.json"

    def config(self, key: str) -> epath.Path:
        return self.path / "configs" / f"{key}.json"

    def run(self, key: str) -> epath.Path:
        return self.path / "runs" / key

    def log(self, key: str) -> epath.Path:
        return self.path / "logs" / f"{key}.log"

    def exit(self, key: str) -> epath.Path:
        return self.path / "logs" / f"{key}.exit.json"

    @property
    def local(self) -> bool:
        return "://" not in str(self.path)


def open_directory(path: str) -> StudyDirectory:
    """The folder of a study at a path, local or gs://; it need not be there yet."""
    folder = epath.Path(path).expanduser()
    return StudyDirectory(folder if "://" in str(folder) else folder.resolve())


def write_json(file: epath.Path, value) -> None:
    """Written whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_whole(file, json.dumps(value, indent=2) + "\n")


def read_json(file: epath.Path) -> dict:
    """{} if there is none. Raises UserError: it is there and is no JSON object."""
    try:
        value = json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{file} is damaged: {error}; restore it, or delete it and run the same command again."
        ) from error
    if not isinstance(value, dict):
        raise UserError(f"{file} is damaged: it holds no JSON object; delete it and run the same command again.")
    return value
