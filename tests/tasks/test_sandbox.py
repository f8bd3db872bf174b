"""Programs pass exactly the tests that they pass, and nothing that they do outlives them."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from bough.core.errors import InvalidInput
from bough.tasks import sandbox
from bough.tasks.sandbox import Limits, Verdict, run_tests

SQUARE = "def f(x):\n    return x * x\n"
TESTS = ("assert f(2) == 4", "assert f(3) == 9")


@pytest.fixture(params=["namespaces", "limits alone"], autouse=True)
def both(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test runs with and without namespaces."""
    if request.param == "limits alone":
        attempt = sandbox._attempt
        monkeypatch.setattr(sandbox, "_attempt", lambda *given: attempt(*given[:3], False))
    return str(request.param)


def verdict(program: str, tests: tuple[str, ...] = TESTS, **limits: float) -> Verdict:
    return run_tests(program, tests, Limits(**{"seconds": 5.0, **limits}))  # type: ignore[arg-type]


def test_each_test_has_its_own_verdict() -> None:
    assert verdict(SQUARE).passes == (True, True)
    assert verdict("def f(x):\n    return 4\n").passes == (True, False)
    assert verdict("def f(x):\n    return 9\n").passes == (False, True)
    assert verdict(SQUARE).passed and not verdict("def f(x):\n    return 4\n").passed
    many = tuple(f"assert f({n}) == {n * n}" for n in range(300))
    assert verdict(SQUARE, many).passes == (True,) * 300


@pytest.mark.parametrize(
    "program",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "import os\ndef f(x): os._exit(0)",
        "def f(x): raise SystemExit(0)",
        "import os; os.abort()",
        "import os; os.closerange(0, 100)\n" + SQUARE,
        "import sys, os\nos.write(int(sys.argv[1]), b'N' + bytes(32))\nos._exit(0)",
        "import builtins, os\nos.read = lambda fd, n: b'x' * n\nbuiltins.exec = lambda *a: None\ndef f(x): return 0",
        "import sys\nsys.settrace(None)\ndef f(x: return",
        "def f(x): return f(x)",
        "def f(x): return '\0'",
        "def f(x): return input()",
    ],
)  # fmt: skip
def test_what_does_not_reach_the_end_of_a_test_does_not_pass_it(program: str) -> None:
    assert verdict(program).passes == (False, False)


def test_the_program_sees_nothing_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "1")
    handle = os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(handle, True)
    program = (
        "import os, sys\nseen = (sorted(set(os.environ) - {'LC_CTYPE'}), os.listdir('.'), sys.stdin.read(),\n"
        f"    {handle} in map(int, os.listdir('/proc/self/fd')) if {handle} > 9 else False,\n"
        "    [path for path in sys.path if 'site-packages' in path])\n"
    )
    found = verdict(program, ("assert seen == ([], [], '', False, []), seen",))
    os.close(handle)
    assert found.passed, found.output


def test_time_memory_and_output_are_limited() -> None:
    started = time.monotonic()
    looping = verdict("while True: pass", seconds=0.5)
    assert looping.timed_out and not looping.passed
    printing = verdict("def f(x):\n    while True: print('x' * 10000)", seconds=0.5)
    assert printing.timed_out and len(printing.output) <= 1 << 14
    assert not verdict("while True: pass", cpu=1, seconds=20.0).timed_out
    assert time.monotonic() - started < 10
    assert "MemoryError" in verdict("x = [0] * 10**9").output
    assert (
        "MemoryError" in verdict("def f(x):\n    a = []\n    while True: a.append(bytes(10**6))", memory=256).output
    )
    assert "File too large" in verdict("open('a', 'wb').write(bytes(20 << 20))", files=4).output


def test_no_process_is_started_and_none_is_left(tmp_path: Path) -> None:
    # Bounded, so that it is harmless should nothing hold it back; through the C library, past any guard in Python.
    probe = (
        "import ctypes, os\nfork, started = ctypes.CDLL(None).fork, 0\nfor _ in range(20):\n    child = fork()\n"
        "    if child == 0: os._exit(0)\n    started += child > 0\n"
    )
    assert verdict(probe, ("assert started == 0, started",)).passed
    assert not verdict("import subprocess\nsubprocess.run(['true'])").passed
    assert not verdict("import os\nos.kill(os.getppid(), 9)\nos.kill(-1, 9)").passed
    running = [path for path in Path("/proc").glob("[0-9]*/cmdline") if b"sandboxed.py" in _read(path)]
    assert not running


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it ended meanwhile
        return b""


def test_threads_are_allowed_and_limited() -> None:
    some = "import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()\n"
    assert verdict(some + SQUARE, threads=100_000).passed
    many = "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(9,), daemon=True).start()"
    assert "can't start new thread" in verdict(many, seconds=10.0).output


def test_files_outside_stay_as_they_are(tmp_path: Path, both: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("here")
    tmp_path.chmod(0o777)
    for action in (f"os.remove({str(victim)!r})", f"__import__('shutil').rmtree({str(tmp_path)!r})"):
        assert not verdict(f"import os\n{action}\n" + SQUARE).passed
    written = verdict(f"open({str(victim)!r}, 'w').write('gone')\n" + SQUARE)
    if both == "namespaces" and written.isolated:
        assert victim.read_text() == "here" and not written.passed
    else:
        assert victim.exists()
    assert list(tmp_path.iterdir()) == [victim]


def test_the_folder_is_writable_and_goes_away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    tmp_path.chmod(0o777)
    program = "import os\nos.mkdir('d')\nopen('d/a', 'w').write('hi')\n"
    found = verdict(program, ("assert open('d/a').read() == 'hi'", "os.chmod and os.chmod('d', 0)"))
    assert found.passed, found.output
    assert not list(tmp_path.iterdir())


def test_there_is_no_network() -> None:
    found = verdict("import socket\nsocket.create_connection(('127.0.0.1', 9), timeout=1)")
    assert not found.passed and "refused" not in found.output
    found = verdict("import socket\nsocket.socket()\n" + SQUARE)
    assert found.isolated or not found.passed


def test_isolation_is_said(both: str) -> None:
    if both == "limits alone":
        assert not verdict(SQUARE).isolated


def test_no_more_run_at_a_time_than_there_are_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_slots", threading.BoundedSemaphore(1))
    spans: list[tuple[float, float]] = []

    def one() -> None:
        found = verdict("import time\ntime.sleep(0.1)\n" + SQUARE)
        spans.append((time.monotonic() - found.seconds, time.monotonic()))

    workers = [threading.Thread(target=one) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    spans.sort()
    assert all(end <= start + 0.05 for (_, end), (start, _) in zip(spans, spans[1:], strict=False))


def test_bad_limits_and_no_tests_are_refused() -> None:
    with pytest.raises(InvalidInput, match="0 tests"):
        run_tests(SQUARE, ())
    for name in ("seconds", "cpu", "memory", "files", "threads"):
        with pytest.raises(InvalidInput, match=f"{name}=-1"):
            Limits(**{name: -1})
