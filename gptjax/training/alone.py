"""The loop of a run that nobody watches, for what measures it: no terminal, no other process, no signal."""

import io
import time

from gptjax import terminal
from gptjax.hosts import agreement
from gptjax.hosts.coordination import Alone
from gptjax.parallel import numerics
from gptjax.rundir import run_directory
from gptjax.training import main


def open_loop(session, folder, dog, stack):
    """The Loop of a Session at its first step, in a new run directory. dog: a Watchdog; stack: the ExitStack that closes it."""
    directory = run_directory.open_run(str(folder))
    main.check_directory(directory, session, (), None)
    with numerics.on_mesh(session.program.mesh):
        agreed = stack.enter_context(agreement.Agreement(Alone(), False))
        progress = terminal.Progress(io.StringIO())
        return main.open_loop(session, directory, progress, Alone(), agreed, dog, time.monotonic(), stack)
