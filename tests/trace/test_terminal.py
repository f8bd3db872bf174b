"""The terminal tree shows the answer's path whole, the best of the rest, and counts what it leaves out."""

import pytest
from rich.console import Console

import bough.trace
from bough.core.errors import InvalidInput
from bough.core.events import Expanded, Finished, Proposed, Pruned, Root, Sampled, Scored, Trace


def drawn(trace: Trace, columns: int = 200, **options: int) -> str:
    console = Console(width=columns, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(bough.trace.tree(trace, **options))
    return capture.get()


def wide_trace(children: int = 50) -> Trace:
    """A root with many children, scored by their number; the answer hangs from the lowest-scored one."""
    trace = Trace({"prompt": "start"})
    trace.append(Root("r", "start", 1))
    trace.append(Expanded("r", 1, g=0.0, h=0.5, f=0.5))
    for i in range(children):
        trace.append(Sampled(f"c{i}", "r", [], f"step {i}", "stop", 1))
        trace.append(Scored(f"c{i}", i / children, "prm"))
    trace.append(Pruned("c0", "too costly"))
    trace.append(Sampled("goal", "c0", [], "the end", "eos", 2))
    trace.append(Proposed("goal", 0.9))
    ledger = {"tokens": 1234, "reward_calls": 50, "passes": 7, "seconds": 1.5}
    trace.append(Finished("goal", "the end", 0.9, ledger, "tokens: 1234 of 1200"))
    return trace


def test_lines_hold_score_text_order_cost_and_reason() -> None:
    text = drawn(wide_trace())
    assert "start  #1 f 0.50" in text
    assert "0.00  step 0  pruned: too costly" in text
    assert "the end  ★" in text
    assert "1,234 tokens generated" in text and "stopped by tokens: 1234 of 1200" in text


def test_long_sibling_lists_are_folded_to_the_best_and_counted() -> None:
    text = drawn(wide_trace(), lines=8)
    shown = [line for line in text.splitlines() if "step" in line]
    assert [line.split("step ")[1].split()[0] for line in shown] == ["0", "45", "46", "47", "48", "49"]
    assert "… 44 more, best 0.88" in text


def test_the_answers_path_is_whole_however_few_the_lines() -> None:
    text = drawn(wide_trace(), lines=1)
    assert "step 0" in text and "the end  ★" in text and "step 49" not in text


def test_the_path_is_bold_and_the_pruned_rest_is_dim() -> None:
    trace = wide_trace(children=2)
    trace.records.insert(-1, {"t": 1.0, "type": "pruned", "node": "c1", "reason": "late"})
    console = Console(width=100, force_terminal=True, color_system="standard", legacy_windows=False)
    with console.capture() as capture:
        console.print(bough.trace.tree(trace))
    text = capture.get()
    assert "\x1b[1mthe end\x1b[0m" in text
    assert "\x1b[2mstep 1\x1b[0m" in text


def test_text_is_cut_in_the_middle_at_the_width() -> None:
    trace = Trace()
    trace.append(Root("r", "beginning " + "x" * 100 + " ending", 9))
    assert "begi … nding" in drawn(trace, width=12)


def test_markup_in_a_models_text_is_only_text() -> None:
    trace = Trace()
    trace.append(Root("r", "[bold]x[/bold] [/nope]", 9))
    assert "[bold]x[/bold] [/nope]" in drawn(trace)


def test_a_deep_chain_does_not_exhaust_the_stack() -> None:
    trace = Trace()
    trace.append(Root("n0", "", 1))
    for i in range(3000):
        trace.append(Sampled(f"n{i + 1}", f"n{i}", [], "x", "stop", i + 1))
    assert "… 2,998 more" in drawn(trace, lines=3)


def test_an_interrupted_trace_says_so() -> None:
    trace = Trace()
    trace.append(Root("r", "start", 1))
    assert "ends before its run did" in drawn(trace)


@pytest.mark.parametrize("options", [{"width": 7}, {"lines": 0}])
def test_room_for_nothing_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(InvalidInput, match="use at least"):
        bough.trace.tree(Trace(), **options)
