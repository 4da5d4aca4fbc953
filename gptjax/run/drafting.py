"""What guesses tokens for a run: n-grams of the text, or a smaller run (generation/speculative.py)."""

from gptjax.errors import UserError
from gptjax.generation import speculative

NGRAM = "ngram"  # the name of the draft that looks into the text; a directory of this name is ./ngram
NGRAM_TOKENS, MODEL_TOKENS = 8, 4  # guesses at a time: those of n-grams cost nothing but their reading


def engine(run, settings, draft, count: int | None) -> speculative.Speculative:
    """The engine of a Run with a draft: "ngram", or a Run on the same mesh.

    Raises UserError: there is none, it does not fit the run, or nothing is guessed with such settings."""
    if draft is None:
        raise UserError(f"--draft_tokens={count} is only for --draft; add --draft=ngram, or a run.")
    if settings.num_beams > 1:
        raise UserError(
            f"--num_beams={settings.num_beams} has no use for --draft: beam search draws nothing; leave one out."
        )
    if isinstance(draft, str):
        return speculative.Speculative(run.engine, speculative.Ngrams(NGRAM_TOKENS if count is None else count))
    if not isinstance(draft, type(run)):
        raise UserError(f"draft={draft!r:.80} is no draft; expected 'ngram', a Run, or the directory of one.")
    if draft.tokenizer.hash != run.tokenizer.hash:
        raise UserError(
            f"the draft in {draft.directory.path} has another tokenizer than the run in {run.directory.path}; use a run that"
            " was trained with the same one."
        )
    guessing = speculative.DraftModel(draft.engine, MODEL_TOKENS if count is None else count)
    return speculative.Speculative(run.engine, guessing)
