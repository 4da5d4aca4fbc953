"""Several processes of one run: start, agreement, and what happens when one is lost.

distributed     where this process stands, by the environment; the start of all; one config, one code
rollcall        who is there, asked over TCP before jax.distributed starts
coordination    small values between processes, and groups of them that agree
peers           all processes of a run, and what follows when one is lost
agreement       when to stop and when to save: the same point of the run in each process
compiling       jax.jit for programs that they run together
interrupt       SIGTERM and Ctrl-C as a wish to stop
watchdog        a run that no longer gets on ends, and says where it stood
"""
