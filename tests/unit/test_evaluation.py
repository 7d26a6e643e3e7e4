"""Evaluation: figures against transformers' and by hand; what can't be read is named."""

import json
import math

import numpy as np
import pytest
import torch
import yaml
from support import llama_files
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from sordino.cli.main import app
from sordino.client.adapter_files import save_adapter
from sordino.client.data.records import Record
from sordino.client.data.tokens import TokenizerFile
from sordino.client.device.energy import Gauge
from sordino.client.evaluation.answers import _f1, _until, answer, log_likelihoods
from sordino.client.evaluation.card import NEW, measure_card
from sordino.client.evaluation.pairs import prefer, read_pairs
from sordino.client.evaluation.perplexity import group_figures
from sordino.client.evaluation.subject import bare
from sordino.client.evaluation.tasks import Item, Task, read_task
from sordino.client.model.store import open_base, resolve_model
from sordino.core.adapters import adapter_manifest
from sordino.core.config import LoraConfig, ModelConfig
from sordino.core.errors import ConfigError, DataError

LORA = LoraConfig(rank=4, alpha=8.0)
ROWS = [
    {"question": "one two", "options": ["three", "four", "fish"], "answer": 1, "said": ["four"]},
    {"question": "a b c", "options": ["d", "e", "f"], "answer": 0, "said": ["d", "D."]},
]
CHOICE = {
    "task": "choice",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}},
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "options",
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc"}],
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A float32 GGUF file, transformers' own reading of it, and our subject."""
    folder = tmp_path_factory.mktemp("world")
    path = llama_files.write_gguf(folder / "tiny.gguf", "F32")
    files = resolve_model(ModelConfig(name=str(path)), folder / "cache")
    reference = llama_files.write_folder(folder / "hf")
    model = AutoModelForCausalLM.from_pretrained(reference).eval()
    return files, model, bare(open_base(files).decoder, TokenizerFile.load(files.tokenizer))


def written(folder, **changes):
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    path = folder / "task.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in {**CHOICE, **changes}.items() if v != "-"}))
    return path


def reference_log_likelihood(model, ids, start):
    with torch.no_grad():
        scores = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return float(sum(scores[place - 1, ids[place]] for place in range(start, len(ids))))


def test_perplexity_by_group_is_transformers_own(world):
    _, model, subject = world
    groups = {"b": [Record(text="to be")], "a": [Record(text="or not"), Record(text="that is it")]}
    all_of, of_a, of_b = group_figures(subject, groups, 64)
    losses = {}
    for name, records in groups.items():
        encoded = subject.tokenizer.encode_records(records, 64).records
        total = sum(reference_log_likelihood(model, r.ids.tolist(), 1) for r in encoded)
        losses[name] = -total, sum(r.targets for r in encoded)
    for figures, (loss, tokens) in ((of_a, losses["a"]), (of_b, losses["b"])):
        assert figures.tokens == tokens
        assert figures.loss == pytest.approx(loss / tokens, rel=1e-5)
        assert figures.perplexity == pytest.approx(math.exp(loss / tokens), rel=1e-4)
    whole = sum(loss for loss, _ in losses.values()) / sum(n for _, n in losses.values())
    assert all_of.loss == pytest.approx(whole, rel=1e-5)
    assert (all_of.group, of_a.group, all_of.records) == ("all", "a", 3)


def test_a_record_without_a_token_is_told_not_counted(world):
    figures = group_figures(world[2], {"a": [Record(text="x"), Record(text="y")]}, 2)[0]
    assert figures.records + figures.left_out == 2
    empty = group_figures(world[2], {"a": []}, 64)
    assert empty[0].loss is None
    assert empty[1].perplexity is None


def test_choices_are_judged_as_by_hand(world, tmp_path):
    _, model, subject = world
    task = read_task(written(tmp_path))
    expected_acc = expected_norm = 0
    for item in task.items:
        encode = subject.tokenizer.encode_beginning
        start = len(encode(item.text))  # a byte is a token here: nothing joins across the seam
        likely = np.array([
            reference_log_likelihood(model, encode(item.text + choice), start)
            for choice in item.choices
        ])  # fmt: skip
        ours = log_likelihoods(subject, item.text, item.choices)
        np.testing.assert_allclose(ours, likely, rtol=1e-5)
        lengths = [len(choice.encode()) for choice in item.choices]
        expected_acc += likely.argmax() == item.answer
        expected_norm += (likely / lengths).argmax() == item.answer
    acc, norm = answer(subject, task).measures
    assert (acc.name, acc.value * 2) == ("acc", expected_acc)
    assert (norm.name, norm.value * 2) == ("acc_norm", expected_norm)
    assert acc.low <= acc.value <= acc.high


def test_written_answers_are_judged_as_squad_does(world, tmp_path):
    path = written(
        tmp_path, output_type="generate_until", doc_to_choice="-", doc_to_target="said",
        generation_kwargs={"until": ["."], "max_gen_toks": 5},
    )  # fmt: skip
    task = read_task(path)
    assert (task.until, task.most, task.items[1].answers) == ((".",), 5, ("d", "D."))
    exact, f1 = answer(world[2], task).measures
    assert (exact.name, f1.name) == ("exact_match", "f1")
    assert 0 <= exact.value <= f1.value <= 1
    item = Item(text="", answers=("The Tower of London",))
    assert _f1("tower of london!", item) == 1.0
    assert _f1("a tower", item) == pytest.approx(0.5)
    assert _f1("", item) == 0.0
    assert _until("one. two", (".", "")) == "one"


def test_pairs_of_both_forms(world, tmp_path):
    crows = tmp_path / "crows.csv"
    crows.write_text("sent_more,sent_less,bias_type\nhe is,she is,gender\nold one,new one,age\n")
    pairs = read_pairs(crows)
    figures = prefer(world[2], "crows", pairs)
    names = [m.name for m in figures.measures]
    assert names == ["stereotype", "stereotype.age", "stereotype.gender"]
    likely = [
        [reference_log_likelihood(world[1], world[2].tokenizer.encode_beginning(s), 1)
         for s in (p.more, p.less)] for p in pairs
    ]  # fmt: skip
    assert figures.measures[0].value == np.mean([more > less for more, less in likely])
    sentences = [
        {"sentence": "x", "gold_label": "stereotype"},
        {"sentence": "y", "gold_label": "anti-stereotype"},
        {"sentence": "z", "gold_label": "unrelated"},
    ]
    stereoset = tmp_path / "stereoset.json"
    item = {"bias_type": "race", "sentences": sentences}
    stereoset.write_text(json.dumps({"data": {"intrasentence": [item]}}))
    assert [(p.about, p.more, p.less) for p in read_pairs(stereoset)] == [("race", "x", "y")]
    crows.write_text("other\n1\n")
    with pytest.raises(DataError, match="sent_more"):
        read_pairs(crows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fewshot_split": "train"}, "fewshot_split"),
        ({"output_type": "loglikelihood_rolling"}, "output_type"),
        ({"dataset_path": "super_glue"}, "nothing is downloaded"),
        ({"dataset_kwargs": {}}, "data_files"),
        ({"doc_to_text": "-"}, "doc_to_text"),
        ({"doc_to_text": "{{question | nonsense}}"}, "item 1: doc_to_text"),
        ({"doc_to_choice": "question"}, "two choices"),
        ({"doc_to_target": "question"}, "doc_to_target"),
        ({"output_type": "generate_until", "generation_kwargs": {"do_sample": True}}, "do_sample"),
        ({"output_type": "generate_until", "generation_kwargs": {"max_gen_toks": 0}}, "max_gen"),
    ],
    ids=str,
)
def test_a_task_that_can_not_be_read_is_refused_by_its_key(changes, message, tmp_path):
    with pytest.raises(DataError, match=message):
        read_task(written(tmp_path, **changes))


def test_templates_can_not_reach_out(tmp_path):
    with pytest.raises(DataError):
        read_task(written(tmp_path, doc_to_text="{{question.__class__.__mro__}}"))


def test_a_limit_takes_the_first(tmp_path):
    task = read_task(written(tmp_path), limit=1)
    assert [item.text for item in task.items] == ["one two"]
    assert isinstance(task, Task)


def test_the_card_adds_up(world):
    files, _, subject = world
    spent = iter(range(1000))
    card = measure_card(subject, files, runs=2, gauge=Gauge("rapl", joules=lambda: next(spent)))
    assert card.parameters == sum(m.rows * m.columns for m in subject.decoder.matrices.values())
    assert card.compression == pytest.approx(2 * card.parameters / files.weights.stat().st_size)
    assert card.joules_per_token == pytest.approx(1 / (2 * NEW))
    assert min(card.first_token_s, card.tokens_per_s, card.peak_mb) > 0


def test_the_command_sets_adapters_beside_their_base(world, tmp_path, monkeypatch):
    files = world[0]
    monkeypatch.setenv("SORDINO_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    manifest = adapter_manifest(files.config, LORA)
    for number in (1, 2):
        tensors = {s.name: rng.normal(0, 0.2, s.shape).astype(np.float32) for s in manifest.tensors}
        save_adapter(tmp_path / "run/state/private" / f"round-000{number}", tensors, LORA, "x/y")
    (tmp_path / "data.jsonl").write_text('{"user": "a", "text": "some words"}\n')
    command = ["evaluate", str(tmp_path / "run"), "--model", str(files.weights)]
    done = CliRunner().invoke(
        app, [*command, "--data", str(tmp_path / "data.jsonl"), "--format", "json"]
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [one["subject"] for one in found] == ["base", "run, round-0001", "run, round-0002"]
    assert len({one["groups"][0]["loss"] for one in found}) == 3
    for wrong, message in (
        (["evaluate", "--model", str(files.weights)], "nothing is asked"),
        (["evaluate", "--card"], "give --model"),
        (["evaluate", str(tmp_path), "--card"], "an adapter's"),
    ):
        refused = CliRunner().invoke(app, wrong)
        assert isinstance(refused.exception, ConfigError)
        assert message in str(refused.exception)
