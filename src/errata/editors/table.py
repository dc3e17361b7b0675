"""One row per editor besides locate-then-edit: its paper, what it changes, and where it differs from the paper.

Light to import, for the command line: ``registry`` has what makes the editors. ``--method`` takes their names as it
takes those of ``editing.methods``, whose rows all belong to one editor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from pydantic import Field, StrictInt

from errata.editing.methods import BOUNDARY_SUFFIX, METHOD_NAMES, method_named
from errata.errors import InputError
from errata.results.metrics import Ability
from errata.utils.settings import Settings
from errata.utils.text import did_you_mean

Where: TypeAlias = Literal["weights", "hooks", "prompt", "answer"]
"""What an editor changes: weights, activations during a forward pass, the prompt, or the finished answer."""


ABILITIES: Final[Mapping[Where, frozenset[Ability]]] = {
    "weights": frozenset(("likelihood", "generation", "rolling")),
    "hooks": frozenset(("likelihood", "generation")),
    "prompt": frozenset(("likelihood", "generation")),
    "answer": frozenset(("generation",)),
}
"""What a model edited in such a place can be asked for; see ``editors.contract.Answerer``."""


class EditorSettings(Settings):
    """What all editors of the table have; each adds its own."""

    seed: StrictInt = Field(0, ge=0, description="of everything random")
    batch_size: StrictInt = Field(25, ge=1, description="facts that are edited together")

    @property
    def needs(self) -> frozenset[str]:
        """Optional fields of a fact that the editor requires, such as ``old``."""
        return frozenset()


@dataclass(frozen=True, slots=True)
class EditorRow:
    """An editor.

    Attributes:
        name: the value of ``--method``.
        title: its description in one line.
        paper: where it was published.
        where: what it changes.
        use: when to take it, from what was measured here.
        deviations: where this differs from the paper or its published code, and why.
        undo: which edits can be removed: ``any``, or only the ``last``.
        needs: optional fields of a fact that it requires with its default settings.
        gentler: what to do with which setting against damage, such as ``("lower", "learning_rate")``; where no setting
            helps, what to do and ``""``.
        stronger: the same for facts that are not recalled.
        wider: the same for other wordings that are not.
    """

    name: str
    title: str
    paper: str
    where: Where
    use: str = ""
    deviations: tuple[str, ...] = ()
    undo: Literal["any", "last"] = "any"
    needs: tuple[str, ...] = ()
    gentler: tuple[str, str] = ("lower", "learning_rate")
    stronger: tuple[str, str] = ("raise", "steps")
    wider: tuple[str, str] = ("raise", "steps")


_UNITS = "Learning rates and limits are in units of the RMS of W's entries by default, so that they suit any model."
_TARGETS = "Target tokens are found by character offsets: neither BOS nor padding is trained."
_HALF = "Half-precision weights are trained in float32, on the loss of the rounded weights."
_LAYER = "The default layer is at two thirds of the depth; published ones lie anywhere."
_FT = (_UNITS, _TARGETS, _HALF, _LAYER)
_ULTRA = (
    "The step is relative to W's outputs and the ridge to the length of its inputs by default (published: absolute).",
    "The loss is summed over facts, so that the result does not depend on how they are split into passes.",
    "Each layer has its own statistics by default; the published code shares them between layers of equal shape.",
    "The variance is that of all rows; the published update is biased, and a chunk of one row makes it NaN.",
    "Sums are in float64 and no increment is rounded away; the published code adds to bfloat16 weights.",
    "Only down-projections are written, so that the edit is a patch.",
)
_ROME = "Meng et al. 2022, Locating and Editing Factual Associations in GPT, NeurIPS, arXiv:2202.05262"

EDITOR_ROWS: Final[tuple[EditorRow, ...]] = (
    EditorRow(
        "ft",
        "fine-tuning of W in one layer, all target tokens asked after the prompt",
        _ROME,
        "weights",
        use="Take it as a baseline. A fact is recalled in its own wording, rarely in others, and later facts weaken "
        "earlier ones.",
        deviations=_FT,
    ),
    EditorRow(
        "ft_l",
        "ft with a limit on how far each entry of W moves",
        f"Zhu et al. 2020, Modifying Memories in Transformer Models, arXiv:2012.00363; as in {_ROME}",
        "weights",
        use="Take it as a baseline. The limit preserves other answers, but fewer facts are learnt.",
        deviations=(
            *_FT,
            "The limit can count from the weights before all edits, since limits per call add up over calls.",
        ),
    ),
    EditorRow(
        "ft_m",
        "fine-tuning of W in one layer, targets teacher-forced",
        "Zhang et al. 2024, A Comprehensive Study of Knowledge Editing for Large Language Models, arXiv:2401.01286",
        "weights",
        use="The simplest fine-tuning that learns answers of several tokens. Most facts are recalled in their own "
        "wording, few in others, and some other answers change.",
        deviations=_FT,
    ),
    EditorRow(
        "ft_bf",
        "ft_m breadth first: epochs over all facts, with EOS after each target",
        "Fine-tuning Done Right in Model Editing, ICLR 2026, arXiv:2509.22072",
        "weights",
        use="Fine-tuning for many facts at once: each is repeated in turn, so none is last. Facts are recalled in "
        "their own wording, few in others.",
        deviations=(*_FT, "Facts are shuffled by a seeded generator, and no padding token is added to the model."),
    ),
    EditorRow(
        "lora",
        "low-rank changes of W, trained on the facts",
        "Hu et al. 2022, LoRA: Low-Rank Adaptation of Large Language Models, ICLR, arXiv:2106.09685",
        "weights",
        use="Take it if an adapter is what you deploy anyway. Facts are learnt quickly, but it changes more answers "
        "about other things than locate-then-edit does, so measure those.",
        deviations=(
            _UNITS,
            _TARGETS,
            _HALF,
            "Down-projections are adapted by default; published: queries and values in Llama-2 and 3 (modules: qv), "
            "attention's one matrix in GPT2-XL, MLP matrices in GPT-J.",
            "Models that compute queries, keys and values with one matrix have down-projections only.",
            "There is no dropout, and training ends when every fact is learnt.",
            "Each batch has factors of its own by default; the published code trains the same ones again.",
        ),
    ),
    EditorRow(
        "elder",
        "a mixture of small LoRAs in several blocks: a query decides the experts, and whether to use any",
        "Li et al. 2024, ELDER: Enhancing Lifelong Model Editing with Mixture-of-LoRA, arXiv:2408.11869",
        "hooks",
        use="For research. Prompts that are not recognised are answered bit for bit as before, but recognition "
        "depends on the exact wording, and later batches weaken earlier facts.",
        undo="last",
        deviations=(
            "The down-projections of consecutive blocks are adapted, and the query is read in the block below; the "
            "published code replaces PEFT and adapts other layers.",
            "The query is read at the prompt's last token and decides for all positions; the published code decides "
            "again at every generated token.",
            "Only the chosen experts are computed, and blocks below the first adapted one are run once.",
            "The codes of all facts are computed again after every batch; the published code keeps those of "
            "each batch, although later batches move the routers.",
            "Allocations are random experts, drawn again until they are far enough from those of other facts; how they "
            "are drawn, layers, threshold, guidance and training are not in the published code.",
            "Settings whose codes are too few for the facts are refused.",
            "Routers see queries centred and scaled by unrelated prompts, and LoRAs are in units of the module's "
            "inputs and outputs, so that one learning rate suits any model.",
            "A fact replaces an earlier one with the same prompt.",
        ),
        gentler=("lower", "threshold"),
        wider=("raise", "threshold"),
    ),
    EditorRow(
        "memoir",
        "a residual memory beside one layer, of which each fact may only use the coordinates that its prompt activates",
        "Wang et al. 2025, MEMOIR: Lifelong Model Editing with Minimal Overwrite, arXiv:2506.07899",
        "hooks",
        use="Corrects a fact in its own wording and leaves nearly everything else as it was.",
        undo="last",
        deviations=(
            "Rules and numbers are those of a port by others; the authors' code could not be read.",
            "There is no weight decay, which in the port lets all earlier facts fade.",
            "The facts of a batch are written together, in their bare prompts, each gradient clipped by itself.",
            "Learning rate and clip are in units of the module's inputs and outputs.",
            "The permutation is seeded, and thresholds that random masks would reach are refused.",
            "A fact replaces an earlier one with the same prompt.",
        ),
        gentler=("raise", "threshold"),
        wider=("lower", "threshold"),
    ),
    EditorRow(
        "simie",
        "edits of single facts, each found alone on the unedited weights, combined by ridge regression",
        "SimIE, as in EasyEdit, github.com/zjunlp/EasyEdit",
        "weights",
        use="The nearest to locate-then-edit among the others, and it needs no text for key statistics: most facts are "
        "recalled, some in other wordings, with little damage. Single edits are combined in any order.",
        deviations=(
            "The recursion over facts is replaced by its closed form, which is the same for any order.",
            "The single edits are ROME's without key statistics and contexts (C = I), so no corpus is needed.",
            "λ is relative to the length of W's inputs by default; the published one is 1e4 for all models.",
        ),
        gentler=("raise", "ridge"),
        stronger=("lower", "ridge"),
        wider=("lower", "ridge"),
    ),
    EditorRow(
        "mend",
        "a trained network turns the gradient of a fact into a low-rank change of W",
        "Mitchell et al. 2022, Fast Model Editing at Scale, ICLR, arXiv:2110.11309",
        "weights",
        use="Fast edits of a few facts at a time, once its network has been trained for your model. Not for long "
        "sequences.",
        deviations=(
            "W′ = W − αG̃, as in the paper; the published code adds αG̃, and its training has to undo the sign.",
            "Only down-projections are edited, so that the edit is a patch; published are both MLP matrices.",
            "Mean and variance of the gradients are computed once, in float64; the published ones run during training, "
            "and are NaN after a single token.",
            "Padding is left out by the attention mask; the published code relies on its gradient being exactly 0.",
            "The loss is summed over the facts of a batch, not averaged, so that a fact's gradient does not depend on "
            "the others.",
            "Training also protects answers to hard questions (the same subject, the same true object); the published "
            "one protects those of unrelated questions only.",
            "α is e to a learnt number, in units of the RMS of W's entries, so it stays positive and suits any model.",
            "U and V have rank 256 and training has 500 steps by default (published: 1,920 and at least 100,000).",
        ),
        gentler=("train its network with a higher loc_weight (errata train-editor mend)", ""),
        stronger=("train its network with more steps (errata train-editor mend)", ""),
        wider=("train its network with more steps (errata train-editor mend)", ""),
    ),
    EditorRow(
        "rledit",
        "a trained network turns gradients into a ridge regression, and has learnt from sequences of edits",
        "Li et al. 2025, Reinforced Lifelong Editing for Language Models, ICML, arXiv:2502.05759",
        "weights",
        use="As mend, trained for sequences. On lab it is not worth its training: ultra, which needs none, is better.",
        deviations=(
            "A turn is judged by its own facts and by two earlier turns of its window, drawn at random and weighted so "
            "that the expected loss is that of all of them.",
            "Adam takes a step after every turn, not once a sequence (`together` is the number of turns).",
            "The gradient is that of the turn's own change; earlier turns are constants.",
            "Training sequences have 12 turns of 8 facts; the published ones are as long as the run itself.",
            "Training also protects answers to hard questions (the same subject, the same true object).",
            "Mean and variance of the gradients are computed once, on the unedited model.",
            "η and λ are e to learnt numbers, in units of W's outputs and inputs, and ‖ΔW‖ counts relative to ‖W‖, so "
            "that they suit any model; published are absolute numbers.",
            "Only down-projections are edited, so that the edit is a patch.",
            "The equations are those of MALMEN (Tan et al. 2024, arXiv:2311.04661) with RLEdit's loss.",
        ),
        gentler=("train its network with a higher loc_weight (errata train-editor rledit)", ""),
        stronger=("train its network with more steps (errata train-editor rledit)", ""),
        wider=("train its network with more steps (errata train-editor rledit)", ""),
    ),
    EditorRow(
        "ultra",
        "one ridge regression from normalised gradients, without a search",
        "Gu et al. 2025, UltraEdit, arXiv:2505.14679",
        "weights",
        use="The fastest editor of weights. It needs no subject, so any prompt will do. It carries over less than "
        "locate-then-edit does, and its learning rate must suit the model.",
        deviations=_ULTRA,
        stronger=("raise", "learning_rate"),
        wider=("raise", "learning_rate"),
    ),
    EditorRow(
        "stable",
        "ultra with gradients whitened by their full covariance",
        "StableEdit, ICML 2026, arXiv:2605.11836",
        "weights",
        use="As ultra, published for long sequences in large models. In the small models measured here it is weaker "
        "than ultra.",
        deviations=(*_ULTRA, "There is no warm-up; the published one also edits its facts into the model."),
        stronger=("raise", "learning_rate"),
        wider=("raise", "learning_rate"),
    ),
    EditorRow(
        "kn",
        "the columns of W that carry the old answer are turned towards the new one",
        "Dai et al. 2022, Knowledge Neurons in Pretrained Transformers, ACL, arXiv:2104.08696",
        "weights",
        use="For research into where a fact is stored. As an editor it is poor: with its default settings, a few "
        "batches destroy a small model. Facts need the old answer and paraphrases.",
        deviations=(
            "The change of a column has the sign of its activation; the published code has none, which is right for "
            "BERT, but moves the output towards the old answer where a gated MLP fires negative.",
            "Prompts are the fact's own and its paraphrases; those in which a neuron fires with the other sign do not "
            "count for it. EasyEdit takes one prompt, without refinement.",
            "The share of prompts is adapted for each fact; the published code adapts it for all facts of a relation "
            "together.",
            "An old answer of several tokens is predicted token by token after its own earlier tokens; EasyEdit "
            "extends the prompt by the model's answers.",
            "The integral has m points from 1/m to 1; EasyEdit takes one point for Llama-like models, at activation 0.",
            "Embeddings are scaled to the column's length; those of several tokens are averaged.",
            "The paper and its authors' code are on BERT.",
        ),
        gentler=("lower", "promote"),
        stronger=("raise", "promote"),
        wider=("raise", "promote"),
        needs=("old", "paraphrases"),
    ),
    EditorRow(
        "grace",
        "a codebook of activations: a query close to a stored key gets its trained vector as a module's output",
        "Hartvigsen et al. 2023, Aging with GRACE, NeurIPS, arXiv:2211.11031",
        "hooks",
        use="Corrects a fact in its own wording within seconds, and leaves everything else bit for bit as it was. "
        "Other wordings keep the old answer.",
        deviations=(
            "The query is read at the prompt's last token in every case; the published code takes its position from "
            "the evaluation's labels.",
            "Labels are compared as token sequences; the published code compares the means of their ids.",
            "The radius is a share of the distance between unrelated prompts, and the learning rate one of the "
            "module's own output, since both scale with the model (published: 1 and 1, as they are).",
            "The vector holds from the prompt's last token on; published forms replace that token or those before it.",
            "The new vectors of a batch are trained together until their loss is small; a vector that a later fact "
            "joins is not trained again.",
            "A fact replaces an earlier one with the same prompt.",
            "Removing an edit replays the assignment of the others.",
        ),
        gentler=("lower", "epsilon"),
        wider=("raise", "epsilon"),
    ),
    EditorRow(
        "wise",
        "a side memory beside one layer, for prompts whose outputs it changes as much as its facts' own",
        "Wang et al. 2024, WISE: Rethinking the Knowledge Memory for Lifelong Model Editing, NeurIPS, arXiv:2405.14768",
        "hooks",
        use="Recognises the subject in other wordings and contexts too, but then seldom gives the new answer, and it "
        "also acts on some questions about similar subjects. Later batches undo some earlier facts.",
        undo="last",
        deviations=(
            "Distances are over the tokens of a prompt, row by row; the published code averages over the rows of a "
            "batch, over answers and padding, and decides again at every generated token.",
            "A distance is the mean over the three tokens that change most; published: over all of them, or the "
            "largest in rows of more than 100 tokens.",
            "Distances are of the module's outputs; the published code puts the model's activation function on them.",
            "The block is an early one, since the inputs of late ones do not tell subjects apart; published: a late "
            "one in all models but GPT2-XL.",
            "In training, a fact's distance is that of its subject's tokens, and the rest of its prompt is outside, as "
            "in the published code if the outside prompt is the subject; beginnings of documents are outside as well.",
            "Adam in units of the module's inputs and outputs, so that thresholds and rate suit any model (published: "
            "sgd), without weight decay: the published one pulls the copy of W to zero.",
            "The facts of a batch are trained in one loss, in their bare prompts unless prefixes are set.",
            "The shards between two merges have no entry in common.",
            "A prompt's distance is compared with that of the fact whose inputs are the most similar; published: with "
            "the least of all facts, which one fact spoils whose distance is low.",
            "The distances of a memory's facts are computed again after each batch and merge.",
            "Earlier facts are replayed only on request, then from the first stored memory or earlier fact on; "
            "published: once memories were merged.",
            "A fact replaces an earlier one with the same prompt.",
        ),
        gentler=("raise", "share"),
        wider=("lower", "share"),
    ),
    EditorRow(
        "melo",
        "LoRAs of a few ranks for every batch of facts; clusters of queries decide whose act",
        "Yu et al. 2024, MELO: Enhancing Model Editing with Neuron-Indexed Dynamic LoRA, AAAI, arXiv:2312.11795",
        "hooks",
        use="As grace: corrects a fact in its own wording and leaves nearly everything else as it was.",
        deviations=(
            "The query is read at the prompt's last token and decides for all positions; the published code reads the "
            "last token of prompt and answer, and decides again at every generated token.",
            "The query is the input of the down-projection below the adapted ones; published: the output of a module.",
            "Labels are compared as token sequences; the published code compares the sums of their ids.",
            "The radius is a share of the distance between unrelated prompts, and LoRAs are in units of the module's "
            "inputs and outputs, so that one set of numbers suits any model.",
            "Every batch has a block; in the published code their number is fixed, and later facts get none.",
            "Blocks are trained apart, and training ends when every fact is learnt.",
            "A fact replaces an earlier one with the same prompt.",
            "Removing an edit replays the assignment of the others.",
        ),
        gentler=("lower", "radius"),
        wider=("raise", "radius"),
    ),
    EditorRow(
        "t_patcher",
        "for every wrongly predicted token one more neuron in an MLP, which fires in that context only",
        "Huang et al. 2023, Transformer-Patcher: One Mistake Worth One Neuron, ICLR, arXiv:2301.09785",
        "hooks",
        use="Corrects a fact in its own wording. It acts on single tokens and makes no decision about a prompt, so "
        "now and then an answer about a similar subject changes.",
        deviations=(
            "Neurons are a branch beside the MLP with a ReLU of their own, the only form for gated MLPs; the published "
            "code enlarges the two matrices of BART and BERT.",
            "Other text is the built-in corpus and the other tokens of the batch's facts; the published memory grows "
            "with every edit.",
            "Keys are centred by other text, and rates are in units of the key's length and the MLP's output.",
            "There is no weight decay and no halving of the rate, and the gradient of each fact is clipped by itself.",
            "The 1000 largest pre-activations are those of each neuron.",
            "Training stops by the teacher-forced loss; the published code generates as many tokens as the target has.",
            "A fact replaces an earlier one with the same prompt.",
        ),
        gentler=("raise", "memory"),
        wider=("lower", "memory"),
    ),
    EditorRow(
        name="retrieval",
        title="the facts that a prompt is about are put before it",
        paper="Zheng et al. 2023, Can We Edit Factual Knowledge by In-Context Learning?, EMNLP, arXiv:2305.12740",
        where="prompt",
        use="Try it first: no training, any number of facts, undone at once, and it works for a model behind an "
        "endpoint. Whether an answer changes depends on the model: small ones often ignore a fact that "
        "contradicts what they know.",
        deviations=(
            "By default the fact alone is inserted (mode plain); the paper's demonstrations are mode ike.",
            "A fact is inserted only into prompts that pass a gate (by default: they name the subject); the published "
            "evaluation puts the right fact before every prompt, which is mode ike_oracle here.",
            "Demonstrations are chosen by lexical similarity, or the model's own hidden states, unless a sentence "
            "encoder is given; the paper uses all-MiniLM-L6-v2.",
            "No demonstration is on an edited subject; the published code does not check it.",
            "The kinds of demonstrations are shuffled by a generator of the seed and the fact, not by the global one.",
        ),
        gentler=("add a gate to", "gates"),
        stronger=("change", "mode"),
        wider=("replace the gate in", "gates"),
    ),
    EditorRow(
        name="serac",
        title="a trained classifier finds the fact that a prompt is about, which is put before it",
        paper="Mitchell et al. 2022, Memory-Based Model Editing at Scale, ICML, arXiv:2206.06520",
        where="prompt",
        use="Retrieval with a trained decision about which prompts a fact concerns. Where prompts name the subject, "
        "retrieval's own gate is as good. Needs a trained classifier.",
        deviations=(
            "The counterfactual model is the edited model itself with the fact in its prompt (freeze_cntr in the "
            "published code), or on request a small Llama trained after the classifier; published: a T5 or GPT that is "
            "trained with it.",
            "The classifier is a logistic regression on five features of query and fact; the published one is a "
            "DistilBERT.",
            "It sees the prompt only; EasyEdit gives it the prompt with the answer.",
            "The threshold is calibrated at the number of facts in memory; the published one is ½.",
            "Answers are not mixed: a query gets the fact or does not (the published code mixes probabilities by "
            "default).",
        ),
        gentler=("add a gate to", "gates"),
        stronger=("replace the gate in", "gates"),
        wider=("replace the gate in", "gates"),
    ),
    EditorRow(
        name="post_edit",
        title="a trained model rewrites finished answers to questions about a fact, sentence by sentence",
        paper="Song et al. 2024, Knowledge Editing on Black-box Large Language Models (postEdit), arXiv:2402.08631",
        where="answer",
        use="For a model whose weights you do not have. It also rewrites what follows from a fact. Facts need the "
        "old answer, and it needs a trained rewriting model.",
        deviations=(
            "The rewriting model names the words of a sentence that change and what replaces them; the published one "
            "writes the whole answer again.",
            "Every sentence is retained or changed by itself; published: the whole answer.",
            "An answer is retained if the model says `retain` and nothing else; the published code looks for the word "
            "anywhere in its output.",
            "A gate decides whether a question is about a fact (by default: it names the subject), then the model; in "
            "the published code the model alone, for the nearest fact.",
            "Training sentences are built from facts in other wordings, with questions about anything else retained; "
            "published: answers by one API model, rewritten by another and filtered by a third.",
            "Any causal model can be trained, all of its weights or low-rank changes of them; published: LoRA on "
            "Llama-2-7B.",
            "Decoding is greedy (published: four beams).",
            "A fact replaces an earlier one with the same prompt; the published memory keeps the earlier target.",
        ),
        gentler=("add a gate to", "gates"),
        stronger=("replace the gate in", "gates"),
        wider=("replace the gate in", "gates"),
        needs=("old",),
    ),
    EditorRow(
        name="substitute",
        title="in finished answers to questions about a fact, its old object becomes the new one",
        paper="none; the bar for Song et al. 2024, Knowledge Editing on Black-box Large Language Models (postEdit), "
        "arXiv:2402.08631",
        where="answer",
        use="For a model whose weights you do not have, without any training: it replaces the old answer wherever "
        "the text names it. Facts need the old answer.",
        deviations=(
            "Words are replaced where postEdit has a trained model; inflections and consequences stay.",
            "A gate decides whether a question is about a fact (by default: it names the subject); in postEdit the "
            "trained model alone does.",
        ),
        gentler=("add a gate to", "gates"),
        stronger=("replace the gate in", "gates"),
        wider=("replace the gate in", "gates"),
        needs=("old",),
    ),
)
EDITOR_NAMES: Final[tuple[str, ...]] = tuple(row.name for row in EDITOR_ROWS)


def check_method(name: str) -> None:
    """Raises InputError if there is neither a method nor an editor of this name; offers the nearest."""
    if name in EDITOR_NAMES:
        return
    try:
        method_named(name)
    except InputError as error:
        base = name.removesuffix(BOUNDARY_SUFFIX)
        if base in EDITOR_NAMES:  # the nearest name would be that of an unrelated method
            remedy = f"Use --method {base}: {BOUNDARY_SUFFIX} works with locate-then-edit methods only"
        else:
            remedy = f"{did_you_mean(name, (*METHOD_NAMES, *EDITOR_NAMES))}`errata methods` lists all"
        raise InputError(error.what, remedy=remedy, code=error.code) from error


def editor_row(name: str) -> EditorRow:
    """The row of an editor; raises KeyError if there is none."""
    return next(row for row in EDITOR_ROWS if row.name == name)


@dataclass(frozen=True, slots=True)
class TrainerRow:
    """A part of an editor that `errata train-editor` trains; ``trainers`` has what trains it.

    Attributes:
        name: as the command takes it; the editor's name.
        title: what is trained, in one line.
        setting: the editor's setting that names the file, in YAML with FILE in its place.
    """

    name: str
    title: str
    setting: str

    def recipe(self, file: str = "FILE") -> str:
        """The line of a recipe file that makes the editor use a trained file."""
        return f"editors: {{{self.name}: {{{self.setting.replace('FILE', file)}}}}}"

    def remedy(self) -> str:
        """How to train a part that is missing, and use it."""
        return (
            f"Train it: errata train-editor {self.name} --model … --out FILE; then write this line in a recipe file, "
            f"passed with --recipe: {self.recipe()}"
        )


TRAINER_ROWS: Final[tuple[TrainerRow, ...]] = (
    TrainerRow(
        "serac",
        "the classifier that decides which questions are about a fact; on request a small model that answers",
        "embedder: {kind: trained, file: FILE}",
    ),
    TrainerRow("mend", "the network that turns gradients of facts into weight changes", "network: FILE"),
    TrainerRow("post_edit", "the model that rewrites sentences of finished answers", "rewriter: FILE"),
    TrainerRow("rledit", "the same, trained over sequences of edits", "network: FILE"),
)
TRAINER_NAMES: Final[tuple[str, ...]] = tuple(row.name for row in TRAINER_ROWS)


def trainer_row(name: str) -> TrainerRow:
    """The row of a trainer.

    Raises:
        InputError: if there is none of this name.
    """
    check_trainer(name)
    return next(row for row in TRAINER_ROWS if row.name == name)


def check_trainer(name: str) -> None:
    """Raises InputError if nothing of this name can be trained; offers the nearest."""
    if name not in TRAINER_NAMES and name in (*EDITOR_NAMES, *METHOD_NAMES):
        raise InputError(
            f"{name} needs no training",
            remedy=f"Use it at once: errata edit --method {name}. Editors that are trained: {', '.join(TRAINER_NAMES)}",
            code="TRAINER_UNKNOWN",
        )
    if name not in TRAINER_NAMES:
        remedy = f"{did_you_mean(name, TRAINER_NAMES)}Known: {', '.join(TRAINER_NAMES)}"
        raise InputError(f"there is no trained editor {name!r}", remedy=remedy, code="TRAINER_UNKNOWN")
