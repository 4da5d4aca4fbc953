"""How pages look, light and dark, on a screen, a phone and paper; and the file around what they say."""

import html

CSS = """
:root { color-scheme: light dark; --ink: #1b1b1b; --soft: #5c5c5c; --line: #d8d8d8; --paper: #fff; --tint: #f6f6f4;
  --good: #2a7d4f; --bad: #b4531a; --link: #1f5fa8 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --soft: #a5a5a5; --line: #3c3c3c; --paper: #181818;
  --tint: #222; --good: #63c491; --bad: #f0965a; --link: #8ab8ee } }
* { box-sizing: border-box }
html { -webkit-text-size-adjust: 100% }
body { margin: 0 auto; max-width: 80rem; padding: 1.5rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 1rem; overflow-wrap: anywhere }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem; padding-top: .5rem; border-top: 1px solid var(--line) }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .4rem }
p, ul { margin: .5rem 0; max-width: 46rem }
ul { padding-left: 1.4rem }
a { color: var(--link) }
nav { font-size: .9rem; color: var(--soft); margin-bottom: 1rem }
nav a { margin-right: .9rem; white-space: nowrap; text-decoration: none }
.notice { border-left: 4px solid var(--bad); background: var(--tint); padding: .55rem .8rem; font-weight: 600 }
.notice.good { border-color: var(--good) }
.wide { margin: .8rem 0 }
.wide, figure div { overflow-x: auto; background: linear-gradient(to right, var(--paper) 40%, transparent) 0 0 / 2rem 100% local,
  linear-gradient(to left, var(--paper) 40%, transparent) 100% 0 / 2rem 100% local,
  linear-gradient(to right, var(--line), transparent) 0 0 / .7rem 100% scroll,
  linear-gradient(to left, var(--line), transparent) 100% 0 / .7rem 100% scroll; background-repeat: no-repeat }
table { border-collapse: collapse; font-size: .875rem; line-height: 1.35; font-variant-numeric: tabular-nums }
caption { text-align: left; color: var(--soft); padding-bottom: .3rem }
th, td { padding: .22rem .9rem .22rem 0; text-align: right; vertical-align: top; white-space: nowrap }
th { font-weight: 600; border-bottom: 1px solid var(--ink); vertical-align: bottom }
td { border-bottom: 1px solid var(--line) }
.words { text-align: left }
td.prose { white-space: normal; min-width: 14rem; max-width: 34rem }
figure { margin: 1.2rem 0 }
figure img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 3px }
figcaption { font-size: .875rem; color: var(--soft); margin-top: .4rem; max-width: 46rem }
pre { overflow-x: auto; background: var(--tint); padding: .6rem .8rem; font-size: .8125rem }
summary { cursor: pointer; color: var(--link); margin: .5rem 0 }
@media (max-width: 40rem) { figure img { max-width: none; width: 33rem }
  td.prose { min-width: 11rem } }
@media print { body { max-width: none; padding: 0; font-size: 10pt; color: #000; background: #fff }
  nav { display: none } h2, h3, caption { break-after: avoid } figure, tr, .notice { break-inside: avoid }
  .wide, figure div { overflow: visible; background: none } td.words { white-space: normal } table { font-size: 7.5pt }
  th, td { padding-right: .4rem } pre { white-space: pre-wrap }
  figure img { max-width: 14cm } a { color: inherit; text-decoration: none } }
""".strip()


def document(title: str, body: str, css: str = "", head: str = "") -> str:
    """A whole HTML file. body, head: HTML; css: what a page has besides CSS."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n{head}<title>{html.escape(title)}</title>\n'
        f"<style>\n{CSS}\n{css}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )
