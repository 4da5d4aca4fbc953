"""TRL's side of `gptjax bench --rl`: its GRPOTrainer, one iteration at a time: answers by generate, rewards, and a step."""

import time

from gptjax.diagnostics import trl_side


class Theirs:
    """Iterations of GRPOTrainer. prompt_ids: token ids of each prompt, all of one length. `step` returns the seconds that
    the answers took.

    Prompts are given as text of one word a token, since TRL takes no ids; the end of a text is held off until
    answer_length, as on our side.
    """

    def __init__(self, config, prompt_ids: list[list[int]], group: int, answer_length: int, reward):
        """reward(ids of an answer) -> float."""
        self._config, self._prompt_ids, self._group, self._length = config, prompt_ids, group, answer_length
        self._reward, self._seconds = reward, 0.0
        modules = trl_side.libraries("--rl")
        self._turns = trl_side.Turns(lambda folder, callback: self._trainer(modules, folder, callback))

    def step(self) -> float:
        before = self._seconds
        self._turns.step()
        return self._seconds - before

    def close(self) -> None:
        self._turns.close()

    def _trainer(self, modules: list, folder: str, callback):
        torch, transformers, trl, datasets = modules
        outer = self

        class Timed(trl.GRPOTrainer):
            def _generate_single_turn(self, *args, **options):
                begun = time.perf_counter()
                generated = super()._generate_single_turn(*args, **options)
                outer._seconds += time.perf_counter() - begun
                return generated

        def reward(completion_ids, **_):
            return [outer._reward(ids) for ids in completion_ids]

        torch.manual_seed(0)
        model = trl_side.model(self._config.model)
        model.save_pretrained(f"{folder}/model")  # GRPOTrainer wants one that was loaded
        tokenizer = _tokenizer(transformers, self._config.model.vocab_size)
        tokenizer.save_pretrained(f"{folder}/model")
        rows = [{"prompt": " ".join(f"w{i}" for i in ids)} for ids in self._prompt_ids]
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
        return trl_side.settings(self._config, folder) | {
            "per_device_train_batch_size": self._config.train.batch_size,
            "gradient_accumulation_steps": 1,
            "steps_per_generation": 1,
            "num_generations": self._group,
            "max_completion_length": self._length,
            "generation_kwargs": {"min_new_tokens": self._length},
            "temperature": 1.0,
            "top_k": 0,
            "beta": 0.0,
            "loss_type": "grpo",
        }


def _tokenizer(transformers, vocab_size: int):
    """Word w5 is token 5. The last two entries stand for the end of a text and for padding."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"w{i}": i for i in range(vocab_size - 2)} | {"<eos>": vocab_size - 2, "<pad>": vocab_size - 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
