"""The Hugging Face hub, as far as errata writes there. Its token is the hub's own affair: it is never shown or kept."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from errata.errors import ErrataError, InputError

_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)
_LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN to a token that may write"


@dataclass(frozen=True, slots=True)
class Uploaded:
    """Where a folder went, and what had been there and was left."""

    url: str
    others: tuple[str, ...]


def check_repository(name: str) -> None:
    """Raises InputError if this cannot be a model's name on the hub."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(f"{name!r} cannot be a name on the hub: {error}", remedy="Give OWNER/NAME") from error
    if not _NAME.fullmatch(name):
        raise InputError(f"{name!r} is not of the form OWNER/NAME", remedy="Give owner and name with one slash between")


def check_reachable(name: str) -> None:
    """Whether a model can be looked for, once and quickly: who loads it asks again and again, for half a minute.

    What lies among the downloads needs no network. What the hub answers, whatever it is, is left to who loads.

    Raises:
        OSError: if the hub cannot be reached.
    """
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError

    try:
        if constants.HF_HUB_OFFLINE or isinstance(try_to_load_from_cache(name, "config.json"), str):
            return
        HfApi(endpoint=constants.ENDPOINT).model_info(name, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except (HfHubHTTPError, HFValidationError):
        return
    except (HTTPError, ConnectionError, TimeoutError) as error:
        raise OSError(f"there is no such directory, and the hub cannot be reached ({first_line(error)})") from error


def check_login() -> None:
    """Raises InputError if the hub's own library finds no token."""
    from huggingface_hub import get_token

    with _told("the token"):
        token = get_token()
    if not token:
        raise InputError("you are not logged in to the hub", remedy=_LOG_IN)


def address(repository: str) -> str:
    """The page that a model has, or would have."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{repository}"


def upload(directory: Path, repository: str, *, private: bool, message: str) -> Uploaded:
    """Make a repository where there is none, and put a folder there.

    Args:
        private: whether only its owner may see it. One that is public already is not written to then.

    Raises:
        InputError: without a token, or where the hub refuses it; if it is public and shall be private.
        ErrataError: if the hub cannot be reached, or fails.
    """
    from huggingface_hub import HfApi

    with _told(repository):
        api = HfApi(token=True)  # the one that it finds itself
        api.create_repo(repository, private=private, exist_ok=True)
        there = api.model_info(repository)
        if private and not there.private:
            raise InputError(
                f"{repository} is there already, and everybody can see it; nothing was uploaded",
                remedy="Make it private on the hub, give another name, or add --public",
            )
        api.upload_folder(repo_id=repository, folder_path=directory, commit_message=message)
    ours = {file.relative_to(directory).as_posix() for file in directory.rglob("*")}
    before = [file.rfilename for file in there.siblings or []]
    return Uploaded(
        address(repository), tuple(name for name in before if name not in ours and name != ".gitattributes")
    )


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Turns what the hub's library raises into an error that says what to do, and never the token."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        OIDCError,
    )

    try:
        yield
    except (LocalTokenNotFoundError, OIDCError) as error:
        raise InputError(f"you are not logged in to the hub: {first_line(error)}", remedy=_LOG_IN) from None
    except HFValidationError as error:
        raise InputError(f"the hub's library refuses {what!r}: {first_line(error)}", remedy="Give OWNER/NAME") from None
    except OfflineModeIsEnabled:
        raise InputError("HF_HUB_OFFLINE is set: the hub may not be asked", remedy="Unset it to upload") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        told = f"the hub answered {status} for {what}: {first_line(error.server_message or error)}"
        if status in (401, 403):
            raise InputError(told, remedy=f"The token may not write there. {_LOG_IN}") from None
        raise ErrataError(told, remedy="What was uploaded before stays there; try again") from None
    except (HTTPError, ConnectionError, TimeoutError) as error:
        raise ErrataError(
            f"the hub cannot be reached: {first_line(error)}",
            remedy="Look at the network and at HF_ENDPOINT; try again",
        ) from None


def first_line(error: object) -> str:
    """The start of a message, without what looks like a token, whoever put it there."""
    lines = str(error).strip().splitlines()
    return re.sub(r"hf_\w+|(?i:bearer\s+)\S+", "…", lines[0].rstrip(".")) if lines else type(error).__name__
