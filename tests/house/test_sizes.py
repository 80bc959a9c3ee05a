"""Files and functions stay short enough to be read in one go."""

from __future__ import annotations

from functools import cache

from tests.house.source import Source, code_lines, functions, python_sources, report

FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 60

EXCEPTIONS: dict[str, int] = {}
"""
Larger ones, as 'path' or 'path:function' with their size. This list may only shrink: an entry goes
when its thing has become short, and its number follows its thing down.
"""


@cache
def sizes_of(source: Source) -> dict[str, int]:
    """The code lines of *source* and of each function in it: no blank lines, comments or docstrings."""
    lines = code_lines(source.text)
    sizes = {source.path: len(lines)}
    for function in functions(source.tree):
        span = range(function.lineno, (function.end_lineno or function.lineno) + 1)
        size = sum(line in lines for line in span)
        key = f"{source.path}:{function.name}"
        sizes[key] = max(size, sizes.get(key, 0))
    return sizes


def size_max_of(key: str) -> int:
    """The largest size that *key* may have."""
    return EXCEPTIONS.get(key, FUNCTION_LINES_MAX if ":" in key else FILE_LINES_MAX)


def test_sizes__everything_is_short() -> None:
    """A file has one purpose, a function one thought."""
    report(
        [
            f"{key}: {size} lines of code, at most {size_max_of(key)}: split it where its purposes part"
            for source in python_sources()
            for key, size in sizes_of(source).items()
            if size > size_max_of(key)
        ]
    )


def test_sizes__exceptions_only_shrink() -> None:
    """An exception states the exact size of something that exists and is still too large."""
    sizes = {key: size for source in python_sources() for key, size in sizes_of(source).items()}
    limits = {key: FUNCTION_LINES_MAX if ":" in key else FILE_LINES_MAX for key in EXCEPTIONS}
    assert {
        key: size for key, size in EXCEPTIONS.items() if sizes.get(key) != size or size <= limits[key]
    } == {}


def test_sizes__blank_lines_comments_and_docstrings_are_free() -> None:
    """The count itself sees code alone, so that nobody saves on explanations."""
    text = (
        '"""Doc."""\n\n# why\n\ndef f():\n    """\n    Doc.\n    """\n    # why\n    return """\n    x"""\n'
    )
    assert sizes_of(Source("a.py", text)) == {"a.py": 3, "a.py:f": 3}
