"""What is picturable, by category, and the words for it: articles, plurals, names of emoji."""

import re
from collections.abc import Iterator

# `name` is an emoji's own label; `name<label|label` gives other
# labels that show the same thing to a person. Plain geometric figures, letters, digits, national
# flags and skin-tone variants are left out on purpose.
NOUNS = {
    "animal": """
        monkey<monkey|monkey face, gorilla, orangutan, dog<dog|dog face|guide dog, poodle, wolf,
        fox, raccoon, cat<cat|cat face|black cat, lion, tiger<tiger|tiger face, leopard,
        horse<horse|horse face, moose, donkey, unicorn, zebra, deer, bison, cow<cow|cow face,
        buffalo<water buffalo, pig<pig|pig face, boar, sheep<ewe, ram, goat, camel<camel|two-hump
        camel, llama, giraffe, elephant, mammoth, rhinoceros, hippopotamus, mouse<mouse|mouse
        face, rat, hamster, rabbit<rabbit|rabbit face, chipmunk, beaver, hedgehog, bat, bear,
        polar bear, koala, panda, sloth, otter, skunk, kangaroo, badger, turkey, chicken, rooster,
        chick<baby chick|front-facing baby chick|hatching chick, bird, penguin, dove, eagle, duck,
        swan, owl, dodo, flamingo, peacock, parrot, goose, frog, crocodile, turtle, lizard, snake,
        dragon<dragon|dragon face, dinosaur<sauropod|T-Rex, whale<whale|spouting whale, dolphin,
        seal, fish<fish|tropical fish, blowfish, shark, octopus, jellyfish, crab, lobster, shrimp,
        squid, oyster, snail, butterfly, caterpillar<bug, ant, bee<honeybee, beetle, ladybug<lady
        beetle, cricket, cockroach, spider, scorpion, mosquito, fly, worm
    """,
    "plant": """
        bouquet, cherry blossom, lotus, rose, hibiscus, sunflower, tulip, seedling, potted plant,
        pine tree<evergreen tree, tree<deciduous tree, palm tree, cactus, clover<shamrock|four
        leaf clover, maple leaf, mushroom, Christmas tree
    """,
    "fruit": """
        bunch of grapes<grapes, melon, watermelon, tangerine, lemon, lime, banana, pineapple,
        mango, apple<red apple|green apple, pear, peach, cherry<cherries, strawberry, kiwi<kiwi
        fruit, coconut
    """,
    "vegetable": """
        tomato, avocado, eggplant, potato, carrot, corn<ear of corn, chili<hot pepper, bell
        pepper, cucumber, broccoli, garlic, onion, lettuce<leafy green, peanut<peanuts, pea pod
    """,
    "food": """
        bread, croissant, baguette<baguette bread, pretzel, bagel, pancake<pancakes, waffle,
        cheese<cheese wedge, chicken leg<poultry leg, steak<cut of meat, bacon, hamburger, pizza,
        hot dog, sandwich, taco, burrito, fried egg<cooking, salad<green salad, popcorn, butter,
        rice ball, spaghetti, sushi, dumpling, fortune cookie, ice cream<ice cream|soft ice cream,
        doughnut, cookie, birthday cake, cupcake, pie, chocolate bar, candy, lollipop
    """,
    "drink": """
        baby bottle, glass<glass of milk, cup of coffee<hot beverage, teapot,
        bottle of champagne<bottle
        with popping cork, glass of wine<wine glass, cocktail<cocktail glass, mug of beer<beer
        mug, bubble tea, juice box<beverage box
    """,
    "building": """
        stadium, temple<classical building, hut, house<house|house with garden, office building,
        hospital, bank, hotel, school, factory, castle, church, mosque, tent, Statue of Liberty,
        circus tent
    """,
    "vehicle": """
        train<locomotive|high-speed train|bullet train|train|metro, tram<tram|tram car,
        bus<bus|oncoming bus, ambulance, fire engine, police car<police car|oncoming police car,
        taxi<taxi|oncoming taxi, car<automobile|oncoming automobile|sport utility vehicle, pickup
        truck, truck<delivery truck|articulated lorry, tractor, racing car, motorcycle,
        scooter<motor scooter, bicycle, kick scooter, sailboat, canoe, speedboat, ferry,
        ship<ship|passenger ship, airplane<airplane|small airplane, helicopter, cable car<aerial
        tramway, rocket, flying saucer
    """,
    "clothing": """
        pair of glasses<glasses, pair of sunglasses<sunglasses, lab coat, tie<necktie,
        shirt<t-shirt, pair of jeans<jeans, scarf, pair of gloves<gloves, coat, pair of
        socks<socks, dress, kimono, swimsuit<one-piece swimsuit, pair of shorts<shorts, bikini,
        sandal<thong sandal|woman’s sandal, shoe<man’s shoe|running shoe, hiking boot, high-heeled
        shoe, boot<woman’s boot, crown, sun hat<woman’s hat, top hat, graduation cap, baseball
        cap<billed cap, helmet<military helmet|rescue worker’s helmet
    """,
    "tool": """
        hammer, axe, pickaxe<pick, saw<carpentry saw, wrench, screwdriver, nut and bolt, gear,
        clamp, hook, toolbox, magnet, ladder, shovel, pair of scissors<scissors, paintbrush,
        pencil, pen, crayon, broom, safety pin, paper clip<paperclip, pushpin, knife<kitchen
        knife, spoon, toothbrush, plunger, bucket, razor
    """,
    "musical instrument": """
        saxophone, trumpet, trombone, accordion, guitar, violin, banjo, drum, flute, harp,
        piano<musical keyboard, maraca<maracas
    """,
    "device": """
        camera<camera|camera with flash, video camera, movie camera, television, radio, mobile
        phone, telephone, laptop, computer<desktop computer, printer, keyboard, computer mouse,
        joystick, microphone<microphone|studio microphone, microscope, telescope, watch, alarm
        clock, stopwatch, light bulb, flashlight, calculator, battery, satellite antenna,
        headphone
    """,
    "furniture": """
        bed, sofa<couch and lamp, chair, toilet, bathtub, mirror, file cabinet
    """,
    "toy": """
        kite, yo-yo, teddy bear, puzzle piece, balloon, piñata, nesting doll<nesting dolls,
        skateboard, sled, water pistol, die<game die
    """,
    "sports equipment": """
        soccer ball, baseball, basketball, volleyball, football<american football, tennis
        ball<tennis, boxing glove, bowling ball<bowling, hockey stick<ice hockey|field hockey,
        badminton racket<badminton, fishing rod<fishing pole, ice skate, roller skate, ski<skis,
        trophy
    """,
    "person": """
        baby, boy, girl, man, woman, old man, old woman, police officer, firefighter, astronaut,
        farmer, cook, pilot, judge, construction worker, prince, princess, Santa Claus, superhero,
        mage, fairy, vampire, mermaid, elf, zombie, ninja, guard, detective, student, teacher,
        singer, artist, scientist, mechanic
    """,
    "face": """
        smiling face<grinning face|smiling face with smiling eyes|beaming face with smiling
        eyes|grinning face with big eyes, crying face<crying face|loudly crying face, angry
        face<angry face|enraged face, sleeping face, winking face, kissing face<face blowing a
        kiss|kissing face, nerd face, clown face, face with a mask<face with medical mask,
        surprised face<astonished face|face with open mouth
    """,
    "part of the body": """
        thumb<thumbs up|thumbs down, fist<raised fist|oncoming fist, hand<raised hand|hand with
        fingers splayed, arm<flexed biceps, leg, foot, ear, nose, brain, tooth, bone, eye, tongue,
        mouth<mouth|kiss mark, pair of lungs<lungs
    """,
    "": """
        door, window,
        sun<sun|sun with face, moon<crescent moon|waning crescent moon, star<star|glowing star,
        planet<ringed planet, comet, cloud, rainbow, snowflake, snowman<snowman|snowman without
        snow, umbrella<umbrella|umbrella with rain drops|closed umbrella, tornado, fire, drop of
        water<droplet, lightning bolt<high voltage, volcano, mountain<mountain|snow-capped
        mountain, wave<water wave, heart<red heart|pink heart|blue heart|green heart|purple heart,
        broken heart, skull, ghost, alien, robot, pile of poo, goblin, key<key|old key,
        lock<locked, bell, anchor, book<closed book|green book|blue book|orange book, newspaper,
        scroll, envelope, package, mailbox<closed mailbox with raised flag, money bag, coin,
        credit card, candle, lantern<red paper lantern, gift<wrapped gift, ribbon, crystal ball,
        magic wand, bomb, sword<dagger, shield, boomerang, bow and arrow, coffin, headstone,
        syringe, pill, stethoscope, test tube, magnifying glass<magnifying glass tilted
        left|magnifying glass tilted right, backpack, handbag, purse, briefcase, suitcase<luggage,
        basket, shopping cart, traffic light<vertical traffic light|horizontal traffic light, stop
        sign, parachute, hourglass<hourglass done|hourglass not done, compass, world map,
        flag<triangular flag, fountain, ferris wheel, roller coaster, wheel, fire extinguisher,
        soap, sponge, gem<gem stone, lipstick, feather, nest<nest with eggs|empty nest,
        shell<spiral shell, coral, spider web, egg, jar, fan<folding hand fan, thermometer, speech
        balloon, megaphone, musical note, clipboard, calendar, trash can<wastebasket,
        jack-o-lantern, firecracker, brick, log<wood, rock, medal<sports medal|military medal,
        chess pawn, ticket, palette<artist palette
    """,
}

# Names that take "some" and have no plural.
MASS_NOUNS = frozenset(
    "bread,cheese,bacon,butter,popcorn,spaghetti,sushi,corn,garlic,broccoli,lettuce,coral,fire,soap,"
    "bubble tea,salad,food,clothing,furniture,sports equipment".split(",")
)

IRREGULAR_PLURALS = {
    "man": "men", "woman": "women", "old man": "old men", "old woman": "old women", "foot": "feet",
    "tooth": "teeth", "mouse": "mice", "computer mouse": "computer mice", "goose": "geese",
    "fish": "fish", "blowfish": "blowfish", "jellyfish": "jellyfish", "sheep": "sheep",
    "elf": "elves",
    "shrimp": "shrimp", "squid": "squid", "deer": "deer", "bison": "bison", "moose": "moose",
    "die": "dice", "knife": "knives", "maple leaf": "maple leaves", "snowman": "snowmen",
    "scarf": "scarves", "wolf": "wolves", "octopus": "octopuses",
    "part of the body": "parts of the body", "Statue of Liberty": "Statues of Liberty",
}  # fmt: skip


def nouns() -> Iterator[tuple[str, str, list[str]]]:
    """Category, name and emoji labels of every entry of `NOUNS`."""
    for category, entries in NOUNS.items():
        for entry in re.sub(r"\s+", " ", entries).split(","):
            name, _, labels = entry.strip().partition("<")
            yield category, name, [s.strip() for s in labels.split("|")] if labels else [name]


def plural(name: str) -> str:
    """The plural of a noun of this file, such as `pairs of jeans`."""
    if name in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[name]
    head, of, rest = name.partition(" of ")
    if re.search(r"(s|x|z|ch|sh)$", head):
        head += "es"
    elif re.search(r"[^aeiou]y$", head):
        head = head[:-1] + "ies"
    else:
        head += "s"
    return head + of + rest


def article(phrase: str, noun: str = "") -> str:
    """The phrase with `a`, `an` or `some` before it.

    Args:
        phrase: A noun with or without adjectives, such as `red apple`.
        noun: The noun alone, to tell mass nouns when the phrase has adjectives.
    """
    noun = noun or phrase
    if noun in MASS_NOUNS:
        return f"some {phrase}"
    an = phrase[0].lower() in "aeiou" and not phrase.startswith(("uni", "eu", "one"))
    return f"{'an' if an else 'a'} {phrase}"
