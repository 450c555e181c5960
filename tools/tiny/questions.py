"""What can be asked about a scene, in many wordings, with the answers that follow from it.

Each question maker takes a scene and a random generator and returns (template, question, answer),
or None where the scene does not allow the question. Yes/no makers draw the answer first and then a
subject that makes it so.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TypeVar

import numpy as np

from tools.tiny import wordings
from tools.tiny.nouns import MASS_NOUNS, article, plural
from tools.tiny.pictures import Thing

Rng = np.random.Generator
T = TypeVar("T")
Made = tuple[str, str, str]
Fair = tuple[float, float]
Subject = tuple[str, str, str]  # noun phrase, its plural ("" if none), the noun alone

# A thing of the first category may be said to be of the second.
IS_ALSO = {"fruit": ("food",), "vegetable": ("food", "plant"), "plant": ("vegetable",),
           "food": ("fruit", "vegetable"), "face": ("person", "part of the body"),
           "person": ("face", "part of the body"), "toy": ("sports equipment", "animal", "person"),
           "sports equipment": ("toy",), "musical instrument": ("device", "tool"),
           "device": ("tool",), "tool": ("device",), "furniture": ("device",),
           "drink": ("food",),
           "": ("tool", "building", "device", "toy", "person", "clothing", "food", "vehicle",
                "furniture", "animal", "plant", "part of the body", "sports equipment",
                "face")}  # fmt: skip

# Groups in which a person may call one thing by another's name.
LOOKALIKES = [
    frozenset(group.split(", "))
    for group in " ".join(
        """
    bird, dove, eagle, duck, goose, swan, chicken, rooster, turkey, chick, parrot, flamingo,
    peacock, owl, penguin, dodo; car, taxi, police car, racing car, pickup truck; truck, pickup
    truck, fire engine, ambulance; ship, ferry, sailboat, speedboat, canoe, boat; train, tram,
    bus; mouse, rat, hamster, chipmunk; sheep, ram, goat, llama, poodle; cow, buffalo, bison;
    horse, donkey, unicorn, zebra; pig, boar; wolf, fox, dog, poodle; bear, polar bear, koala,
    panda, teddy bear; monkey, gorilla, orangutan; cat, lion, tiger, leopard; elephant, mammoth;
    crocodile, lizard, dinosaur, dragon; snake, worm; caterpillar, worm; octopus, squid,
    jellyfish; lobster, shrimp, scorpion, crab; motorcycle, scooter; fly, mosquito, bee, ant,
    beetle, cockroach, cricket, ladybug, spider; whale, dolphin, shark, fish, blowfish, seal;
    scooter, kick scooter, bicycle; rose, tulip, hibiscus, sunflower, cherry blossom, lotus,
    bouquet, flower; tree, pine tree, palm tree, Christmas tree; clover, maple leaf; lemon,
    lime, tangerine, mango, melon; apple, cherry, peach, tangerine, tomato; cookie, pie,
    pancake, bagel, doughnut; bread, baguette, croissant; house, hut, school, hotel, hospital,
    office building, bank, church, castle, factory, temple, stadium, mosque; tent, circus tent,
    hut; coat, lab coat, kimono, shirt; dress, kimono, swimsuit, bikini; purse, handbag,
    briefcase, suitcase, backpack; pair of glasses, pair of sunglasses; shoe, boot, hiking boot,
    sandal, high-heeled shoe, ice skate, roller skate; top hat, sun hat, baseball cap,
    graduation cap, helmet; hammer, axe, pickaxe; sword, knife; pencil, pen, crayon, paintbrush;
    camera, video camera, movie camera; laptop, computer, keyboard, television; mobile phone,
    telephone; watch, alarm clock, stopwatch, compass; violin, guitar, banjo; trumpet, trombone,
    saxophone, flute; basketball, baseball, volleyball, soccer ball, football, tennis ball,
    bowling ball; hand, arm, fist, thumb; heart, broken heart; mountain, volcano; planet, moon,
    comet, sun, star; gift, package; book, newspaper, scroll; gem, ring, crown; coin, medal;
    sofa, chair; balloon, lantern; leg, foot; snowman, snowflake; die, puzzle piece; glass of
    wine, cocktail, mug of beer, glass, cup of coffee, juice box, bubble tea;
    skateboard, sled, ski, ice skate; mouth, tongue; bacon, steak; bucket, basket, trash can;
    robot, alien; crystal ball, bowling ball; piano, keyboard; hot dog, sandwich, hamburger,
    taco, burrito; flashlight, candle, light bulb; airplane, helicopter, rocket; nest, basket;
    cupcake, birthday cake, ice cream; candy, lollipop; ribbon, medal
    """.split()
    ).split("; ")
]

PRETRAIN_MIX = {"caption": 30.0, "name": 30.0, "category": 12.0, "color": 28.0, "background": 6.0}
INSTRUCT_MIX = {
    "caption": 4.0, "name": 11.0, "category": 4.0, "color": 15.0, "background": 3.0,
    "exists-name": 5.0, "exists-color": 9.0, "exists-color-name": 5.0, "exists-category": 3.0,
    "absent-name": 5.0, "absent-color": 9.0, "absent-color-name": 4.0, "absent-category": 2.5,
    "is-color": 4.0, "is-not-color": 3.5, "is-name": 3.0, "is-not-name": 3.0,
    "count": 4.0, "position": 3.5, "size": 4.0, "odd": 3.0, "same": 3.0, "choice": 5.0,
}  # fmt: skip


@dataclass(frozen=True)
class Item:
    """A thing as drawn: `box` is left, top, right, bottom in pixels; emoji have no `color`.

    `fair` are the probabilities that a scene of this size has nothing like the thing, and nothing
    of its category. "Is there a …?" with the answer no can only be asked in such a scene, so the
    same question with the answer yes is asked that much less often, too.
    """

    thing: Thing
    style: str
    color: str | None
    box: tuple[int, int, int, int]
    fair: Fair = (1.0, 1.0)

    @property
    def name(self) -> str:
        """The noun, without the colour."""
        return self.thing.name

    @property
    def phrase(self) -> str:
        """Noun with its colour, where it has one."""
        return f"{self.color} {self.name}" if self.color else self.name

    @property
    def area(self) -> int:
        """Box area in square pixels."""
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])

    @property
    def centre(self) -> tuple[float, float]:
        """Middle of the box, x to the right and y down."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@dataclass(frozen=True)
class Scene:
    """What is in one image.

    `background` is its colour name, None when it has no clear one; `askable` are the colours that
    cannot be taken for the background. `ghosts` are things drawn the same way and left out.
    """

    items: tuple[Item, ...]
    background: str | None
    askable: tuple[str, ...]
    painted: bool
    layout: str = "free"
    ghosts: tuple[Thing, ...] = ()

    @property
    def absent(self) -> list[Thing]:
        """Things that nobody would see here, and that are not alike either."""
        clear: list[Thing] = []
        for thing in self.ghosts:
            if not clashes(thing, [*self.items, *clear]):
                clear.append(thing)
        return clear

    def unique(self) -> list[Item]:
        """Items whose name occurs once, so that "the dog" means one."""
        names = [item.name for item in self.items]
        return [item for item in self.items if names.count(item.name) == 1]


def is_not_a(thing: Thing, category: str) -> bool:
    """Whether nobody would say that the thing is of the category."""
    return thing.category != category and category not in IS_ALSO.get(thing.category, ())


def clashes(thing: Thing, others: Sequence[Thing | Item]) -> bool:
    """Whether a person could mistake the thing for one of the others, or call it by its name."""
    return any(_alike(thing, o.thing if isinstance(o, Item) else o) for o in others)


@cache
def _alike(a: Thing, b: Thing) -> bool:
    if a.name == b.name or (a.category == b.category and a.category in ("face", "person")):
        return True
    if {a.category, b.category} == {"face", "person"} or a.name in b.tags or b.name in a.tags:
        return True
    if a.name.split()[-1] == b.name.split()[-1]:
        return True
    return any(a.name in group and b.name in group for group in LOOKALIKES)


def _one(options: Sequence[T], rng: Rng) -> T:
    return options[int(rng.integers(len(options)))]


def _coin(rng: Rng) -> bool:
    return bool(rng.random() < 0.5)


def _say(template: str, answer: str, rng: Rng, **words: str) -> Made:
    """Fill a template; the template itself is returned to group rows by."""
    text = template.replace("{here}", _one(wordings.HERE, rng) if "{image}" not in template else "")
    words = {
        **words,
        "image": _one(wordings.IMAGE, rng),
        "color": "colour" if _coin(rng) else "color",
    }
    if "the" in words:
        words["The"] = words["the"].capitalize()
    text = re.sub(r"\{(\w+)\}", lambda m: words[m[1]], text)
    return template, text[0].upper() + text[1:], answer


def _yes_no(template: str, truth: bool, rng: Rng, **words: str) -> Made:
    return _say(template, "yes" if truth else "no", rng, **words)


def _color_word(color: str, rng: Rng) -> str:
    """The colour as a question spells it; answers always say gray."""
    return "grey" if color == "gray" and _coin(rng) else color


# ---- open questions -----------------------------------------------------------------------------


def caption(scene: Scene, rng: Rng) -> Made | None:
    """Short description, left to right, of up to three things."""
    if len(scene.items) > 3 or len(scene.unique()) < len(scene.items):
        return None
    parts = [article(i.phrase, i.name) for i in sorted(scene.items, key=lambda i: i.centre)]
    text = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
    template = _one(wordings.CAPTION, rng)
    if scene.background and "aption" not in template:  # captions are short, descriptions complete
        text += f" on {article(scene.background)} background"
    return _say(template, text, rng)


def name(scene: Scene, rng: Rng) -> Made | None:
    """What the only thing, or the only thing of its colour, is called."""
    if len(scene.items) == 1:
        return _say(_one(wordings.NAME_ONE, rng), scene.items[0].name, rng)
    colors = [i.color for i in scene.items]
    single = [i for i in scene.items if i.color and colors.count(i.color) == 1]
    if not single:
        return None
    item = _one(single, rng)
    return _say(
        _one(wordings.NAME_BY_COLOUR, rng), item.name, rng, c=_color_word(str(item.color), rng)
    )


def _the(scene: Scene, item: Item, rng: Rng) -> str:
    if len(scene.items) == 1 and _coin(rng):
        return _one(["the object", "the thing", "the object"], rng)
    return f"the {item.name}"


def category(scene: Scene, rng: Rng) -> Made | None:
    """What kind of thing it is."""
    options = [i for i in scene.unique() if i.thing.category]
    if not options:
        return None
    item = _one(options, rng)
    return _say(_one(wordings.CATEGORY, rng), item.thing.category, rng, the=_the(scene, item, rng))


def color(scene: Scene, rng: Rng) -> Made | None:
    """The colour of a thing."""
    options = [i for i in scene.unique() if i.color]
    if not options:
        return None
    item = _one(options, rng)
    if len(scene.items) == 1 and rng.random() < 0.35:
        return _say(_one(wordings.COLOUR_ONE, rng), str(item.color), rng)
    return _say(_one(wordings.COLOUR, rng), str(item.color), rng, the=_the(scene, item, rng))


def background(scene: Scene, rng: Rng) -> Made | None:
    """The colour of the background."""
    if scene.background is None:
        return None
    the = f"the {_one(scene.items, rng).name}" if len(scene.items) == 1 else "the objects"
    return _say(_one(wordings.BACKGROUND, rng), scene.background, rng, the=the)


def count(scene: Scene, rng: Rng) -> Made | None:
    """How many of a name, of a colour, or in all; sometimes none."""
    names = [i.name for i in scene.items if i.thing.countable]
    options: list[tuple[str, int]] = [(plural(n), names.count(n)) for n in sorted(set(names))]
    repeated = [o for o in options if o[1] > 1]
    if repeated and rng.random() < 0.8:
        options = repeated
    if scene.painted and _coin(rng):
        colors = [i.color for i in scene.items]
        options = [
            (f"{_color_word(c, rng)} {_one(['objects', 'things'], rng)}", colors.count(c))
            for c in sorted({str(i.color) for i in scene.items})
        ]
        most = max(n for _, n in options)
        options = [o for o in options if o[1] == most]
    if rng.random() < 0.25:
        options = [(_one(["objects", "things"], rng), len(scene.items))]
    if rng.random() < 0.12:
        options = [(plural(t.name), 0) for t in scene.absent if t.countable]
    if not options:
        return None
    what, number = _one(options, rng)
    if number == 1 and rng.random() < 0.85:  # ones would be most of all answers
        return None
    return _say(_one(wordings.COUNT, rng), str(number), rng, ns=what)


# ---- is there, is there not ---------------------------------------------------------------------


def _noun(what: str, rng: Rng) -> str:
    return f"{_color_word(what, rng)} {_one(['object', 'thing', 'object'], rng)}"


def _about_name(scene: Scene, present: bool, rng: Rng) -> Subject | None:
    item, thing = _one(scene.items, rng), _one(scene.ghosts, rng)
    if present and rng.random() < item.fair[0]:
        thing = item.thing
    elif present or clashes(thing, scene.items):
        return None
    return thing.name, plural(thing.name) if thing.countable else "", thing.name


def _about_color(scene: Scene, present: bool, rng: Rng) -> Subject | None:
    found = _colors(scene, present)
    if not found:
        return None
    noun = _noun(_one(found, rng), rng)
    return noun, noun + "s", noun


def _colors(scene: Scene, present: bool) -> list[str]:
    seen = {i.color for i in scene.items}
    return [c for c in scene.askable if (c in seen) == present] if scene.painted else []


def _about_color_name(scene: Scene, present: bool, rng: Rng) -> Subject | None:
    """Colour and name together; half of the wrong ones have one of the two right."""
    if not scene.painted:
        return None
    item, ghost = _one(scene.items, rng), _one(scene.ghosts, rng)
    thing, shade = item.thing, str(item.color)
    if present and rng.random() < 0.75 and rng.random() > item.fair[0]:
        return None  # three in four of the wrong ones name a thing that is not here
    if not present:
        pairs = {(i.name, i.color) for i in scene.items}
        how = rng.random()
        others = [c for c in scene.askable if (thing.name, c) not in pairs]
        if how < 0.25 and others:  # right thing, wrong colour: another thing's colour if possible
            swapped = [c for c in others if c in {i.color for i in scene.items}]
            shade = _one(swapped if swapped and _coin(rng) else others, rng)
        elif how < 0.5:  # right colour, wrong thing
            thing = ghost
        else:
            thing, shade = ghost, _one(_colors(scene, False), rng)
        if thing is ghost and clashes(ghost, scene.items):
            return None
    word = _color_word(shade, rng)
    many = f"{word} {plural(thing.name)}" if thing.countable else ""
    return f"{word} {thing.name}", many, thing.name


def _about_category(scene: Scene, present: bool, rng: Rng) -> Subject | None:
    item, kind = _one(scene.items, rng), _one(scene.ghosts, rng).category
    if present and rng.random() < item.fair[1]:
        kind = item.thing.category
    elif present or not all(is_not_a(i.thing, kind) for i in scene.items):
        return None
    if not kind:
        return None
    return kind, plural(kind) if kind not in MASS_NOUNS else "", kind


_About = Callable[[Scene, bool, Rng], Subject | None]


def exists(scene: Scene, rng: Rng, about: _About, negated: bool = False) -> Made | None:
    """Whether something is there, or, negated, whether it is not."""
    truth = _coin(rng)
    templates = list(wordings.ABSENT if negated else wordings.EXISTS)
    if about is _about_color and _coin(rng):
        colors = _colors(scene, truth != negated)
        if not colors:
            return None
        template = _one(wordings.ABSENT_COLOUR if negated else wordings.EXISTS_COLOUR, rng)
        return _yes_no(template, truth, rng, c=_color_word(_one(colors, rng), rng))
    subject = about(scene, truth != negated, rng)
    if subject is None:
        return None
    phrase, many, noun = subject
    template = _one(templates, rng)
    if "{ns}" in template and not many:
        return None
    return _yes_no(template, truth, rng, a=article(phrase, noun), n=phrase, ns=many)


# ---- is it, is it not ---------------------------------------------------------------------------


def is_color(scene: Scene, rng: Rng, negated: bool = False) -> Made | None:
    """Whether a thing has a colour, or, negated, whether it has another."""
    options = [i for i in scene.unique() if i.color]
    if not options:
        return None
    truth, item = _coin(rng), _one(options, rng)
    shade = str(item.color)
    if truth == negated:
        others = [c for c in scene.askable if c != item.color]
        swapped = [c for c in others if c in {i.color for i in scene.items}]
        shade = _one(swapped if swapped and _coin(rng) else others, rng)
    template = _one(wordings.IS_NOT_COLOUR if negated else wordings.IS_COLOUR, rng)
    return _yes_no(template, truth, rng, the=_the(scene, item, rng), c=_color_word(shade, rng))


def is_name(scene: Scene, rng: Rng, negated: bool = False) -> Made | None:
    """Whether the only thing is what it is called, in name, colour with name, or category."""
    if len(scene.items) != 1:
        return None
    truth = _coin(rng)
    abouts: list[_About] = [_about_name, _about_name, _about_category]
    if scene.painted:
        abouts += [_about_color, _about_color_name]
    subject = _one(abouts, rng)(scene, truth != negated, rng)
    if subject is None:
        return None
    template = _one(wordings.IS_NOT_NAME if negated else wordings.IS_NAME, rng)
    return _yes_no(template, truth, rng, a=article(subject[0], subject[2]))


# ---- relations ----------------------------------------------------------------------------------

_OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
_WORDS = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}


def _relation(first: Item, second: Item, axis: int) -> str | None:
    """How the first lies to the second along x (0) or y (1); None when it is hard to say."""
    gap = first.centre[axis] - second.centre[axis]
    reach = (first.box[axis + 2] - first.box[axis] + second.box[axis + 2] - second.box[axis]) / 4
    if abs(gap) < max(24.0, reach):
        return None
    return (("left", "right"), ("above", "below"))[axis][int(gap > 0)]


def _pair(scene: Scene, rng: Rng) -> tuple[Item, Item] | None:
    unique = scene.unique()
    if len(unique) < 2:
        return None
    first, second = rng.permutation(len(unique))[:2]
    return unique[first], unique[second]


def position(scene: Scene, rng: Rng) -> Made | None:
    """Left, right, above or below another thing."""
    pair = _pair(scene, rng)
    relation = _relation(*pair, int(rng.integers(2))) if pair else None
    if pair is None or relation is None:
        return None
    words = {"the": f"the {pair[0].name}", "other": f"the {pair[1].name}"}
    if rng.random() < 0.3:
        x, y = (_WORDS[r] for r in rng.permutation([relation, _OPPOSITE[relation]]))
        x = x.removesuffix(" of")
        return _say(_one(wordings.WHERE, rng), relation, rng, x=x, y=y, **words)
    truth = _coin(rng)
    asked = relation if truth else _OPPOSITE[relation]
    return _yes_no(_one(wordings.SIDES[asked], rng), truth, rng, **words)


def size(scene: Scene, rng: Rng) -> Made | None:
    """Larger or smaller, where the drawn areas leave no doubt."""
    pair = _pair(scene, rng)
    if pair is None:
        return None
    first, second = pair
    ratio = first.area / second.area
    if 0.55 < ratio < 1.8:
        return None
    the, other = f"the {first.name}", f"the {second.name}"
    larger = _coin(rng)
    truth = (ratio > 1) == larger
    if rng.random() < 0.4:
        templates = wordings.WHICH_LARGER if larger else wordings.WHICH_SMALLER
        return _say(
            _one(templates, rng), (first if truth else second).name, rng, the=the, other=other
        )
    return _yes_no(
        _one(wordings.LARGER if larger else wordings.SMALLER, rng), truth, rng, the=the, other=other
    )


def _common_color(scene: Scene) -> str:
    colors = [str(i.color) for i in scene.items]
    return max(sorted(set(colors)), key=colors.count)


def odd(scene: Scene, rng: Rng) -> Made | None:
    """The one thing of another colour."""
    if scene.layout != "odd":
        return None
    common = _common_color(scene)
    (item,) = (i for i in scene.items if i.color != common)
    return _say(_one(wordings.ODD, rng), item.name, rng, c=_color_word(common, rng))


def same(scene: Scene, rng: Rng) -> Made | None:
    """Whether all have one colour; the layouts that allow the question are equally frequent."""
    if scene.layout not in ("same", "odd"):
        return None
    truth = scene.layout == "same"
    return _yes_no(_one(wordings.SAME, rng), truth, rng, c=_color_word(_common_color(scene), rng))


def choice(scene: Scene, rng: Rng) -> Made | None:
    """One of two or three options, in random order."""
    if scene.painted and _coin(rng):
        options = [i for i in scene.unique() if i.color]
        if not options:
            return None
        item = _one(options, rng)
        words = [
            str(item.color),
            *rng.permutation([c for c in scene.askable if c != item.color])[:2],
        ]
        template, answer = _one(wordings.CHOOSE_COLOUR, rng), str(item.color)
        the = {"the": _the(scene, item, rng)}
    else:
        absent = scene.absent
        if len(scene.items) != 1 or len(absent) < 2:
            return None
        template, answer, the = _one(wordings.CHOOSE_NAME, rng), scene.items[0].name, {}
        words = [answer, *(t.name for t in absent[:2])]
    if len(words) < 3:
        return None
    words = words if "{z}" in template else words[:2]
    x, y, z = [*rng.permutation(words), ""][:3]
    more = {"ax": article(x), "ay": article(y)}
    return _say(template, answer, rng, x=str(x), y=str(y), z=str(z), **more, **the)


QUESTIONS: dict[str, Callable[[Scene, Rng], Made | None]] = {
    "caption": caption, "name": name, "category": category, "color": color,
    "background": background,
    "exists-name": partial(exists, about=_about_name),
    "exists-color": partial(exists, about=_about_color),
    "exists-color-name": partial(exists, about=_about_color_name),
    "exists-category": partial(exists, about=_about_category),
    "absent-name": partial(exists, about=_about_name, negated=True),
    "absent-color": partial(exists, about=_about_color, negated=True),
    "absent-color-name": partial(exists, about=_about_color_name, negated=True),
    "absent-category": partial(exists, about=_about_category, negated=True),
    "is-color": is_color, "is-not-color": partial(is_color, negated=True),
    "is-name": is_name, "is-not-name": partial(is_name, negated=True),
    "count": count, "position": position, "size": size, "odd": odd, "same": same, "choice": choice,
}  # fmt: skip
