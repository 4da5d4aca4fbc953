"""Where what is made once of a text is kept between runs."""

import pathlib

from gptjax.errors import UserError


def cache_folder(config) -> pathlib.Path:
    """Where tokens and plans are kept between runs. Raises UserError: it is in a bucket."""
    if "://" in config.cache_dir:
        raise UserError(f"data.cache_dir={config.cache_dir} is not a local folder; tokens are mapped from a disk.")
    return pathlib.Path(config.cache_dir).expanduser()
