"""The method: check every provider against float64, then time those that are right, in turns, and check them again.

CPU: wall and processor time, the minimum counts. CUDA: events around one call from an idle stream (launches included),
the median counts; short calls also as replays of a CUDA graph that goes through several input sets, larger than the L2
together. Nothing that fails a check keeps a time.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from bench import ceilings as limits
from bench.memory import extra_bytes
from bench.registry import Inputs, Op, Outputs, Provider, Shape

SHORT_MS = 2.0  # calls below this are timed as graph replays too: launches would be most of their time
OURS = "ours"


@dataclass(frozen=True)
class Method:
    """How to measure.

    Args:
        device: where; threads: of torch on the CPU.
        seconds: to spend on the samples of one case, all providers together.
        rounds: fewest and most turns of each provider.
        check_only: check, do not time.
        only: names of the providers to run; empty: all.
    """

    device: torch.device
    threads: int
    seconds: float = 3.0
    rounds: tuple[int, int] = (5, 50)
    check_only: bool = False
    only: frozenset[str] = frozenset()

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """torch.empty gives NaN: an element that a provider forgets to write fails its check."""
    before, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn)


def measure(op: Op, shape: Shape, method: Method, ceilings: Mapping[str, float]) -> dict[str, Any]:
    """Run one case.

    Returns:
        A record for the results file: what was measured, the floor, and per provider its status ("ok", "wrong",
        "failed", "out of memory" or "skipped"), error and, where it is ok, times in ms and extra memory.
    """
    torch.manual_seed(0)
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()  # every case compiles for its own shape, as a user's static shapes do
    device = method.device
    providers = {n: p for n, p in op.providers(shape, device).items() if not method.only or n in method.only}
    sets = [op.inputs(shape, device)]
    size = sum(value.nbytes for value in sets[0].values() if isinstance(value, torch.Tensor))
    if method.cuda and not method.check_only:
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        sets += [op.inputs(shape, device) for _ in range(min(7, math.ceil(2 * cache / max(size, 1)) - 1))]
    truths: dict[str, Outputs] = {}
    results = {name: _checked(op, name, provider, sets[0], truths) for name, provider in providers.items()}
    moved, flops = op.bytes(shape), op.flops(shape)
    floor, bound = limits.floor_ms(dict(ceilings), moved, flops, op.product)
    record: dict[str, Any] = {
        "op": op.name,
        "title": op.title,
        "case": str(shape),
        "shape": dict(shape.values),
        "axis": op.axis,
        "regime": shape.regime,
        "baseline": op.baseline,
        "floor": {"ms": floor, "bound": bound, "bytes": moved, "flops": flops, "formula": op.floor} if floor else None,
        "cached": method.cuda and size < 2 * torch.cuda.get_device_properties(device).L2_cache_size,
        "providers": results,
    }
    good = {name: provider for name, provider in providers.items() if results[name]["status"] == "ok"}
    if method.check_only or not good:
        return record
    for name, provider in list(good.items()):
        try:
            extra = extra_bytes(lambda p=provider: p.run(sets[0]), device)  # type: ignore[misc]
            results[name]["extra_mb"] = None if extra is None else extra / 1e6
        except Exception as failure:  # a peer that breaks must not take the others' results with it
            results[name] = _failure(failure)
            del good[name]
    samples, failures = interleaved(good, sets, method)
    for name, reason in failures.items():
        results[name] = _failure(reason)
        del good[name]
    for name in good:
        results[name] |= summary(samples[name], "median" if method.cuda else "min")
    if method.cuda:
        for name, replays in _graph_times(good, sets, method, results).items():
            results[name]["graph"] = summary(replays, "median")
    for name, provider in good.items():  # a provider that changed its inputs, or whose error moves, is wrong after all
        again = _checked(op, name, provider, sets[0], truths)
        if again["status"] != "ok":
            results[name] = again | {"note": f"right before it was timed, not after: {again.get('note', '')}"}
    record["targets"] = _targets(op.targets(shape, device), results)
    return record


def _checked(op: Op, name: str, provider: Provider, inputs: Inputs, truths: dict[str, Outputs]) -> dict[str, Any]:
    """Run a provider once and compare; truths are computed once a case."""
    if provider.skip:
        return {"status": "skipped", "note": provider.skip}
    key = name if provider.truth else ""
    if key not in truths:
        truths[key] = (provider.truth or op.truth)(inputs)
    try:
        if name == OURS:
            with poisoned_memory():
                _spoil(provider.run(inputs))
                error = op.error(provider.run(inputs), truths[key])
        else:
            error = op.error(provider.run(inputs), truths[key])
    except Exception as failure:
        return _failure(failure)
    result = {"status": "ok", "error": error, "tolerance": provider.tolerance}
    if not error <= provider.tolerance:  # NaN too
        result |= {"status": "wrong", "note": f"error {error:.1e}, at most {provider.tolerance:.0e} is allowed"}
    return result


def _spoil(outputs: Outputs) -> None:
    """Fill results with NaN: memory that is kept for the next call, which `poisoned_memory` does not reach."""
    for made in outputs:
        if made.is_floating_point():
            made.detach().fill_(math.nan)


def _failure(failure: Exception) -> dict[str, Any]:
    if isinstance(failure, torch.OutOfMemoryError):
        torch.cuda.empty_cache()
        return {"status": "out of memory"}
    return {"status": "failed", "note": f"{type(failure).__name__}: {str(failure)[:300]}"}


def interleaved(
    providers: Mapping[str, Provider], sets: Sequence[Inputs], method: Method
) -> tuple[dict[str, list[tuple[float, float]]], dict[str, Exception]]:
    """(wall, processor) ms per provider and round, each round begun by another provider; and who broke down."""
    sample = _cuda_sample if method.cuda else _cpu_sample
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in providers}
    failures: dict[str, Exception] = {}

    def turn(number: int) -> None:
        names = [name for name in providers if name not in failures]
        first = number % max(len(names), 1)
        for name in names[first:] + names[:first]:
            try:
                times[name].append(sample(lambda n=name: providers[n].run(sets[number % len(sets)])))  # type: ignore[misc]
            except Exception as failure:
                failures[name] = failure

    for number in (0, 0):
        turn(number)  # warm-up; the second says how long a round takes
    low, high = method.rounds
    lasts = sum(samples[-1][0] for samples in times.values() if samples)
    times = {name: [] for name in providers}
    for number in range(min(high, max(low, int(method.seconds * 1e3 / max(lasts, 1e-6))))):
        turn(number)
    return times, failures


def _cpu_sample(run: Callable[[], object]) -> tuple[float, float]:
    begin, begin_cpu = time.perf_counter(), time.process_time()
    out = run()
    wall, cpu = time.perf_counter() - begin, time.process_time() - begin_cpu
    del out  # giving memory back is the next caller's business, not this one's time
    return wall * 1e3, cpu * 1e3


def _cuda_sample(run: Callable[[], object]) -> tuple[float, float]:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin_cpu = time.process_time()
    start.record()
    out = run()
    end.record()
    end.synchronize()
    cpu = time.process_time() - begin_cpu
    del out
    return start.elapsed_time(end), cpu * 1e3


def _graph_times(
    providers: Mapping[str, Provider], sets: Sequence[Inputs], method: Method, results: dict[str, dict[str, Any]]
) -> dict[str, list[tuple[float, float]]]:
    """ms a call in replays of a graph over all input sets, for the short ones; in turns again."""
    graphs: dict[str, torch.cuda.CUDAGraph] = {}
    for name, provider in providers.items():
        if not provider.graph or results[name]["ms"]["q50"] > SHORT_MS:
            continue
        try:
            graphs[name] = _captured(provider, sets)
        except RuntimeError as failure:  # host syncs cannot be captured
            results[name]["note"] = f"no graph: {str(failure).splitlines()[0][:120]}"
            torch.cuda.synchronize()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in graphs}
    for _ in range(method.rounds[1]):
        for name, graph in graphs.items():
            times[name].append(tuple(x / len(sets) for x in _cuda_sample(graph.replay)))  # type: ignore[arg-type]
    return times


def _captured(provider: Provider, sets: Sequence[Inputs]) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            provider.run(sets[0])
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for inputs in sets:
            provider.run(inputs)
    return graph


def summary(samples: Sequence[tuple[float, float]], headline: str) -> dict[str, Any]:
    """Quantiles of wall and processor ms; `time_ms` is what counts, `spread` how far, relatively, it may be off.

    The spread is half the distance of the 20 and 80 % quantiles for a median, and the distance of the 20 % quantile
    for a minimum.
    """
    wall, cpu = ([sample[i] for sample in samples] for i in (0, 1))
    ms = _quantiles(wall)
    if headline == "median":
        time_ms, spread = ms["q50"], (ms["q80"] - ms["q20"]) / 2
    else:
        time_ms, spread = ms["min"], ms["q20"] - ms["min"]
    return {
        "time_ms": time_ms,
        "headline": headline,
        "spread": spread / time_ms if time_ms else 0.0,
        "rounds": len(samples),
        "ms": ms,
        "cpu_ms": _quantiles(cpu),
    }


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    tensor = torch.tensor(values, dtype=torch.float64)
    low, mid, high = (tensor.quantile(q).item() for q in (0.2, 0.5, 0.8))
    return {"min": min(values), "q20": low, "q50": mid, "q80": high}


def _targets(wanted: Mapping[str, float], results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What ours should be and is, against each provider that has a target."""
    ours = results.get(OURS, {}).get("time_ms")
    found = {}
    for name, factor in wanted.items():
        theirs = results.get(name, {}).get("time_ms")
        if ours and theirs:
            found[name] = {"want": factor, "got": theirs / ours, "met": theirs / ours >= factor}
    return found


def problems(record: Mapping[str, Any]) -> list[str]:
    """What makes a case red: a wrong or broken provider, ours not run, a time under the floor on a GPU."""
    found = []
    for name, result in record["providers"].items():
        if result["status"] in ("wrong", "failed") or (name == OURS and result["status"] != "ok"):
            found.append(f"{record['op']} {record['case']}: {name} {result['status']}: {result.get('note', '')}")
        times = [part["time_ms"] for part in (result, result.get("graph", {})) if "time_ms" in part]
        timed = times and "graph" in result and record["floor"] and not record["cached"]  # the L2 can beat the memory
        if timed and min(times) < 0.95 * record["floor"]["ms"]:
            found.append(
                f"{record['op']} {record['case']}: {name} took {min(times):.4f} ms, under the floor of "
                f"{record['floor']['ms']:.4f} ms: the formula or the timing is wrong"
            )
    return found
