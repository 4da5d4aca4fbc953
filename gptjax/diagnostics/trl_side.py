"""A trainer of TRL in a thread, one optimizer step at a time: the other side of `gptjax bench --sft` and its siblings."""

import os
import shutil
import tempfile
import threading

from gptjax.config.extras import library
from gptjax.huggingface import families


def libraries(flag: str, names: tuple[str, ...] = ()) -> list:
    """torch, transformers, trl, datasets, and `names` as modules. flag: of gptjax bench, that measures beside TRL. Raises
    UserError: one is missing."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is fetched
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    wanted = ("torch", "transformers", "trl", "datasets", *names)
    return [library(name, f"{flag} measures beside TRL, which") for name in wanted]


class Turns:
    """Steps of a trainer that make_trainer(folder, callback) returns; it has to be made with that callback and may write
    into the folder. `step` is one optimizer step."""

    def __init__(self, make_trainer):
        self._turn, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._failure, self._closing = None, False
        self._folder = tempfile.mkdtemp()
        self.trainer = make_trainer(self._folder, self._callback())
        self._thread = threading.Thread(target=self._train, daemon=True)
        self._thread.start()

    def step(self) -> None:
        self._turn.release()
        self._done.acquire()
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        self._closing = True
        self._turn.release()
        self._thread.join()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _train(self) -> None:
        try:
            self.trainer.train()
        except BaseException as error:
            self._failure = error
            self._done.release()

    def _callback(self):
        import transformers

        outer = self

        class OneByOne(transformers.TrainerCallback):
            def on_step_begin(self, args, state, control, **_):
                outer._turn.acquire()
                control.should_training_stop = outer._closing

            def on_step_end(self, args, state, control, **_):
                control.should_training_stop = outer._closing
                outer._done.release()

        return OneByOne()


def settings(config, folder: str) -> dict:
    """Arguments of a TRL config that are the same for all its trainers: the optimizer of a Config, and no other output."""
    optim = config.optim
    return {
        "output_dir": folder,
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


def model(shape):
    """A model of transformers with random parameters, in the shape of a ModelConfig. Raises UserError: it has no such model."""
    import transformers

    values = families.family_for(shape).config_out(shape, "float32", None)
    config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    return transformers.AutoModelForCausalLM.from_config(config)


def words(ids: list[int]) -> str:
    """Tokens as text, for trainers that take nothing else: one word a token."""
    return " ".join(f"w{i}" for i in ids)


def tokenizer(vocab_size: int, end_id: int):
    """Of such text. end_id: the token that ends an answer; another one pads, and is masked."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    of_words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(vocab_size)}, unk_token="w0"))
    of_words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pad_id = next(i for i in range(vocab_size) if i != end_id)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=of_words, pad_token=f"w{pad_id}", eos_token=f"w{end_id}"
    )
