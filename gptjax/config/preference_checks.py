"""What a Config of preferences (data.preferences) may be: conversations with fields of their own, and losses that read them."""

from gptjax.config import task_heads, text_kinds
from gptjax.errors import UserError, choose, shorten

_WITHOUT_MEANING = (
    *("data.mixture", "data.packing", "data.mask_documents", "data.objective", "data.chat_loss"),
    *("train.z_loss", "train.log_activations", "train.label_smoothing", "train.neftune_alpha", "train.lm_coef"),
)


def check(config) -> None:
    """Raises UserError: data that cannot hold preferences, or a field that is of something else."""
    data = config.data
    choose(text_kinds.PREFERENCES, data.preferences, "data.preferences")
    asked = f"data.preferences={data.preferences!r}"
    if data.task is not None:
        raise UserError(f"{asked} and data.task={_shown(data.task)} are both set; set one of them to None.")
    if data.chat is None:
        raise UserError(f"{asked} is of conversations, but data.chat is None; set it, such as data.chat='gptjax'.")
    if data.source == "prepared":
        raise UserError(f"{asked}, but data.source='prepared' holds tokens without fields; use jsonl, parquet or hf.")
    for field in _WITHOUT_MEANING:
        section, name = (getattr(config, field.partition(".")[0]), field.partition(".")[2])
        if getattr(section, name) != type(section).__dataclass_fields__[name].default:
            raise UserError(
                f"{field}={_shown(getattr(section, name))} is of running text, and {asked} gives answers; leave it out."
            )
    _check_scored(config, asked)


def _check_scored(config, asked: str) -> None:
    """A reward model has a head for its score, and learns from comparisons."""
    loss, is_scored = config.train.loss.partition("(")[0].strip(), config.model.task_head is not None
    if loss == task_heads.Score.loss and not is_scored:
        raise UserError(
            f"train.loss={_shown(config.train.loss)} scores answers, and the model has no head for it; set"
            " model.task_head='score'."
        )
    if is_scored and config.data.preferences != "compared":
        raise UserError(f"{asked} compares no answers, which model.task_head='score' learns from; use 'compared'.")


def _shown(value) -> str:
    return shorten(repr(value), 80)
