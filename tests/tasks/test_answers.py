"""Answers are found where texts say them, and are the same exactly when they mean the same."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bough.tasks.answers import boxed, canonical, code, equivalent, extract

SAME = [
    ("1,234", "1234.0"), ("$18", "18 dollars"), ("18 eggs", "18"), ("50\\%", "50%"), ("50 %", "50"), ("5cm", "5"),
    ("\\$32{,}348", "32348"), ("10\\,000", "10000"), ("073", "73"), ("$5.00 per day", "5"), ("5 km/h", "5"),
    ("5\\text{ cm}^2", "5"), ("12\\text{ dollars}", "12"), ("90^\\circ", "90"), ("90^{\\circ}", "90 degrees"),
    ("\\frac{1}{2}", "0.5"), ("1/2", "\\dfrac12"), ("-\\frac{3}{4}", "\\frac{-3}{4}"), ("3\\frac{1}{5}", "3.2"),
    ("3 1/5", "16/5"), ("0.\\overline{3}", "1/3"), ("3\\times10^5", "300000"), ("2^{10}", "1024"), ("5!", "120"),
    ("\\binom{5}{2}", "10"), ("|-3|", "3"), ("\\sqrt{12}", "2\\sqrt3"), ("2/\\sqrt{8}", "\\frac{\\sqrt{2}}{2}"),
    ("\\sqrt[3]{-8}", "-2"), ("\\pi/2", "\\frac{\\pi}{2}"), ("\u03c0", "\\pi"), ("i^2", "-1"), ("6-5i", "-5i + 6"),
    ("(x+1)^2", "x^2+2x+1"), ("2x+3y", "3y + 2x"), ("x=5", "5"), ("x \\in [1,2]", "[1, 2]"),
    ("\\left(1,2\\right)", "( 1, 2.0)"), ("\\{1,2,3\\}", "3, 2, 1"), ("3 \\text{ and } 5", "5, 3"),
    ("\\pm 3", "3,-3"), ("1 \\pm \\sqrt{19}", "1-\\sqrt{19},1+\\sqrt{19}"),
    ("(-\\infty,2]\\cup[3,\\infty)", "[3,\\infty)\\cup(-\\infty,2]"),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{bmatrix} 1 \\\\ 2.0 \\end{bmatrix}"),
    ("\\text{Evelyn}", "evelyn."), ("(A)", "A"), ("\\text{(A)}", "a"), ("Yes", "yes"), ("x \\le 2", "x<=2"),
]  # fmt: skip
# The same by an identity that has no normal form here.
IDENTICAL = [
    ("\\frac{1}{1+\\sqrt2}", "\\sqrt{2}-1"),
    ("\\sin^2 x+\\cos^2 x", "1"),
    ("2^{n+1}", "2\\cdot 2^n"),
    ("\\frac{x^2-1}{x+1}", "x-1"),
    ("(1, \\frac{1}{1+\\sqrt2})", "(1, \\sqrt{2}-1)"),
    ("\\sqrt{3+2\\sqrt2}", "1+\\sqrt2"),
]
DIFFERENT = [
    ("0.333", "1/3"), ("3.14159265358979", "\\pi"), ("(1,2)", "(2,1)"), ("(1,2)", "[1,2]"), ("12", "1,2"),
    ("(1,234)", "1,234"), ("5x", "5"), ("2xy", "2"), ("2\\pi", "2"), ("5m", "5"), ("x", "y"), ("4210_5", "4210"),
    ("5", "-5"), ("x+1", "x-1"), ("yes", "no"), ("", "0"), ("1/0", "0"), ("x^2", "2x"), ("\\sqrt{2}", "1.41421356"),
    ("\\{1,1,2\\}", "\\{1,2,2\\}"), ("2^{999999999}", "2^{999999998}"), ("9^{9^{9}}", "9"), ("on", "no"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), SAME)
def test_ways_to_write_an_answer_have_one_canonical_form(one: str, other: str) -> None:
    assert canonical(one) == canonical(other)
    assert equivalent(one, other)


@pytest.mark.parametrize(("one", "other"), IDENTICAL)
def test_identities_are_recognised(one: str, other: str) -> None:
    assert equivalent(one, other) and equivalent(other, one)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_other_answers_are_others(one: str, other: str) -> None:
    assert canonical(one) != canonical(other)
    assert not equivalent(one, other) and not equivalent(other, one)


rationals = st.fractions(max_denominator=10**6).filter(lambda f: abs(f) < 10**12)


@given(rationals)
def test_a_number_is_the_same_however_it_is_written(number: Fraction) -> None:
    top, bottom = number.numerator, number.denominator
    sign = "-" if top < 0 else ""
    ways = [
        f"{top}/{bottom}", f"\\frac{{{top}}}{{{bottom}}}", f"{sign}\\dfrac{{{abs(top)}}}{{{bottom}}}",
        f"{3 * top}/{3 * bottom}", f"$\\left({top}\\right) \\div {bottom}$",
    ]  # fmt: skip
    if bottom == 1:
        ways += [f"{top:,}", f"${top:,}.00", f"{top} apples", f"{top}\\%", f"x = {top}"]
    assert {canonical(way) for way in ways} == {str(number)}


@given(rationals, rationals)
def test_numbers_are_the_same_exactly_if_they_are_equal(one: Fraction, other: Fraction) -> None:
    assert equivalent(str(one), str(other)) == (one == other)


@given(st.lists(st.integers(-99, 99), min_size=2, max_size=5), st.randoms())
def test_order_matters_in_tuples_only(numbers: list[int], rng: object) -> None:
    mixed = list(numbers)
    rng.shuffle(mixed)  # type: ignore[attr-defined]
    one, other = ", ".join(map(str, numbers)), ",".join(f"{n}.0" for n in mixed)
    assert canonical(f"\\{{{one}\\}}") == canonical(f"\\{{{other}\\}}")
    assert equivalent(f"({one})", f"({other})") == (numbers == mixed)


terms = st.lists(
    st.tuples(st.integers(-9, 9), st.sampled_from(["x", "y", "xy", "x^2", "\\sqrt{2}", "\\pi", ""])), max_size=4
)


@given(terms, terms, st.integers(1, 9))
def test_a_polynomial_is_the_same_in_any_order_and_multiplied_out(
    left: list[tuple[int, str]], right: list[tuple[int, str]], factor: int
) -> None:
    def text(terms: list[tuple[int, str]]) -> str:
        return "+".join(f"({c}){name}" for c, name in terms) or "0"

    assert canonical(text(left + right)) == canonical(text(right[::-1] + left))
    assert canonical(f"({text(left)})({text(right)})") == canonical(f"({text(right)})({text(left)})")
    product = "+".join(f"({factor * c}){name}" for c, name in left) or "0"
    assert canonical(f"{factor}({text(left)})") == canonical(product)


@given(st.text(alphabet="0123456789xy+-*/^(){}[],.\\ frac sqrt|!_$%\u03c0", max_size=60) | st.text(max_size=60))
@example("(" * 400)
@example("\\sqrt" * 100)
def test_any_text_is_an_answer_that_equals_itself(text: str) -> None:
    assert canonical(text) == canonical(f"  {text} ")
    assert equivalent(text, text)
    extract(text), code(text)


@pytest.mark.parametrize(
    "text",
    [
        "((((a+b+c+d)^9)))^9", "((1+x)^12)^12", "9" * 390, "2^{4000}" * 40, "x^{x^{x^{x}}}", "5 " + "a" * 1500 + "!",
        "5 " + "ab " * 600 + "+", "answer for " * 150, "\\text{" * 300, "the answer is " + "x " * 700, "{" * 1900,
        "\\boxed{" * 280, "1," * 900 + "x", "( " * 900, "\\frac" * 300, "```\n" * 400, "\\pm" * 300, "\\cup" * 400,
        "\\sqrt{9999999967}", "5" + " ^{2}" * 300 + "!",
    ],
)  # fmt: skip
def test_no_text_takes_long(text: str) -> None:
    started = time.process_time()
    extract(text), code(text), canonical(text), equivalent(text, "7")
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so \\boxed{\\frac{1}{2}}, hence \\boxed{\\text{a {b}}}.", "\\text{a {b}}"),
        ("\\boxed{1} and then \\boxed{2", "1"),
        ("\\boxed 7.", "7"),
        ("\\fbox{3}", "3"),
        ("work\n#### 1,234\n", "1,234"),
        ("Therefore, the answer is $18 per day. Good.", "$18 per day"),
        ("The final answer is: **42**.", "42"),
        ("The answer is \\(x^2\\), which", "x^2"),
        ("The answer to the question is 3.5.", "3.5"),
        ("Answer: B", "B"),
        ("The answer is 4.\nNo: the answer is 5.", "5"),
        ("The answer is 4. #### 5\n", "4"),
        ("1+1=2\nanswer 2\n", "2"),
        ("there is none", None),
        ("", None),
    ],
)
def test_the_answer_is_found_where_the_text_says_it(text: str, answer: str | None) -> None:
    assert extract(text) == answer


def test_a_box_in_a_box_is_its_content() -> None:
    assert boxed("\\boxed{x_{\\boxed{1}}}") == "1"
    assert boxed("none") is None


def test_code_is_the_first_block_that_defines_something() -> None:
    text = "Run\n```bash\nls\n```\nlike\n```python\nimport os\n```\nthen\n```py\ndef f():\n    return 1\n```\n```\nf()\n```\n"  # noqa: E501
    assert code(text) == "def f():\n    return 1\n"
    assert code("```python\nx = 1") == "x = 1"
    assert code("x = 1") is None
