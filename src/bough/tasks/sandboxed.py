"""What runs inside the sandbox: a script for a fresh interpreter, started by `bough.tasks.sandbox`.

It reads what to run from stdin, shuts itself in as far as the kernel allows, runs the program and then the tests, and
reports on the descriptor that it is given: one byte of isolation, then for each test the 16 bytes that follow on
stdin if it passed, else as many zeros. Those bytes are secret: they are read only when the test is over, so that
no program can report a test that it did not reach without taking over this script's part on purpose.
"""

from __future__ import annotations

import contextlib
import ctypes
import marshal
import os
import resource
import select
import signal
import struct
import sys
from typing import Any

SECRET = 16
# Why nothing was run: some of the isolation worked and some did not; nothing limits the number of root's processes.
HALF_SHUT, UNBOUND = 4, 5
_NOBODY = 65534
_NEWNS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = 0x00020000, 0x08000000, 0x10000000, 0x20000000, 0x40000000
_REC, _PRIVATE, _NOSUID, _NODEV = 0x4000, 1 << 18, 2, 4
# Read-only, no set-user-id, no devices (root's files include disks).
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE, _ATTR_HARMLESS = 442, -100, 0x8000, 1 | 2 | 4
_PDEATHSIG, _DUMPABLE, _NO_NEW_PRIVS = 1, 4, 38
_SECCOMP, _CLONE_THREAD, _CLONE3 = 22, 0x10000, 435
# Of an architecture: its number for the filter, clone, the calls that only make processes, and socket.
_CALLS = {"x86_64": (0xC000003E, 56, (57, 58), 41), "aarch64": (0xC00000B7, 220, (), 198)}
# What a program without namespaces must not call: HumanEval's guard (Chen et al. 2021), which stops accidents only.
_GUARDED = {
    "os": (
        "kill", "killpg", "system", "putenv", "remove", "unlink", "rmdir", "removedirs", "rename", "renames",
        "replace", "truncate", "fork", "forkpty", "chmod", "chown", "chroot", "lchown", "setuid",
        "posix_spawn", "posix_spawnp",
    ),
    "shutil": ("rmtree", "move", "chown"),
    "subprocess": ("Popen",),
}  # fmt: skip


class _Attributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "namespace")]


def main() -> None:
    """Run what stdin says."""
    report = int(sys.argv[1])
    with os.fdopen(os.dup(0), "rb", buffering=0) as stream:
        size = int.from_bytes(_exactly(stream, 8), "little")
        program, tests, limits = marshal.loads(_exactly(stream, size))
    secrets = os.dup(0)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)
    isolated = limits["namespaces"] and _isolate(limits)
    if isolated:
        inside = os.fork()  # the first process of the new process namespace: when it ends, all in there do
        if inside:
            _leash(inside, secrets)
    _restrict(limits, isolated)
    os.write(report, b"N" if isolated else b"L")
    _run(program, tests, secrets, report)


def _exactly(stream: Any, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = stream.read(size - len(data))
        if not more:
            os._exit(3)
        data += more
    return data


def _isolate(limits: dict[str, Any]) -> bool:
    """Whether new namespaces could be entered: no network, no other processes, a file system that is read-only."""
    if os.geteuid() == 0:
        _step_down()
    try:
        libc = ctypes.CDLL(None)
        user, group = os.geteuid(), os.getegid()
        libc.prctl(_DUMPABLE, 1, 0, 0, 0)  # else what was root may not write its own maps
        if libc.unshare(_NEWUSER | _NEWNS | _NEWPID | _NEWNET | _NEWIPC):
            return False
    except (OSError, AttributeError):
        return False
    try:
        for name, text in (("setgroups", "deny"), ("gid_map", f"{group} {group} 1"), ("uid_map", f"{user} {user} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
        where = os.fsencode(limits["folder"])
        libc.mount(b"none", b"/", None, ctypes.c_ulong(_REC | _PRIVATE), None)
        options = f"size={limits['files']},mode=0777".encode()
        harmless = _Attributes(set=_ATTR_HARMLESS)
        if libc.syscall(
            _MOUNT_SETATTR, _AT_FDCWD, b"/", _AT_RECURSIVE, ctypes.byref(harmless), ctypes.sizeof(harmless)
        ) or libc.mount(b"none", where, b"tmpfs", ctypes.c_ulong(_NOSUID | _NODEV), options):
            os._exit(HALF_SHUT)
        os.chdir(where)
    except (OSError, AttributeError):
        os._exit(HALF_SHUT)
    return True


def _step_down() -> None:
    """Root is nobody from here on, unless nobody could not read the standard library."""
    os.seteuid(_NOBODY)
    readable = os.access(os.__file__, os.R_OK, effective_ids=True)
    os.seteuid(0)
    if readable:
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)


def _leash(inside: int, stdin: int) -> None:
    """Wait for the process inside; end it as soon as nobody holds the other end of stdin."""
    watch = select.poll()
    watch.register(stdin, 0)  # hang-ups alone
    while os.waitpid(inside, os.WNOHANG) == (0, 0):
        if watch.poll(20):
            os.kill(inside, signal.SIGKILL)
            os.waitpid(inside, 0)
            break
    os._exit(0)


def _restrict(limits: dict[str, Any], isolated: bool) -> None:
    for name, soft in (
        ("RLIMIT_CORE", 0), ("RLIMIT_CPU", limits["cpu"]), ("RLIMIT_AS", limits["memory"]),
        ("RLIMIT_FSIZE", limits["files"]), ("RLIMIT_NPROC", limits["threads"]), ("RLIMIT_NOFILE", 64),
    ):  # fmt: skip
        _, hard = resource.getrlimit(getattr(resource, name))
        soft = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
        try:
            resource.setrlimit(getattr(resource, name), (soft, soft))
        except (OSError, ValueError):  # a system without this limit
            continue
    filtered = _filter_calls(isolated)
    if not filtered and os.getuid() == 0:
        os._exit(UNBOUND)
    if isolated:
        libc = ctypes.CDLL(None)
        header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        if libc.capset(ctypes.byref(header), ctypes.byref(none)):
            os._exit(HALF_SHUT)
        libc.prctl(_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    else:
        for module, names in _GUARDED.items():
            for name in names:
                if hasattr(found := __import__(module), name):
                    setattr(found, name, None)
        if not filtered:
            sys.modules["socket"] = sys.modules["_socket"] = None  # type: ignore[assignment]


def _filter_calls(isolated: bool) -> bool:
    """Whether the kernel refuses new processes from here on (threads may be started) and, if need be, sockets.

    A limit on processes alone does not hold root.
    """
    machine = os.uname().machine
    if sys.platform != "linux" or machine not in _CALLS or sys.byteorder != "little":
        return False
    architecture, clone, forbidden, socket = _CALLS[machine]
    load, equal, at_least, any_bit, leave = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, refuse, missing = 0x7FFF0000, 0x00050000 | 1, 0x00050000 | 38
    program = [
        (load, 0, 0, 4), (equal, 1, 0, architecture), (leave, 0, 0, refuse),
        (load, 0, 0, 0), (at_least, 0, 1, 0x40000000), (leave, 0, 0, refuse),
        (equal, 0, 1, _CLONE3), (leave, 0, 0, missing),  # so that the C library takes clone instead
    ]  # fmt: skip
    for call in (*forbidden, *(() if isolated else (socket,))):
        program += [(equal, 0, 1, call), (leave, 0, 0, refuse)]
    program += [
        (equal, 0, 3, clone), (load, 0, 0, 16), (any_bit, 1, 0, _CLONE_THREAD), (leave, 0, 0, refuse),
        (leave, 0, 0, allow),
    ]  # fmt: skip
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    filters = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None)
    if libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0):
        return False
    return libc.prctl(_SECCOMP, 2, filters, 0, 0) == 0


def _run(program: str, tests: tuple[str, ...], secrets: int, report: int) -> None:
    # Taken before the program can put others in their place.
    read, write, leave, run, compiled = os.read, os.write, os._exit, exec, compile
    module = type(sys)("solution")
    sys.modules["solution"] = module
    names = module.__dict__
    try:
        run(compiled(program, "solution.py", "exec"), names)
    except BaseException as error:
        _complain(error, write)
        leave(1)
    for test in tests:
        try:
            run(compiled(test, "tests.py", "exec"), names)
        except BaseException as error:
            _complain(error, write)
            read(secrets, SECRET)
            write(report, bytes(SECRET))
        else:
            write(report, read(secrets, SECRET))
    leave(0)


def _complain(error: BaseException, write: Any) -> None:
    with contextlib.suppress(BaseException):  # an error whose text raises another
        write(1, f"{type(error).__name__}: {error}\n"[:2000].encode(errors="replace"))


if __name__ == "__main__":
    main()
