"""A model whose prompts get facts: a view that changes no weight, and runs what the prompts of a fact share once."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from errata.editors.contract import Base, ModelView, OnlyGenerates
from errata.errors import InputError
from errata.facts.joining import joiner_of
from errata.models import likelihood
from errata.models.generation import Stop, continue_rows
from errata.models.language_model import CACHE_BUDGET, TOKEN_BUDGET, LanguageModel
from errata.models.prompts import Pair, TargetScore, complete, encode
from errata.models.replay import pass_cost
from errata.results.metrics import Ability
from errata.utils.progress import Report, counter, silent

_FEW_TOKENS = 8  # special ones, and a tokenizer's own leading space


@dataclass(frozen=True, slots=True)
class Insertion:
    """A prompt with the text that is put into it.

    Attributes:
        before: what precedes the inserted text: nothing, or the opening of a chat.
        parts: the inserted text's parts that may be left out, in order.
        fixed: the inserted text after them.
        after: the prompt, or the rest of it.
        facts: ids of the facts that are inserted.
        from_start: whether the first parts are left out first.
        dropped: how many parts are left out.
    """

    before: str
    parts: tuple[str, ...]
    fixed: str
    after: str
    facts: tuple[str, ...]
    from_start: bool = True
    dropped: int = 0

    @property
    def shared(self) -> str:
        """What all prompts of the same facts begin with."""
        left = self.parts[self.dropped :] if self.from_start else self.parts[: len(self.parts) - self.dropped]
        return self.before + "".join(left) + self.fixed

    @property
    def text(self) -> str:
        return self.shared + self.after


@runtime_checkable
class Rewriter(Protocol):
    """Decides from the prompts what to insert."""

    def insertions(self, prompts: Sequence[str]) -> list[Insertion | None]:
        """For each prompt the insertion; None where it stays as it is."""
        ...


@dataclass(frozen=True, slots=True)
class Prompted(ModelView[LanguageModel]):
    """The model with rewritten prompts; see ``errata.editors.contract.Answerer``.

    A prompt without an insertion is answered by the model's own methods, in calls without the others, so its answers
    are those of the model bit for bit. Where an insertion with the prompt and its continuation is too long for the
    model, its parts are left out one by one.

    Args:
        counterfactual: another model with the same tokens that answers prompts with an insertion; by default the model.

    Raises:
        InputError: from every query, if a prompt with what must be inserted is too long.
    """

    rewriter: Rewriter
    counterfactual: LanguageModel | None = None

    abilities: ClassVar[frozenset[Ability]] = frozenset(("likelihood", "generation"))

    @property
    def _answering(self) -> LanguageModel:
        """The model that answers prompts with an insertion."""
        return self.model if self.counterfactual is None else self.counterfactual

    def used(self, prompts: Sequence[str]) -> list[tuple[str, ...]]:
        """For each prompt, the ids of the inserted facts."""
        return [found.facts if found else () for found in self.rewriter.insertions(prompts)]

    def rewritten(self, prompts: Sequence[str], *, new_tokens: int = 1) -> list[Insertion | None]:
        """What is inserted into each prompt if that many tokens shall follow; None where nothing is."""
        return [found and self._fitted(found, new_tokens) for found in self.rewriter.insertions(prompts)]

    def score(
        self,
        pairs: Sequence[Pair],
        *,
        joiner: str | None = None,
        token_budget: int = TOKEN_BUDGET,
        report: Report = silent,
    ) -> list[TargetScore]:
        """See ``errata.editors.contract.Answerer``; the joiner is that of the prompt alone."""
        inserted = self.rewriter.insertions([pair[0] for pair in pairs])
        hits = [index for index, found in enumerate(inserted) if found]
        misses = [index for index, found in enumerate(inserted) if not found]
        scores: dict[int, TargetScore] = {}
        if misses:
            asked = [pairs[index] for index in misses]
            own = self.model.score(asked, joiner=joiner, token_budget=token_budget, report=report)
            scores |= zip(misses, own, strict=True)
        if hits:
            rewritten: dict[int, Pair] = {}
            fitted: list[Insertion] = []
            for index in hits:
                prompt, target, *own_joiner = pairs[index]
                between = own_joiner[0] if own_joiner else joiner_of(prompt, target) if joiner is None else joiner
                found = self._fitted_before(inserted[index], target, between)
                fitted.append(found)
                rewritten[index] = (found.text, target, between)
            found_scores = likelihood.scores_of(
                self._answering,
                list(dict.fromkeys(rewritten.values())),
                shared=self._shared(fitted),
                token_budget=token_budget,
                report=report,
            )
            likelihood.check_finite(found_scores, {pair: pairs[index][0] for index, pair in rewritten.items()})
            scores |= {index: found_scores[pair] for index, pair in rewritten.items()}
        return [scores[index] for index in range(len(pairs))]

    def next_token_log_probabilities(self, prompts: Sequence[str], *, token_budget: int = TOKEN_BUDGET) -> Tensor:
        """See ``errata.editors.contract.Answerer``."""
        inserted = self.rewritten(prompts)
        hits = [index for index, found in enumerate(inserted) if found]
        misses = [index for index, found in enumerate(inserted) if not found]
        own = self.model.next_token_log_probabilities([prompts[index] for index in misses], token_budget=token_budget)
        if not hits:
            return own
        rows, stems = self._rows([found for found in inserted if found])
        changed = likelihood.next_token_log_probabilities(self._answering, rows, stems=stems, token_budget=token_budget)
        found = torch.empty(len(prompts), changed.shape[1], dtype=changed.dtype)
        found[hits] = changed
        if misses:
            found[misses] = own
        return found

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
        """See ``errata.editors.contract.Answerer``."""
        limits = [new_tokens] * len(prompts) if isinstance(new_tokens, int) else list(new_tokens)
        inserted = [
            found and self._fitted(found, limit)
            for found, limit in zip(self.rewriter.insertions(prompts), limits, strict=True)
        ]
        hits = [index for index, found in enumerate(inserted) if found]
        misses = [index for index, found in enumerate(inserted) if not found]
        texts: dict[int, str] = {}
        on_texts = counter(report, "texts", len(prompts))
        if misses:
            own = self.model.continue_texts(
                [prompts[index] for index in misses],
                new_tokens=[limits[index] for index in misses],
                top_k=top_k,
                uniforms=None if uniforms is None else uniforms[misses],
                stop=stop,
                end_at_eos=end_at_eos,
                token_budget=token_budget,
                report=_differences(on_texts),
            )
            texts |= zip(misses, own, strict=True)
        if hits:
            rows, stems = self._rows([found for found in inserted if found])
            changed = continue_rows(
                self._answering,
                rows,
                new_tokens=[limits[index] for index in hits],
                top_k=top_k,
                uniforms=None if uniforms is None else uniforms[hits],
                stop=stop,
                end_at_eos=end_at_eos,
                stems=stems,
                token_budget=token_budget,
                names=[prompts[index] for index in hits],
                on_rows=on_texts,
            )
            texts |= zip(hits, changed, strict=True)
        return [texts[index] for index in range(len(prompts))]

    def _fitted(self, found: Insertion, new_tokens: int) -> Insertion:
        """The insertion with as many parts as fit. The last new token is not read."""
        more = max(new_tokens - 1, 0)
        return self._shortened(found, more, lambda text: len(encode(self.tokenizer, [text])[0].ids) + more)

    def _fitted_before(self, found: Insertion | None, target: str, joiner: str) -> Insertion:
        assert found is not None
        bytes_after = len(joiner) + len(target.encode("utf-8", "surrogatepass"))
        return self._shortened(
            found, bytes_after, lambda text: len(complete(self.tokenizer, [(text, target, joiner)])[0].ids) - 1
        )

    def _shortened(self, found: Insertion, more: int, length: Callable[[str], int]) -> Insertion:
        """Leave out parts until the text fits.

        Args:
            more: an upper bound of the tokens after the text.
            length: the exact number of tokens that are read.
        """
        limit = self._answering.context_length
        # No token is less than a byte.
        if len(found.text.encode("utf-8", "surrogatepass")) + more + _FEW_TOKENS <= limit:
            return found
        count = 0

        def fits(dropped: int) -> bool:
            nonlocal count
            count = length(replace(found, dropped=dropped).text)
            return count <= limit

        if fits(0):
            return found
        if fits(len(found.parts)):  # the more parts are left out the shorter, so halving finds the first that fits
            return replace(found, dropped=bisect_left(range(len(found.parts)), True, key=fits))
        raise InputError(
            f"a prompt with the fact {', '.join(found.facts)} has {count} tokens with its continuation, but "
            f"{self.name!r} takes {limit}",
            remedy="Shorten the prompt or the fact, or set 'k_facts' to fewer",
            code="TEXT_TOO_LONG",
        )

    def _shared(self, inserted: Sequence[Insertion]) -> Mapping[str, tuple[int, ...]]:
        """Whole text -> the tokens that it shares with other prompts of its facts.

        Nothing where to read these tokens once saves less than the pass of their own costs, as for a single prompt.
        """
        prompts = Counter(found.shared for found in inserted)
        tokens = {text: row.ids for text, row in zip(prompts, encode(self.tokenizer, list(prompts)), strict=True)}
        if sum((count - 1) * len(tokens[text]) for text, count in prompts.items()) <= pass_cost(self._answering):
            return {}
        return {found.text: tokens[found.shared] for found in inserted}

    def _rows(self, inserted: Sequence[Insertion]) -> tuple[list[tuple[int, ...]], list[int]]:
        """Tokens of the rewritten prompts; for each how many of its first ones are shared, never all. Or no numbers."""
        texts = [found.text for found in inserted]
        rows = [row.ids for row in encode(self.tokenizer, texts)]
        if not (shared := self._shared(inserted)):
            return rows, []
        stems = [
            min(likelihood.common_start(row, shared[text]), len(row) - 1) for row, text in zip(rows, texts, strict=True)
        ]
        return rows, stems


@dataclass(frozen=True, slots=True)
class PromptedText(OnlyGenerates, ModelView[Base]):
    """A model that only generates, with rewritten prompts. The whole insertion is sent, however long it is."""

    rewriter: Rewriter

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
        """See ``errata.editors.contract.Answerer``."""
        inserted = self.rewriter.insertions(prompts)
        return self.model.continue_texts(
            [found.text if found else prompt for prompt, found in zip(prompts, inserted, strict=True)],
            new_tokens=new_tokens,
            top_k=top_k,
            uniforms=uniforms,
            stop=stop,
            end_at_eos=end_at_eos,
            token_budget=token_budget,
            report=report,
        )

    def used(self, prompts: Sequence[str]) -> list[tuple[str, ...]]:
        """For each prompt, the ids of the inserted facts."""
        return [found.facts if found else () for found in self.rewriter.insertions(prompts)]


def _differences(add: Callable[[int], None]) -> Report:
    """A progress callback that adds what was done since its last call."""
    before = 0

    def report(what: str, done: int, total: int) -> None:
        nonlocal before
        add(done - before)
        before = done

    return report
