"""Templates that ask for the date are told the one that was chosen, however they ask."""

from datetime import date

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from crome.model.dates import dated, default_template

DAY = date(2024, 2, 9)


def never(format):
    raise AssertionError("today's date was asked for")


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ strftime_now('%Y-%m-%d') }}", "2024-02-09"),
        ('{{ strftime_now( "%d %b %Y" )|upper }}', "09 FEB 2024"),
        ("{% set f = '%A, %d %B %Y' %}{{ strftime_now(f) }}", "Friday, 09 February 2024"),
        ("{{ strftime_now('%Y' ~ '/%m') }} {{ strftime_now('%j') }}", "2024/02 040"),
        ("{% if strftime_now is defined %}{{ strftime_now (f) }}{% endif %}", "09.02."),
        ("no date", "no date"),
    ],
)
def test_any_question_for_the_date_is_answered_with_the_chosen_day(template, text):
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["strftime_now"] = never
    assert environment.from_string(dated(template, DAY)).render(f="%d.%m.") == text


def test_of_several_templates_the_default_counts():
    assert default_template({"tool_use": "a", "default": "b"}) == "b"
    assert default_template({"tool_use": "a"}) == "a"
    assert default_template("c") == "c"
    assert default_template(None) is default_template({}) is None
