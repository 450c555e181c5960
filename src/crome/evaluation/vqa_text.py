"""The normal form of short answers in VQAv2's official `vqaEval.py`, its peculiarities included."""

import re
from collections.abc import Iterator

NUMBERS = {"none": "0"} | {
    word: str(n)
    for n, word in enumerate("zero one two three four five six seven eight nine ten".split())
}
ARTICLES = ("a", "an", "the")
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
MOST_STOPS = 32  # the official script passes a flag where the number of replacements goes
# Endings and the words before them; with one apostrophe forgotten they are put right.
CONTRACTIONS = {
    "n't": "ai are ca could did does do had has have is might must need ought sha should was "
    "were wo would",
    "'ve": "could might must not should they we what where who would you",
    "'d": "he how it someone something there they where who you",
    "'ll": "how it somebody someone something they what who why you",
    "'re": "there they what why you",
    "'s": "he how somebody someone that there what when where who why",
    "n't've": "could had might should would",
    "'d've": "he it she somebody someone something there they we who y'all you",
    "'am": "ma",
    "'clock": "o",
    "'all": "y",
    "'all'll": "y",
    "'at": "'ow's",
    "was": "'t",
}


def _one_apostrophe_less(word: str) -> Iterator[str]:
    return (word[:k] + word[k + 1 :] for k, character in enumerate(word) if character == "'")


CORRECTED = {
    wrong: word + ending
    for ending, words in CONTRACTIONS.items()
    for word in words.split()
    for wrong in _one_apostrophe_less(word + ending)
} | {"somebody'd": "somebodyd"}  # the official table has this one the wrong way round


def normalize(response: str) -> str:
    """Punctuation, then lower case, digits for number words, no articles, apostrophes put back."""
    text = without_punctuation(response.replace("\n", " ").replace("\t", " ").strip())
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CORRECTED.get(word, word) for word in words if word not in ARTICLES)


def without_punctuation(text: str) -> str:
    """Removes a mark that stands beside a space anywhere, or makes a space of it if none does.

    In a text with a comma between digits every mark is removed; a full stop goes unless a digit
    follows.
    """
    cleaned, commas = text, re.search(r"\d,\d", text)
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if beside_space or commas else " ")
    return re.sub(r"\.(?!\d)", "", cleaned, count=MOST_STOPS)
