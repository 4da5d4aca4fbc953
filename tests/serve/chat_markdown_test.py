"""Markdown of answers, rendered by the page's own script in a real Chromium: what it looks like, and that nothing runs."""

import random
import re

import browsing
import chat_server
import pytest

from gptjax.serve import page

TAGS = set(
    "a blockquote br button code del div em h3 h4 h5 h6 hr li ol p pre span strong table tbody td th thead tr ul".split()
)
ATTRIBUTES = {"class", "href", "rel", "target", "title", "type", "start", "tabindex", "role", "aria-label"}


@pytest.fixture(scope="module")
def render(tmp_path_factory):
    """render(texts): of each text, [its HTML, its text, the tags, the attributes, the addresses of links]."""
    profile, downloads = (tmp_path_factory.mktemp(name) for name in ("profile", "downloads"))
    with browsing.chromium(profile, downloads) as driver, chat_server.serving(page.routes(False)) as url:
        driver.get(url)

        def rendered(texts: list[str]) -> list:
            return driver.execute_async_script(
                """const [texts, done] = arguments;
                import("/page/markdown.js").then(({ render }) => {
                  const found = texts.map((text) => {
                    const place = document.createElement("div");
                    place.append(render(text));
                    document.body.append(place);
                    const all = [...place.querySelectorAll("*")], html = place.innerHTML, shown = place.textContent;
                    const links = all.filter((one) => one.tagName === "A").map((one) => one.href);
                    const names = all.flatMap((one) => one.getAttributeNames());
                    place.remove();
                    return [html, shown, all.map((one) => one.localName), names, links];
                  });
                  setTimeout(() => done(found), 50);  // for whatever would run or be fetched
                }, (error) => done([["failed", String(error)]]));""",
                texts,
            )

        rendered.driver = driver
        yield rendered


def plain(html: str) -> str:
    """Without the attributes, the buttons and the heads of code."""
    html = re.sub(r'<div class="code-head">.*?</div>', "", html)
    return re.sub(r"<(\w+) [^>]*>", r"<\1>", html)


WRITTEN = {
    "one\ntwo\n\nthree": "<p>one\ntwo</p><p>three</p>",
    "# Title #\ntext": "<h3>Title</h3><p>text</p>",
    "a **b** *c* _d_ ~~e~~ `f * g`": "<p>a <strong>b</strong> <em>c</em> <em>d</em> <del>e</del> <code>f * g</code></p>",
    "snake_case_name 2*3*4 __init__": "<p>snake_case_name 2<em>3</em>4 <strong>init</strong></p>",
    "2 * 3 * 4 and a_b": "<p>2 * 3 * 4 and a_b</p>",
    "**bold with *both* in it**": "<p><strong>bold with <em>both</em> in it</strong></p>",
    r"\*not\* \`this\`": "<p>*not* `this`</p>",
    "- a\n- b\n  - c\n\n    more\n- d": "<ul><li>a</li><li>b<ul><li>c<p>more</p></li></ul></li><li>d</li></ul>",
    "3. a\n4. b": "<ol><li>a</li><li>b</li></ol>",
    "> a\n> b": "<blockquote><p>a\nb</p></blockquote>",
    "a\n\n---\n\nb": "<p>a</p><hr><p>b</p>",
    "```python\nif a < b:\n    **x**\n```\nafter": "<div><pre><code>if a &lt; b:\n    **x**</code></pre></div><p>after</p>",
    "````\n```\n````": "<div><pre><code>```</code></pre></div>",
    "```\nnot closed": "<div><pre><code>not closed</code></pre></div>",
    "| a | b |\n|---|:-:|\n| 1 | `x` |\n| 2 |\n": (
        "<div><table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1</td><td><code>x</code></td></tr>"
        "<tr><td>2</td><td></td></tr></tbody></table></div>"
    ),
    "a | b\nno table": "<p>a | b\nno table</p>",
    "[site](https://example.org/a_(b)) end": "<p><a>site</a>) end</p>",
    "see https://example.org/x_y_z.": "<p>see <a>https://example.org/x_y_z</a>.</p>",
    "![picture](https://example.org/a.png)": "<p><a>picture</a></p>",
    "": "",
}


def test_what_models_write_looks_as_it_is_meant(render):
    found = render(list(WRITTEN))
    for text, expected, (html, *_) in zip(WRITTEN, WRITTEN.values(), found):
        assert plain(html) == expected, text
    assert 'start="3"' in found[list(WRITTEN).index("3. a\n4. b")][0]


HOSTILE = [
    "<script>window.pwned = 1</script>",
    "<img src=x onerror='window.pwned = 1'>",
    "<svg onload=window.pwned=1>",
    "[x](javascript:window.pwned=1)",
    "[x](JaVaScRiPt:window.pwned=1)",
    "[x](\tjavascript:window.pwned=1)",
    "[x](data:text/html,<script>window.pwned=1</script>)",
    "[x](vbscript:x)",
    "[x](//example.org)",
    "![x](http://127.0.0.1:9/a.png)",
    '[x](https://a.b/" onmouseover="window.pwned=1)',
    'https://a.b/"onmouseover="window.pwned=1',
    "`<script>window.pwned = 1</script>`",
    "```<script>\n</code></pre><script>window.pwned = 1</script>\n```",
    "```js\" onclick=\"window.pwned=1\nx\n```",
    "| <b>a</b> | b |\n|---|---|\n| <iframe src=javascript:window.pwned=1> | x |",
    "# <h1 onclick=window.pwned=1>x</h1>",
    "- <details open ontoggle=window.pwned=1>",
    "&lt;script&gt;window.pwned = 1&lt;/script&gt;",
    "<style>body { display: none }</style>",
    "<a href='javascript:window.pwned=1'>x</a>",
    "__proto__ [x](__proto__) constructor",
    "\u202e<b>\u0000\ufffe",
]  # fmt: skip


def test_nothing_that_a_model_says_runs_or_is_fetched(render):
    for text, (html, shown, tags, names, links) in zip(HOSTILE, render(HOSTILE)):
        assert set(tags) <= TAGS and set(names) <= ATTRIBUTES, text
        assert all(re.match(r"https?://", link) for link in links), text
        assert "<" not in text or "<" in shown or "&lt;" in html, f"{text}: the markup is not shown as text"
    assert render.driver.execute_script("return window.pwned") is None
    asked = render.driver.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert not [name for name in asked if not re.search("/page/|/v1/models$", name)]


def test_of_any_soup_of_marks_every_word_is_shown_in_order_and_only_known_elements_are_made(render):
    random_ = random.Random(0)
    marks = [
        "**", "*", "_", "__", "`", "```", "~~", "~~~", "\n", "\n\n", "- ", "1. ", "> ", "# ", "|", "\n|---|---|\n", "<b>",
        "</pre>", "[", "](", ")", "\\", "  ", "    ", "\t", "---", "!", "&amp;", "<script>", "\r\n",
    ]  # fmt: skip
    texts = []
    for _ in range(400):
        words = (f"w{number}w" for number in range(20))
        texts.append(
            "".join(
                random_.choice(marks) * random_.randint(0, 2) + random_.choice(("", next(words))) for _ in range(19)
            )
        )
    for text, (_, shown, tags, names, _) in zip(texts, render(texts)):
        assert set(tags) <= TAGS and set(names) <= ATTRIBUTES, repr(text)
        words = re.findall(r"w\d+w", text)
        assert re.findall(r"w\d+w", shown) == words, repr(text)


@pytest.mark.parametrize(
    "text",
    ["**a " * 5000, "`" * 20_000, "[" * 20_000, "![](" * 5000, "> " * 5000, "- " * 5000, "*_" * 9000, "|" * 20_000,
     "\n".join(" " * i + "- x" for i in range(400)), "a\n" * 20_000, "_a_" * 30_000],
)  # fmt: skip
def test_long_texts_of_marks_are_rendered_to_their_end(render, text):
    """Within the half minute that the driver waits for a script."""
    [[html, shown, *_]] = render([text + "\n\nthe end"])
    assert shown.endswith("the end"), html[:200]
