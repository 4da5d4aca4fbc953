"""A seccomp filter (Linux 3.17): the system calls of syscalls.py fail with an error, all others go through.

The filter is a program of classic BPF on struct seccomp_data (linux/seccomp.h), written here: pyseccomp, the binding to
libseccomp, had its last release in 2021, and neither it nor the library is on every machine.
"""

import ctypes
import errno
import platform

from gptjax.posttrain.sandbox import syscalls

_SET_SECCOMP, _MODE_FILTER = 22, 2
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # linux/bpf_common.h
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_X32 = 0x40000000  # numbers from here are x86-64's calls of another table
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # linux/audit.h


class _Instruction(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint16), ("then", ctypes.c_uint8), ("else_", ctypes.c_uint8), ("k", ctypes.c_uint32)]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(_Instruction))]


def install(libc) -> bool:
    """Whether the filter holds from now on; False: the kernel takes none, or the machine is another kind."""
    machine = platform.machine()
    if machine not in AUDIT:
        return False
    instructions = filter_of(machine)
    array = (_Instruction * len(instructions))(*(_Instruction(*each) for each in instructions))
    program = _Program(len(instructions), array)
    return libc.prctl(_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0) == 0


def filter_of(machine: str) -> list[tuple[int, int, int, int]]:
    """Instructions (code, then, else, k), where then and else are how many to leap over."""
    denied = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    program = [(_LOAD, 0, 0, _ARCHITECTURE), (_JUMP_EQUAL, 1, 0, AUDIT[machine]), (_RETURN, 0, 0, _KILL)]
    program += [(_LOAD, 0, 0, _NUMBER), (_JUMP_AT_LEAST, 0, 1, _X32), denied]
    for number in syscalls.numbers(syscalls.DENIED, machine):
        program += [(_JUMP_EQUAL, 0, 1, number), denied]
    for number in syscalls.numbers(syscalls.ABSENT, machine):
        program += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    for name, (argument, mask) in syscalls.DENIED_WITH.items():
        for number in syscalls.numbers((name,), machine):
            tested = [(_LOAD, 0, 0, _ARGUMENTS + 8 * argument), (_JUMP_SET, 0, 1, mask), denied]
            program += [(_JUMP_EQUAL, 0, len(tested) + 1, number), *tested, (_RETURN, 0, 0, _ALLOW)]
    return [*program, (_RETURN, 0, 0, _ALLOW)]
