"""A simple check of LaTeX without a TeX installation: special characters are escaped, and braces, environments and
formulas are closed. And a real compilation, if there is a TeX."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest


def unescaped(text: str) -> list[str]:
    """Special characters that neither a backslash nor one of our commands protects."""
    text = re.sub(r"\\text[a-z]+\{\}|\\char34\{\}|\\S\{\}|\$\\?[a-z-]+\$", "", text)  # \textbackslash{}, $\to$
    text = re.sub(r"\\[{}$&#%_]|\{[\[\]*]\}", "", text)
    return re.findall(r"[\\{}$&#%_^~<>|\"\[\]*]", text)


def assert_closed(text: str) -> None:
    """Checks braces, environments, display and inline formulas, and the columns of tables."""
    assert text.isascii()
    text = "\n".join(re.sub(r"(?<!\\)%.*", "", line) for line in text.splitlines())
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", text):
        depth += 1 if brace == "{" else -1
        assert depth >= 0, "a brace closes that was not opened"
    assert depth == 0, "a brace stays open"
    stack = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert not stack
    assert re.findall(r"\\\[|\\\]", text)[::2] == [r"\["] * text.count(r"\[")
    assert text.count(r"\[") == text.count(r"\]")
    for line in text.splitlines():
        assert len(re.findall(r"(?<!\\)\$", line)) % 2 == 0, line
    for columns, body in re.findall(r"\\begin\{tabular\}\{(\S+)\}\n(.*?)\\end\{tabular\}", text, flags=re.DOTALL):
        count = len(re.sub(r"p\{[^}]*\}", "p", columns))
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {count}


def pages(text: str, folder: Path) -> int:
    """Runs pdflatex on a document that contains only `text` and the packages that its first line names. Returns its
    pages; fails at the first error, skips if there is no TeX."""
    if shutil.which("pdflatex") is None:
        pytest.skip("no pdflatex on this machine")
    packages = text.splitlines()[0].removeprefix("% ")
    (folder / "text.tex").write_text(text)
    (folder / "document.tex").write_text(
        f"\\documentclass{{article}}\n{packages}\n\\begin{{document}}\n\\input{{text}}\n\\end{{document}}\n"
    )
    command = ["pdflatex", "-no-shell-escape", "-halt-on-error", "-interaction=nonstopmode", "document"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    found = re.search(r"Output written on document\.pdf \((\d+) pages?", done.stdout)
    assert found is not None
    return int(found[1])
