"""Makes answers.json beside this file: what lm-eval's own Hugging Face backend says of the models of tests/support/asked.py,
exported.

pip install torch==2.13.0 transformers accelerate 'gptjax[test]' && PYTHONPATH=tests/support python tests/golden/lm_eval/make.py
"""

import json
import pathlib
import tempfile

import asked

from gptjax.tasks import task_files


def main() -> None:
    loaded = task_files.load(task_files.select(asked.SPECS))
    with tempfile.TemporaryDirectory() as folder:
        found = {name: asked.answers(asked.hf_backend(name, folder), loaded) for name in asked.MODELS}
    text = json.dumps(found, indent=1)
    (pathlib.Path(__file__).parent / "answers.json").write_text(text + "\n")
    print({name: {task: len(said["answers"]) for task, said in tasks.items()} for name, tasks in found.items()})


if __name__ == "__main__":
    main()
