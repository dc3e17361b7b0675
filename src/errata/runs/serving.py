"""Edited models behind an OpenAI-compatible endpoint, for trying them: transformers' own server, with our models in it.

The unedited model and its edited states share all weights but those of the edited matrices, so that requests can choose
between them, at the same time, for little more memory than one model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from errata.errors import InputError
from errata.models.language_model import LanguageModel
from errata.patches.patch import Patch
from errata.patches.stack import Stack
from errata.utils.optional import require
from errata.utils.progress import Report, silent

BASE = "base"
"""The name of the unedited model in requests."""


@dataclass(frozen=True, slots=True, eq=False)
class _State:
    """The base with some patches."""

    name: str
    patches: tuple[Patch, ...]
    forced: bool  # whether a patch was made for other weights, as stacks allow


def served_models(
    model: LanguageModel,
    stack: Stack | None = None,
    patches: Sequence[tuple[str, Patch]] = (),
    *,
    report: Report = silent,
) -> dict[str, PreTrainedModel]:
    """The models that requests can name: ``base``, and every state that a patch leads to, such as ``base+first``.

    A patch is put on that state for whose weights it was made, so that alternatives and patches on each other can be
    served together. Those of a stack are put on each other.

    Args:
        model: the base, without edits; afterwards it is as before, and is the model ``base``.
        stack: patches on it.
        patches: (name, patch), each after those that it was made on top of.
        report: progress callback, in patches.

    Raises:
        InputError: if a patch was made for other weights than any of these states has, or names are not unique.
    """
    base = _State(BASE, (), False)
    states, served = {model.fingerprint(): base}, {BASE: model.model}
    if stack is not None:
        stack.put_into(model)  # checks the base
        stack.take_out(model)
    top = base
    of_stack = () if stack is None else stack.patches
    wanted: list[tuple[str, Patch, bool | None]] = [
        *((each.name, each.patch, each.forced or bool(each.missing)) for each in of_stack),
        *((name, patch, None) for name, patch in patches),
    ]
    for number, (name, patch, forced) in enumerate(wanted, start=1):
        under = states.get(patch.fingerprint) if forced is None else top
        if under is None and len(wanted) == 1 and patch.base != model.name:
            raise InputError(
                f"the patch {name!r} was made for {patch.base!r}, not for {model.name!r}",
                remedy="Give that model, and first the patches below this one, if it has any",
                code="PATCH_OTHER_WEIGHTS",
            )
        if under is None:
            raise InputError(
                f"the patch {name!r} was made for other weights than the model has with any of the patches before it",
                remedy=f"Give the base that it was made for ({patch.base!r}), and first the patches below it",
                code="PATCH_OTHER_WEIGHTS",
            )
        state = _State(f"{under.name}+{name}", (*under.patches, patch), under.forced or bool(forced))
        if state.name in served:
            what = f"two patches would be served as {state.name!r}"
            raise InputError(what, remedy="Give the patches' files different names", code="PATCH_NAME_TWICE")
        with _applied(model, state):
            states.setdefault(model.fingerprint(), state)
            served[state.name] = _copy_with_own(model, state.patches)
        top = state
        report("patches", number, len(wanted))
    return served


@contextmanager
def _applied(model: LanguageModel, state: _State) -> Iterator[None]:
    """The model in a state while the context is open."""
    inside: list[Patch] = []
    try:
        for patch in state.patches:
            patch.apply(model, force=state.forced)
            inside.append(patch)
        yield
    finally:
        for patch in reversed(inside):
            patch.undo(model)


def _copy_with_own(model: LanguageModel, patches: Sequence[Patch]) -> PreTrainedModel:
    """The transformers model as it is now, with its own copies of the matrices that patches edit, sharing the rest."""
    shared = {id(tensor): tensor for tensor in chain(model.model.parameters(), model.model.buffers())}
    copied: PreTrainedModel = copy.deepcopy(model.model, shared)
    row = model.architecture
    for place in sorted({term.place for patch in patches for term in patch.terms}):
        module = copied.get_submodule(f"{row.blocks}.{place.layer}.{row.path_of(place.module)}")
        weight = module.get_parameter("weight").detach().clone()
        module.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
    return copied


def build_app(models: Mapping[str, PreTrainedModel], tokenizer: PreTrainedTokenizerBase, hosts: Sequence[str]) -> Any:
    """A FastAPI application: transformers' server for these models only. Nothing is loaded on request.

    Args:
        models: by the names that requests give.
        hosts: the names of this machine that requests may address, against DNS rebinding; ``*`` for all.

    Raises:
        MissingExtraError: without fastapi, uvicorn and openai.
    """
    require("errata serve", "serve", "fastapi", "uvicorn", "openai")
    from fastapi import HTTPException, Request
    from fastapi.responses import JSONResponse
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from transformers.cli.serving.chat_completion import ChatCompletionHandler
    from transformers.cli.serving.completion import CompletionHandler
    from transformers.cli.serving.model_manager import ModelManager
    from transformers.cli.serving.response import ResponseHandler
    from transformers.cli.serving.server import build_server
    from transformers.cli.serving.systemone import SystemOneHandler
    from transformers.cli.serving.transcription import TranscriptionHandler
    from transformers.cli.serving.utils import GenerationState

    class Edited(ModelManager):
        """Hands out the given models, and never loads or unloads one."""

        @staticmethod
        def process_model_name(model_id: str) -> str:
            return model_id

        def load_model_and_processor(self, model_id_and_revision: str, *_: Any, **__: Any) -> Any:
            if model_id_and_revision not in models:
                known = ", ".join(models)
                raise HTTPException(404, f"there is no model {model_id_and_revision!r}; available: {known}")
            return models[model_id_and_revision], tokenizer

        def get_gen_models(self, *_: Any) -> list[dict[str, Any]]:  # type: ignore[override]
            return [{"id": name, "object": "model", "created": 0, "owned_by": "errata"} for name in models]

        def shutdown(self) -> None:
            """The models belong to the caller."""

    manager, state = Edited(), GenerationState()
    app = build_server(
        manager,
        ChatCompletionHandler(manager, state),
        completion_handler=CompletionHandler(manager, state),
        response_handler=ResponseHandler(manager, state),
        transcription_handler=TranscriptionHandler(manager, state),
        systemone_handler=SystemOneHandler(manager, state),
        generation_state=state,
    )
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))

    async def refuse(_: Request, error: Exception) -> JSONResponse:
        """As OpenAI's clients show errors; a ValueError is what a model cannot do, such as chat without a template."""
        known = error if isinstance(error, HTTPException) else HTTPException(400, str(error))
        body = {"message": str(known.detail), "type": "invalid_request_error"}
        return JSONResponse({"error": body}, status_code=known.status_code)

    for kind in (HTTPException, ValueError):
        app.add_exception_handler(kind, refuse)
    return app
