"""Two tables of docs/real_models.md: keys of first tokens, and spectra of the keys' second moment.

    python benchmarks/sinks_and_spectra.py keys MODEL --layers 1 2 3 4 6 8 --text test.txt
    python benchmarks/sinks_and_spectra.py spectra MODEL --layers 2 3 5 8 --text test.txt --tokens 12000

``keys`` reads the keys of a few subjects that are the only token of a text, and prints their cosines with the keys of
other first tokens: the least, the mean and the largest, and the mean with a line break before the subject (with
``--also TEXT``, also with that text before it). The last column is the ratio of the length of these keys to that of
tokens inside a text (root mean squares).

``spectra`` prints the eigenvalues of C = E[k kᵀ] over a text: the median and the largest in units of the mean, and the
null space that two thresholds leave; ρ is an L2 of 10 in units of the energy below the absolute threshold (see
docs/methods.md, section 3). A second table leaves out the first token of every document.

MODEL is a directory, or any name that ``errata --model`` takes. The text is ``builtin`` (comes with errata), ``lab``,
or a file with blank lines between documents.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from common import markdown_table
from jaxtyping import Float
from torch import Tensor

from errata.editing.contexts import NEUTRAL
from errata.errors import InputError
from errata.models.language_model import LanguageModel, Site
from errata.models.prompts import encode, length_batches, pad
from errata.runs.loading import load_model
from errata.statistics.corpus import open_corpus
from errata.statistics.moments import SecondMoment

SUBJECTS = ("France", "Japan", "Canada", "Apple")
OTHERS = ("The", "Water", "London", "In", "He", "Music", "When", "Science")
THRESHOLD = 0.02  # of eigenvalues, as published for AlphaEdit
L2 = 10.0  # as published for AlphaEdit
SHARE = 0.3  # of the mean eigenvalue: a former threshold of automatic recipes
TOKEN_BUDGET = 4096


@dataclass(frozen=True, slots=True)
class Moments:
    """Second moments of a layer's keys over a text.

    Attributes:
        first: over the first token of every document.
        inside: over all other tokens.
    """

    first: SecondMoment
    inside: SecondMoment

    @property
    def whole(self) -> SecondMoment:
        """Over all tokens."""
        return SecondMoment(self.first.total + self.inside.total, self.first.count + self.inside.count)


def moments_of(
    model: LanguageModel, layers: Sequence[int], text: str, *, tokens: int, length: int
) -> dict[int, Moments]:
    """Second moments of keys over the first ``tokens`` tokens of a text, whose documents are cut at ``length``.

    Raises:
        InputError: if the text is shorter.
    """
    rows: list[tuple[int, ...]] = []
    missing = tokens
    for document in open_corpus(text).documents():
        row = encode(model.tokenizer, [document])[0].ids[: min(length, model.context_length, missing)]
        rows.append(row)
        missing -= len(row)
        if missing == 0:
            break
    if missing > 0:
        raise InputError(
            f"the text {text!r} holds {tokens - missing} tokens, not {tokens}",
            remedy="Give a longer text, or fewer --tokens",
        )
    width = model.weight(layers[0]).shape[1]
    found = {layer: Moments(SecondMoment.zeros(width), SecondMoment.zeros(width)) for layer in layers}
    for indices in length_batches([len(row) for row in rows], token_budget=TOKEN_BUDGET):
        batch = pad([rows[index] for index in indices], left=False, device=model.device)
        with model.capture({Site.KEY: layers}) as read, torch.no_grad():
            model.run_captured(batch.inputs())
        counted = batch.attention_mask.bool()
        for layer in layers:
            keys = read[Site.KEY, layer]
            found[layer].first.add(keys[:, 0])
            found[layer].inside.add(keys[:, 1:][counted[:, 1:]])
    return found


def keys_of_last(model: LanguageModel, texts: Sequence[str], layers: Sequence[int]) -> dict[int, Float[Tensor, "n d"]]:
    """layer -> the keys at each text's last token, in float64."""
    rows = [row.ids for row in encode(model.tokenizer, texts)]
    read = model.capture_last(rows, {Site.KEY: list(layers)})
    return {layer: read[Site.KEY, layer].double() for layer in layers}


def check_first(model: LanguageModel, words: Sequence[str]) -> None:
    """Refuse words that are not the very first token of a text.

    Raises:
        InputError: naming them.
    """
    encoded = encode(model.tokenizer, words)
    if wrong := [word for word, row in zip(words, encoded, strict=True) if len(row.ids) != 1]:
        raise InputError(
            f"{', '.join(wrong)}: not the first and only token of a text for {model.name!r}",
            remedy="Give words of one token, with --subjects and --others; a tokenizer that puts BOS before every text "
            "has no such words",
        )


def shown(value: float) -> str:
    """Two digits; never -0.00."""
    return f"{round(value, 2) + 0.0:.2f}"


def cosines(one: Float[Tensor, "n d"], other: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """Between every two rows."""
    return torch.nn.functional.normalize(one) @ torch.nn.functional.normalize(other).T


def show_keys(model: LanguageModel, options: argparse.Namespace) -> None:
    """Print the table of ``keys``."""
    check_first(model, [*options.subjects, *options.others])
    layers = options.layers
    bare, others = (keys_of_last(model, words, layers) for words in (options.subjects, options.others))
    leads = [NEUTRAL, *options.also]
    led = [keys_of_last(model, [f"{lead}{word}" for word in options.subjects], layers) for lead in leads]
    ordinary = moments_of(model, layers, options.text, tokens=options.tokens, length=options.length)
    means_after = [f"mean, after {lead!r}" for lead in leads]
    head = ["layer", "least", "mean", "largest", *means_after, "length relative to keys inside a text"]
    rows = []
    for layer in layers:
        found = cosines(bare[layer], others[layer])
        means = [float(cosines(keys[layer], others[layer]).mean()) for keys in led]
        cells = [float(found.min()), float(found.mean()), float(found.max()), *means]
        size = bare[layer].square().sum(1).mean().sqrt() / ordinary[layer].inside.mean.trace().sqrt()
        rows.append([layer, *map(shown, cells), f"{float(size):.1f}"])
    print(markdown_table(head, rows, "l" * len(head)))


def spectrum_row(layer: int, moment: SecondMoment) -> list[str]:
    """A layer's row of ``spectra``; shares in per cent."""
    values = torch.linalg.eigvalsh(moment.mean).clamp_min(0)
    mean, trace = float(values.mean()), float(values.sum())
    low, null = values[values < SHARE * mean], values[values < THRESHOLD]
    return [
        str(layer),
        f"{mean:.4f}",
        f"{float(values.median()) / mean:.2f}",
        f"{float(values[-1]) / mean:,.0f}",
        f"{100 * float(values[-1]) / trace:.0f} %",
        f"{100 * len(low) / len(values):.0f} %",
        f"{100 * float(low.sum()) / trace:.1f} %",
        f"{100 * len(null) / len(values):.0f} %",
        f"{L2 / float(null.sum()):.2f}" if float(null.sum()) > 0 else "–",
    ]


def show_spectra(model: LanguageModel, options: argparse.Namespace) -> None:
    """Print the tables of ``spectra``."""
    found = moments_of(model, options.layers, options.text, tokens=options.tokens, length=options.length)
    tables = {
        "All": {layer: moments.whole for layer, moments in found.items()},
        "Without first": {layer: moments.inside for layer, moments in found.items()},
    }
    head = [
        "layer",
        "mean eigenvalue",
        "median / mean",
        "largest / mean",
        "largest's share of the trace",
        f"directions below {SHARE} means",
        "… and their share of the trace",
        f"directions below {THRESHOLD}",
        f"L2 {L2:g} is ρ =",
    ]
    for name, table in tables.items():
        print(f"\n{name} tokens: {next(iter(table.values())).count:,}\n")
        rows = [spectrum_row(layer, moment) for layer, moment in table.items()]
        print(markdown_table(head, rows, "l" * len(head)))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    keys = commands.add_parser("keys", help="cosines between keys of first tokens")
    keys.add_argument("--subjects", nargs="+", default=SUBJECTS, help="words of one token")
    keys.add_argument("--others", nargs="+", default=OTHERS, help="words of one token")
    keys.add_argument(
        "--also", nargs="+", default=[], metavar="TEXT", help="text before the subjects, besides a line break"
    )
    spectra = commands.add_parser("spectra", help="spectra of the keys' second moment")
    for command, show in ((keys, show_keys), (spectra, show_spectra)):
        command.add_argument("model")
        command.add_argument("--layers", type=int, nargs="+", required=True)
        command.add_argument("--text", default="builtin", help="builtin, lab, or a text file")
        command.add_argument("--tokens", type=int, default=12_000, help="number of its tokens")
        command.add_argument("--length", type=int, default=1024, help="tokens of a document to read")
        command.add_argument("--device")
        command.set_defaults(show=show)
    options = parser.parse_args(arguments)
    try:
        model = load_model(options.model, dtype=torch.float32, device=options.device)
        model.check_layers(options.layers)
        options.show(model, options)
    except InputError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
