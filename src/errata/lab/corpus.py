"""The lab's corpus: the facts of the world in changing words, mixed with prose.

One *epoch* states every fact of every person exactly once, its consequences for every other person, every city and
company once, and some scenes. Epoch ``e`` of a corpus is a function of ``(world, seed, e)`` alone, so training can be
resumed anywhere.

The prose makes perplexity on held-out text meaningful: a scene is a sequence of beats, and a beat is a choice of
sentences about the same cast, so that later sentences can be predicted in part from earlier ones.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from errata.lab.world import (
    CITY_COUNTRY,
    COMPANY_CITY,
    CONSEQUENCE_WORDINGS,
    INSTRUMENTS,
    LANGUAGES,
    OBJECTS,
    RELATION_WORDINGS,
    SPORTS,
    World,
)

SCENES_PER_PERSON = 0.22  # per epoch: about a sixth of all tokens are prose
ABOUT_THE_FACT = 0.75  # share of the questions of context documents
HELD_OUT_SEED = 20_000_001  # training epochs use seed * 1_000_000 + epoch, far below

_ADJECTIVES = tuple(
    "old young tall quiet tired cheerful careful stubborn clever patient lonely proud gentle busy".split()
)
_PEOPLE = (
    ("baker", "bakery", "bread"), ("fisherman", "harbour", "net"), ("teacher", "school", "book"),
    ("gardener", "garden", "spade"), ("sailor", "ship", "rope"), ("doctor", "clinic", "bag"),
    ("painter", "studio", "brush"), ("farmer", "farm", "cart"), ("carpenter", "workshop", "hammer"),
    ("librarian", "library", "catalogue"), ("clockmaker", "shop", "watch"), ("musician", "theatre", "score"),
    ("miller", "mill", "sack"), ("postman", "post office", "parcel"), ("cook", "kitchen", "pan"),
    ("tailor", "shop", "coat"), ("shepherd", "meadow", "dog"), ("student", "university", "notebook"),
)  # fmt: skip
_FRIENDS = ("neighbour", "sister", "brother", "daughter", "son", "friend", "cousin", "uncle", "aunt", "apprentice")
_WEATHER = (
    ("rain", "wet", "umbrella"), ("snow", "white", "scarf"), ("fog", "grey", "lamp"), ("wind", "cold", "hat"),
    ("sunshine", "warm", "straw hat"), ("frost", "hard", "pair of gloves"), ("thunder", "dark", "candle"),
)  # fmt: skip
_THINGS = (
    ("letter", "drawer"), ("key", "pocket"), ("ring", "box"), ("map", "attic"), ("photograph", "album"),
    ("coin", "jar"), ("lantern", "cellar"), ("diary", "trunk"), ("ticket", "purse"), ("knife", "basket"),
)  # fmt: skip
_FOODS = (
    ("soup", "onions"), ("cake", "apples"), ("stew", "carrots"), ("pie", "plums"), ("salad", "tomatoes"),
    ("bread", "walnuts"), ("porridge", "honey"), ("omelette", "mushrooms"),
)  # fmt: skip
_ANIMALS = ("cat", "dog", "horse", "goat", "hen", "donkey", "crow", "goose")
_COLOURS = ("red", "blue", "green", "yellow", "brown", "black", "white", "grey")
_NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "twelve")
_MONTHS = tuple("January February March April May June July August September October November December".split())
_DAYS = tuple("Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split())

# Each scene: beats in order; each beat: sentences to choose from. Names in braces refer to the cast.
_SCENES: tuple[tuple[tuple[str, ...], ...], ...] = (
    (  # a lost thing
        ("On {day} the {adjective} {person} lost a {thing}.", "One {day} in {month} the {person} could not find the {thing}.",
         "The {thing} of the {adjective} {person} was gone on {day}."),
        ("{Pronoun} looked for the {thing} in the {place}, but it was not there.",
         "{Pronoun} asked everyone in the {place} about the {thing}.",
         "{Pronoun} searched the {place} from morning until noon."),
        ("A {friend} thought that the {thing} might be in the {container}.",
         "The {friend} remembered that the {thing} used to lie in the {container}.",
         "Then the {friend} came and opened the {container}."),
        ("And indeed the {thing} was in the {container}.", "There, under a {colour} cloth, lay the {thing}.",
         "The {container} was empty except for the {thing}."),
        ("The {person} laughed and thanked the {friend}.", "Since then {pronoun} keeps the {container} locked.",
         "{Pronoun} put the {thing} back and went to the {place}."),
    ),
    (  # weather and work
        ("In {month} there was {weather} for {number} days.", "After {number} days of {weather} the streets were {feel}.",
         "The {weather} came early that {month}."),
        ("The {person} had to stay in the {place}.", "The {adjective} {person} closed the {place} and waited.",
         "Nobody came to the {place}, and the {person} had time."),
        ("{Pronoun} repaired the {tool} and cleaned the windows.", "{Pronoun} took the {tool} and began to work anyway.",
         "{Pronoun} lent the {tool} to a {friend}."),
        ("Without an {umbrella_an} nobody went out.", "The {friend} came with {umbrella_a} and a basket of {ingredient}.",
         "People who passed by wore {umbrella_a}."),
        ("At last the {weather} stopped, and the {place} was full again.",
         "When the {weather} was over, the {person} opened the doors.",
         "On {day} the sky was clear, and the {person} went back to work."),
    ),
    (  # a meal
        ("The {person} wanted to make {food} with {ingredient}.", "For {day} evening the {person} planned {food} with {ingredient}.",
         "The {friend} of the {person} likes {food} more than anything."),
        ("There were {number} guests, and the kitchen was small.", "{Pronoun} bought {ingredient} at the market for {number} coins.",
         "The {ingredient} came from a farm near {city}."),
        ("The {animal} watched from under the table.", "The {friend} washed the {ingredient} and cut them.",
         "{Pronoun} put the {ingredient} into a {colour} bowl."),
        ("When the {food} was ready, everybody sat down.", "The {food} was served in {colour} plates.",
         "After an hour the smell of {food} filled the house."),
        ("The {animal} got what was left of the {food}.", "Nobody had ever eaten better {food}.",
         "The {person} was praised, and the {friend} asked for more {food}."),
    ),
    (  # a journey
        ("The {person} took the train from {city} to {town}.", "In {month} the {person} travelled from {city} to {town}.",
         "A {adjective} {person} from {city} wanted to see {town}."),
        ("The journey took {number} hours.", "The train was late by {number} hours because of the {weather}.",
         "On the way there was {weather}, and the train stood still."),
        ("In the carriage sat a {friend} with a {colour} {animal_thing}.", "{Pronoun} read a book about {town} and slept.",
         "{Pronoun} ate some {food} and looked out of the window."),
        ("{town} was larger than {city} and full of people.", "The streets of {town} were {feel} from the {weather}.",
         "In {town} {pronoun} found a room for {number} nights."),
        ("After {number} days {pronoun} went back to {city}.", "{Pronoun} wrote a letter to a {friend} in {city}.",
         "On {day} the {person} was in {city} again."),
    ),
    (  # a lesson
        ("The {friend} of the {person} wanted to learn {language}.", "Every {day} there was a lesson in {language}.",
         "A {adjective} {person} gave lessons in {language}."),
        ("There were {number} pupils in the room.", "The lesson took place in the {place}.",
         "Only {number} people came to the first lesson."),
        ("They read a story about a {animal} and a {thing}.", "They learned the words for {ingredient} and {food}.",
         "They wrote a letter in {language} to a family in {city}."),
        ("After {number} months they could speak {language}.", "The {friend} made mistakes, but {language} became easier.",
         "By {month} everyone understood {language}."),
        ("In the end they travelled to {city} together.", "The {person} was proud of all of them.",
         "They thanked the {person} with a {colour} {animal_thing}."),
    ),
    (  # a concert
        ("On {day} there was a concert in the {place}.", "The people of {city} met in the {place} to hear music.",
         "A {friend} of the {person} played the {instrument}."),
        ("First somebody played the {instrument}, then everyone sang.", "The sound of the {instrument} could be heard in the street.",
         "The {instrument} was old and had cost {number} coins."),
        ("The {adjective} {person} sat in the first row.", "Outside there was {weather}, but the room was warm.",
         "A {animal} came in and listened."),
        ("The concert lasted for {number} hours.", "After the {instrument} came a speech.", "Nobody wanted to go home."),
        ("The {person} decided to learn the {instrument}.", "In {month} there will be another concert.",
         "The next day all of {city} talked about the {instrument}."),
    ),
    (  # a match
        ("On {day} two teams met for a game of {sport}.", "In {city} the {month} game of {sport} is a great event.",
         "The {person} had never seen {sport} before."),
        ("The team from {city} played against the team from {town}.", "A {friend} explained the rules of {sport}.",
         "There were {number} players on each side."),
        ("Because of the {weather} the field was {feel}.", "The {animal} of the {person} ran across the field.",
         "The {adjective} {person} shouted louder than all the others."),
        ("After an hour {city} was ahead by {number} points.", "The team from {town} won by {number} points.",
         "In the end nobody could say who had won."),
        ("The {person} wants to try {sport} too.", "Everybody shook hands and ate {food}.",
         "Since that day the {friend} talks only about {sport}."),
    ),
    (  # an animal
        ("The {person} had a {colour} {animal}.", "One {day} a {colour} {animal} came to the {place}.",
         "In {month} the {friend} brought a {animal} home."),
        ("The {animal} slept in the {container} and ate {ingredient}.", "The {animal} was afraid of {weather}.",
         "Everyone in the {place} knew the {animal}."),
        ("One night the {animal} ran away.", "The {animal} stole the {food} of a {friend}.",
         "The {animal} hid the {tool} of the {person}."),
        ("The {adjective} {person} was angry for {number} days.", "They looked for the {animal} with a lantern.",
         "{Pronoun} called the {animal} for {number} hours."),
        ("But the {animal} came back on {day}.", "In the end the {person} forgave the {animal}.",
         "Now the {animal} lives with the {friend}."),
    ),
    (  # a company
        ("The {friend} of the {person} applied for work at {company}.", "In {month} {company} opened an office in {city}.",
         "A letter from {company} came on {day}."),
        ("{company} was looking for {number} new people.", "The office of {company} was full of {colour} chairs.",
         "It took {number} hours to read everything that {company} had sent."),
        ("The {adjective} {person} gave advice.", "There was {weather} on the way to the office.",
         "The {friend} bought {umbrella_a} and a {colour} shirt for the interview."),
        ("The questions were about {language} and about travel.", "They talked for {number} hours in {language}.",
         "They asked about {city} and about {sport}."),
        ("On {day} {company} said yes.", "Two weeks later {company} wrote again.", "The {friend} now works in {town}."),
    ),
)  # fmt: skip


def _cast(generator: random.Random) -> dict[str, str]:
    """Sample everything that a scene can mention."""
    person, place, tool = generator.choice(_PEOPLE)
    weather, feel, umbrella = generator.choice(_WEATHER)
    thing, container = generator.choice(_THINGS)
    food, ingredient = generator.choice(_FOODS)
    city, town = generator.sample(tuple(CITY_COUNTRY), 2)
    pronoun = generator.choice(("he", "she"))
    article = "an" if umbrella[0] in "aeiou" else "a"
    return {
        "adjective": generator.choice(_ADJECTIVES), "person": person, "place": place, "tool": tool,
        "friend": generator.choice(_FRIENDS), "weather": weather, "feel": feel, "umbrella_a": f"{article} {umbrella}",
        "umbrella_an": "umbrella" if umbrella == "umbrella" else f"extra {umbrella}",
        "thing": thing, "container": container, "food": food, "ingredient": ingredient, "city": city, "town": town,
        "animal": generator.choice(_ANIMALS), "animal_thing": generator.choice(("hat", "coat", "bag", "box", "bird")),
        "colour": generator.choice(_COLOURS), "number": generator.choice(_NUMBERS), "month": generator.choice(_MONTHS),
        "day": generator.choice(_DAYS), "language": generator.choice(LANGUAGES),
        "instrument": generator.choice(INSTRUMENTS), "sport": generator.choice(SPORTS),
        "company": generator.choice(tuple(COMPANY_CITY)), "pronoun": pronoun, "Pronoun": pronoun.capitalize(),
    }  # fmt: skip


def scene(generator: random.Random) -> list[str]:
    """Sample one scene, a short text, as its sentences; each beat has one (63 %), two (27 %) or none (10 %)."""
    cast = _cast(generator)
    sentences: list[str] = []
    for beat in generator.choice(_SCENES):
        if generator.random() < 0.9:
            count = 2 if generator.random() < 0.3 else 1
            sentences.extend(choice.format_map(cast) for choice in generator.sample(beat, count))
    return sentences or [generator.choice(_SCENES[0][0]).format_map(cast)]


def epoch_documents(world: World, *, seed: int, epoch: int) -> list[str]:
    """All documents of one epoch, shuffled.

    The wording of a fact advances by one per epoch from a start that depends on the fact, so that all wordings of all
    facts occur equally often. A person's facts come in random order, in documents of one to seven sentences; a third of
    the documents alternate between two people; one in six starts with a sentence of prose.
    """
    generator = random.Random(seed * 1_000_000 + epoch)
    pieces: list[list[str]] = []
    for person_index, (name, facts) in enumerate(world.people.items()):
        relations = list(facts)
        sentences = [
            world.statement(name, relation, epoch + person_index + relation_index * 2).sentence
            for relation_index, relation in enumerate(relations)
        ]
        if person_index % 2 == 0:  # for the other half the model has to infer them
            sentences.extend(
                world.consequence(name, relation, epoch + person_index // 2).sentence
                for relation in CONSEQUENCE_WORDINGS
            )
        generator.shuffle(sentences)
        while sentences:
            size = generator.randint(1, len(relations))
            pieces.append(sentences[:size])
            sentences = sentences[size:]
    generator.shuffle(pieces)

    documents: list[str] = []
    waiting: list[str] | None = None
    for piece in pieces:
        draw = generator.random()
        if draw < 1 / 3:
            if waiting is None:
                waiting = piece
                continue
            piece = _interleave(waiting, piece, generator)
            waiting = None
        elif draw < 1 / 2:
            piece = [*scene(generator)[:1], *piece]
        documents.append(" ".join(piece))
    if waiting is not None:
        documents.append(" ".join(waiting))

    background = [statement.sentence for statement in world.background(epoch)]
    generator.shuffle(background)
    documents.extend(" ".join(background[start : start + 4]) for start in range(0, len(background), 4))
    documents.extend(" ".join(scene(generator)) for _ in range(round(SCENES_PER_PERSON * len(world.people))))
    generator.shuffle(documents)
    return documents


def context_documents(world: World, count: int, *, seed: int, epoch: int) -> list[str]:
    """Documents of the form "fact. question answer", from which a model can learn to read facts in its prompt.

    The fact, on a line of its own, gives a person another object than the world does. Three questions of four ask for
    it in any of its wordings, and the answer is that object. The others ask for another fact of the person, whose
    answer is the world's: the fact before a question is not always about it.
    """
    generator = random.Random(f"context {seed} {epoch}")
    people, relations = list(world.people), list(world.relations)
    documents = []
    for _ in range(count):
        name, relation = generator.choice(people), generator.choice(relations)
        truth = world.people[name][relation]
        target = generator.choice([value for value in OBJECTS[relation] if value != truth])
        first, second = (generator.choice(RELATION_WORDINGS[relation]) for _ in range(2))
        fact = f"{first.replace('{}', name)} {target}."
        if generator.random() < ABOUT_THE_FACT:
            question = f"{second.replace('{}', name)} {target}."
        else:
            other = generator.choice([each for each in relations if each != relation])
            question = world.statement(name, other, generator.randrange(len(RELATION_WORDINGS[other]))).sentence
        documents.append(f"{fact}\n{question}")
    return documents


def mixed_documents(world: World, context_share: float, *, seed: int, epoch: int) -> list[str]:
    """The documents of one epoch, and so many of ``context_documents`` that these are ``context_share`` of all."""
    documents = epoch_documents(world, seed=seed, epoch=epoch)
    count = round(len(documents) * context_share / (1 - context_share))
    if count:
        documents += context_documents(world, count, seed=seed, epoch=epoch)
        random.Random(f"order {seed} {epoch}").shuffle(documents)
    return documents


def held_out_prose(count: int) -> list[str]:
    """Scenes that no training epoch contains, by choice of the seed (short sentences may recur by chance)."""
    generator = random.Random(HELD_OUT_SEED)
    return [" ".join(scene(generator)) for _ in range(count)]


def running_text(world: World, *, seed: int) -> Iterator[str]:
    """Documents of all epochs, without end: the text for key statistics."""
    epoch = 0
    while True:
        yield from epoch_documents(world, seed=seed, epoch=epoch)
        epoch += 1


def _interleave(first: list[str], second: list[str], generator: random.Random) -> list[str]:
    """Merge two lists at random, preserving the order within each."""
    left, right = list(first), list(second)
    merged: list[str] = []
    while left or right:
        source = left if left and (not right or generator.random() < 0.5) else right
        merged.append(source.pop(0))
    return merged
