"""Traces for people: the HTML viewer, the tree for the terminal, and reading traces back."""

from .files import TruncatedTrace, load, replay
from .page import html, save_html
from .terminal import tree

__all__ = ["TruncatedTrace", "html", "load", "replay", "save_html", "tree"]
