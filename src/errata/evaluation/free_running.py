"""Free-running recall, "in the wild": the model answers by itself, no token of the right answer being in its input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from errata.errors import InputError
from errata.evaluation.answers import answer_end, answer_of, is_contained, is_exact, is_repeated
from errata.evaluation.free_questions import MEASURES, FreeKind, FreeQuestion, free_questions
from errata.evaluation.free_settings import CONTEXTS, Context, FreeSettings
from errata.evaluation.judging import Case, Judge, Verdict
from errata.evaluation.kept import kept_prompts, missing_kinds
from errata.evaluation.metrics import Metric
from errata.evaluation.records import Record
from errata.facts import Fact, Question
from errata.models.generation import CACHE_BUDGET, continue_rows
from errata.models.language_model import LanguageModel
from errata.progress import Report, silent


def answer_freely(
    model: LanguageModel,
    prompts: Sequence[str],
    settings: FreeSettings | None = None,
    *,
    context: Context = CONTEXTS["bare"],
    names: Sequence[str] | None = None,
    token_budget: int = CACHE_BUDGET,
    report: Report = silent,
) -> dict[str, str]:
    """The greedy answer to each distinct prompt in a context, up to where it ends, without space around it.

    Args:
        names: what each prompt is called in an error; itself by default.
        token_budget: most padded tokens that are kept at once; the answers do not depend on it.
        report: told the answers given, of how many.

    Raises:
        InputError: if a prompt with its answer is longer than the model takes.
        NonFiniteError: if a logit is not a number; names the prompts.
    """
    settings = settings or FreeSettings()
    owners: dict[str, str] = {}
    for prompt, name in zip(prompts, prompts if names is None else names, strict=True):
        owners.setdefault(prompt, name)
    texts = [context.text(model.tokenizer, prompt) for prompt in owners]
    given = 0

    def on_rows(count: int) -> None:
        nonlocal given
        given += count
        report("answering", given, len(texts))

    continuations = continue_rows(
        model,
        [context.ids(model.tokenizer, text) for text in texts],
        new_tokens=settings.new_tokens,
        stop=lambda text: answer_end(text, settings.ending) is not None,
        token_budget=token_budget,
        names=list(owners.values()),
        on_rows=on_rows,
    )
    return {prompt: answer_of(text, settings.ending) for prompt, text in zip(owners, continuations, strict=True)}


def evaluate_free(
    model: LanguageModel,
    facts: Sequence[Fact],
    settings: FreeSettings | None = None,
    *,
    judge: Judge | None = None,
    token_budget: int = CACHE_BUDGET,
    report: Report = silent,
) -> list[Record]:
    """One record for each question, context and measure, ``free_{kind}_{measure}``, behind it ``:{context}`` unless
    the question is bare. ``prompt`` is the whole text that the model read, ``said`` its answer.

    A question that the judge did not answer has no ``…_judged`` record, so it counts neither as right nor as wrong;
    ``free_judge_missing`` is 1 for it, its ``said`` being the reason, and 0 for every other question put to the judge.

    Raises:
        InputError, NonFiniteError: see ``answer_freely``; the latter names the facts.
    """
    settings = settings or FreeSettings()
    asked = free_questions(facts, aliases=settings.aliases)
    measures = _measures(settings, judge)
    records: list[Record] = []
    for context in _available(model, settings):
        answers = answer_freely(
            model,
            [entry.prompt for entry in asked],
            settings,
            context=context,
            names=[entry.fact for entry in asked],
            token_budget=token_budget,
            report=report,
        )
        said = [answers[entry.prompt] for entry in asked]
        whole = {prompt: context.text(model.tokenizer, prompt) for prompt in answers}
        verdicts = _verdicts(asked, said, settings, judge)
        for entry, answer, verdict in zip(asked, said, verdicts, strict=True):
            values = {
                "exact": is_exact(answer, entry.accepted) if "exact" in measures else None,
                "contained": is_contained(answer, entry.accepted) if "contained" in measures else None,
                "judged": None if verdict is None else verdict.correct,
            }
            for measure, value in values.items():
                if value is not None:
                    metric = _name(f"free_{entry.kind}_{measure}", context)
                    records.append(Record(entry.fact, metric, whole[entry.prompt], float(value), answer))
            if verdict is not None:
                missing = verdict.correct is None
                metric = _name(Metric.FREE_JUDGE_MISSING, context)
                text = verdict.reason if missing else answer
                records.append(Record(entry.fact, metric, whole[entry.prompt], float(missing), text))
    return records


def absent_free(
    model: LanguageModel, facts: Sequence[Fact], settings: FreeSettings | None = None, *, judge: Judge | None = None
) -> dict[str, str]:
    """The metrics of ``evaluate_free`` that cannot be computed, with the reason."""
    settings = settings or FreeSettings()
    kinds = {entry.kind for entry in free_questions(facts)}
    lacking = {FreeKind.GENERALISATION: "no fact has 'paraphrases'", FreeKind.PORTABILITY: "no fact has 'portability'"}
    measures = _measures(settings, judge)
    unmeasured = {
        "exact": "the judge takes its place in these settings",
        "contained": "these settings leave it out",
        "judged": "no judge was given",
    }
    missing: dict[str, str] = {}
    for name in settings.contexts:
        context = CONTEXTS[name]
        no_context = context.missing(model.tokenizer)
        for kind in FreeKind:
            no_kind = None if kind in kinds else lacking.get(kind, "there are no facts")
            for measure in MEASURES:
                reason = no_context or no_kind or (None if measure in measures else unmeasured[measure])
                if reason is not None:
                    missing[_name(f"free_{kind}_{measure}", context)] = reason
        reason = no_context or (None if kinds else "there are no facts") or (None if judge else unmeasured["judged"])
        if reason is not None:
            missing[_name(Metric.FREE_JUDGE_MISSING, context)] = reason
    return missing


def evaluate_free_locality(
    model: LanguageModel,
    facts: Sequence[Fact],
    before: Mapping[str, str],
    settings: FreeSettings | None = None,
    *,
    untouched: Sequence[tuple[str, Question]] = (),
    token_budget: int = CACHE_BUDGET,
    report: Report = silent,
) -> list[Record]:
    """Whether the answer to each neighbouring, unrelated and untouched prompt, bare, is letter for letter what it was.

    Args:
        before: prompt -> answer of the unedited model by the same settings; see ``locality_answers``.

    Raises:
        InputError: if ``before`` lacks prompts, or a prompt is too long for the model.
        NonFiniteError: if a logit is not a number; names the facts.
    """
    kept = kept_prompts(facts, untouched)
    if lacking := [entry.prompt for entry in kept if entry.prompt not in before]:
        raise InputError(
            f"there is no answer from before for {len(lacking)} prompts, such as {lacking[0]!r}",
            remedy="Ask the unedited model the same prompts first",
        )
    after = locality_answers(model, facts, settings, untouched=untouched, token_budget=token_budget, report=report)
    return [
        Record(
            entry.fact,
            Metric(f"free_locality_{entry.kind}"),
            entry.prompt,
            float(after[entry.prompt] == before[entry.prompt]),
            after[entry.prompt],
        )
        for entry in kept
    ]


def locality_answers(
    model: LanguageModel,
    facts: Sequence[Fact],
    settings: FreeSettings | None = None,
    *,
    untouched: Sequence[tuple[str, Question]] = (),
    token_budget: int = CACHE_BUDGET,
    report: Report = silent,
) -> dict[str, str]:
    """What a model answers to the prompts of ``evaluate_free_locality``; see ``answer_freely``."""
    kept = kept_prompts(facts, untouched)
    return answer_freely(
        model,
        [entry.prompt for entry in kept],
        settings,
        names=[entry.fact for entry in kept],
        token_budget=token_budget,
        report=report,
    )


def absent_free_locality(facts: Sequence[Fact], untouched: Sequence[tuple[str, Question]] = ()) -> dict[Metric, str]:
    """The kinds of free-running locality that there are no prompts for, with the reason."""
    return {Metric(f"free_locality_{kind}"): reason for kind, reason in missing_kinds(facts, untouched).items()}


def _verdicts(
    asked: Sequence[FreeQuestion], said: Sequence[str], settings: FreeSettings, judge: Judge | None
) -> list[Verdict | None]:
    """The judge's verdicts in order; all None without a judge."""
    if judge is None:
        return [None] * len(asked)
    settled = [
        settings.repeated_is_wrong and is_repeated(answer, entry.accepted)
        for entry, answer in zip(asked, said, strict=True)
    ]
    cases = [
        Case(entry.prompt, entry.accepted, answer)
        for entry, answer, wrong in zip(asked, said, settled, strict=True)
        if not wrong
    ]
    found = iter(judge.judge(cases))
    return [Verdict(False, "it says the answer more than once") if wrong else next(found) for wrong in settled]


def _available(model: LanguageModel, settings: FreeSettings) -> list[Context]:
    contexts = [CONTEXTS[name] for name in settings.contexts]
    return [context for context in contexts if context.missing(model.tokenizer) is None]


def _measures(settings: FreeSettings, judge: Judge | None) -> set[str]:
    measures = {"exact"} if judge is None or not settings.judge_alone else set()
    return measures | ({"contained"} if settings.contained else set()) | ({"judged"} if judge is not None else set())


def _name(metric: str, context: Context) -> str:
    return str(metric) if context.name == "bare" else f"{metric}:{context.name}"
