"""Uploads to the Hugging Face hub. The token is managed by huggingface_hub; it is never shown or stored here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token, try_to_load_from_cache
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    OIDCError,
)
from huggingface_hub.utils import validate_repo_id

from errata.errors import ErrataError, InputError

_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)
_LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN to a token that may write"


@dataclass(frozen=True, slots=True)
class Uploaded:
    """The page of an upload, and the repository's other files."""

    url: str
    others: tuple[str, ...]


def check_repository(name: str) -> None:
    """Raises InputError if a name is not a valid OWNER/NAME."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(
            f"{name!r} cannot be a name on the hub: {error}", remedy="Give OWNER/NAME", code="HUB_NAME_INVALID"
        ) from error
    if not _NAME.fullmatch(name):
        what = f"{name!r} is not of the form OWNER/NAME"
        raise InputError(what, remedy="Give owner and name separated by one slash", code="HUB_NAME_INVALID")


def check_reachable(name: str) -> None:
    """Check once and quickly that the hub can be reached, since loading would retry for half a minute.

    A cached model needs no network. If the hub answers with an error, loading reports it.

    Raises:
        OSError: if the hub cannot be reached.
    """
    try:
        if constants.HF_HUB_OFFLINE or isinstance(try_to_load_from_cache(name, "config.json"), str):
            return
        HfApi(endpoint=constants.ENDPOINT).model_info(name, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except (HfHubHTTPError, HFValidationError):
        return
    except (HTTPError, ConnectionError, TimeoutError) as error:
        raise OSError(f"there is no such directory, and the hub cannot be reached ({first_line(error)})") from error


def check_login() -> None:
    """Raises InputError if huggingface_hub finds no token."""
    with _hub_errors("the token"):
        token = get_token()
    if not token:
        raise InputError("you are not logged in to the hub", remedy=_LOG_IN, code="HUB_NOT_LOGGED_IN")


def address(repository: str) -> str:
    """The URL of a model's page."""
    return f"{constants.ENDPOINT}/{repository}"


def upload(directory: Path, repository: str, *, private: bool, message: str) -> Uploaded:
    """Upload a folder to a repository, which is created if it does not exist.

    Args:
        private: whether only its owner may see it. An existing public repository is then not written to.

    Raises:
        InputError: without a valid token, or if the repository is public and ``private`` is set.
        ErrataError: if the hub cannot be reached, or fails.
    """
    with _hub_errors(repository):
        api = HfApi(token=True)  # the stored one
        api.create_repo(repository, private=private, exist_ok=True)
        info = api.model_info(repository)
        if private and not info.private:
            what = f"{repository} exists and is public; nothing was uploaded"
            remedy = "Make it private on the hub, give another name, or add --public"
            raise InputError(what, remedy=remedy, code="HUB_REPOSITORY_PUBLIC")
        api.upload_folder(repo_id=repository, folder_path=directory, commit_message=message)
    ours = {file.relative_to(directory).as_posix() for file in directory.rglob("*")}
    before = [file.rfilename for file in info.siblings or []]
    return Uploaded(
        address(repository), tuple(name for name in before if name not in ours and name != ".gitattributes")
    )


@contextmanager
def _hub_errors(what: str) -> Iterator[None]:
    """Turn huggingface_hub's errors into errors with a remedy, and never show the token."""
    try:
        yield
    except (LocalTokenNotFoundError, OIDCError) as error:
        raise InputError(
            f"you are not logged in to the hub: {first_line(error)}", remedy=_LOG_IN, code="HUB_NOT_LOGGED_IN"
        ) from None
    except HFValidationError as error:
        raise InputError(
            f"the hub's library rejects {what!r}: {first_line(error)}",
            remedy="Give OWNER/NAME",
            code="HUB_NAME_INVALID",
        ) from None
    except OfflineModeIsEnabled:
        raise InputError(
            "HF_HUB_OFFLINE is set, so the hub cannot be used", remedy="Unset it to upload", code="HUB_OFFLINE"
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        message = f"the hub answered {status} for {what}: {first_line(error.server_message or error)}"
        if status in (401, 403):
            remedy = f"The token may lack write permission. {_LOG_IN}"
            raise InputError(message, remedy=remedy, code="HUB_FORBIDDEN") from None
        remedy = "Files uploaded so far remain there; try again"
        raise ErrataError(message, remedy=remedy, code="HUB_FAILED") from None
    except (HTTPError, ConnectionError, TimeoutError) as error:
        raise ErrataError(
            f"the hub cannot be reached: {first_line(error)}",
            remedy="Check the network and HF_ENDPOINT; try again",
            code="HUB_UNREACHABLE",
        ) from None


def first_line(error: object) -> str:
    """The first line of a message, with anything that looks like a token masked."""
    lines = str(error).strip().splitlines()
    return re.sub(r"hf_\w+|(?i:bearer\s+)\S+", "…", lines[0].rstrip(".")) if lines else type(error).__name__
