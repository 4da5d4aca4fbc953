"""The chat page: one page and its scripts, as they lie in browser/, served to browsers under a policy that lets them load
nothing from elsewhere and run nothing that a model says."""

import pathlib

BROWSER = pathlib.Path(__file__).parent / "browser"
KINDS = {".js": "text/javascript", ".css": "text/css", ".html": "text/html"}
POLICY = "; ".join((
    "default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "img-src data:", "base-uri 'none'",
    "form-action 'none'", "frame-ancestors 'none'",
))  # fmt: skip
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # a newer server has newer scripts
}


def routes(feedback: bool) -> list:
    """Starlette's routes of `/` and `/page/NAME`. They hold nothing secret: a server with API keys serves them without one,
    and the page asks for the key. feedback: whether it shows thumbs, that is, whether votes are taken."""
    from starlette.routing import Route

    page = (BROWSER / "page.html").read_text().replace("FEEDBACK", "yes" if feedback else "no")
    files = {f"/page/{file.name}": file for file in sorted(BROWSER.iterdir()) if file.suffix in (".js", ".css")}
    served = {"/": (page, ".html")} | {path: (file.read_text(), file.suffix) for path, file in files.items()}
    return [Route(path, _answering(text, KINDS[suffix])) for path, (text, suffix) in served.items()]


def _answering(text: str, kind: str):
    from starlette.responses import Response

    async def answer(request) -> Response:
        return Response(text, media_type=kind, headers=HEADERS)

    return answer
