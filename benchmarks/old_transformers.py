"""Check that transformers 4.57 reads an edited model as it reads its base.

transformers 5 writes configurations and tokenizers that version 4 silently misreads: RoPE falls back to a base of
10000, and the tokenizer's class is unknown. errata therefore keeps the base's files. This script creates bases with
transformers 4.57 in a separate environment, edits them with errata in this one (a small change of two layers, applied
by `errata merge`, then written by `errata save`), and reads both with 4.57 again:

    python benchmarks/old_transformers.py --environment /tmp/transformers-4 [--smollm2 DIRECTORY]

It fails if an unedited tensor, the tokenizer, the configuration or the generation settings differ, if the logits with
the two layers restored are not the base's, or if the perplexity differs by more than the edit explains. "By
transformers 5" shows the result without these precautions.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

TEXT = (
    "The city lies on both banks of the river, and its oldest bridge was built of stone in the twelfth century. In the "
    "spring the farmers of the valley bring their cheese to the market, where it is weighed and sold before noon. "
    "The museum next to the town hall keeps the letters of a composer who spent his last years there, and who wrote "
    "most of his quartets in a small house behind the church. Visitors hear that he walked to the river every morning."
)
CHANGE = 1e-3  # of an edited layer's weight, relative
SPECIAL = "<|endoftext|>"


# In the environment with transformers 4.57 -------------------------------------------------------------------------


def make_bases(work: Path, tokenizer_file: str, smollm2: str) -> None:
    """Three bases as transformers 4.57 writes them."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    small: dict[str, Any] = {
        "vocab_size": 3053,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
        "initializer_range": 0.2,  # so that positions matter
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    scaling: dict[str, Any] = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    torch.manual_seed(0)
    like_llama: dict[str, Any] = {**small, "rope_theta": 500000.0, "rope_scaling": scaling}
    like_qwen: dict[str, Any] = {**small, "rope_theta": 1000000.0, "tie_word_embeddings": True}
    models: dict[str, Any] = {
        "llama-3-like": LlamaForCausalLM(LlamaConfig(**like_llama)),
        "qwen2.5-like": Qwen2ForCausalLM(Qwen2Config(**like_qwen)),
    }
    for name, model in models.items():
        model.to(torch.bfloat16)
        model.save_pretrained(work / name, max_shard_size="300KB")  # several files
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=tokenizer_file, eos_token=SPECIAL, pad_token=SPECIAL)
        tokenizer.save_pretrained(work / name)
    if smollm2:
        found = json.loads((Path(smollm2) / "config.json").read_text(encoding="utf-8"))
        for written_by_5 in ("dtype", "transformers_version", "_model_name_or_path", "model_type", "architectures"):
            found.pop(written_by_5, None)
        theta = found.pop("rope_parameters", {}).get("rope_theta", found.get("rope_theta"))
        config = LlamaConfig(**{**found, "rope_theta": theta, "rope_scaling": None})
        model = LlamaForCausalLM.from_pretrained(smollm2, config=config, torch_dtype=torch.bfloat16)
        model.save_pretrained(work / "smollm2")
        about = json.loads((Path(smollm2) / "tokenizer_config.json").read_text(encoding="utf-8"))
        names = {name: about[name] for name in ("bos_token", "eos_token", "pad_token", "unk_token") if name in about}
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=f"{smollm2}/tokenizer.json", **names)
        template = Path(smollm2) / "chat_template.jinja"
        tokenizer.chat_template = template.read_text(encoding="utf-8") if template.is_file() else None
        tokenizer.save_pretrained(work / "smollm2")


def read(directory: Path, base: Path) -> dict[str, Any]:
    """How one model differs from its base, as the transformers of this environment reads both."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found: dict[str, Any] = {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory)
    except (ValueError, OSError) as error:
        found["tokenizer"] = f"does not load: {str(error).splitlines()[0][:60]}"
        tokenizer = AutoTokenizer.from_pretrained(base)
    own = AutoTokenizer.from_pretrained(base)
    same = (
        type(tokenizer) is type(own) and tokenizer(TEXT) == own(TEXT) and tokenizer.chat_template == own.chat_template
    )
    found.setdefault("tokenizer", "same" if same else "differs")
    model, original = (
        AutoModelForCausalLM.from_pretrained(place, torch_dtype="auto").eval() for place in (directory, base)
    )
    found["dtype"] = str(model.dtype).removeprefix("torch.")
    ours, theirs = model.state_dict(), original.state_dict()
    found["changed"] = sorted(name for name, value in theirs.items() if not torch.equal(value, ours[name]))
    settings = [{**loaded.config.to_dict(), "_name_or_path": ""} for loaded in (model, original)]
    found["config"] = "same" if settings[0] == settings[1] else "differs"
    same = model.generation_config.to_dict() == original.generation_config.to_dict()
    found["generation"] = "same" if same else "differs"
    ids = own(TEXT, return_tensors="pt").input_ids
    for loaded in (model, original):
        loaded.to(torch.float32)
    with torch.no_grad():
        losses = [loaded(ids, labels=ids).loss for loaded in (model, original)]
        model.load_state_dict({**model.state_dict(), **{n: original.state_dict()[n] for n in found["changed"]}})
        found["same logits"] = bool(torch.equal(model(ids).logits, original(ids).logits))
    found["perplexity"], found["of the base"] = (float(loss.exp()) for loss in losses)
    return found


# In the environment with errata --------------------------------------------------------------------------------------


def edit(base: Path, work: Path) -> None:
    """`errata merge` and `errata save` of a small change, and the same saved by transformers 5."""
    import torch

    from errata.cli.main import run
    from errata.editing.recipe import shipped_recipe
    from errata.facts.fact import Fact
    from errata.models.language_model import LanguageModel
    from errata.models.weights import LowRankTerm
    from errata.patches.patch import Patch, supported_dtype_name
    from errata.utils.provenance import now, software_versions

    model = LanguageModel.load(base, device="cpu")
    generator = torch.Generator().manual_seed(0)
    terms = []
    for layer in (1, 2):
        weight = model.weight(layer).float()
        left, right = (torch.randn(size, generator=generator) for size in ((len(weight), 1), (1, weight.shape[1])))
        # Large enough for bfloat16 to show it.
        terms.append(LowRankTerm(layer, left * (CHANGE * weight.norm() / (left.norm() * right.norm())), right))
    recipe = shipped_recipe("lab", "memit")
    facts = (Fact("one", "The city", "{} lies on the", "hill"),)
    patch = Patch(
        tuple(terms), facts, recipe, (), str(base), model.fingerprint(), supported_dtype_name(model.dtype), now(),
        software_versions(),
    )  # fmt: skip
    patch.save(work / "patch.safetensors")
    patch.apply(model)
    model.model.save_pretrained(work / "by transformers 5")
    model.tokenizer.save_pretrained(work / "by transformers 5")
    for line in (
        ["merge", str(work / "patch.safetensors"), "--model", str(base), "--out", str(work / "merged")],
        ["save", str(work / "merged"), "--out", str(work / "saved")],
    ):
        if run(line) != 0:
            raise SystemExit(f"errata {' '.join(line)} failed")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", type=Path, help="where transformers 4.57 is, or will be, installed")
    parser.add_argument("--smollm2", default="", help="SmolLM2 as a transformers directory")
    parser.add_argument("--make", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--read", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.make:
        make_bases(Path(given.make[0]), given.make[1], given.make[2])
        return 0
    if given.read:
        print(json.dumps(read(Path(given.read[0]), Path(given.read[1]))))
        return 0
    if given.environment is None:
        parser.error("--environment is needed")
    from errata.lab.package import lab_directory

    python = given.environment / "bin" / "python"
    if not python.is_file():
        venv.create(given.environment, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "torch==2.13.0", "transformers==4.57.*"], check=True)

    def inside(*arguments: str) -> str:
        clean = {"HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin", "TRANSFORMERS_VERBOSITY": "error"}
        whole = [str(python), __file__, *arguments]
        return subprocess.run(whole, check=True, text=True, stdout=subprocess.PIPE, env=clean).stdout

    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        bases = Path(folder) / "bases"
        bases.mkdir()
        inside("--make", str(bases), str(lab_directory() / "tokenizer.json"), str(given.smollm2))
        for base in sorted(bases.iterdir()):
            work = Path(folder) / base.name
            work.mkdir()
            edit(base, work)
            for name in ("merged", "saved", "by transformers 5"):
                found = json.loads(inside("--read", str(work / name), str(base)).splitlines()[-1])
                ratio = found["perplexity"] / found["of the base"]
                good = (
                    [found[what] for what in ("tokenizer", "config", "generation")] == ["same"] * 3
                    and found["changed"] == [f"model.layers.{layer}.mlp.down_proj.weight" for layer in (1, 2)]
                    and found["same logits"]
                    and abs(ratio - 1) < 0.02
                )
                failures += not good and name != "by transformers 5"
                details = ", ".join(f"{what} {found[what]}" for what in ("tokenizer", "config", "generation", "dtype"))
                print(
                    f"{base.name:13} {name:18} perplexity {found['perplexity']:.3f} ({ratio:.3f} of the base's), "
                    f"{len(found['changed'])} tensors changed, logits without them equal: {found['same logits']}, "
                    f"{details}"
                )
    print("failed" if failures else "passed")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
