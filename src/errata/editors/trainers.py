"""What `errata train-editor` trains, by name, and the frame of every training; ``table`` has the rows.

A further trainer is an entry of ``TRAINERS`` and a row of ``table.TRAINER_ROWS``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

from errata.editing.recipe import fault_at
from errata.editors import mend, rewriting, rledit, scope, serac
from errata.editors.table import check_trainer
from errata.editors.trained_editor import TrainedEditor, Trainer, TrainerSettings
from errata.editors.training_data import EditorData, Split
from errata.errors import FaultsError
from errata.models.language_model import LanguageModel
from errata.models.loading import lasting_name
from errata.utils.progress import Report, silent
from errata.utils.provenance import now, software_versions

TRAINERS: Final[Mapping[str, Trainer]] = {
    scope.SCOPE: serac.TRAINER,
    mend.MEND: mend.TRAINER,
    rewriting.POST_EDIT: rewriting.TRAINER,
    rledit.RLEDIT: rledit.TRAINER,
}


def trainer_settings(
    name: str, changes: Mapping[str, Any], *, trainers: Mapping[str, Trainer] = TRAINERS
) -> TrainerSettings:
    """The settings of a trainer: its defaults, and changes over them.

    Raises:
        InputError: if there is no such trainer.
        FaultsError: for every invalid setting.
    """
    if name not in trainers:
        check_trainer(name)
    kind = trainers[name].settings
    try:
        return kind.model_validate(changes)
    except ValidationError as error:
        faults = [fault_at("the settings", item, known=kind.model_fields)[1] for item in error.errors()]
        raise FaultsError(f"the settings of {name}", faults) from error


def train_editor(
    name: str,
    model: LanguageModel,
    data: Mapping[Split, EditorData],
    settings: TrainerSettings,
    *,
    trainers: Mapping[str, Trainer] = TRAINERS,
    report: Report = silent,
) -> TrainedEditor:
    """Train a part of an editor on the splits ``train`` and ``calibration``.

    Args:
        data: all splits of a source; ``test`` is not used.
        settings: of the trainer's own class.
    """
    train, calibration = data["train"], data["calibration"]
    values = settings.model_dump(mode="json")
    learnt = trainers[name].learn(model, train, calibration, values, report)
    return TrainedEditor(
        name=name,
        settings=values,
        source=train.source,
        split_seed=train.seed,
        data_digest=f"{train.digest()} {calibration.digest()}",
        base=lasting_name(model.name),
        base_fingerprint=model.fingerprint(),
        record=learnt.record,
        state=learnt.state,
        tensors={key: tensor.detach().cpu().contiguous() for key, tensor in learnt.tensors.items()},
        created=now(),
        versions=software_versions(),
    )
