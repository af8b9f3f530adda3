"""A model that fits no host, split over two: it answers as the whole one, and is not trained."""

import json
import os
import signal
import time

import pytest
from support.hosts import Ranks, run_script

SCRIPT = """
import json, sys, time
import mlxreflect.models.split
from mlxreflect.config.schema import PolicyConfig, TrainConfig
from mlxreflect.core.errors import UserError
from mlxreflect.core.hosts import joined
from mlxreflect.models.load import load_policy
from mlxreflect.runs.follow import follow
from mlxreflect.train.lora import attach_everywhere

mlxreflect.models.split.ROOM = 0  # of memory
asked = [f"numbers {i} {i + 3} {2 * i}, target {3 * i}" for i in range(2, 14)]
try:
    with joined() as hosts:
        if hosts.rank:
            follow(hosts)
        else:
            policy = load_policy(PolicyConfig(), hosts=hosts)
            prompts = [policy.encode([{"role": "user", "content": text}]) for text in asked]
            usual = dict(top_p=0.9, max_new_tokens=50, batch=8, seed=("t", 3))
            print("ready", flush=True)
            while "on" in sys.argv:
                policy.generate(prompts, temperature=0.0, **usual)
            made = [policy.generate(prompts, temperature=heat, **usual) for heat in (0.0, 1.0)]
            parts = sum(p.size for _, p in __import__("mlx.utils").utils.tree_flatten(
                policy.model.parameters()))
            if hosts.size > 1:
                try:
                    attach_everywhere(policy, TrainConfig(), 0, PolicyConfig())
                except UserError as error:
                    assert "cannot be trained" in error.message
                else:
                    raise AssertionError("it is trained")
                try:
                    load_policy(PolicyConfig(quantize=4), hosts=hosts)
                except UserError as error:
                    assert "takes no policy.quantize" in error.message
                    print(json.dumps([parts, [[c.token_ids for c in part] for part in made]]))
                    raise SystemExit(0)
            print(json.dumps([parts, [[c.token_ids for c in part] for part in made]]))
except UserError as error:
    print(f"error: {error.message}", file=sys.stderr, flush=True)
    sys.exit(2)
"""


@pytest.mark.slow
def test_a_split_model_answers_as_the_whole_one(tmp_path):
    alone, _ = run_script(tmp_path, 1, SCRIPT)
    folder = tmp_path / "script.py"
    ranks = Ranks(tmp_path, ["127.0.0.1"] * 2, str(folder))
    (code, out, err), _ = ranks.results(120)
    assert code == 0, err
    (whole, texts), (part, shared) = json.loads(alone), json.loads(out.splitlines()[-1])
    assert shared == texts
    assert part < 0.8 * whole


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_host_that_is_gone_in_the_middle_of_an_answer_is_named(how, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    ranks = Ranks(tmp_path, ["127.0.0.1"] * 2, str(script), "on")
    first, second = ranks.processes
    try:
        assert first.stdout and first.stdout.readline() == "ready\n"
        time.sleep(1)
        os.kill(second.pid, how)
        began = time.monotonic()
        _, err = first.communicate(timeout=60)
        assert time.monotonic() - began < 60
    finally:
        ranks.kill()
    assert first.returncode == 2
    (told,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "(rank 1) " + ("has ended" if how == signal.SIGKILL else "is stopped") in told
