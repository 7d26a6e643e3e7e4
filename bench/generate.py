"""How fast text is written, beside transformers' `generate` on the same model in float32.

    python bench/generate.py [--model smollm2-135m] [--batch 1 16] [--threads 1 0] [--pairs 10]
                             [--prompt 64] [--new 64] [--weights half full] [--adapter] [--out F]

Greedy, no stop ids, so that all write the same number of tokens. Within one process they take
turns, so that a machine that slows down slows all; ratios are of one turn, and their interval is a
bootstrap over turns. Wall clock, and processor time of all threads, which says the same on a busy
machine with less noise. Threads 0: torch's default. transformers' model has the base's own weights,
dequantized to float32: those that it reads from the GGUF file itself, without the 40 s.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
import transformers

from sordino.client.generate import generate, prepare
from sordino.client.model.shapes import HEAD, block_matrices
from sordino.client.model.store import cache_root, open_base, resolve_model
from sordino.core.config import ModelConfig


def random_prompts(rows, tokens, vocabulary):
    """Prompts that differ from the first token on, so that no prefix is shared."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocabulary, (rows, tokens), generator=generator)


def random_adapter(model, rank=8):
    """An adapter on all linears, as large as a trained one."""
    rng = np.random.default_rng(0)
    tensors, base = {}, model.architecture.family.base
    for name, matrix in model.decoder.matrices.items():
        if ".layers." in f".{name}" or ".h." in f".{name}":
            stem = f"base_model.model.{base}.{name}.lora_"
            a, b = (rank, matrix.columns), (matrix.rows, rank)
            tensors[f"{stem}A.weight"] = rng.standard_normal(a).astype(np.float32) * 0.02
            tensors[f"{stem}B.weight"] = rng.standard_normal(b).astype(np.float32) * 0.02
    return tensors


def interval(ratios, seed=0):
    """Median of the ratios, and a 95 % bootstrap interval of it."""
    drawn = np.random.default_rng(seed).choice(ratios, (4000, len(ratios)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return statistics.median(ratios), float(low), float(high)


def seconds(run):
    """Wall clock and processor time of one call."""
    wall, busy = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - busy


def in_transformers(files, decoder):
    """Build transformers' model of a base, in float32."""
    arch, state = decoder.architecture, {}
    made = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**files.config), dtype=torch.float32
    )
    turned = set(block_matrices(arch)) if arch.family.transposed else set()
    for name, matrix in decoder.matrices.items():
        dense = matrix.dense().t() if name in turned else matrix.dense()
        state[f"{name}.weight" if name == HEAD else f"{arch.family.base}.{name}.weight"] = dense
    for name, vector in decoder.vectors.items():
        whole = f"{arch.family.base}.{name}"
        is_bias = name.endswith(".bias")
        state[whole if is_bias else f"{whole}.weight"] = (
            vector if is_bias else vector - arch.parts.gain_offset
        )
    missing, surplus = made.load_state_dict(state, strict=False)
    if surplus or set(missing) - {f"{HEAD}.weight"}:
        raise SystemExit(f"transformers' model differs: {missing} {surplus}")
    made.tie_weights()
    return made.eval()


def candidates(models, reference, prompts, new):
    """What is timed, the reference first: each a function without arguments."""
    ids = prompts.tolist()
    reference.generation_config.eos_token_id = None  # so that it writes as many as are asked for
    config = transformers.GenerationConfig(max_new_tokens=new, do_sample=False, pad_token_id=0)

    def theirs():
        with torch.inference_mode():
            reference.generate(
                input_ids=prompts,
                attention_mask=torch.ones_like(prompts),
                generation_config=config,
            )

    def ours(model):
        return lambda: generate(model, ids, max_new_tokens=new, batch_size=len(ids))

    return {"transformers": theirs} | {name: ours(model) for name, model in models.items()}


def compare(timed, pairs, tokens):
    """Time all in turns; tokens a second, and each one's speed over the first's."""
    took = {name: [] for name in timed}
    for turn in range(pairs + 1):
        for name, run in timed.items():
            spent = seconds(run)
            if turn:  # the first pays for memory
                took[name].append(spent)
        if turn:
            latest = "   ".join(f"{name} {values[-1][0]:.2f} s" for name, values in took.items())
            print(f"  turn {turn}: {latest}", file=sys.stderr, flush=True)
    first = next(iter(took.values()))
    return {name: figures(values, first, tokens) for name, values in took.items()}


def figures(values, first, tokens):
    """What one candidate's turns say, beside the first's."""
    found = {"tokens_per_s": tokens / statistics.median(wall for wall, _ in values)}
    for index, clock in enumerate(("wall", "processor")):
        mine, theirs = ([v[index] for v in turns] for turns in (values, first))
        ratio, low, high = interval([t / m for t, m in zip(theirs, mine, strict=True)])
        found[clock] = {"seconds": mine, "speed_ratio": ratio, "interval_95": [low, high]}
    return found


def report(batch, threads, results):
    """Print a line a candidate."""
    print(f"batch {batch}, {threads} thread{'s' if threads > 1 else ''}: speed over transformers'")
    for name, got in results.items():
        said = "   ".join(
            f"{clock} x {got[clock]['speed_ratio']:.2f} "
            f"({got[clock]['interval_95'][0]:.2f} to {got[clock]['interval_95'][1]:.2f})"
            for clock in ("wall", "processor")
        )
        print(f"  {name:16} {got['tokens_per_s']:7.1f} tokens/s   {said}", flush=True)


def machine():
    """What the figures were taken on."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cpus": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "load_1min": os.getloadavg()[0],
    }


def main():
    """Compare for every batch and number of threads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 0])
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--weights", nargs="+", default=["half"])
    parser.add_argument("--adapter", action="store_true", help="with an adapter over it too")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    default = torch.get_num_threads()
    files = resolve_model(ModelConfig(name=given.model), cache_root())
    decoder = open_base(files).decoder
    models, packing = {}, {}
    for form in given.weights:
        start = time.perf_counter()
        models[form] = prepare(decoder, weights=form)
        packing[form] = time.perf_counter() - start
        print(f"{form}: {models[form].nbytes / 1e6:.0f} MB, packed in {packing[form]:.1f} s")
    if given.adapter:
        first = next(iter(models))
        tensors = random_adapter(models[first])
        models[f"{first} + adapter"] = models[first].with_adapter(tensors, scale=2.0)
    reference = in_transformers(files, decoder)
    runs = []
    for threads in given.threads:
        torch.set_num_threads(threads or default)
        for batch in given.batch:
            prompts = random_prompts(batch, given.prompt, decoder.architecture.vocabulary)
            timed = candidates(models, reference, prompts, given.new)
            results = compare(timed, given.pairs, batch * given.new)
            report(batch, torch.get_num_threads(), results)
            runs.append({"batch": batch, "threads": torch.get_num_threads(), "results": results})
    written = {
        "model": given.model, "prompt": given.prompt, "new": given.new, "pairs": given.pairs,
        "packing_s": packing, "machine": machine(), "runs": runs,
    }  # fmt: skip
    if given.out:
        given.out.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
