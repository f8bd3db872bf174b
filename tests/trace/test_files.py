"""A saved trace reads back whole, or says exactly what is wrong with it."""

import errno
import json
import time
import warnings
from pathlib import Path

import pytest

import bough.trace
from bough.core.errors import InvalidInput
from bough.core.events import Finished, Pruned, Root, Sampled, Scored, Trace


@pytest.fixture
def trace() -> Trace:
    trace = Trace({"strategy": {"name": "astar"}, "model": "tiny", "seed": 0, "prompt": "é\u2028\n"})
    trace.append(Root("r", "é\u2028\n", 3))
    trace.append(Sampled("a", "r", [("2\n", -0.5, -0.25)], "2\n", "stop", 1))
    trace.append(Scored("a", 0.5, "prm"))
    trace.append(Finished("a", "2\n", 0.5, {"tokens": 1}))
    return trace


def test_load_gives_back_what_save_wrote(trace: Trace, tmp_path: Path) -> None:
    loaded = bough.trace.load(trace.save(tmp_path / "run.jsonl"))
    assert loaded.records == json.loads(json.dumps(trace.records))


def test_every_cut_of_the_last_line_is_noticed_and_the_rest_is_read(trace: Trace, tmp_path: Path) -> None:
    whole = trace.save(tmp_path / "run.jsonl").read_bytes()
    start = whole.rstrip(b"\n").rindex(b"\n") + 1
    for end in range(start + 1, len(whole) - 1):
        path = tmp_path / "cut.jsonl"
        path.write_bytes(whole[:end])
        with pytest.warns(bough.trace.TruncatedTrace, match=r"line 5 is cut off; the 4 records before it"):
            assert bough.trace.load(path).records == json.loads(json.dumps(trace.records[:-1]))


def test_a_whole_file_without_its_last_line_end_is_not_called_cut_off(trace: Trace, tmp_path: Path) -> None:
    path = trace.save(tmp_path / "run.jsonl")
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(bough.trace.load(path)) == len(trace)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not a trace"),
        ('{"t":0,"type":"scored"}\n', "first line is not a record of type 'run'"),
        ("{broken\n", "line 1 is not a trace record"),
        ('{"type":"run","version":1}\n{broken\n{"t":0,"type":"root"}\n', "line 2 is not a trace record"),
        ('{"type":"run","version":1}\n[1]\n{"t":0,"type":"root"}\n', "line 2 is not a trace record"),
        ('{"type":"run","version":7}\n', "version 7.*reads version 1"),
    ],
)
def test_a_file_that_is_not_a_trace_is_refused_by_name(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    with pytest.raises(InvalidInput, match=message) as error:
        bough.trace.load(path)
    assert "bad.jsonl" in str(error.value)


def test_replay_gives_the_typed_events_with_their_times(trace: Trace, tmp_path: Path) -> None:
    path = trace.save(tmp_path / "run.jsonl")
    seconds, events = zip(*bough.trace.replay(path), strict=True)
    assert [type(event) for event in events] == [Root, Sampled, Scored, Finished]
    assert list(seconds) == [record["t"] for record in trace.records[1:]]
    assert events[2] == Scored("a", 0.5, "prm")


def test_replay_at_a_speed_takes_that_fraction_of_the_run(trace: Trace) -> None:
    for record in trace.records[1:]:
        record["t"] = 0.0
    trace.records[-1]["t"] = 2.0
    start = time.perf_counter()
    assert len(list(bough.trace.replay(trace, speed=10))) == 4
    assert 0.2 <= time.perf_counter() - start < 1.0


def test_replay_refuses_an_impossible_speed_and_an_unknown_event(trace: Trace) -> None:
    with pytest.raises(InvalidInput, match="speed=0"):
        next(bough.trace.replay(trace, speed=0))
    trace.records.append({"t": 1.0, "type": "teleported", "node": "a"})
    with pytest.raises(InvalidInput, match="teleported"):
        list(bough.trace.replay(trace))


@pytest.mark.parametrize("name", ["run.jsonl", "run.html"])
def test_a_full_disk_keeps_the_older_file_and_the_trace(
    name: str, trace: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = trace.save(tmp_path / name)
    before = path.read_bytes()
    trace.append(Pruned("a", "late"))
    count = len(trace)

    def full(self: Path, text: str, **_: object) -> int:
        with self.open("wb") as file:
            file.write(text.encode()[: len(text) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        trace.save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert len(trace) == count
