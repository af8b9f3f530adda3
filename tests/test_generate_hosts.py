"""Completions that several processes write together: those of one process."""

import json

import pytest
from support.adapters import write_adapter
from support.hosts import run_script

from mlxreflect.models.load import TINY

SCRIPT = """
import json, sys
from mlxreflect.config.schema import PolicyConfig, Sampling
from mlxreflect.core.hosts import joined
from mlxreflect.core.seeds import rng_for
from mlxreflect.models.load import adapted, load_policy
from mlxreflect.runs.follow import follow

def ask(policy, **how):
    rng = rng_for("prompts")
    asked = [f"numbers {rng.sample(range(1, 60), 3)}, target {rng.randint(1, 99)}"
             for _ in range(40)]
    prompts = [policy.encode([{"role": "user", "content": text}]) for text in asked]
    usual = dict(temperature=1.0, top_p=0.9, max_new_tokens=60, batch=8, seed=("t", 3))
    done = policy.generate(prompts, **{**usual, **how})
    return [[one.text, one.token_ids, one.finish_reason, one.prompt_tokens] for one in done]

with joined() as hosts:
    if hosts.rank:
        follow(hosts)
    else:
        policy = load_policy(PolicyConfig(), hosts=hosts)
        told = []
        made = [
            ask(policy, advance=told.append),
            ask(policy, samples=3, stop=["step 2"]),
            ask(policy, temperature=0.0, batch=3),
            ask(policy, sampling=Sampling(top_k=5, repetition_penalty=1.1), first=7,
                banned=[[[1, 2], [3]]] * 40),
        ]
        assert sum(told) == 40
        assert policy.tokens_generated == sum(len(one[1]) for part in made for one in part)
        if len(sys.argv) > 1:
            with adapted(policy, PolicyConfig(adapter=sys.argv[1])):
                made.append(ask(policy, temperature=0.0))
            made.append(ask(policy, temperature=0.0))
            other = load_policy(PolicyConfig(adapter=sys.argv[1]), hosts=hosts)
            made.append(ask(other, temperature=0.0))
        print(json.dumps(made))
"""


@pytest.mark.slow
def test_completions_are_those_of_one_process(tmp_path):
    adapter = str(write_adapter(tmp_path / "adapter", TINY, 1))
    (alone,) = run_script(tmp_path, 1, SCRIPT, adapter)
    (shared,) = run_script(tmp_path, 3, SCRIPT, adapter)
    made = json.loads(shared)
    assert made == json.loads(alone)
    assert made[4] != made[5] == made[2]
    assert made[6] == made[4]
