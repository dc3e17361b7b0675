"""Every row of ARCHITECTURES against a tiny random model of the real architecture, and every refusal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GPT2Model,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.pytorch_utils import Conv1D

from errata.errors import UnsupportedModelError
from errata.models.families import ARCHITECTURES, Architecture, architecture_of, down_projection_weight, is_transposed
from errata.models.language_model import LanguageModel
from errata.models.loading import Outline

from tests.support.errors import raises_code
from tests.support.tiny_models import (
    BLOCKS,
    EXPERT_FAMILIES,
    FAMILIES,
    MATRIX_STD,
    MLP_WIDTH,
    WIDTH,
    byte_level_tokenizer,
    tiny_model,
)

BLOCK = 2
TOKENS = 9  # longer than the windows


# Its name, a tiny float64 model of it, and its row of the table.
Family = tuple[str, PreTrainedModel, Architecture]


def random_ids(model: PreTrainedModel, *, tokens: int = TOKENS) -> Tensor:
    """One row of token ids, (1, tokens); a batch of one, for OPT's second linear layer folds the batch away."""
    return torch.randint(8, model.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def logits_of(model: PreTrainedModel, ids: Tensor) -> Tensor:
    return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits


def stream_of(output: Any) -> Tensor:
    """A module's output as (tokens, width), whether it is a tuple and whether it has the batch of one."""
    tensor = output[0] if isinstance(output, tuple) else output
    return tensor.detach().reshape(-1, tensor.shape[-1]).clone()


@contextmanager
def recording(**modules: nn.Module) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """The inputs and outputs of the named modules in the forward passes inside, each as (tokens, width)."""
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def recorder(name: str) -> Callable[..., None]:
        def record(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Any) -> None:
            inputs[name] = stream_of(args[0] if args else kwargs["hidden_states"])
            outputs[name] = stream_of(output)

        return record

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_hook(recorder(name), with_kwargs=True).remove)
        yield inputs, outputs


@contextmanager
def changing(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replaces the module's output, a tensor, by `change(output)`."""
    handle = module.register_forward_hook(lambda _module, _args, output: change(output))
    try:
        yield
    finally:
        handle.remove()


def added_to_last_token(r: Tensor) -> Callable[[Tensor], Tensor]:
    def add(output: Tensor) -> Tensor:
        changed = output.clone()
        changed[..., -1, :] += r
        return changed

    return add


def test_every_row_has_a_tiny_model_and_no_family_has_two_rows() -> None:
    types = [row.model_type for row in ARCHITECTURES]
    assert len(set(types)) == len(types)
    assert {tiny_model(name)[0].config.model_type for name in (*FAMILIES, *EXPERT_FAMILIES)} == set(types)


def paths_lead_to_the_parts(family: Family) -> None:
    _, model, row = family
    assert row.model_type == model.config.model_type
    blocks = model.get_submodule(row.blocks)
    assert isinstance(blocks, nn.ModuleList)
    assert len(blocks) == model.config.num_hidden_layers == BLOCKS
    assert model.get_submodule(row.head) is model.get_output_embeddings()
    assert model.get_submodule(row.embedding) is model.get_input_embeddings()
    tied = model.get_submodule(row.head).weight is model.get_submodule(row.embedding).weight
    assert tied == model.config.tie_word_embeddings
    for block in blocks:
        paths = (row.mlp, row.down_projection, row.attention_output, row.norm_after_mlp)
        assert all(isinstance(block.get_submodule(path), nn.Module) for path in paths if path is not None)


def weight_is_d_out_by_d_in_and_a_view(family: Family) -> None:
    name, model, row = family
    for block in model.get_submodule(row.blocks):
        module = block.get_submodule(row.down_projection)
        weight = down_projection_weight(module)
        assert weight.shape == (WIDTH, WIDTH if name.endswith("square") else MLP_WIDTH)
        assert weight.data_ptr() == module.weight.data_ptr()
        assert not weight.requires_grad
        assert is_transposed(module) == (row.model_type == "gpt2")
        with recording(w=module) as (inputs, outputs):
            logits_of(model, random_ids(model))
        expected = inputs["w"] @ weight.T + (0 if module.bias is None else module.bias.detach())
        torch.testing.assert_close(outputs["w"], expected, rtol=1e-12, atol=1e-12)


def test_writing_into_the_weight_writes_the_model(subtests: pytest.Subtests) -> None:
    for name in ("gpt2_square", "llama"):
        with subtests.test(name):
            model, _ = tiny_model(name)
            ids = random_ids(model)
            row = architecture_of(model)
            before = logits_of(model, ids)
            module = model.get_submodule(row.blocks)[BLOCK].get_submodule(row.down_projection)
            with recording(w=module) as (inputs, outputs):
                logits_of(model, ids)
            key, output = inputs["w"][-1], outputs["w"][-1]
            r = torch.randn(WIDTH, generator=torch.Generator().manual_seed(5))
            down_projection_weight(module).add_(torch.outer(r, key) / (key @ key))
            with recording(w=module) as (_, outputs):
                assert not torch.equal(logits_of(model, ids), before)
            torch.testing.assert_close(outputs["w"][-1] - output, r, rtol=1e-4, atol=1e-5)


def adding_to_the_weights_output_moves_the_block(family: Family) -> None:
    _, model, row = family
    ids = random_ids(model)
    block = model.get_submodule(row.blocks)[BLOCK]
    down, mlp = block.get_submodule(row.down_projection), block.get_submodule(row.mlp)
    norm = mlp if row.norm_after_mlp is None else block.get_submodule(row.norm_after_mlp)
    r = torch.randn(WIDTH, generator=torch.Generator().manual_seed(4), dtype=torch.float64)

    with recording(block=block, mlp=mlp, norm=norm) as (_, before):
        logits_of(model, ids)
    with changing(down, added_to_last_token(r)), recording(block=block, mlp=mlp, norm=norm) as (_, after):
        logits_of(model, ids)
    moved = {part: after[part] - before[part] for part in after}

    torch.testing.assert_close(moved["mlp"][-1], r, rtol=0, atol=1e-12)
    # What joins the residual stream is the norm's output where there is a norm, and W's own where there is none.
    torch.testing.assert_close(moved["block"][-1], moved["norm"][-1], rtol=0, atol=1e-12)
    assert all(not change[:-1].any() for change in moved.values())
    if row.norm_after_mlp is not None:
        assert (moved["block"][-1] - r).norm() > 0.1 * r.norm()
    with changing(mlp, added_to_last_token(r)), recording(block=block) as (_, at_mlp):
        logits_of(model, ids)
    torch.testing.assert_close(at_mlp["block"], after["block"], rtol=0, atol=1e-12)


def attention_output_is_the_only_way_between_tokens(family: Family) -> None:
    _, model, row = family
    ids = random_ids(model)
    other = ids.clone()
    other[:, :-1] = ids[:, :-1].flip(1)
    assert (logits_of(model, ids)[:, -1] - logits_of(model, other)[:, -1]).abs().max() > 0.05
    with ExitStack() as stack:
        for block in model.get_submodule(row.blocks):
            stack.enter_context(changing(block.get_submodule(row.attention_output), torch.zeros_like))
        torch.testing.assert_close(logits_of(model, ids)[:, -1], logits_of(model, other)[:, -1], rtol=0, atol=1e-12)


def final_norm_and_head_come_after_the_last_block(family: Family) -> None:
    name, model, row = family
    assert row.final_norm is not None
    parts = {
        "block": model.get_submodule(row.blocks)[-1],
        "norm": model.get_submodule(row.final_norm),
        "head": model.get_submodule(row.head),
    }
    with recording(**parts) as (inputs, outputs):
        logits = logits_of(model, random_ids(model))[0]
    assert torch.equal(inputs["norm"], outputs["block"])
    hidden = model.model.decoder.project_out(outputs["norm"]).detach() if name == "opt_projected" else outputs["norm"]
    assert torch.equal(inputs["head"], hidden)
    cap = getattr(model.config, "final_logit_softcapping", None)
    expected = outputs["head"] if cap is None else cap * torch.tanh(outputs["head"] / cap)
    torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)


def what_a_block_returns(family: Family) -> None:
    _, model, row = family
    kinds: list[bool] = []
    block = model.get_submodule(row.blocks)[BLOCK]
    handle = block.register_forward_hook(lambda _module, _args, output: kinds.append(isinstance(output, tuple)))
    logits_of(model, random_ids(model))
    handle.remove()
    assert kinds == [row.block_returns_tuple]


def tiny_models_do_not_hide_mistakes(family: Family) -> None:
    _, model, _ = family
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            assert parameter.std() > 0.9 * MATRIX_STD, name
        else:
            assert parameter.std() > 0.05, name
            assert parameter.abs().min() > 0, name


CHECKS = (
    paths_lead_to_the_parts,
    weight_is_d_out_by_d_in_and_a_view,
    adding_to_the_weights_output_moves_the_block,
    attention_output_is_the_only_way_between_tokens,
    final_norm_and_head_come_after_the_last_block,
    what_a_block_returns,
    tiny_models_do_not_hide_mistakes,
)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_row_of_a_family_describes_its_models(name: str, subtests: pytest.Subtests) -> None:
    model, _ = tiny_model(name, dtype=torch.float64)
    for check in CHECKS:  # none of them changes the model
        with subtests.test(check.__name__):
            check((name, model, architecture_of(model)))


def test_tiny_models_repeat_and_leave_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    first, _ = tiny_model("llama", seed=1)
    second, _ = tiny_model("llama", seed=1)
    other, _ = tiny_model("llama", seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    ids = random_ids(first)
    assert torch.equal(logits_of(first, ids), logits_of(second, ids))
    assert not torch.equal(logits_of(first, ids), logits_of(other, ids))


def test_tiny_tokenizers_are_of_different_kinds(subtests: pytest.Subtests) -> None:
    text = 'Danielle Darrieux, "שלום" 🦊 {x}\n speaks French'
    for name in FAMILIES:
        with subtests.test(name):
            model, tokenizer = tiny_model(name)
            encoded = tokenizer(text)
            assert tokenizer.decode(encoded["input_ids"], skip_special_tokens=True) == text
            assert model.config.vocab_size == len(tokenizer)
            has_bos = model.config.model_type in {"llama", "gemma2", "gemma3_text", "phi3", "opt"}
            assert (encoded["input_ids"][0] == tokenizer.bos_token_id) == has_bos
            assert ("token_type_ids" in encoded) == (model.config.model_type == "gpt2")


def test_token_type_ids_change_gpt2() -> None:
    model, tokenizer = tiny_model("gpt2")
    encoded = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        with_types = model(**encoded).logits
    assert (with_types - logits_of(model, encoded["input_ids"])).abs().max() > 0.05
    assert "token_type_ids" not in byte_level_tokenizer(add_bos=False)("The")


def tiny_causal_lm(model_type: str, **settings: Any) -> PreTrainedModel:
    common = {"vocab_size": 64, "hidden_size": 16, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = AutoConfig.for_model(model_type, **common, num_hidden_layers=1, num_attention_heads=2, **settings)
    return AutoModelForCausalLM.from_config(config)


def test_an_unknown_family_is_refused_with_the_known_ones_and_how_to_add_a_row() -> None:
    model = tiny_causal_lm("bloom")
    with raises_code("MODEL_TYPE_UNKNOWN", UnsupportedModelError) as raised:
        architecture_of(model)
    message = str(raised.value)
    assert "'bloom'" in message
    assert all(row.model_type in message for row in ARCHITECTURES)
    assert "ARCHITECTURES in errata/models/families.py" in message
    assert "tests/support/tiny_models.py" in message


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("phimoe", {"intermediate_size": 16, "num_key_value_heads": 2, "num_local_experts": 2}),
        ("qwen2_moe", {"intermediate_size": 16, "num_key_value_heads": 2, "num_experts": 2, "num_experts_per_tok": 1}),
    ],
)
def test_a_mixture_of_experts_of_an_unknown_family_is_refused(model_type: str, settings: dict[str, Any]) -> None:
    with raises_code("MODEL_MIXTURE_OF_EXPERTS", UnsupportedModelError):
        architecture_of(tiny_causal_lm(model_type, **settings))


def test_an_encoder_and_decoder_is_refused() -> None:
    config = T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    with raises_code("MODEL_ENCODER_DECODER", UnsupportedModelError):
        architecture_of(T5ForConditionalGeneration(config))


def test_a_norm_over_the_residual_sum_is_refused() -> None:
    model, _ = tiny_model("opt", do_layer_norm_before=False)
    with raises_code("MODEL_POST_NORM", UnsupportedModelError):
        architecture_of(model)


def test_attention_to_later_tokens_is_refused() -> None:
    model, _ = tiny_model("gemma3_text", use_bidirectional_attention=True)
    with raises_code("MODEL_BIDIRECTIONAL", UnsupportedModelError):
        architecture_of(model)


def test_quantised_weights_are_refused() -> None:
    model, _ = tiny_model("llama")
    model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    with raises_code("MODEL_QUANTISED", UnsupportedModelError):
        architecture_of(model)


class _Packed(Tensor):
    """Stands for the tensors by which a quantisation library replaces the weight of a plain module."""


@pytest.mark.parametrize(
    ("weight", "kind"),
    [
        (torch.zeros(WIDTH, MLP_WIDTH, dtype=torch.int8), "torch.int8"),
        (torch.zeros(WIDTH * MLP_WIDTH // 2, 1, dtype=torch.uint8), "torch.uint8"),
        (torch.zeros(WIDTH, MLP_WIDTH).to(torch.float8_e4m3fn), "torch.float8_e4m3fn"),
        (torch.zeros(WIDTH, MLP_WIDTH).as_subclass(_Packed), "_Packed of torch.float32"),
    ],
    ids=["integers", "packed", "eight bits", "subclass"],
)
def test_weights_that_are_no_plain_numbers_are_refused_whatever_the_configuration_says(
    weight: Tensor, kind: str
) -> None:
    model, tokenizer = tiny_model("llama")
    model.model.layers[1].mlp.down_proj.weight = nn.Parameter(weight, requires_grad=False)
    with raises_code("MODEL_QUANTISED", UnsupportedModelError, kind):
        LanguageModel(model, tokenizer)


@pytest.mark.parametrize("bits", [{"load_in_8bit": True}, {"load_in_4bit": True}], ids=["eight", "four"])
def test_bitsandbytes_is_refused_before_any_work(bits: dict[str, bool], tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    model, tokenizer = tiny_model("llama")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    settings = BitsAndBytesConfig(**bits)
    quantised = LlamaForCausalLM.from_pretrained(tmp_path, quantization_config=settings, device_map="cpu")
    with raises_code("MODEL_QUANTISED", UnsupportedModelError):
        LanguageModel(quantised, tokenizer)
    quantised.save_pretrained(tmp_path / "quantised")
    tokenizer.save_pretrained(tmp_path / "quantised")
    with raises_code("MODEL_QUANTISED", UnsupportedModelError):
        Outline.load(str(tmp_path / "quantised"))
    with raises_code("MODEL_QUANTISED", UnsupportedModelError):
        LanguageModel.load(tmp_path / "quantised")
    # Whoever takes the marks off is told by the modules themselves.
    del quantised.config.quantization_config
    quantised.is_quantized = False
    with raises_code("MODEL_LAYER_NOT_PLAIN", UnsupportedModelError):
        LanguageModel(quantised, tokenizer)


def test_a_model_without_a_head_is_refused() -> None:
    model, _ = tiny_model("gpt2")
    with raises_code("MODEL_WITHOUT_HEAD", UnsupportedModelError, "'lm_head'"):
        architecture_of(GPT2Model(model.config))


def test_opt_without_a_final_norm_has_none_in_its_row() -> None:
    model, _ = tiny_model("opt", _remove_final_layer_norm=True)
    assert architecture_of(model).final_norm is None


class _Adapted(nn.Linear):
    """Stands for the quantised, parametrised and adapter layers that derive from `nn.Linear`."""


@pytest.mark.parametrize("module", [_Adapted(4, 4), nn.Conv1d(4, 4, 1), nn.Embedding(4, 4), nn.Identity()])
def test_only_plain_modules_have_a_down_projection_weight(module: nn.Module) -> None:
    for function in (is_transposed, down_projection_weight):
        with raises_code("MODEL_LAYER_NOT_PLAIN", UnsupportedModelError, type(module).__name__):
            function(module)


def test_the_type_decides_the_orientation_of_a_square_weight() -> None:
    weight = torch.arange(9.0).reshape(3, 3)
    linear, convolution = nn.Linear(3, 3), Conv1D(3, 3)
    linear.weight.data, convolution.weight.data = weight, weight
    assert torch.equal(down_projection_weight(linear), weight)
    assert torch.equal(down_projection_weight(convolution), weight.T)


def test_a_model_whose_down_projection_is_wrapped_is_refused() -> None:
    model, _ = tiny_model("llama")
    model.model.layers[3].mlp.down_proj = _Adapted(MLP_WIDTH, WIDTH)
    with raises_code("MODEL_LAYER_NOT_PLAIN", UnsupportedModelError, "_Adapted"):
        architecture_of(model)


def test_gemma3_is_refused_and_the_advice_given_works(tmp_path: Path) -> None:
    text, _ = tiny_model("gemma3_text")
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config=Gemma3TextConfig(**text.config.to_dict()),
        vision_config={**vision, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
    )
    whole = Gemma3ForConditionalGeneration(config)
    whole.model.language_model.load_state_dict(text.model.state_dict())
    with raises_code("MODEL_MULTIMODAL", UnsupportedModelError, "key_mapping={'^language_model.model': 'model'}"):
        architecture_of(whole)

    whole.save_pretrained(tmp_path)
    part = Gemma3ForCausalLM.from_pretrained(
        tmp_path, key_mapping={"^language_model.model": "model"}, attn_implementation="eager"
    )
    assert architecture_of(part).model_type == "gemma3_text"
    ids = random_ids(text)
    torch.testing.assert_close(logits_of(part, ids), logits_of(text, ids), rtol=1e-5, atol=1e-5)
