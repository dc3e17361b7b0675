"""LanguageModel: reading equals plain hooks on whole passes, weights have a fingerprint, wrong models are refused, and
text is generated as transformers does.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from errata.errors import InputError, UnsupportedModelError
from errata.models.generation import generate
from errata.models.language_model import LanguageModel, Site

from tests.support.editing import read_whole, tiny_language_model
from tests.support.errors import raises_code
from tests.support.tiny_models import BLOCKS, FAMILIES, MLP_WIDTH, WIDTH, tiny_model

TEXTS = (
    "The mother tongue of Danielle Darrieux is",
    "Rome",
    "Because of the rain the match was moved from Madrid to Lisbon, and the crowd followed.",
    "Kenji Watanabe works",
    "The Eiffel Tower stands in Paris",
)
PROMPTS = ("The mother tongue of Danielle Darrieux is", "I think", "Big Ben stands in London, and the Colosseum in")


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return tiny_language_model(request.param)


def token_rows(model: LanguageModel) -> list[list[int]]:
    return [model.tokenizer(text)["input_ids"] for text in TEXTS]


# Reading --------------------------------------------------------------------------------------------------------------


def test_what_is_captured_is_what_hooks_see_row_by_row(model: LanguageModel, subtests: pytest.Subtests) -> None:
    rows = token_rows(model)
    wanted = {Site.KEY: [0, 3], Site.MLP: [2], Site.BLOCK: [0, BLOCKS - 1]}
    wholes = [read_whole(model, row) for row in rows]
    for token_budget in (1, 40, 4096):
        with subtests.test(f"{token_budget} tokens"):
            captured = model.capture_last(rows, wanted, token_budget=token_budget)
            assert set(captured) == {(site, layer) for site, layers in wanted.items() for layer in layers}
            for (site, layer), found in captured.items():
                expected = torch.stack([whole[site, layer][-1] for whole in wholes])
                assert found.dtype == torch.float32
                close = torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
                assert close, (site, layer)
                # Rows differ far more than that: another order of rows would be seen.
                assert torch.pdist(expected).min() > 0.05 * expected.norm(dim=1).mean()


def test_no_block_above_the_last_one_wanted_is_run(model: LanguageModel) -> None:
    def must_not_run(*args: object) -> None:
        pytest.fail("a part above what was asked for has run")

    handles = [block.register_forward_pre_hook(must_not_run) for block in model.blocks[3:]]
    handles.append(model.head.register_forward_pre_hook(must_not_run))
    try:
        captured = model.capture_last(token_rows(model), {Site.BLOCK: [2], Site.KEY: [1]})
    finally:
        for handle in handles:
            handle.remove()
    assert set(captured) == {(Site.BLOCK, 2), (Site.KEY, 1)}
    assert all(len(found) == len(token_rows(model)) for found in captured.values())


def test_reading_removes_its_hooks_whatever_happens(model: LanguageModel) -> None:
    def hooks() -> int:
        return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.model.modules())

    before = hooks()
    with pytest.raises(ZeroDivisionError), model.capture({Site.KEY: [0], Site.MLP: [1], Site.BLOCK: [2]}):
        assert hooks() > before
        raise ZeroDivisionError
    assert hooks() == before


# Weights --------------------------------------------------------------------------------------------------------------


def test_weights_have_one_orientation_and_are_the_models_own(model: LanguageModel) -> None:
    weight = model.weight(1)
    width = WIDTH if "square" in model.name else MLP_WIDTH
    assert weight.shape == (WIDTH, width)
    before = weight.clone()
    whole = read_whole(model, token_rows(model)[0])
    bias = getattr(model.down_projection(1), "bias", None)
    expected = whole[Site.KEY, 1] @ weight.T + (0 if bias is None else bias)
    assert torch.allclose(whole[Site.MLP, 1], expected, atol=1e-4)
    try:
        model.set_weight(1, before * 2)
        assert torch.equal(model.weight(1), before * 2)
        doubled = read_whole(model, token_rows(model)[0])[Site.MLP, 1]
        assert torch.allclose(doubled - whole[Site.MLP, 1], whole[Site.KEY, 1] @ before.T, atol=1e-4)
    finally:
        model.set_weight(1, before)


def test_the_fingerprint_is_of_the_weights_alone() -> None:
    model = tiny_language_model("gpt2")
    first = model.fingerprint()
    assert tiny_language_model("gpt2").fingerprint() == first
    assert tiny_language_model("gpt2", seed=1).fingerprint() != first
    assert tiny_language_model("gpt2", dtype=torch.bfloat16).fingerprint() != first
    assert len(bytes.fromhex(first)) == 32


def test_any_single_bit_changes_the_fingerprint() -> None:
    model = tiny_language_model("llama")
    seen = {model.fingerprint()}
    for parameter in model.model.parameters():
        flat = parameter.data.view(-1).view(torch.int32)
        flat[-1] ^= 1
        seen.add(model.fingerprint())
        flat[-1] ^= 1
    assert len(seen) == 1 + sum(1 for _ in model.model.parameters())
    assert model.fingerprint() in seen


def test_parameters_are_frozen_and_dropout_is_off() -> None:
    raw, tokenizer = tiny_model("gpt2")
    raw.train()
    raw.requires_grad_(True)
    model = LanguageModel(raw, tokenizer)
    assert not model.model.training
    assert not any(parameter.requires_grad for parameter in model.model.parameters())


def test_layers_that_do_not_exist_are_refused() -> None:
    model = tiny_language_model("gpt2")
    model.check_layers(range(BLOCKS))
    with raises_code("LAYER_UNKNOWN", InputError, "layers -1, 7"):
        model.check_layers([-1, 2, 7])


def test_context_length(model: LanguageModel) -> None:
    assert model.context_length == 256


# Loading --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    raw, tokenizer = tiny_model("llama")
    raw.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_directory_is_loaded_as_it_was_saved(saved: Path) -> None:
    model = LanguageModel.load(saved, device="cpu")
    assert model.fingerprint() == tiny_language_model("llama").fingerprint()
    assert model.name == str(saved)
    assert model.dtype is torch.float32
    assert LanguageModel.load(saved, device="cpu", dtype=torch.bfloat16).dtype is torch.bfloat16


@pytest.mark.parametrize(
    "damage",
    ["no weights", "truncated weights", "no config", "bad config", "unknown type", "no tokenizer", "bad tokenizer"],
)
def test_a_broken_directory_is_an_input_error(saved: Path, damage: str) -> None:
    weights, config, tokenizer = (saved / name for name in ("model.safetensors", "config.json", "tokenizer.json"))
    if damage == "no weights":
        weights.unlink()
    elif damage == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "no config":
        config.unlink()
    elif damage == "bad config":
        config.write_text("{ this is no JSON")
    elif damage == "unknown type":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "nonesuch"}))
    elif damage == "no tokenizer":
        for path in saved.glob("tokenizer*"):
            path.unlink()
    elif damage == "bad tokenizer":
        tokenizer.write_text("{ this is no JSON")
    with pytest.raises(InputError) as caught:
        LanguageModel.load(saved, device="cpu")
    assert str(saved) in str(caught.value)


def test_what_is_not_there_is_an_input_error(subtests: pytest.Subtests) -> None:
    for name in ("/nowhere/at/all", "./nothing", "no-such-model-anywhere", "", "a b"):
        with subtests.test(repr(name)), raises_code("MODEL_NOT_LOADED", InputError):
            LanguageModel.load(name, device="cpu")


def test_a_family_that_is_not_in_the_table_is_refused(tmp_path: Path) -> None:
    config = T5Config(vocab_size=64, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    tiny_model("llama")[1].save_pretrained(tmp_path)
    with raises_code("MODEL_ENCODER_DECODER", UnsupportedModelError):
        LanguageModel.load(tmp_path, device="cpu")


# Generating -----------------------------------------------------------------------------------------------------------


def hf_greedy(model: LanguageModel, prompts: list[str], new_tokens: int) -> list[str]:
    """What transformers' own ``generate`` continues with, one prompt at a time, so without padding."""
    texts = []
    for prompt in prompts:
        ids = torch.tensor([model.tokenizer(prompt)["input_ids"]])
        output = model.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new_tokens
        )
        # Decoded with the prompt: alone, a Metaspace tokenizer would take the first space away.
        given, whole = (model.tokenizer.decode(part, skip_special_tokens=True) for part in (ids[0], output[0]))
        texts.append(whole.removeprefix(given))
    return texts


def test_greedy_text_is_transformers_own_also_in_a_padded_batch(model: LanguageModel) -> None:
    expected = hf_greedy(model, list(PROMPTS), 9)
    assert generate(model, PROMPTS, new_tokens=9) == expected
    assert generate(model, PROMPTS, new_tokens=9, batch_size=2) == expected
    assert len(set(expected)) > 1


def test_text_ends_at_eos_in_each_row_separately() -> None:
    model = tiny_language_model("llama")
    whole = generate(model, PROMPTS, new_tokens=9)
    # Make a token that the first text holds, and the others do not, the end of text.
    first = hf_ids(model, PROMPTS[0], 9)
    others = {token for prompt in PROMPTS[1:] for token in hf_ids(model, prompt, 9)}
    end = next(index for index in range(1, 9) if first[index] not in others and first[index] not in first[:index])
    model.model.generation_config.eos_token_id = [first[end]]
    ended = generate(model, PROMPTS, new_tokens=9)
    assert ended[0] == model.tokenizer.decode(first[:end], skip_special_tokens=True)
    assert ended[1:] == whole[1:]


def hf_ids(model: LanguageModel, prompt: str, new_tokens: int) -> list[int]:
    ids = torch.tensor([model.tokenizer(prompt)["input_ids"]])
    output = model.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new_tokens
    )
    return list(output[0, ids.shape[1] :].tolist())


def test_sampling_goes_by_its_generator_and_leaves_the_global_one_alone() -> None:
    model = tiny_language_model("gpt2")

    def sample(seed: int) -> list[str]:
        generator = torch.Generator().manual_seed(seed)
        return generate(model, ["The"] * 8, new_tokens=8, top_k=5, generator=generator)

    state = torch.random.get_rng_state()
    first = sample(1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert sample(1) == first
    assert sample(2) != first
    assert len(set(first)) > 1
    with pytest.raises(ValueError, match=r"needs a torch\.Generator"):
        generate(model, ["The"], new_tokens=2, top_k=5)


def test_only_the_likeliest_k_are_sampled() -> None:
    model = tiny_language_model("llama")
    ids = torch.tensor([model.tokenizer("The")["input_ids"]])
    with torch.no_grad():
        likeliest = set(model.model(input_ids=ids).logits[0, -1].topk(3).indices.tolist())
    texts = generate(model, ["The"] * 200, new_tokens=1, top_k=3, generator=torch.Generator().manual_seed(0))
    assert set(texts) <= {model.tokenizer.decode([token], skip_special_tokens=True) for token in likeliest}
    assert len(set(texts)) == 3


def test_nothing_to_continue_and_nothing_to_add() -> None:
    model = tiny_language_model("gpt2")
    assert generate(model, [], new_tokens=3) == []
    assert generate(model, ["Rome"], new_tokens=0) == [""]
    assert len(generate(model, ["", "Rome"], new_tokens=3)) == 2  # no BOS, so the first has no token of its own
