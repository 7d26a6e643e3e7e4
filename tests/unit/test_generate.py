"""What is written equals what transformers writes, and doesn't depend on batch, prefix or cache."""

import dataclasses

import pytest
import torch
from support import families, written
from support.smollm2 import smollm2_files
from support.written import SCALE

from sordino.client.generate import (
    GREEDY,
    Sampling,
    generate,
    prefill,
    prepare,
    score,
    stream,
)
from sordino.client.generation.cache import KvCache, cache_bytes
from sordino.client.model.store import open_base
from sordino.core.errors import ConfigError, DataError, ModelError

NEW = 20
# Of a log-probability, in nats; logits here reach 10. In float32 1e-6 of the largest is measured.
EXACT = 1e-4
# Each weight is rounded to 11 bits. Measured over all families, adapted: 0.0032 nats at most,
# 0.0005 in the middle.
HALF = 0.01
CHANCE = Sampling(temperature=0.8, top_k=40, top_p=0.9)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return written.open_case(tmp_path_factory.mktemp("llama"), "llama", "Q4_1")


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    return written.open_case(tmp_path_factory.mktemp("gemma"), "gemma3", "Q8_0")


def ids_of(done):
    return [c.ids for c in done.completions]


def assert_greedy_equals_transformers(base, made) -> None:
    prompts = written.prompts()
    done = generate(written.model_of(base), prompts, max_new_tokens=NEW)
    assert ids_of(done) == [written.theirs(made, p, NEW) for p in prompts]


@pytest.mark.parametrize("case", families.CONFIGS)
def test_greedy_ids_equal_transformers_from_a_folder(tmp_path, case):
    assert_greedy_equals_transformers(*written.open_case(tmp_path, case))


@pytest.mark.parametrize("case", families.IN_GGUF)
def test_greedy_ids_equal_transformers_from_gguf(tmp_path, case):
    assert_greedy_equals_transformers(*written.open_case(tmp_path, case, "Q8_0"))


@pytest.mark.parametrize("case", families.CONFIGS)
def test_log_probs_equal_the_decoders_own_forward(tmp_path, case):
    base, _ = written.open_case(tmp_path, case)
    tensors = written.adapter(base)
    for adapter in (None, tensors):
        model = written.model_of(base, tensors=adapter)
        for prompt, one in zip(
            written.prompts(), generate(model, written.prompts(), max_new_tokens=NEW).completions,
            strict=True,
        ):  # fmt: skip
            plain = written.plain_log_probs(base, (*prompt, *one.ids), adapter)
            rows = plain[len(prompt) - 1 : -1]
            expected = rows.gather(1, torch.tensor(one.ids)[:, None]).squeeze(1)
            torch.testing.assert_close(torch.tensor(one.log_probs), expected, rtol=0, atol=EXACT)
            assert one.ids == tuple(rows.argmax(-1).tolist())


@pytest.mark.parametrize(("weights", "tolerance"), [("streamed", EXACT), ("half", HALF)])
@pytest.mark.parametrize("case", families.CONFIGS)
def test_every_form_of_the_weights_gives_the_same_log_probs(tmp_path, case, weights, tolerance):
    if weights not in written.FORMS:
        pytest.skip("this build of torch has no float16 products")
    base, _ = written.open_case(tmp_path, case)
    tensors, prompts = written.adapter(base), written.prompts((17, 5))
    wanted = written.prompts((30, 3), seed=1)
    full = score(written.model_of(base, "full", tensors), prompts, wanted)
    other = score(written.model_of(base, weights, tensors), prompts, wanted)
    torch.testing.assert_close(other, full, rtol=0, atol=tolerance)
    assert weights != "half" or not torch.equal(other[0], full[0])


@pytest.mark.parametrize("sampling", [GREEDY, CHANCE])
def test_a_batch_writes_what_each_prompt_alone_does(gemma, sampling):
    base, _ = gemma
    model, prompts = written.model_of(base), written.prompts()
    together = generate(
        model, prompts, max_new_tokens=NEW, sampling=sampling, stop_ids=range(100),
        generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(3)  # goes from one prompt to the next
    for prompt, one in zip(prompts, together.completions, strict=True):
        alone = generate(
            model, [prompt], max_new_tokens=NEW, sampling=sampling, stop_ids=range(100),
            generator=generator,
        ).completions[0]  # fmt: skip
        assert one.ids == alone.ids
        assert one.finish == alone.finish
        assert one.log_probs == pytest.approx(alone.log_probs, abs=EXACT)


def test_the_batch_size_changes_no_result(llama):
    model, prompts = written.model_of(llama[0]), written.prompts((9, 3, 9, 21, 2))
    results = []
    for size in (1, 2, 16):
        generator = torch.Generator().manual_seed(1)
        done = generate(
            model, prompts, max_new_tokens=NEW, sampling=CHANCE, batch_size=size,
            generator=generator,
        )  # fmt: skip
        results.append(ids_of(done))
    assert results[0] == results[1] == results[2]


def test_what_lies_beyond_a_rows_own_tokens_is_never_seen(gemma, monkeypatch):
    model, prompts = written.model_of(gemma[0]), written.prompts((30, 2, 11))
    clean = generate(model, prompts, max_new_tokens=NEW)
    made = KvCache.__init__

    def dirty(self, arch, rows, capacity):
        made(self, arch, rows, capacity)
        for layer in self.layers:
            layer.fill_(1e3)

    monkeypatch.setattr(KvCache, "__init__", dirty)
    assert ids_of(generate(model, prompts, max_new_tokens=NEW)) == ids_of(clean)


@pytest.mark.parametrize("case", ["llama", "gemma3", "gpt2", "gpt_neox", "qwen2-windows"])
def test_a_shared_prefix_changes_no_result(tmp_path, case, monkeypatch):
    base, _ = written.open_case(tmp_path, case)
    model = written.model_of(base)
    system = written.prompts((30,), seed=5)[0]
    prompts = [system + p for p in written.prompts((4, 1, 13))]
    alone = [generate(model, [p], max_new_tokens=NEW).completions[0] for p in prompts]
    found = generate(model, prompts, max_new_tokens=NEW)  # finds what is shared by itself
    given = generate(model, prompts, max_new_tokens=NEW, prefix=prefill(model, system))
    for done in (found, given):
        for one, plain in zip(done.completions, alone, strict=True):
            assert one.ids == plain.ids
            assert one.log_probs == pytest.approx(plain.log_probs, abs=EXACT)


def test_a_shared_prefix_is_computed_once(llama, monkeypatch):
    from sordino.client.generation import prompts as module

    model, seen = written.model_of(llama[0]), []
    forward = module.forward_segments

    def counted(model, ids, segments, cache):
        seen.append(len(ids))
        return forward(model, ids, segments, cache)

    monkeypatch.setattr(module, "forward_segments", counted)
    system = written.prompts((30,), seed=5)[0]
    prompts = [[*system, i] for i in range(8)]
    generate(model, prompts, max_new_tokens=2)
    assert seen == [30, 8]
    known = prefill(model, system)
    seen.clear()
    generate(model, prompts, max_new_tokens=2, prefix=known)
    generate(model, prompts[:1], max_new_tokens=2, prefix=known)
    assert seen == [8, 1]


def test_a_conversation_goes_on_from_what_is_known(llama):
    model = written.model_of(llama[0])
    first, second = written.prompts((20, 12))
    turn = prefill(model, first)
    longer = prefill(model, [*first, *second], after=turn)
    other = prefill(model, [*first[:5], *second], after=longer)
    for known, prompt in ((longer, [*first, *second, 1]), (other, [*first[:5], *second, 2])):
        assert known.ids == tuple(prompt[:-1])
        plain = generate(model, [prompt], max_new_tokens=NEW)
        reused = generate(model, [prompt], max_new_tokens=NEW, prefix=known)
        assert ids_of(reused) == ids_of(plain)


def test_a_prompt_that_parts_from_the_prefix_uses_only_what_it_shares(llama):
    model = written.model_of(llama[0])
    known = prefill(model, written.prompts((20,))[0])
    prompt = [*known.ids[:7], 3, 1, 4]
    with_it = generate(model, [prompt], max_new_tokens=NEW, prefix=known)
    assert ids_of(with_it) == ids_of(generate(model, [prompt], max_new_tokens=NEW))


def test_another_models_prefix_is_refused(llama):
    base, _ = llama
    model = written.model_of(base)
    adapted = model.with_adapter(written.adapter(base), scale=SCALE)
    with pytest.raises(ModelError, match="another adapter: call prefill again"):
        generate(adapted, [[1, 2]], max_new_tokens=1, prefix=prefill(model, [1]))


@pytest.mark.parametrize("case", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("targets", [("attention",), ("mlp",), None])
def test_an_adapter_on_some_linears_is_the_trained_one(tmp_path, case, targets):
    base, _ = written.open_case(tmp_path, case)
    # A llama's q and v without k leave a gap in the joined product.
    some = targets or (("q_proj", "v_proj", "up_proj") if case == "llama" else ("attention",))
    tensors = written.adapter(base, targets=some)
    prompt, wanted = written.prompts((9, 12))
    plain = score(written.model_of(base), [prompt], [wanted])[0]
    got = score(written.model_of(base, tensors=tensors), [prompt], [wanted])[0]
    expected = written.plain_log_probs(base, prompt + wanted, tensors)[len(prompt) - 1 : -1]
    expected = expected.gather(1, torch.tensor(wanted)[:, None]).squeeze(1)
    torch.testing.assert_close(got, expected, rtol=0, atol=EXACT)
    assert (got - plain).abs().max() > 0.01


def test_an_adapter_of_another_base_is_refused(llama):
    base, _ = llama
    model, tensors = written.model_of(base), written.adapter(base)
    alien = {name.replace("layers.0", "layers.9"): value for name, value in tensors.items()}
    with pytest.raises(ModelError, match=r"layers\.9.* belongs to no linear of this model"):
        model.with_adapter(alien, scale=1.0)
    narrow = {name: value[:-1] if "lora_B" in name else value for name, value in tensors.items()}
    with pytest.raises(ModelError, match=r"has shape .*: was it trained on another base"):
        model.with_adapter(narrow, scale=1.0)


def test_a_stop_id_ends_its_own_completion_only(llama):
    base, made = llama
    model, prompts = written.model_of(base), written.prompts()
    free = ids_of(generate(model, prompts, max_new_tokens=NEW))
    stop = free[0][4]
    done = generate(model, prompts, max_new_tokens=NEW, stop_ids=[stop])
    for prompt, before, one in zip(prompts, free, done.completions, strict=True):
        cut = before[: before.index(stop) + 1] if stop in before else before
        assert one.ids == cut == written.theirs(made, prompt, NEW, stop)
        assert one.finish == ("stop" if stop in before else "length")
    assert {c.finish for c in done.completions} == {"stop", "length"}


def test_a_seed_gives_the_same_sample_and_another_seed_another(llama):
    model, prompts = written.model_of(llama[0]), written.prompts()

    def sample(seed):
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        warm = Sampling(temperature=1.5)
        return ids_of(
            generate(model, prompts, max_new_tokens=NEW, sampling=warm, generator=generator)
        )

    assert sample(1) == sample(1) != sample(2)
    assert sample(None) != sample(None)


def test_a_stream_hands_out_step_by_step_what_generate_returns(llama):
    model, prompts = written.model_of(llama[0]), written.prompts()
    tokens = list(stream(model, prompts, max_new_tokens=3))
    assert [t.prompt for t in tokens] == [0, 1, 2, 3] * 3
    assert [t.finish for t in tokens] == [None] * 8 + ["length"] * 4
    done = generate(model, prompts, max_new_tokens=3)
    assert [t.id for t in tokens if t.prompt == 2] == list(done.completions[2].ids)
    half = stream(model, prompts, max_new_tokens=3)
    next(half)
    assert not torch.is_inference_mode_enabled()  # a stream's mode is its own


def test_timing_counts_all_tokens(llama):
    timing = generate(written.model_of(llama[0]), written.prompts(), max_new_tokens=5).timing
    assert timing.new_tokens == 20
    assert 0 < timing.first_token_s < timing.total_s
    assert timing.tokens_per_s == pytest.approx(20 / timing.total_s)


def test_many_continuations_of_one_prompt_are_scored_as_one_by_one(gemma):
    model = written.model_of(gemma[0])
    prompt = written.prompts((33,))[0]
    wanted = written.prompts((5, 1, 30, 12), seed=7)
    together = score(model, [prompt] * 4, wanted)
    for one, found in zip(wanted, together, strict=True):
        plain = written.plain_log_probs(gemma[0], prompt + one)[len(prompt) - 1 : -1]
        expected = plain.gather(1, torch.tensor(one)[:, None]).squeeze(1)
        torch.testing.assert_close(found, expected, rtol=0, atol=EXACT)


def test_long_prompts_are_cut_into_pieces_that_change_nothing(gemma, monkeypatch):
    from sordino.client.generation import prompts as module

    model, prompts = written.model_of(gemma[0]), written.prompts((40, 1, 25))
    wanted = written.prompts((30, 9, 2), seed=7)
    whole = generate(model, prompts, max_new_tokens=5), score(model, prompts, wanted)
    monkeypatch.setattr(module, "_PIECE", 7)
    cut = generate(model, prompts, max_new_tokens=5), score(model, prompts, wanted)
    assert ids_of(cut[0]) == ids_of(whole[0])
    torch.testing.assert_close(cut[1], whole[1], rtol=0, atol=EXACT)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"prompts": [[1], []]}, DataError, r"prompts\[1\] of at least one token"),
        ({"prompts": [[1, 260]]}, DataError, r"ids of prompts\[0\] in \[0, 260\), got 260"),
        ({"prompts": [[-1]]}, DataError, "got -1"),
        ({"prompts": [[1] * 126]}, ModelError, "has 126 tokens, and 3 more are asked for: .* 128"),
        ({"max_new_tokens": 0}, ConfigError, "max_new_tokens >= 1, got 0"),
        ({"batch_size": 0}, ConfigError, "batch_size >= 1, got 0"),
    ],
)
def test_impossible_requests_are_refused_at_once(llama, changes, error, message):
    request = {"prompts": [[1, 2]], "max_new_tokens": 3, **changes}
    with pytest.raises(error, match=message):
        stream(written.model_of(llama[0]), request.pop("prompts"), **request)


def test_scores_need_a_continuation_for_each_prompt(llama):
    model = written.model_of(llama[0])
    with pytest.raises(DataError, match="as many as prompts, 2, got 1"):
        score(model, [[1], [2]], [[3]])
    with pytest.raises(DataError, match=r"continuations\[0\] of at least one token"):
        score(model, [[1]], [[]])
    with pytest.raises(ModelError, match=r"prompt and continuation\[0\] has 129 tokens"):
        score(model, [[1] * 100], [[1] * 29])


def test_no_prompts_are_no_completions(llama):
    model = written.model_of(llama[0])
    assert generate(model, [], max_new_tokens=1, sampling=CHANCE).completions == ()
    assert score(model, [], []) == []


def test_the_caches_bytes_are_what_it_holds(llama):
    arch = llama[0].decoder.architecture
    cache = KvCache(arch, 3, 50)
    assert cache_bytes(arch, 3, 50) == sum(x.numel() * 4 for x in cache.layers)


def test_a_wrong_window_would_be_noticed(gemma):
    base, _ = gemma
    prompt = written.prompts((40,))[0]
    plain = generate(written.model_of(base), [prompt], max_new_tokens=NEW)
    model = written.model_of(base)
    wider = [dataclasses.replace(x, window=x.window and x.window + 1) for x in model.layers]
    wrong = generate(dataclasses.replace(model, layers=tuple(wider)), [prompt], max_new_tokens=NEW)
    gap = max(
        abs(a - b)
        for a, b in zip(plain.completions[0].log_probs, wrong.completions[0].log_probs, strict=True)
    )
    assert gap > 100 * EXACT


@pytest.fixture(scope="module")
def smollm2():
    """The real model, and what transformers reads from its file."""
    from transformers import AutoModelForCausalLM

    files = smollm2_files()
    made = AutoModelForCausalLM.from_pretrained(
        str(files.weights.parent), gguf_file=files.weights.name, dtype=torch.float32
    )
    return files, made.eval()


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["full", "half"])
def test_smollm2_writes_what_transformers_writes(smollm2, weights):
    from transformers import AutoTokenizer

    if weights not in written.FORMS:
        pytest.skip("this build of torch has no float16 products")
    files, made = smollm2
    tokenizer = AutoTokenizer.from_pretrained(files.tokenizer)
    texts = ["The capital of France is", "Once upon a time,", "def add(a, b):\n"]
    prompts = [tokenizer(text)["input_ids"] for text in texts]
    model = prepare(open_base(files).decoder, weights=weights)
    done = generate(model, prompts, max_new_tokens=24)
    for prompt, one in zip(prompts, done.completions, strict=True):
        assert one.ids == written.theirs(made, prompt, 24)
        with torch.no_grad():
            logits = made(input_ids=torch.tensor([[*prompt, *one.ids]])).logits[0]
        rows = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        expected = rows.gather(1, torch.tensor(one.ids)[:, None]).squeeze(1)
        # Thirty layers: 0.024 nats at most over 40 tokens of verse, 0.0015 in the middle.
        tolerance = 1e-3 if weights == "full" else 0.05
        torch.testing.assert_close(torch.tensor(one.log_probs), expected, rtol=0, atol=tolerance)
