"""TRL's side of `gptjax bench --sft`: its SFTTrainer, one optimizer step at a time."""

import numpy as np

from gptjax.diagnostics import trl_side


def libraries(lora: bool) -> list:
    """[torch, transformers, trl, datasets], and peft for LoRA. Raises UserError: one is missing."""
    return trl_side.libraries("--sft", ("peft",) if lora else ())


class Theirs:
    """Steps of SFTTrainer over the same conversations, packed by its own best fit ("bfd"). `step` returns how many labels
    bore loss.

    lora: rank and alpha of the adapter that is trained; None: all parameters are.

    Rows go through the model one by one, their gradients accumulated: TRL puts the rows of a batch end to end into a single
    sequence, whose attention without flash attention is quadratic in all of them.
    """

    def __init__(self, config, conversations, lora: dict | None):
        self._config, self._conversations, self._lora, self._labels = config, conversations, lora, 0
        modules = libraries(lora is not None)
        self._turns = trl_side.Turns(lambda folder, callback: self._trainer(modules, folder, callback))

    def step(self) -> float:
        before = self._labels
        self._turns.step()
        return float(self._labels - before)

    def close(self) -> None:
        self._turns.close()

    def _trainer(self, modules: list, folder: str, callback):
        torch, transformers, trl, datasets, *peft = modules
        outer = self

        class Counting(trl.SFTTrainer):
            def compute_loss(self, model, inputs, *args, **options):
                outer._labels += int((inputs["labels"][..., 1:] != -100).sum())
                return super().compute_loss(model, inputs, *args, **options)

        torch.manual_seed(0)
        rows = [
            {"input_ids": one.token_N.tolist(), "labels": np.where(one.is_answer_N, one.token_N, -100).tolist()}
            for one in self._conversations
        ]
        trainer = Counting(
            model=trl_side.model(self._config.model),
            args=trl.SFTConfig(**_settings(self._config, folder)),
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=trl_side.tokenizer(self._config.model.vocab_size, 0),
            peft_config=_lora(*peft, self._lora) if peft else None,
            callbacks=[callback],
        )
        trainer.remove_callback(transformers.PrinterCallback)  # stdout is the results'
        return trainer


def _settings(config, folder: str) -> dict:
    return trl_side.settings(config, folder) | {
        "packing": True,
        "packing_strategy": "bfd",
        "max_length": config.model.context_length,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": config.train.batch_size,
    }


def _lora(peft, values: dict):
    return peft.LoraConfig(
        r=values["rank"],
        lora_alpha=values["alpha"],
        target_modules=["c_attn"],
        fan_in_fan_out=True,
        task_type="CAUSAL_LM",
    )
