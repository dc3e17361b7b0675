"""``errata edit`` with an editor that is not locate-then-edit: see ``errata.editors.table``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from errata.benchmark.sequence import EditorResult, EvaluationResult, EvaluationSet, measure, run_editor
from errata.cli.edit_output import (
    check_output,
    facts_text,
    finish,
    outcome_between,
    records_of,
    resolve_conflicts,
    show_chat,
    show_controls,
    show_facts,
    show_next_steps,
    show_unable,
)
from errata.cli.model_options import (
    Placement,
    check_facts,
    evaluation_set_for,
    has_chat,
    is_lab,
    outline_here,
    outline_of,
    show_absent,
    token_check,
)
from errata.cli.recipe_options import read_settings_for
from errata.cli.terminal import console, echo, progress, warn, write_json
from errata.editors.contract import KnowledgeEditor
from errata.editors.registry import make_editor
from errata.editors.table import EditorSettings, editor_row
from errata.errors import InputError, collect_errors
from errata.evaluation.absence import LACKING, absent_abilities
from errata.evaluation.chat import chat_questions
from errata.evaluation.controls import Controls, with_automatic_controls
from errata.evaluation.outcomes import absent_changes
from errata.evaluation.recall import absent
from errata.facts.conflicts import OnConflict
from errata.facts.fact import Fact, FactSet, check_fields
from errata.facts.files import read_facts
from errata.facts.questions import read_questions
from errata.models.language_model import LanguageModel
from errata.patches.patch import Patch
from errata.report.conclusions import advice
from errata.report.ledger import recalled
from errata.report.tables import before_after_table
from errata.results.metrics import Metric
from errata.results.records import FORMAT
from errata.runs.loading import is_edit, load_base, load_editor
from errata.utils.text import counted, readable

_NO_EFFECT: Final[Mapping[str, str]] = {
    "--chat": "other editors train on bare prompts or act on chat messages as they are, and `errata edit` asks the "
    "facts in chat as well where the model has a template (`errata evaluate --chat` asks everything)"
}


@dataclass(frozen=True, slots=True)
class EditOptions:
    """The options of ``errata edit`` that every editor has; see there."""

    model: str
    method: str
    facts: Path | None
    out: Path | None
    recipe: Path | None
    seed: int | None
    batch_size: int | None
    on_conflict: OnConflict
    last_wins: bool
    untouched: Path | None
    controls: bool
    evaluate: bool
    dry_run: bool
    json: Path | None
    trust_remote_code: bool


def edit_with_editor(options: EditOptions, not_supported: Sequence[str], where: Placement) -> None:
    """Edit facts and show what changed.

    Args:
        not_supported: given options that only locate-then-edit has.

    Raises:
        InputError, FaultsError: for invalid input; nothing is written then.
    """
    row, name = editor_row(options.method), options.model
    outline = outline_here(name, trust_remote_code=options.trust_remote_code, endpoints=True)
    settings: EditorSettings | None = None
    with collect_errors("the input") as part:
        for option in not_supported:
            with part:
                why = _NO_EFFECT.get(option, f"settings of {row.name!r} are in the section 'editors' of a recipe file")
                raise InputError(
                    f"{option} is for locate-then-edit methods, not for {row.name!r}",
                    remedy=f"Remove it; {why}",
                    code="OPTION_CONFLICT",
                )
        with part:
            if options.out is not None:
                check_output(options.out, weights=row.where == "weights")
            elif not options.dry_run:
                raise InputError(
                    "missing option --out", remedy="Give NAME.safetensors, or add --dry-run", code="OPTION_MISSING"
                )
        with part:
            settings = read_settings_for(
                row.name, name, options.recipe, seed=options.seed, batch_size=options.batch_size
            )
        with part:
            if options.facts is None:
                raise InputError(
                    "missing option --facts",
                    remedy="Give a file of facts, such as examples/facts.jsonl",
                    code="OPTION_MISSING",
                )
            facts = read_facts(options.facts, last_wins=options.last_wins, check=token_check(outline))
            for note in facts.notes:
                warn(f"note: {note}")
            facts = resolve_conflicts(facts, name, options.on_conflict)
            if settings is not None:
                check_fields(facts, settings.needs, row.name)
        with part:
            questions = read_questions(options.untouched)
        with part:
            lab = is_lab(name)
    assert settings is not None  # else a fault was raised
    if outline is None:
        outline = outline_of(name, trust_remote_code=options.trust_remote_code, endpoints=True)
        check_facts(facts, outline)
    if options.dry_run:
        _show_plan(options, facts, settings)
        return
    editor = _editor(options, settings, where)
    check_fields(facts, editor.needs, editor.method)  # an edit that is built on has settings of its own
    view = editor.view()
    loaded = view if isinstance(view, LanguageModel) else None
    fingerprint = editor.fingerprint()
    generated = Controls(facts, frozenset())
    with progress() as report, nullcontext() if loaded is None else loaded.blaming_no_edit():
        if options.controls and options.evaluate and not lab and "likelihood" in view.abilities:
            generated = with_automatic_controls(view, facts, report=report)
    evaluation_set = evaluation_set_for(generated.facts, lab=lab, untouched=questions, seed=settings.seed)
    evaluation_set = replace(evaluation_set, automatic=generated.automatic)
    if has_chat(outline):
        in_chat = chat_questions(generated.facts, evaluation_set.untouched, everything=False)
        evaluation_set = replace(evaluation_set, chat=in_chat)
    with progress() as report:
        if options.evaluate:
            before = measure(view, evaluation_set, report=report, what="measuring before")
            result = run_editor(editor, evaluation_set, before, report=report, seed=settings.seed)
        else:
            before = None
            result = EditorResult([], editor.apply(generated.facts), EvaluationResult([], None))
    if isinstance(result.edit, Patch) and loaded is not None:
        measured = None if before is None else (before, result.after)
        finish(loaded, name, result.edit, result.rows, [], evaluation_set, settings.seed, options.out, options.json,
               measured)  # fmt: skip
    else:
        _finish(options, settings, editor, fingerprint, result, evaluation_set, before)


def _editor(options: EditOptions, settings: EditorSettings, where: Placement) -> KnowledgeEditor:
    """The editor of the model, or the one that made the edit that ``--model`` names."""
    trust, name = options.trust_remote_code, options.model
    if not is_edit(name):
        model = load_base(name, **where, trust_remote_code=trust)
        with progress() as report:
            return make_editor(options.method, model, settings.model_dump(mode="json"), report)
    editor = load_editor(name, **where, trust_remote_code=trust)
    if editor.method != options.method:
        raise InputError(
            f"{name} is an edit by {editor.method!r}, on which {options.method!r} cannot build",
            remedy=f"Use --method {editor.method}, or give its base model",
            code="EDITS_DIFFER",
        )
    return editor


def _show_plan(options: EditOptions, facts: FactSet, settings: EditorSettings) -> None:
    row = editor_row(options.method)
    plan = {
        "model": options.model,
        "method": row.name,
        "facts": len(facts),
        "batches": -(-len(facts) // settings.batch_size),
        "settings": settings.model_dump(mode="json"),
    }
    echo(
        f"Editing {counted(len(facts), 'fact')} into {options.model} with {row.name} ({row.title}), in "
        f"{counted(-(-len(facts) // settings.batch_size), 'batch')} of at most {settings.batch_size}:"
    )
    for name, value in settings.model_dump(mode="json").items():
        if shown := readable(value):
            echo(f"  {name}: {shown}")
    echo("Dry run: no weights were loaded and nothing was written.")
    write_json(options.json, plan)


def _finish(
    options: EditOptions,
    settings: EditorSettings,
    editor: KnowledgeEditor,
    fingerprint: str,
    result: EditorResult,
    evaluation_set: EvaluationSet,
    before: EvaluationResult | None,
) -> None:
    """Write an edit that changes no weights, and print its effects."""
    facts = tuple(evaluation_set.facts)
    view = editor.view()
    outcome = outcome_between(evaluation_set, before, result.after)
    missing: dict[str, str] = {}
    if before is not None:
        missing = {str(metric): why for metric, why in absent(facts, evaluation_set.untouched).items()}
        unable = absent_abilities(map(Metric, missing), view.abilities, editor.method)
        missing |= {str(metric): why for metric, why in unable.items()}
        missing |= absent_changes(before.records, missing)
        if evaluation_set.prose:
            missing["perplexity_ratio"] = f"{editor.method} {LACKING['rolling']}"
    about: dict[str, Any] = {
        "base": options.model,
        "lab": is_lab(options.model),
        "method": editor.method,
        "seed": settings.seed,
        "settings": settings.model_dump(mode="json"),
        "fingerprint": fingerprint,
        "stored_bytes": result.edit.stored_bytes,
        "absent": missing,
        "facts": [fact.to_record() for fact in facts],
    }
    record: dict[str, Any] = {"format": FORMAT, "rows": list(result.rows), "about": about}
    measured = before is not None and "likelihood" in view.abilities
    advised = advice(outcome, editor.method, options.model) if measured else None
    record["outcome"] = outcome.to_record() | {"advice": advised}
    if before is not None:
        record |= {"records": records_of(before, result.after)}
    generated = _generated(editor, facts) if before is not None and "likelihood" not in view.abilities else None
    if generated is not None:
        record["generated"] = generated
    if options.out is not None:  # last, so that nothing is written if measuring fails
        result.edit.save(options.out)
    write_json(options.json, record)
    if result.rows:
        console().print(before_after_table(result.rows, width=console().width, marked=outcome.unable))
        show_unable(outcome, (row["metric"] for row in result.rows))
        show_absent(missing)
        show_facts(outcome.facts)
        show_chat(outcome.chat, outcome.facts, hint=False)
        show_controls(outcome)
    if generated is not None:
        echo(f"{editor.method} {LACKING['likelihood']}, so recall is measured in generated answers:")
        echo(f"the answer contains the new target for {sum(map(bool, generated.values()))} of {len(facts)} facts.")
    wrote = f"Wrote {options.out}" if options.out is not None else "Edited"
    number = facts_text(facts, options.model)
    echo(f"{wrote} ({number}, {editor.method}, {result.edit.stored_bytes:,} bytes).")
    if advised is not None:
        echo(advised)
    if options.out is not None:
        show_next_steps(options.out, facts[0], options.model, weights=False)


def _generated(editor: KnowledgeEditor, facts: Sequence[Fact]) -> Mapping[str, bool]:
    """Whether the generated answer to each fact's prompt contains its target."""
    found = recalled(editor.view(), facts)
    return {fact.id: answer.correct for fact, answer in zip(facts, found, strict=True)}
