"""LanguageModel: a Hugging Face causal LM with its tokenizer and its family's row; capture and weights."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from errata.errors import InputError, NonFiniteError
from errata.models.base_files import BaseFiles
from errata.models.families import Architecture, architecture_of, check_config, down_projection_weight
from errata.models.outline import check_layers_exist, context_length_of, loading, local_directory, source_of
from errata.models.prompts import Pair, TargetScore, guard_embedding, length_batches, pad, probe_row, unembedded
from errata.models.size import check_fits, weight_bytes
from errata.models.weights import EditedWeights
from errata.utils.files import new_directory
from errata.utils.progress import Report, silent

_logger = logging.getLogger(__name__)
TOKEN_BUDGET = 4096  # padded tokens per forward pass that needs no gradient


class Site(StrEnum):
    """Where in a block a vector is read: W's input (the key), W's or attention's output, or the block's output."""

    KEY = "key"
    MLP = "mlp"
    ATTENTION = "attention"
    BLOCK = "block"


class _CaptureComplete(BaseException):
    """Ends a forward pass once everything asked for has been read; never leaves this module."""


class LanguageModel:
    """A causal LM that can be read and edited. Parameters never require gradients here; dropout is off.

    Attributes:
        model: the transformers model, in eval mode.
        tokenizer: its fast tokenizer.
        architecture: where this family keeps its parts.
        name: what the user called it; for messages and records.
        files: where it was loaded from; None for a model that was made in memory.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str = "model",
        files: BaseFiles | None = None,
    ) -> None:
        self.architecture: Architecture = architecture_of(model)
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        self.files = files
        self.edits = EditedWeights(self)

    @classmethod
    def load(
        cls,
        name_or_path: str | Path = "lab",
        *,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        trust_remote_code: bool = False,
    ) -> LanguageModel:
        """Load ``lab`` (embedded), a local directory or GGUF file, a small model by its name, or a model of the hub.

        Args:
            dtype: of the weights; by default float32 for ``lab``, else what the checkpoint is stored in.
            device: by default ``cpu`` for ``lab``, else a GPU where there is one.

        Raises:
            InputError: if nothing can be loaded from there, it does not fit in memory, its parts do not fit each other,
                or what it computes is not finite.
            UnsupportedModelError: if the architecture is not in the table.
        """
        name = str(name_or_path)
        if name == "lab":
            dtype = dtype or torch.float32
            device = device or "cpu"
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        with loading(name):
            source = source_of(name)
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
            config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
            check_config(config)
            needed = weight_bytes(config, dtype, trust_remote_code=trust_remote_code)
            for place in {torch.device("cpu"), chosen}:  # it is read into main memory, wherever it goes then
                check_fits(name, needed, place)
            files = BaseFiles.of(local_directory(source, config))
            loading_result: Any = AutoModelForCausalLM.from_pretrained(
                source,
                dtype=dtype or "auto",
                trust_remote_code=trust_remote_code,
                ignore_mismatched_sizes=True,  # told below, as what is missing
                output_loading_info=True,
            )
            model, found = loading_result
            # transformers would go on with random numbers in their place.
            if bad := sorted({*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])}):
                raise ValueError(f"{len(bad)} of its weights are missing or of another shape, such as {bad[0]!r}")
            loaded = cls(model, tokenizer, name=name, files=files)
            loaded._check_unexpected(found["unexpected_keys"])
            embedding = model.get_input_embeddings()
            if beyond := unembedded(tokenizer, len(embedding.weight)):
                guard_embedding(embedding, name, beyond)
            probe = probe_row(tokenizer)[: loaded.context_length]
        nn.Module.to(model, chosen)  # transformers wraps the method in a way that hides its types
        loaded._check_finite(probe)
        return loaded

    def save(self, directory: str | Path) -> None:
        """Write the model, as it is now, as a plain transformers directory: the base's files with the edited tensors.

        It is written whole or not at all; see ``errata.models.edited_files.write_edited``.

        Raises:
            InputError: if something is there already, or the model was not loaded from files.
            OutputError: if it cannot be written.
        """
        from errata.models.edited_files import write_edited  # a model can do without it, not it without the model

        with new_directory(Path(directory)) as partial:
            write_edited(self, partial)

    def _check_unexpected(self, names: Iterable[str]) -> None:
        """What files hold and the model has no place for is told; of blocks that its configuration leaves out, refused.

        Raises:
            ValueError: if there are such blocks.
        """
        unexpected = sorted(names)
        blocks = re.compile(rf"(?:^|\.){re.escape(self.architecture.blocks.rpartition('.')[2])}\.(\d+)\.")
        numbers = [int(found[1]) for name in unexpected if (found := blocks.search(name))]
        if numbers and max(numbers) >= len(self.blocks):
            raise ValueError(
                f"its weights are of at least {max(numbers) + 1} blocks, but its config.json says {len(self.blocks)}"
            )
        if unexpected:
            shown = ", ".join(unexpected[:3]) + (", …" if len(unexpected) > 3 else "")
            _logger.warning(
                "warning: %d tensors in the files of %r have no place in the model and are not used: %s",
                len(unexpected),
                self.name,
                shown,
            )

    def _check_finite(self, row: Sequence[int]) -> None:
        """Raises InputError if the model's logits behind a text are not all numbers."""
        inputs = pad([row], left=False, device=self.device).inputs()
        with torch.no_grad():
            logits = self.model(**inputs, use_cache=False).logits
        if not bool(torch.isfinite(logits).all()):
            raise self.not_finite()

    @contextmanager
    def blaming_no_edit(self) -> Iterator[None]:
        """Within it, values that are not finite although nothing was edited are reported as the model's own.

        Raises:
            InputError: in place of a NonFiniteError, whose remedies are for edits.
        """
        try:
            yield
        except NonFiniteError as error:
            if self.edits.terms:
                raise
            raise self.not_finite() from error

    def not_finite(self) -> InputError:
        """What is raised where the model gives no numbers although nothing was edited."""
        dtype = str(self.dtype).removeprefix("torch.")
        narrow = self.dtype in (torch.float16, torch.bfloat16)
        return InputError(
            f"the model {self.name!r} produces values that are not finite in {dtype}, before any edit",
            remedy="Load it with --dtype float32" + (" or bfloat16" if dtype == "float16" else "")
            if narrow
            else "Its weights are damaged; get them again",
        )

    # Shapes and places ------------------------------------------------------------------------------------------

    @property
    def abilities(self) -> frozenset[Literal["likelihood", "generation", "rolling"]]:
        """See ``errata.editors.contract.Answerer``."""
        return frozenset(("likelihood", "generation", "rolling"))

    @property
    def device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def blocks(self) -> nn.ModuleList:
        blocks = self.model.get_submodule(self.architecture.blocks)
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    @property
    def head(self) -> nn.Module:
        return self.model.get_submodule(self.architecture.head)

    @property
    def context_length(self) -> int:
        """How many tokens the model takes."""
        return context_length_of(self.model.config)

    def check_layers(self, layers: Sequence[int]) -> None:
        """Raises InputError if a layer does not exist."""
        check_layers_exist(layers, len(self.blocks), self.name)

    def down_projection(self, layer: int) -> nn.Module:
        return self.blocks[layer].get_submodule(self.architecture.down_projection)

    def attention_output(self, layer: int) -> nn.Module:
        """Attention's output projection."""
        return self.blocks[layer].get_submodule(self.architecture.attention_output)

    def mlp(self, layer: int) -> nn.Module:
        return self.blocks[layer].get_submodule(self.architecture.mlp)

    @property
    def mlp_is_module(self) -> bool:
        """Whether the whole MLP is a module of its own; OPT keeps its two layers in the block."""
        return self.architecture.mlp != self.architecture.down_projection

    def norm_after_mlp(self, layer: int) -> nn.Module | None:
        """The norm between W's output and the residual stream, where the family has one (Gemma 2 and 3)."""
        path = self.architecture.norm_after_mlp
        return None if path is None else self.blocks[layer].get_submodule(path)

    def weight(self, layer: int) -> Tensor:
        """W of a block as (d_out, d_in), a view into the model: writing to it writes to the model."""
        return down_projection_weight(self.down_projection(layer))

    def set_weight(self, layer: int, value: Tensor) -> None:
        """Overwrite W with ``value`` (d_out, d_in), rounded once to the model's dtype."""
        with torch.no_grad():
            self.weight(layer).copy_(value)

    def fingerprint(self) -> str:
        """SHA-256 over names, dtypes, shapes and bytes of all parameters: equal weights, equal fingerprint."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
            digest.update(tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    # Answering: see errata.editors.contract.Answerer; the modules imported here are built on this one ---------------

    def score(
        self,
        pairs: Sequence[Pair],
        *,
        joiner: str | None = None,
        token_budget: int = TOKEN_BUDGET,
        report: Report = silent,
    ) -> list[TargetScore]:
        """See ``errata.models.likelihood.score``.

        Args:
            joiner: between prompt and target, for pairs without a joiner; None: see ``facts.joining.joiner_of``.
        """
        from errata.models import likelihood

        joined = [pair if joiner is None or len(pair) == 3 else (*pair, joiner) for pair in pairs]
        return likelihood.score(self, joined, token_budget=token_budget, report=report)

    def continue_texts(
        self,
        prompts: Sequence[str],
        *,
        new_tokens: int | Sequence[int],
        top_k: int = 1,
        uniforms: Tensor | None = None,
        stop: Callable[[str], bool] | None = None,
    ) -> list[str]:
        """See ``errata.models.generation.continue_texts``."""
        from errata.models import generation

        return generation.continue_texts(
            self, prompts, new_tokens=new_tokens, top_k=top_k, uniforms=uniforms, stop=stop
        )

    def used(self, prompts: Sequence[str]) -> list[tuple[str, ...]]:
        """No facts: changed weights answer every prompt."""
        return [()] * len(prompts)

    # Reading ----------------------------------------------------------------------------------------------------

    def capture_last(
        self, rows: Sequence[Sequence[int]], wanted: Mapping[Site, Sequence[int]], *, token_budget: int = TOKEN_BUDGET
    ) -> dict[tuple[Site, int], Tensor]:
        """Read vectors at the last token of every row, running no block above the last one that is needed.

        Args:
            rows: token ids; what lies behind a row's last token cannot matter to it, so leave it out.
            wanted: site -> layers.

        Returns:
            (site, layer) -> (rows, d) in the model's dtype, in the order of ``rows``.
        """
        found: dict[tuple[Site, int], list[Tensor | None]] = {
            (site, layer): [None] * len(rows) for site, layers in wanted.items() for layer in layers
        }
        for indices in length_batches([len(row) for row in rows], token_budget=token_budget):
            batch = pad([rows[index] for index in indices], left=False, device=self.device)
            last = batch.attention_mask.sum(1) - 1
            with self.reading(wanted) as read, torch.no_grad():
                self.run_until_read(batch.inputs())
            for key, values in read.items():
                picked = values[torch.arange(len(indices), device=self.device), last]
                for index, vector in zip(indices, picked, strict=True):
                    found[key][index] = vector
        return {
            key: torch.stack([vector for vector in vectors if vector is not None]) for key, vectors in found.items()
        }

    def run_until_read(self, inputs: Mapping[str, Any]) -> None:
        """Run the model inside ``reading``: it stops as soon as everything has been read. The head never runs."""
        try:
            self.model.base_model(**({"use_cache": False} | dict(inputs)))
        except _CaptureComplete:
            return

    @contextmanager
    def reading(self, wanted: Mapping[Site, Sequence[int]]) -> Iterator[dict[tuple[Site, int], Tensor]]:
        """Collect whole activations (rows, length, d) of one forward pass at the wanted sites, then end that pass."""
        found: dict[tuple[Site, int], Tensor] = {}
        total = sum(len(layers) for layers in wanted.values())
        shape: list[int] = []

        def note_shape(module: nn.Module, args: tuple[Any, ...]) -> None:
            shape[:] = args[0].shape[:2]

        def store(site: Site, layer: int, value: Tensor) -> None:
            # OPT flattens (rows, length) before its second linear layer.
            found[site, layer] = value if value.dim() == 3 else value.view(*shape, -1)
            if len(found) == total:
                raise _CaptureComplete

        handles = [self.blocks[0].register_forward_pre_hook(note_shape)]
        try:
            for site, layers in wanted.items():
                handles.extend(self._read_hook(site, layer, store) for layer in layers)
            yield found
        finally:
            for handle in handles:
                handle.remove()

    def _read_hook(self, site: Site, layer: int, store: Callable[[Site, int, Tensor], None]) -> RemovableHandle:
        if site is Site.KEY:
            return self.down_projection(layer).register_forward_pre_hook(
                lambda module, args: store(site, layer, args[0])
            )
        if site in (Site.MLP, Site.ATTENTION):
            part = self.down_projection(layer) if site is Site.MLP else self.attention_output(layer)
            return part.register_forward_hook(lambda module, args, output: store(site, layer, output))
        return self.blocks[layer].register_forward_hook(
            lambda module, args, output: store(site, layer, output[0] if isinstance(output, tuple) else output)
        )
