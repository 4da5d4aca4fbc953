"""A model of ours in lm-evaluation-harness: what its tasks ask of a language model, with the conventions of its own
Hugging Face backend, so that the numbers compare.

    lm_eval.simple_evaluate(model=gptjax.tasks.harness.GptjaxLM(gptjax.load(path)), tasks=["lambada_openai"])

A context and its continuation are encoded as one text and parted after the context's tokens; spaces at the context's
end go to the continuation. Nothing stands before a context, and end-of-text before an empty one and before a text whose
whole likelihood is asked for. What is too long is cut from the left; a continuation that is itself longer than the
context, which the Hugging Face backend refuses, is scored in windows. Needs the extra `eval` (lm-eval), not torch.
"""

import collections
import contextlib

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from gptjax.errors import UserError
from gptjax.evaluation import scoring
from gptjax.generation.settings import OPTIONS

MAX_NEW_TOKENS = 256  # of a generation whose task does not say
ROWS_GENERATED = 16  # at once
FULL_ROWS = 8  # of the whole context, for each data shard of the mesh, that are scored at once unless told otherwise


class Stopped(Exception):
    """should_stop() said so, between two batches."""


@register_model("gptjax")
class GptjaxLM(TemplateLM):
    """run: a `gptjax.load`ed Run, or one that training makes of its own state; on a mesh of several processes all of
    them evaluate the same tasks. batch_size: rows of the whole context scored at once, None: as many as training has
    and at most 8 for each data shard.

    Raises UserError: a model that does not go on with a text, or nothing that could stand before one.
    """

    def __init__(self, run, batch_size: int | None = None, should_stop=lambda: False, report=lambda done, total: None):
        super().__init__()
        if not run.config.data.writes_on:
            raise UserError(
                f"a model of data.objective={run.config.data.objective!r} fills in what is missing in a text and cannot"
                " continue one, as tasks need; evaluate it with gptjax eval without --tasks."
            )
        self.run, self._should_stop, self._report = run, should_stop, report
        shards = run.mesh.shape["replica"] * run.mesh.shape["fsdp"]
        self._full_rows = batch_size or min(run.config.eval_batch_size, FULL_ROWS * shards)
        self._prefix = prefix_token(run.tokenizer)
        self.truncated = 0  # requests, so far, that were cut to fit the context
        self.in_windows = 0  # requests, so far, whose continuation alone was longer

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict, additional_config: dict | None = None) -> "GptjaxLM":
        """From what `lm_eval --model gptjax --model_args workdir=DIR,step=N` gives, and the arguments of `gptjax.load`."""
        from gptjax.run import run

        arguments = dict(arg_dict)
        if "workdir" not in arguments:
            raise UserError(
                f"--model_args has {', '.join(arguments) or 'nothing'}; give workdir=DIR, and step=N if you like."
            )
        size = arguments.pop("batch_size", (additional_config or {}).get("batch_size"))
        return cls(run.read(arguments.pop("workdir"), **arguments), batch_size=None if size is None else int(size))

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict | None = None) -> "GptjaxLM":
        from lm_eval.utils import simple_parse_args_string

        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @property
    def eot_token_id(self) -> int:
        return self._prefix

    @property
    def max_length(self) -> int:
        return self.run.config.model.context_length

    @property
    def max_gen_toks(self) -> int:
        return MAX_NEW_TOKENS

    @property
    def tokenizer_name(self) -> str:
        return self.run.tokenizer.hash

    def get_model_info(self) -> dict:
        """Which model it was, for lm-eval's own results."""
        return {"workdir": str(self.run.directory.path), "step": self.run.step}

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_) -> list[int]:
        return self.run.tokenizer.encode(string).tolist()

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        context_ids, continuation_ids = super()._encode_pair(context, continuation)
        return context_ids or [self._prefix], continuation_ids  # a context of spaces alone is an empty one

    def loglikelihood(self, requests, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """(nats, whether it is what greedy decoding gives) of each continuation given its context."""
        for request in requests:
            if not request.args[1]:
                raise UserError(
                    f"the task {request.task_name!r} asks for the likelihood of an empty text; check its choices."
                )
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests, **_) -> list[tuple[float, bool]]:
        parted = [self._windows(context, continuation) for _, context, continuation in requests]
        scores = iter(self._score([window for windows in parted for window in windows]))
        answers = []
        for windows in parted:
            of_windows = [next(scores) for _ in windows]
            answers.append((float(sum(s.log_likelihood for s in of_windows)), all(s.greedy for s in of_windows)))
        for (texts, _, _), answer in zip(requests, answers):
            self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def _windows(self, context: list[int], continuation: list[int]) -> list[scoring.Request]:
        """One request, or of a continuation longer than the context length as many as it takes."""
        size = self.max_length
        self.in_windows += len(continuation) > size
        self.truncated += len(context) + len(continuation) > size + 1 and len(continuation) <= size
        starts = range(0, max(1, len(continuation)), size)
        return [scoring.Request(context + continuation[:i], continuation[i : i + size]) for i in starts]

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = True) -> list[float]:
        """Nats of each text, whole: in windows of the context length, each token predicted once."""
        windows = [
            [
                scoring.Request(*make_disjoint_window(window))
                for window in get_rolling_token_windows(self.tok_encode(text), self._prefix, self.max_length, 1)
            ]
            for (text,) in (request.args for request in requests)
        ]
        scores = iter(self._score([window for of_text in windows for window in of_text]))
        answers = [float(sum(next(scores).log_likelihood for _ in of_text)) for of_text in windows]
        for request, answer in zip(requests, answers):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, answer)
        return answers

    def _score(self, requests: list[scoring.Request]) -> list[scoring.Score]:
        scores = scoring.score(
            self.run.graph,
            self.run.params,
            self.run.mesh,
            requests,
            batch_size=self._full_rows,
            vocab_chunks=self.run.config.train.vocab_chunks,
            should_stop=self._should_stop,
            report=self._report,
        )
        if scores is None:
            raise Stopped
        return scores

    def generate_until(self, requests, disable_tqdm: bool = True) -> list[str]:
        """What follows each context, up to the first of its stop strings or end-of-text: greedy, unless it asks to sample.

        Raises UserError: a setting that there is not, or more new tokens than the context has room for.
        """
        by_settings = collections.defaultdict(list)  # requests of the same settings go together
        for number, request in enumerate(requests):
            by_settings[repr(request.args[1])].append(number)
        answers = [""] * len(requests)
        for numbers in by_settings.values():
            chosen = [requests[number] for number in numbers]
            for number, request, text in zip(numbers, chosen, self._continue(chosen, numbers)):
                answers[number] = text
                self.cache_hook.add_partial("generate_until", request.args, text)
        return answers

    def _continue(self, requests, numbers: list[int]) -> list[str]:
        """The text that follows each context. numbers: of the requests, seeds of what is drawn."""
        settings = _generation_settings(requests[0], self.max_length)
        room = self.max_length - settings["max_tokens"]
        prompts = [self.tok_encode(request.args[0]) or [self._prefix] for request in requests]
        self.truncated += sum(len(prompt) > room for prompt in prompts)
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), prompts[i]))  # of like lengths together
        texts = [""] * len(prompts)
        for first in range(0, len(order), ROWS_GENERATED):
            self._report(first, len(order))
            if self._should_stop():
                raise Stopped
            chosen = order[first : first + ROWS_GENERATED]
            seeds = tuple(numbers[i] for i in chosen)
            for i, text in zip(chosen, self._generate([prompts[i][-room:] for i in chosen], seed=seeds, **settings)):
                texts[i] = text
        return texts

    def _generate(self, prompts: list[list[int]], **settings) -> list[str]:
        return [completion.text for completion in self.run.generate(prompts, **settings)]


class DryLM(GptjaxLM):
    """Takes requests as they come, tokenises them, and computes nothing: what cannot be asked of a model is found out
    before it is trained."""

    def _score(self, requests):
        one = scoring.Score(np.zeros(1, np.float32), np.zeros(1, bool))
        return [one] * len(requests)

    def _generate(self, prompts, **settings) -> list[str]:
        return [""] * len(prompts)


def _generation_settings(request, context_length: int) -> dict:
    """Settings of `Run.generate` that a request asks for."""
    asked = normalize_gen_kwargs(request.args[1], MAX_NEW_TOKENS)
    until, max_tokens, drawn = asked.pop("until"), asked.pop("max_gen_toks"), asked.pop("do_sample")
    options = [name for name, option in OPTIONS.items() if option.in_tasks]
    settings = {name: asked.pop(name) for name in options if asked.get(name) is not None}
    task = f"the task {request.task_name!r} asks"
    if asked:
        names = ", ".join(("until", "max_gen_toks", "do_sample", *options))
        raise UserError(f"{task} to generate with {', '.join(asked)}; there are: {names}.")
    if not 0 < max_tokens < context_length:
        raise UserError(
            f"{task} for {max_tokens} new tokens (max_gen_toks), which leaves no room for a prompt in"
            f" model.context_length={context_length}; set generation_kwargs.max_gen_toks in its file."
        )
    greedy = {} if drawn else {"temperature": 0.0}
    return {"max_tokens": max_tokens, "stop": tuple(filter(None, until)), **settings, **greedy}


def prefix_token(tokenizer) -> int:
    """What stands before a text that begins a document: end-of-text, or a line break where documents have no end.

    Raises UserError: the tokenizer has neither.
    """
    for i in (tokenizer.bos_id, tokenizer.eot_id):
        if i is not None:
            return i
    with contextlib.suppress(UserError):  # a tokenizer of characters that has not seen one
        ids = tokenizer.encode("\n")
        if len(ids) == 1:
            return int(ids[0])
    raise UserError(
        f"the tokenizer {tokenizer.kind!r} has no end-of-text token and no line break that could stand before a text;"
        " train with one that has, such as data.tokenizer='bytes'."
    )
