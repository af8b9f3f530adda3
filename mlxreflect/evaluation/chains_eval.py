"""Evaluation of chains: a spec with `[chain]` × a model → chains.jsonl and an arm's usual files.

chains.jsonl holds every turn of every chain, an episode a line with the index of its answer's turn;
samples.jsonl follows from it: a problem's one graded sample is what its chain answers, and `tokens`
is what the policy generated for the whole chain. So `compare` pairs chains as it does answers.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from mlxreflect.config.checks import check_critic
from mlxreflect.config.schema import ChainConfig, EvalSpec
from mlxreflect.core.errors import UserError
from mlxreflect.core.journal import append_rows, dump_line, read_rows, write_atomic
from mlxreflect.core.records import Problem, Sample, episode_from_row, to_row
from mlxreflect.critics import open_critic as open_one
from mlxreflect.critics.base import Critic
from mlxreflect.critics.ledger import Ledger
from mlxreflect.evaluation.arms import (
    describe_setup,
    open_arm,
    sample_row,
    short_hash,
    whole_chunks,
    write_results,
)
from mlxreflect.evaluation.chains import (
    Chain,
    Rounds,
    answer_of,
    chain_of,
    episode_of,
    figures,
    generated,
    self_critic,
)
from mlxreflect.evaluation.evaluate import CHUNK, ask_all, grade_sample
from mlxreflect.graders.base import Grader
from mlxreflect.models.policy import Completion, Policy
from mlxreflect.tasks import find_rules
from mlxreflect.tasks.base import Task

ONE_ANSWER = {"samples": 1, "shots": 0, "form": "chat"}  # what a chain's answers have to be
MANY = 0.5  # a larger share of a chunk's critic calls failed: then no chain has shown anything


def check_chain(spec: EvalSpec) -> None:
    """Raises UserError for keys that contradict `[chain]`, or each other."""
    config = spec.chain
    if config.rounds == 1:
        return
    for key, value in ONE_ANSWER.items():
        if getattr(spec, key) != value:
            raise UserError(
                f"[chain] with {key} = {getattr(spec, key)!r}: a chain is one answer to a chat",
                f"leave {key} out, or chain.rounds",
            )
    if config.round == "prefill" and (config.feedback == "none" or spec.prompt.style == "direct"):
        what = "chain.feedback = 'none'" if config.feedback == "none" else "prompt.style = 'direct'"
        raise UserError(
            f"chain.round = 'prefill' with {what}: there is no improved thinking to prefill",
            'set chain.round to "retry" or "resample"',
        )
    if config.feedback == "critic":
        with renamed():
            check_critic(config.critic, Path("[chain]"))


@contextmanager
def renamed() -> Iterator[None]:
    """What is said of a recipe's keys, said of a spec's."""
    try:
        yield
    except UserError as error:
        message, hint = (t.replace("critic.", "chain.critic.") for t in (error.message, error.hint))
        raise UserError(message, hint) from None


def open_critic(
    policy: Policy, spec: EvalSpec, task: str, ledger: Ledger, stack: ExitStack
) -> Critic | None:
    """Whoever looks at the answers, known to reply. Raises UserError."""
    config = spec.chain
    if config.feedback == "none":
        return None
    if config.feedback == "self":
        return self_critic(policy, spec)
    with renamed():
        critic = open_one(config.critic, task, "chain", ledger)
        stack.callback(critic.close)
        critic.preflight()
    return critic


def evaluate_chains(
    policy: Policy,
    task: Task,
    problems: Sequence[Problem],
    spec: EvalSpec,
    out: Path,
    *,
    adapter: str = "",
    quantize: int = 0,
    advance: Callable[[int], None] | None = None,
    told: Callable[[str], None] | None = None,
    critic: Critic | None = None,
) -> dict[str, Any]:
    """`evaluate.evaluate` with chains; results have the figures of `recursion.figures` as "chain".

    told: what round is under way. critic: who looks at answers, if not whom the spec names. Raises
    UserError as `evaluate` does, for keys that contradict
    each other, and where the critic cannot be asked.
    """
    check_chain(spec)
    rules, grader = find_rules(task, spec.rules, spec.task.answer_type)
    asked = ask_all(task, problems, spec, [])
    setup = describe_setup(policy, spec, problems, asked, adapter)
    setup |= {"quantize": quantize} if quantize else {}
    hashed = short_hash([policy.encode(each) for each in asked])
    samples = open_arm(out, {**setup, "token_hash": hashed}, problems, [])
    path, size = out / "chains.jsonl", spec.batch * CHUNK
    done = whole_chunks(path, size, len(problems))
    if advance:
        advance(done)
    with ExitStack() as stack:
        ledger = Ledger(out / "critic.jsonl")
        critic = critic or open_critic(policy, spec, task.name, ledger, stack)
        rounds = Rounds(policy, task, spec, grader, critic)
        for start in range(done, len(problems), size):
            chains = rounds.play(problems[start : start + size], (spec.seed, start), told)
            check_failures(chains, out)
            append_rows(path, [chain_row(chain, spec.chain, start) for chain in chains])
            if advance:
                advance(len(chains))
    chains = [chain_of(episode_from_row(row), row["stopped"]) for row in read_rows(path)]
    rows = [sample_row(sample_of(chain, grader, spec)) for chain in chains]
    write_atomic(samples, "".join(map(dump_line, rows)))
    more = {"eval": spec.name or spec.task.name, "chain": figures(chains, spec.chain)}
    return write_results(out, setup, rules, **more)


def check_failures(chains: Sequence[Chain], out: Path) -> None:
    calls = [turn for chain in chains for turn in chain.turns if turn.verdict is None]
    failed = [turn.error for turn in calls if turn.error is not None]
    if len(failed) > MANY * len(calls):
        raise UserError(
            f"{len(failed)} of {len(calls)} critic calls failed; the last: {failed[-1]}",
            f"see that the critic answers, then give the same command again; what was done is in "
            f"{out}",
        )


def chain_row(chain: Chain, config: ChainConfig, wave: int) -> dict[str, Any]:
    """A line of chains.jsonl: an episode, the turn it answers with, and who stopped it."""
    episode = to_row(episode_of(chain, config, wave))
    return {**episode, "answer": answer_of(chain, config).index, "stopped": chain.stopped}


def sample_of(chain: Chain, grader: Grader, spec: EvalSpec) -> Sample:
    turn = answer_of(chain, spec.chain)
    said = Completion(turn.text, turn.token_ids or [], turn.finish_reason or "", 0)
    return grade_sample(grader, chain.problem, 0, said, spec, tokens=generated([chain]))
