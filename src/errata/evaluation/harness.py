"""lm-evaluation-harness on a loaded model, and the local task files that it reads."""

from __future__ import annotations

import json
import logging
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from transformers import PreTrainedTokenizerBase

from errata.editors.contract import Answerer
from errata.errors import Fault, FaultsError, InputError
from errata.evaluation.absence import LACKING
from errata.models.language_model import LanguageModel
from errata.models.likelihood import NextToken, predict
from errata.models.prompts import Completion, Pair, complete, encode
from errata.results.metrics import Ability
from errata.utils.optional import require
from errata.utils.progress import Report, counter, silent

# Builders of the package `datasets` that read files.
LOCAL_BUILDERS = frozenset({"json", "csv", "parquet", "arrow", "text", "xml"})
# Codes of tasks that a model, or errata, cannot do.
IMPOSSIBLE = frozenset({"ABILITY_MISSING", "TASK_SAMPLES", "TEXT_TOO_LONG"})
_SKIPPED_FOLDERS = frozenset({"__pycache__", ".ipynb_checkpoints"})


@dataclass(frozen=True, slots=True)
class LocalTasks:
    """Local tasks found in files and directories.

    Attributes:
        folders: where the harness has to look.
        names: top-level groups and ungrouped tasks, in the order of the files.
        sampling: files of tasks that sample their answers.
    """

    folders: tuple[Path, ...]
    names: tuple[str, ...]
    sampling: tuple[Path, ...] = ()


class FunctionName(str):
    """The target of a ``!function`` tag: ``MODULE.NAME`` of a Python file beside the task file."""


class TaskLoader(yaml.SafeLoader):
    """Knows ``!function`` and loads it as text: ``FunctionName``."""


def _function_name(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> object:
    return FunctionName(loader.construct_scalar(node))


TaskLoader.add_constructor("!function", _function_name)


def local_tasks(entries: Sequence[str]) -> LocalTasks:
    """Read files and directories of task YAML.

    Raises:
        FaultsError: if one does not exist, cannot be read, defines no task, or its data lie on the hub or the web;
            reports all of them.
    """
    faults: list[Fault] = []
    folders: dict[Path, None] = {}
    names: dict[str, None] = {}
    grouped: set[str] = set()
    sampling: list[Path] = []
    for entry in entries:
        path = Path(entry)
        if not path.exists():
            what, remedy = "there is no such file or directory", "Give a YAML file or a directory"
            faults.append(Fault(entry, what, remedy, code="FILE_NOT_FOUND"))
            continue
        folders.setdefault((path if path.is_dir() else path.parent).resolve())
        found, before = 0, len(faults)
        for file in yaml_files(path):
            config = _merged(file, faults)
            name = config.get("group") or config.get("task")
            if not isinstance(name, str):  # included by other files, not a task itself
                continue
            found += 1
            names.setdefault(name)
            if "group" in config:
                grouped |= members(config.get("task"))
            else:
                faults += _network_faults(config, file)
                sampling += [file] if _samples(config) else []
        if not found and len(faults) == before:
            what, remedy = "no YAML file there defines a task", "Write 'task: NAME' into one (*.yaml)"
            faults.append(Fault(entry, what, remedy, code="TASK_FILE_INVALID"))
    if faults:
        raise FaultsError("the local tasks", faults)
    return LocalTasks(tuple(folders), tuple(name for name in names if name not in grouped), tuple(sampling))


def yaml_files(path: Path) -> list[Path]:
    """A file, or those of a directory that may define tasks; none if nothing is there."""
    if path.is_dir():
        return sorted(file for file in path.rglob("*.yaml") if not _SKIPPED_FOLDERS & {*file.parts})
    return [path] if path.is_file() else []


def _load(file: Path, faults: list[Fault]) -> Any:
    """The content of a task file; None, and a fault, if it cannot be read."""
    try:
        return yaml.load(file.read_text(encoding="utf-8"), Loader=TaskLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        faults.append(Fault(str(file), f"it cannot be read as YAML: {error}", "Correct the file", code="YAML_INVALID"))
        return None


def _merged(file: Path, faults: list[Fault], including: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file's settings over those of the files that it includes; empty if there is a fault."""
    before = len(faults)
    config = _load(file, faults)
    if not isinstance(config, dict):
        if len(faults) == before:
            what, remedy = "it is not a mapping", "Write 'task: NAME' and the task's settings"
            faults.append(Fault(str(file), what, remedy, code="TASK_FILE_INVALID"))
        return {}
    merged: dict[str, Any] = {}
    names = config.pop("include", None) or ()
    for name in names if isinstance(names, list | tuple) else (names,):
        included = (file.parent / str(name)).resolve()
        if included in (*including, file.resolve()):
            what, remedy = f"it includes {name!r}, which includes it", "Remove the circular include"
            faults.append(Fault(str(file), what, remedy, code="TASK_FILE_INVALID"))
        else:
            merged |= _merged(included, faults, (*including, file.resolve()))
        if len(faults) > before:
            return {}
    return merged | config


def members(entries: object) -> set[str]:
    """The names in a group's list of tasks."""
    found: set[str] = set()
    for entry in entries if isinstance(entries, list) else [entries]:
        if isinstance(entry, str):
            found.add(entry)
        elif isinstance(entry, Mapping):
            found |= {str(entry[key]) for key in ("task", "group") if isinstance(entry.get(key), str)}
            found |= members(entry["task"]) if isinstance(entry.get("task"), list) else set()
    return found


def _samples(config: Mapping[str, Any]) -> bool:
    """Whether a task samples its answers, as the harness reads its settings."""
    settings = config.get("generation_kwargs")
    if config.get("output_type", "generate_until") != "generate_until" or not isinstance(settings, Mapping):
        return False
    chosen = settings.get("do_sample")
    if chosen is not None:
        return bool(chosen)
    try:
        return float(settings.get("temperature", 0)) > 0
    except (TypeError, ValueError):  # the harness refuses it
        return False


def _network_faults(config: Mapping[str, Any], file: Path) -> list[Fault]:
    """The data of a task that are not on this machine. Data from a custom function or class are not checked."""
    if "custom_dataset" in config or "class" in config:
        return []
    source = config.get("dataset_path")
    remedy = "For local tasks no network is used: give 'dataset_path: json' and 'dataset_kwargs: {data_files: …}'"
    if not isinstance(source, str):
        return [Fault(str(file), "'dataset_path' is missing", remedy, code="TASK_DATA_REMOTE")]
    if source not in LOCAL_BUILDERS and not Path(source).exists():
        what = f"its data {source!r} are neither a file nor a directory here"
        return [Fault(str(file), what, remedy, code="TASK_DATA_REMOTE")]
    remote = [text for text in texts_in(config.get("dataset_kwargs")) if "://" in text]
    return [Fault(str(file), f"its data file {text!r} is remote", remedy, code="TASK_DATA_REMOTE") for text in remote]


def texts_in(value: object) -> list[str]:
    """All texts in a setting, however deep."""
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return [text for part in parts for text in texts_in(part)]


def task_files(entries: Sequence[str]) -> list[Path]:
    """The task files, those that they include, their data, and the Python files beside those that name a function.

    Args:
        entries: files and directories of task YAML, as ``local_tasks`` takes them.

    Raises:
        FaultsError: for files that cannot be read, and data that are not there.
    """
    faults: list[Fault] = []
    found: dict[Path, None] = {}
    for entry in entries:
        for file in yaml_files(Path(entry)):
            _add(file.resolve(), found, faults)
    if faults:
        raise FaultsError("the local tasks", faults)
    return sorted(found)


def _add(file: Path, found: dict[Path, None], faults: list[Fault]) -> None:
    if file in found:
        return
    found[file] = None
    config = _load(file, faults)
    if not isinstance(config, dict):
        return
    if any(isinstance(text, FunctionName) for text in texts_in(config)):  # which may import what is beside it
        found |= dict.fromkeys(sorted(file.parent.glob("*.py")))
    for part in _parts(config):
        for name in texts_in(part.get("include")):
            _add((file.parent / name).resolve(), found, faults)
        for text in _data(part):
            files = _matching(Path(text))
            if not files:
                what = f"its data file {text!r} does not exist"
                faults.append(Fault(str(file), what, "Create it, or name another file", code="TASK_DATA_MISSING"))
            for path in files:
                inside = sorted(path.rglob("*")) if path.is_dir() else [path]
                found |= dict.fromkeys(entry.resolve() for entry in inside if entry.is_file())
    if "group" in config:
        names = members(config.get("task"))
        for other in yaml_files(file.parent):
            beside = _load(other, [])  # what cannot be read defines nothing that the group could name
            if isinstance(beside, dict) and (beside.get("group") or beside.get("task")) in names:
                _add(other.resolve(), found, faults)


def _parts(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The settings of a file, and those of the tasks in its group."""
    yield config
    inner = config.get("task")
    for entry in inner if isinstance(inner, list) else ():
        if isinstance(entry, Mapping):
            yield from _parts(entry)


def _data(config: Mapping[str, Any]) -> list[str]:
    """Absolute paths, which may hold wildcards; relative ones start in the working directory."""
    kwargs = config.get("dataset_kwargs")
    kwargs = kwargs if isinstance(kwargs, Mapping) else {}
    folder = kwargs.get("data_dir")
    base = Path(folder).absolute() if isinstance(folder, str) else Path.cwd()
    found = [str(base / text) for text in texts_in(kwargs.get("data_files")) if "://" not in text]
    if isinstance(folder, str) and not found:
        found.append(str(base))
    source = config.get("dataset_path")
    if isinstance(source, str) and source not in LOCAL_BUILDERS and Path(source).exists():
        found.append(str(Path(source).absolute()))
    return found


def _matching(path: Path) -> list[Path]:
    """The file or directory at an absolute path, or those that its wildcards match."""
    return [path] if path.exists() else sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))


FEW_SHOT_SEED = 1234  # of the demonstrations' choice; the harness's own default


def check_harness() -> None:
    """Raises MissingExtraError if general ability cannot be measured here."""
    require("general ability", "eval", "lm_eval", "datasets", "sklearn")


def harness_model(model: Answerer, *, batch_size: int = 8, report: Report = silent) -> Any:
    """An answerer as a model of the harness (``lm_eval.api.model.LM``).

    Log-likelihoods follow the harness's rules: spaces at the end of a context belong to the continuation, an empty
    context is the BOS token (EOS, if there is none), and a long context is cut at its beginning. From the harness's own
    class for transformers models this differs:

    - the answerer knows where the prompt ends, so editors that act on prompts can be measured;
    - generation is greedy only: tasks that sample are refused;
    - a tokenizer's BOS stays where a long context is cut;
    - where the end of the context and the continuation merge into one token, they are tokenised as ``complete`` does;
    - logits that are not finite raise NonFiniteError.

    Args:
        batch_size: the rows of one forward pass where all are as long as the longest.
    """
    check_harness()
    from lm_eval.api.model import LM
    from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    tokenizer = model.tokenizer
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id

    def budget(lengths: Iterable[int]) -> int:
        return batch_size * max(lengths, default=1)

    def share(first: int, count: int, total: int) -> Report:
        """Reports progress with some of the requests as progress with all."""
        return lambda _, done, whole: report("ability", first + count * done // max(whole, 1), total)

    # The harness decodes new tokens alone, which loses the space before the first word in Metaspace tokenizers.
    (row,) = encode(tokenizer, ["The river"])
    spaced = str(tokenizer.decode(list(row.ids[row.first_token_after(len("The")) :]))).startswith(" ")

    def alone(text: str) -> str:
        """The text as the harness decodes it."""
        return text if spaced else text.removeprefix(" ")

    class AnswererLM(LM):
        """The harness's requests, answered by ``model``."""

        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
            _check_ability(model, "likelihood")
            pairs: list[Pair] = [self._pair(*request.args) for request in requests]
            completions = complete(tokenizer, pairs)
            pairs = [_cut(model, pair, whole) for pair, whole in zip(pairs, completions, strict=True)]
            report("ability", 0, len(pairs))
            # The last token is not read.
            lengths = [min(max(len(whole.ids) - 1, 1), model.context_length) for whole in completions]
            scores = model.score(pairs, token_budget=budget(lengths), report=share(0, len(pairs), len(pairs)))
            report("ability", len(pairs), len(pairs))
            return [(score.log_probability * len(score.likeliest), score.correct) for score in scores]

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> list[float]:
            """Every token of each text after BOS, in disjoint windows of the model's length. These are rows of tokens,
            which only a ``LanguageModel`` reads.
            """
            if not isinstance(model, LanguageModel):
                raise _lacks(model, "rolling")
            rows: list[list[int]] = []
            expected: list[list[NextToken]] = []
            owners: list[int] = []
            for owner, request in enumerate(requests):
                # Without special tokens: the BOS before each text is no token to predict.
                ids = tokenizer.encode(request.args[0], add_special_tokens=False)
                ids = ids[1:] if ids[:1] == [begin] else ids
                for window in get_rolling_token_windows(ids, begin, model.context_length, 1):
                    given, continued = make_disjoint_window(window)
                    rows.append([*given, *continued[:-1]])
                    expected.append([NextToken(len(given) - 1 + place, token) for place, token in enumerate(continued)])
                    owners.append(owner)
            report("ability", 0, len(requests))
            on_rows = counter(share(0, len(requests), len(requests)), "ability", len(rows))
            found = predict(model, rows, expected, token_budget=budget(map(len, rows)), on_rows=on_rows)
            report("ability", len(requests), len(requests))
            sums = [0.0] * len(requests)
            for owner, predictions in zip(owners, found, strict=True):
                sums[owner] += math.fsum(predictions.log_probabilities)
            return sums

        def generate_until(self, requests: Any, disable_tqdm: bool = True) -> list[str]:
            _check_ability(model, "generation")
            report("ability", 0, len(requests))
            found = [""] * len(requests)
            grouped: dict[str, list[int]] = {}
            for index, request in enumerate(requests):
                grouped.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(index)
            done = 0
            for indices in grouped.values():
                contexts = [requests[index].args[0] for index in indices]
                part = share(done, len(indices), len(requests))
                texts = self._continued(contexts, requests[indices[0]].args[1], part)
                done += len(indices)
                for index, text in zip(indices, texts, strict=True):
                    found[index] = text
            report("ability", len(requests), len(requests))
            return found

        @staticmethod
        def _continued(contexts: list[str], settings: dict[str, Any], part: Report) -> list[str]:
            options = normalize_gen_kwargs(settings)
            if options["do_sample"]:
                what = "a task samples its answers (do_sample), but errata supports only greedy generation"
                raise InputError(what, remedy="Set 'do_sample: false' in a copy of the task", code="TASK_SAMPLES")
            new_tokens, until = options["max_gen_toks"], [text for text in options["until"] if text]
            if new_tokens >= model.context_length:
                what = f"a task generates {new_tokens} tokens, but {model.name!r} accepts {model.context_length} in all"
                raise InputError(
                    what, remedy="Set a smaller 'max_gen_toks' in a copy of the task", code="TEXT_TOO_LONG"
                )
            most = model.context_length - new_tokens
            lengths = [len(row.ids) for row in encode(tokenizer, contexts)]
            prompts = [
                context if length <= most else _end_of(tokenizer, context, most)
                for context, length in zip(contexts, lengths, strict=True)
            ]
            texts = model.continue_texts(
                prompts,
                new_tokens=new_tokens,
                stop=lambda text: any(end in alone(text) for end in until),
                token_budget=budget(min(length, most) + new_tokens for length in lengths),
                report=part,
            )
            return [postprocess_generated_text(alone(text), until, None) for text in texts]

        @staticmethod
        def _pair(context: str, continuation: str) -> Pair:
            prompt = context.rstrip()
            continuation = context[len(prompt) :] + continuation
            if not prompt and not encode(tokenizer, [""])[0].ids:  # no BOS of the tokenizer's own
                prompt = str(tokenizer.decode([begin]))
            return (prompt, continuation, "")

    return AnswererLM()


def _check_ability(model: Answerer, ability: Ability) -> None:
    if ability not in model.abilities:
        raise _lacks(model, ability)


def _lacks(model: Answerer, ability: Ability) -> InputError:
    return InputError(
        f"{model.name} {LACKING[ability]}", remedy="Leave out the tasks that need it", code="ABILITY_MISSING"
    )


def _cut(model: Answerer, pair: Pair, whole: Completion) -> Pair:
    """The pair with as much of the prompt's end as the model takes.

    Args:
        whole: its tokens.
    """
    limit, prompt = whole.target_start, pair[0]
    while (excess := len(whole.ids) - 1 - model.context_length) > 0 and limit > 1:  # the last token is not read
        limit = max(min(limit, whole.target_start) - excess, 1)
        prompt = _end_of(model.tokenizer, prompt, limit)
        (whole,) = complete(model.tokenizer, [(prompt, *pair[1:])])
    return (prompt, *pair[1:])


def _end_of(tokenizer: PreTrainedTokenizerBase, text: str, limit: int) -> str:
    """The end of a text that has at most ``limit`` tokens, BOS included; at least one token."""
    (row,) = encode(tokenizer, [text])
    while (excess := len(row.ids) - limit) > 0 and len(row.ids) > 1:
        special = sum(offsets == (0, 0) for offsets in row.offsets[:1])
        first = min(excess + special, len(row.ids) - 1)
        shorter = text[row.offsets[first][0] :]
        if len(shorter) >= len(text):
            return text
        text = shorter
        (row,) = encode(tokenizer, [text])
    return text


def check_tasks(tasks: Sequence[str]) -> None:
    """Check tasks before any work.

    Raises:
        InputError: if a task is unknown, or a local one is malformed, lacks its data, needs the network, or samples.
    """
    check_harness()
    task_names(tasks)
    task_files(paths_in(tasks))
    sampling = local_tasks(paths_in(tasks)).sampling
    if sampling:
        what = "the task samples its answers (do_sample), but errata supports only greedy generation"
        faults = [Fault(str(file), what, "Set 'do_sample: false' in it", code="TASK_SAMPLES") for file in sampling]
        raise FaultsError("the local tasks", faults)


def task_names(tasks: Sequence[str]) -> list[str]:
    """The names of the selected tasks and groups."""
    with preserved_random_state():
        return _chosen(tasks)[1]


def paths_in(tasks: Sequence[str]) -> list[str]:
    """The tasks given as paths."""
    return [entry for entry in tasks if _is_path(entry)]


def run_tasks(
    model: Answerer,
    tasks: Sequence[Any],
    *,
    only: Sequence[str] | None = None,
    limit: int | None = None,
    few_shot: int | None = None,
    batch_size: int = 8,
    report: Report = silent,
) -> dict[str, Any]:
    """The harness's results, samples included.

    Args:
        tasks: names of its tasks, groups or tags (``*`` matches any), local files or directories, or task objects.
        only: of ``task_names``, those to run; None: all.

    Raises:
        InputError: if a task is unknown, a local one is malformed or needs the network, or the model lacks an ability
            that a task needs, a task samples, or it generates more tokens than the model accepts (``IMPOSSIBLE``).
    """
    check_harness()
    import lm_eval

    texts = [entry for entry in tasks if isinstance(entry, str)]
    names = [entry for entry in texts if not _is_path(entry)]
    manager, found_names = _chosen(texts)
    chosen: list[Any] = [name for name in found_names if only is None or name in only]
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
            what = f"lm-evaluation-harness cannot run {', '.join(texts) or 'the probes'}: {error}"
            remedy = "Check the tasks' names, files and data; data from the hub must be cached or downloadable"
            raise InputError(what, remedy=remedy, code="HARNESS_FAILED") from error
    if found is None:  # only on other than the first of several processes
        what, remedy = "the harness ran in one of several processes", "Run errata in a single process"
        raise InputError(what, remedy=remedy, code="HARNESS_SEVERAL_PROCESSES")
    return dict(found)


def _chosen(tasks: Sequence[str]) -> tuple[Any, list[str]]:
    """The harness's index, and the names of the selected tasks."""
    from lm_eval.tasks import TaskManager

    local = local_tasks(paths_in(tasks))
    names = [entry for entry in tasks if not _is_path(entry)]
    folders = [str(folder) for folder in local.folders]
    # Indexing the harness's own thousands of tasks takes seconds: only if one of them is named.
    manager = TaskManager(include_path=folders or None, include_defaults=bool(names))
    return manager, _known(manager, names) + _loadable(manager, local)


def _is_path(text: str) -> bool:
    """Whether a task is a path. A directory without task files does not hide the task of the same name."""
    return "/" in text or text.endswith((".yaml", ".yml")) or bool(yaml_files(Path(text)))


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
        what = f"lm-evaluation-harness has no task {', '.join(map(repr, unknown))}"
        remedy = "See its list of tasks (lm-eval ls tasks), or give your own file or directory"
        raise InputError(what, remedy=remedy, code="TASK_UNKNOWN")
    return list(found)


def _loadable(manager: Any, local: LocalTasks) -> list[str]:
    """The names of the local tasks.

    Raises:
        InputError: if one is not in the index, since the harness cannot load its file.
    """
    missing = [name for name in local.names if name not in manager.all_tasks]
    if missing:
        what = f"lm-evaluation-harness cannot load the local task {', '.join(map(repr, missing))}"
        raise InputError(what, remedy="Give its file the suffix .yaml, and a unique name", code="TASK_NOT_LOADED")
    return list(local.names)


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Around all work with the harness: restores the random states of Python, NumPy and PyTorch afterwards, and hides
    warnings about ways to start the harness that errata does not use."""
    state, numpy_state = random.getstate(), np.random.get_state()
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        logger.setLevel(level)
        random.setstate(state)
        np.random.set_state(numpy_state)


@contextmanager
def _offline() -> Iterator[None]:
    """Keep the hub's clients off the network in the block; both read their switch at each request."""
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
