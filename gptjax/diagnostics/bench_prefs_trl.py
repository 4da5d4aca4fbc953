"""TRL's side of `gptjax bench --prefs`: its RewardTrainer or DPOTrainer, one optimizer step at a time."""

import dataclasses

from gptjax.diagnostics import trl_side
from gptjax.huggingface import families


class Theirs:
    """Steps over pairs of the same answers, those of a prompt in one step. `step` returns of how many pairs.

    pairs: (better, worse) answers of each example.
    """

    def __init__(self, config, made: list, pairs: list[tuple[int, int]], kind: str):
        self._config, self._made, self._of_each, self._kind = config, made, pairs, kind
        self._pairs = config.train.batch_size * len(pairs)
        modules = trl_side.libraries(f"--prefs={kind}")
        self._turns = trl_side.Turns(lambda folder, callback: self._trainer(modules, folder, callback))

    def step(self) -> float:
        self._turns.step()
        return float(self._pairs)

    def close(self) -> None:
        self._turns.close()

    def _trainer(self, modules: list, folder: str, callback):
        torch, transformers, trl, datasets = modules
        torch.manual_seed(0)
        common = trl_side.settings(self._config, folder) | {"max_length": self._config.model.context_length}
        common |= {"per_device_train_batch_size": self._pairs // self._config.train.microbatches}
        common |= {"gradient_accumulation_steps": self._config.train.microbatches}
        made = {"train_dataset": datasets.Dataset.from_list(self._rows()), "callbacks": [callback]}
        made |= {"processing_class": trl_side.tokenizer(self._config.model.vocab_size, 0)}
        if self._kind == "dpo":
            args = trl.DPOConfig(**common, precompute_ref_log_probs=True)
            trainer = trl.DPOTrainer(model=trl_side.model(self._config.model), args=args, **made)
        else:
            trainer = trl.RewardTrainer(model=self._scorer(transformers), args=trl.RewardConfig(**common), **made)
        trainer.remove_callback(transformers.PrinterCallback)  # stdout is the results'
        return trainer

    def _rows(self) -> list[dict]:
        rows = []
        for example in self._made:
            for better, worse in self._of_each:
                ids = {"chosen": example.sequences[better].tolist(), "rejected": example.sequences[worse].tolist()}
                if self._kind == "reward":
                    rows.append({f"{name}_ids": each for name, each in ids.items()})
                else:  # DPOTrainer takes text alone
                    texts = {name: trl_side.words(each[example.prompt_length :]) for name, each in ids.items()}
                    prompt = trl_side.words(ids["chosen"][: example.prompt_length])
                    rows.append({"prompt": prompt} | {name: f" {text}" for name, text in texts.items()})
        return rows

    def _scorer(self, transformers):
        shape = dataclasses.replace(self._config.model, task_head=None)
        values = families.family_for(shape).config_out(shape, "float32", None)
        config = transformers.AutoConfig.for_model(values.pop("model_type"), **values, num_labels=1, pad_token_id=0)
        return transformers.AutoModelForSequenceClassification.from_config(config)
