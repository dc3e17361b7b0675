"""The measurements of a benchmark: two that are always made, and those that are made when they are named."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from errata.benchmark import asking
from errata.benchmark.foreseen import no_concepts, no_drift, no_side_tests, no_texts
from errata.benchmark.parts import Part
from errata.errors import Fault, FaultsError, InputError
from errata.output import file_digest
from errata.reading import reason_of

PERPLEXITY = Part(
    "perplexity", "on prose, as a ratio to the unedited model's", asking.ask_perplexity, depends=frozenset({"prose"})
)
ALWAYS = (
    Part(
        "recall",
        "efficacy, generalisation, specificity, portability …, teacher-forced",
        asking.ask_recall,
        depends=frozenset({"material"}),
    ),
    PERPLEXITY,
)
FURTHER = (
    Part(
        "free",
        "what the model says by itself, and whether other answers stayed",
        asking.ask_free,
        asking.check_free,
        depends=frozenset({"material"}),
    ),
    Part(
        "texts",
        "fluency and consistency of texts that it writes",
        asking.ask_texts,
        asking.check_texts,
        asking.files_of_texts,
        nothing=no_texts,
    ),
    Part(
        "drift",
        "KL divergence and top-5 overlap of the next token, where nothing should change",
        asking.ask_drift,
        nothing=no_drift,
    ),
    Part("side", "negation, reversal, multiple choice", asking.ask_side, asking.check_side, nothing=no_side_tests),
    Part(
        "ability",
        "tasks of lm-evaluation-harness, and the papers' six probes",
        asking.ask_ability,
        asking.check_ability,
        asking.files_of_ability,
        depends=frozenset(),
    ),
    Part(
        "concepts",
        "definitions and instances of edited concepts",
        asking.ask_concepts,
        asking.check_concepts,
        depends=frozenset({"material"}),
        nothing=no_concepts,
    ),
)


def parts_of(names: Iterable[str]) -> list[Part]:
    """The parts that are always asked, and those that are named.

    Raises:
        FaultsError: for names that there are not.
    """
    known = {part.name: part for part in FURTHER}
    chosen = list(dict.fromkeys(names))
    faults = [
        Fault("measures", f"there is no measurement {name!r}", f"Known: {', '.join(known)}")
        for name in chosen
        if name not in known
    ]
    if faults:
        raise FaultsError("the measurements", faults)
    return [*ALWAYS, *(known[name] for name in chosen)]


def check_parts(names: Iterable[str], options: Mapping[str, Any]) -> None:
    """Raises InputError, FaultsError: for unknown parts, settings that none has, and what would stop one later."""
    parts = parts_of(names)
    faults = [
        Fault(f"measures.options.{name}", "there are settings of a measurement that is not made", f"Add {name!r}")
        for name in options
        if name not in [part.name for part in parts]
    ]
    for part in parts:
        try:
            part.check(options.get(part.name, {}))
        except FaultsError as error:
            faults += error.faults
        except InputError as error:
            faults.append(Fault(f"measurement {part.name!r}", error.what, error.remedy))
    if faults:
        raise FaultsError("the measurements", faults)


def input_digests(names: Iterable[str], options: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Name of an answer -> path -> SHA-256 of each file that the measurement reads: an answer is of these files, and of
    no others. Measurements that read none are not named.

    Raises:
        InputError, FaultsError: for files that cannot be read; names all of them.
    """
    digests: dict[str, dict[str, str]] = {}
    faults = []
    for part in parts_of(names):
        given = options.get(part.name, {})
        for file in part.files(given):
            try:
                digests.setdefault(part.answer_name(given), {})[str(file)] = file_digest(file)
            except OSError as error:
                faults.append(Fault(str(file), f"{part.name} cannot read it: {reason_of(error)}", "Put it back"))
    if faults:
        raise FaultsError("what the measurements read", faults)
    return digests
