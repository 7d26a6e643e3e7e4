"""Train `pocket`, the small model that the package carries, on Shakespeare's public plays.

    python tools/train_pocket.py --work build/pocket
    python tools/export_pocket.py --work build/pocket

The first command trains (about twenty minutes on two cores that compute in bf16; `--float32` where
they don't) and leaves `checkpoint.pt`, `tokenizer.json` and `log.jsonl`. The second quantizes and
writes the files of the package. The histories, whose roles are the demo's clients, are never
trained on; neither are the last 5 % of each public play's speeches.

A document is a passage of a scene, as it is printed: speakers' names and their speeches, between
begin and end tokens. As with real base models, what a client has (a speech by itself) is
something it has not seen. Documents are packed into rows under a mask that keeps each
one to itself.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from sordino.client.data import shakespeare

ROW = 256
VOCABULARY = 4096
END_OF_TEXT, BOS, EOS = "<|endoftext|>", "<|bos|>", "<|eos|>"
END_OF_TEXT_ID, BOS_ID, EOS_ID = 0, 1, 2
HELD_OUT = 0.05
IGNORED = -100

Scenes = list[list[shakespeare.Speech]]
Optimizers = Sequence[torch.optim.Optimizer]
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def split_plays() -> tuple[Scenes, list[str]]:
    """The scenes to train on, and the held-out speeches: the last part of every public play."""
    scenes: Scenes = []
    held_out: list[str] = []
    for play in shakespeare.public_plays():
        speeches = shakespeare.speeches(play)
        cut = len(speeches) - math.ceil(HELD_OUT * len(speeches))
        held_out += [s.text for s in speeches[cut:]]
        by_scene: dict[int, list[shakespeare.Speech]] = {}
        for speech in speeches[:cut]:
            by_scene.setdefault(speech.scene, []).append(speech)
        scenes += by_scene.values()
    return scenes, held_out


def train_tokenizer(texts: Sequence[str]) -> Tokenizer:
    """A byte-level BPE of `VOCABULARY` tokens, in the form that GGUF calls gpt2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """One text between the begin and the end token, as a client's record is encoded."""
    return [BOS_ID, *tokenizer.encode(text, add_special_tokens=False).ids, EOS_ID]


def pieces(ids: list[int]) -> Iterator[list[int]]:
    """Cut a document into pieces that fit a row."""
    for start in range(0, len(ids), ROW):
        if len(ids) - start > 1:
            yield ids[start : start + ROW]


def passages(
    tokenizer: Tokenizer, scene: list[shakespeare.Speech], rng: np.random.Generator
) -> Iterator[list[int]]:
    """Consecutive speeches of a scene with their speakers, from a random speech on."""
    text = ""
    for speech in scene[int(rng.integers(0, min(4, len(scene)))) :]:
        addition = f"{speech.role}\n{speech.text}\n\n"
        if text and len(encode(tokenizer, text + addition)) > ROW:
            yield from pieces(encode(tokenizer, text.strip()))
            text = ""
        text += addition
    if text:
        yield from pieces(encode(tokenizer, text.strip()))


def documents(tokenizer: Tokenizer, scenes: Scenes, rng: np.random.Generator) -> list[list[int]]:
    """The documents of one epoch, shuffled."""
    found = [passage for scene in scenes for passage in passages(tokenizer, scene, rng)]
    return [found[i] for i in rng.permutation(len(found))]


def pack(docs: Sequence[list[int]], open_rows: int = 32) -> Iterator[list[list[int]]]:
    """Fill rows of at most `ROW` tokens, first fit among the open ones."""
    rows: list[list[list[int]]] = []
    room: list[int] = []
    for doc in docs:
        place = next((i for i, free in enumerate(room) if free >= len(doc)), None)
        if place is None:
            if len(rows) == open_rows:
                fullest = room.index(min(room))
                room.pop(fullest)
                yield rows.pop(fullest)
            rows.append([])
            room.append(ROW)
            place = len(rows) - 1
        rows[place].append(doc)
        room[place] -= len(doc)
    yield from rows


def tensors(rows: Sequence[list[list[int]]]) -> Batch:
    """Tokens, labels, positions, and a mask under which each document sees only itself."""
    shape = (len(rows), ROW)
    ids, positions = np.full(shape, END_OF_TEXT_ID), np.zeros(shape, int)
    labels, owner = np.full(shape, IGNORED), np.zeros(shape, int)
    for r, docs in enumerate(rows):
        at = 0
        for number, doc in enumerate(docs, 1):
            span = slice(at, at + len(doc))
            ids[r, span], owner[r, span] = doc, number
            labels[r, at + 1 : at + len(doc)] = doc[1:]
            positions[r, span] = np.arange(len(doc))
            at += len(doc)
    same = owner[:, :, None] == owner[:, None, :]
    mask = (same & np.tril(np.ones((ROW, ROW), bool)))[:, None]
    return (
        torch.from_numpy(ids),
        torch.from_numpy(labels),
        torch.from_numpy(positions),
        torch.from_numpy(mask),
    )


def build_model(dropout: float) -> LlamaForCausalLM:
    """A Llama of 3.1 million parameters, with dropout where each block writes to the residual."""
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=6,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=ROW,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            bos_token_id=BOS_ID,
            eos_token_id=EOS_ID,
            pad_token_id=END_OF_TEXT_ID,
        )
    )

    def drop(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(output, dropout, training=model.training)

    model.model.embed_tokens.register_forward_hook(drop)
    for layer in model.model.layers:
        layer.self_attn.o_proj.register_forward_hook(drop)
        layer.mlp.down_proj.register_forward_hook(drop)
    return model


def loss_of(model: LlamaForCausalLM, batch: Batch, *, reduction: str, bf16: bool) -> torch.Tensor:
    """Cross-entropy of the labelled tokens of a packed batch."""
    ids, labels, positions, mask = batch
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = model(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
        ).logits[:, :-1]
    return nn.functional.cross_entropy(
        logits.flatten(0, 1).float(),
        labels[:, 1:].flatten(),
        ignore_index=IGNORED,
        reduction=reduction,
    )


@torch.no_grad()
def evaluate(model: LlamaForCausalLM, docs: Sequence[list[int]], *, bf16: bool) -> float:
    """Mean loss per token, in nats, of documents by themselves."""
    model.eval()
    rows = list(pack(docs))
    total, tokens = 0.0, 0
    for start in range(0, len(rows), 16):
        batch = tensors(rows[start : start + 16])
        total += float(loss_of(model, batch, reduction="sum", bf16=bf16))
        tokens += int((batch[1] != IGNORED).sum())
    model.train()
    return total / tokens


def optimizers(model: LlamaForCausalLM, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks; AdamW for the embedding and the norms."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    norms = [p for p in model.parameters() if p.ndim == 1]
    embedding = [model.model.embed_tokens.weight]
    groups = [{"params": embedding, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95)),
    ]


def schedule(step: int, steps: int, warm_up: int = 100) -> float:
    """Linear warm-up, then a cosine down to a hundredth."""
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))


def batches(
    tokenizer: Tokenizer, scenes: Scenes, rows: int, seed: int
) -> Iterator[tuple[int, Batch]]:
    """Packed batches without end, each with the number of its epoch."""
    epoch = 0
    while True:
        packed = list(pack(documents(tokenizer, scenes, np.random.default_rng([seed, epoch]))))
        order = np.random.default_rng([seed, epoch, 1]).permutation(len(packed))
        for start in range(0, len(order) - rows + 1, rows):
            yield epoch, tensors([packed[i] for i in order[start : start + rows]])
        epoch += 1


def sample_texts(texts: Sequence[str], count: int) -> list[str]:
    """A fixed sample, for figures while training."""
    chosen = np.random.default_rng(0).permutation(len(texts))[:count]
    return [texts[i] for i in chosen]


def save(path: Path, model: LlamaForCausalLM, tuned: Optimizers, step: int) -> None:
    """Write a checkpoint that a run can go on from; a crash leaves the one before."""
    state = {
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in tuned],
        "step": step,
    }
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def restore(path: Path, model: LlamaForCausalLM, tuned: Optimizers) -> int:
    """Take up a checkpoint; returns the steps that are done."""
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(tuned, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return int(state["step"])


def prepare(options: argparse.Namespace) -> tuple[Tokenizer, Scenes, dict[str, list[list[int]]]]:
    """The tokenizer, the scenes to train on, and samples of speeches to measure on."""
    scenes, held_out = split_plays()
    tokenizer = train_tokenizer([f"{s.role}\n{s.text}" for scene in scenes for s in scene])
    tokenizer.save(str(options.work / "tokenizer.json"))
    demo = [t for texts in shakespeare.roles(shakespeare.DEMO).values() for t in texts]
    checks = {
        name: [p for t in sample_texts(texts, 400) for p in pieces(encode(tokenizer, t))]
        for name, texts in {"public": held_out, "demo": demo}.items()
    }
    return tokenizer, scenes, checks


def train_step(
    model: LlamaForCausalLM, tuned: Optimizers, batch: Batch, rate: float, *, bf16: bool
) -> float:
    """One step; returns its loss."""
    for optimizer in tuned:
        for group in optimizer.param_groups:
            group["lr"] = rate
    loss = loss_of(model, batch, reduction="mean", bf16=bf16)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in tuned:
        optimizer.step()
        optimizer.zero_grad()
    return float(loss.detach())


def train(options: argparse.Namespace) -> None:
    """The whole run; leaves a checkpoint each `--every` steps and at the end."""
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    tokenizer, scenes, checks = prepare(options)
    model = build_model(options.dropout).train()
    tuned, bf16 = optimizers(model, options.rate), not options.float32
    checkpoint = options.work / "checkpoint.pt"
    done = restore(checkpoint, model, tuned) if options.resume else 0
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, step {done}", flush=True)
    stream = islice(batches(tokenizer, scenes, options.rows, options.seed), done, options.steps)
    started, running = time.monotonic(), []
    for step, (epoch, batch) in enumerate(stream, done + 1):
        rate = options.rate * schedule(step - 1, options.steps)
        running.append(train_step(model, tuned, batch, rate, bf16=bf16))
        if step % options.every == 0 or step == options.steps:
            entry = {name: evaluate(model, docs, bf16=bf16) for name, docs in checks.items()}
            entry |= {"train": sum(running) / len(running), "step": step, "epoch": epoch}
            entry["seconds"] = round(time.monotonic() - started)
            print(" ".join(f"{k} {v:.4g}" for k, v in entry.items()), flush=True)
            with (options.work / "log.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(entry) + "\n")
            save(checkpoint, model, tuned, step)
            running = []


def main() -> None:
    """Read the options and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/pocket"))
    parser.add_argument("--steps", type=int, default=860)
    parser.add_argument("--rows", type=int, default=16, help=f"rows of {ROW} tokens a step")
    parser.add_argument("--rate", type=float, default=4e-3, help="peak learning rate")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--every", type=int, default=250, help="steps between checkpoints")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    parser.add_argument("--float32", action="store_true", help="for cores without bf16 units")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
