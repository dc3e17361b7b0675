"""A model behind an OpenAI-compatible endpoint: it generates text, and neither weights nor likelihoods are at hand."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Final
from urllib.parse import urldefrag, urlsplit

from pydantic import ValidationError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from errata.editors.contract import OnlyGenerates
from errata.errors import ErrataError, InputError
from errata.models.language_model import CACHE_BUDGET
from errata.utils.endpoints import Attempt, EndpointClient, EndpointSettings, read_key
from errata.utils.progress import Report, silent

KEY_VARIABLE: Final = "ERRATA_API_KEY"
"""The environment variable whose value is sent as the key, if it is set."""

ALLOWED_VARIABLE: Final = "ERRATA_ENDPOINT"
"""The environment variable that names the base URL which files may refer to."""

_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_UNKNOWN_LENGTH: Final = 1 << 30
_REMEMBERED: Final = 1 << 16  # answers


@dataclass(frozen=True, slots=True)
class _Interface:
    """One of the two ways to request text: its path below the base URL, the prompt's form, and where the text is."""

    path: str
    body: Callable[[str], dict[str, Any]]
    text_at: tuple[str, ...]


_COMPLETIONS: Final = _Interface("completions", lambda prompt: {"prompt": prompt}, ("text",))
_CHAT: Final = _Interface(
    "chat/completions",
    lambda prompt: {"messages": [{"role": "user", "content": prompt}]},
    ("message", "content"),
)


def is_endpoint(name: str) -> bool:
    """Whether a model's name is an address."""
    return name.startswith(("http://", "https://"))


def check_allowed(name: str, *, environment: Mapping[str, str] = os.environ) -> None:
    """Refuse an address that a file names, unless it is on this machine or the user named it as well.

    Otherwise a file of unknown origin could have prompts and the key sent to any host.

    Raises:
        InputError: if the address is not allowed, or no address of an endpoint.
    """
    found = Endpoint(name, environment={}).settings.base_url
    if urlsplit(found).hostname in _LOOPBACK or environment.get(ALLOWED_VARIABLE, "").rstrip("/") == found:
        return
    raise InputError(
        f"the file wants prompts to be sent to {found}, which you have not named",
        remedy=f"If you trust this address, set the environment variable {ALLOWED_VARIABLE} to {found}",
        code="ENDPOINT_NOT_ALLOWED",
    )


class Endpoint(OnlyGenerates):
    """A model at an address, as an ``errata.editors.contract.Answerer`` that only generates.

    Its name is ``BASE#MODEL``, such as ``http://localhost:8000/v1#llama``: each prompt is sent as the user's message of
    a chat. ``BASE/completions#MODEL`` sends it as a text to continue. Temperature is 0. An equal request is sent once,
    since endpoints may answer it differently the next time.

    Args:
        environment: of the key.
        settings: limits and retries; address and model are those of the name.
        sleep: waits, in seconds.

    Raises:
        InputError: if the name is not of this form, or the key is unusable.
    """

    def __init__(
        self,
        name: str,
        *,
        environment: Mapping[str, str] = os.environ,
        sleep: Callable[[float], None] = time.sleep,
        **settings: Any,
    ) -> None:
        address, model = urldefrag(name)
        address = address.rstrip("/")
        self._interface = _CHAT
        for interface in (_CHAT, _COMPLETIONS):
            if address.endswith(f"/{interface.path}"):
                self._interface, address = interface, address.removesuffix(f"/{interface.path}")
                break
        if not model:
            raise InputError(
                "the address of the endpoint names no model",
                remedy="Write BASE#MODEL, such as http://localhost:8000/v1#llama",
                code="ENDPOINT_INVALID",
            )
        variable = KEY_VARIABLE if KEY_VARIABLE in environment else None
        limits = {"workers": 4, "give_up_after": 1, "timeout": 120.0, **settings}
        try:
            self.settings = EndpointSettings(base_url=address, model=model, key_variable=variable, **limits)
        except ValidationError as error:
            raise InputError(
                f"this is not the address of an endpoint: {error.errors()[0]['msg']}",
                remedy="Write BASE#MODEL, such as http://localhost:8000/v1#llama",
                code="ENDPOINT_INVALID",
            ) from error
        self.name = name
        key = partial(
            read_key, variable, environment, whose="the endpoint's", missing="ENDPOINT_KEY_INVALID",
            invalid="ENDPOINT_KEY_INVALID",
        )  # fmt: skip
        key()
        self._client = EndpointClient(self.settings, key=key, whose="the endpoint", sleep=sleep)
        self._known: dict[tuple[str, int], str] = {}

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Bytes as tokens: the endpoint's own is not known. It has no chat template, which the endpoint applies."""
        return byte_tokenizer()

    @property
    def context_length(self) -> int:
        """A very large number: the endpoint knows the limit."""
        return _UNKNOWN_LENGTH

    def fingerprint(self) -> str:
        """Digest of address and model. Other weights at the same address have the same."""
        text = f"endpoint|{self.settings.base_url}|{self._interface.path}|{self.settings.model}"
        return hashlib.sha256(text.encode()).hexdigest()

    def continue_texts(
        self,
        prompts: Sequence[str],
        *,
        new_tokens: int | Sequence[int],
        top_k: int = 1,
        uniforms: Tensor | None = None,
        stop: Callable[[str], bool] | None = None,
        end_at_eos: bool = True,
        token_budget: int = CACHE_BUDGET,
        report: Report = silent,
    ) -> list[str]:
        """The answer to each prompt; see ``errata.editors.contract.Answerer``.

        Args:
            new_tokens: in the endpoint's own tokens.
            stop: applied to the whole answer, which is cut after the first character at which it is complete.
            end_at_eos: must be true: the endpoint decides where its answer ends.
            token_budget: without meaning here.

        Raises:
            InputError: for sampling, or text beyond EOS.
            ErrataError: if the endpoint does not answer.
        """
        if top_k > 1 or not end_at_eos:
            raise InputError(
                f"text from {self.name!r} can only be greedy and end where it ends",
                remedy="Leave out the measurement that samples texts",
                code="ENDPOINT_GREEDY_ONLY",
            )
        limits = [new_tokens] * len(prompts) if isinstance(new_tokens, int) else list(new_tokens)
        wanted = list(zip(prompts, limits, strict=True))
        missing = [entry for entry in dict.fromkeys(wanted) if entry not in self._known]
        found = self._client.replies(
            missing,
            lambda entry: {**self._interface.body(entry[0]), "temperature": 0, "max_tokens": max(entry[1], 1)},
            path=self._interface.path,
            text_at=self._interface.text_at,
            report=report,
            what="texts",
        )
        for attempt in found:
            if attempt.reply is None and attempt.reason:
                raise self._failed(attempt)
        fresh = {entry: attempt.reply or "" for entry, attempt in zip(missing, found, strict=True)}
        texts = [self._known.get(entry, fresh.get(entry, "")) for entry in wanted]
        self._known |= fresh
        while len(self._known) > _REMEMBERED:
            del self._known[next(iter(self._known))]
        return [text if stop is None else _cut(text, stop) for text in texts]

    def used(self, prompts: Sequence[str]) -> list[tuple[str, ...]]:
        """No facts."""
        return [()] * len(prompts)

    def _failed(self, attempt: Attempt) -> ErrataError:
        what = f"the endpoint {self.settings.base_url} does not answer: {attempt.reason}"
        if attempt.status in (401, 403):
            remedy = f"Set the environment variable {KEY_VARIABLE} to a key that may use {self.settings.model!r}"
            return ErrataError(what, remedy=remedy, code="ENDPOINT_REFUSED")
        if attempt.status == 404:
            remedy = f"Check the address, which ends in /v1 as a rule, and the model's name {self.settings.model!r}"
            return ErrataError(what, remedy=remedy, code="ENDPOINT_NOT_FOUND")
        if attempt.status == 429:
            remedy = "Wait, or use an account with a higher limit"
            return ErrataError(what, remedy=remedy, code="ENDPOINT_RATE_LIMITED")
        if attempt.again:
            remedy = "Check that it is running and can be reached from here, then try again"
            return ErrataError(what, remedy=remedy, code="ENDPOINT_UNREACHABLE")
        remedy = (
            f"Check that it offers /{self._interface.path}, and that the prompt is not too long for the model. "
            "BASE#MODEL is for chat models, BASE/completions#MODEL for others"
        )
        return ErrataError(what, remedy=remedy, code="ENDPOINT_REPLY_INVALID")


def _cut(text: str, stop: Callable[[str], bool]) -> str:
    return next((text[:end] for end in range(1, len(text) + 1) if stop(text[:end])), text)


@cache
def byte_tokenizer() -> PreTrainedTokenizerBase:
    """One token per byte of UTF-8, and no special tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)
