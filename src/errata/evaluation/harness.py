"""lm-evaluation-harness, called as a library: the only module that knows its interface.

The harness's global seeds stay untouched, its bootstrap is off (``ability_results`` has its own), and it asks the hub
for nothing: with local tasks only, the hub's clients are told to be offline meanwhile, and a YAML file whose data lie
there is refused.
"""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from errata.errors import InputError
from errata.evaluation.local_tasks import LocalTasks, local_tasks
from errata.evaluation.task_files import task_files
from errata.extras import require
from errata.models.language_model import LanguageModel
from errata.progress import Report, silent

FEW_SHOT_SEED = 1234  # of the demonstrations' choice; the harness's own default


def check_harness() -> None:
    """Raises MissingExtraError if general ability cannot be measured here."""
    require("general ability", "eval", "lm_eval", "datasets", "sklearn")


def harness_model(model: LanguageModel, *, batch_size: int = 8, report: Report = silent) -> Any:
    """The model in memory as the harness's ``HFLM``: its weights are shared, its tokenizer is copied."""
    check_harness()
    from lm_eval.models.huggingface import HFLM

    class Quiet(HFLM):
        """Tells its progress to ``report``, asks no hub which commit the model is, and begins texts with one BOS."""

        rolling = False

        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return self._told(super().loglikelihood, requests)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> Any:
            self.rolling = True
            try:
                return self._told(super().loglikelihood_rolling, requests)
            finally:
                self.rolling = False

        def tok_encode(self, string: str, *arguments: Any, **named: Any) -> list[int]:
            """In rolling tasks without special tokens: the harness puts one before each text itself, and would count
            the tokenizer's own BOS behind it as a token to predict.
            """
            if not self.rolling:
                return list(super().tok_encode(string, *arguments, **named))
            ids = list(self.tokenizer.encode(string, add_special_tokens=False))
            return ids[1:] if ids[:1] == [self.prefix_token_id] else ids

        def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return self._told(super().generate_until, requests)

        def get_model_info(self) -> dict[str, Any]:
            return {}

        @staticmethod
        def _told(work: Any, requests: Any) -> Any:
            report("ability", 0, len(requests))
            answers = work(requests, disable_tqdm=True)
            report("ability", len(requests), len(requests))
            return answers

    # The harness gives a tokenizer without padding one: to a copy.
    return Quiet(pretrained=model.model, tokenizer=copy.deepcopy(model.tokenizer), batch_size=batch_size)


def check_tasks(tasks: Sequence[str]) -> None:
    """Raises InputError if a task is unknown, or a local one is malformed, lacks its data, or needs the network."""
    check_harness()
    with left_alone():
        _chosen(tasks)
    task_files(paths_in(tasks))


def paths_in(tasks: Sequence[str]) -> list[str]:
    """Those of the tasks that are files or directories, and no names."""
    return [entry for entry in tasks if _is_path(entry)]


def run_tasks(
    model: LanguageModel,
    tasks: Sequence[Any],
    *,
    limit: int | None = None,
    few_shot: int | None = None,
    batch_size: int = 8,
    report: Report = silent,
) -> dict[str, Any]:
    """The harness's results, samples included.

    Args:
        tasks: names of its tasks, groups or tags (``*`` matches any), local files or directories, or task objects.

    Raises:
        InputError: if a task is unknown, or a local one is malformed or needs the network.
    """
    check_harness()
    import lm_eval

    texts = [entry for entry in tasks if isinstance(entry, str)]
    names = [entry for entry in texts if not _is_path(entry)]
    manager, found_names = _chosen(texts)
    chosen: list[Any] = list(found_names)
    chosen += [entry for entry in tasks if not isinstance(entry, str)]
    lm = harness_model(model, batch_size=batch_size, report=report)
    with nullcontext() if names else _offline():
        try:
            found = lm_eval.simple_evaluate(
                model=lm,
                tasks=chosen,
                task_manager=manager,
                num_fewshot=few_shot,
                limit=limit,
                bootstrap_iters=0,
                random_seed=None,
                numpy_random_seed=None,
                torch_random_seed=None,
                fewshot_random_seed=FEW_SHOT_SEED,
            )
        except (OSError, ValueError, KeyError) as error:
            given = ", ".join(str(entry) for entry in texts) or "the probes"
            raise InputError(
                f"lm-evaluation-harness cannot run {given}: {error}",
                remedy="Check the tasks' names, files and data; data of the hub have to be there, or be downloadable",
            ) from error
    if found is None:  # only on other than the first of several processes
        raise InputError("the harness ran in one of several processes", remedy="Run errata in a single process")
    return dict(found)


def _chosen(tasks: Sequence[str]) -> tuple[Any, list[str]]:
    """The harness's index, and the names in it that are meant."""
    from lm_eval.tasks import TaskManager

    local = local_tasks(paths_in(tasks))
    names = [entry for entry in tasks if not _is_path(entry)]
    folders = [str(folder) for folder in local.folders]
    # Indexing the harness's own thousands of tasks takes seconds: only if one of them is named.
    manager = TaskManager(include_path=folders or None, include_defaults=bool(names))
    return manager, _known(manager, names) + _loadable(manager, local)


def _is_path(text: str) -> bool:
    return "/" in text or text.endswith((".yaml", ".yml")) or Path(text).exists()


def _known(manager: Any, names: Sequence[str]) -> list[str]:
    """The tasks that the names match."""
    found: dict[str, None] = {}
    unknown = []
    for name in names:
        matches = manager.match_tasks([name])
        found |= dict.fromkeys(matches)
        if not matches:
            unknown.append(name)
    if unknown:
        raise InputError(
            f"lm-evaluation-harness has no task {', '.join(map(repr, unknown))}",
            remedy="See its list of tasks (lm-eval ls tasks), or give a file or directory of your own",
        )
    return list(found)


def _loadable(manager: Any, local: LocalTasks) -> list[str]:
    """The names of the local tasks; all of them are in the index, or a file is one that the harness does not take."""
    missing = [name for name in local.names if name not in manager.all_tasks]
    if missing:
        raise InputError(
            f"lm-evaluation-harness does not take the local task {', '.join(map(repr, missing))}",
            remedy="Give its file the suffix .yaml, and a name of its own",
        )
    return list(local.names)


@contextmanager
def left_alone() -> Iterator[None]:
    """Around all work with the harness: what it and what it imports draw from the process's random numbers is put back,
    and its warnings, which are about ways to start it that are not ours, are not shown."""
    state, numpy_state = random.getstate(), np.random.get_state()
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        random.setstate(state)
        np.random.set_state(numpy_state)


@contextmanager
def _offline() -> Iterator[None]:
    """The hub's clients try no network in the block; both read their switch at each request."""
    import datasets.config
    import huggingface_hub.constants

    places: Mapping[Any, str] = {datasets.config: "HF_HUB_OFFLINE", huggingface_hub.constants: "HF_HUB_OFFLINE"}
    before = {module: getattr(module, name) for module, name in places.items()}
    for module, name in places.items():
        setattr(module, name, True)
    try:
        yield
    finally:
        for module, name in places.items():
            setattr(module, name, before[module])
