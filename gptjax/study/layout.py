"""The folder of a study: what lies where. Whatever is known of a study is read from here.

study.json       the runs, and what was declared        configs/KEY.json  the resolved config of a run
runs/KEY/        run directories                        logs/KEY.log      output of a run's processes
prediction.json  of the larger runs, before they start  logs/KEY.exit.json  how its last attempt ended
"""

import dataclasses

from etils import epath


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
