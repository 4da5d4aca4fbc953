"""TRL's side of `gptjax bench --sft`: its SFTTrainer in a thread, one optimizer step at a time."""

import os
import shutil
import tempfile
import threading

import numpy as np

from gptjax.config.extras import library
from gptjax.huggingface import families

PURPOSE = "--sft measures beside TRL, which"


def libraries(lora: bool):
    """(torch, transformers, trl, datasets, peft or None). Raises UserError: one is missing."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is fetched
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    names = ("torch", "transformers", "trl", "datasets", *(["peft"] if lora else []))
    modules = [library(name, PURPOSE) for name in names]
    return (*modules, None)[:5]


class Theirs:
    """Steps of SFTTrainer over the same conversations, packed by its own best fit ("bfd"). `step` returns how many labels
    bore loss.

    lora: rank and alpha of the adapter that is trained; None: all parameters are.

    Rows go through the model one by one, their gradients accumulated: TRL puts the rows of a batch end to end into a single
    sequence, whose attention without flash attention is quadratic in all of them.
    """

    def __init__(self, config, conversations, lora: dict | None):
        self._turn, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._labels, self._failure, self._closing = 0, None, False
        self._folder = tempfile.mkdtemp()
        self._trainer = self._make_trainer(config, conversations, lora)
        self._thread = threading.Thread(target=self._train, daemon=True)
        self._thread.start()

    def step(self) -> float:
        before = self._labels
        self._turn.release()
        self._done.acquire()
        if self._failure is not None:
            raise self._failure
        return float(self._labels - before)

    def close(self) -> None:
        self._closing = True
        self._turn.release()
        self._thread.join()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _train(self) -> None:
        try:
            self._trainer.train()
        except BaseException as error:
            self._failure = error
            self._done.release()

    def _make_trainer(self, config, conversations, lora: dict | None):
        torch, transformers, trl, datasets, peft = libraries(lora is not None)
        outer = self

        class Turns(transformers.TrainerCallback):
            def on_step_begin(self, args, state, control, **_):
                outer._turn.acquire()
                control.should_training_stop = outer._closing

            def on_step_end(self, args, state, control, **_):
                control.should_training_stop = outer._closing
                outer._done.release()

        class Counting(trl.SFTTrainer):
            def compute_loss(self, model, inputs, *args, **options):
                outer._labels += int((inputs["labels"][..., 1:] != -100).sum())
                return super().compute_loss(model, inputs, *args, **options)

        torch.manual_seed(0)
        model = _model(config.model, transformers)
        rows = [
            {"input_ids": one.token_N.tolist(), "labels": np.where(one.is_answer_N, one.token_N, -100).tolist()}
            for one in conversations
        ]
        trainer = Counting(
            model=model,
            args=trl.SFTConfig(**_settings(config, self._folder)),
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=_tokenizer(transformers),
            peft_config=_lora(peft, lora) if lora else None,
            callbacks=[Turns()],
        )
        trainer.remove_callback(transformers.PrinterCallback)  # stdout is the results'
        return trainer


def _settings(config, folder: str) -> dict:
    optim = config.optim
    return {
        "output_dir": folder,
        "packing": True,
        "packing_strategy": "bfd",
        "max_length": config.model.context_length,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": config.train.batch_size,
        "max_steps": 10**6,
        "learning_rate": optim.peak_lr,
        "adam_beta1": optim.beta1,
        "adam_beta2": optim.beta2,
        "weight_decay": optim.weight_decay,
        "max_grad_norm": optim.clip_norm or 0.0,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }


def _model(shape, transformers):
    values = families.family_for(shape).config_out(shape, "float32", None)
    config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    return transformers.AutoModelForCausalLM.from_config(config)


def _tokenizer(transformers):
    """One that SFTTrainer asks for its padding alone: the conversations are tokens already."""
    from tokenizers import Tokenizer, models

    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


def _lora(peft, values: dict):
    return peft.LoraConfig(
        r=values["rank"],
        lora_alpha=values["alpha"],
        target_modules=["c_attn"],
        fan_in_fan_out=True,
        task_type="CAUSAL_LM",
    )
