"""Routed: a model whose activations an editor changes, by hooks, in the rows whose prompts it recognises.

Two steps are kept apart. *Decide*: one query a row, read in one module from the prompt alone, gives the row's route.
*Act*: hooks at that module or above change the outputs of modules in the rows that have a route, wherever these rows
are at the time: teacher-forced or generated, padded on either side, with or without a cache. The deciding module is at
or below the first one that is changed, so queries are those of the unedited model: they are read in the same forward
pass and remembered, and routing costs a prompt nothing of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Generic, Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from errata.editors.contract import ModelView
from errata.errors import InputError
from errata.models import generation, likelihood
from errata.models.generation import Stop
from errata.models.language_model import CACHE_BUDGET, TOKEN_BUDGET, LanguageModel, Site
from errata.models.prompts import Encoded, Pair, TargetScore, chat_frame, encode, length_batches, pad
from errata.models.row_hooks import RowHooks, RowPass, positions_of
from errata.results.metrics import Ability
from errata.utils.progress import Report, counter, silent

_QUERY_BYTES: Final = 1 << 28  # of remembered queries

QueryKind: TypeAlias = Literal["prompt_last", "prompt_mean"]
"""The query of a prompt: the activation at its last token, or the mean over the tokens of its text."""

ReadKind: TypeAlias = QueryKind | Literal["prompt_tokens"]
"""Also the activations at all tokens of its text: of several prompts (rows, longest, d), NaN after a row's last."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What decides a row's route."""

    ids: tuple[int, ...]  # its tokens; the text after it has none here
    start: int  # the first token of its text: after BOS, or in a chat template that of the user's message
    stop: int  # the first token after that text

    @property
    def last(self) -> int:
        """The boundary: the index of the prompt's last token."""
        return len(self.ids) - 1


def prompts_of(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], encoded: Sequence[Encoded]) -> list[Prompt]:
    """The prompts of some texts and their tokens."""
    frame = chat_frame(tokenizer) if tokenizer.chat_template else None
    prompts: list[Prompt] = []
    for text, row in zip(texts, encoded, strict=True):
        if not row.ids:  # generation then starts from EOS
            prompts.append(Prompt((tokenizer.eos_token_id or 0,), 0, 1))
            continue
        first, last = 0, len(text)
        if frame is not None and text.startswith(frame[0]) and text.endswith(frame[1]):
            first, last = len(frame[0]), len(text) - len(frame[1])
        own = row.tokens_of(first, last) or range(len(row.ids))
        prompts.append(Prompt(row.ids, own.start, own.stop))
    return prompts


class Queries:
    """Reads and remembers the queries of prompts: vectors at the input of one block's down-projection.

    Args:
        model: as it is, with all edits of its weights.
        layer: the block.
        kind: what of a prompt is read.

    Raises:
        InputError: for ``prompt_last`` in the first quarter of the blocks. There the vector at a prompt's last token
            depends on little more than that token, which many prompts share.
    """

    def __init__(self, model: LanguageModel, layer: int, kind: ReadKind) -> None:
        model.check_layers([layer])
        if kind == "prompt_last" and 4 * layer < len(model.blocks):
            raise InputError(
                f"in block {layer} of {len(model.blocks)}, the last token of a prompt does not tell prompts apart",
                remedy=f"Give a layer from {-(-len(model.blocks) // 4)} on, or the query prompt_mean",
                code="QUERY_LAYER_TOO_LOW",
            )
        self.model, self.layer, self.kind = model, layer, kind
        self._found: dict[Prompt, Tensor] = {}
        self._weights: list[Any] = []  # the edits of the weights for which they were found

    def of(self, prompts: Sequence[Prompt]) -> Float[Tensor, "prompts *tokens d"]:
        """The queries on the CPU, at least float32. Unknown ones are read in partial passes of the prompts alone."""
        self._make_room()
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._found]
        for indices in length_batches([len(prompt.ids) for prompt in missing], token_budget=TOKEN_BUDGET):
            own = [missing[index] for index in indices]
            batch = pad([prompt.ids for prompt in own], left=False, device=self.model.device)
            with self.model.capture({Site.KEY: [self.layer]}) as read, torch.no_grad():
                self.model.run_captured(batch.inputs())
            self._remember(own, read[Site.KEY, self.layer], positions_of(batch))
        return self.remembered(prompts)

    def remembered(self, prompts: Sequence[Prompt]) -> Float[Tensor, "prompts *tokens d"]:
        """The queries of prompts that have been read; KeyError for another one."""
        found = [self._found[prompt] for prompt in prompts]
        if self.kind == "prompt_tokens":
            return nn.utils.rnn.pad_sequence(found, batch_first=True, padding_value=torch.nan)
        return torch.stack(found)

    @contextmanager
    def reading(self, rows: RowPass, prompts: Sequence[Prompt]) -> Iterator[None]:
        """Read the unknown ones among the queries of a forward pass that reads these prompts from their beginning."""
        self._make_room()
        if all(prompt in self._found for prompt in prompts):
            yield
            return

        def read(module: nn.Module, args: tuple[Any, ...]) -> None:
            self._remember(prompts, by_row(args[0], len(prompts)), rows.positions)

        handle = self.model.down_projection(self.layer).register_forward_pre_hook(read)
        try:
            yield
        finally:
            handle.remove()

    @torch.no_grad()
    def _remember(self, prompts: Sequence[Prompt], values: Tensor, positions: Tensor) -> None:
        """Args: values: (rows, length, d)."""
        new = [row for row, prompt in enumerate(prompts) if prompt not in self._found]
        own = [prompts[row] for row in new]
        values, positions = values[new], positions[new]
        wide = torch.promote_types(values.dtype, torch.float32)
        if self.kind == "prompt_last":
            last = torch.tensor([prompt.last for prompt in own], device=values.device)
            column = (positions == last[:, None]).int().argmax(1)
            found = values[torch.arange(len(own), device=values.device), column].to(wide)
        else:
            starts = torch.tensor([prompt.start for prompt in own], device=values.device)
            stops = torch.tensor([prompt.stop for prompt in own], device=values.device)
            inside = (positions >= starts[:, None]) & (positions < stops[:, None])
            if self.kind == "prompt_tokens":
                tokens = [row[places].to(wide).cpu() for row, places in zip(values, inside, strict=True)]
                self._found.update(zip(own, tokens, strict=True))
                return
            found = torch.where(inside[..., None], values.to(wide), 0).sum(1) / (stops - starts)[:, None]
        self._found.update(zip(own, found.cpu(), strict=True))

    def _make_room(self) -> None:
        present = self.model.edits.terms
        if len(present) != len(self._weights) or any(a is not b for a, b in zip(present, self._weights, strict=True)):
            self._found, self._weights = {}, list(present)
        if sum(query.nbytes for query in self._found.values()) > _QUERY_BYTES:
            self._found = {}


R = TypeVar("R")


@runtime_checkable
class Router(Protocol[R]):
    """An editor's state as what it does to a model. ``R`` is a route: what is done to a row that has one.

    Attributes:
        queries: by which it decides.
        is_empty: whether no query has a route.
    """

    @property
    def queries(self) -> Queries: ...

    @property
    def is_empty(self) -> bool: ...

    def routes(self, queries: Float[Tensor, "rows *tokens d"]) -> list[R | None]:
        """The route of each query; None where the model is left alone."""
        ...

    def facts_of(self, route: R) -> tuple[str, ...]:
        """The ids of the facts that a route is about."""
        ...

    def acting(
        self, routes: Callable[[], Sequence[R | None]], rows: RowPass, prompts: Sequence[Prompt]
    ) -> AbstractContextManager[None]:
        """Install the hooks of one forward pass.

        Args:
            routes: for each row of the pass; to be called inside hooks, since queries may be read in the same pass.
            prompts: for each row of the pass.
        """
        ...


class Hooked(ModelView[LanguageModel], ABC):
    """A model whose activations are changed row by row in each forward pass: an ``Answerer``.

    Prose has no prompt, so there is no ability ``rolling``.
    """

    __slots__ = ()

    abilities: ClassVar[frozenset[Ability]] = frozenset(("likelihood", "generation"))

    @property
    @abstractmethod
    def is_empty(self) -> bool:
        """Whether nothing is ever changed."""

    @abstractmethod
    def hooks(self, texts: Sequence[str], encoded: Sequence[Encoded]) -> RowHooks:
        """The hooks of a call, from the prompts of all of its rows; see ``models.row_hooks``."""

    @abstractmethod
    def used(self, prompts: Sequence[str]) -> list[tuple[str, ...]]:
        """The ids of the facts that each prompt triggers."""

    def score(
        self,
        pairs: Sequence[Pair],
        *,
        joiner: str | None = None,
        token_budget: int = TOKEN_BUDGET,
        report: Report = silent,
    ) -> list[TargetScore]:
        if self.is_empty:
            return self.model.score(pairs, joiner=joiner, token_budget=token_budget, report=report)
        joined = [pair if joiner is None or len(pair) == 3 else (*pair, joiner) for pair in pairs]
        return likelihood.score(self.model, joined, token_budget=token_budget, report=report, hooks=self.hooks)

    def next_token_log_probabilities(self, prompts: Sequence[str], *, token_budget: int = TOKEN_BUDGET) -> Tensor:
        if self.is_empty:
            return self.model.next_token_log_probabilities(prompts, token_budget=token_budget)
        encoded = encode(self.tokenizer, prompts)
        return likelihood.next_token_log_probabilities(
            self.model, [row.ids for row in encoded], token_budget=token_budget, hooks=self.hooks(prompts, encoded)
        )

    def continue_texts(
        self,
        prompts: Sequence[str],
        *,
        new_tokens: int | Sequence[int],
        top_k: int = 1,
        uniforms: Tensor | None = None,
        stop: Stop | None = None,
        end_at_eos: bool = True,
        token_budget: int = CACHE_BUDGET,
        report: Report = silent,
    ) -> list[str]:
        encoded = encode(self.tokenizer, prompts)
        return generation.continue_rows(
            self.model,
            [row.ids for row in encoded],
            new_tokens=new_tokens,
            top_k=top_k,
            uniforms=uniforms,
            stop=stop,
            end_at_eos=end_at_eos,
            token_budget=token_budget,
            names=prompts,
            on_rows=counter(report, "texts", len(prompts)),
            hooks=None if self.is_empty else self.hooks(prompts, encoded),
        )


@dataclass(frozen=True, slots=True)
class Routed(Hooked, Generic[R]):
    """A model with a router. Prompts without a route get the model's own logits, bit for bit."""

    router: Router[R]

    @property
    def is_empty(self) -> bool:
        return self.router.is_empty

    def used(self, prompts: Sequence[str]) -> list[tuple[str, ...]]:
        if self.router.is_empty:
            return [()] * len(prompts)
        routes = self.routes(prompts)
        return [() if route is None else self.router.facts_of(route) for route in routes]

    def routes(self, prompts: Sequence[str]) -> list[R | None]:
        """The route of each prompt."""
        rows = prompts_of(self.tokenizer, prompts, encode(self.tokenizer, prompts))
        return self.router.routes(self.router.queries.of(rows)) if rows else []

    def hooks(self, texts: Sequence[str], encoded: Sequence[Encoded]) -> RowHooks:
        router = self.router
        prompts = prompts_of(self.tokenizer, texts, encoded)
        routes: dict[int, R | None] = {}

        @contextmanager
        def of_pass(rows: RowPass) -> Iterator[None]:
            own = [prompts[row] for row in rows.rows]

            def decided() -> list[R | None]:
                if missing := [row for row in rows.rows if row not in routes]:
                    found = router.routes(router.queries.remembered([prompts[row] for row in missing]))
                    routes.update(zip(missing, found, strict=True))
                return [routes[row] for row in rows.rows]

            with ExitStack() as stack:
                if any(row not in routes for row in rows.rows):
                    stack.enter_context(router.queries.reading(rows, own))
                    stack.enter_context(router.acting(decided, rows, own))
                elif any(routes[row] is not None for row in rows.rows):
                    stack.enter_context(router.acting(decided, rows, own))
                yield

        return of_pass


# What routers act with


def by_row(values: Tensor, rows: int) -> Float[Tensor, "rows length d"]:
    """A module's input or output with its rows apart: OPT flattens (rows, length) before its second linear layer."""
    return values.reshape(rows, -1, values.shape[-1])


Change: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""From a module's input and output, (rows, length, d) each, to another output."""


@contextmanager
def outputs_changed(modules: Sequence[nn.Module], changes: Sequence[Change], rows: int) -> Iterator[None]:
    """While the context is open, the output of each module is what its change makes of it."""
    handles = []
    try:
        for module, change in zip(modules, changes, strict=True):

            def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor, change: Change = change) -> Tensor:
                return change(by_row(args[0], rows), by_row(output, rows)).reshape(output.shape)

            handles.append(module.register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()
