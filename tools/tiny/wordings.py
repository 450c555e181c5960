"""In how many words the same can be asked: the forms of `tools.tiny.questions`.

{a} with article, {n} bare, {ns} plural, {the} definite, {c} a colour, {here} an optional place,
{image} image/picture/photo/scene, {color} color/colour.
"""

CAPTION = [
    "Describe the {image}.",
    "What does the {image} show?",
    "Give a short caption.",
    "Write a caption for this {image}.",
    "What is in the {image}?",
    "What can be seen{here}?",
    "Caption this {image}.",
    "Describe what you see{here}.",
    "What do you see{here}?",
]
NAME_ONE = [
    "What is this?",
    "What object is shown{here}?",
    "What is shown in the {image}?",
    "What thing is in the {image}?",
    "Which object is this?",
    "Name the object{here}.",
    "What is the object{here}?",
    "What is the thing in the {image}?",
    "What does this {image} depict?",
    "Which thing is shown{here}?",
    "What is the name of the object{here}?",
    "Identify the object{here}.",
]
NAME_BY_COLOUR = [
    "What is the {c} object{here}?",
    "Which object is {c}?",
    "What is {c}{here}?",
    "Which thing{here} is {c}?",
    "Name the {c} thing{here}.",
    "What thing is {c}{here}?",
    "What {c} object is shown{here}?",
]
CATEGORY = [
    "What kind of thing is {the}?",
    "What sort of thing is {the}{here}?",
    "What type of object is {the}?",
    "Which category does {the} belong to?",
    "What category is {the} in?",
    "What kind of object is {the}{here}?",
]
COLOUR = [
    "What {color} is {the}?",
    "Which {color} is {the}?",
    "What is the {color} of {the}?",
    "What {color} is {the}{here}?",
    "Which {color} does {the} have?",
    "Tell me the {color} of {the}.",
    "What {color} does {the} have{here}?",
    "{The} is what {color}?",
    "Name the {color} of {the}{here}.",
]
COLOUR_ONE = [
    "Which {color} is it?",
    "What {color} is it?",
    "What {color} is shown{here}?",
    "Which {color} is this?",
    "What {color} is this?",
    "What is its {color}?",
    "What {color} is the object in the {image}?",
    "What {color} can be seen{here}?",
]
BACKGROUND = [
    "What {color} is the background?",
    "Which {color} is the background{here}?",
    "What is the {color} of the background?",
    "The background is what {color}?",
    "Which {color} does the background have?",
    "What {color} is behind {the}?",
]
EXISTS = [
    "Is there {a}{here}?",
    "Does the {image} show {a}?",
    "Does this {image} contain {a}?",
    "Does the {image} contain {a}?",
    "Can you see {a}{here}?",
    "Do you see {a}{here}?",
    "Is {a} shown{here}?",
    "Is {a} visible{here}?",
    "Is {a} present{here}?",
    "Is {a} in the {image}?",
    "Are there any {ns}{here}?",
    "Is it true that there is {a}{here}?",
    "Is there any {n}{here}?",
    "Does this {image} have {a} in it?",
]
EXISTS_COLOUR = [
    "Is anything {c}{here}?",
    "Is anything in the {image} {c}?",
    "Is something {c}{here}?",
    "Do you see anything {c}{here}?",
    "Is there anything {c}{here}?",
    "Is there something {c}{here}?",
    "Does the {image} contain anything {c}?",
    "Is it true that something here is {c}?",
]
ABSENT = [
    "Is there no {n}{here}?",
    "Is there not {a}{here}?",
    "Does the {image} not show {a}?",
    "Does this {image} not contain {a}?",
    "Does the {image} not contain {a}?",
    "Are there no {ns}{here}?",
    "Is {a} missing from the {image}?",
    "Is {a} absent from the {image}?",
    "Is {a} not present{here}?",
    "Is it true that there is no {n}{here}?",
    "Is no {n} shown{here}?",
    "Is {a} not in the {image}?",
    "Is no {n} present{here}?",
    "Is it false that there is {a}{here}?",
    "Is the {image} without {a}?",
    "Is there not any {n}{here}?",
    "Is no {n} visible{here}?",
    "Does the {image} show no {n}?",
]
ABSENT_COLOUR = [
    "Is nothing {c}{here}?",
    "Is it true that nothing here is {c}?",
    "Is nothing in the {image} {c}?",
    "Is there nothing {c}{here}?",
    "Does the {image} not contain anything {c}?",
    "Is there not anything {c}{here}?",
    "Does the {image} show nothing {c}?",
    "Is it false that something here is {c}?",
]
IS_COLOUR = [
    "Is {the} {c}?",
    "Is the {color} of {the} {c}?",
    "Does {the} look {c}?",
    "Is {the}{here} {c}?",
    "Is it true that {the} is {c}?",
    "Would you call {the} {c}?",
    "Is {the} {c} in {color}?",
    "Does {the} have the {color} {c}?",
]
IS_NOT_COLOUR = [
    "Is {the} not {c}?",
    "Is {the} a {color} other than {c}?",
    "Is it true that {the} is not {c}?",
    "Is the {color} of {the} not {c}?",
    "Does {the} not look {c}?",
    "Is it false that {the} is {c}?",
    "Is {the} any {color} but {c}?",
    "Does {the} have a {color} other than {c}?",
]
IS_NAME = [
    "Is this {a}?",
    "Is the object {a}?",
    "Is it {a}?",
    "Is the thing{here} {a}?",
    "Is the object shown{here} {a}?",
    "Is it true that this is {a}?",
    "Would you call this {a}?",
    "Is this {image} of {a}?",
]
IS_NOT_NAME = [
    "Is this not {a}?",
    "Is the object not {a}?",
    "Is it true that this is not {a}?",
    "Is this something other than {a}?",
    "Is the thing{here} not {a}?",
    "Is it false that this is {a}?",
    "Is the object anything but {a}?",
    "Is it not {a}?",
]
COUNT = [
    "How many {ns} are there{here}?",
    "How many {ns} can you see{here}?",
    "Count the {ns}{here}.",
    "What number of {ns} is shown{here}?",
    "How many {ns} does the {image} show?",
    "How many {ns} are in the {image}?",
]
SIDES = {
    "left": [
        "Is {the} to the left of {other}?",
        "Is {the} left of {other}{here}?",
        "Is it true that {the} is to the left of {other}?",
    ],
    "right": [
        "Is {the} to the right of {other}?",
        "Is {the} right of {other}{here}?",
        "Is it true that {the} is to the right of {other}?",
    ],
    "above": [
        "Is {the} above {other}?",
        "Is {the} higher up than {other}{here}?",
        "Is it true that {the} is above {other}?",
    ],
    "below": [
        "Is {the} below {other}?",
        "Is {the} lower down than {other}{here}?",
        "Is it true that {the} is below {other}?",
    ],
}
WHERE = ["Is {the} {x} or {y} {other}?", "Where is {the}, {x} or {y} {other}?"]
LARGER = [
    "Is {the} larger than {other}?",
    "Is {the} bigger than {other}{here}?",
    "Does {the} look larger than {other}?",
]
SMALLER = [
    "Is {the} smaller than {other}?",
    "Is it true that {the} is smaller than {other}?",
    "Does {the} look smaller than {other}{here}?",
]
WHICH_LARGER = [
    "Which is larger, {the} or {other}?",
    "Which of the two is bigger, {the} or {other}?",
]
WHICH_SMALLER = [
    "Which is smaller, {the} or {other}?",
    "Which of the two is smaller, {the} or {other}?",
]
ODD = [
    "Which object has a different {color} from the others?",
    "Which thing{here} does not have the {color} of the rest?",
    "What is the one object of another {color}?",
    "Which object stands out by its {color}?",
    "Which object differs in {color}?",
    "Which thing{here} is not {c}?",
]
SAME = [
    "Do all the objects have the same {color}?",
    "Are all things{here} of the same {color}?",
    "Is everything{here} {c}?",
    "Do all objects{here} share one {color}?",
    "Is every object{here} {c}?",
    "Are all of the objects {c}?",
]
CHOOSE_COLOUR = [
    "Is {the} {x} or {y}?",
    "Which {color} is {the}, {x} or {y}?",
    "Which of these {color}s is {the}: {x} or {y}?",
    "{The}: is it {x} or {y}?",
    "Is the {color} of {the} {x} or {y}?",
    "Is {the} {x}, {y} or {z}?",
]
CHOOSE_NAME = [
    "Is this {ax} or {ay}?",
    "Which of these is shown: {x}, {y} or {z}?",
    "Does the {image} show {ax} or {ay}?",
    "What is shown{here}: {x}, {y} or {z}?",
    "Which is in the {image}, {ax} or {ay}?",
    "Is there {ax} or {ay}{here}?",
    "Which one can you see{here}: {x}, {y} or {z}?",
]

HERE = ["", "", " in the {image}", " in this {image}", " here", " in the {image}"]
IMAGE = ["image", "image", "picture", "picture", "photo", "scene"]
