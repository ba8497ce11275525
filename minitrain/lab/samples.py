"""What a language model writes, and whether Python would take it."""

import warnings
from typing import Any

import torch

from minitrain.data.text import decode, encode


def sample_text(
    model: Any,
    prompt: str,
    max_new_tokens: int,
    temperature: float = 0.8,
    top_k: int | None = None,
    rows: int = 1,
    seed: int = 0,
) -> list[str]:
    """Texts that begin with the prompt, drawn with a generator of their own."""
    device = next(model.parameters()).device
    start = encode(prompt).to(device).expand(rows, -1)
    generator = torch.Generator(device).manual_seed(seed)
    return [decode(row) for row in model.generate(start, max_new_tokens, temperature, top_k, generator)]


def printable(text: str) -> str:
    """The text with what a terminal might obey replaced by a dot."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{MIDDLE DOT}" for c in text)


def python_accepts(line: str) -> bool:
    """Whether one line compiles, given a function and a loop around it and, where it opens a block, a body."""
    around = "async def f():\n while 1:\n  "
    forms = (line, f"{line} pass", f"if 1: pass\n  {line} pass", f"try: pass\n  {line} pass")
    for form in forms if line.endswith(":") else forms[:1]:
        try:
            with warnings.catch_warnings(action="ignore"):
                compile(around + form, "<line>", "exec")
        except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
            continue
        return True
    return False
