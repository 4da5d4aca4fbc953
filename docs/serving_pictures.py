"""Takes the pictures of docs/serving_page.md: python docs/serving_pictures.py. Needs chromium, chromedriver and selenium.

The page and /quality are the real ones; their answers are written here, and the numbers of quality are drawn.
"""

import pathlib
import sys
import tempfile
import time

import numpy as np

DOCS = pathlib.Path(__file__).parent
sys.path[:0] = [str(DOCS.parent / "tests" / name) for name in ("support", "serve")]

import browsing  # noqa: E402
import chat_server  # noqa: E402
from chat_page_test import Page  # noqa: E402

from gptjax.serve import page, quality  # noqa: E402

ANSWER = """The **learning rate** sets how far a step goes. Three habits help:

1. Warm up over the first few hundred steps.
2. Let it fall to a tenth by the end.
3. Try factors of two:

| rate | result |
|---|--:|
| 3e-4 | learns slowly |
| 6e-4 | learns well |
| 1.2e-3 | diverges |

```python
config.optim.peak_lr, config.optim.warmup_steps = 6e-4, 300
```"""
WORDS = "Too small, and training crawls ; too large , and the loss explodes .".split()
DAY = 86400.0


def main() -> None:
    now = [1.8e9]
    seen = quality.Quality(f"{tempfile.mkdtemp()}/reference.json", now=lambda: now[0])
    rng = np.random.default_rng(0)
    observe(seen, rng, 400, tokens=60, refused=0.03)
    now[0] += 7 * DAY
    observe(seen, rng, 1, tokens=60, refused=0.0)
    now[0] += 7 * DAY
    observe(seen, rng, 300, tokens=95, refused=0.09)
    script = chat_server.Script()
    surprising = [(f" {word}", -float(rng.gamma(0.6, 1.2)), []) for word in WORDS]
    rivals = [(" other", -1.6), (" very", -2.3), (" no", -3.1)]
    named = [(word, value, sorted([(word, value), *rivals], key=lambda one: -one[1])) for word, value, _ in surprising]
    script.pieces = lambda text: named if "sentence" in text else [(letters, -0.3, []) for letters in ANSWER]
    routes = chat_server.routes(script) + page.routes(True) + quality.routes(seen)
    with (
        chat_server.serving(routes) as url,
        browsing.chromium(tempfile.mkdtemp(), tempfile.mkdtemp(), 1200, 1000) as browser,
    ):
        talk(Page(browser, url, script))
        browser.get(f"{url}/quality")
        take(browser, "serving_quality.png")


def observe(seen: quality.Quality, rng, count: int, tokens: float, refused: float) -> None:
    for _ in range(count):
        length = max(1, int(rng.lognormal(np.log(tokens), 0.7)))
        text = "I'm sorry, I cannot." if rng.random() < refused else "Yes."
        reason = "length" if rng.random() < 0.08 else "eot"
        token_L, logprob_L = rng.integers(0, 60, length), -rng.gamma(2, 0.5, length)
        seen.observe(quality.Answered("tutor", text, tuple(token_L.tolist()), reason, tuple(logprob_L.tolist())))


def talk(chat: Page) -> None:
    from selenium.webdriver import ActionChains

    chat.browser.get(chat.url)
    chat.wait(lambda: chat.one("#model").get_attribute("value") == "tutor")
    chat.send("How do I choose a learning rate?")
    chat.click("again")
    chat.wait(lambda: chat.all(".place") and chat.is_quiet)
    chat.one("#probabilities").click()
    chat.send("In one sentence?")
    ActionChains(chat.browser).move_to_element(chat.all("[data-token]")[4]).perform()
    take(chat.browser, "serving_page.png")


def take(browser, name: str) -> None:
    time.sleep(0.3)
    browser.save_screenshot(str(DOCS / name))


if __name__ == "__main__":
    main()
