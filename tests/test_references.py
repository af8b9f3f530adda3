"""The cache of reference log-probabilities: keys, exactness, and files that fail."""

import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import platformdirs
import pytest
from mlx.utils import tree_flatten, tree_map
from mlx_lm.tuner.utils import linear_to_lora_layers

from mlxreflect.core import cache as cachefile
from mlxreflect.core.errors import UserError
from mlxreflect.train.batches import Row
from mlxreflect.train.references import References, model_key, reference_key

PAIR = [Row([1, 2, 3], [4, 5]), Row([1, 2, 3], [6], mask=(True,))]
# Puts n times two items: one of its own and one that another process puts too.
WRITER = """
import sys
from pathlib import Path
from mlxreflect.train.references import References
name, number = sys.argv[2], float(sys.argv[3])
cache = References(Path(sys.argv[1]))
for n in range(int(sys.argv[4])):
    cache.put({f"{name}-{n}": [number, n], f"shared-{n}": [number, n]})
"""
# Puts items, says when half of them are in the transaction, and waits to be killed there.
HALFWAY = """
import sys, time
from pathlib import Path
from mlxreflect.train.references import References

class Slow(dict):
    def items(self):
        for n, item in enumerate(super().items()):
            if n == len(self) // 2:
                print("halfway", flush=True)
                time.sleep(60)
            yield item

cache = References(Path(sys.argv[1]))
cache.put({f"before-{n}": [1.0] * 100 for n in range(1000)})
cache.put(Slow({f"during-{n}": [2.0] * 100 for n in range(1000)}))
"""
# Puts batch after batch and prints the number of each before and after.
BUSY = """
import sys
from pathlib import Path
from mlxreflect.train.references import References
cache = References(Path(sys.argv[1]))
for b in range(100000):
    print("put", b, flush=True)
    cache.put({f"{b}-{n}": [float(n)] * 50 for n in range(200)})
    print("kept", b, flush=True)
"""


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[References]:
    found = References(tmp_path / "r.sqlite")
    yield found
    found.close()


def stored(path: Path) -> set[str]:
    connection = sqlite3.connect(path)
    try:
        return {key for (key,) in connection.execute("SELECT key FROM logps")}
    finally:
        connection.close()


# ---- values --------------------------------------------------------------------------------------


def test_values_come_back_in_order(cache: References) -> None:
    cache.put({"a": [-1.5, -2.25], "b": [], "c": [-0.5] * 5000})
    assert cache.get(["c", "x", "a", "b", "a"]) == [
        [-0.5] * 5000, None, [-1.5, -2.25], [], [-1.5, -2.25]
    ]  # fmt: skip
    assert cache.get([]) == []
    cache.put({})


def test_float32_comes_back_bit_for_bit(cache: References) -> None:
    rng = np.random.default_rng(1)
    patterns = rng.integers(0, 2**32, 5000, dtype=np.uint32).view(np.float32)
    special = [0.0, -0.0, np.finfo(np.float32).max, np.finfo(np.float32).tiny, np.inf, -np.inf]
    subnormal = np.array([1, 2, 0x007FFFFF, 0x80000001], np.uint32).view(np.float32)
    for numbers in (patterns[~np.isnan(patterns)], np.array(special, np.float32), subnormal):
        cache.put({str(len(numbers)): numbers.tolist()})
        [found] = cache.get([str(len(numbers))])
        assert found is not None
        assert struct.pack(f"<{len(found)}f", *found) == numbers.tobytes()
    assert np.signbit(cache.get(["6"])[0][1])  # type: ignore[index]


def test_another_process_reads_the_same(cache: References) -> None:
    numbers = mx.random.normal((100,)).tolist()
    cache.put({"k": numbers})
    again = References(cache.path)
    assert again.get(["k"]) == [numbers]
    again.close()


def test_the_first_writers_value_stays(cache: References) -> None:
    cache.put({"k": [-1.0]})
    cache.put({"k": [-2.0], "l": [-3.0]})
    assert cache.get(["k", "l"]) == [[-1.0], [-3.0]]


def test_the_settings_say_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLXREFLECT_CACHE", str(tmp_path / "elsewhere"))
    assert References.open("off") is None
    assert not (tmp_path / "elsewhere").exists()
    places = {"": tmp_path / "elsewhere" / "references.sqlite", "~/r.sqlite": tmp_path / "r.sqlite",
              str(tmp_path / "a" / "b.sqlite"): tmp_path / "a" / "b.sqlite"}  # fmt: skip
    monkeypatch.setenv("HOME", str(tmp_path))
    for setting, path in places.items():
        found = References.open(setting)
        assert found and found.path == path and path.is_file()
        found.close()
    monkeypatch.delenv("MLXREFLECT_CACHE")
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(tmp_path / name))
    found = References.open("")
    assert found and found.path == tmp_path / "mlxreflect" / "references.sqlite"
    found.close()


# ---- processes -----------------------------------------------------------------------------------


def test_processes_write_at_once(tmp_path: Path) -> None:
    path, count = tmp_path / "new" / "r.sqlite", 100
    processes = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), name, number, str(count)])
        for name, number in (("a", "1"), ("b", "2"))
    ]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    cache = References(path)
    for n in range(count):
        [a, b, shared] = cache.get([f"a-{n}", f"b-{n}", f"shared-{n}"])
        assert (a, b) == ([1.0, n], [2.0, n])
        assert shared in (a, b)
    cache.close()
    assert len(stored(path)) == 3 * count


def test_a_process_killed_in_the_middle_of_a_put(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    command = [sys.executable, "-c", HALFWAY, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "halfway\n"
        process.kill()
    assert stored(path) == {f"before-{n}" for n in range(1000)}
    cache = References(path)  # and the lock has died with it
    cache.put({"during-0": [3.0]})
    assert cache.get(["during-0", "during-1"]) == [[3.0], None]
    cache.close()


@pytest.mark.parametrize("delay", [0.0, 0.013, 0.04])
def test_a_process_killed_at_any_instant(tmp_path: Path, delay: float) -> None:
    path = tmp_path / "r.sqlite"
    command = [sys.executable, "-c", BUSY, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        lines = [process.stdout.readline() for _ in range(5)]
        time.sleep(delay)
        process.kill()
        lines += process.stdout.readlines()
    kept = {int(line.split()[1]) for line in lines if line.startswith("kept")}
    batches: dict[int, int] = {}
    for key in stored(path):
        batch = int(key.split("-")[0])
        batches[batch] = batches.get(batch, 0) + 1
    assert set(batches.values()) == {200}  # whole, or not there
    assert kept <= set(batches)


# ---- files that fail -----------------------------------------------------------------------------


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    path.write_bytes(b"not a database, whatever its name says " * 200)
    with pytest.raises(UserError, match=r"r\.sqlite.*damaged") as caught:
        References(path)
    assert str(path) in caught.value.hint and "delete" in caught.value.hint


def test_damage_found_later(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    cache = References(path)
    cache.put({f"{n:064d}": [1.0] * 300 for n in range(200)})
    cache.close()
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xee" * (len(data) - 4096)
    path.write_bytes(data)
    cache = References(path)
    with pytest.raises(UserError, match=r"r\.sqlite.*damaged") as caught:
        cache.get([f"{7:064d}"])
    assert str(path) in caught.value.hint
    with pytest.raises(UserError, match=r"r\.sqlite.*damaged"):
        cache.put({"k": [1.0]})
    cache.close()


@pytest.mark.parametrize("value", [b"abc", "text", 7])
def test_a_row_that_is_no_list_of_numbers(cache: References, value: object) -> None:
    cache.connection.execute("INSERT INTO logps VALUES ('k', ?)", (value,))
    with pytest.raises(UserError, match="damaged"):
        cache.get(["k"])


def test_another_schema_is_refused(tmp_path: Path) -> None:
    for name, statement in (("later", "PRAGMA user_version = 2"), ("foreign", "CREATE TABLE t(a)")):
        connection = sqlite3.connect(tmp_path / name)
        connection.execute(statement)
        connection.close()
        with pytest.raises(UserError, match="not a reference cache of this version") as caught:
            References(tmp_path / name)
        assert str(tmp_path / name) in caught.value.hint


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "r.sqlite", Path("/proc/none/r.sqlite")):
        with pytest.raises(UserError, match=str(path)) as caught:
            References(path)
        assert '"off"' in caught.value.hint


def test_a_full_disk_keeps_what_was_there(cache: References) -> None:
    cache.put({"before": [1.0]})
    (pages,) = cache.connection.execute("PRAGMA page_count").fetchone()
    cache.connection.execute(f"PRAGMA max_page_count = {pages + 5}")
    with pytest.raises(UserError, match="full") as caught:
        cache.put({f"{n}": [1.0] * 1000 for n in range(100)})
    assert str(cache.path) in caught.value.message and '"off"' in caught.value.hint
    assert stored(cache.path) == {"before"}
    cache.put({"after": [2.0]})  # nothing is left open
    assert cache.get(["before", "after"]) == [[1.0], [2.0]]


def test_a_read_only_file_is_named(cache: References) -> None:
    cache.put({"k": [1.0]})
    cache.connection.execute("PRAGMA query_only = 1")
    with pytest.raises(UserError, match="readonly"):
        cache.put({"l": [1.0]})
    assert cache.get(["k", "l"]) == [[1.0], None]


def test_a_value_that_is_no_number_keeps_nothing(cache: References) -> None:
    with pytest.raises(ValueError, match="float"):
        cache.put({"a": [1.0], "b": ["x"]})  # type: ignore[list-item]
    assert cache.get(["a", "b"]) == [None, None]
    cache.put({"a": [1.0]})


def test_it_waits_for_another_writer_then_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r.sqlite"
    monkeypatch.setattr(cachefile, "BUSY_S", 0.3)
    cache, other = References(path), sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    started = time.monotonic()
    with pytest.raises(UserError, match="locked") as caught:
        cache.put({"k": [1.0]})
    assert 0.25 < time.monotonic() - started < 10
    assert str(path) in caught.value.message
    assert cache.get(["k"]) == [None]  # reading needs no lock
    other.execute("COMMIT")
    cache.put({"k": [1.0]})
    assert cache.get(["k"]) == [[1.0]]
    other.close()
    cache.close()


def test_a_closed_cache_is_our_fault_and_not_the_files(cache: References) -> None:
    cache.close()
    cache.close()
    with pytest.raises(sqlite3.ProgrammingError):
        cache.get(["k"])


# ---- keys ----------------------------------------------------------------------------------------


def test_a_key_is_a_hash_and_repeats() -> None:
    key = reference_key("policy", PAIR, "sum")
    assert len(key) == 64 and set(key) <= set("0123456789abcdef")
    again = [Row([1, 2, 3], [4, 5]), Row([1, 2, 3], [6], mask=(True,))]
    assert reference_key("policy", tuple(again), "sum") == key


def test_each_part_makes_another_key() -> None:
    first, second = PAIR
    changed = [
        ("other", PAIR, "sum"),
        ("policy", PAIR, "mean"),
        ("policys", PAIR, "um"),
        ("policy", PAIR[::-1], "sum"),
        ("policy", PAIR[:1], "sum"),
        ("policy", [], "sum"),
        ("policy", [replace(first, prompt=[1, 2, 4]), second], "sum"),
        ("policy", [replace(first, response=[4, 6]), second], "sum"),
        ("policy", [replace(first, prompt=[1, 2], response=[3, 4, 5]), second], "sum"),
        ("policy", [replace(first, prompt=[1, 23]), second], "sum"),
        ("policy", [replace(first, response=[45]), second], "sum"),
        ("policy", [replace(first, mask=(True, True)), second], "sum"),
        ("policy", [replace(first, mask=(True, False)), second], "sum"),
        ("policy", [replace(first, mask=(False, True)), second], "sum"),
        ("policy", [first, replace(second, mask=None)], "sum"),
    ]
    keys = {reference_key(*parts) for parts in [("policy", PAIR, "sum"), *changed]}
    assert len(keys) == len(changed) + 1


def test_the_weight_of_an_example_is_no_part_of_the_key() -> None:
    heavy = [replace(row, weight=3.0) for row in PAIR]
    assert reference_key("policy", heavy, "sum") == reference_key("policy", PAIR, "sum")


def changed_at(array: mx.array, place: int) -> mx.array:
    """The same array with its lowest bit turned at one place."""
    raw = np.array(array.reshape(-1).view(mx.uint8))
    raw[place] ^= 1
    return mx.array(raw).view(array.dtype).reshape(array.shape)


def test_each_weight_is_part_of_the_models_key(load_random: Callable[..., Any]) -> None:
    model = load_random(dequantize="no").model
    key = model_key(model, {})
    assert key == model_key(load_random(dequantize="no").model, {})
    arrays = dict(tree_flatten(model.parameters()))
    assert mx.uint32 in {array.dtype for array in arrays.values()}
    for name, array in arrays.items():
        for place in (0, array.nbytes - array.itemsize):
            model.load_weights([(name, changed_at(array, place))], strict=False)
            assert model_key(model, {}) != key, name
        model.load_weights([(name, array)], strict=False)
    assert model_key(model, {}) == key


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16, mx.float32])
def test_native_bytes_of_every_type(dtype: mx.Dtype) -> None:
    layer = nn.Linear(8, 8)
    layer.update(tree_map(lambda a: a.astype(dtype), layer.parameters()))
    key, weight = model_key(layer, {}), layer.weight
    layer.weight = changed_at(weight, weight.nbytes - weight.itemsize)
    assert model_key(layer, {}) != key
    layer.weight = mx.contiguous(weight.T).T  # another layout, the same weights
    assert model_key(layer, {}) == key
    layer.weight = weight.reshape(4, 16)
    assert model_key(layer, {}) != key
    layer.weight = weight.view(mx.uint8)
    assert model_key(layer, {}) != key


def test_a_number_that_is_no_list_has_bytes_too() -> None:
    layer = nn.Linear(8, 8)
    layer.scalar, layer.empty = mx.array(2.0), mx.zeros((0, 3))
    key = model_key(layer, {})
    layer.scalar = mx.array(3.0)
    assert model_key(layer, {}) != key


def test_the_adapter_is_part_of_the_key(load_random: Callable[..., Any]) -> None:
    model = load_random().model
    bare = model_key(model, {})
    model.freeze()
    linear_to_lora_layers(model, -1, {"rank": 2, "scale": 10.0, "dropout": 0.0})
    start: Mapping[str, mx.array] = dict(tree_flatten(model.trainable_parameters()))
    assert start
    key = model_key(model, {})
    assert key != bare
    assert model_key(model, start) == key
    name = next(name for name in start if name.endswith("lora_b"))
    moved = {name: start[name] + 1}
    assert model_key(model, moved) != key
    model.load_weights(list(moved.items()), strict=False)
    assert model_key(model, {}) == model_key(model, moved) != key
    assert model_key(model, start) == key  # a snapshot counts in place of what is there now


def test_what_is_in_no_array_is_part_of_the_key(load_random: Callable[..., Any]) -> None:
    """LoRA's scale and RoPE's base change the numbers; training mode does not."""
    model = load_random().model
    model.freeze()
    linear_to_lora_layers(model, -1, {"rank": 2, "scale": 10.0, "dropout": 0.0})
    key = model_key(model, {})
    model.train()
    assert model_key(model, {}) == key
    scaled = next(layer for _, layer in model.named_modules() if hasattr(layer, "lora_a"))
    rope = next(layer for _, layer in model.named_modules() if isinstance(layer, nn.RoPE))
    for layer, setting in ((scaled, "scale"), (rope, "base")):
        before = getattr(layer, setting)
        setattr(layer, setting, before * 2)
        assert model_key(model, {}) != key
        setattr(layer, setting, before)
    assert model_key(model, {}) == key
