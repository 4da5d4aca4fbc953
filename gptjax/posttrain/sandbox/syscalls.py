"""System calls that the filter stops, with their numbers of Linux (asm/unistd_64.h; asm-generic/unistd.h)."""

import os

_MACHINES = ("x86_64", "aarch64")
_NUMBERS = {  # name: (x86-64, AArch64), None where it has no such call
    **{name: (number, None) for name, number in {
        "open": 2, "fork": 57, "vfork": 58, "rename": 82, "mkdir": 83, "rmdir": 84, "creat": 85, "link": 86, "unlink": 87,
        "symlink": 88, "chmod": 90, "chown": 92, "lchown": 94, "utime": 132, "mknod": 133, "utimes": 235, "futimesat": 261,
    }.items()},
    **{name: (number, number) for name, number in {
        "pidfd_send_signal": 424, "io_uring_setup": 425, "open_tree": 428, "move_mount": 429, "fsopen": 430, "fspick": 433,
        "pidfd_open": 434, "clone3": 435, "openat2": 437, "pidfd_getfd": 438, "process_madvise": 440, "mount_setattr": 442,
        "fchmodat2": 452,
    }.items()},
    # network
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "accept": (43, 202), "accept4": (288, 242), "sendto": (44, 206), "sendmsg": (46, 211), "sendmmsg": (307, 269),
    # files
    "openat": (257, 56), "renameat": (264, 38), "renameat2": (316, 276), "mkdirat": (258, 34), "linkat": (265, 37),
    "unlinkat": (263, 35), "symlinkat": (266, 36), "mknodat": (259, 33), "truncate": (76, 45), "ftruncate": (77, 46),
    "fallocate": (285, 47), "fchmod": (91, 52), "fchmodat": (268, 53), "fchown": (93, 55), "fchownat": (260, 54),
    "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14),
    "lremovexattr": (198, 15), "fremovexattr": (199, 16), "memfd_create": (319, 279), "mount": (165, 40),
    "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "open_by_handle_at": (304, 265),
    # processes
    "clone": (56, 220), "execve": (59, 221), "execveat": (322, 281), "kill": (62, 129), "tkill": (200, 130),
    "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "unshare": (272, 97), "setns": (308, 268),
    "setpriority": (141, 140), "prlimit64": (302, 261), "sched_setaffinity": (203, 122),
    # shared memory and queues, which outlive a process
    "shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180),
    # the kernel
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "add_key": (248, 217),
    "request_key": (249, 218), "keyctl": (250, 219), "init_module": (175, 105), "finit_module": (313, 273),
}  # fmt: skip

# Calls that look as if the kernel had none: libraries then do what they did before there was one, with calls that can be
# looked into. clone3 and openat2 have their flags in memory, which a filter cannot read.
ABSENT = ("clone3", "openat2")
DENIED_WITH = {  # name: (argument, bits of it any of which is denied)
    "open": (1, os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC),
    "openat": (2, os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC),
    "prlimit64": (0, 0xFFFFFFFF),  # of another process; 0 is this one
    "sched_setaffinity": (0, 0xFFFFFFFF),
}
DENIED = tuple(name for name in _NUMBERS if name not in (*ABSENT, *DENIED_WITH))


def numbers(names, machine: str) -> list[int]:
    """Of the calls that a machine has."""
    column = _MACHINES.index(machine)
    return [number for name in names if (number := _NUMBERS[name][column]) is not None]
