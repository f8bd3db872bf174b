"""Exact arithmetic on what answers are made of: sums of products of rationals, roots, variables and functions.

A value is a sum of monomials with rational coefficients over atoms (a variable, pi, a prime under a root, a function
of a value). Products and powers are multiplied out and roots reduced, so two values that are equal as Laurent
polynomials over roots are the same `Value`: 2/sqrt(8) and sqrt(2)/2, (x+1)^2 and x^2+2x+1. Nothing is ever evaluated
as code, and sizes are bounded, whatever the text.
"""

from __future__ import annotations

import cmath
import math
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

Atom = tuple[
    Any, ...
]  # ("var", name) | ("prime", p) | ("fn", name, frozen value) | ("pow", frozen base, frozen power)
Monomial = tuple[tuple[Atom, Fraction], ...]  # sorted, no exponent 0
Frozen = tuple[tuple[Monomial, Fraction], ...]
Value = dict[Monomial, Fraction]  # no coefficient 0

_MAX_CHARACTERS = 400
_MAX_DEPTH = 40
_MAX_TERMS = 64
_MAX_BITS = 4096
_MAX_FACTORED = 10**10
_MAX_FACTORIAL = 200
_CONSTANTS: dict[str, complex] = {"pi": math.pi, "e": math.e, "i": 1j}
_FUNCTIONS: dict[str, Callable[[complex], complex]] = {
    "sin": cmath.sin, "cos": cmath.cos, "tan": cmath.tan, "log": cmath.log10, "ln": cmath.log, "exp": cmath.exp,
    "sec": lambda z: 1 / cmath.cos(z), "csc": lambda z: 1 / cmath.sin(z), "cot": lambda z: 1 / cmath.tan(z),
    "arcsin": cmath.asin, "arccos": cmath.acos, "arctan": cmath.atan, "abs": abs,
}  # fmt: skip


class NotAnExpression(Exception):
    """The text is no expression that is understood, or one too large to work out."""


def constant(number: Fraction | int) -> Value:
    """A rational number as a value."""
    return {(): Fraction(number)} if number else {}


def rational(value: Value) -> Fraction | None:
    """The number that a value is, or None if it has any atom."""
    if not value:
        return Fraction(0)
    return value[()] if list(value) == [()] else None


def freeze(value: Value) -> Frozen:
    """The value as something hashable; equal for equal values."""
    return tuple(sorted(value.items(), key=repr))


# Arithmetic --------------------------------------------------------------------------------------------------


def add(one: Value, other: Value, sign: int = 1) -> Value:
    """one + sign * other."""
    total = dict(one)
    for monomial, coefficient in other.items():
        total[monomial] = total.get(monomial, Fraction(0)) + sign * coefficient
        if not total[monomial]:
            del total[monomial]
    return _bounded(total)


def multiply(one: Value, other: Value) -> Value:
    """one * other, multiplied out."""
    total: Value = {}
    for left, a in one.items():
        for right, b in other.items():
            exponents = dict(left)
            for atom, exponent in right:
                exponents[atom] = exponents.get(atom, Fraction(0)) + exponent
            for monomial, coefficient in _monomial(exponents, a * b).items():
                total[monomial] = total.get(monomial, Fraction(0)) + coefficient
    return _bounded({monomial: coefficient for monomial, coefficient in total.items() if coefficient})


def power(base: Value, exponent: Value) -> Value:
    """base ** exponent."""
    n = rational(exponent)
    number = rational(base)
    if n is None or abs(n.numerator) > _MAX_BITS or n.denominator > 64:
        return _opaque(base, exponent)
    if not base:
        if n <= 0:
            raise NotAnExpression("a division by zero")
        return {}
    if len(base) == 1:
        [(monomial, coefficient)] = base.items()
        # The root of a product is the product of the roots where one of them is not negative.
        if n.denominator == 1 or (coefficient > 0 and (number is not None or _positive(monomial))):
            raised = _monomial({atom: e * n for atom, e in monomial}, Fraction(1))
            return multiply(raised, _number_power(coefficient, n))
        if number is not None and n.denominator % 2:  # the real root, as in school
            return multiply(constant((-1) ** n.numerator), _number_power(-number, n))
        if number is not None and n == Fraction(1, 2):
            return multiply({((("var", "i"), Fraction(1)),): Fraction(1)}, _number_power(-number, n))
    elif n.denominator == 1 and 0 <= n <= 16:
        result = constant(1)
        for _ in range(int(n)):
            result = multiply(result, base)
        return result
    if n.denominator == 1 and n < 0 and len(base) > 1:
        # One over a sum: scaled so that its first coefficient is 1, for 1/(2x+2) to be (1/2)/(x+1).
        first = freeze(base)[0][1]
        scaled = {m: c / first for m, c in base.items()}
        return multiply(_number_power(first, n), _opaque(scaled, constant(n)))
    return _opaque(base, exponent)


def call(name: str, argument: Value) -> Value:
    """A function of a value; the absolute value of a number is worked out."""
    number = rational(argument)
    if name == "abs" and number is not None:
        return constant(abs(number))
    return _atom(("fn", name, freeze(argument)))


def _atom(atom: Atom) -> Value:
    return {((atom, Fraction(1)),): Fraction(1)}


def _opaque(base: Value, exponent: Value) -> Value:
    return _atom(("pow", freeze(base), freeze(exponent)))


def _positive(monomial: Monomial) -> bool:
    return all(atom[0] == "prime" or atom == ("var", "pi") for atom, _ in monomial)


def _monomial(exponents: Mapping[Atom, Fraction], coefficient: Fraction) -> Value:
    """A product of powers of atoms, in lowest terms: whole powers of primes go to the coefficient, i^2 is -1."""
    kept: dict[Atom, Fraction] = {}
    for atom, exponent in exponents.items():
        if atom[0] == "prime":
            whole = math.floor(exponent)
            coefficient *= Fraction(atom[1]) ** whole
            exponent -= whole
        elif atom == ("var", "i") and exponent.denominator == 1:
            turns = int(exponent) % 4
            coefficient *= -1 if turns >= 2 else 1
            exponent = Fraction(turns % 2)
        if exponent:
            kept[atom] = exponent
    return _bounded({tuple(sorted(kept.items(), key=repr)): coefficient} if coefficient else {})


def _number_power(number: Fraction, n: Fraction) -> Value:
    """A rational to a rational power, its roots reduced to those of primes."""
    if n.denominator == 1:
        if abs(int(n)) * max(abs(number.numerator), number.denominator).bit_length() > _MAX_BITS:
            raise NotAnExpression("too large a number")
        return constant(number ** int(n))
    exponents: dict[Atom, Fraction] = {}
    for part, sign in ((number.numerator, 1), (number.denominator, -1)):
        for prime, times in _factors(part).items():
            exponents["prime", prime] = sign * times * n
    return _monomial(exponents, Fraction(1))


def _factors(number: int) -> dict[int, int]:
    if number > _MAX_FACTORED:
        raise NotAnExpression("a root of too large a number")
    found: dict[int, int] = {}
    divisor = 2
    while divisor * divisor <= number:
        while number % divisor == 0:
            found[divisor] = found.get(divisor, 0) + 1
            number //= divisor
        divisor += 1
    if number > 1:
        found[number] = found.get(number, 0) + 1
    return found


def _bounded(value: Value) -> Value:
    if len(value) > _MAX_TERMS:
        raise NotAnExpression("too many terms")
    if any(max(abs(c.numerator), c.denominator).bit_length() > _MAX_BITS for c in value.values()):
        raise NotAnExpression("too large a number")
    return value


# Text to value -----------------------------------------------------------------------------------------------

_NAMES = sorted((*_FUNCTIONS, "sqrt", "cbrt", "pi", "binom", "frac"), key=len, reverse=True)
_TOKEN = re.compile(
    rf"\s*(?:(?P<number>\d+(?:\.\d*)?|\.\d+)(?:_\{{?(?P<base>\d+)\}}?)?"
    rf"|\\?(?P<name>{'|'.join(_NAMES)})(?![a-z])|(?P<command>\\[a-zA-Z]+)|(?P<letter>[a-zA-Z])"
    r"|(?P<symbol>\*\*|[-+*/^!()\[\]{}|_]))"
)
_KNOWN = re.compile(rf"\\[a-zA-Z]+|(?<![a-zA-Z])(?:{'|'.join(_NAMES)})(?![a-zA-Z])")
_GREEK = frozenset((
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu", "xi",
    "rho", "sigma", "tau", "phi", "varphi", "chi", "psi", "omega",
))  # fmt: skip


def parse(text: str) -> Value:
    """The value of an expression, in LaTeX or as plain text.

    Raises:
        NotAnExpression: it is none, or too large.
    """
    if len(text) > _MAX_CHARACTERS:
        raise NotAnExpression("too long")
    if re.search(r"[a-zA-Z]{3,}", _KNOWN.sub(" ", text)):
        raise NotAnExpression("words")
    tokens, at = [], 0
    while at < len(text.rstrip()):
        match = _TOKEN.match(text, at)
        if match is None:
            raise NotAnExpression(f"{text[at : at + 10]!r}")
        kind = str(match.lastgroup)
        if kind == "base":  # a number in another base is not the number that its digits spell
            tokens.append(("based", f"{match['number']}_{match['base']}"))
        else:
            tokens.append((kind, match[kind]))
        at = match.end()
    parser = _Parser(tokens)
    try:
        value = parser.sum()
    except (ZeroDivisionError, OverflowError) as error:
        raise NotAnExpression(str(error)) from None
    if parser.peek() is not None:
        raise NotAnExpression(f"{parser.peek()!r} is left")
    return value


class _Parser:
    """Recursive descent over tokens; a product may be written without a sign."""

    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self._tokens = tokens
        self._at = 0
        self._depth = 0
        self._bars = 0

    def peek(self) -> str | None:
        return self._tokens[self._at][1] if self._at < len(self._tokens) else None

    def _kind(self) -> str | None:
        return self._tokens[self._at][0] if self._at < len(self._tokens) else None

    def _take(self, *wanted: str) -> str:
        token = self.peek()
        if token is None or (wanted and token not in wanted):
            raise NotAnExpression(f"{token!r} where {wanted} was due")
        self._at += 1
        return token

    def sum(self) -> Value:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise NotAnExpression("too deep")
        value = self._product()
        while self.peek() in ("+", "-"):
            value = add(value, self._product(), 1) if self._take() == "+" else add(value, self._product(), -1)
        self._depth -= 1
        return value

    def _product(self) -> Value:
        value = self._signed()
        while (token := self.peek()) is not None:
            if token in ("*", "/", "\\cdot", "\\times", "\\div"):
                self._take()
                factor = self._signed()
                value = multiply(value, power(factor, constant(-1)) if token in ("/", "\\div") else factor)
            elif token in ("+", "-", ")", "]", "}") or (token == "|" and self._bars):
                break
            else:
                value = multiply(value, self._powered())
        return value

    def _signed(self) -> Value:
        sign = 1
        while self.peek() in ("+", "-"):
            sign *= 1 if self._take() == "+" else -1
        return multiply(constant(sign), self._powered())

    def _powered(self) -> Value:
        base = self._factorial()
        if self.peek() not in ("^", "**"):
            return base
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise NotAnExpression("too deep")
        self._take()
        exponent = self._group() if self.peek() == "{" else self._signed()
        self._depth -= 1
        return power(base, exponent)

    def _factorial(self) -> Value:
        if self._kind() == "number" and self._mixed():
            whole = Fraction(self._take())
            return add(constant(whole), self._primary())
        value = self._primary()
        while self.peek() == "!":
            self._take()
            number = rational(value)
            if number is None or number.denominator != 1 or not 0 <= number <= _MAX_FACTORIAL:
                raise NotAnExpression("a factorial")
            value = constant(math.factorial(int(number)))
        return value

    def _mixed(self) -> bool:
        """Whether a whole number and a fraction of whole numbers follow: 2\\frac{1}{3}."""
        following = [token for _, token in self._tokens[self._at : self._at + 8]]
        words = " ".join(following)
        return re.match(r"\d+ frac (?:\{ \d+ \}|\d) (?:\{ \d+ \}|\d)", words) is not None and following[0].isdigit()

    def _group(self) -> Value:
        self._take("{")
        value = self.sum()
        self._take("}")
        return value

    def _argument(self) -> Value:
        """A command's argument: a group, or else one digit or letter, as TeX takes it."""
        if self.peek() == "{":
            return self._group()
        kind, token = self._kind(), self._take()
        if kind == "number" and token.isdigit():
            if len(token) > 1:  # \frac12: the first digit is the argument, the others are put back
                self._at -= 1
                self._tokens[self._at] = ("number", token[1:])
            return constant(int(token[0]))
        if kind == "letter":
            return _atom(("var", token.lower()))
        if token == "pi":
            return _atom(("var", "pi"))
        raise NotAnExpression(f"{token!r} as an argument")

    def _primary(self) -> Value:
        kind, token = self._kind(), self._take()
        if kind == "number":
            return constant(Fraction(token.rstrip(".") if token != "." else "0"))
        if kind == "based":
            return _atom(("var", token))
        if kind == "letter":
            return _atom(("var", self._subscripted(token.lower())))
        if kind == "command":
            if token[1:].lower() in _GREEK:
                return _atom(("var", self._subscripted(token[1:].lower())))
            raise NotAnExpression(token)
        if kind == "name":
            return self._named(token)
        if token in ("(", "[", "{"):
            value = self.sum()
            self._take({"(": ")", "[": "]", "{": "}"}[token])
            return value
        if token == "|":
            self._bars += 1
            value = self.sum()
            self._bars -= 1
            self._take("|")
            return call("abs", value)
        raise NotAnExpression(f"{token!r}")

    def _subscripted(self, name: str) -> str:
        if self.peek() != "_":
            return name
        self._take()
        braced = self.peek() == "{"
        if braced:
            self._take()
        name += "_" + self._take().lower()
        if braced:
            self._take("}")
        return name

    def _named(self, name: str) -> Value:
        if name == "pi":
            return _atom(("var", "pi"))
        if name == "frac":
            top = self._argument()
            return multiply(top, power(self._argument(), constant(-1)))
        if name == "binom":
            n, k = rational(self._argument()), rational(self._argument())
            if (
                n is None
                or k is None
                or n.denominator != 1
                or k.denominator != 1
                or not 0 <= k <= n <= _MAX_FACTORIAL
            ):
                raise NotAnExpression("a binomial coefficient")
            return constant(math.comb(int(n), int(k)))
        if name in ("sqrt", "cbrt"):
            degree = constant(3 if name == "cbrt" else 2)
            if self.peek() == "[":
                self._take()
                degree = self.sum()
                self._take("]")
            radicand = self._primary() if self.peek() in ("(", "{") else self._argument()
            return power(radicand, power(degree, constant(-1)))
        raised: Value | None = None
        if self.peek() == "^":  # \sin^2 x
            self._take()
            raised = self._group() if self.peek() == "{" else self._argument()
        value = call(name, self._powered())
        return value if raised is None else power(value, raised)


# Value to text and number ------------------------------------------------------------------------------------


def render(value: Value) -> str:
    """The value as plain text; the same for equal values."""
    if not value:
        return "0"
    terms = []
    for monomial, coefficient in sorted(value.items(), key=lambda term: _order(term[0])):
        factors = [_render_factor(atom, exponent) for atom, exponent in monomial]
        top, bottom = abs(coefficient.numerator), coefficient.denominator
        if top != 1 or not factors:
            factors.insert(0, str(top))
        text = "*".join(factors) + (f"/{bottom}" if bottom != 1 else "")
        terms.append(("-" if coefficient < 0 else "+") + text)
    return "".join(terms).removeprefix("+")


def _order(monomial: Monomial) -> tuple[Any, ...]:
    """High degrees first, plain numbers last."""
    degree = sum((e for atom, e in monomial if atom[0] != "prime"), Fraction(0))
    return -degree, not monomial, repr(monomial)


def _render_factor(atom: Atom, exponent: Fraction) -> str:
    if atom[0] == "prime":
        return f"sqrt({atom[1]})" if exponent == Fraction(1, 2) else f"{atom[1]}^({exponent})"
    if atom[0] == "var":
        base = str(atom[1])
    elif atom[0] == "fn":
        base = f"{atom[1]}({render(dict(atom[2]))})"
    else:
        base = f"({render(dict(atom[1]))})^({render(dict(atom[2]))})"
        return base if exponent == 1 else f"({base})^({exponent})"
    return base if exponent == 1 else f"{base}^{exponent}" if exponent.denominator == 1 > -exponent else (
        f"{base}^({exponent})"
    )  # fmt: skip


def variables(value: Value) -> set[str]:
    """The names of all variables in a value, those inside functions too; pi, e and i are constants."""
    found: set[str] = set()
    for monomial in value:
        for atom, _ in monomial:
            if atom[0] == "var" and atom[1] not in _CONSTANTS:
                found.add(atom[1])
            elif atom[0] == "fn":
                found |= variables(dict(atom[2]))
            elif atom[0] == "pow":
                found |= variables(dict(atom[1])) | variables(dict(atom[2]))
    return found


def evaluate(value: Value, at: Mapping[str, float]) -> complex:
    """The value in floating point, where its variables are these.

    Raises:
        ArithmeticError, ValueError: it has none there, or one too large.
    """
    total: complex = 0.0
    for monomial, coefficient in value.items():
        product: complex = float(coefficient)
        for atom, exponent in monomial:
            product *= _evaluate(atom, at) ** float(exponent)
        total += product
    return total


def _evaluate(atom: Atom, at: Mapping[str, float]) -> complex:
    if atom[0] == "prime":
        return float(atom[1])
    if atom[0] == "var":
        return _CONSTANTS.get(atom[1]) or at[atom[1]]
    if atom[0] == "fn":
        return _FUNCTIONS[atom[1]](evaluate(dict(atom[2]), at))
    return evaluate(dict(atom[1]), at) ** evaluate(dict(atom[2]), at)


# Away from the places where identities fail by accident, and from branch cuts.
_POINTS = (0.7390851332, 1.3241795721, 2.7135211987, 0.2718281846, 1.9021130326)


def identical(one: Value, other: Value) -> bool:
    """Whether two values are equal wherever they are tried: an identity test at five points.

    Values that are equal as polynomials over roots are the same `Value` already; this is for what is not worked out,
    such as sin(2x) and 2 sin(x) cos(x), or 1/(1+sqrt(2)) and sqrt(2)-1.
    """
    if one == other:
        return True
    if all(atom[0] in ("var", "prime") for value in (one, other) for monomial in value for atom, _ in monomial):
        return False  # both are worked out
    names = sorted(variables(one) | variables(other))
    for shift in range(len(_POINTS)):
        at = {name: _POINTS[(shift + k) % len(_POINTS)] * (1 + k / 7) for k, name in enumerate(names)}
        try:
            a, b = evaluate(one, at), evaluate(other, at)
        except (ArithmeticError, ValueError):
            return False
        if not abs(a - b) <= 1e-9 * max(abs(a), abs(b), 1e-3):
            return False
    return True
