"""A prompt is the same on every day, and for every answer that is expected."""

import datetime
import json

import pytest

from crome.errors import InputError
from crome.model.processing import CromeProcessor

DATED = (
    "{% set today = strftime_now('%d %B %Y') %}Today is {{ today }}."
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
THINKING = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)
ALWAYS = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)


def prompt(processor, template: str) -> str:
    processor.tokenizer.chat_template = template
    return processor.render("Why?", has_image=False)


def test_a_template_is_given_the_day_of_the_checkpoint(build):
    assert prompt(build().processor, DATED).startswith("Today is 01 January 2026.")
    several = {"default": DATED, "tool_use": "x"}
    assert prompt(build().processor, several).startswith("Today is 01 January 2026.")
    pair = build(prompt_date="2024-02-29")
    assert prompt(pair.processor, DATED).startswith("Today is 29 February 2024.")
    now = datetime.date.today().strftime("%d %B %Y")
    assert prompt(build(prompt_date=None).processor, DATED).startswith(f"Today is {now}.")
    with pytest.raises(InputError, match="prompt_date is 'today'; expected a day as 2026-01-31"):
        build(prompt_date="today")


@pytest.mark.parametrize("template", [THINKING, ALWAYS])
def test_a_new_bridge_learns_and_gives_bare_answers(build, template):
    pair = build()
    assert pair.model.config.enable_thinking is False
    text = prompt(pair.processor, template)
    assert text.endswith("<|assistant|><think>\n\n</think>\n\n")
    prompted = pair.processor(text="Why?", answers=["so"])
    asked = pair.processor(text="Why?")["input_ids"][0].tolist()
    assert prompted["input_ids"][0].tolist()[: len(asked)] == asked  # one prompt for both


def test_a_switch_stays_with_the_checkpoint(build, tmp_path):
    pair = build(enable_thinking=True, prompt_date="2025-05-05")
    pair.model.save_pretrained(tmp_path)
    pair.processor.save_pretrained(tmp_path)
    again = CromeProcessor.from_pretrained(tmp_path)
    assert (again.enable_thinking, again.prompt_date) == (True, "2025-05-05")
    config = json.loads((tmp_path / "config.json").read_text())
    del config["enable_thinking"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    older = CromeProcessor.from_pretrained(tmp_path)
    assert older.enable_thinking is None  # as its template has it, and as it was trained


def test_a_row_may_have_a_system_message_of_its_own(build):
    processor = build(system_prompt="Be kind.").processor
    both = processor(text=["Why?", "Why?"], systems=[None, "Be brief."])
    texts = processor.tokenizer.batch_decode(both["input_ids"])
    assert "Be kind." in texts[0]
    assert "Be brief." in texts[1]
    assert "Be kind." not in texts[1]
