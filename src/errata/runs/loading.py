"""Models by name: a plain model, a stack of patches on one, a run that edits one, or the file of an edit.

The file of an edit that changes no weights names its base, which may be such a file too, and is used as a model:
``load_editor`` makes its editor, with all edits in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from errata.editors.contract import Answerer, Base, KnowledgeEditor
from errata.editors.edit_file import FORMAT, StoredEdit, edit_format
from errata.editors.endpoint import Endpoint, check_allowed, is_endpoint
from errata.editors.registry import make_editor
from errata.errors import InputError
from errata.models.copies import Copies, process_count
from errata.models.language_model import LanguageModel
from errata.models.loading import lasting_name
from errata.models.offload import Device, Spread
from errata.patches.patch import Patch
from errata.patches.stack import Stack, has_stack, is_stack, new_stack, read_stack, stack_base
from errata.runs.resume import patch_of_run
from errata.runs.run import is_run, open_run
from errata.utils.files import is_file, is_there
from errata.utils.progress import Report, silent
from errata.utils.text import dtype_name

DEPTH = 20  # of runs on stacks on runs …


def base_of(name: str) -> str:
    """The plain model on which a stack, a run or an edit is based; a plain model is its own base.

    Raises:
        InputError: if a record cannot be read, or a base is based on itself.
    """
    base = name
    for _ in range(DEPTH):
        if is_stack(base):
            base = stack_base(base)[0]
        elif is_run(base):
            base = open_run(Path(base)).manifest.model
        elif is_edit(base):
            base = StoredEdit.load(Path(base)).base
        else:
            return base
    raise InputError(
        f"{name!r} is based on itself", remedy="Give the model that was edited first", code="STACK_CIRCULAR"
    )


def is_edit(name: str) -> bool:
    """Whether a name is the file of an edit that changes no weights."""
    return is_file(Path(name)) and edit_format(Path(name)) == FORMAT


def check_changes_weights(name: str) -> None:
    """Raises InputError if a name is the file of an edit that changes no weights."""
    if is_edit(name):
        method = StoredEdit.load(Path(name)).method
        raise InputError(
            f"{name} is an edit by {method!r}, which changes no weights",
            remedy=f"`errata ask`, `evaluate`, `history`, `show` and `rebuild` take such edits, and `edit` with "
            f"--method {method} adds facts to them; give an edit of weights or a model here",
            code="EDIT_NOT_OF_WEIGHTS",
        )


def load_patch(path: str | Path) -> Patch:
    """The patch of a file.

    Raises:
        InputError: if the file is not a patch, or is damaged.
    """
    check_changes_weights(str(path))
    return Patch.load(path)


def load_base(
    name: str,
    *,
    dtype: torch.dtype | None = None,
    device: Device | None = None,
    trust_remote_code: bool = False,
) -> Base:
    """As ``load_model``, or the model at an address, whose weights are not at hand."""
    if is_endpoint(name):
        return Endpoint(name)
    return load_model(name, dtype=dtype, device=device, trust_remote_code=trust_remote_code)


def check_weights(name: str) -> None:
    """Raises InputError if a name is an address, whose weights are not at hand, or an edit that changes none."""
    check_changes_weights(name)
    if is_endpoint(base_of(name)):
        raise InputError(
            f"{base_of(name)} is an endpoint, whose weights are not at hand",
            remedy="`errata ask` and `evaluate` take endpoints, and `edit` with --method retrieval, substitute or "
            "post_edit; "
            "give a model, a stack or a run here",
            code="ENDPOINT_WITHOUT_WEIGHTS",
        )


def load_model(
    name: str,
    *,
    dtype: torch.dtype | None = None,
    device: Device | None = None,
    trust_remote_code: bool = False,
) -> LanguageModel:
    """A plain model, or the base of a stack or a run with its patches applied: all that is in weights.

    Args:
        dtype: of the weights; by default that in which a stack's or run's base was edited, else see
            ``LanguageModel.load``.

    Raises:
        InputError: if it cannot be loaded, the base has changed, or the edit is not one of weights.
    """
    model = load_here(name, dtype, device, trust_remote_code=trust_remote_code)
    if process_count() > 1:
        if isinstance(device, Spread):
            what = "torchrun gives each process a copy of the model, and --device-map spreads one over all devices"
            raise InputError(what, remedy="Leave one of them out", code="DEVICE_MAP_WITH_COPIES")
        options = {
            "name": lasting_name(name),
            "dtype": dtype_name(model.dtype),
            "device": None if device is None else str(device),
            "trust": trust_remote_code,
        }
        model.copies = Copies.load(model, options)
    return model


def load_here(name: str, dtype: torch.dtype | None, device: Device | None, *, trust_remote_code: bool) -> LanguageModel:
    """As ``load_model``, in this process alone."""
    check_weights(name)  # also raises InputError for a circular record, in which ``_load`` would not end
    return _load(name, dtype, device, trust_remote_code)


def _load(name: str, dtype: torch.dtype | None, device: Device | None, trust_remote_code: bool) -> LanguageModel:
    check_changes_weights(name)
    apply: Callable[[LanguageModel], object]
    if is_stack(name):
        base, made_in = stack_base(name)
        apply = read_stack(Path(name)).put_into
    elif is_run(name):
        run = open_run(Path(name))
        base, made_in = run.manifest.model, getattr(torch, run.manifest.dtype)
        apply = partial(patch_of_run, run=run)
    else:
        return LanguageModel.load(name, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    model = _load(base, dtype or made_in, device, trust_remote_code)
    apply(model)
    model.name = name
    return model


def load_editor(
    name: str,
    *,
    dtype: torch.dtype | None = None,
    device: Device | None = None,
    trust_remote_code: bool = False,
    report: Report = silent,
) -> KnowledgeEditor:
    """The editor of the file of an edit, with this edit and those under it in place.

    Raises:
        InputError: if it cannot be loaded, the base has changed, the edits are by different editors, or the base is an
            endpoint that the user has not named.
    """
    edit = StoredEdit.load(Path(name))
    model, editor = editor_under(edit, dtype=dtype, device=device, trust_remote_code=trust_remote_code, report=report)
    editor.restore(edit)
    model.name = name
    return editor


def editor_under(
    edit: StoredEdit,
    *,
    dtype: torch.dtype | None = None,
    device: Device | None = None,
    trust_remote_code: bool = False,
    report: Report = silent,
) -> tuple[Base, KnowledgeEditor]:
    """The base model and the editor that made an edit, with the edits that it is based on in place, but not itself.

    Raises:
        InputError: as ``load_editor``.
    """
    under = _chain(edit.base)
    check_alike([*(each for _, each in under), edit])
    base = under[0][1].base if under else edit.base
    if is_endpoint(base):
        check_allowed(base)
    model = load_base(base, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    editor = make_editor(edit.method, model, edit.settings, report)
    for path, each in under:
        editor.restore(each)
        model.name = path
    return model, editor


def check_alike(edits: Sequence[StoredEdit]) -> None:
    """Raises InputError if edits on top of each other are by different editors, or with different settings."""
    if any((each.method, each.settings) != (edits[-1].method, edits[-1].settings) for each in edits):
        methods = ", ".join(dict.fromkeys(each.method for each in edits))
        raise InputError(
            f"an edit is based on edits with other methods or settings ({methods})",
            remedy="Edits on top of each other need the same method and the same settings",
            code="EDITS_DIFFER",
        )


def load_answerer(
    name: str,
    *,
    dtype: torch.dtype | None = None,
    device: Device | None = None,
    trust_remote_code: bool = False,
) -> tuple[Answerer, str]:
    """A model by any name, to be queried, and its fingerprint.

    As ``load_model``, and the files of edits that change no weights.
    """
    if is_edit(name):
        editor = load_editor(name, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
        return editor.view(), editor.fingerprint()
    model = load_base(name, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    return model, model.fingerprint()


def _chain(name: str) -> list[tuple[str, StoredEdit]]:
    """(path, edit) of a file and of those that it is based on, oldest first."""
    base_of(name)  # raises an error for files that are based on themselves
    found: list[tuple[str, StoredEdit]] = []
    while is_edit(name):
        edit = StoredEdit.load(Path(name))
        found.append((name, edit))
        name = edit.base
    return found[::-1]


def stack_under(model: LanguageModel, name: str, fingerprint: str) -> Stack:
    """The patches that a model was loaded with, by the records of its directory; an empty stack if there are none.

    Args:
        name: from which ``model`` was loaded.
        fingerprint: of its weights as they were loaded.
    """
    if has_stack(name):
        return read_stack(Path(name))
    return stack_of_run(name, device=model.device) if is_run(name) else new_stack(model, fingerprint)


def stack_of_run(name: str, *, device: Device | None = None, trust_remote_code: bool = False) -> Stack:
    """The stack of a run's base, with the whole run as one patch on top."""
    run = open_run(Path(name))
    base = load_model(
        run.manifest.model, dtype=getattr(torch, run.manifest.dtype), device=device, trust_remote_code=trust_remote_code
    )
    under = stack_under(base, run.manifest.model, run.manifest.fingerprint)
    return under.with_patch(Path(name).name, patch_of_run(base, run))


def check_exists(name: str) -> None:
    """Raises InputError if the path of an edited model does not exist; models on the hub cannot be edited ones."""
    if name != "lab" and not is_there(Path(name)):
        what = f"there is no file or directory {name!r}"
        remedy = "Give an edited model, a patch or a run; models by name, such as those of the hub, have no edits"
        raise InputError(what, remedy=remedy, code="FILE_MISSING")


def edits_of(name: str) -> list[tuple[str, Patch | StoredEdit]]:
    """(name, edit), oldest first, of anything that was edited: as ``patches_of``, and the files of other edits.

    Raises:
        InputError: if there are none.
    """
    if is_edit(name):
        return [(Path(path).stem, edit) for path, edit in _chain(name)]
    return [*patches_of(name)]


def patches_of(name: str) -> list[tuple[str, Patch]]:
    """(name, patch) of a patch file, a stack, a full model that was edited, or a run, without loading a model.

    The patches of a run are those of its batches, as they were before any shaping of the whole run.

    Raises:
        InputError: if there are none, also if the edit changes no weights.
    """
    path = Path(name)
    if is_file(path):
        return [(path.stem, load_patch(path))]
    if has_stack(name):
        return [(stacked.name, stacked.patch) for stacked in read_stack(path).patches]
    if is_run(name):
        return [(f"batch {batch.record.index + 1}", batch.patch) for batch in open_run(path).saved_batches()]
    check_exists(name)
    what = f"there are no patches in {name!r}"
    remedy = "Give a patch (.safetensors), or a directory created by `errata edit`, `apply` or `merge`"
    raise InputError(what, remedy=remedy, code="PATCHES_MISSING")
