"""What of a Config with reinforcement learning goes together, told before the first step: names are looked up where their tables
stand, and sizes against the devices there are."""

from gptjax.config import rl_checks
from gptjax.errors import UserError, naming
from gptjax.posttrain import advantages, answering, judging_models
from gptjax.posttrain.rewards import reward
from gptjax.training import losses


def check(config, unit: int) -> None:
    """Raises UserError: loss, advantage, reference, rewards and text of a Config do not go together, or its batch does not divide
    over `unit` devices."""
    rl, train = config.rl, config.train
    loss, advantage = losses.chosen(train.loss), advantages.of(rl.advantage)
    advantages.controller(rl.kl_control)
    reward.chosen(rl_checks.reward_weights(rl.rewards))
    if not hasattr(loss, "needs_critic"):
        raise UserError(
            f"train.loss={train.loss!r} learns no rewards; use one of: ppo, grpo, dapo, gspo, rloo, reinforce."
        )
    if loss.needs_critic != advantage.needs_critic:
        mend = "rl.advantage='gae'" if loss.needs_critic else "train.loss='ppo'"
        raise UserError(f"rl.advantage={rl.advantage!r} and train.loss={train.loss!r}: one has a critic; use {mend}.")
    advantages.check_group(rl.group, advantage.least_group)
    if rl.reference is None and (rl.kl_coef or loss.beta):
        raise UserError(
            f"rl.reference=None, but rl.kl_coef={rl.kl_coef} and train.loss={train.loss!r} keep answers near a reference; use"
            " rl.reference='start', or no such weight."
        )
    if (rl.ptx is None) != (loss.ptx_coef == 0):
        raise UserError(
            f"rl.ptx={rl.ptx!r} with train.loss={train.loss!r}: text is learnt with the weight ptx_coef of the loss; give both,"
            " or neither."
        )
    unit *= train.microbatches
    if train.batch_size % unit:
        raise UserError(
            f"train.batch_size={train.batch_size} answers do not divide over {unit} (devices along the batch times"
            f" train.microbatches={train.microbatches}); use a multiple of {unit}."
        )


def check_others(session) -> None:
    """Raises UserError: a run, a text or a tool that the Config of a Session names is not there, or cannot be used with its
    tokenizer and the length of its answers."""
    config, store = session.config, session.store
    answering.responder(config, store.tokenizer)
    if config.rl.ptx is not None:
        from gptjax.posttrain import ptx

        ptx.rows_of_step(session)
        ptx.data_of(config)
    if config.rl.reference not in (None, "start"):
        judging_models.reference_run(config.rl.reference, session)
    for each in reward.chosen(rl_checks.reward_weights(config.rl.rewards)):
        if hasattr(each.reward, "check"):
            with naming(each.text, "rl.rewards"):
                each.reward.check()
