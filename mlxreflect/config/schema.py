"""The tables of a recipe: every key with its type, its default and what it means; the methods.

This is the one place, beside recipes and texts for people, where all methods are named.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mlxreflect.config.fields import (
    Amount,
    CachePath,
    Count,
    Duration,
    Fraction,
    Gigabytes,
    GrpoConfig,
    HubName,
    Idle,
    Local,
    LocalFile,
    LocalFunction,
    LocalModel,
    LocalPath,
    Mirror,
    Names,
    Objective,
    OneOrMore,
    Over,
    Positive,
    Rate,
    Specs,
    Table,
    Trackers,
)
from mlxreflect.methods import preflexor, r3, reflectevo, rel, traces
from mlxreflect.methods.base import Method
from mlxreflect.methods.preflexor import PreflexorConfig
from mlxreflect.methods.r3 import R3Config
from mlxreflect.methods.reflectevo import ReflectEvoConfig
from mlxreflect.methods.rel import RelConfig
from mlxreflect.methods.traces import TracesConfig

Tier = Literal["basic", "advanced", "judge"]  # of critics
TIERS: tuple[Tier, ...] = ("basic", "advanced", "judge")
REMOTE = ("ollama", "openai", "bedrock")  # providers that are asked over a network
MethodName = Literal["r3", "rel", "preflexor", "reflectevo", "traces"]
METHODS: dict[str, Method] = {
    module.METHOD.name: module.METHOD for module in (r3, rel, preflexor, reflectevo, traces)
}
SomeOf = Field(min_length=1)  # a list that is not empty
Thinking = Literal["auto", "on", "off"]  # the switch of chat templates that have one
EFFORTS = ("low", "medium", "high")  # of thinking, as gpt-oss knows them


class ModelConfig(Table):
    """[policy]: the model that learns. Of a job it is all."""

    model: LocalModel = "tiny"  # hub name, path, or the embedded "tiny"
    adapter: LocalPath = ""  # a LoRA folder to start from, of mlx-lm or PEFT
    quantize: Literal[0, 4, 8] = 0  # bits, on load
    dequantize: Literal["auto", "yes", "no"] = "auto"  # auto: only on the CPU, where it is faster
    # the chat template's switch, where it has one; auto: as mlx_lm.generate sets it
    thinking: Thinking = "auto"
    template: dict[str, Any] = {}  # keyword arguments of the chat template


class Sampling(Table):
    """Keys of how a token is drawn, besides temperature and top_p."""

    top_k: Count = 0  # one of the so many most likely tokens, cut before top_p is; 0: any
    min_p: Fraction = 0.0  # a token's least probability, as a share of the most likely one's
    # above 1: what the answer has already becomes less likely, its logits divided (below 0: times)
    repetition_penalty: Rate = 1.0
    # taken from the logits of what the answer has already
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0

    def changed(self) -> dict[str, float]:
        """Returns the keys of this table that are not as they are by default."""
        return {name: getattr(self, name) for name, key in Sampling.model_fields.items()
                if getattr(self, name) != key.default}  # fmt: skip


class PolicyConfig(ModelConfig, Sampling):
    """[policy] of a recipe, with how it answers."""

    temperature: Amount = 0.7  # of attempts and verifications
    top_p: Fraction = 0.9  # of attempts and verifications
    max_new_tokens: Positive = 1024  # of a response
    batch: Positive = 32  # sequences in flight; fewer where they would not fit into memory
    # What they may take besides the weights; auto: two thirds of the device's memory, less the
    # weights.
    cache_gb: Gigabytes = "auto"


# native: the tags of the model's own chat template
TagSet = Literal["think", "reasoning", "preflexor", "mistral", "gemma", "harmony", "native"]


class PromptConfig(Table):
    tags: TagSet = "think"  # what a thought stands between
    # graph: a thought begins with a small knowledge graph; direct: the answer alone
    style: Literal["thinking", "graph", "direct"] = "thinking"
    shots: Count = 0  # worked examples of the task, from its training part, before each question
    file: LocalFile = ""  # TOML file with wording of your own: template = "text"
    templates: dict[str, str] = {}  # that wording, as the run keeps it


GYM = "gym:"  # before the name of a task of reasoning_gym


class TaskConfig(Table):
    """The source of the problems. Column names map foreign data onto question and answer."""

    # a bundled task, gym:NAME of reasoning_gym, or jsonl for your own problems
    name: str = "countdown"
    source: LocalPath = ""  # path or hub data set; empty: the task's own
    config: str = ""  # configuration of a hub data set
    split: str = "train"  # split of a hub data set that the run's problems come from
    limit: Count = 0  # problems of one epoch; 0: all there are
    question: str = "question"  # your column with the question
    answer: str = "answer"  # your column with the answer
    # jsonl: how answers are read and compared; open: there is no right one, and a critic judges
    # which of two answers is better (evaluations alone)
    answer_type: Literal["number", "text", "f1", "choice", "math", "countdown", "open"] = "number"
    grader: LocalFunction = ""  # FILE.py:FUNCTION of your own that grades, instead of the task's
    grader_sha256: str = ""  # the digest of that file, as the run keeps it
    # countdown: how many, one or several
    numbers: Annotated[list[Annotated[int, Field(ge=2, le=6)]], OneOrMore, SomeOf] = [3]
    # last_letter: how many, one or several
    words: Annotated[list[Annotated[int, Field(ge=1, le=20)]], OneOrMore, SomeOf] = [4]
    # arithmetic: how many operands, one or several
    operands: Annotated[list[Annotated[int, Field(ge=2, le=8)]], OneOrMore, SomeOf] = [3, 4, 5]
    # arithmetic: digits of an operand; what stands there more often is drawn more often
    digits: Annotated[list[Annotated[int, Field(ge=1, le=5)]], OneOrMore, SomeOf] = [
        1, 2, 2, 2, 3, 3, 4, 5
    ]  # fmt: skip


class CriticConfig(Sampling):
    # what answers: exact solver, mlx-lm model, Ollama, a server, Bedrock
    provider: Literal["solver", "local", "ollama", "openai", "bedrock"] = "solver"
    # as the provider names it
    model: Annotated[str, Local(Path.exists, names=("tiny",), only={"provider": "local"})] = ""
    base_url: str = ""  # the server's address; empty: the provider's usual one
    key_env: str = ""  # openai: the environment variable that holds the key; never the key itself
    region: str = ""  # bedrock; "": as boto3 finds it
    profile: str = ""  # bedrock: of ~/.aws/config
    # of critiques and rewrites; verdicts of a judge who gives hints are at 0
    temperature: Amount = 0.99
    top_p: Fraction = 1.0  # of all its replies
    max_tokens: Positive = 2000  # of a reply
    num_ctx: Positive = 8192  # ollama: tokens of prompt and reply together
    # ollama: how long its model stays in memory after a reply, in seconds or as "1h"; 0: no longer,
    # -1: for ever, "": as the server has it, which is 5 minutes
    keep_alive: Duration = ""
    # low, medium, high: reasoning effort, as of gpt-oss. auto: Ollama's models do not think, others
    # as they do by themselves
    thinking: Literal["auto", "on", "off", "low", "medium", "high"] = "auto"
    # requests at once, to each host's own server; local: the batch
    concurrency: Annotated[int, Field(ge=1, le=1024)] = 4
    deadline_s: Rate = 600.0  # seconds for a call, its retries included
    price_in: Amount = 0.0  # dollars a million tokens of prompt
    price_out: Amount = 0.0  # and of reply
    cache: CachePath = ""  # "": the user's cache folder, "off", or a path
    replay: bool = False  # answer from the cache alone; what is not there is an error


class BudgetConfig(Table):
    """The budget of all critics of a run together; 0: no limit."""

    max_calls: Count = 0  # requests that are sent
    max_tokens: Count = 0  # of prompts and replies
    max_usd: Amount = 0.0  # by critic.price_in and price_out


class Critics(CriticConfig):
    """[critic]; [critic.advanced] and [critic.judge] override it key by key.

    advanced: takes up the bucket list. judge: gives verdicts.
    """

    max_failed: Fraction = 0.5  # a larger share of the last calls failed: the run stops
    budget: BudgetConfig = BudgetConfig()
    advanced: Over = {}  # keys of the critic for the bucket list, over those of [critic]
    judge: Over = {}  # keys of the critic for verdicts, over those of [critic]

    def tier(self, name: Tier) -> CriticConfig:
        base = self.model_dump(exclude={"max_failed", "budget", "advanced", "judge"})
        return CriticConfig(**{**base, **({} if name == "basic" else getattr(self, name))})


class LoraConfig(Table):
    rank: Annotated[int, Field(ge=1, le=8192)] = 16  # of each LoRA layer
    scale: Rate = 2.0  # = alpha / rank of other libraries
    alpha: Amount = 0.0  # above 0: scale = alpha / rank
    rslora: bool = False  # scale = alpha / √rank instead
    dora: bool = False  # DoRA: the length of each row of the weights is trained apart; slower
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05  # in SFT; preference losses have none
    layers: Annotated[int, Field(ge=-1)] = -1  # last n layers; -1: all
    # such as self_attn.q_proj; empty: every linear layer of the blocks but experts' routers
    keys: Names = []


# Idle for what trains no preference pairs, and for what verifies nothing.
Unpaired = Idle("sft", "grpo", "rel")  # traces refuses them itself, where its rounds are GRPO's
Unverified = Idle("rel", "preflexor", "reflectevo", "traces")
# ORPO is a loss of pairs without a reference, and with the chosen answer's NLL in it.
Unweighed = Idle("orpo", *Unpaired.names)
Unreferred = Idle("sft", "orpo", "rel")


class SftConfig(Table):
    lr: Annotated[Rate, Idle("preflexor")] = 2e-5  # learning rate of imitation
    scale_verified: Annotated[Amount, Unverified] = 0.1  # × lr: the verified answer
    # × lr: the last winner, after a failed verification
    scale_failed: Annotated[Amount, Unverified] = 0.01


class MaskConfig(Table):
    """The tokens of a response that the loss sees."""

    answer_only: bool = False  # nothing up to the end of the last thought
    think_fraction: Fraction = 0.0  # share of the thought's tokens left out at random
    markers: bool = True  # with either of these: the think tags themselves stay in


class Fitting(Table):
    """The keys of every training; `run` and `train` add keys of their own."""

    lr: Annotated[Rate, Idle("rel")] = 1e-5  # learning rate
    beta: Annotated[Rate, Unpaired] = 0.1  # strength of the preference loss
    # Of labels: dpo's; exo_pair's ε.
    smoothing: Annotated[float, Field(ge=0, lt=0.5), Idle("rel")] = 0.0
    # of a response: summed, or per token
    logps: Annotated[Literal["sum", "mean"], Unweighed] = "mean"
    nll: Annotated[Amount, Unweighed] = 0.0  # weight of the chosen answer's NLL
    dpo: Annotated[Amount, Unweighed] = 1.0  # of the preference term; 0: NLL alone
    # the policy as its stage began, the base, or none
    reference: Annotated[Literal["stage", "base", "none"], Unreferred] = "stage"
    batch: Positive = 8  # rows taken at once
    accumulate: Positive = 1  # batches of a step
    epochs: Positive = 1  # passes over the pairs of a wave
    clip: Amount = 1.0  # of the gradient's norm; 0: off
    warmup: Count = 0  # steps
    weight_decay: Amount = 0.0  # of AdamW
    max_length: Positive = 4096  # tokens; a longer prompt loses its beginning
    grad_checkpoint: Literal["auto", "yes", "no"] = "auto"  # layers computed twice, to save memory
    # for activations; 0: a part of the device's
    memory_gb: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    # Tokens computed at once, few enough to leave the GPU to the display now and then; 0: 2048 on
    # a Mac's GPU, elsewhere as many as memory allows.
    part_tokens: Count = 0
    # The swap that the machine uses may grow by so much; then it stops at a commit; 0: never.
    swap_gb: Amount = 0.0
    # Freed memory that MLX keeps for later; auto: a tenth of the GPU's, on the CPU MLX's own.
    cache_limit_gb: Gigabytes = "auto"
    # GPU memory that macOS does not move away; auto: all that the GPU may take, as mlx-lm has it
    # whenever it generates.
    wired_limit_gb: Gigabytes = "auto"
    reference_cache: CachePath = ""  # "": the user's cache folder, "off", or a path
    mask: MaskConfig = MaskConfig()
    tune: Literal["lora", "full"] = "lora"  # full: all weights, of a model that is not quantised
    lora: LoraConfig = LoraConfig()


class TrainConfig(Fitting):
    """[train] of a recipe; [train.sft] is for the answers that a strategy imitates."""

    # loss of preference pairs
    objective: Annotated[Objective, Idle(*Unpaired.names, "traces")] = "dpo"
    # Answers cut off at policy.max_new_tokens, which are never imitated; skip: nor are they the
    # rejected one of a pair, or part of a GRPO group; keep: they are wrong.
    cut: Annotated[Literal["skip", "keep"], Idle("rel")] = "skip"
    sft: SftConfig = SftConfig()


class EvalConfig(Table):
    """The evaluation of a run: base and trained on the same problems, none of them trained on."""

    # File or bundled name; empty: the task's own held-out problems. Of a list, or of names with
    # commas between them, the first is the headline; p-values are adjusted for all comparisons.
    spec: Annotated[Specs, Local(Path.is_file)] = [""]
    source: LocalPath = ""  # other data for the spec, all of it
    limit: Count = 0  # of each spec; 0: its own
    seed: Count = 0  # order of the problems, and so which ones a limit takes
    max_new_tokens: Count = 0  # 0: the policy's own
    direct: bool = False  # base and trained are also asked for the answer alone, without a thought
    # Waves between looks at how the policy does on problems that it neither learns from nor is
    # judged by: the task's part dev. 0: none
    dev_every: Count = 0
    dev_limit: Positive = 100  # problems of a look
    # Learning ends where the policy is worse than base on them; how often that may happen to a
    # policy as good as base, over all looks. 0: it never ends so
    dev_stop: Annotated[float, Field(ge=0, lt=1)] = 0.05
    # The policy that is evaluated as trained: after the last wave, or at its best look; base, where
    # no look was better.
    trained: Literal["last", "best"] = "last"
    # Training problems that occur in the evaluation are left out: by words in a row, too, or only
    # where the whole question is the same.
    decontaminate: Literal["overlap", "exact", "off"] = "overlap"
    ngram: Positive = 13  # words in a row that make an overlap
    # Further specs, tasks or data files to keep clean of.
    against: Annotated[Names, Local(Path.is_file)] = []
    cache: CachePath = ""  # of answers: "" the user's cache folder, "off", or a folder


class Limits(Table):
    """The most that a run may spend on learning; 0: no limit.

    A wave that has begun is played to its end, and what was collected is trained on.
    """

    policy_tokens: Count = 0  # that the policy writes
    critic_calls: Count = 0  # that were made, cached ones too
    training_tokens: Count = 0  # that a loss is taken of


class ProbesConfig(Table):
    """Prompts of your own that the policy answers before and after each wave that trains it.

    It answers greedily, within policy.max_new_tokens. Nothing is learned from the answers.
    """

    prompts: list[Annotated[str, Field(min_length=1)]] = []  # a few; each costs an answer a wave
    system: str = ""  # said before each of them


class PublishConfig(Table):
    """Pushes to the hub: the adapter with a card, the training data beside it; both private."""

    to: HubName = ""  # USER/NAME on the hub; "": nowhere
    each: Literal["end", "epoch"] = "end"  # epoch: also at the end of each


class Recipe(Table):
    strategy: MethodName = "r3"  # the method
    name: str = ""  # what the run is called; of a file, the file's name
    seed: Count = 0  # of problems' order, samples and LoRA weights
    allow_untrained: bool = False  # a run that trained on nothing is no error
    mirror: Mirror = ""  # a folder, or an address such as s3://bucket/runs, that gets each commit
    track: Trackers = []  # who also gets what metrics.jsonl holds
    limits: Limits = Limits()
    policy: PolicyConfig = PolicyConfig()
    prompt: PromptConfig = PromptConfig()
    task: TaskConfig = TaskConfig()
    critic: Critics = Critics()
    r3: R3Config = R3Config()
    rel: RelConfig = RelConfig()
    reflectevo: ReflectEvoConfig = ReflectEvoConfig()
    traces: TracesConfig = TracesConfig()
    preflexor: PreflexorConfig = PreflexorConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    probes: ProbesConfig = ProbesConfig()
    publish: PublishConfig = PublishConfig()


def method_of(recipe: Recipe) -> Method:
    """Returns the method that a recipe names."""
    return METHODS[recipe.strategy]


class QuickConfig(Table):
    """When `eval --quick` stops."""

    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05  # how often it may decide between equals
    max_n: Count = 0  # questions at most; 0: all of the spec's


class ChainConfig(Table):
    """[chain] of an evaluation: questions are answered again, round by round.

    feedback: who looks at an answer; none: nobody does. gated: the grader stops a chain at the
    first right answer; else the critic (or the policy) does where it finds nothing wrong.
    """

    rounds: Positive = 1  # answers at most, the first one among them; 1: no chain
    # How it is answered again; reflect: a reflection and the answer in one response.
    round: Literal["prefill", "retry", "reflect", "resample"] = "prefill"
    feedback: Literal["critic", "self", "none"] = "critic"
    gated: bool = False
    stops: bool = True  # false: rounds are used up, whoever is satisfied
    fresh: Positive = 1  # of the answers, the first so many are from scratch, before any prefill
    tries: Positive = 1  # answers that go on from the same prefilled thinking
    avoid: bool = False  # with feedback, no answer goes on as one that failed did before
    integrate: bool = False  # at the end the answers of a chain become one
    # What an answer holds between <|reflect|> and <|/reflect|> is its critique; where it holds
    # nothing there, whoever gives the feedback is asked.
    own_reflection: bool = False
    temperature: Amount = 0.0  # of the policy's own critiques
    max_tokens: Positive = 200  # of such a critique
    critic: CriticConfig = CriticConfig()


class JudgeConfig(Table):
    """[judge] of an evaluation of open questions: which of two answers is the better one.

    critic: who judges; in a run the recipe's [critic.judge], where this names none.
    """

    rubric: str = ""  # what makes an answer better; "": the bundled one
    critic: CriticConfig = CriticConfig()


class EvalSpec(Sampling):
    """An evaluation: what is asked and how; `evals/*.toml` hold the bundled ones."""

    task: TaskConfig
    name: str = ""  # what its table is called; of a file, the file's name
    prompt: PromptConfig = PromptConfig()
    quick: QuickConfig = QuickConfig()
    part: Literal["heldout", "dev", "train", "all"] = "heldout"
    limit: Count = 0
    seed: Count = 0
    temperature: Amount = 0.0
    top_p: Fraction = 1.0
    max_new_tokens: Positive = 1024
    samples: Positive = 1
    batch: Positive = 32
    thinking: Thinking = "auto"  # as policy.thinking, which a run takes for its evaluation
    template: dict[str, Any] = {}  # as policy.template, which a run takes for its evaluation
    form: Literal["chat", "completion"] = "chat"  # completion: raw text, as base models continue it
    shots: Count = 0  # worked examples from the training part before each question
    # an answer ends before any of these
    stop: Annotated[list[Annotated[str, Field(min_length=1)]], OneOrMore] = []
    rules: str = ""  # how answers are graded; "": the task's own headline rules
    chain: ChainConfig = ChainConfig()
    judge: JudgeConfig = JudgeConfig()

    @model_validator(mode="before")
    @classmethod
    def one_name(cls, tree: Any) -> Any:
        """Makes `prompt.shots`, as a recipe calls it, this spec's `shots`."""
        prompt = tree.get("prompt") if isinstance(tree, dict) else None
        if not isinstance(prompt, dict) or not prompt.get("shots"):
            return tree
        return {"shots": prompt["shots"], **tree, "prompt": {**prompt, "shots": 0}}


# ---- `train`: an objective, a model, a data set, and keys for the rest ---------------------------

PAIRED = ("dpo", "ipo", "exo_pair", "orpo")


class DataConfig(Table):
    source: LocalPath = ""  # file, folder with train.jsonl, or hub data set
    config: str = ""  # of a hub data set
    split: str = "train"  # split of a hub data set
    columns: dict[str, str] = {}  # our name of a column = theirs
    # Of a conversation: which of the assistant's turns are trained.
    turns: Annotated[Literal["all", "last"], Idle(*PAIRED, "grpo")] = "all"
    bad_row: Literal["skip", "fatal"] = "skip"  # skip and name a row that cannot be used, or stop
    limit: Count = 0  # examples; 0: all
    held_out: Annotated[Amount, Idle("grpo")] = 0.05  # A share below 1, or how many; 0: none.
    # Evaluations, tasks, files: rows that occur in them are left out.
    against: Annotated[Names, Local(Path.is_file)] = []
    ngram: Count = 13  # words in a row that such a row shares; 0: only whole questions count


class JobTrain(Fitting):
    """[train] of a job: a training whose number of steps is known, watched on held-out examples."""

    schedule: Literal["constant", "linear", "cosine"] = "constant"  # after the warm-up
    # Steps between looks at the held-out examples; 0: each epoch.
    eval_every: Annotated[Count, Idle("grpo")] = 0
    save_every: Positive = 100  # steps between checkpoints
    # Which checkpoint becomes the adapter.
    best_by: Annotated[Literal["loss", "margin"], Idle("grpo")] = "loss"
    # Looks without a better one before training stops; 0: never.
    patience: Annotated[Count, Idle("grpo")] = 0


class Job(Table):
    # what is trained; the command says it
    objective: Literal["sft", "dpo", "ipo", "exo_pair", "orpo", "grpo"] = "sft"
    seed: Count = 0  # of the order of rows and LoRA weights
    tags: TagSet = "think"  # what train.mask goes by
    mirror: Mirror = ""  # a folder, or an address such as s3://bucket/runs, that gets each commit
    track: Trackers = []  # who also gets what metrics.jsonl holds
    policy: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: JobTrain = JobTrain()
    grpo: Annotated[GrpoConfig, Idle("sft", *PAIRED)] = GrpoConfig()
