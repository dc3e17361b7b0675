"""Second moments that ROME's, MEMIT's and AlphaEdit's authors publish, or their code writes: one ``.npz`` a layer.

Such a file is what ``numpy.savez`` makes of the state of a running sum: ``mom2.mom2`` is Σ k kᵀ (d_in, d_in),
``mom2.count`` the number of keys, ``sample_size`` the number of articles; ``….constructor`` are names of classes, which
are not read. Its name is ``{module}_{precision}_mom2_{sample_size}.npz``, such as
``transformer.h.13.mlp.c_proj_float32_mom2_100000.npz``. (Read in: MEMIT, ``rome/layer_stats.py`` and
``util/runningstats.py``; AlphaEdit has the same files.)
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from errata.errors import InputError
from errata.models.language_model import LanguageModel
from errata.statistics.corpus import open_corpus
from errata.statistics.files import IMPORTED, StatisticsFile, StatisticsKey, tokenizer_digest
from errata.statistics.moments import SecondMoment, key_moments, moment_shape
from errata.statistics.settings import BUILTIN, StatisticsSettings
from errata.utils.files import file_digest, open_file, reading

_TOTAL, _COUNT, _ARTICLES = "mom2.mom2", "mom2.count", "sample_size"
_NAME: Final = re.compile(r"^(?P<module>.+?)_(?P<precision>float\d+)_(?P<kinds>[a-z0-9_-]*mom2[a-z0-9_-]*?)(?:_.*)?$")
_UNREADABLE: Final = "STATISTICS_PUBLISHED_UNREADABLE"
_WRONG: Final = "STATISTICS_PUBLISHED_WRONG"
# Sums in half or single precision are symmetric and positive semidefinite up to rounding: as a share of the largest
# entry, and of the trace.
_ROUNDING: Final = {2: 1e-2, 4: 1e-4, 8: 1e-9}
_HEADERS: Final = 1 << 16  # bytes of an entry besides its matrix, at most
# The model's own keys over so many tokens of the built-in text show the scale of a layer. Entries are compared by their
# logarithms: the key of BOS, which published sums count once in up to 4,096 tokens, is large in a few of them only.
_TOKENS_TO_COMPARE: Final = 4096
_LEAST_CORRELATION: Final = 0.7
_MOST_RATIO: Final = 5.0


@dataclass(frozen=True, slots=True)
class Published:
    """One published file.

    Attributes:
        layer: the layer in its name.
        moment: its sums.
        articles: number of articles.
        digest: SHA-256 of the file.
    """

    path: Path
    layer: int
    moment: SecondMoment
    articles: int | None
    digest: str


def import_published(model: LanguageModel, paths: Sequence[Path], *, layers: Sequence[int] = ()) -> StatisticsFile:
    """Published statistics as a statistics file of a model, which must be the one that they were taken from.

    Args:
        paths: one ``.npz`` a layer.
        layers: of the files, in their order, if their names do not say; by default the layers in their names.

    Raises:
        InputError: if one cannot be read, is of another module, has another shape, no finite, symmetric, positive
            semidefinite sums, or another scale than the model's own keys.
    """
    if layers and len(layers) != len(paths):
        raise InputError(
            f"{len(layers)} layers for {len(paths)} files", remedy="Give one for each", code="LAYERS_INVALID"
        )
    numbers = list(layers) or [_layer_in_name(model, path) for path in paths]
    if len(set(numbers)) < len(numbers):
        raise InputError("two of the files are of the same layer", remedy="Give one for each", code="LAYERS_INVALID")
    model.check_layers(numbers)
    shapes = {layer: moment_shape(model, layer) for layer in numbers}
    if apart := [layer for layer, shape in shapes.items() if len(shape) > 2]:
        raise InputError(
            f"block {apart[0]} of {model.name!r} is a mixture of experts, for which nobody publishes statistics",
            remedy="Compute them: errata statistics make",
            code=_WRONG,
        )
    found = [_read(path, layer, shapes[layer][-1]) for path, layer in zip(paths, numbers, strict=True)]
    length = min(512, model.context_length)
    settings = StatisticsSettings(corpus=BUILTIN, tokens=_TOKENS_TO_COMPARE, length=length, special_tokens=False)
    own = key_moments(model, numbers, open_corpus(BUILTIN).documents(), settings)
    for entry in found:
        _check_scale(entry, own[entry.layer], model)
    articles = {entry.articles for entry in found}
    key = StatisticsKey(
        weights=model.fingerprint(),
        dtype=str(model.dtype),
        tokenizer=tokenizer_digest(model.tokenizer),
        corpus=",".join(entry.digest for entry in found),
        tokens=None,
        documents=articles.pop() if len(articles) == 1 else None,
        length=None,
        special_tokens=True,
        preprocessing=IMPORTED,
    )
    corpus = ", ".join(path.name for path in paths)
    return StatisticsFile(key, model.name, corpus, {entry.layer: entry.moment for entry in found})


def _layer_in_name(model: LanguageModel, path: Path) -> int:
    """The layer of a file by its name.

    Raises:
        InputError: if it has another form, or names another module than W.
    """
    name = _NAME.match(path.stem)
    remedy = "Keep the published name, or give the layers of the files with --layers"
    if name is None:
        what = f"the name of {path.name} does not say which layer it is of"
        raise InputError(what, remedy=remedy, code=_UNREADABLE)
    architecture = model.architecture
    form = re.escape(f"{architecture.blocks}.") + r"(\d+)" + re.escape(f".{architecture.down_projection}")
    # The published names of a base model may lack the prefix of its class with a head, and the other way round.
    last = re.escape(architecture.blocks.rpartition(".")[2])
    loose = rf"(?:.*\.)?{last}\.(\d+)" + re.escape(f".{architecture.down_projection}")
    layer = re.fullmatch(form, name["module"]) or re.fullmatch(loose, name["module"])
    if layer is None:
        raise InputError(
            f"{path.name} is of the module {name['module']!r}, but W of a block of {model.name!r} is "
            f"'{architecture.blocks}.N.{architecture.down_projection}'",
            remedy=f"Give statistics of the inputs of W. {remedy}",
            code=_WRONG,
        )
    return int(layer[1])


def _read(path: Path, layer: int, width: int) -> Published:
    """Read a file. Nothing in it is executed (no pickle), and no entry larger than the expected matrix is unpacked."""
    remedy = "Give .npz files as ROME's and AlphaEdit's code writes them, with sums 'mom2'"
    with reading(f"the published statistics {path}", remedy=remedy, code=_UNREADABLE):
        with open_file(path) as file:
            try:
                with zipfile.ZipFile(file) as archive:
                    sizes = {entry.filename.removesuffix(".npy"): entry.file_size for entry in archive.infolist()}
            except zipfile.BadZipFile as error:
                raise ValueError("it is not an .npz file") from error
            if lacking := [name for name in (_TOTAL, _COUNT) if name not in sizes]:
                raise ValueError(f"it has no {lacking[0]!r}")
            for name, most in ((_TOTAL, 8 * width * width), (_COUNT, 0), (_ARTICLES, 0)):
                if sizes.get(name, 0) > most + _HEADERS:
                    what = f"'{name}' takes {sizes[name]:,} bytes, more than a matrix of {width} × {width}"
                    raise InputError(f"{path.name}: {what}", remedy=_other_model(width), code=_WRONG)
            file.seek(0)
            try:
                with np.load(file, allow_pickle=False) as arrays:
                    total, count = arrays[_TOTAL], arrays[_COUNT]
                    articles = arrays[_ARTICLES] if _ARTICLES in sizes else None
            except zipfile.BadZipFile as error:
                raise ValueError("it is damaged") from error
            number = float(count)
            has_articles = articles is not None and articles.size == 1 and articles.dtype.kind in "iu"
            read = int(articles) if articles is not None and has_articles else None
        digest = file_digest(path)
    moment = SecondMoment(_checked(path, total, number, width), int(number))
    return Published(path, layer, moment, read, digest)


def _checked(path: Path, total: np.ndarray, count: float, width: int) -> Tensor:
    """The sums in float64, exactly symmetric.

    Raises:
        InputError: if they are not finite, symmetric and positive semidefinite sums of outer products of ``width``.
    """

    def wrong(what: str, remedy: str) -> InputError:
        return InputError(f"{path.name}: {what}", remedy=remedy, code=_WRONG)

    if total.shape != (width, width) or total.dtype.kind != "f":
        shape = " × ".join(map(str, total.shape))
        raise wrong(f"its sums are {shape} of {total.dtype}, expected {width} × {width}", _other_model(width))
    if not count >= 1 or count != int(count):
        raise wrong(f"it counts {count:g} keys", "Give a complete file")
    tolerance = _ROUNDING[total.dtype.itemsize]
    sums = torch.from_numpy(total).double()
    if not bool(torch.isfinite(sums).all()):
        raise wrong("its sums are not all finite", "Compute them in float32 or float64")
    largest, trace = float(sums.abs().max()), float(sums.trace())
    if float((sums - sums.T).abs().max()) > tolerance * largest:
        raise wrong("its sums are not symmetric", "Give a file of second moments ('mom2')")
    sums = (sums + sums.T) / 2
    # Positive semidefinite up to rounding: with a small multiple of the identity it has a Cholesky factor.
    shifted = sums + tolerance * trace * torch.eye(width, dtype=torch.float64)
    if trace <= 0 or int(torch.linalg.cholesky_ex(shifted).info):
        raise wrong("its sums are not positive semidefinite", "Give second moments without centring or projection")
    return sums


def _check_scale(entry: Published, own: SecondMoment, model: LanguageModel) -> None:
    """Compare the mean squares of a file's entries with those of the model's own keys at the layer.

    Raises:
        InputError: if they are of another scale (a mean instead of a sum, another count), or of other neurons.
    """
    theirs, ours = (moment.mean.diagonal().cpu() for moment in (entry.moment, own))
    used = (ours > 0) & (theirs > 0)
    logs = torch.stack([theirs[used].log(), ours[used].log()])
    correlation = float(torch.corrcoef(logs)[0, 1]) if int(used.sum()) > 1 else 0.0
    ratio = float((logs[0] - logs[1]).median().exp()) if bool(used.any()) else 0.0
    if not correlation >= _LEAST_CORRELATION:  # also NaN
        raise InputError(
            f"{entry.path.name}: its mean squares have a correlation of {correlation:.2f} with those of the keys of "
            f"{model.name!r} at layer {entry.layer}, expected at least {_LEAST_CORRELATION:g}",
            remedy="Give statistics of this model and layer",
            code=_WRONG,
        )
    if not 1 / _MOST_RATIO <= ratio <= _MOST_RATIO:
        raise InputError(
            f"{entry.path.name}: its mean squares are {ratio:.3g} times those of the keys of {model.name!r} at layer "
            f"{entry.layer}",
            remedy="Give Σ k kᵀ with the number of keys, not a mean or an inverse",
            code=_WRONG,
        )


def _other_model(width: int) -> str:
    return f"Give statistics of the inputs of W, which have {width} entries in this model"
