"""The playground's page: Gradio's components, and the HTML of what it shows. All texts are escaped by ``markupsafe``.

The page is served to this machine only, and its content security policy lets a browser ask nobody else.
"""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gradio
from markupsafe import Markup
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from errata.errors import ErrataError, FaultsError, InputError
from errata.evaluation.controls import first_phrase
from errata.facts.fact import Fact
from errata.playground.session import HOST, Answer, ControlAnswer, Export, Playground, Visit
from errata.report.curves import Scale, line_svg, text_svg
from errata.report.markdown import visible
from errata.utils.progress import SearchStep

_STYLE: Final = Path(__file__).with_name("page.css")
# Gradio's scripts and styles are inline in part, and its components are made from templates.
_POLICY: Final = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; frame-ancestors 'none'; "
    "base-uri 'self'; form-action 'self'"
)
_LABELS: Final = {"subject": "Subject", "prompt": "Prompt", "target": "New answer"}  # of a fact's fields
_KEPT: Final = 3600  # seconds for which exported files, and visits that nobody uses, are kept
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 420.0, 150.0, 58.0, 34.0  # of the drawing of losses, in its units


def serve(playground: Playground, examples: Sequence[Fact], *, port: int | None, open_browser: bool) -> tuple[Any, str]:
    """Start the server, which runs in the background; gives what ``close`` stops, and its address.

    Args:
        examples: facts to try.
        port: None: the first free one from 7860 on.

    Raises:
        InputError: if the port is taken.
    """
    page = build(playground, examples)
    try:
        _, address, _ = page.queue(default_concurrency_limit=8).launch(
            share=False,
            server_name=HOST,
            server_port=port,
            inbrowser=open_browser,
            prevent_thread_lock=True,
            quiet=True,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            footer_links=[],
            app_kwargs={"middleware": [Middleware(_WithPolicy)]},
            css=_STYLE.read_text(encoding="utf-8"),
            theme=gradio.themes.Base(
                primary_hue="blue",
                radius_size="sm",
                font=("system-ui", "sans-serif"),
                font_mono=("ui-monospace", "monospace"),
            ),
        )
    except OSError as error:
        raise InputError(
            f"cannot listen on {HOST}, port {port or '7860 to 7959'}",
            remedy="Give another --port, or end what uses it",
            code="ADDRESS_UNAVAILABLE",
        ) from error
    return page, address


@dataclass(frozen=True, slots=True)
class _WithPolicy:
    """Adds the content security policy to every answer."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), (b"content-security-policy", _POLICY.encode())]
                message = {**message, "headers": [*headers, (b"referrer-policy", b"no-referrer")]}
            await send(message)

        await self.app(scope, receive, with_policy)


def build(playground: Playground, examples: Sequence[Fact]) -> Any:
    """The page as Gradio's ``Blocks``. All state is in the visitor's own ``gradio.State``."""
    first = playground.visit()
    exports = tempfile.TemporaryDirectory(prefix="errata-playground-")  # removed when the page is
    names = {f"{fact.text} … {fact.target}": fact for fact in examples}
    with gradio.Blocks(
        analytics_enabled=False, title="errata playground", delete_cache=(_KEPT, _KEPT), fill_width=False
    ) as page:
        state = gradio.State(first, time_to_live=_KEPT)
        gradio.HTML(_head(playground))
        with gradio.Row(equal_height=False):
            with gradio.Column(min_width=320):
                gradio.HTML(Markup("<h2>1. Ask</h2>"))
                prompt = gradio.Textbox(
                    label="Beginning of a sentence", value=examples[0].text if examples else "", elem_id="prompt",
                    lines=1, max_lines=3,
                )  # fmt: skip
                ask = gradio.Button("Ask both models", elem_id="ask")
                answers = gradio.HTML(elem_id="answers")
            with gradio.Column(min_width=320):
                gradio.HTML(Markup("<h2>2. Edit a fact</h2>"))
                example = gradio.Dropdown(
                    [*names], value=None, label="Example", elem_id="example", visible=bool(names), filterable=False
                )
                subject = gradio.Textbox(label=_LABELS["subject"], elem_id="subject", lines=1, max_lines=1)
                wording = gradio.Textbox(
                    label=_LABELS["prompt"],
                    info="with the subject, or {} in its place",
                    elem_id="wording",
                    lines=1,
                    max_lines=3,
                )
                target = gradio.Textbox(label=_LABELS["target"], elem_id="target", lines=1, max_lines=1)
                with gradio.Row():
                    edit = gradio.Button("Edit", variant="primary", elem_id="edit", min_width=120)
                    stop = gradio.Button("Stop", elem_id="stop", min_width=80, interactive=False)
                status = gradio.HTML(elem_id="status")
        with gradio.Row(equal_height=False):
            with gradio.Column(min_width=320):
                gradio.HTML(Markup("<h2>3. What else changed</h2>"))
                controls = gradio.HTML(elem_id="controls")
                own = gradio.Textbox(label="Another control question", elem_id="own", lines=1, max_lines=2)
                add = gradio.Button("Add", elem_id="add")
            with gradio.Column(min_width=320):
                gradio.HTML(Markup("<h2>4. Undo and export</h2>"))
                history = gradio.Radio([], label="Edits", elem_id="history")
                undo = gradio.Button("Undo the chosen edit", elem_id="undo", interactive=False)
                kind = gradio.Radio(["patch", "LoRA adapter"], value="patch", label="Format", elem_id="kind")
                export = gradio.Button("Export all edits", elem_id="export", interactive=False)
                file = gradio.File(label="Exported", elem_id="file", visible=False, interactive=False)
                exported = gradio.HTML(elem_id="exported")
        shown = [state, answers, controls, history, undo, export, file, exported, status]

        def show(visit: Visit, text: str, **more: object) -> dict[Any, Any]:
            """All that follows from a visit's edits."""
            edits = [(f"{_edit_title(stacked.patch.facts[0])}", stacked.name) for stacked in visit.stack.patches]
            some = bool(edits)
            return {
                state: visit,
                answers: _answers(*playground.ask(visit, text)) if text.strip() else "",
                controls: _controls(playground.check(visit)),
                history: gradio.Radio(choices=edits, value=edits[-1][1] if edits else None),
                undo: gradio.Button(interactive=some),
                export: gradio.Button(interactive=some),
                file: gradio.File(value=None, visible=False),
                exported: "",
                status: str(more.get("said", "")),
            }

        def on_edit(visit: Visit, about: str, text: str, answer: str) -> Iterator[dict[Any, Any]]:
            losses: dict[int, list[tuple[int, float]]] = {}
            fields = {"subject": about.strip(), "prompt": text.strip(), "target": answer.strip()}
            if empty := [_LABELS[name] for name, value in fields.items() if not value]:
                yield {status: _wrong(f"Fill in {' and '.join(filter(None, (', '.join(empty[:-1]), empty[-1])))}.")}
                return
            at_rest = {stop: gradio.Button(interactive=False)}
            yield {status: _said("Searching …"), stop: gradio.Button(interactive=True)}
            try:
                for event in playground.edit(visit, **fields):
                    if isinstance(event, Visit):
                        fact = event.stack.patches[-1].patch.facts[0]
                        done = Markup("{}{}").format(_said("Edited.", kind="good"), _losses(losses))
                        yield {prompt: fact.text, **show(event, fact.text, said=done), **at_rest}
                    else:
                        losses.setdefault(event.layer, []).append((event.done, event.loss))
                        yield {status: Markup("{}{}").format(_said(_search_text(event)), _losses(losses))}
            except FaultsError as error:
                yield {status: _faults(error), **at_rest}
            except ErrataError as error:
                yield {status: _refusal(error), **at_rest}
            except Exception:
                yield at_rest
                raise

        def on_ask(visit: Visit, text: str) -> dict[Any, Any]:
            try:
                return {answers: _answers(*playground.ask(visit, text))}
            except ErrataError as error:
                return {answers: _refusal(error)}

        def on_add(visit: Visit, text: str) -> dict[Any, Any]:
            try:
                changed = playground.with_control(visit, text)
                return {state: changed, controls: _controls(playground.check(changed)), own: ""}
            except ErrataError as error:
                return {controls: _refusal(error)}

        def on_undo(visit: Visit, name: str | None, text: str) -> dict[Any, Any]:
            try:
                return show(playground.undo(visit, name or ""), text, said=_said("Undone.", kind="good"))
            except ErrataError as error:
                return {status: _refusal(error)}

        def on_export(visit: Visit, chosen: Export) -> dict[Any, Any]:
            try:
                path = playground.export(visit, chosen, Path(tempfile.mkdtemp(dir=exports.name)))
            except ErrataError as error:
                return {exported: _refusal(error)}
            return {file: gradio.File(value=str(path), visible=True), exported: _use_of(path, playground.model.name)}

        def on_example(name: str | None) -> tuple[str, str, str]:
            fact = names.get(name or "")
            return (fact.subject, fact.prompt, fact.target) if fact else ("", "", "")

        quiet: Any = {"api_visibility": "private", "show_progress": "hidden"}
        page.load(lambda visit, text: show(visit, text), [state, prompt], shown, **quiet)
        gradio.on([ask.click, prompt.submit], on_ask, [state, prompt], [answers], **quiet)
        example.input(on_example, [example], [subject, wording, target], **quiet)
        editing = gradio.on(
            [edit.click, target.submit], on_edit, [state, subject, wording, target], [*shown, prompt, stop],
            trigger_mode="once", **quiet,
        )  # fmt: skip
        stop.click(
            lambda: (_said("Stopped; nothing was changed."), gradio.Button(interactive=False)), None, [status, stop],
            cancels=[editing], **quiet,
        )  # fmt: skip
        gradio.on([add.click, own.submit], on_add, [state, own], [state, controls, own], **quiet)
        undo.click(on_undo, [state, history, prompt], shown, trigger_mode="once", **quiet)
        export.click(on_export, [state, kind], [file, exported], trigger_mode="once", **quiet)
    return page


def _text(value: str) -> Markup:
    """A text from a model or a visitor: what steers a terminal or turns writing around is shown by its code."""
    return Markup("<bdi>{}</bdi>").format(visible(value, 400))


def _head(playground: Playground) -> Markup:
    recipe = playground.recipe
    written = dict.fromkeys((recipe.layers[0], recipe.layers[-1])) if recipe.schedule == "boundary" else recipe.layers
    return Markup(
        "<header><h1>errata playground</h1><p>Model <strong>{}</strong>, method <strong>{}</strong> at layers {}. "
        "Everything runs on this machine; no text leaves it.</p></header>"
    ).format(_text(playground.model.name), recipe.method, ", ".join(map(str, written)))


def _said(text: str, kind: str = "") -> Markup:
    return Markup('<p role="status" class="said {}">{}</p>').format(kind, text)


def _refusal(error: ErrataError) -> Markup:
    return Markup('<p role="alert" class="said bad"><strong>{}</strong> <span class="words">{}</span></p>').format(
        error.code, _lines(str(error))
    )


def _wrong(text: str) -> Markup:
    return Markup('<p role="alert" class="said bad">{}</p>').format(text)


def _faults(error: FaultsError) -> Markup:
    """Faults of the fact in the form: with the form's names, and without the name that the fact has inside."""
    lines = [f"{fault.what}. {fault.remedy}." for fault in error.faults]
    for name, label in _LABELS.items():
        lines = [line.replace(f"'{name}'", f"'{label}'") for line in lines]
    return Markup('<p role="alert" class="said bad"><strong>{}</strong> <span class="words">{}</span></p>').format(
        error.code, _lines("\n".join(lines))
    )


def _lines(text: str) -> str:
    """A text whose line ends are kept; other invisible characters are shown by their code."""
    return "\n".join(visible(line, 2000) for line in text.splitlines()[:20])


def _edit_title(fact: Fact) -> str:
    return f"{visible(fact.text, 80)} → {visible(fact.target, 40)}"


def _search_text(step: SearchStep) -> str:
    return f"Searching at layer {step.layer}: step {step.done} of {step.total}, loss {step.loss:.3f}"


def _answers(before: Answer, after: Answer) -> Markup:
    """The two models side by side."""
    cards = [
        _answer("Unedited", before, changed=False),
        _answer("Edited", after, changed=first_phrase(before.text) != first_phrase(after.text)),
    ]
    return Markup('<div class="cards">{}</div>').format(Markup("").join(cards))


def _answer(title: str, answer: Answer, *, changed: bool) -> Markup:
    bars = [
        Markup(
            '<tr><th scope="row"><code>{}</code></th><td class="share"><span class="bar" style="width:{:.1f}%"></span>'
            "</td><td>{:.1f} %</td></tr>"
        ).format(_text(token), 100 * share, 100 * share)
        for token, share in answer.likeliest
    ]
    return Markup(
        '<section class="card{}" aria-label="{} model"><h3>{}{}</h3><p class="continued">{}</p>'
        '<table><caption>next token</caption><tbody>{}</tbody></table></section>'
    ).format(
        " changed-answer" if changed else "", title, title, Markup(" <small>answer changed</small>") if changed else "",
        _continued(answer.text), Markup("").join(bars),
    )  # fmt: skip


def _continued(text: str) -> Markup:
    """A continuation, with its first phrase in bold: the answer, for most prompts."""
    phrase = first_phrase(text)
    if not phrase or not text.startswith(phrase):
        return _text(text or "(nothing)")
    return Markup("<strong>{}</strong>{}").format(_text(phrase), _text(text[len(phrase) :]))


def _controls(found: Sequence[ControlAnswer]) -> Markup:
    changed = sum(each.is_changed for each in found)
    rows = [
        Markup(
            '<tr class="{}"><th scope="row">{}</th><td data-head="before">{}</td><td data-head="now">{} {}</td></tr>'
        ).format(
            "changed" if each.is_changed else "same",
            _text(each.prompt),
            _text(each.before),
            Markup('<strong class="mark">✗ changed</strong>')
            if each.is_changed
            else Markup('<span class="mark">✓</span>'),
            _text(each.now),
        )
        for each in sorted(found, key=lambda each: not each.is_changed)
    ]
    return Markup(
        '<p role="status" class="said {}">{} of {} control answers changed.</p><table class="controls"><thead><tr>'
        '<th scope="col">question</th><th scope="col">before</th><th scope="col">now</th></tr></thead>'
        "<tbody>{}</tbody></table>"
    ).format("bad" if changed else "good", changed, len(found), Markup("").join(rows))


def _losses(losses: Mapping[int, Sequence[tuple[int, float]]]) -> Markup:
    """The loss over the steps of the search: a line for each layer with a target."""
    points = [point for line in losses.values() for point in line]
    if not points:
        return Markup("")
    across = Scale.linear(0, max(step for step, _ in points), _LEFT, _WIDTH - 10)
    up = Scale.linear(0, max(loss for _, loss in points) or 1.0, _HEIGHT - _BOTTOM, 8)
    parts = []
    for tick in up.ticks:
        parts += [line_svg("grid", _LEFT, up.at(tick), _WIDTH - 10, up.at(tick)),
                  text_svg(_LEFT - 6, up.at(tick) + 3.5, f"{tick:g}", anchor="end")]  # fmt: skip
    parts += [text_svg(across.at(tick), _HEIGHT - 18, f"{tick:g}") for tick in across.ticks]
    parts.append(text_svg((_LEFT + _WIDTH) / 2, _HEIGHT - 3, "step of the search"))
    upright = '<text transform="translate(10 {}) rotate(-90)" text-anchor="middle">loss</text>'
    parts.append(Markup(upright).format((8 + _HEIGHT - _BOTTOM) / 2))
    for number, line in enumerate(losses.values()):
        places = " ".join(f"{across.at(step):.1f},{up.at(loss):.1f}" for step, loss in line)
        step, loss = line[-1]
        parts.append(Markup('<polyline class="loss l{}" points="{}"/>').format(number % 4, places))
        parts.append(
            Markup('<circle class="loss l{}" cx="{:.1f}" cy="{:.1f}" r="3"/>').format(
                number % 4, across.at(step), up.at(loss)
            )
        )
    names = [
        Markup('<span class="key l{}">layer {}: loss {:.3f}</span>').format(number % 4, layer, line[-1][1])
        for number, (layer, line) in enumerate(losses.items())
    ]
    return Markup(
        '<figure><svg class="losses" viewBox="0 0 {} {}" role="img" aria-label="loss over the steps">{}</svg>'
        "<figcaption>{}</figcaption></figure>"
    ).format(_WIDTH, _HEIGHT, Markup("").join(parts), Markup(" ").join(names))


def _use_of(path: Path, model: str) -> Markup:
    """What to do with an exported file."""
    commands = {
        "patch.safetensors": f"errata apply patch.safetensors --model {shlex.quote(model)} --out corrected",
        "stack.zip": 'unzip stack.zip && errata ask --model stack "…"',
        "lora.zip": 'unzip lora.zip    # PEFT: PeftModel.from_pretrained(base, "lora")',
    }
    return Markup('<p>Use it:</p><pre tabindex="0">{}</pre>').format(visible(commands[path.name], 400))
