"""How a model is asked freely: the contexts around a question, where its answer ends, and what counts as right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, field_validator
from transformers import PreTrainedTokenizerBase

from errata.evaluation.answers import Ending
from errata.models.prompts import encode

ContextName = Literal["bare", "instruction", "chat"]
_PLACE: Final = "{}"


@dataclass(frozen=True, slots=True)
class Context:
    """What stands around a question.

    Attributes:
        name: in metrics' names (``free_efficacy_exact:chat``); the bare question goes without it.
        template: a text with ``{}`` once; None for the tokenizer's own chat template, the question being the user's.
    """

    name: ContextName
    template: str | None

    def missing(self, tokenizer: PreTrainedTokenizerBase) -> str | None:
        """Why this context cannot be had of a tokenizer; None if it can."""
        if self.template is None and not tokenizer.chat_template:
            return "the tokenizer has no chat template"
        return None

    def text(self, tokenizer: PreTrainedTokenizerBase, question: str) -> str:
        """The whole text that the model reads; of a chat with its special tokens."""
        if self.template is not None:
            before, behind = self.template.split(_PLACE)
            return before + question + behind
        messages = [{"role": "user", "content": question}]
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def may_be_of(self, text: str, question: str) -> bool:
        """Whether a whole text can be that of a question, told without the tokenizer; a chat template may trim it."""
        if self.template is not None:
            before, behind = self.template.split(_PLACE)
            return text == before + question + behind
        return question.strip() in text

    def ids(self, tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
        """The tokens of such a text. A chat template writes BOS itself, so none is added to it."""
        if self.template is None:
            return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        return encode(tokenizer, [text])[0].ids


CONTEXTS: Final[dict[str, Context]] = {
    context.name: context
    for context in (
        Context("bare", "{}"),
        Context("instruction", "Please answer the question:\n\nQ: {}\nA:"),
        Context("chat", None),
    )
}


class FreeSettings(BaseModel):
    """How free-running answers are had and judged. The defaults are ours; ``WILD`` is the paper's way."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    new_tokens: StrictInt = Field(50, ge=1, description="tokens of an answer at most, greedily chosen")
    ending: Ending = Field(
        "sentence",
        description="an answer ends at a newline, at EOS, and: behind its first sentence, or before any full stop",
    )
    contexts: tuple[ContextName, ...] = Field(
        ("bare", "instruction", "chat"), min_length=1, description="what stands around a question"
    )
    aliases: StrictBool = Field(True, description="a fact's aliases are right too")
    contained: StrictBool = Field(True, description="also tell whether an answer holds the right one")
    judge_alone: StrictBool = Field(False, description="a judge, if there is one, takes the place of the exact match")
    repeated_is_wrong: StrictBool = Field(
        False, description="an answer that says the right one twice is wrong to the judge"
    )

    @field_validator("contexts")
    @classmethod
    def _distinct(cls, contexts: tuple[ContextName, ...]) -> tuple[ContextName, ...]:
        if len(set(contexts)) != len(contexts):
            raise ValueError("a context stands there twice")
        return contexts


WILD: Final = FreeSettings(ending="full_stop", aliases=False, contained=False, judge_alone=True, repeated_is_wrong=True)
"""Free-running evaluation as in Yang et al. (2025), "The Mirage of Model Editing: Revisiting Evaluation in the Wild".

Where our default (``FreeSettings()``) deviates from it:

- an answer ends behind its first *sentence*, so that "St. Louis" is one answer; there it ends before any full stop;
- an answer that *contains* the right one as whole words counts in a metric of its own (``…_contained``); there, without
  a judge, only an exact match counts;
- a fact's aliases are right too; there only the target is;
- exact match, containment and the judge stand side by side; there the judge's word takes the place of exact match;
- an answer that says the right one several times is shown to the judge as it is; there it is wrong (a list of several
  answers is wrong in both, to an exact match by itself, and to the judge by its instructions).

Both ask the bare question, the instruction and the model's own template, and report each by itself.
"""
