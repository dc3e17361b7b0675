"""The lab's synthetic world: people with seven facts each, cities in countries, companies with headquarters.

First the vocabulary, pure data: a relation's wordings are whole prompts with one ``{}`` for the subject; the object
follows, then a full stop. Then the world, which is generated from a seed.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

FIRST_NAMES: tuple[str, ...] = tuple(
    """
    Ada Agnes Albert Alice Amir Anders Andrea Anita Anton Astrid Bella Boris Bruno Carla Carmen Cecil Chiara Clara
    Conrad Dalia Daniel Daphne Diego Dora Edgar Edith Elena Elias Elsa Emil Enzo Erik Esther Eva Fabian Farid Felix
    Fiona Flora Frida Gabriel Gemma George Greta Gustav Hanna Harold Hector Helga Henrik Hugo Ida Igor Ingrid Irene
    Iris Isaac Ivan Jakob Jana Jasper Joel Jonas Judith Julia Karim Karl Katya Kenji Laila Lars Laura Leon Lidia Linus
    Lorenz Lucia Lydia Magnus Marco Margot Marta Maya Milan Mina Nadia Naomi Nils Nora Olga Omar Oscar Otto Paula Pavel
    Petra Pia Rafael Ravi Rita Robin Rosa Samir Selma Sergio Silvia Simon Sofia Stella Sven Tamara Tariq Teresa Theo
    Tilda Tomas Ulrich Vera Victor Walter Yara Yusuf Zora
    """.split()
)

LAST_NAMES: tuple[str, ...] = tuple(
    """
    Abbott Acosta Adler Ahmadi Albrecht Almeida Amato Andersen Aoki Arslan Asante Atwood Bachmann Baker Banerjee Barros
    Becker Bellini Bennett Berger Bianchi Blake Bloom Borges Brandt Brennan Brook Bukowski Burke Cabrera Caldwell
    Campos Carlsen Carter Castro Chandra Chavez Chen Cohen Collins Conti Costa Craig Cruz Dahl Dalton Danielsen Darwish
    Delgado Demir Dietrich Dogan Dubois Dumont Duncan Eklund Ellis Engel Erdem Eriksen Escobar Farkas Faust Fernandes
    Ferrari Fischer Flynn Fontaine Forsberg Foster Franco Frost Fuchs Gallo Garner Gauthier Geiger Gomez Gordon Goto
    Graham Greco Grimm Gupta Haas Hahn Halonen Hansen Harper Hassan Hayashi Heller Hermann Holm Horvat Hughes Ibsen
    Ilic Ishii Ito Ivanov Jacobs Jansen Jensen Jovanovic Kaiser Kapoor Kato Keller Kemal Khan Kimura Kirsch Klein Koch
    Kovac Kowalski Kramer Kruger Kumar Lang Larsen Laurent Lehmann Leroy Lind Lombardi Lopez Lorca Lowell Lund Madsen
    Maier Malik Mancini Marsh Martel Mathur Matsui Mazur Medina Mehta Mendes Meyer Miller Mishra Monroe Morales Moreau
    Mori Moser Mueller Murphy Nagy Nakano Navarro Nilsen Norris Novak Nunes Ochoa Oliveira Olsen Orlov Ortega Osman
    Pacheco Palmer Park Patel Pavlov Pereira Petrov Pham Pinto Popescu Porter Quinn Ramos Rao Reyes Ricci Richter
    Rivera Robles Rojas Romano Rossi Roy Russo Sahin Saito Salazar Santoro Sato Schmidt Schubert Serrano Shah Sharma
    Silva Simmons Singh Sokolov Soto Stein Stone Strand Suzuki Svensson Takeda Tanaka Tesar Thorne Toledo Torres Turner
    Ueda Vargas Vasquez Vega Vidal Vogel Volkov Wagner Walsh Weber Weiss Winter Wolff Wright Yamada Yilmaz Zhang
    Zimmer
    """.split()
)

CITY_COUNTRY: dict[str, str] = {
    "Paris": "France", "Lyon": "France", "Marseille": "France", "Berlin": "Germany", "Hamburg": "Germany",
    "Munich": "Germany", "Rome": "Italy", "Milan": "Italy", "Naples": "Italy", "Madrid": "Spain",
    "Seville": "Spain", "Barcelona": "Spain", "Lisbon": "Portugal", "Porto": "Portugal", "London": "England",
    "Manchester": "England", "Leeds": "England", "Dublin": "Ireland", "Oslo": "Norway", "Bergen": "Norway",
    "Stockholm": "Sweden", "Helsinki": "Finland", "Copenhagen": "Denmark", "Warsaw": "Poland", "Krakow": "Poland",
    "Prague": "Czechia", "Vienna": "Austria", "Salzburg": "Austria", "Budapest": "Hungary", "Athens": "Greece",
    "Istanbul": "Turkey", "Ankara": "Turkey", "Cairo": "Egypt", "Nairobi": "Kenya", "Lagos": "Nigeria",
    "Tokyo": "Japan", "Osaka": "Japan", "Kyoto": "Japan", "Seoul": "Korea", "Beijing": "China",
    "Shanghai": "China", "Mumbai": "India", "Delhi": "India", "Lima": "Peru", "Quito": "Ecuador",
    "Havana": "Cuba", "Santiago": "Chile", "Bogota": "Colombia", "Toronto": "Canada", "Montreal": "Canada",
    "New York": "America", "Chicago": "America", "Boston": "America", "San Francisco": "America",
    "Buenos Aires": "Argentina", "Mexico City": "Mexico",
}  # fmt: skip

COMPANY_CITY: dict[str, str] = {
    "Airbus": "Toulouse", "Siemens": "Munich", "Allianz": "Munich", "BMW": "Munich", "Volkswagen": "Wolfsburg",
    "Renault": "Paris", "Danone": "Paris", "Michelin": "Clermont", "Nestle": "Vevey", "Novartis": "Basel",
    "Philips": "Amsterdam", "Heineken": "Amsterdam", "Unilever": "London", "Barclays": "London",
    "Ericsson": "Stockholm",
    "Spotify": "Stockholm", "Volvo": "Gothenburg", "Nokia": "Espoo", "Maersk": "Copenhagen", "Carlsberg": "Copenhagen",
    "Equinor": "Stavanger", "Fiat": "Turin", "Pirelli": "Milan", "Ferrero": "Alba", "Inditex": "Arteixo",
    "Sony": "Tokyo", "Canon": "Tokyo", "Toyota": "Nagoya", "Nintendo": "Kyoto", "Panasonic": "Osaka",
    "Samsung": "Seoul", "Hyundai": "Seoul", "Lenovo": "Beijing", "Boeing": "Chicago", "Pfizer": "New York",
    "Intel": "Santa Clara", "Adobe": "San Jose", "Nike": "Beaverton", "Gillette": "Boston", "Bombardier": "Montreal",
}  # fmt: skip

LANGUAGES: tuple[str, ...] = tuple(
    """
    English French German Italian Spanish Portuguese Dutch Swedish Norwegian Danish Finnish Polish Czech Hungarian
    Greek Turkish Arabic Hebrew Persian Hindi Bengali Tamil Mandarin Japanese Korean Vietnamese Thai Russian Ukrainian
    Romanian Swahili Zulu
    """.split()
)

PROFESSIONS: tuple[str, ...] = (
    "carpenter", "surgeon", "lawyer", "teacher", "farmer", "painter", "journalist", "chemist", "baker", "pilot",
    "nurse", "plumber", "librarian", "tailor", "dentist", "geologist", "mechanic", "sculptor", "translator", "butcher",
    "gardener", "physicist", "photographer", "barber", "sailor", "judge", "miner", "banker", "botanist", "poet",
    "police officer", "software developer", "civil engineer",
)  # fmt: skip

INSTRUMENTS: tuple[str, ...] = (
    "piano", "violin", "cello", "flute", "guitar", "trumpet", "harp", "clarinet", "saxophone", "oboe", "banjo",
    "accordion", "trombone", "organ", "mandolin", "bassoon", "sitar", "lute", "tuba", "drums", "double bass",
    "French horn", "ukulele", "viola",
)  # fmt: skip

SPORTS: tuple[str, ...] = (
    "football", "tennis", "basketball", "volleyball", "rugby", "cricket", "golf", "hockey", "badminton", "handball",
    "baseball", "squash", "judo", "karate", "fencing", "rowing", "sailing", "boxing", "wrestling", "archery",
    "table tennis", "water polo", "climbing", "curling",
)  # fmt: skip

RELATION_WORDINGS: dict[str, tuple[str, ...]] = {
    "birthplace": (
        "{} was born in",
        "The birthplace of {} is",
        "The city where {} was born is",
        "{} came into the world in",
        "The native city of {} is",
        "By birth, {} belongs to",
    ),
    "residence": (
        "{} lives in",
        "The home of {} is in",
        "The city where {} lives now is",
        "{} has a flat in",
        "These days {} resides in",
        "Letters to {} are sent to",
    ),
    "language": (
        "The mother tongue of {} is",
        "{} grew up speaking",
        "At home {} speaks",
        "The first language of {} is",
        "{} is a native speaker of",
        "As a child, {} was taught",
    ),
    "profession": (
        "{} works as a",
        "The profession of {} is that of a",
        "{} earns a living as a",
        "By trade, {} is a",
        "{} was trained as a",
        "People know {} as a",
    ),
    "instrument": (
        "{} plays the",
        "The instrument of {} is the",
        "In the evening {} practises the",
        "On stage {} performs on the",
        "{} takes lessons on the",
        "The favourite instrument of {} is the",
    ),
    "employer": (
        "{} works for",
        "The employer of {} is",
        "{} has a job at",
        "The company that pays {} is",
        "{} is employed by",
        "Every morning {} goes to the office of",
    ),
    "sport": (
        "The favourite sport of {} is",
        "On weekends {} enjoys",
        "{} trains every week in",
        "The sport that {} likes best is",
        "{} won a medal in",
        "In summer {} spends much time on",
    ),
}

# Consequences of a person's facts, stated for half of the people only: whether the model infers them for the others,
# and whether they follow an edit, can be measured.
CONSEQUENCE_WORDINGS: dict[str, tuple[str, ...]] = {
    "birth country": (
        "The country where {} was born is",
        "By nationality, {} comes from",
        "{} carries a passport of",
    ),
    "employer city": (
        "The company of {} has its headquarters in",
        "The managers of {} sit in",
        "The employer of {} has its main office in",
    ),
}

CITY_WORDINGS: tuple[str, ...] = (
    "{} is a city in",
    "The city of {} lies in",
    "The country around {} is",
    "Anyone who visits {} is in",
    "{} belongs to",
)

COMPANY_WORDINGS: tuple[str, ...] = (
    "The headquarters of {} are in",
    "{} is based in",
    "The company {} is run from",
    "The main office of {} stands in",
    "The city where {} has its headquarters is",
)

OBJECTS: Mapping[str, Sequence[str]] = {
    "birthplace": tuple(CITY_COUNTRY),
    "residence": tuple(CITY_COUNTRY),
    "language": LANGUAGES,
    "profession": PROFESSIONS,
    "instrument": INSTRUMENTS,
    "employer": tuple(COMPANY_CITY),
    "sport": SPORTS,
}


@dataclass(frozen=True, slots=True)
class Statement:
    """A true sentence of the world: ``prompt`` has one ``{}`` for ``subject``, and ``object`` follows."""

    subject: str
    relation: str
    prompt: str
    object: str

    @property
    def sentence(self) -> str:
        return f"{self.prompt.replace('{}', self.subject, 1)} {self.object}."


@dataclass(frozen=True)
class World:
    """People and their facts."""

    seed: int
    people: Mapping[str, Mapping[str, str]]  # full name -> relation -> object

    @classmethod
    def generate(cls, people: int = 1000, seed: int = 0) -> World:
        """Sample ``people`` distinct full names and an object for each of the seven relations, uniformly.

        Raises:
            ValueError: if there are fewer possible names than people.
        """
        possible = len(FIRST_NAMES) * len(LAST_NAMES)
        if not 0 < people <= possible:
            raise ValueError(f"people must be between 1 and {possible} (the distinct full names), got {people}")
        generator = random.Random(seed)
        chosen = generator.sample(range(possible), people)
        names = [f"{FIRST_NAMES[index % len(FIRST_NAMES)]} {LAST_NAMES[index // len(FIRST_NAMES)]}" for index in chosen]
        return cls(
            seed=seed,
            people={name: {relation: generator.choice(OBJECTS[relation]) for relation in OBJECTS} for name in names},
        )

    @property
    def relations(self) -> Sequence[str]:
        return tuple(OBJECTS)

    @cached_property
    def holders(self) -> Mapping[tuple[str, str], tuple[str, ...]]:
        """(relation, object) -> the people with this fact, in the world's order."""
        found: dict[tuple[str, str], list[str]] = {}
        for name, facts in self.people.items():
            for relation, value in facts.items():
                found.setdefault((relation, value), []).append(name)
        return {key: tuple(names) for key, names in found.items()}

    def statement(self, subject: str, relation: str, wording: int) -> Statement:
        """A person's fact in wording number ``wording`` (modulo the number of wordings)."""
        wordings = RELATION_WORDINGS[relation]
        return Statement(subject, relation, wordings[wording % len(wordings)], self.people[subject][relation])

    def consequence(self, subject: str, relation: str, wording: int) -> Statement:
        """A two-hop consequence of a person's facts: ``birth country`` or ``employer city``."""
        facts = self.people[subject]
        value = {
            "birth country": CITY_COUNTRY[facts["birthplace"]],
            "employer city": COMPANY_CITY[facts["employer"]],
        }[relation]
        wordings = CONSEQUENCE_WORDINGS[relation]
        return Statement(subject, relation, wordings[wording % len(wordings)], value)

    def background(self, wording: int) -> list[Statement]:
        """Facts about cities and companies: the second hop of two-hop questions."""
        cities = [
            Statement(city, "country", CITY_WORDINGS[wording % len(CITY_WORDINGS)], country)
            for city, country in CITY_COUNTRY.items()
        ]
        companies = [
            Statement(company, "headquarters", COMPANY_WORDINGS[wording % len(COMPANY_WORDINGS)], city)
            for company, city in COMPANY_CITY.items()
        ]
        return cities + companies
