"""The chat page in a real Chromium, on a real server whose answers are scripted: what people do with it."""

import json
import time

import browsing
import chat_server
import httpx
import pytest

from gptjax.serve import feedback, page

SECONDS = 240  # for anything that is waited for: far more than it takes


class Page:
    """The page in a browser, by what people see."""

    def __init__(self, browser, url: str, script: chat_server.Script):
        from selenium.webdriver.common.by import By
        from selenium.webdriver.common.keys import Keys

        self.browser, self.url, self.script, self._by, self.keys = browser, url, script, By, Keys

    def all(self, selector: str) -> list:
        return self.browser.find_elements(self._by.CSS_SELECTOR, selector)

    def one(self, selector: str):
        return self.browser.find_element(self._by.CSS_SELECTOR, selector)

    def wait(self, condition):
        """What the condition gives once it is true. Elements that are drawn anew while it looks are looked at again."""
        from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException

        deadline = time.monotonic() + SECONDS
        while True:
            try:
                if value := condition():
                    return value
            except (StaleElementReferenceException, NoSuchElementException, IndexError):
                pass
            assert time.monotonic() < deadline, f"not in time; the page shows:\n{self.one('body').text}"
            time.sleep(0.02)

    def type(self, *words: str) -> None:
        self.one("#message").send_keys(*words)

    def send(self, text: str) -> None:
        """Types a text and Enter, and waits for the whole answer."""
        before = len(self.all(".message.assistant"))
        self.type(text, self.keys.ENTER)
        self.wait(lambda: len(self.all(".message.assistant")) > before and self.is_quiet)

    @property
    def is_quiet(self) -> bool:
        return self.one("#send").is_displayed() and not self.all("[aria-busy]")

    def said(self) -> list[str]:
        """What stands in the messages, from the first to the last."""
        return [content.text for content in self.all(".message .content")]

    def click(self, action: str, which: int = -1) -> None:
        self.all(f'[data-action="{action}"]')[which].click()

    def script_value(self, code: str, *values):
        return self.browser.execute_script(f"return {code}", *values)


def lines(file) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with browsing.chromium(
        tmp_path_factory.mktemp("profile"), downloads=tmp_path_factory.mktemp("downloads")
    ) as driver:
        yield driver


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """(address, Script, Votes)"""
    script = chat_server.Script()
    votes = feedback.Votes(tmp_path_factory.mktemp("votes") / "votes.jsonl")
    with chat_server.serving(chat_server.routes(script) + page.routes(True) + feedback.routes(votes)) as url:
        yield url, script, votes


@pytest.fixture
def chat(browser, server):
    """The page as somebody sees it who has never been there."""
    url, script, votes = server
    browser.get(f"{url}/page/page.css")  # of the same origin, without the script that has the database open
    browser.execute_async_script(
        "localStorage.clear(); sessionStorage.clear();"
        " const done = arguments[0], gone = indexedDB.deleteDatabase('gptjax'); gone.onsuccess = gone.onerror = () => done()"
    )
    script.__init__()
    for file in (votes.thumbs, votes.choices):
        file.write_text("")
    browser.get(url)
    shown = Page(browser, url, script)
    shown.wait(lambda: shown.one("#model").get_attribute("value") == "tutor")
    browser.get_log("browser")
    yield shown
    errors = [
        entry["message"] for entry in browser.get_log("browser") if "the server responded" not in entry["message"]
    ]
    assert not errors, "the browser's console"


def test_the_page_asks_no_other_host_and_its_policy_allows_none(chat):
    asked = chat.script_value("performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert len(asked) >= 10 and all(name.startswith(chat.url) for name in asked)
    response = httpx.get(chat.url)
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'" and policy["script-src"] == "'self'" == policy["connect-src"]
    for path in ("/page/none.js", "/page/..%2fpage.py", "/page/page.html"):
        assert httpx.get(chat.url + path).status_code == 404


def test_an_answer_says_which_model_and_step_gave_it(chat):
    assert chat.one("#about-model").text == "step 1,200 · 1,024 tokens of context"
    chat.send("hello")
    assert chat.said() == ["hello", "answer 1 to hello"]
    assert "tutor · step 1,200 · 2 tokens" in chat.one(".message.assistant .about").text
    [body] = chat.script.requests
    assert body["messages"] == [{"role": "user", "content": "hello"}]
    assert body["stream"] is True and "temperature" not in body and "logprobs" not in body


def test_a_newer_step_is_shown_once_it_is_served(chat):
    chat.send("hello")
    chat.script.models[0]["step"] = 1300
    chat.send("and now?")
    chat.wait(lambda: "step 1,300" in chat.one("#about-model").text)
    chat.send("and then?")
    assert "step 1,300" in chat.all(".message.assistant .about")[-1].text


def test_shift_and_enter_break_the_line_and_enter_sends(chat):
    chat.type("one", chat.keys.SHIFT, chat.keys.ENTER, chat.keys.NULL, "two")
    assert chat.one("#message").get_attribute("value") == "one\ntwo" and not chat.script.requests
    chat.type(chat.keys.ENTER)
    chat.wait(lambda: chat.script.requests and chat.is_quiet)
    assert chat.script.requests[0]["messages"][0]["content"] == "one\ntwo"


def test_escape_stops_the_answer_and_the_server_hears_of_it(chat):
    chat.type("slow", chat.keys.ENTER)
    chat.wait(lambda: len(chat.said()) == 2 and len(chat.said()[1]) > 40)
    assert chat.one("#stop").is_displayed() and not chat.one("#send").is_displayed()
    chat.type(chat.keys.ESCAPE)
    chat.wait(lambda: chat.is_quiet and chat.script.cut_off == 1)
    assert "stopped by you" in chat.one(".message.assistant .about").text and len(chat.said()[1]) > 40
    chat.send("go on")
    assert [message["role"] for message in chat.script.requests[1]["messages"]] == ["user", "assistant", "user"]


def test_an_answer_made_again_is_kept_beside_the_first(chat):
    chat.send("hello")
    chat.click("again")
    chat.wait(lambda: chat.said() == ["hello", "answer 2 to hello"] and chat.is_quiet)
    assert chat.one(".place").text == "2/2"
    chat.click("earlier")
    assert chat.said()[1] == "answer 1 to hello" and chat.one(".place").text == "1/2"
    chat.send("more")
    assert chat.script.requests[-1]["messages"][1]["content"] == "answer 1 to hello"
    chat.click("later", 0)
    assert chat.said() == ["hello", "answer 2 to hello"], "what followed the other answer is not this one's"
    chat.click("earlier")
    assert len(chat.said()) == 4


def test_an_edited_message_begins_a_branch_and_the_old_one_stays(chat):
    chat.send("first")
    chat.send("second")
    chat.click("edit", 0)
    field = chat.one(".editor textarea")
    field.clear()
    field.send_keys("changed", chat.keys.ENTER)
    chat.wait(lambda: chat.said() == ["changed", "answer 3 to changed"] and chat.is_quiet)
    assert chat.script.requests[-1]["messages"] == [{"role": "user", "content": "changed"}]
    chat.click("earlier")
    assert chat.said() == ["first", "answer 1 to first", "second", "answer 2 to second"]
    chat.click("edit", 0)
    chat.one(".editor textarea").send_keys("!", chat.keys.ESCAPE)
    assert chat.said()[0] == "first"


def test_what_is_typed_in_an_editor_outlives_the_end_of_an_answer(chat):
    chat.type("slow", chat.keys.ENTER)
    chat.wait(lambda: len(chat.said()) == 2 and chat.said()[1])
    chat.click("edit", 0)
    chat.one(".editor textarea").send_keys(" typed")
    chat.one("#stop").click()
    chat.wait(lambda: chat.is_quiet)
    assert chat.one(".editor textarea").get_attribute("value") == "slow typed"


def test_conversations_outlive_a_reload_are_renamed_and_deleted(chat):
    chat.send("hello")
    chat.type(chat.keys.CONTROL, "k", chat.keys.NULL)
    chat.wait(lambda: not chat.said())
    chat.send("another")
    chat.browser.refresh()

    def names():
        return [button.text for button in chat.all("#conversations .open")]

    chat.wait(lambda: names() == ["another", "hello"])
    chat.click("open", 1)
    assert chat.said() == ["hello", "answer 1 to hello"]
    chat.click("rename", 1)
    field = chat.wait(lambda: chat.one("#ask input"))
    field.clear()
    field.send_keys("A greeting", chat.keys.ENTER)
    chat.wait(lambda: "A greeting" in names())
    chat.click("delete", names().index("another"))
    chat.one("#ask-yes").click()
    chat.wait(lambda: names() == ["A greeting"])
    chat.browser.refresh()
    chat.wait(lambda: names() == ["A greeting"])


def test_another_tab_sees_what_was_said_in_this_one(chat):
    first = chat.browser.current_window_handle
    chat.browser.switch_to.new_window("tab")
    chat.browser.get(chat.url)
    second = chat.browser.current_window_handle
    chat.wait(lambda: chat.one("#model").get_attribute("value") == "tutor")
    chat.browser.switch_to.window(first)
    chat.send("hello")
    chat.browser.switch_to.window(second)
    chat.wait(lambda: [button.text for button in chat.all("#conversations .open")] == ["hello"])
    chat.browser.close()
    chat.browser.switch_to.window(first)


def test_an_exported_file_is_read_again_with_its_branches(chat, tmp_path):
    chat.send("hello")
    chat.click("again")
    chat.wait(lambda: chat.all(".place") and chat.is_quiet)
    chat.one("#export").click()
    file = chat.browser.downloads / "conversations.json"
    chat.wait(file.exists)
    content = file.read_text()
    file.unlink()
    chat.click("delete")
    chat.one("#ask-yes").click()
    chat.wait(lambda: not chat.all("#conversations li"))
    (tmp_path / "saved.json").write_text(content)
    chat.one("#file").send_keys(str(tmp_path / "saved.json"))
    chat.wait(lambda: chat.said() == ["hello", "answer 2 to hello"])
    assert chat.one(".place").text == "2/2"


BROKEN = {
    "no JSON": "{",
    "of something else": json.dumps({"format": "other", "conversations": []}),
    "a role that is none": {"nodes": {"ab": {"parent": "root", "role": "king", "content": "x"}}},
    "a name of every object": '{"nodes": {"__proto__": {"parent": "root", "role": "user", "content": "x"}}}',
    "a parent that is missing": {"nodes": {"ab": {"parent": "cd", "role": "user", "content": "x"}}},
    "its own parent": {"nodes": {"ab": {"parent": "ab", "role": "user", "content": "x"}}},
    "no nodes": {"id": "x"},
}


def test_a_file_that_is_none_is_refused_with_the_reason_and_nothing_of_it_is_kept(chat, tmp_path):
    for number, (name, content) in enumerate(BROKEN.items()):
        if name not in ("no JSON", "of something else"):
            content = content if isinstance(content, str) else json.dumps(content)
            content = f'{{"format": "gptjax-conversations", "version": 1, "conversations": [{content}]}}'
        file = tmp_path / f"{number}.json"
        file.write_text(content)
        chat.one("#file").send_keys(str(file))
        chat.wait(lambda: f"{number}.json was not imported: " in chat.one("#notice").text)
        assert not chat.all("#conversations li"), name


def test_probabilities_of_tokens_are_shown_under_the_pointer_and_by_arrow_keys(chat):
    from selenium.webdriver import ActionChains

    chat.one("#probabilities").click()
    chat.send("show tokens")
    assert chat.script.requests[0]["logprobs"] is True and chat.script.requests[0]["top_logprobs"] == 5
    tokens = chat.all("[data-token]")
    assert [token.get_attribute("textContent") for token in tokens] == [text for text, _, _ in chat_server.TOKENS]
    assert [token.get_attribute("class").split()[1] for token in tokens] == [f"surprise-{n}" for n in (0, 2, 0, 4, 3)]
    ActionChains(chat.browser).move_to_element(tokens[3]).perform()
    shown = chat.one("#tip").text
    assert "<b>blue</b>" in shown and "1.8%" in shown and "4.00 nats" in shown and "74.1%" in shown
    chat.one(".tokens").send_keys(chat.keys.ARROW_RIGHT, chat.keys.ARROW_RIGHT)
    chat.wait(lambda: chat.one("#said").get_attribute("textContent") == "␣sky, 40.7%")
    chat.one("#probabilities").click()
    assert not chat.all("[data-token]") and chat.said()[1] == "The sky is <b>blue</b>."


def test_a_character_of_several_tokens_is_shown_once(chat):
    chat.one("#probabilities").click()
    chat.send("euro")
    assert [token.get_attribute("textContent") for token in chat.all("[data-token]")] == ["", "", "\u20ac", " 5"]


def test_votes_reach_the_file_change_and_are_taken_back(chat, server):
    votes = server[2]
    chat.send("hello")
    chat.click("good")
    [line] = chat.wait(lambda: lines(votes.thumbs))
    assert (line["completion"], line["label"], line["model"]) == ("answer 1 to hello", True, "tutor")
    assert line["prompt"] == [{"role": "user", "content": "hello"}]
    chat.wait(lambda: chat.one('[data-action="good"]').get_attribute("aria-pressed") == "true")
    chat.click("bad")
    chat.wait(lambda: [line["label"] for line in lines(votes.thumbs)] == [False])
    chat.wait(
        lambda: (
            chat.all('[data-action="comment"]')
            and chat.one('[data-action="bad"]').get_attribute("aria-pressed") == "true"
        )
    )
    chat.click("comment")
    chat.one("#ask input").send_keys("too short", chat.keys.ENTER)
    chat.wait(lambda: lines(votes.thumbs)[0].get("comment") == "too short")
    chat.wait(lambda: chat.one('[data-action="comment"]').text == "Change the comment")
    chat.click("bad")
    chat.wait(lambda: not lines(votes.thumbs))


def test_an_answer_preferred_to_its_alternatives_is_a_choice(chat, server):
    chat.send("hello")
    assert not chat.all('[data-action="best"]'), "there is nothing yet that it could be better than"
    for number in (2, 3):
        chat.click("again")
        chat.wait(lambda: chat.said()[1] == f"answer {number} to hello" and chat.is_quiet)
    chat.click("earlier")
    chat.click("best")
    [line] = chat.wait(lambda: lines(server[2].choices))
    assert line["answers"] == [f"answer {n} to hello" for n in (2, 1, 3)] and line["ranking"] == [1, 2, 2]
    chat.wait(lambda: chat.one('[data-action="best"]').get_attribute("aria-pressed") == "true")
    chat.click("later")
    chat.click("best")
    chat.wait(lambda: [line["answers"][0] for line in lines(server[2].choices)] == ["answer 3 to hello"])


def test_a_server_with_a_key_is_answered_with_the_one_that_is_typed(chat):
    chat.script.key = "sk-1"
    chat.browser.refresh()
    chat.wait(lambda: "This server wants an API key." in chat.one("#key-wanted").text)
    chat.one("[name=key]").send_keys("sk-1", chat.keys.ENTER)
    chat.wait(lambda: chat.one("#model").get_attribute("value") == "tutor")
    chat.send("hello")
    assert chat.said()[1] == "answer 1 to hello"
    assert chat.script_value("JSON.stringify(localStorage)").count("sk-1") == 0


@pytest.mark.parametrize(
    ("text", "reason", "kept"),
    [
        ("refuse", "max_tokens=7 is too much for this test.", ""),
        ("broken", "The engine met an error.", "answer 1 to"),
        ("lost", "The connection ended before the answer did", "answer 1 to"),
    ],
)
def test_an_answer_that_fails_shows_the_server_s_reason_and_may_be_tried_again(chat, text, reason, kept):
    chat.send(text)
    assert reason in chat.one(".error").text and chat.said()[1].strip() == kept
    answers = chat.script.answers
    chat.click("again")
    chat.wait(lambda: chat.one(".place").text == "2/2" and chat.is_quiet)
    assert chat.script.answers > answers or text == "refuse"


def test_settings_are_sent_and_empty_ones_are_not(chat):
    chat.one("#open-settings").click()
    values = {"system": "Be brief.", "temperature": "0.5", "top_k": "7", "max_tokens": "9", "seed": "3"}
    for name, value in (values | {"repetition_penalty": "1.1"}).items():
        chat.one(f"#settings [name={name}]").send_keys(value)
    chat.one("#settings .main").click()
    chat.wait(lambda: not chat.one("#settings").is_displayed())
    chat.send("hello")
    body = chat.script.requests[0]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    given = {
        name: body.get(name) for name in ("temperature", "top_p", "top_k", "max_tokens", "seed", "repetition_penalty")
    }
    assert given == {
        "temperature": 0.5,
        "top_p": None,
        "top_k": 7,
        "max_tokens": 9,
        "seed": 3,
        "repetition_penalty": 1.1,
    }


def test_a_setting_out_of_range_is_not_saved(chat):
    chat.one("#open-settings").click()
    chat.one("#settings [name=temperature]").send_keys("9")
    chat.one("#settings .main").click()
    assert chat.one("#settings").is_displayed() and chat.script_value(
        "!arguments[0].validity.valid", chat.one("#settings [name=temperature]")
    )
    chat.one("#cancel-settings").click()


def test_a_model_without_conversations_continues_text_as_it_stands(chat):
    from selenium.webdriver.support.select import Select

    Select(chat.one("#model")).select_by_visible_text("base")
    assert "continues text" in chat.one(".empty").text
    chat.type("Once upon ", chat.keys.ENTER)
    chat.wait(lambda: len(chat.said()) == 2 and chat.is_quiet)
    chat.type(chat.keys.ENTER)  # nothing typed: further
    chat.wait(lambda: len(chat.said()) == 3 and chat.is_quiet)
    first, second = (body["prompt"] for body in chat.script.requests)
    assert first == "Once upon " and second.startswith("Once upon answer 1 to Once upon ")
    assert not chat.all('[data-action="good"]')


def test_two_conversations_answer_at_once(chat):
    chat.type("slow", chat.keys.ENTER)
    chat.wait(lambda: len(chat.said()) == 2 and chat.said()[1])
    chat.one("#new").click()
    chat.send("quick")
    assert chat.said() == ["quick", "answer 2 to quick"]
    chat.all("#conversations .answering .open")[0].click()
    chat.wait(lambda: len(chat.said()[1]) > 40)
    chat.one("#stop").click()
    chat.wait(lambda: chat.is_quiet)


def test_a_conversation_that_is_deleted_while_it_is_answered_stays_away(chat):
    chat.type("slow", chat.keys.ENTER)
    chat.wait(lambda: len(chat.said()) == 2 and chat.said()[1])
    chat.click("delete")
    chat.one("#ask-yes").click()
    chat.wait(lambda: chat.script.cut_off == 1 and not chat.all("#conversations li"))
    chat.browser.refresh()
    chat.wait(lambda: chat.one("#model").get_attribute("value") == "tutor")
    assert not chat.all("#conversations li")


def test_a_screen_reader_hears_an_answer_once_and_not_token_by_token(chat):
    chat.script_value(
        "void (window.heard = [], new MutationObserver(() => heard.push(document.getElementById('said').textContent))"
        ".observe(document.getElementById('said'), {childList: true, characterData: true, subtree: true}))"
    )
    chat.send("say:" + "many words " * 30)
    heard = chat.script_value("window.heard")
    assert [words.strip() for words in heard] == ["The answer is being written.", ("many words " * 30).strip()]
    assert (
        chat.one("#log").get_attribute("aria-live") == "off"
        and chat.one("#said").get_attribute("aria-live") == "polite"
    )


def test_all_that_can_be_used_has_a_name(chat):
    def unnamed(place: str) -> list[str]:
        used = chat.all(
            ", ".join(f"{place} {kind}" for kind in ("button", "input", "textarea", "select", "a", "[role]"))
        )
        shown = [one for one in used if one.is_displayed() and one.get_attribute("role") not in ("alert", "status")]
        assert len(shown) > 8
        return [one.get_attribute("outerHTML")[:100] for one in shown if not one.accessible_name]

    chat.one("#probabilities").click()
    chat.send("show tokens")
    chat.click("again")
    chat.wait(lambda: chat.all(".place") and chat.is_quiet)
    chat.click("edit", 0)
    assert unnamed("body") == []
    chat.one("#open-settings").click()
    assert unnamed("#settings") == [] and chat.one("#settings").accessible_name == "Settings"


def test_a_whole_conversation_is_held_with_the_keyboard_alone(chat):
    from selenium.webdriver import ActionChains

    def press(*keys):
        ActionChains(chat.browser).send_keys(*keys).perform()

    def focused():
        return chat.script_value("document.activeElement.dataset.action ?? document.activeElement.id")

    def press_until(action, *keys):
        for _ in range(20):
            ActionChains(chat.browser).send_keys(*keys, chat.keys.TAB, chat.keys.NULL).perform()
            if focused() == action:
                return
        raise AssertionError(f"{action} is not reached")

    press("hello", chat.keys.ENTER)
    chat.wait(lambda: len(chat.said()) == 2 and chat.is_quiet)
    press_until("again", chat.keys.SHIFT)
    press(chat.keys.ENTER)
    chat.wait(lambda: chat.all(".place") and chat.is_quiet)
    assert focused() == "message", "the button was gone while the answer was written"
    press_until("earlier", chat.keys.SHIFT)
    press(chat.keys.ENTER)
    chat.wait(lambda: chat.said()[1] == "answer 1 to hello")
    assert focused() == "later", "there is none before the first"
    press_until("good")
    press(chat.keys.ENTER)
    chat.wait(lambda: chat.one('[data-action="good"]').get_attribute("aria-pressed") == "true")
    assert focused() == "good", "messages are drawn anew, and the focus stays where it was"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_are_those_chosen_whatever_the_system_has(chat, theme):
    for system in ("light", "dark"):
        media = [{"name": "prefers-color-scheme", "value": system}]
        chat.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        chat.script_value("void localStorage.setItem('gptjax.settings', arguments[0])", json.dumps({"theme": theme}))
        chat.browser.refresh()
        background = chat.wait(lambda: chat.script_value("getComputedStyle(document.body).backgroundColor"))
        assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(24, 24, 24)"}[theme]
        chat.script_value("void localStorage.clear()")
        chat.browser.refresh()
        background = chat.script_value("getComputedStyle(document.body).backgroundColor")
        assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(24, 24, 24)"}[system]
    chat.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_on_a_phone_nothing_is_wider_than_the_screen_and_the_list_opens(chat):
    phone = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    chat.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        chat.send("say:" + "a" * 300 + "\t`" + "b" * 200 + "`")
        assert chat.script_value("document.documentElement.scrollWidth") == 390
        assert chat.script_value("document.getElementById('log').scrollWidth <= 390")
        assert not chat.one("#side").is_displayed()
        chat.one("#open-side").click()
        assert chat.wait(lambda: chat.one("#conversations .open").is_displayed())
        chat.one("#new").click()
        chat.wait(lambda: not chat.one("#side").is_displayed())
        chat.send("hello")
    finally:
        chat.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
