"""lm-evaluation-harness against the server: the answers and metrics that it has of the run itself."""

import numpy as np
import pytest
import serving

pytest.importorskip("lm_eval", reason="needs the extra `eval`")
pytest.importorskip("tenacity", reason="needs lm-eval[api]")

import asked  # noqa: E402
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI  # noqa: E402

import gptjax  # noqa: E402
from gptjax.tasks import harness, task_files  # noqa: E402

# Its scores are those of api_answers_test.py's prompts, read by another client with a server of its own.
pytestmark = pytest.mark.slow
CONTEXT = 2048  # of which all texts of the tasks have fewer bytes


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return serving.write_run(tmp_path_factory.mktemp("lm_eval") / "tiny", context=CONTEXT)


@pytest.fixture(scope="module")
def server(path):
    with serving.server(path.parent, str(path), "--slots=4", "--no_warm_up") as running:
        yield running


def flat(value) -> list:
    """The numbers, and texts, in nested answers."""
    if isinstance(value, dict):
        return [leaf for name in sorted(value) for leaf in flat(value[name])]
    if isinstance(value, list | tuple):
        return [leaf for each in value for leaf in flat(each)]
    return [value]


def test_local_completions_gives_the_scores_of_gptjax_eval(server, path):
    loaded = task_files.load(task_files.select(asked.SPECS))
    theirs = LocalCompletionsAPI(
        base_url=f"{server.url}/v1/completions", model="tiny", max_length=CONTEXT, batch_size=4, max_gen_toks=16
    )
    assert theirs.tokenizer_backend == "remote", "it asks the server for tokens"
    ours = harness.GptjaxLM(gptjax.load(path))
    assert theirs.eot_token_id == ours.eot_token_id
    given, expected = (flat(asked.answers(lm, loaded)) for lm in (theirs, ours))
    assert len(given) == len(expected) > 20
    for one, other in zip(given, expected):
        assert one == other if isinstance(other, str) else np.isclose(one, other, rtol=1e-4, atol=1e-4), (one, other)


def test_local_chat_completions_is_answered(server, path):
    import json

    lm = LocalChatCompletion(base_url=f"{server.url}/v1/chat/completions", model="tiny", max_gen_toks=12)
    message = {"role": "user", "content": "Where is my order?"}
    from lm_eval.api.instance import Instance
    from lm_eval.models.api_models import JsonChatStr

    request = JsonChatStr(json.dumps([message])), {"until": [], "do_sample": False}
    instance = Instance("generate_until", {}, request, 0)
    [answer] = lm.generate_until([instance])
    assert answer == gptjax.load(path).chat([message], temperature=0, max_tokens=12).text
