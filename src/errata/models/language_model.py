"""LanguageModel: a Hugging Face causal LM with its tokenizer, its architecture row, its edits and its activations."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from errata.errors import InputError, NonFiniteError, UnsupportedModelError
from errata.models.copies import Copies
from errata.models.experts import gated_keys
from errata.models.families import (
    Architecture,
    architecture_of,
    check_config,
    down_projection_weight,
    expert_weight,
    experts_of,
)
from errata.models.loading import check_layers_exist, context_length_of, loading, local_directory, source_of
from errata.models.offload import (
    Device,
    Spread,
    execution_device,
    read_parameter,
    stored_tensors,
    write_parameter,
)
from errata.models.prompts import Pair, TargetScore, encode, guard_embedding, length_batches, pad, probe_row, unembedded
from errata.models.saving import BaseFiles, Written, write_edited
from errata.models.size import check_fits, weight_bytes
from errata.models.weights import EditedWeights, ModuleName, Place
from errata.utils.files import cache_directory, new_directory
from errata.utils.progress import Report, counter, silent
from errata.utils.tensors import tensor_bytes
from errata.utils.text import dtype_name, listed

TOKEN_BUDGET = 4096  # padded tokens per forward pass that needs no gradient
CACHE_BUDGET = 8192  # padded tokens, new ones included, whose keys and values are cached at once
_logger = logging.getLogger(__name__)


class Site(StrEnum):
    """A place in a block where vectors are read: the MLP's input, W's input (the key), W's or attention's output, the
    block's output."""

    MLP_INPUT = "mlp_input"
    KEY = "key"
    MLP = "mlp"
    ATTENTION = "attention"
    BLOCK = "block"


@contextmanager
def _lasting_folder() -> Iterator[TemporaryDirectory[str]]:
    """A folder that is deleted if the block fails, and else with the object."""
    parent = cache_directory("offload")
    parent.mkdir(parents=True, exist_ok=True)
    folder = TemporaryDirectory(prefix="model-", dir=parent)
    try:
        yield folder
    except BaseException:
        folder.cleanup()
        raise


class _CaptureComplete(BaseException):
    """Ends a forward pass once every wanted activation has been read; never leaves this module."""


class LanguageModel:
    """A causal LM that can be read and edited. Parameters never require gradients here; dropout is off.

    Attributes:
        model: the transformers model, in eval mode.
        tokenizer: its fast tokenizer.
        architecture: the paths of the family's modules.
        name: as the user gave it; for messages and records.
        files: the files it was loaded from; None for a model that was made in memory.
        edits: all changes made to its weights.
        copies: other processes that hold a copy and share the work; None without torchrun.
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
        if self.architecture.experts is not None and model.dtype == torch.float64:
            model.set_experts_implementation("eager")  # grouped products know no float64
        self.tokenizer = tokenizer
        self.name = name
        self.files = files
        self.edits = EditedWeights(self)
        self.copies: Copies | None = None
        self._folder: TemporaryDirectory[str] | None = None  # of weights on disk

    # Loading and saving

    @classmethod
    def load(
        cls,
        name_or_path: str | Path = "lab",
        *,
        dtype: torch.dtype | None = None,
        device: Device | None = None,
        trust_remote_code: bool = False,
    ) -> LanguageModel:
        """Load ``lab`` (embedded), a local directory or GGUF file, a small model by its name, or a model of the hub.

        Args:
            dtype: of the weights; by default float32 for ``lab``, else the checkpoint's own.
            device: by default ``cpu`` for ``lab``, else a GPU if there is one; a ``Spread`` leaves it to accelerate to
                spread the model over devices, main memory and disk.

        Raises:
            InputError: if nothing can be loaded, the model does not fit in memory, weights are missing, or its logits
                are not finite.
            UnsupportedModelError: if the architecture is not supported.
        """
        name = str(name_or_path)
        if name == "lab":
            dtype = dtype or torch.float32
            device = device or "cpu"
        spread = device if isinstance(device, Spread) else None
        if isinstance(device, Spread) or device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        target = torch.device(device)
        with loading(name), ExitStack() as stack:
            source = source_of(name)
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
            config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
            check_config(config)
            if spread is None:
                needed = weight_bytes(config, dtype, trust_remote_code=trust_remote_code)
                for place in {torch.device("cpu"), target}:  # weights are read into main memory first
                    check_fits(name, needed, place)
            files = BaseFiles.of(local_directory(source, config))
            # Deleted with the model; only weights whose form on disk is not that of the model are written there.
            folder = None if spread is None else stack.enter_context(_lasting_folder())
            result: Any = AutoModelForCausalLM.from_pretrained(
                source,
                dtype=dtype or "auto",
                trust_remote_code=trust_remote_code,
                ignore_mismatched_sizes=True,  # reported below, together with missing weights
                output_loading_info=True,
                **({} if spread is None or folder is None else spread.options(folder.name)),
            )
            model, info = result
            # transformers would leave random numbers in their place.
            if bad := sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}):
                raise ValueError(f"{len(bad)} of its weights are missing or of another shape, such as {bad[0]!r}")
            loaded = cls(model, tokenizer, name=name, files=files)
            loaded._folder = folder
            loaded._check_unexpected(info["unexpected_keys"])
            embedding = model.get_input_embeddings()
            if beyond := unembedded(tokenizer, len(embedding.weight)):
                guard_embedding(embedding, name, beyond)
            probe = probe_row(tokenizer)[: loaded.context_length]
        if spread is None:
            nn.Module.to(model, target)  # transformers wraps the method in a way that hides its types
        loaded._check_finite(probe)
        return loaded

    def save(self, directory: str | Path) -> None:
        """Write the model with its edits as a plain transformers directory, completely or not at all.

        Raises:
            InputError: if the directory is not empty, or the model was not loaded from files.
            OutputError: if it cannot be written.
        """
        with new_directory(Path(directory)) as partial:
            self.write_files(partial)

    def write_files(self, directory: Path) -> Written:
        """Write the base's files with the edited tensors into an empty directory; see ``write_edited``.

        Raises:
            InputError: if the model was not loaded from files, or these have changed since.
        """
        if self.files is None:
            what = f"{self.name!r} was not loaded from files, so it cannot be saved as an edited copy of them"
            remedy = "Load it with LanguageModel.load, or save its patch instead"
            raise InputError(what, remedy=remedy, code="MODEL_WITHOUT_FILES")
        return write_edited(self.model, self.files, self.architecture, self.edits, directory)

    def _check_unexpected(self, names: Iterable[str]) -> None:
        """Warn of tensors that the model has no place for.

        Raises:
            ValueError: if they belong to blocks that the configuration leaves out.
        """
        unexpected = sorted(names)
        blocks = re.compile(rf"(?:^|\.){re.escape(self.architecture.blocks.rpartition('.')[2])}\.(\d+)\.")
        numbers = [int(found[1]) for name in unexpected if (found := blocks.search(name))]
        if numbers and max(numbers) >= len(self.blocks):
            raise ValueError(
                f"its weights have at least {max(numbers) + 1} blocks, but its config.json says {len(self.blocks)}"
            )
        if unexpected:
            _logger.warning(
                "warning: %d tensors in the files of %r have no place in the model and are not used: %s",
                len(unexpected),
                self.name,
                listed(unexpected, 3),
            )

    def _check_finite(self, row: Sequence[int]) -> None:
        """Raises InputError if the logits of a text are not all finite."""
        inputs = pad([row], left=False, device=self.device).inputs()
        with torch.no_grad():
            logits = self.model(**inputs, use_cache=False).logits
        if not bool(torch.isfinite(logits).all()):
            raise self.not_finite()

    @contextmanager
    def blaming_no_edit(self) -> Iterator[None]:
        """Turn a NonFiniteError raised inside into an InputError if nothing was edited: its remedies are for edits."""
        try:
            yield
        except NonFiniteError as error:
            if self.edits.terms:
                raise
            raise self.not_finite() from error

    def not_finite(self) -> InputError:
        """The error for an unedited model whose values are not finite."""
        narrow = self.dtype in (torch.float16, torch.bfloat16)
        return InputError(
            f"the model {self.name!r} produces values that are not finite in {dtype_name(self.dtype)}, before any edit",
            remedy="Load it with --dtype float32" + (" or bfloat16" if self.dtype == torch.float16 else "")
            if narrow
            else "Its weights are damaged; download them again",
            code="MODEL_NOT_FINITE",
        )

    # Modules and weights

    @property
    def device(self) -> torch.device:
        """Where inputs are; of a spread model the device of its first block."""
        return execution_device(self.model.get_input_embeddings())

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def context_length(self) -> int:
        """The most tokens that the model takes."""
        return context_length_of(self.model.config)

    @property
    def blocks(self) -> nn.ModuleList:
        blocks = self.model.get_submodule(self.architecture.blocks)
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    @property
    def head(self) -> nn.Module:
        return self.model.get_submodule(self.architecture.head)

    def experts(self, layer: int) -> nn.Module | None:
        """The module of a block's experts; None for a dense block."""
        return experts_of(self.blocks[layer], self.architecture)

    def expert_count(self, layer: int) -> int:
        """The number of a block's experts; 0 for a dense block."""
        experts = self.experts(layer)
        return 0 if experts is None else len(experts.get_parameter("down_proj"))

    def key_width(self, layer: int) -> int:
        """d_in: the width of the keys of a block; of its experts side by side, if it has some."""
        places = self.places(layer)
        return len(places) * self.weight(*places[0]).shape[1]

    def places(self, layer: int) -> tuple[Place, ...]:
        """The down-projections of a block: one, or one of each expert."""
        count = self.expert_count(layer)
        return tuple(Place(layer, expert=expert) for expert in range(count)) or (Place(layer),)

    def down_projection(self, layer: int) -> nn.Module:
        """The module whose input is the key and whose output W's; in a mixture of experts the one of all experts."""
        experts = self.experts(layer)
        return self.blocks[layer].get_submodule(self.architecture.down_projection) if experts is None else experts

    def attention_output(self, layer: int) -> nn.Module:
        return self.blocks[layer].get_submodule(self.architecture.attention_output)

    def mlp(self, layer: int) -> nn.Module:
        return self.blocks[layer].get_submodule(self.architecture.mlp)

    def mlp_reader(self, layer: int) -> nn.Module:
        """The module whose input is that of the block's MLP."""
        return self.blocks[layer].get_submodule(self.architecture.mlp_reader)

    @property
    def mlp_is_module(self) -> bool:
        """Whether the MLP is a module; OPT keeps its two linear layers directly in the block."""
        return self.architecture.mlp != self.architecture.down_projection

    def norm_after_mlp(self, layer: int) -> nn.Module | None:
        """The norm between W's output and the residual stream, where the family has one (Gemma 2 and 3)."""
        path = self.architecture.norm_after_mlp
        return None if path is None else self.blocks[layer].get_submodule(path)

    def check_layers(self, layers: Sequence[int]) -> None:
        """Raises InputError if a layer does not exist."""
        check_layers_exist(layers, len(self.blocks), self.name)

    def linear(self, layer: int, module: ModuleName = "down_proj", expert: int | None = None) -> nn.Module:
        """The module of W of a block, or of another matrix of it.

        Raises:
            UnsupportedModelError: if the family has no such matrix, or the block has one for each expert.
        """
        if expert is not None or (module == "down_proj" and self.experts(layer) is not None):
            what = (
                f"block {layer} of {self.name!r} is a mixture of experts, which has a down-projection for each expert"
            )
            remedy = "Use memit, memit_seq, alphaedit or another method of `errata methods` that knows experts"
            raise UnsupportedModelError(what, remedy=remedy, code="MODEL_EXPERTS_APART")
        return self.blocks[layer].get_submodule(self.architecture.path_of(module))

    def weight(self, layer: int, module: ModuleName = "down_proj", expert: int | None = None) -> Tensor:
        """W of a block or of one of its experts, or another matrix of it, as (d_out, d_in), a view into the model:
        writing to it writes to the model.

        Raises:
            InputError: if there is no such expert.
            UnsupportedModelError: as ``linear``.
        """
        if expert is None:
            return down_projection_weight(
                self.linear(layer, module), read_parameter(self.model, self._parameter(layer, module, expert))
            )
        experts = self.experts(layer)
        if experts is None or module != "down_proj" or not 0 <= expert < self.expert_count(layer):
            what = f"{self.name!r} has no {Place(layer, module, expert).title}"
            raise InputError(what, remedy="Give the model that the change was made for", code="EXPERT_UNKNOWN")
        return expert_weight(experts, expert, read_parameter(self.model, self._parameter(layer, module, expert)))

    def set_weight(
        self, layer: int, value: Tensor, module: ModuleName = "down_proj", expert: int | None = None
    ) -> None:
        """Overwrite W, or another matrix, with ``value`` (d_out, d_in), rounded once to the model's dtype."""
        name = self._parameter(layer, module, expert)
        with torch.no_grad():
            if not self.model.get_parameter(name).is_meta:
                self.weight(layer, module, expert).copy_(value)
                return
            stored = read_parameter(self.model, name).clone()
            if expert is None:
                down_projection_weight(self.linear(layer, module), stored).copy_(value)
            elif (experts := self.experts(layer)) is not None:
                expert_weight(experts, expert, stored).copy_(value)
            write_parameter(self.model, name, stored)

    def _parameter(self, layer: int, module: ModuleName, expert: int | None) -> str:
        """The name of the parameter that holds a matrix, from the model on."""
        block = f"{self.architecture.blocks}.{layer}"
        if expert is not None:
            return f"{block}.{self.architecture.experts}.down_proj"
        return f"{block}.{self.architecture.path_of(module)}.weight"

    def fingerprint(self) -> str:
        """SHA-256 over names, dtypes, shapes and bytes of all parameters: equal weights, equal fingerprint."""
        digest = hashlib.sha256()
        for name, tensor in stored_tensors(self.model):
            digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
            digest.update(tensor_bytes(tensor))
        return digest.hexdigest()

    # Answering: see errata.editors.contract.Answerer. The modules imported inside functions are built on this one.

    @property
    def abilities(self) -> frozenset[Literal["likelihood", "generation", "rolling"]]:
        return frozenset(("likelihood", "generation", "rolling"))

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

    def next_token_log_probabilities(self, prompts: Sequence[str], *, token_budget: int = TOKEN_BUDGET) -> Tensor:
        """See ``errata.models.likelihood.next_token_log_probabilities``."""
        from errata.models import likelihood

        rows = [row.ids for row in encode(self.tokenizer, prompts)]
        return likelihood.next_token_log_probabilities(self, rows, token_budget=token_budget)

    def continue_texts(
        self,
        prompts: Sequence[str],
        *,
        new_tokens: int | Sequence[int],
        top_k: int = 1,
        uniforms: Tensor | None = None,
        stop: Callable[[str], bool] | None = None,
        end_at_eos: bool = True,
        token_budget: int = CACHE_BUDGET,
        report: Report = silent,
    ) -> list[str]:
        """The continuations only, without special tokens; see ``errata.models.generation.continue_rows``."""
        from errata.models import generation

        return generation.continue_rows(
            self,
            [row.ids for row in encode(self.tokenizer, prompts)],
            new_tokens=new_tokens,
            top_k=top_k,
            uniforms=uniforms,
            stop=stop,
            end_at_eos=end_at_eos,
            token_budget=token_budget,
            names=prompts,
            on_rows=counter(report, "texts", len(prompts)),
        )

    def used(self, prompts: Sequence[str]) -> list[tuple[str, ...]]:
        """No facts: changed weights answer every prompt."""
        return [()] * len(prompts)

    # Logits and activations

    def logits_at(
        self, inputs: Mapping[str, Any], rows: Int[Tensor, "positions"], columns: Int[Tensor, "positions"]
    ) -> Tensor:
        """The logits at chosen positions of a batch. The head runs at these positions only; gradients flow if enabled.

        Args:
            inputs: arguments of the model's forward pass; no cache unless they have one.
            rows, columns: the positions, as indices into the batch.

        Returns:
            (positions, vocabulary) in the model's dtype.
        """
        # Only the head's input is cut down: soft caps and projections around it remain the model's own code.
        handle = self.head.register_forward_pre_hook(
            # Of a model on several devices the hidden state is on the last block's.
            lambda module, args: (args[0][rows.to(args[0].device), columns.to(args[0].device)].unsqueeze(0),)
        )
        try:
            logits: Tensor = self.model(**({"use_cache": False} | dict(inputs))).logits[0]
        finally:
            handle.remove()
        return logits

    def capture_last(
        self, rows: Sequence[Sequence[int]], wanted: Mapping[Site, Sequence[int]], *, token_budget: int = TOKEN_BUDGET
    ) -> dict[tuple[Site, int], Tensor]:
        """Read vectors at the last token of every row. No block above the last wanted one is run.

        Args:
            rows: token ids.
            wanted: site -> layers.

        Returns:
            (site, layer) -> (rows, d) in the model's dtype, in the order of ``rows``.
        """
        found: dict[tuple[Site, int], Tensor] = {}
        for indices in length_batches([len(row) for row in rows], token_budget=token_budget):
            batch = pad([rows[index] for index in indices], left=False, device=self.device)
            with self.capture(wanted) as captured, torch.no_grad():
                self.run_captured(batch.inputs())
            for key, values in captured.items():
                vectors = values[torch.arange(len(indices), device=self.device), batch.last]
                if key not in found:
                    found[key] = vectors.new_empty(len(rows), vectors.shape[1])
                found[key][indices] = vectors
        return {(site, layer): found[site, layer] for site, layers in wanted.items() for layer in layers}

    @contextmanager
    def capture(self, wanted: Mapping[Site, Sequence[int]]) -> Iterator[dict[tuple[Site, int], Tensor]]:
        """Collect activations (rows, length, d) of one forward pass at the wanted sites, then end that pass.

        The forward pass is ``run_captured``, inside the block.
        """
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
                handles.extend(self._capture_hook(site, layer, store) for layer in layers)
            yield found
        finally:
            for handle in handles:
                handle.remove()

    def run_captured(self, inputs: Mapping[str, Any]) -> None:
        """Run the model inside ``capture``, up to the last wanted activation. The head never runs."""
        try:
            self.model.base_model(**({"use_cache": False} | dict(inputs)))
        except _CaptureComplete:
            return

    def _of_experts(self, layer: int) -> dict[str, Tensor]:
        """The parameters of a block's experts, which a hook of accelerate may not have loaded yet."""
        path = f"{self.architecture.blocks}.{layer}.{self.architecture.experts}"
        names = [name for name, _ in self.model.get_submodule(path).named_parameters()]
        return {name: read_parameter(self.model, f"{path}.{name}").to(self.device) for name in names}

    def _capture_hook(self, site: Site, layer: int, store: Callable[[Site, int, Tensor], None]) -> RemovableHandle:
        experts = self.experts(layer)
        if site is Site.KEY and experts is not None:
            return experts.register_forward_pre_hook(
                lambda module, args: store(site, layer, gated_keys(module, self._of_experts(layer), *args[:3]))
            )
        if site in (Site.MLP_INPUT, Site.KEY):
            reader = self.mlp_reader(layer) if site is Site.MLP_INPUT else self.down_projection(layer)
            return reader.register_forward_pre_hook(lambda module, args: store(site, layer, args[0]))
        if site in (Site.MLP, Site.ATTENTION):
            part = self.down_projection(layer) if site is Site.MLP else self.attention_output(layer)
            return part.register_forward_hook(lambda module, args, output: store(site, layer, output))
        return self.blocks[layer].register_forward_hook(
            lambda module, args, output: store(site, layer, output[0] if isinstance(output, tuple) else output)
        )
