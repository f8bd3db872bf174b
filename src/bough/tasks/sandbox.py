"""Runs untrusted Python against tests: a fresh process under limits, shut in as far as the kernel allows.

What holds wherever it runs (POSIX): a new interpreter (isolated mode, no site-packages) with no environment, no
stdin and no inherited descriptors, in an empty temporary folder that is deleted afterwards; limits on CPU time,
memory, file size, open files and threads; a wall-clock limit after which the whole process group is killed; output
cut off. A test counts as passed only if the run comes back from it with a secret that is new each time and not in the
process's memory before: leaving early (``sys.exit(0)``, ``os._exit(0)``) or printing what success looks like passes
nothing. On Linux (x86-64, ARM64) the kernel refuses new processes. A limit on their number does not bind root, so
where the kernel does not refuse them, root is refused.

Where the kernel lets an unprivileged process make namespaces (Linux, unless switched off; ``Verdict.isolated``): no
network, no sight of other processes, no devices, the file system read-only except for that folder, which is held in
memory and limited in size, and everything that was started dies with the first process. Root becomes nobody where
nobody can read the standard library.

What does not hold. Files that the user may read can be read. Without namespaces, functions that delete, rename or
start things are taken away, which stops accidents and not intent: then run it as a user with nothing to lose. Tests
run in the process of the program that they test, as HumanEval's do, so a program that sets out to cheat (an object
that equals everything, a program that speaks this module's protocol) can pass them.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from bough.core.errors import InvalidInput, UnsupportedError

_SECRET = 16
_OUTPUT = 1 << 14
_GRACE = 2.0
_MAX_TESTS = 1000
_SCRIPT = Path(__file__).with_name("sandboxed.py")


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
        seconds: wall-clock time for the program and all its tests.
        cpu: seconds of processor time, per process.
        memory: MiB of address space, per process.
        files: MiB of each file and, where there are namespaces, of all of them.
        threads: of the program. Without namespaces, all of the user's processes count.
    """

    seconds: float = 10.0
    cpu: int = 10
    memory: int = 1024
    files: int = 16
    threads: int = 16

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if not (isinstance(value, (int, float)) and 0 < value < 1e9):
                raise InvalidInput(f"Limits({limit.name}={value!r}): must be a positive number")


@dataclass(frozen=True)
class Verdict:
    """What came of a run.

    Attributes:
        passes: of each test, whether it passed; all False where the program itself failed.
        timed_out: whether the wall-clock limit ended it.
        isolated: whether it ran in namespaces of its own.
        output: what it printed and what was raised, cut off.
        seconds: how long it took.
    """

    passes: tuple[bool, ...]
    timed_out: bool
    isolated: bool
    output: str
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether every test passed."""
        return all(self.passes)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# More at a time would only make each slower, until the wall-clock limit ends programs that are fine.
_slots = threading.BoundedSemaphore(_cores())


def run_tests(program: str, tests: Sequence[str], limits: Limits = Limits()) -> Verdict:
    """Run a program, then each test in its namespace; waits for a free core first.

    Args:
        program: Python source.
        tests: Python source each, which raises where the program is wrong: ``assert f(1) == 2``.
        limits: what it may use.

    Raises:
        InvalidInput: there are no tests, or more than 1,000.
        UnsupportedError: the operating system is not POSIX.
        OSError: the process could not be started.
    """
    if not tests or len(tests) > _MAX_TESTS:
        raise InvalidInput(f"{len(tests)} tests were given; give 1 to {_MAX_TESTS}")
    if os.name != "posix":
        raise UnsupportedError(
            "programs cannot be limited on this operating system; run unit tests on Linux or macOS"
        )
    with _slots:
        # A kernel may let a process make namespaces and then not let it use them.
        verdict = _attempt(program, tests, limits, True) or _attempt(program, tests, limits, False)
    if verdict is None:
        raise UnsupportedError(
            "programs cannot be limited here, so none was run: the sandbox did not start, or nothing limits the "
            "number of root's processes; run it as another user"
        )
    return verdict


def _attempt(program: str, tests: Sequence[str], limits: Limits, namespaces: bool) -> Verdict | None:
    """The verdict; None where the process ended before it could run anything."""
    with tempfile.TemporaryDirectory(prefix="bough-", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o777)  # for nobody; the name cannot be guessed and lasts for this run only
        return _run(program, tests, limits, folder, namespaces)


def _run(program: str, tests: Sequence[str], limits: Limits, folder: str, namespaces: bool) -> Verdict | None:
    keys = [secrets.token_bytes(_SECRET) for _ in tests]
    allowed = {
        "folder": os.path.realpath(folder), "cpu": max(1, int(limits.cpu)), "memory": int(limits.memory * (1 << 20)),
        "files": int(limits.files * (1 << 20)), "threads": int(limits.threads), "namespaces": namespaces,
    }  # fmt: skip
    # What cannot be written as UTF-8 is no program.
    plain = [text.encode(errors="replace").decode() for text in (program, *tests)]
    payload = marshal.dumps((plain[0], tuple(plain[1:]), allowed))
    report, told = os.pipe()
    started = time.monotonic()
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-u", "-X", "utf8", str(_SCRIPT), str(told)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            cwd=folder, env={}, pass_fds=(told,), start_new_session=True, bufsize=0,
        )  # fmt: skip
    except BaseException:
        os.close(report)
        raise
    finally:
        os.close(told)
    assert process.stdin is not None and process.stdout is not None
    found = b""
    try:
        message = len(payload).to_bytes(8, "little") + payload + b"".join(keys)
        found, output, timed_out = _converse(process, report, message, started + limits.seconds)
    finally:
        _end(process, leashed=found[:1] == b"N")
        os.close(report)
    if not found and not timed_out:
        return None
    answers = [found[1 + i * _SECRET : 1 + (i + 1) * _SECRET] for i in range(len(keys))]
    return Verdict(
        passes=tuple(secrets.compare_digest(answer, key) for answer, key in zip(answers, keys, strict=True)),
        timed_out=timed_out,
        isolated=found[:1] == b"N",
        output=output.decode(errors="replace"),
        seconds=time.monotonic() - started,
    )


def _converse(
    process: subprocess.Popen[bytes], report: int, message: bytes, deadline: float
) -> tuple[bytes, bytes, bool]:
    """Say what to run, and listen until the report ends: the report, the output, whether time was up before."""
    assert process.stdin is not None and process.stdout is not None
    stdin, stdout = process.stdin.fileno(), process.stdout.fileno()
    told, output, left = b"", b"", memoryview(message)
    with selectors.DefaultSelector() as selector:
        os.set_blocking(stdin, False)
        selector.register(stdin, selectors.EVENT_WRITE)
        selector.register(stdout, selectors.EVENT_READ)
        selector.register(report, selectors.EVENT_READ)
        while (remaining := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(remaining):
                if key.fd == stdin:
                    try:
                        left = left[os.write(stdin, left) :]
                    except (BrokenPipeError, BlockingIOError):
                        left = left[:0]
                    if not left:
                        selector.unregister(stdin)  # it stays open: closing it ends the run
                    continue
                data = os.read(key.fd, 1 << 16)
                if not data:
                    selector.unregister(key.fd)
                elif key.fd == report:
                    told = (told + data)[: 1 + _MAX_TESTS * _SECRET]
                else:
                    output = (output + data)[:_OUTPUT]
            # Whoever is left with the report's other end has nothing to add once the process is over.
            if report not in selector.get_map() or (process.poll() is not None and not selector.select(0)):
                return told, output, False
    return told, output, True


def _end(process: subprocess.Popen[bytes], leashed: bool) -> None:
    """Leave nothing running: the process lets go of what is inside it first, then its group is killed."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.close()
    if leashed:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
