"""The chat page of `gptjax serve` itself, in a real Chromium: a model's answers, its probabilities, a vote, and quality."""

import json
import re

import browsing
import chat_page_test
import pytest
import serving


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def server(folder):
    chat, base = serving.write_run(folder / "talker"), serving.write_run(folder / "base", chat=False, seed=1)
    flags = (f"--feedback={folder / 'votes.jsonl'}", f"--quality_reference={folder / 'reference.json'}")
    with serving.server(folder, str(chat), f"--workdir=base={base}", *flags, key=serving.KEY) as running:
        yield running


@pytest.fixture
def page(server, tmp_path):
    with browsing.chromium(tmp_path / "profile", tmp_path) as browser:
        browser.get(server.url)
        page = chat_page_test.Page(browser, server.url, None)
        page.wait(lambda: "API key" in page.one("#key-wanted").text)
        page.one("[name=key]").send_keys(serving.KEY, page.keys.ENTER)
        page.wait(lambda: page.one("#model").get_attribute("value") == "talker")
        yield page


def settings(page, **values) -> None:
    page.one("#open-settings").click()
    for name, value in values.items():
        page.one(f"#settings [name={name}]").send_keys(str(value))
    page.one("#settings .main").click()
    page.wait(lambda: not page.one("#settings").is_displayed())


def test_a_model_answers_in_the_page_as_it_answers_the_openai_client(server, page, folder):
    from selenium.webdriver.support.select import Select

    settings(page, temperature=0, max_tokens=12)
    page.one("#probabilities").click()
    page.send("hello")
    asked = dict(model="talker", messages=[{"role": "user", "content": "hello"}], temperature=0, max_tokens=12)
    expected = server.client.chat.completions.create(**asked, logprobs=True).choices[0]
    tokens = page.all("[data-token]")
    named = [one.token for one in expected.logprobs.content]
    assert len(tokens) == len(named) == 12
    for token, name in zip(tokens, named):  # parts of characters are shown as characters
        assert name.startswith("bytes:") or token.get_attribute("textContent").endswith(name)
    assert "talker · step 0 · 12 tokens" in page.one(".message.assistant .about").text
    assert "ended at the most tokens" in page.one(".message.assistant .about").text
    page.click("bad")
    [line] = page.wait(lambda: chat_page_test.lines(folder / "votes.jsonl"))
    assert (
        line["prompt"] == asked["messages"]
        and line["label"] is False
        and line["completion"] == expected.message.content
    )

    page.one("#probabilities").click()
    page.one("#new").click()
    Select(page.one("#model")).select_by_visible_text("base")
    page.send("Once ")
    continued = server.client.completions.create(model="base", prompt="Once ", temperature=0, max_tokens=12)
    content = page.script_value("document.querySelector('.message.assistant .plain').textContent")
    assert content == continued.choices[0].text

    settings(page, max_tokens=3)  # typed behind the 12
    page.send("more")
    assert re.search("context|token", page.one(".error").text), "the server's reason"


def test_quality_counts_what_the_page_was_answered(server, page):
    settings(page, temperature=0, max_tokens=5)
    page.send("hello")
    metrics = server.http("GET", "/metrics").text
    assert float(re.search(r'gptjax_answers_total{model="talker",reason="length"} (\S+)', metrics)[1]) >= 1
    assert "a reference is recorded" in server.http("GET", "/quality").text
    counts = server.http("GET", "/quality.json").json()
    assert sum(counts["models"]["talker"]["bins"]["tokens"]) >= 1


def test_the_reference_so_far_is_written_when_the_server_ends(server, folder):
    assert server.stop() == 0
    reference = json.loads((folder / "reference.json").read_text())
    assert reference["complete"] is False and sum(reference["models"]["talker"]["bins"]["tokens"]) >= 1
