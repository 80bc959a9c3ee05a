"""Why request paths are refused. Not compiled: mypyc cannot compile this enum."""

from __future__ import annotations

from enum import Enum


class PathFault(Enum):
    """
    Why a path is refused.

    `text` completes the sentence 'the path ...', `remedy` says what to send instead.
    """

    TOO_LONG = ("is too long", "Put long values into the query or the body.")
    NOT_ABSOLUTE = ("does not start with '/'", "Send a path that starts with '/'.")
    NOT_ASCII = (
        "holds a character that is not ASCII",
        "Percent-encode its UTF-8 bytes: %C3%A9 for e with an acute accent.",
    )
    ILLEGAL_CHARACTER = (
        "holds a character that must be percent-encoded or is not allowed at all",
        "Percent-encode it, such as %20 for a space; control characters are never allowed.",
    )
    ILLEGAL_QUERY = (
        "is followed by a query that holds a character that must be percent-encoded",
        "Percent-encode spaces, control characters and what is not ASCII in the query.",
    )
    FRAGMENT = ("holds a '#'", "Leave out the fragment, from '#' on.")
    BACKSLASH = ("holds a backslash", "Separate segments with '/'.")
    PATH_PARAMETER = ("holds a ';', plain or as %3B", "Send it without ';' and what follows it.")
    EMPTY_SEGMENT = ("holds '//'", "Send one '/' between segments.")
    DOT_SEGMENT = ("holds a '.' or '..' segment", "Send the path that it leads to.")
    MALFORMED_ESCAPE = (
        "holds a '%' that is not followed by two hex digits",
        "Write each escape as '%' and two of 0-9 and A-F.",
    )
    ENCODED_SEPARATOR = (
        "holds an encoded '/', '\\', '.' or '%' (%2F, %5C, %2E, %25)",
        "Such characters cannot be part of a segment: '.' is sent as it is, the others not at all.",
    )
    ENCODED_CONTROL = ("holds an encoded control character (%00 to %1F, %7F)", "Send it without.")
    NOT_UTF8 = ("holds escapes that are not UTF-8", "Encode text as UTF-8 before you percent-encode it.")
    AMBIGUOUS_ROUTE = (
        "leads to different routes, with different scopes, depending on how it is read",
        "Send it as the API's documentation writes it: the same upper and lower case, plain characters not"
        " percent-encoded, no '/' at the end.",
    )

    def __init__(self, text: str, remedy: str) -> None:
        """Spread the row over named attributes."""
        self.text = text
        self.remedy = remedy


class PathRefusedError(ValueError):
    """A path is refused because of `fault`. The message never quotes the path."""

    def __init__(self, fault: PathFault, chars_max: int = 0) -> None:
        """Name *fault* in the message; *chars_max* is the limit if the path is too long."""
        bound = f": at most {chars_max} characters are accepted, without the query" if chars_max else ""
        super().__init__(f"the path {fault.text}{bound}")
        self.fault = fault

    @property
    def advice(self) -> str:
        """What is wrong and what to do, in sentences."""
        return f"The{str(self)[3:]}. {self.fault.remedy}"


class AmbiguousRouteError(PathRefusedError):
    """Interpretations of the path lead to different routes, such as `targets`, which callers do not see."""

    def __init__(self, *targets: object) -> None:
        """Store two different *targets*."""
        super().__init__(PathFault.AMBIGUOUS_ROUTE)
        self.targets = targets
