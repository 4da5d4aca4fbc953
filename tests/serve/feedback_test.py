"""Votes: what is taken and refused by the real endpoint, files that several processes write, and training on them."""

import concurrent.futures
import json
import multiprocessing

import chat_server
import httpx
import numpy as np
import pytest
import runs

from gptjax import cli
from gptjax.errors import UserError
from gptjax.serve import feedback

ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+2"}]
THUMB = {"messages": ASKED, "answer": "3", "rating": 1}


@pytest.fixture
def votes(tmp_path):
    return feedback.Votes(tmp_path / "votes.jsonl")


def lines(file) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_thumb_is_a_line_that_training_reads(votes):
    name = votes.add(THUMB | {"model": "tutor", "comment": "right"})
    [line] = lines(votes.thumbs)
    assert line.pop("time") > 1.7e9
    assert line == {"prompt": ASKED, "completion": "3", "label": True, "model": "tutor", "comment": "right", "id": name}
    assert votes.thumbs.stat().st_mode & 0o777 == 0o600


def test_a_choice_goes_to_a_file_of_comparisons(votes):
    votes.add({"messages": ASKED, "answer": "3", "over": ["4", "5"]})
    [line] = lines(votes.choices)
    assert line["answers"] == ["3", "4", "5"] and line["ranking"] == [1, 2, 2]
    assert votes.choices.name == "votes.choices.jsonl" and not votes.thumbs.read_text()


def test_who_votes_again_has_one_vote_and_may_take_it_back(votes):
    other, name = votes.add(THUMB), votes.add(THUMB)
    assert votes.add(THUMB | {"rating": -1, "id": name}) == name
    assert [(line["id"], line["label"]) for line in lines(votes.thumbs)] == [(other, True), (name, False)]
    votes.add(THUMB | {"rating": 0, "id": name})
    assert [line["id"] for line in lines(votes.thumbs)] == [other]
    votes.add(THUMB | {"rating": 0, "id": other})
    assert votes.thumbs.read_text() == "" and votes.thumbs.stat().st_mode & 0o777 == 0o600
    with pytest.raises(UserError, match="no such vote"):
        votes.add(THUMB | {"rating": 0, "id": other})


def test_an_id_within_another_line_is_not_taken_for_a_vote(votes):
    votes.add(THUMB | {"comment": 'they wrote "id": "abc" to me'})
    votes.add(THUMB | {"id": "abc"})
    assert len(lines(votes.thumbs)) == 2


def test_a_line_that_was_cut_off_stays_alone(votes):
    votes.thumbs.write_text('{"prompt": "half')
    name = votes.add(THUMB)
    assert votes.thumbs.read_text().splitlines()[0] == '{"prompt": "half'
    assert json.loads(votes.thumbs.read_text().splitlines()[1])["id"] == name


def test_a_full_file_takes_no_more_and_keeps_what_it_has(tmp_path):
    votes = feedback.Votes(tmp_path / "votes.jsonl", most_bytes=400)
    votes.add(THUMB)
    with pytest.raises(feedback.Full, match="votes.jsonl is full"):
        for _ in range(9):
            votes.add(THUMB)
    assert 1 <= len(lines(votes.thumbs)) < 9 and votes.thumbs.stat().st_size <= 400


REFUSED = {
    "a list": [],
    "no messages": {"answer": "3", "rating": 1},
    "no messages in it": THUMB | {"messages": []},
    "a role that is none": THUMB | {"messages": [{"role": "king", "content": "1+2"}]},
    "no opinion": {"messages": ASKED, "answer": "3"},
    "two opinions": THUMB | {"over": ["4"]},
    "a rating out of range": THUMB | {"rating": 2},
    "a truth value": THUMB | {"rating": True},
    "a float": THUMB | {"rating": 1.0},
    "an empty answer": THUMB | {"answer": " "},
    "an answer of numbers": THUMB | {"answer": [3]},
    "half a character": THUMB | {"answer": "\ud800"},
    "a field that is none": THUMB | {"stars": 5},
    "a long comment": THUMB | {"comment": "x" * 4001},
    "an id with a break": THUMB | {"id": "a\nb"},
    "nothing to take back": THUMB | {"rating": 0},
    "better than itself": {"messages": ASKED, "answer": "3", "over": ["3"]},
    "better than nothing": {"messages": ASKED, "answer": "3", "over": []},
}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    votes = feedback.Votes(tmp_path_factory.mktemp("served") / "votes.jsonl", most_bytes=20_000)
    with chat_server.serving(feedback.routes(votes)) as url:
        yield url, votes


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_vote_is_refused_with_the_reason_and_not_written(served, name):
    url, votes = served
    before = votes.thumbs.read_bytes(), votes.choices.read_bytes()
    response = httpx.post(f"{url}/v1/feedback", content=json.dumps(REFUSED[name]))
    error = response.json()["error"]
    assert response.status_code == 400 and error["type"] == "invalid_request_error" and len(error["message"]) > 10
    assert (votes.thumbs.read_bytes(), votes.choices.read_bytes()) == before


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b'{"answer": "' + b"x" * 2**20 + b'"}'])
def test_a_body_that_is_no_json_or_too_long_is_refused(served, body):
    response = httpx.post(f"{served[0]}/v1/feedback", content=body)
    assert response.status_code == 400 and response.json()["error"]["message"]


def test_a_full_file_is_said_to_the_client(served):
    url, _ = served
    statuses = {httpx.post(f"{url}/v1/feedback", json=THUMB | {"answer": "3" * 3000}).status_code for _ in range(9)}
    assert statuses == {200, 507}


def _vote(file, process: int) -> None:
    votes = feedback.Votes(file)
    for i in range(20):
        votes.add(THUMB | {"id": f"{process}-{i}"})
        votes.add(THUMB | {"id": f"{process}-{i}", "rating": -1})


def test_several_processes_lose_no_vote_and_break_no_line(votes):
    context = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(4, mp_context=context) as pool:
        list(pool.map(_vote, [votes.thumbs] * 4, range(4)))
    written = lines(votes.thumbs)
    assert sorted(line["id"] for line in written) == sorted(f"{p}-{i}" for p in range(4) for i in range(20))
    assert not any(line["label"] for line in written)


@pytest.mark.parametrize("file", ["nowhere/votes.jsonl", "gs://bucket/votes.jsonl", "."])
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_served(tmp_path, monkeypatch, file):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--feedback="):
        feedback.Votes(file)


@pytest.fixture(scope="module")
def voted(tmp_path_factory):
    """The folder of votes on sums and on choices between them, that clients of the real endpoint gave."""
    folder = tmp_path_factory.mktemp("voted")
    rng = np.random.default_rng(0)
    with chat_server.serving(feedback.routes(feedback.Votes(folder / "votes.jsonl"))) as url:
        with httpx.Client(base_url=url) as client:
            for i in range(40):
                a, b = (int(n) for n in rng.integers(1, 9, 2))
                asked = {"messages": [{"role": "user", "content": f"{a}+{b}"}]}
                right, wrong = str(a + b), str(a + b + 1)
                bodies = (
                    asked | {"answer": (wrong, right)[i % 2], "rating": (-1, 1)[i % 2]},
                    asked | {"answer": right, "over": [wrong]},
                )
                for body in bodies:
                    client.post("/v1/feedback", json=body).raise_for_status()
    return folder


def config_of(voted, file: str, preferences: str, loss: str) -> str:
    shared = dict(tokenizer="bytes", chat="gptjax", val_fraction=0.2, cache_dir=str(voted / "cache"))
    values = {
        "model": dict(context_length=16, n_layers=1, d_model=16, n_heads=2, dtype="float32"),
        "data": dict(source="jsonl", path=str(voted / file), preferences=preferences) | shared,
        "optim": dict(peak_lr=1e-2, schedule="constant"),
        "train": dict(steps=2, batch_size=8, log_every=1, tensorboard=False, loss=loss),
        "checkpoint": dict(every_steps=2),
        "eval": dict(every_steps=None),
    }
    return runs.write_config(values, voted / f"{preferences}.py")


@pytest.mark.slow
def test_kto_trains_on_thumbs_that_the_endpoint_wrote(voted):
    config = config_of(voted, "votes.jsonl", "judged", "kto(beta=0.1)")
    assert cli.main(["train", config, f"--workdir={voted / 'run'}"]) == 0
    losses = [row["loss"] for row in runs.train_rows(voted / "run")]
    assert len(losses) == 2 and np.isfinite(losses).all()


def test_pairs_are_read_from_choices_that_the_endpoint_wrote(voted, capsys):
    config = config_of(voted, "votes.choices.jsonl", "compared", "dpo(beta=0.1)")
    assert cli.main(["data", config, "--stats"]) == 0
    said = capsys.readouterr().out
    assert "32 pairs, 0 ties" in said and "8 pairs, 0 ties" in said, "each of the 40 votes is a pair"
