"""Critical layers: the rule on curves made by hand, which facts are traced, and the lab's layers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from errata.errors import ErrataError, InputError
from errata.facts.fact import Fact
from errata.lab.package import lab_world
from errata.lab.tasks import lab_facts
from errata.models.language_model import LanguageModel
from errata.models.likelihood import score
from errata.tracing.causal_tracing import (
    FORMAT,
    MOST_LAYERS,
    Component,
    Location,
    Position,
    Trace,
    TracingSettings,
    check_window,
    choose_facts,
    default_window,
    estimates,
    locate,
    propose_layers,
)

from tests.support.errors import raises_code

ONLY_LAST = (Position.SUBJECT_LAST,)


@pytest.fixture(scope="module")
def lab() -> LanguageModel:
    return LanguageModel.load("lab")


@pytest.fixture(scope="module")
def facts() -> list[Fact]:
    return lab_facts(lab_world(), 300, seed=3)


@pytest.mark.parametrize(
    ("block", "mlp", "layers"),
    [
        # as measured on the lab (docs/lab.md)
        ([0.413, 0.342, 0.316, 0.073, 0.001, 0, 0, 0], [0.411, 0.411, 0.013, 0.007, 0, 0, 0, 0], (0, 1, 2)),
        ([0.1] * 10, [0.1] * 10, (4, 5, 6, 7, 8, 9)),  # flat: the last six up to the end
        ([0.1] * 4, [0.1] * 4, (0, 1, 2, 3)),
        ([0.3], [0.2], (0,)),  # a single layer
        ([0, 0, 0.4, 0, 0], [0, 0, 0.4, 0, 0], (2,)),
        ([0, 0, 0, 0.1, 0.4, 0.2], [0, 0.1, 0.21, 0.3, 0.4, 0.1], (2, 3, 4, 5)),  # late; half counts
        ([0.4, 0.3, 0, 0], [0, 0, 0, 0.2], (1,)),  # MLPs later than the blocks: never behind the last
        ([-0.1, 0.2, -0.3, 0.05], [-0.2, 0.1, -0.1, -0.1], (1,)),  # negative effects do not count
        ([0, 0.3, 0.01, 0.2, 0], [0.3, 0, 0, 0, 0], (0, 1, 2, 3)),  # a dip within does not end it
    ],
)
def test_the_rule_from_curves_to_layers(block: list[float], mlp: list[float], layers: tuple[int, ...]) -> None:
    proposal = propose_layers([float(effect) for effect in block], [float(effect) for effect in mlp])
    assert proposal == layers
    assert len(layers) <= MOST_LAYERS


def test_without_a_positive_effect_no_layer_is_proposed() -> None:
    for block, mlp, named in [
        ([0.0, -0.1, 0.0], [0.1, 0.0, 0.0], "block"),
        ([0.1, 0.0, 0.0], [-0.1, 0.0, -0.2], "MLP"),
        ([float("nan"), 0.1], [0.1, 0.1], "block"),
    ]:
        with raises_code("NO_LAYERS_FOUND", ErrataError, named):
            propose_layers(block, mlp)


def test_the_window_is_about_a_fifth_of_the_depth() -> None:
    for layers, window in [(1, 1), (2, 2), (8, 2), (12, 2), (28, 6), (32, 6), (48, 10)]:
        assert default_window(layers) == window
        check_window(window, layers)


def test_a_window_must_fit_the_model() -> None:
    with raises_code("WINDOW_TOO_LARGE", InputError):
        check_window(9, 8)


def test_the_subjects_last_token_is_always_traced() -> None:
    with pytest.raises(ValueError, match="must be"):
        TracingSettings(positions=(Position.LAST,))


def test_estimates_are_means_with_intervals_and_a_single_fact_has_none() -> None:
    several = estimates(np.array([[1.0, 0.0], [3.0, 0.0], [2.0, 0.0]]))
    assert [entry["mean"] for entry in several] == [2.0, 0.0]
    low, high = several[0]["low"], several[0]["high"]
    assert low is not None
    assert high is not None
    assert 1.0 <= low < 2.0 < high <= 3.0
    assert estimates(np.array([[1.0]])) == [{"mean": 1.0, "low": None, "high": None}]


def test_facts_are_those_that_the_model_knows(lab: LanguageModel, facts: list[Fact]) -> None:
    known = facts[:8]
    wrong = [replace(fact, old=fact.target) for fact in facts[8:12]]
    # At the end of the prompt the subject's last token is also where the answer is read.
    first = known[0]
    ends = Fact("ends", first.subject, "You ask me about the one they call {}", "a", truth="?")
    chosen = choose_facts(lab, [*known, *wrong, ends], 100, seed=0)
    assert {fact.id for fact in chosen.facts} == {fact.id for fact in known}
    assert [prompt.fact for prompt in chosen.prompts] == [fact.id for fact in chosen.facts]
    assert (chosen.queried, chosen.known) == (13, 8)


def test_facts_with_nothing_after_their_subject_are_left_out(lab: LanguageModel, facts: list[Fact]) -> None:
    ends = _known_continuation(lab, facts[0])
    chosen = choose_facts(lab, [*facts[:3], ends], 100, seed=0)
    assert (chosen.queried, chosen.known, chosen.untraceable) == (4, 4, 1)
    assert ends.id not in {fact.id for fact in chosen.facts}
    with raises_code("FACTS_UNKNOWN", ErrataError):
        choose_facts(lab, [ends], 100, seed=0)


def _known_continuation(lab: LanguageModel, fact: Fact) -> Fact:
    """A fact whose prompt ends with its subject, and which the lab knows: what it would say there, one word."""
    said = score(lab, [(fact.subject, "was")])[0].said
    return Fact("ends", fact.subject, "{}", "a", truth=said)


def test_facts_are_asked_in_an_order_of_the_seed_and_no_more_than_needed(lab: LanguageModel, facts: list[Fact]) -> None:
    updates: list[tuple[str, int, int]] = []
    first = choose_facts(lab, facts, 5, seed=0, report=lambda *entry: updates.append(entry))
    again, other = choose_facts(lab, facts, 5, seed=0), choose_facts(lab, facts, 5, seed=1)
    assert first.facts == again.facts != other.facts
    assert len(first.facts) == 5
    assert first.queried < len(facts)
    assert updates == [("known facts", 5, 5)]


def test_without_a_known_fact_there_is_nothing_to_trace(lab: LanguageModel, facts: list[Fact]) -> None:
    wrong = [replace(fact, old=fact.target) for fact in facts[:3]]
    with raises_code("FACTS_UNKNOWN", ErrataError) as caught:
        choose_facts(lab, wrong, 10, seed=0)
    assert caught.value.exit_status == 1


def test_the_labs_critical_layers_are_0_to_2(lab: LanguageModel, facts: list[Fact]) -> None:
    before = lab.fingerprint()
    found = locate(lab, facts, TracingSettings(count=30, samples=3, positions=ONLY_LAST))
    assert found.propose() == (0, 1, 2)
    block = found.curve(Component.BLOCK)
    assert block[0] == max(block) == pytest.approx(0.41, abs=0.1)
    assert block[-1] == pytest.approx(0, abs=1e-6)
    record = found.record(lab)
    assert record["format"] == FORMAT
    assert record["proposal"]["layers"] == [0, 1, 2]
    assert record["proposal"]["boundaries"] == [0, 2]
    assert len(record["rows"]) == len(Component) * len(lab.blocks)
    assert record["about"]["fingerprint"] == before == lab.fingerprint()
    assert record["about"]["traced"] == len(record["about"]["facts"]) == 30
    assert all(entry["clean"] > 0.5 for entry in record["about"]["facts"])


def made_up(block: list[float], facts: list[Fact]) -> Location:
    """Two facts, of which the first alone has a middle subject token; none has further tokens."""
    layers = len(block)
    nothing = np.full((2, layers), np.nan)
    restored = {(part, position): nothing for part in Component for position in Position}
    for part in Component:
        restored[part, Position.SUBJECT_LAST] = np.array([block, block]) + 0.25
        restored[part, Position.SUBJECT_MIDDLE] = np.array([[0.5] * layers, [np.nan] * layers])
    traced = Trace(np.array([0.9, 0.8]), np.array([0.25, 0.25]), restored, 0.1)
    chosen = choose_facts(LanguageModel.load("lab"), facts[:2], 2, seed=0)
    return Location(TracingSettings(window=2), chosen, traced, layers, 1.0)


def test_cells_are_in_long_form_and_facts_without_such_tokens_are_left_out(facts: list[Fact]) -> None:
    found = made_up([0.5, 0.25, 0.0], facts)
    cells = {(cell["part"], cell["position"], cell["layer"]): cell for cell in found.effects()}
    assert {position for _, position, _ in cells} == {"subject_last", "subject_middle"}
    middle = cells["mlp", "subject_middle", 2]
    assert (middle["mean"], middle["low"], middle["n"], middle["window"]) == (0.25, None, 1, (1, 2))
    last = cells["block", "subject_last", 1]
    assert (last["mean"], last["low"], last["high"], last["n"], last["window"]) == (0.25, 0.25, 0.25, 2, (1, 1))


def test_a_refused_proposal_is_in_the_record(lab: LanguageModel, facts: list[Fact]) -> None:
    record = made_up([0.0, -0.1, 0.0], facts).record(lab)
    assert record["proposal"]["layers"] is None
    assert "does not restore the answer" in record["proposal"]["refused"]
    assert len(record["rows"]) == 18
