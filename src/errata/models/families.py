"""The table of model families: the paths of their blocks, projections, norms and head; checks that a model fits it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import attrgetter
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from errata.errors import UnsupportedModelError
from errata.models.weights import ModuleName
from errata.utils.text import dtype_name


@dataclass(frozen=True, slots=True)
class Architecture:
    """The module paths of a model family, dotted as `nn.Module.get_submodule` takes them.

    Attributes:
        model_type: `config.model_type` as in transformers.
        title: the family's name in texts.
        blocks: from the causal LM to its `ModuleList` of decoder blocks.
        mlp: within a block, the module whose output is added to the residual stream, through `norm_after_mlp` if there
            is one. In OPT, whose MLP is not a module, the down-projection, whose input is (batch·tokens, width).
        down_projection: within a block, W.
        attention_output: within a block, attention's output projection.
        norm_after_mlp: within a block, the norm between W's output and the residual stream. Where it is None, adding
            r to W's output moves the block's output by r; where it is not, δ, h and z are taken at W's output.
        final_norm: from the causal LM to the norm after the last block; None where the model has none.
        head: from the causal LM to its LM head. What surrounds it (OPT's `project_out`, Gemma 2's soft cap) is left to
            the model's own forward pass.
        embedding: from the causal LM to its token embedding.
        block_returns_tuple: whether a block returns a tuple whose first entry is the residual stream, not a tensor.
        mlp_reader: within a block, the module whose input is the MLP's.
        query, value: within a block, attention's projections of queries and of values; None where one matrix computes
            queries, keys and values.
        experts: within a block, the module of a mixture of experts whose parameter ``down_proj`` holds the
            down-projections of all experts; None for dense families. Blocks without it (some of Qwen3-MoE's) have
            ``down_projection``.
        stored_expert: within a block, the name of an expert's down-projection in checkpoints, with ``{}`` for its
            number; without, all of them are stored in one tensor.
        mlp_returns_tuple: whether the MLP returns a tuple whose first entry is its output (gpt-oss).
    """

    model_type: str
    title: str
    blocks: str
    mlp: str
    down_projection: str
    attention_output: str
    norm_after_mlp: str | None
    final_norm: str | None
    head: str
    embedding: str
    block_returns_tuple: bool = False
    mlp_reader: str = "mlp"
    query: str | None = None
    value: str | None = None
    experts: str | None = None
    stored_expert: str = "mlp.experts.{}.down_proj.weight"
    mlp_returns_tuple: bool = False

    def path_of(self, module: ModuleName) -> str:
        """Within a block, the path of a matrix that edits change.

        Raises:
            UnsupportedModelError: if the family has no such matrix.
        """
        paths = {"down_proj": self.down_projection, "q_proj": self.query, "v_proj": self.value}
        if (path := paths[module]) is None:
            what = f"{self.title} computes queries, keys and values with one matrix, so it has no {module}"
            remedy = "Train down-projections instead (modules: down_proj)"
            raise UnsupportedModelError(what, remedy=remedy, code="MODEL_ATTENTION_FUSED")
        return path


# Many families share Llama's layout.
_LLAMA = Architecture(
    model_type="llama",
    title="Llama",
    blocks="model.layers",
    mlp="mlp",
    down_projection="mlp.down_proj",
    attention_output="self_attn.o_proj",
    norm_after_mlp=None,
    final_norm="model.norm",
    head="lm_head",
    embedding="model.embed_tokens",
    query="self_attn.q_proj",
    value="self_attn.v_proj",
)

ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture(
        model_type="gpt2",
        title="GPT-2",
        blocks="transformer.h",
        mlp="mlp",
        down_projection="mlp.c_proj",
        attention_output="attn.c_proj",
        norm_after_mlp=None,
        final_norm="transformer.ln_f",
        head="lm_head",
        embedding="transformer.wte",
    ),
    Architecture(
        model_type="gptj",
        title="GPT-J",
        blocks="transformer.h",
        mlp="mlp",
        down_projection="mlp.fc_out",
        attention_output="attn.out_proj",
        norm_after_mlp=None,
        final_norm="transformer.ln_f",
        head="lm_head",
        embedding="transformer.wte",
        block_returns_tuple=True,
        query="attn.q_proj",
        value="attn.v_proj",
    ),
    Architecture(
        model_type="gpt_neox",
        title="GPT-NeoX",
        blocks="gpt_neox.layers",
        mlp="mlp",
        down_projection="mlp.dense_4h_to_h",
        attention_output="attention.dense",
        norm_after_mlp=None,
        final_norm="gpt_neox.final_layer_norm",
        head="lm_head",
        embedding="gpt_neox.embed_in",
    ),
    _LLAMA,
    replace(_LLAMA, model_type="mistral", title="Mistral"),
    replace(_LLAMA, model_type="qwen2", title="Qwen2"),
    replace(_LLAMA, model_type="qwen3", title="Qwen3"),
    replace(_LLAMA, model_type="gemma2", title="Gemma 2", norm_after_mlp="post_feedforward_layernorm"),
    replace(_LLAMA, model_type="gemma3_text", title="Gemma 3", norm_after_mlp="post_feedforward_layernorm"),
    Architecture(
        model_type="phi",
        title="Phi",
        blocks="model.layers",
        mlp="mlp",
        down_projection="mlp.fc2",
        attention_output="self_attn.dense",
        norm_after_mlp=None,
        final_norm="model.final_layernorm",
        head="lm_head",
        embedding="model.embed_tokens",
        query="self_attn.q_proj",
        value="self_attn.v_proj",
    ),
    replace(_LLAMA, model_type="phi3", title="Phi-3", query=None, value=None),
    Architecture(
        model_type="opt",
        title="OPT",
        blocks="model.decoder.layers",
        mlp="fc2",
        down_projection="fc2",
        attention_output="self_attn.out_proj",
        norm_after_mlp=None,
        final_norm="model.decoder.final_layer_norm",
        head="lm_head",
        embedding="model.decoder.embed_tokens",
        mlp_reader="fc1",
        query="self_attn.q_proj",
        value="self_attn.v_proj",
    ),
    replace(_LLAMA, model_type="qwen3_moe", title="Qwen3-MoE", experts="mlp.experts"),
    replace(
        _LLAMA,
        model_type="mixtral",
        title="Mixtral",
        experts="mlp.experts",
        stored_expert="block_sparse_moe.experts.{}.w2.weight",
    ),
    replace(_LLAMA, model_type="olmoe", title="OLMoE", experts="mlp.experts"),
    replace(
        _LLAMA,
        model_type="gpt_oss",
        title="gpt-oss",
        experts="mlp.experts",
        stored_expert="mlp.experts.down_proj",
        mlp_returns_tuple=True,
    ),
)

# Types that transformers loads as a causal LM although the text model is only a part: (problem, remedy).
_WRAPPED_TYPES = MappingProxyType(
    {
        "gemma3": (
            "a 'gemma3' checkpoint loads as an image-and-text model (ForConditionalGeneration)",
            # Without the mapping transformers 5 finds none of the weights and leaves random ones in their place.
            "Load the text part (gemma3_text), save it and edit that: transformers.Gemma3ForCausalLM.from_pretrained("
            "PATH, key_mapping={'^language_model.model': 'model'})",
        )
    }
)
# The names of the number of experts in mixture-of-experts configurations.
_EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts")
# An update can be added to weights of these dtypes, rounded to nearest.
_WEIGHT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_DEQUANTISE = "Load the unquantised checkpoint, or dequantise the model before editing"


def architecture_of(model: PreTrainedModel) -> Architecture:
    """The row of a model's family, with `final_norm` None if this model has none.

    Raises:
        UnsupportedModelError: if the family is unknown, or the maths does not hold for the model: see `check_config`
            and `check_plain`; also without a language-model head.
    """
    check_config(model.config, quantised=getattr(model, "is_quantized", False))
    row = next(row for row in ARCHITECTURES if row.model_type == model.config.model_type)
    modules = {name for name, _ in model.named_modules(remove_duplicate=False)}
    missing = [path for path in (row.blocks, row.head, row.embedding) if path not in modules]
    if missing:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no {', '.join(repr(path) for path in missing)}, where {row.title} has its "
            "blocks, head and embedding",
            remedy="Load the model with transformers.AutoModelForCausalLM",
            code="MODEL_WITHOUT_HEAD",
        )
    if row.final_norm is not None and attrgetter(row.final_norm)(model) is None:
        row = replace(row, final_norm=None)
    for block in attrgetter(row.blocks)(model):
        experts = experts_of(block, row)
        if experts is None:
            check_plain(block.get_submodule(row.down_projection))
        else:
            check_experts(experts)
    return row


def check_config(config: PreTrainedConfig, *, quantised: bool = False) -> None:
    """Reject models that cannot be edited by their configuration alone, before any weight is read.

    Raises:
        UnsupportedModelError: for an unknown family, an encoder-decoder, a mixture of experts, quantised weights, a
            norm over the residual sum, or attention to later tokens. Mixtures of experts are rejected where no row
            of the table has experts.
    """
    name = f"{config.model_type!r} model"
    if getattr(config, "is_encoder_decoder", False):
        what = f"this {name} has an encoder and a decoder"
        remedy = "Use a decoder-only causal language model"
        raise UnsupportedModelError(what, remedy=remedy, code="MODEL_ENCODER_DECODER")
    if getattr(config, "quantization_config", None) is not None or quantised:
        what = f"the weights of this {name} are quantised, so an update cannot be added to them"
        raise UnsupportedModelError(what, remedy=_DEQUANTISE, code="MODEL_QUANTISED")
    counts = [getattr(config, count, None) for count in _EXPERT_COUNTS]
    with_experts = {row.model_type: row.title for row in ARCHITECTURES if row.experts is not None}
    if any(isinstance(count, int) and count > 1 for count in counts) and config.model_type not in with_experts:
        what = f"this {name} is a mixture of experts of a family that errata does not know"
        remedy = f"Use a dense model, or one of {', '.join(with_experts.values())}"
        raise UnsupportedModelError(what, remedy=remedy, code="MODEL_MIXTURE_OF_EXPERTS")
    if config.model_type in _WRAPPED_TYPES:
        problem, remedy = _WRAPPED_TYPES[config.model_type]
        raise UnsupportedModelError(problem, remedy=remedy, code="MODEL_MULTIMODAL")
    known = [row.model_type for row in ARCHITECTURES]
    if config.model_type not in known:
        raise UnsupportedModelError(
            f"the model type {config.model_type!r} is unknown; known are {', '.join(known)}",
            remedy="To add it: add a row to ARCHITECTURES in errata/models/families.py and a tiny model to "
            "tests/support/tiny_models.py",
            code="MODEL_TYPE_UNKNOWN",
        )
    if not getattr(config, "do_layer_norm_before", True):
        raise UnsupportedModelError(
            f"this {name} normalises after the residual sum (do_layer_norm_before=False), so adding a vector to the "
            "MLP's output does not move the block's output by that vector",
            remedy="Use a checkpoint with do_layer_norm_before=True",
            code="MODEL_POST_NORM",
        )
    if getattr(config, "use_bidirectional_attention", False):
        what = f"this {name} attends to later tokens (use_bidirectional_attention)"
        raise UnsupportedModelError(what, remedy="Use a causal language model", code="MODEL_BIDIRECTIONAL")


def check_plain(module: nn.Module) -> None:
    """Reject a module whose weight an update cannot be added to.

    Raises:
        UnsupportedModelError: as `is_transposed`; or if the weight is integer, packed, or a quantisation library's own
            tensor type.
    """
    is_transposed(module)
    _check_tensor(module.get_parameter("weight").data)


def experts_of(block: nn.Module, row: Architecture) -> nn.Module | None:
    """The module of a block's experts; None for a dense block."""
    if row.experts is None:
        return None
    parent, _, name = row.experts.rpartition(".")
    found = getattr(block.get_submodule(parent), name, None)
    return found if isinstance(found, nn.Module) else None


def check_experts(experts: nn.Module) -> None:
    """Reject experts to whose down-projections an update cannot be added.

    Raises:
        UnsupportedModelError: if they are not stored together in one plain tensor, or are quantised.
    """
    weight = getattr(experts, "down_proj", None)
    flags = ("is_transposed", "has_bias", "has_gate", "has_post_expert_norm")
    known = isinstance(weight, nn.Parameter) and weight.dim() == 3 and all(hasattr(experts, flag) for flag in flags)
    if not known or not getattr(experts, "has_gate", False) or getattr(experts, "has_post_expert_norm", True):
        what = (
            f"the experts are a {type(experts).__module__}.{type(experts).__qualname__}, expected gated ones of "
            "transformers 5 whose down-projections are one tensor"
        )
        remedy = "Load the model unquantised with transformers, and remove adapters"
        raise UnsupportedModelError(what, remedy=remedy, code="MODEL_LAYER_NOT_PLAIN")
    assert isinstance(weight, nn.Parameter)
    _check_tensor(weight.data)


def expert_weight(experts: nn.Module, expert: int, stored: Tensor | None = None) -> Float[Tensor, "d_out d_in"]:
    """W of one expert as (d_out, d_in), whatever the module stores.

    The module says how it stores it; the shape of a square weight is ambiguous (gpt-oss).

    Args:
        stored: the parameter of all experts, if it is not in the module now.

    Returns:
        A detached view: writing into it in place writes the model.
    """
    whole = experts.get_parameter("down_proj") if stored is None else stored
    weight: Tensor = whole.detach()[expert]
    return weight.T if experts.is_transposed else weight


def _check_tensor(weight: Tensor) -> None:
    if weight.dtype not in _WEIGHT_DTYPES or type(weight) is not Tensor:
        kind = "" if type(weight) is Tensor else f"{type(weight).__module__}.{type(weight).__qualname__} of "
        names = ", ".join(dtype_name(dtype) for dtype in _WEIGHT_DTYPES)
        what = f"the weight to edit is a {kind}{weight.dtype}, expected a plain tensor of one of {names}"
        raise UnsupportedModelError(what, remedy=_DEQUANTISE, code="MODEL_QUANTISED")


def is_transposed(module: nn.Module) -> bool:
    """Whether the module stores Wᵀ (d_in × d_out), by its type, since the shape of a square weight is ambiguous.

    Raises:
        UnsupportedModelError: if the module is neither exactly `nn.Linear` nor `Conv1D`. Subclasses are refused too:
            quantised, parametrised and adapter layers all derive from `nn.Linear`, and their weight is not plain.
    """
    if type(module) is Conv1D:
        return True
    if type(module) is nn.Linear:
        return False
    raise UnsupportedModelError(
        f"the layer to edit is a {type(module).__module__}.{type(module).__qualname__}, expected a plain nn.Linear "
        "or transformers' Conv1D",
        remedy="Load the model unquantised, and merge or remove adapters and parametrisations",
        code="MODEL_LAYER_NOT_PLAIN",
    )


def down_projection_weight(module: nn.Module, stored: Tensor | None = None) -> Float[Tensor, "d_out d_in"]:
    """W as (d_out, d_in) whatever the module stores: `module(k) == W @ k + bias`.

    Args:
        stored: its weight, if that is not in the module now.

    Returns:
        A detached view: writing into it in place writes the model.

    Raises:
        UnsupportedModelError: as `is_transposed`.
    """
    transposed = is_transposed(module)
    weight: Tensor = (module.get_parameter("weight") if stored is None else stored).detach()
    return weight.T if transposed else weight
