"""What the Linux kernel offers to lock a program in: namespaces, a root of its own, limits.

It imports nothing of monro, because the process that loads it should be small: every program is a
fork of it. Calls that Python 3.11 has no name for go through ctypes; what the kernel refuses is an
OSError.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Iterable, Sequence

__all__ = [
    "FOLDER",
    "Namespaces",
    "die_with_parent",
    "hide",
    "kill_descendants",
    "limit",
    "processes_of",
    "renounce",
    "unused_uid",
]

_NEWNS, _NEWUTS, _NEWIPC = 0x00020000, 0x04000000, 0x08000000
_NEWUSER, _NEWPID, _NEWNET = 0x10000000, 0x20000000, 0x40000000
_RDONLY, _NOSUID, _NODEV, _NOEXEC = 1, 2, 4, 8
_REMOUNT, _BIND, _REC, _PRIVATE = 0x20, 0x1000, 0x4000, 0x40000
_DETACH = 2
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38
_MOUNT_SETATTR = 442  # the same on every architecture
_PR_SET_SECCOMP, _SECCOMP_FILTER = 22, 2
_NEW_NAMESPACES = 0x7E020000
"""The flags of clone() that ask for any."""
_CALLS = {  # of Linux: the architecture's number, unshare, setns, clone, clone3
    "x86_64": (0xC000003E, 272, 308, 56, 435),
    "aarch64": (0xC00000B7, 97, 268, 220, 435),
}
_DEVICES = ("null", "zero", "full", "random", "urandom")
_SYSTEM = ("/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime")
FOLDER = "/sandbox"
"""A program's own folder, where it has namespaces; ``/tmp`` may hold the interpreter."""
_FIRST_UID = 1_800_000_000 + 8 * os.getpid()
"""Of the users that nobody else is; the process's number is taken before it is in a namespace."""


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _unshare(flags: int) -> None:
    _check(_libc().unshare(flags), "unshare")


def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    names = (source.encode(), os.fsencode(target), kind.encode() or None)
    _check(
        _libc().mount(*names, ctypes.c_ulong(flags), options.encode() or None), f"mount {target}"
    )


def _prctl(option: int, value: int) -> None:
    _check(_libc().prctl(option, value, 0, 0, 0), "prctl")


class Namespaces:
    """Namespaces of a supervisor, and fresh ones for each of its programs.

    It has no network, sees its own processes, and its root holds the interpreter and the system's
    libraries, read-only, and nothing else.
    """

    def __init__(self, keep: Sequence[str]) -> None:
        """Enter them and go on in a child process; the process that called waits and ends.

        Args:
            keep: Folders that programs may read, besides the system's.

        Raises:
            OSError: The kernel refuses; whatever it has not refused by then stays in effect.
        """
        uid, gid = os.geteuid(), os.getegid()
        new_user = 0 if uid == 0 else _NEWUSER
        _unshare(new_user | _NEWNS | _NEWUTS | _NEWIPC | _NEWPID | _NEWNET)
        if new_user:
            for name, line in (
                ("setgroups", "deny"),
                ("uid_map", f"{uid} {uid} 1"),
                ("gid_map", f"{gid} {gid} 1"),
            ):
                with open(f"/proc/self/{name}", "w") as file:
                    file.write(line)
        _continue_in_child()
        self._pids = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        _new_root([*_SYSTEM, *keep])

    def fresh_pids(self) -> None:
        """Let the next fork be the first process of a namespace; when it ends, all in it do."""
        _check(_libc().setns(self._pids, _NEWPID), "setns")
        _unshare(_NEWPID)

    def enter(self, disk: int) -> None:
        """In the forked child: an empty folder of ``disk`` bytes, which it is then in."""
        _unshare(_NEWNS)
        try:
            _mount("proc", "/proc", "proc", _RDONLY | _NOSUID | _NODEV | _NOEXEC)
        except OSError:  # where part of the outer /proc is covered
            _mount("tmpfs", "/proc", "tmpfs", _RDONLY | _NOSUID | _NODEV | _NOEXEC)
        options = f"size={disk},nr_inodes=4096,mode=1777"
        _mount("tmpfs", FOLDER, "tmpfs", _NOSUID | _NODEV, options)
        os.chdir(FOLDER)


def _continue_in_child() -> None:
    """Fork into the new process namespace; the parent lives as long as the child, and no longer."""
    pid = os.fork()
    if pid:
        os.closerange(0, 256)  # so that the end of a pipe is the child's alone to hold open
        with contextlib.suppress(OSError):
            os.waitpid(pid, 0)
        os._exit(0)
    die_with_parent()


def _new_root(keep: Iterable[str]) -> None:
    """Make a root of bind mounts, read-only, and leave the old one behind."""
    _mount("none", "/", "", _REC | _PRIVATE)
    root = "/tmp" if os.path.isdir("/tmp") else "/mnt"
    links, places = _what_to_show(keep)  # before anything is mounted over it
    _mount("tmpfs", root, "tmpfs", _NOSUID | _NODEV, "size=1m,mode=755")
    for name in ("/proc", "/dev", FOLDER):
        os.mkdir(root + name)
    for path, target in links.items():
        os.makedirs(os.path.dirname(root + path), exist_ok=True)
        os.symlink(target, root + path)
    for path, (fd, is_folder) in places.items():
        os.makedirs(root + (path if is_folder else os.path.dirname(path)), exist_ok=True)
        if not is_folder:
            os.close(os.open(root + path, os.O_CREAT | os.O_WRONLY))
        _mount(f"/proc/self/fd/{fd}", root + path, "", _BIND | _REC)
        os.close(fd)
    for path in ("/dev/shm", "/tmp"):
        if not os.path.exists(root + path):
            os.symlink(FOLDER, root + path)
    _mount("proc", f"{root}/proc", "proc", _NOSUID | _NODEV | _NOEXEC)
    _make_read_only(root, [root + path for path in places])
    os.chdir(root)
    _check(_libc().pivot_root(b".", b"."), "pivot_root")
    _check(_libc().umount2(b".", _DETACH), "umount2")
    os.chdir("/")


def _make_read_only(root: str, mounts: Sequence[str]) -> None:
    attributes = (ctypes.c_uint64 * 4)(_RDONLY | _NOSUID, 0, 0, 0)
    size = ctypes.sizeof(attributes)
    result = _libc().syscall(_MOUNT_SETATTR, -100, root.encode(), 0x8000, attributes, size)
    if result < 0 and ctypes.get_errno() == errno.ENOSYS:  # before Linux 5.12: one by one
        for path in (root, *mounts):
            _mount("none", path, "", _REMOUNT | _BIND | _RDONLY | _NOSUID)
    else:
        _check(result, "mount_setattr")


def _what_to_show(keep: Iterable[str]) -> tuple[dict[str, str], dict[str, tuple[int, bool]]]:
    """Return the links to make and, opened, the places to mount; none lies within another.

    A folder made inside one that is mounted would be made in the old root.
    """
    wanted = [path for path in keep if os.path.exists(path)]
    wanted += [f"/dev/{name}" for name in _DEVICES if os.path.exists(f"/dev/{name}")]
    places: dict[str, tuple[int, bool]] = {}

    def is_there(path: str) -> bool:
        return any(path == place or path.startswith(f"{place}/") for place in places)

    for path in sorted({os.path.realpath(path) for path in wanted}, key=len):
        if not is_there(path):
            places[path] = (os.open(path, os.O_PATH | os.O_CLOEXEC), os.path.isdir(path))
    links = {path: os.path.realpath(path) for path in wanted}
    return {p: real for p, real in links.items() if p != real and not is_there(p)}, places


def unused_uid(slot: int) -> int | None:
    """Return a user id that nobody has, for a program of root; None if we are not root."""
    return _FIRST_UID + slot if os.geteuid() == 0 else None


def renounce(uid: int | None) -> None:
    """Give up all privileges for good."""
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    if sys.platform != "linux":
        return
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    _check(_libc().capset(header, (ctypes.c_uint32 * 6)()), "capset")
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_DUMPABLE, 1)  # or it could not read its own /proc/self
    _forbid_namespaces()
    die_with_parent()  # a change of user has undone it


def _forbid_namespaces() -> None:
    """Refuse new namespaces: in a user namespace of its own a program would be root again.

    It could then fill the memory with a file system, and reach much more of the kernel. clone3 is
    said not to exist, because a filter cannot read its flags; the C library then takes clone.
    """
    if platform.machine() not in _CALLS:
        return
    arch, unshare, setns, clone, clone3 = _CALLS[platform.machine()]
    load, equal, at_least, bits, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    refuse, absent, allow = 0x00050001, 0x00050026, 0x7FFF0000  # EPERM, ENOSYS
    program = (
        (load, 0, 0, 4),  # the architecture
        (equal, 0, 8, arch),  # else refuse
        (load, 0, 0, 0),  # the call
        (at_least, 6, 0, 0x40000000),  # the x32 calls of x86: refuse
        (equal, 5, 0, unshare),
        (equal, 4, 0, setns),
        (equal, 4, 0, clone3),
        (equal, 0, 4, clone),  # else allow
        (load, 0, 0, 16),  # its flags
        (bits, 0, 2, _NEW_NAMESPACES),  # else allow
        (answer, 0, 0, refuse),
        (answer, 0, 0, absent),
        (answer, 0, 0, allow),
    )
    code = b"".join(struct.pack("HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    filter_ = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    with contextlib.suppress(OSError):  # a kernel without seccomp
        result = _libc().prctl(_PR_SET_SECCOMP, _SECCOMP_FILTER, filter_, 0, 0)
        _check(result, "prctl seccomp")


def die_with_parent() -> None:
    """Be killed when the parent ends, however it ends (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def hide() -> None:
    """Let no process without privileges look into this one, and inherit what is orphaned."""
    with contextlib.suppress(OSError, AttributeError):
        _prctl(_PR_SET_DUMPABLE, 0)
        _prctl(_PR_SET_SUBREAPER, 1)


def limit(memory: int, cpu_seconds: int, disk: int, processes: int) -> None:
    """Set the limits of this process and its children; they cannot be raised again."""
    used = 0
    with contextlib.suppress(OSError, ValueError), open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    for kind, most in (
        (resource.RLIMIT_AS, used + memory),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_FSIZE, disk),
        (resource.RLIMIT_NPROC, processes),
        (resource.RLIMIT_NOFILE, 256),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
        with contextlib.suppress(OSError, ValueError):  # macOS has no limit of memory
            resource.setrlimit(kind, (bound, bound))


def processes_of(uid: int) -> int:
    """Return how many threads a user has; RLIMIT_NPROC counts them all."""
    count = 0
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        with contextlib.suppress(OSError):
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == uid:
                count += len(os.listdir(f"/proc/{name}/task"))
    return count


def kill_descendants() -> None:
    """Kill every process below this one, where no namespace does it.

    Orphans come to this process (see ``hide``), so all are found. They are stopped first: one that
    forks faster than it is killed would get away.
    """
    stopped: set[int] = set()
    while True:
        found = _descendants(os.getpid())
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        if found <= stopped:
            break
        stopped |= found
    for pid in stopped:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _descendants(pid: int) -> set[int]:
    """Return the processes below one; a zombie may have threads that live, so it counts."""
    below: dict[int, list[int]] = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        with contextlib.suppress(OSError, ValueError, IndexError):
            with open(f"/proc/{name}/stat", "rb") as file:
                parent = int(file.read().rpartition(b")")[2].split()[1])
            below.setdefault(parent, []).append(int(name))
    found: set[int] = set()
    new = [pid]
    while new:
        new = [child for parent in new for child in below.get(parent, ())]
        found.update(new)
    return found
