"""Chat templates that ask for today's date, told that of another day."""

import re
from datetime import date
from typing import Any

TODAY = re.compile(r"""\bstrftime_now\(\s*(?P<quote>["'])(?P<format>[^"']*)(?P=quote)\s*\)""")
"""Where a template asks for the date. transformers passes no function that would tell another."""
COMPUTED = re.compile(r"\bstrftime_now\s*\(")
"""The same with a format that the template works out."""
DIRECTIVES = ("-d", "-m", *"YmdeBbAayHMSIpj")
"""What a worked-out format may ask for."""


def default_template(given: Any) -> str | None:
    """The template that is used where nothing is said, of one or of several by name."""
    if isinstance(given, dict):
        given = given.get("default") or next(iter(given.values()), None)
    return str(given) if given else None


def written(template: str, day: date) -> str:
    """A template whose questions for a date in a format of its own are answered."""
    return TODAY.sub(lambda found: repr(day.strftime(found["format"])), template)


def dated(template: str, day: date) -> str:
    """A template that writes one day where it would write today."""
    template = written(template, day)
    if not COMPUTED.search(template):
        return template
    steps = "".join(f"|replace('%{d}',{day.strftime(f'%{d}')!r})" for d in DIRECTIVES)
    macro = "{%- macro strftime_now(format) -%}{{ format" + steps + " }}{%- endmacro %}"
    return macro + template
