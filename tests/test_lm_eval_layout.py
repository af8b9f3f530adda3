"""lm-eval's files, field by field against lm-eval itself: its schema, its readers, its own run."""

import hashlib
import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest
from support.arm_folders import BEGAN, ENDED, RIGHT, gsm8k, write_arm

from mlxreflect.evaluation.export_arms import load_arms
from mlxreflect.report.lm_eval import prompt_text, write_lm_eval

schema = pytest.importorskip("lm_eval.result_schema")
utils = pytest.importorskip("lm_eval.utils")
from lm_eval.config.task import TaskConfig  # noqa: E402
from lm_eval.loggers.evaluation_tracker import GeneralConfigTracker  # noqa: E402

# Only where there are groups, and of models whose tokenizer is at hand.
OPTIONAL = {"groups", "samples", "tokenizer_pad_token", "tokenizer_eos_token",
            "tokenizer_bos_token", "eot_token_id", "max_length"}  # fmt: skip
# lm-eval's times that were fields of their own until 0.4.9; harmless beside those of today.
OLDER = {"start_time", "end_time"}
# What makes a task out of code and data, which ours is not.
BUILDING = {"custom_dataset", "doc_to_text", "doc_to_target"}
KEPT = "<think>\n{0}\n</think>\n<answer>{0}</answer>"
LOOSE = "I think it is\n<answer>{0}</answer>"


Written = tuple[Path, Path, dict[str, Any], list[dict[str, Any]]]  # files, then what is in them


def texts_of(count: int, samples: int) -> list[list[str]]:
    """Right and wrong, in the format and not, and with no answer at all."""
    forms = [KEPT, LOOSE, KEPT.format("-5"), "no answer", LOOSE.format("-5")]
    return [
        [forms[(i * samples + j) % 5].format(i + 1) for j in range(samples)] for i in range(count)
    ]


def written(tmp_path: Path, samples: int = 1, **more: Any) -> Written:
    folder = write_arm(tmp_path / "arm", gsm8k(7), texts_of(7, samples), **more)
    results, rows = write_lm_eval(load_arms([folder])[0], tmp_path / "out")
    lines = rows.read_text("utf-8").splitlines()
    return results, rows, json.loads(results.read_text("utf-8")), [json.loads(x) for x in lines]


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_every_field_of_the_schema_is_there(tmp_path: Path) -> None:
    _, _, results, rows = written(tmp_path)
    known = set(schema.EvalResults.__annotations__)
    assert set(results) == known - OPTIONAL | OLDER
    assert set(rows[0]) == {*schema.SampleResult.__annotations__, "exact_match"}
    assert set(results["config"]) <= set(schema._EvalConfig.__annotations__)
    assert set(results["n-samples"]["gsm8k"]) == set(schema._SampleCount.__annotations__)
    fixed = set(schema._TaskMetrics.__annotations__) - {"sample_count"}
    assert fixed <= set(results["results"]["gsm8k"])
    tracked = {f for f in GeneralConfigTracker.__dataclass_fields__ if f in known}
    assert tracked and tracked <= set(results)
    assert set(results["configs"]["gsm8k"]) >= set(TaskConfig(task="gsm8k").to_dict())
    assert set(results["configs"]["gsm8k"]) <= set(TaskConfig.__dataclass_fields__)


def test_the_metrics_are_those_of_the_samples(tmp_path: Path) -> None:
    _, _, results, rows = written(tmp_path)
    found = results["results"]["gsm8k"]
    for name, right in (("strict-match", {0, 5}), ("flexible-extract", {0, 1, 5, 6})):
        mine = [row for row in rows if row["filter"] == name]
        assert [row["exact_match"] for row in mine] == [float(i in right) for i in range(7)]
        scores = [row["exact_match"] for row in mine]
        assert found[f"exact_match,{name}"] == pytest.approx(len(right) / 7)
        error = statistics.stdev(scores) / 7**0.5
        assert found[f"exact_match_stderr,{name}"] == pytest.approx(error)
    assert results["higher_is_better"] == {"gsm8k": {"exact_match": True}}
    assert results["n-samples"] == {"gsm8k": {"original": 7, "effective": 7}}
    assert (found["name"], found["alias"], found["sample_len"]) == ("gsm8k", "gsm8k", 7)


def test_several_samples_are_repeats(tmp_path: Path) -> None:
    _, _, results, rows = written(tmp_path, samples=3, temperature=0.5)
    assert [len(row["resps"][0]) for row in rows] == [3] * 14
    flexible = [row for row in rows if row["filter"] == "flexible-extract"]
    assert flexible[1]["filtered_resps"] == [["[invalid]", "-5", "2"]]
    assert flexible[1]["exact_match"] == pytest.approx(1 / 3)
    assert results["configs"]["gsm8k"]["repeats"] == 3
    found = results["results"]["gsm8k"]
    assert (found["pass@3,flexible-extract"], found["exact_match,maj@3"]) == (0.75, 0.5)
    assert results["higher_is_better"]["gsm8k"] == {"exact_match": True, "pass@1": True,
                                                     "pass@3": True}  # fmt: skip


def test_hashes_are_lm_evals(tmp_path: Path) -> None:
    _, _, results, rows = written(tmp_path)
    together = "".join(row["doc_hash"] + row["prompt_hash"] + row["target_hash"] for row in rows)
    assert results["task_hashes"] == {"gsm8k": utils.hash_string(together)}
    for row in rows:
        prompt = row["arguments"]["gen_args_0"]["arg_0"]
        assert row["prompt_hash"] == utils.hash_string(prompt)
        assert json.loads(prompt)[1]["content"] == row["doc"]["question"]
        doc = json.dumps(
            row["doc"], indent=2, default=utils.handle_non_serializable, ensure_ascii=False
        )
        assert row["doc_hash"] == utils.hash_string(doc) == sha(doc)
        assert row["target_hash"] == utils.hash_string(row["target"])
    system = json.loads(rows[0]["arguments"]["gen_args_0"]["arg_0"])[0]["content"]
    assert results["system_instruction"] == system
    assert results["system_instruction_sha"] == utils.hash_string(system)


def test_lm_evals_readers_of_names_know_these(tmp_path: Path) -> None:
    results, samples, _, _ = written(tmp_path)
    names = [f"model/{path.name}" for path in (results, samples)]
    assert utils.get_results_filenames(names) == names[:1]
    assert utils.get_sample_results_filenames(names) == names[1:]
    assert utils.get_file_task_name(samples.name) == "gsm8k"
    times = {utils.get_file_datetime(samples.name),
             utils.get_file_datetime(results.name).removesuffix(".json")}  # fmt: skip
    (time,) = times
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d\.\d{6}", time)


def test_who_answered_and_how_is_told(tmp_path: Path) -> None:
    more = {"model": "org/name", "adapter": "runs/x/adapter (ab12)", "limit": 7, "seed": 5}
    _, _, results, rows = written(tmp_path, **more, max_new_tokens=64)
    assert results["model_name"] == more["adapter"]
    assert results["model_name_sanitized"] == utils.sanitize_model_name(str(more["adapter"]))
    config = results["config"]
    assert config["model_args"] == {"pretrained": "org/name", "peft": more["adapter"]}
    assert (config["limit"], config["random_seed"], config["batch_size"]) == (7, 5, "32")
    kwargs = {"until": [], "do_sample": False, "temperature": 0.0, "top_p": 1.0,
              "max_gen_toks": 64}  # fmt: skip
    assert rows[0]["arguments"]["gen_args_0"]["arg_1"] == kwargs == config["gen_kwargs"]
    assert results["date"] == results["start_time"] == BEGAN
    assert results["end_time"] == ENDED
    assert results["total_evaluation_time_seconds"] == "61.25"


# ---- lm-eval's own evaluation of the same texts --------------------------------------------------


def own_run(out: Path, docs: list[Any], prompts: dict[str, str], texts: list[list[str]]) -> None:
    """Let lm-eval ask, filter, grade and write: its files, with our texts for answers."""
    from datasets import Dataset
    from lm_eval.api.model import LM
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    said = [text for mine in texts for text in mine]

    class Said(LM):
        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            assert len(requests) == len(said)
            return said

        def loglikelihood(self, requests: list[Any]) -> list[Any]:
            raise NotImplementedError

        def loglikelihood_rolling(self, requests: list[Any]) -> list[Any]:
            raise NotImplementedError

    def pick(pattern: str) -> list[dict[str, Any]]:
        first = [{"function": "take_first"}] if len(texts[0]) == 1 else []
        return [{"function": "regex", "regex_pattern": pattern}, *first]

    config = {
        "task": "gsm8k", "custom_dataset": lambda **_: {"heldout": Dataset.from_list(docs)},
        "test_split": "heldout", "doc_to_text": lambda doc: prompts[doc["id"]],
        "doc_to_target": lambda doc: doc["answer"].rpartition("#### ")[2], "num_fewshot": 0,
        "dataset_path": "gsm8k", "output_type": "generate_until", "repeats": len(texts[0]),
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "generation_kwargs": {"until": [], "do_sample": False, "temperature": 0.0},
        "filter_list": [
            {"name": "strict-match", "filter": pick(r"(?s)^<think>.*</think>\s*<answer>(.*)</")},
            {"name": "flexible-extract", "filter": pick(r"<answer>(.*)</answer>")},
        ],
        "metadata": {"version": 1.0},
    }  # fmt: skip
    tracker = EvaluationTracker(output_path=str(out))
    results = simple_evaluate(
        model=Said(), tasks=[ConfigurableTask(config=config)], evaluation_tracker=tracker,
        log_samples=True, task_manager=TaskManager(include_defaults=False),
    )  # fmt: skip
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    tracker.save_results_samples(task_name="gsm8k", samples=samples["gsm8k"])


def kinds(value: object) -> str:
    return "number" if type(value) in (int, float) else type(value).__name__


@pytest.mark.slow
@pytest.mark.parametrize("samples", [1, 3])
def test_lm_eval_itself_writes_the_same(tmp_path: Path, samples: int) -> None:
    pytest.importorskip("lm_eval.evaluator")
    results_path, samples_path, ours, rows = written(tmp_path, samples)
    (arm,) = load_arms([tmp_path / "arm"])
    docs = [row["doc"] for row in rows[:7]]
    prompts = {question.id: prompt_text(arm, question) for question in arm.questions}
    own_run(tmp_path / "own", docs, prompts, texts_of(7, samples))
    (own_results,), (own_rows,) = (
        list((tmp_path / "own").rglob(f"{kind}_*")) for kind in ("results", "samples")
    )
    theirs = json.loads(own_results.read_text("utf-8"))

    # Names of files but for the time; and each row, but for how texts were generated.
    assert re.sub(r"\d", "0", own_results.name) == re.sub(r"\d", "0", results_path.name)
    assert re.sub(r"\d", "0", own_rows.name) == re.sub(r"\d", "0", samples_path.name)
    told = [json.loads(line) for line in own_rows.read_text("utf-8").splitlines()]
    for row in (*rows, *told):
        del row["arguments"]["gen_args_0"]["arg_1"]
    assert [list(row) for row in rows] == [list(row) for row in told]
    assert rows == told

    # The figures, which lm-eval computed from the same answers.
    beyond = ("pass@", "exact_match,maj@", "exact_match_stderr,maj@")
    mine = {k: v for k, v in ours["results"]["gsm8k"].items() if not k.startswith(beyond)}
    assert mine == pytest.approx(theirs["results"]["gsm8k"])
    for key in ("group_subtasks", "versions", "n-shot", "n-samples", "task_hashes"):
        assert ours[key] == theirs[key], key

    # Every other field: the same places, the same kinds of values.
    assert list(theirs) == [key for key in ours if key not in OLDER]
    assert set(theirs["configs"]["gsm8k"]) - BUILDING == set(ours["configs"]["gsm8k"])
    assert set(theirs["config"]) == set(ours["config"])
    for key in (
        "date", "pretty_env_info", "transformers_version", "lm_eval_version", "model_source",
        "model_name", "model_name_sanitized", "fewshot_as_multiturn",
        "total_evaluation_time_seconds",
    ):  # fmt: skip
        assert kinds(ours[key]) == kinds(theirs[key]), key
    assert theirs["higher_is_better"]["gsm8k"].items() <= ours["higher_is_better"]["gsm8k"].items()


@pytest.mark.slow
def test_lm_evals_table_shows_it(tmp_path: Path) -> None:
    pytest.importorskip("pytablewriter")
    _, _, results, _ = written(tmp_path)
    table = utils.make_table(results)
    assert re.search(r"\|gsm8k\|\s*1\|flexible-extract\|\s*0\|exact_match\|↑\s*\|0\.5714\|", table)


def test_a_single_question_has_no_error(tmp_path: Path) -> None:
    folder = write_arm(tmp_path / "one", gsm8k(1), [[RIGHT.format(1)]])
    results, _ = write_lm_eval(load_arms([folder])[0], tmp_path)
    found = json.loads(results.read_text())["results"]["gsm8k"]
    assert found["exact_match_stderr,strict-match"] == "N/A"
