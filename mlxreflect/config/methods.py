"""The methods' own tables of a recipe: every key with its type, its default and what it means."""

from typing import Annotated, Literal

from pydantic import Field

from mlxreflect.config.fields import (
    Count,
    Fraction,
    LocalFile,
    LocalPath,
    Names,
    Objective,
    Positive,
    Rate,
    Table,
)


class R3Config(Table):
    wave: Positive = 1
    shard: Count = 0  # samples drawn while a remote critic reviews those before; 0: policy.batch
    epochs: Positive = 1
    rewrites: Positive = 3
    verifications: Count = 5
    verify_samples: Positive = 1
    verify_pass: Positive = 1
    feedback: Literal["critic", "self"] = "critic"
    rewriter: Literal["critic", "self"] = "critic"
    judge: bool = False  # rewrites that pass the grader must also convince the judge
    sft_mode: Literal[0, 1, 2, 3] = 1  # once verified: 0 none, 1 last winner, 2 verified, 3 both
    sft_correct: bool = False  # SFT on attempts that were right at once
    bucket_every: Count = 100  # problems between passes over the bucket list; 0: never
    until_mastered: bool = False


class ReflectEvoConfig(Table):
    """Attempts are drawn at policy.temperature, reflections at critic.temperature."""

    wave: Positive = 100  # problems taken and committed together
    reflector: Literal["self", "critic"] = "self"
    reflections: Positive = 2  # on each wrong attempt, each with one retry
    instructions: Names = []  # ids of the pool to draw from; empty: all 32
    stored: LocalFile = ""  # JSONL file with reflections to replay, in place of new ones
    words: Positive = 100  # a longer reflection gets no retry
    retry_temperature: Annotated[float, Field(ge=0)] = 0.0
    # I: SFT on reflection and answer in one; II: on each by itself, two adapters; III: DPO on
    # reflections that led to a right and a wrong answer; IV: on those of which the judge likes one.
    training: Literal["I", "II", "III", "IV"] = "I"
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: Fraction = 0.0  # of a training's steps
    retries: bool = True  # evaluate second answers, beside retries without a reflection


class RelConfig(Table):
    """Attempts are asked at policy.temperature, the judge marks at 0."""

    rounds: Positive = 2
    wave: Positive = 10  # problems taken and committed together
    tries: Literal[1, 2, 3] = 3  # the attempt, its continuation, a rewrite shown the solution
    decay: Annotated[float, Field(gt=0, le=1)] = 0.9  # of the temperature, each further try
    writer: Literal["critic", "self"] = "critic"  # who continues, rewrites and tidies
    judge: bool = False  # what passes the grader must also convince the judge
    review: bool = False  # what was accepted is tidied into a clean solution, too
    target: Literal["working", "tidied"] = "working"  # what is imitated
    mistakes: bool = True  # false: what went wrong before its mending is shown, not imitated
    weight: Rate = 1.0  # of what the loop made
    human: LocalFile = ""  # worked solutions by people: a Markdown or JSONL file
    human_weight: Rate = 2.0
    restart: bool = True  # each round trains from the start; false: from the round before
    measure: bool = False  # an evaluation after each round, beside base and trained


class PhaseTwoConfig(Table):
    """Phase II: what it has of its own; all else is [train]'s, which are Phase I's settings."""

    rounds: Count = 10  # 0: no Phase II
    objective: Objective = "exo_pair"
    lr: Rate = 1e-6
    beta: Rate = 0.1
    smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 5e-3
    clip: Annotated[float, Field(ge=0)] = 0.3
    answer_only: bool = True  # answers are compared without what was thought before them
    think_fraction: Fraction = 0.0


class PreflexorConfig(Table):
    rounds: Count = 10  # of Phase I; 0: none
    questions: Positive = 50  # new ones each round; with topics, for each of them
    only_wrong: bool = False  # pairs only where the policy's own answer did not pass
    corpus: LocalPath = ""  # folder or file of text, Markdown, JSONL; "": the task's own problems
    column: str = "text"  # of JSONL rows
    # Characters of a passage at most; shorter ones than 40 are left out, so that is the least.
    chunk: Annotated[int, Field(ge=40)] = 1500
    topics: Names = []  # what to ask about; empty: passages at random
    retrieve: Count = 2  # passages that a teacher is shown beside the one asked about
    sections: Annotated[Names, Field(min_length=1)] = [
        "reasoning steps", "relevant concepts", "hypothesis",
    ]  # of the thought  # fmt: skip
    two: PhaseTwoConfig = PhaseTwoConfig()


class GrpoConfig(Table):
    clip_ratio: Annotated[float, Field(gt=0)] = 0.2
    kl: Annotated[float, Field(ge=0)] = 0.0  # weight of the distance from the reference
    average: Literal["sequence", "token"] = "sequence"  # each response, or each token, counts alike
    scale_rewards: bool = True  # by the group's standard deviation


class TracesConfig(Table):
    """[traces]: SFT on filtered traces of the policy, then rounds of GRPO on fresh groups."""

    wave: Positive = 16  # problems taken and committed together
    warm_up: Count = 0  # problems of the warm-up; 0: none, the rounds begin at once
    samples: Positive = 4  # traces of a problem in the warm-up
    scorer: Literal["rules", "critic"] = "rules"  # who marks a right trace
    filter: Literal["strict", "lenient"] = "strict"  # each mark, or their mean, and strict: format
    threshold: Fraction = 0.5  # what marks, from 0 to 1, must reach
    keep: Count = 1  # best traces of a problem; 0: all that pass
    rounds: Count = 3
    problems: Count = 0  # of a round; 0: all there are
    group: Annotated[int, Field(ge=2)] = 8  # samples of a problem in a round
    reward_answer: Annotated[float, Field(ge=0)] = 1.0
    reward_format: Annotated[float, Field(ge=0)] = 0.2
    grpo: GrpoConfig = GrpoConfig()
