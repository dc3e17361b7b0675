"""The six zero-shot probes that papers on editing report: SST-2, MRPC, CoLA, RTE, MMLU and NLI, 100 questions each.

Prompts, the order in which an answer is searched for its words, the split (the first ten records are reserved for
demonstrations, the next ones are used) and the two readings are those of the code that gave the published numbers
(jianghoucheng/AlphaEdit, ``glue_eval/*_eval.py``; Gupta et al. 2024, "Model Editing at Scale leads to Gradual and
Catastrophic Forgetting", https://arxiv.org/abs/2401.07453), exactly where a number depends on it: no space after
"Review :", one after CoLA's "Answer:".

- *generated*: five greedy tokens, parsed as a label; an answer that cannot be parsed is wrong (label -1);
- *likelihood*: the label whose word, after one space, has the larger mean log-probability over its tokens.

Oddities are reproduced, so that the numbers compare: an MMLU answer counts only with a line's end right after its
letter; of two equally likely words the second wins, of MMLU's none; and RTE's labels are *inverted*: GLUE has 0 for
entailment, the prompt's "True" stands for 1. RTE is therefore reported a second time with GLUE's labels (``_glue``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from errata.editors.contract import Answerer
from errata.errors import Fault, FaultsError, InputError
from errata.facts.joining import joined
from errata.models.language_model import TOKEN_BUDGET
from errata.models.prompts import encode
from errata.results.records import weighted_f1
from errata.utils.files import file_text, reason_of
from errata.utils.progress import Report, silent
from errata.utils.text import listed

PROBE_GROUP: Final = "probes"
WEIGHTED_F1: Final = "weighted_f1"
LIKELIHOOD: Final = "_likelihood"
NEW_TOKENS: Final = 5
RESERVED_FOR_DEMONSTRATIONS: Final = 10
UNPARSABLE: Final = -1

Item = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Probe:
    """One probe.

    Attributes:
        name: of its file, without ``.json``.
        fields: of a record, with their types.
        prompt: the record's prompt.
        marker: the answer follows the last occurrence of this text.
        label_texts: (text to search for in an answer, in lower case; its label), in the order of the search.
        words: for each label the word whose likelihood represents it; the last one wins if all others are less likely.
        label: the record's label.
        ties_are_invalid: whether equally likely words are no answer.
        labels_inverted: whether the data set's own labels are the other way round.
    """

    name: str
    fields: Mapping[str, type]
    prompt: Callable[[Item], str]
    marker: str
    label_texts: tuple[tuple[str, int], ...]
    words: Mapping[int, str]
    label: Callable[[Item], int] = lambda item: int(item["label"])
    ties_are_invalid: bool = False
    labels_inverted: bool = False

    @property
    def task(self) -> str:
        """The name of its task."""
        return f"probe_{self.name}"

    def pairs(self, item: Item) -> list[tuple[str, str, str]]:
        """(prompt, word, joiner) for each label. The papers put one space before the word after any prompt, also after
        one that ends in a space or a newline.
        """
        return [(self.prompt(item), word, " ") for word in self.words.values()]

    def read(self, text: str) -> int:
        """The label that a generated text means; -1 if none."""
        answer = text.split(self.marker)[-1].lower()
        return next((label for part, label in self.label_texts if part in answer), UNPARSABLE)

    def likeliest(self, log_probabilities: Sequence[float]) -> int:
        """The label whose word is the likeliest, of log-probabilities in the order of ``words``."""
        best = max(log_probabilities)
        found = [label for label, value in zip(self.words, log_probabilities, strict=True) if value == best]
        return UNPARSABLE if self.ties_are_invalid and len(found) > 1 else found[-1]

    def values(self, item: Item, answered: int, *, suffix: str = "") -> dict[str, Any]:
        """The values of all metrics for one answer."""
        right = self.label(item)
        found: dict[str, Any] = {
            f"{WEIGHTED_F1}{suffix}": (right, answered),
            f"accuracy{suffix}": float(right == answered),
        }
        if not suffix:
            found["unparsable"] = float(answered == UNPARSABLE)
        if self.labels_inverted:
            found[f"{WEIGHTED_F1}{suffix}_glue"] = (1 - right, answered)
        return found


def _choices(item: Item) -> str:
    lines = "".join(f"({letter}) {option}\n" for letter, option in zip("ABCD", item["choices"], strict=True))
    return f"Question: {item['question']}\n{lines}Answer:"


_YES_NO = ((("yes", 1), ("no", 0)), {1: "Yes", 0: "No"})
_TRUE_FALSE = {1: "True", 0: "False"}
_PAIR: Mapping[str, type] = {"sentence1": str, "sentence2": str, "label": int}

PROBES: Final = (
    Probe(
        "sst2",
        {"sentence": str, "label": int},
        lambda item: f"Review :{item['sentence']}\nSentiment :",
        "Sentiment :",
        (("positive", 1), ("negative", 0)),
        {1: "positive", 0: "negative"},
    ),
    Probe(
        "mrpc",
        _PAIR,
        lambda item: (
            "Are the sentences paraphrases of each other.\n"
            f"Sentence 1: {item['sentence1']}\nSentence 2: {item['sentence2']}\nAnswer:"
        ),
        "Answer:",
        *_YES_NO,
    ),
    Probe(
        "cola",
        {"sentence": str, "label": int},
        lambda item: f"Is this sentence linguistically acceptable?\nSentence: {item['sentence']}\nAnswer: ",
        "Answer:",
        *_YES_NO,
    ),
    Probe(
        "rte",
        _PAIR,
        lambda item: f"{item['sentence1']}\nquestion: {item['sentence2']} True or False?\nanswer:",
        "answer:",
        (("false", 0), ("true", 1)),
        _TRUE_FALSE,
        labels_inverted=True,
    ),
    Probe(
        "mmlu",
        {"question": str, "choices": list, "answer": int},
        _choices,
        "\0",  # none: the whole text is searched
        (("a\n", 0), ("b\n", 1), ("c\n", 2), ("d\n", 3)),
        {0: "A", 1: "B", 2: "C", 3: "D"},
        label=lambda item: int(item["answer"]),
        ties_are_invalid=True,
    ),
    Probe(
        "nli",
        {"sentence1": str, "sentence2": str, "label": str},
        lambda item: f"{item['sentence1']} entails the {item['sentence2']} True or False? Answer:",
        "True or False? Answer:",
        (("true", 1), ("false", 0)),
        _TRUE_FALSE,
        label=lambda item: int(item["label"] == "entailment"),
    ),
)


def read_probes(folder: Path, items: int) -> dict[str, list[Item]]:
    """The questions of each probe, by its name: ``items`` records after the first ten of ``NAME.json``.

    Raises:
        FaultsError: with all files that are missing, malformed or too short.
    """
    faults: list[Fault] = []
    found: dict[str, list[Item]] = {}
    for probe in PROBES:
        path = folder / f"{probe.name}.json"
        try:
            records = json.loads(file_text(path))
        except (OSError, ValueError, RecursionError) as error:
            what, remedy = f"it cannot be read as JSON: {reason_of(error)}", "Give a directory of the six files"
            faults.append(Fault(str(path), what, remedy, code="JSON_INVALID"))
            continue
        least = RESERVED_FOR_DEMONSTRATIONS + items
        if not isinstance(records, list) or len(records) < least:
            what, remedy = f"it is not a list of at least {least} records", "Use fewer items, or correct the file"
            faults.append(Fault(str(path), what, remedy, code="PROBES_TOO_FEW"))
            continue
        chosen = records[RESERVED_FOR_DEMONSTRATIONS:least]
        wrong = [
            index for index, record in enumerate(chosen, RESERVED_FOR_DEMONSTRATIONS) if not _is_item(probe, record)
        ]
        if wrong:
            place, needed = f"{path}, records {listed(wrong)}", [f"{n} ({k.__name__})" for n, k in probe.fields.items()]
            what, remedy = "a field is missing or wrong", f"Every record needs {', '.join(needed)}"
            faults.append(Fault(place, what, remedy, code="PROBES_INVALID_RECORD"))
        found[probe.name] = chosen
    if faults:
        raise FaultsError("the probes", faults)
    return found


def _is_item(probe: Probe, record: object) -> bool:
    if not isinstance(record, Mapping):
        return False
    if any(type(record.get(name)) is not kind for name, kind in probe.fields.items()):
        return False
    if "choices" in probe.fields and (
        len(record["choices"]) != 4 or any(not isinstance(option, str) for option in record["choices"])
    ):
        return False
    if probe.fields.get("label") is str:
        return record["label"] in ("entailment", "not_entailment")
    return probe.label(record) in probe.words


def probe_tasks(items: Mapping[str, Sequence[Item]]) -> list[Any]:
    """The probes as tasks of lm-evaluation-harness, in which the model generates; their data stay in memory."""
    return [_task(probe, items[probe.name]) for probe in PROBES]


def _task(probe: Probe, items: Sequence[Item]) -> Any:
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    def results(document: Item, answers: Sequence[str]) -> dict[str, Any]:
        item = items[document["index"]]
        return probe.values(item, probe.read(answers[0]))

    rows = [{"index": index, "prompt": probe.prompt(item)} for index, item in enumerate(items)]
    metrics = [
        {
            "metric": name,
            "aggregation": weighted_f1 if name.startswith(WEIGHTED_F1) else "mean",
            "higher_is_better": name != "unparsable",
        }
        for name in probe.values(items[0], UNPARSABLE)
    ]
    return ConfigurableTask(
        config={
            "task": probe.task,
            "custom_dataset": lambda **_: {"test": Dataset.from_list(rows)},
            "test_split": "test",
            "output_type": "generate_until",
            "doc_to_text": lambda document: document["prompt"],
            "doc_to_target": lambda document: str(probe.label(items[document["index"]])),
            "generation_kwargs": {"until": [], "max_gen_toks": NEW_TOKENS, "do_sample": False},
            "process_results": results,
            "metric_list": metrics,
            "num_fewshot": 0,
            "metadata": {"version": 1.0},
        }
    )


def check_probe_lengths(model: Answerer, items: Mapping[str, Sequence[Item]]) -> None:
    """Raises InputError if a prompt with its answer is longer than the model takes: nothing is truncated silently."""
    for probe in PROBES:
        rows = encode(model.tokenizer, [joined(*pair) for item in items[probe.name] for pair in probe.pairs(item)])
        longest = max(len(row.ids) for row in rows) + NEW_TOKENS
        if longest > model.context_length:
            count = f"{longest} tokens, but {model.name!r} accepts {model.context_length}"
            what = f"the probe {probe.name!r} has questions of {count}"
            raise InputError(what, remedy="Leave the probes out for this model", code="PROMPT_TOO_LONG")


def add_likelihoods(
    model: Answerer,
    items: Mapping[str, Sequence[Item]],
    raw: Mapping[str, Any],
    *,
    token_budget: int = TOKEN_BUDGET,
    report: Report = silent,
) -> None:
    """Put the likelihood variant beside the harness's results, in their form, and in those of its samples.

    The harness knows a continuation's log-likelihood, but not its mean over tokens, which the papers compare.
    """
    for probe in PROBES:
        pairs = [pair for item in items[probe.name] for pair in probe.pairs(item)]
        scores = [entry.log_probability for entry in model.score(pairs, token_budget=token_budget, report=report)]
        count = len(probe.words)
        columns: dict[str, list[Any]] = {}
        for sample in raw["samples"][probe.task]:
            index = sample["doc_id"]
            answered = probe.likeliest(scores[index * count : (index + 1) * count])
            found = probe.values(items[probe.name][index], answered, suffix=LIKELIHOOD)
            sample.update(found)
            sample["metrics"] = [*sample["metrics"], *found]
            for name, value in found.items():
                columns.setdefault(name, []).append(value)
        for name, values in columns.items():
            total = weighted_f1(values) if name.startswith(WEIGHTED_F1) else sum(values) / len(values)
            raw["results"][probe.task][f"{name},none"] = total
