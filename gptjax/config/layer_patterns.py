"""What may be said of layers that are not all alike, and of parts of a layer: checked where a config says it."""

from gptjax.errors import UserError, shorten

LETTERS = {"window_pattern": ("L", "S"), "rope_pattern": ("R", "N")}
BIASED = ("qkv", "out", "mlp")  # linear maps of a layer


def check(m) -> None:
    """Raises UserError for the first value of a ModelConfig that cannot work."""
    for field, letters in LETTERS.items():
        pattern = getattr(m, field)
        if not pattern or not set(pattern) <= set(letters):
            raise UserError(
                f"model.{field}={_shown(pattern)} cannot be read; expected letters {' and '.join(letters)}, one for each"
                " layer of a period."
            )
    for field in ("rope_pattern", "rope_scaling"):
        value, plain = getattr(m, field), getattr(type(m), field)
        if value != plain and m.position != "rope":
            raise UserError(
                f"model.{field}={_shown(value)} with model.position={_shown(m.position)}; use 'rope', or {plain!r}."
            )
    if m.band_width is None and m.window_pattern != type(m).window_pattern:
        raise UserError(f"model.window_pattern={_shown(m.window_pattern)} has no width; set model.band_width.")
    if m.band_width is not None and "S" not in m.window_pattern:
        raise UserError(
            f"model.band_width={m.band_width} is of S layers, and model.window_pattern={_shown(m.window_pattern)} has none;"
            " set model.band_width to None."
        )
    if m.n_layers % m.layer_period:
        raise UserError(
            f"model.n_layers={m.n_layers} is no multiple of the {m.layer_period} layers after which model.window_pattern and"
            f" model.rope_pattern repeat; use {-(-m.n_layers // m.layer_period) * m.layer_period}, or other patterns."
        )
    if m.linear_bias is not None and not set(m.linear_bias.split(",")) <= set(BIASED):
        raise UserError(
            f"model.linear_bias={_shown(m.linear_bias)} cannot be read; expected names of {', '.join(BIASED)} with a comma"
            " between, or None."
        )


def _shown(value) -> str:
    return shorten(repr(value), 80)
