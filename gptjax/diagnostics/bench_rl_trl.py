"""TRL's side of `gptjax bench --rl`: its GRPOTrainer, one iteration at a time: answers by generate, rewards, and updates."""

import time

from gptjax.diagnostics import trl_side


class Theirs:
    """Iterations of GRPOTrainer. prompt_ids: token ids of each prompt; loss: our GRPO; end_id: the token that ends an answer.
    `step` returns the seconds that the answers took.

    Prompts are given as text of one word a token, since TRL takes no ids.
    """

    def __init__(self, config, prompt_ids: list[list[int]], loss, end_id: int):
        self._config, self._prompt_ids, self._loss, self._end_id = config, prompt_ids, loss, end_id
        self._seconds = 0.0
        modules = trl_side.libraries("--rl")
        self._turns = trl_side.Turns(lambda folder, callback: self._trainer(modules, folder, callback))

    def step(self) -> float:
        before = self._seconds
        for _ in range(self._config.train.steps_per_call):
            self._turns.step()
        return self._seconds - before

    def close(self) -> None:
        self._turns.close()

    def _trainer(self, modules: list, folder: str, callback):
        torch, transformers, trl, datasets = modules
        outer = self

        class Timed(trl.GRPOTrainer):
            def _generate_single_turn(self, *args, **options):
                began = time.perf_counter()
                generated = super()._generate_single_turn(*args, **options)
                outer._seconds += time.perf_counter() - began
                return generated

        torch.manual_seed(0)
        model = trl_side.model(self._config.model)
        model.save_pretrained(f"{folder}/model")  # GRPOTrainer wants one that was loaded
        tokenizer = trl_side.tokenizer(self._config.model.vocab_size, self._end_id)
        tokenizer.save_pretrained(f"{folder}/model")
        rows = [{"prompt": trl_side.words(ids)} for ids in self._prompt_ids]
        trainer = Timed(
            model=transformers.AutoModelForCausalLM.from_pretrained(f"{folder}/model"),
            reward_funcs=reward,
            args=trl.GRPOConfig(**self._settings(folder)),
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[callback],
        )
        trainer.remove_callback(transformers.PrinterCallback)  # stdout is the results'
        return trainer

    def _settings(self, folder: str) -> dict:
        rl, train = self._config.rl, self._config.train
        return trl_side.settings(self._config, folder) | {
            "per_device_train_batch_size": train.batch_size // train.microbatches,
            "gradient_accumulation_steps": train.microbatches,
            "steps_per_generation": train.microbatches * train.steps_per_call // rl.epochs,
            "num_iterations": rl.epochs,
            "num_generations": rl.group,
            "max_completion_length": rl.max_tokens,
            "temperature": rl.temperature,
            "top_k": rl.top_k or 0,
            "top_p": rl.top_p or 1.0,
            "beta": self._loss.beta,
            "epsilon": self._loss.clip,
            "loss_type": "grpo",
        }


def reward(completion_ids, **_) -> list[float]:
    """One that costs nothing, and differs in a group."""
    return [float(len(set(ids))) for ids in completion_ids]
