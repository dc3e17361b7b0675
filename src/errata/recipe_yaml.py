"""YAML from anywhere, as plain data: nothing in it wins without a word, grows without end or holds itself."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

MOST = 20_000  # values, each counted as often as it is referred to
_BITS = 12_000  # of a number; Python writes those of about 14,000 out, and no longer ones


def load_yaml(text: str) -> Any:
    """What a text holds.

    Raises:
        ValueError: if it is no YAML, a key stands there twice, an alias refers to what it is in, or a value is one that
            no record could hold.
    """
    try:
        data = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(str(error)) from error
    except (KeyError, IndexError, AttributeError, TypeError) as error:  # what pyyaml makes of '!!int ""' and the like
        raise ValueError(f"a value is not of the type that its tag says ({type(error).__name__}: {error})") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    _check_values(data)
    return data


class _Loader(yaml.SafeLoader):
    """As the safe loader, but a key that stands there twice is an error and not the last one's value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    problem = f"the key {key.value[:60]!r} stands there twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep=deep)


def _check_values(data: Any) -> None:
    """Whoever walks over the data follows every alias: a few lines of them can stand for more than fits anywhere."""
    waiting, count = [data], 0
    while waiting:
        value = waiting.pop()
        count += 1
        if count > MOST:
            raise ValueError(f"it holds more than {MOST} values, or refers to itself")
        if isinstance(value, int) and value.bit_length() > _BITS:
            raise ValueError("it holds a number of thousands of digits")
        if isinstance(value, str) and any("\ud800" <= sign <= "\udfff" for sign in value):
            raise ValueError("it holds half of a character, which no text in UTF-8 can hold")
        if isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set):
            waiting += value
