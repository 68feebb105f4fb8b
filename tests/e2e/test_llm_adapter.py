"""Tokens of our own tokenizers into a language model."""

from collections.abc import Iterator

import pytest
import torch
from small_models import noise, small_tokenizer

from omnitok import Tokens
from video.compress.files import compress_tokens, whole_tokens
from video.llm import Adapter

LLAMA = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "bos_token_id": None,
    "eos_token_id": None,
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**LLAMA)).eval()


def clip(name: str, frames: int = 9, seed: int = 0) -> Tokens:
    tok = small_tokenizer(name)
    tokens = tok.tokenize(noise(frames, 32, 48, seed))
    tokens.pts = torch.arange(frames).double() / 25
    return tokens


@pytest.mark.parametrize("name", ["tiny", "tiny-kl"])
def test_whole_and_compact_tokens_become_embeddings(name: str) -> None:
    tokens = clip(name)
    tok = small_tokenizer(name)
    torch.manual_seed(0)
    adapter = Adapter(tokens.info, 32)
    whole = whole_tokens(tokens)
    few = compress_tokens(tokens, "evs", 0.25, load=lambda: tok)
    x, mask = adapter([whole, few])
    assert x.shape == (2, 72, 32)
    assert mask.sum(1).tolist() == [72, 18]
    assert not x[1, 18:].any()
    place = few.plan.place
    torch.testing.assert_close(x[1, :18], x[0, place])  # a pruned token is embedded as before
    alone, _ = adapter([few])
    torch.testing.assert_close(alone[0], x[1, :18])  # whatever else is in the batch


def test_time_and_place_are_told_apart_and_sizes_as_well() -> None:
    tokens = clip("tiny-kl")
    tokens.latents = torch.zeros_like(tokens.latents)  # nothing but places differs
    torch.manual_seed(0)
    adapter = Adapter(tokens.info, 32)
    x = adapter([whole_tokens(tokens)])[0][0]
    near = torch.cdist(x, x) + torch.eye(len(x))
    assert near.min() > 1e-3
    slow = clip("tiny-kl")
    slow.latents = torch.zeros_like(slow.latents)
    slow.pts = tokens.pts * 2
    assert (adapter([whole_tokens(slow)])[0][0] - x)[24:].abs().max() > 1e-3
    merged = compress_tokens(tokens, "tome", 0.5)
    y = adapter([merged])[0][0]
    assert (y - x[merged.plan.place]).abs().max() > 1e-3  # they stand for two


def test_prompts_of_unequal_length_are_padded_on_the_left(model) -> None:
    tokens = clip("tiny-kl")
    torch.manual_seed(0)
    adapter = Adapter(tokens.info, 32)
    clips = [whole_tokens(tokens), compress_tokens(tokens, "dycoke", 0.25)]
    prompts = [[5, 0, 6, 7], [8, 0, 9]]
    both = adapter.inputs(model, prompts, clips, 0)
    assert both["attention_mask"].sum(1).tolist() == [75, 20]
    with torch.no_grad():
        logits = model(**both).logits[:, -1]
        for number in range(2):
            one = adapter.inputs(model, prompts[number : number + 1], clips[number:][:1], 0)
            torch.testing.assert_close(
                model(**one).logits[0, -1], logits[number], atol=1e-5, rtol=0
            )
    made = model.generate(**{k: v for k, v in both.items()}, max_new_tokens=3, do_sample=False)
    assert made.shape == (2, 3)


def test_training_moves_the_adapter_and_lowers_the_loss(model) -> None:
    tokens = [clip("tiny", seed=seed) for seed in range(2)]
    tok = small_tokenizer("tiny")
    clips = [compress_tokens(t, "evs", 0.25, load=lambda: tok) for t in tokens]
    torch.manual_seed(0)
    adapter = Adapter(tokens[0].info, 32)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=2e-2)
    losses = []
    for _ in range(12):
        labels = [[-100, -100, 3], [-100, -100, 4]]
        inputs = adapter.inputs(model, [[0, 2, 3], [0, 2, 4]], clips, 0, labels)
        loss = model(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1
    assert all(p.grad is not None and bool(p.grad.any()) for p in adapter.down.parameters())


def test_what_does_not_fit_is_said_in_a_sentence(model) -> None:
    latents, codes = clip("tiny-kl"), clip("tiny")
    adapter = Adapter(latents.info, 32)
    with pytest.raises(ValueError, match="holds codes, but this adapter is for"):
        adapter([whole_tokens(codes)])
    with pytest.raises(ValueError, match="no clips"):
        adapter([])
    with pytest.raises(ValueError, match="prompt 0 has 2 placeholders"):
        adapter.inputs(model, [[0, 0]], [whole_tokens(latents)], 0)
    with pytest.raises(ValueError, match="2 prompts and 1 clips"):
        adapter.inputs(model, [[0], [0]], [whole_tokens(latents)], 0)
    with pytest.raises(ValueError, match="pass load"):
        compress_tokens(codes)


def test_the_worked_example_runs() -> None:
    from omnitok import load
    from tools.adapter_example import Learner, examples

    tok = load("tiny-kl")
    clips = list(examples(tok, 16, seed=0))
    assert {len(e.few.data) for e in clips} == {48}
    learner = Learner(tok, width=32)
    losses = [learner.step(clips, 16, size=8) for _ in range(16)]
    assert sum(losses[-4:]) < sum(losses[:4])
    kept, colour, way = learner.accuracy(clips, few=True)
    assert kept == 48
    assert 0 <= colour <= 1
    assert 0 <= way <= 1
