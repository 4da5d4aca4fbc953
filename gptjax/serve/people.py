"""What people see of a server and say of it: the chat page, votes on answers, the quality of answers.

shown = people.parts(args.feedback, args.quality_reference)
create_app(models, options, routes=shown.routes, observers=shown.observers, more_metrics=shown.more_metrics)
...
shown.close()
"""

import typing

from gptjax.serve import feedback as feedbacks
from gptjax.serve import page
from gptjax.serve import quality as qualities


class Parts(typing.NamedTuple):
    """Arguments of app.create_app. close: is called at the end of the server."""

    routes: list
    observers: tuple[typing.Callable, ...]
    more_metrics: tuple[typing.Callable[[], str], ...]
    close: typing.Callable[[], None]


def parts(feedback: str | None, quality_reference: str | None) -> Parts:
    """feedback: the file of votes; None: none are taken. quality_reference: the file of counts to compare with, which is
    begun if it is not there. Raises UserError: one cannot be read or written."""
    votes = feedbacks.Votes(feedback) if feedback is not None else None
    quality = qualities.Quality(quality_reference)
    routes = page.routes(votes is not None) + qualities.routes(quality)
    routes += [] if votes is None else feedbacks.routes(votes)
    observers = (lambda record: quality.observe(qualities.answered(record)),)
    return Parts(routes, observers, (quality.prometheus,), quality.close)
