"""The error family: several wrong inputs are told together."""

from __future__ import annotations

import pytest

from errata.errors import ErrataError, Fault, FaultsError, InputError, told_together


def test_the_error_of_one_wrong_part_is_told_as_it_is() -> None:
    with pytest.raises(InputError) as caught, told_together("all") as part:
        with part:
            raise InputError("no a", remedy="Give a")
        with part:
            pass
    assert not isinstance(caught.value, FaultsError)
    assert str(caught.value) == "no a. Give a"


def test_the_faults_of_several_wrong_parts_are_told_at_once() -> None:
    with pytest.raises(FaultsError) as caught, told_together("what was given") as part:
        with part:
            raise InputError("no a", remedy="Give a")
        with part:
            raise FaultsError("b", [Fault("b:1", "wrong", "Mend it"), Fault("b:2", "wrong too", "Mend it")])
        raise InputError("no c")  # outside of a part it is the last
    assert str(caught.value).splitlines() == [
        "what was given has 4 faults:",
        "  no a. Give a",
        "  b:1: wrong. Mend it",
        "  b:2: wrong too. Mend it",
        "  no c.",
    ]


def test_what_two_parts_suffer_from_is_told_once() -> None:
    with pytest.raises(InputError, match=r"^no a\.$"), told_together("all") as part:
        with part:
            raise InputError("no a")
        with part:
            raise InputError("no a")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ErrataError("the work failed"), KeyError("a")])
def test_what_is_no_input_ends_everything_at_once(error: BaseException) -> None:
    looked_at = []
    with pytest.raises(type(error)), told_together("all") as part:
        with part:
            raise InputError("no a")
        with part:
            raise error
        looked_at.append("more")
    assert looked_at == []
