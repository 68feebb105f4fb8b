"""`omnitok compress`: fewer tokens in a file, decoded, inspected and shown."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from omnitok import Tokens
from omnitok.token_layout import TokenFile
from video.compress.files import read_compact


@pytest.fixture
def tokens(omnitok, clips, tmp_path: Path) -> Path:
    """Codes of a clip."""
    path = tmp_path / "clip.omni.safetensors"
    assert omnitok("tokenize", clips("steady.mp4"), "-o", path, "-q").status == 0
    return path


def test_a_share_of_the_tokens_is_kept_and_the_plan_is_written(omnitok, tokens: Path) -> None:
    run = omnitok("compress", tokens, "--method", "dycoke", "--budget", "0.25", "--json")
    (entry,) = run.json["files"]
    assert run.status == 0
    assert entry["kept"] == round(entry["total"] / 4)
    compact = Path(entry["output"])
    assert compact == tokens.with_name("clip.compact.omni.safetensors")
    assert compact.stat().st_size < tokens.stat().st_size
    full, kept = Tokens.load(tokens), read_compact(compact)
    rows = full.codes.flatten()
    assert torch.equal(kept.data, rows[kept.plan.place])  # each keeps the code of its own token
    assert kept.plan.facts() == {"method": "dycoke", "budget": 0.25, "options": {}}
    assert bool((kept.seconds.diff() >= 0).all())
    assert torch.equal(kept.seconds, full.pts[(4 * kept.positions[:, 0] - 3).clamp(min=0).long()])
    spread = Tokens.load(compact)
    assert spread.size == full.size
    assert torch.equal(spread.codes.flatten()[kept.plan.place], kept.data)
    assert set(spread.codes.flatten().tolist()) <= set(kept.data.tolist())


def test_inspect_shows_what_was_kept(omnitok, tokens: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.safetensors"
    words = ("--method", "evs", "--budget", "12", "-o", small)
    assert omnitok("compress", tokens, *words).status == 0
    data = omnitok("inspect", small, "--json").json
    assert data["num_tokens"] == 12
    assert data["plan"]["method"] == "evs"
    assert data["plan"]["total"] == 12 + data["plan"]["dropped"] + data["plan"]["merged"]
    assert sum(data["plan"]["kept_by_group"]) == 12
    out = omnitok("inspect", small).out
    assert "12 tokens" in out
    assert "by evs at budget 12" in out
    assert omnitok("inspect", tokens, "--json").json["plan"] is None


def test_a_compact_file_decodes_to_the_frames_of_the_source(
    omnitok, tokens: Path, tmp_path: Path
) -> None:
    import video

    small, decoded = tmp_path / "small.safetensors", tmp_path / "small.mp4"
    words = ("--method", "tome", "--budget", "0.5", "-o", small)
    assert omnitok("compress", tokens, *words).status == 0
    assert omnitok("decode", small, "-o", decoded).status == 0
    full = Tokens.load(tokens)
    clip = video.read(decoded)
    assert (len(clip.frames), *clip.frames.shape[2:]) == full.size
    assert (clip.pts - full.pts).abs().max() < 1e-3


def test_budget_1_keeps_every_token(omnitok, tokens: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.safetensors"
    assert omnitok("compress", tokens, "--budget", "1.0", "-o", small).status == 0
    assert torch.equal(Tokens.load(small).codes, Tokens.load(tokens).codes)


@pytest.mark.parametrize("source", [True, False])
def test_the_overlay_shows_on_the_frames_what_was_kept(
    omnitok, clips, tokens: Path, tmp_path: Path, source: bool
) -> None:
    import video

    small, overlay = tmp_path / "small.safetensors", tmp_path / "shown.mp4"
    words = ["--overlay", overlay, "-o", small]
    words += ["--source", clips("steady.mp4")] if source else []
    assert omnitok("compress", tokens, *words).status == 0
    shown = video.read(overlay)
    with TokenFile(small) as file:
        layout = file.layout
    assert (len(shown.frames), *shown.frames.shape[2:]) == layout.size
    if source:
        frames = video.read(clips("steady.mp4")).frames
        dropped = (layout.plan.source < 0).view(layout.grid)
        t, row, column = dropped.nonzero()[-1].tolist()
        ph, pw = layout.info.patch[1:]
        box = (slice(row * ph, (row + 1) * ph), slice(column * pw, (column + 1) * pw))
        before = frames[4 * t - 3][:, box[0], box[1]].float().mean()
        after = shown.frames[4 * t - 3][:, box[0], box[1]].float().mean()
        assert after == pytest.approx(float(before) / 4, abs=6)


def test_latents_are_merged(omnitok, clips, tmp_path: Path) -> None:
    path, small = tmp_path / "clip.omni.safetensors", tmp_path / "small.safetensors"
    assert omnitok("tokenize", clips("steady.mp4"), "-o", path, model="tiny-kl").status == 0
    words = ("--method", "tome", "--budget", "0.25", "-o", small)
    assert omnitok("compress", path, *words, model=None).status == 0
    kept, rows = read_compact(small), Tokens.load(path).latents.flatten(0, 2)
    assert float(kept.plan.size.sum()) == len(rows)
    source = kept.plan.source.long()
    assert bool((source >= 0).all())  # nothing is dropped, and sums stay what they were
    sums = torch.zeros(len(kept.data), rows.shape[1]).index_add(0, source, rows)
    torch.testing.assert_close(sums / kept.plan.size[:, None], kept.data, atol=1e-4, rtol=1e-4)


def test_a_folder_is_compressed_once(omnitok, tokens: Path) -> None:
    first = omnitok("compress", tokens.parent, "--json").json
    again = omnitok("compress", tokens.parent, "--json").json
    assert (first["done"], again["done"], again["skipped"]) == (1, 0, 1)


def test_the_methods_are_listed(omnitok) -> None:
    data = omnitok("compress", "--methods", "--json", model=None).json
    assert {"method": "tome", "needs": "tokens"}.items() <= next(
        m for m in data["methods"] if m["method"] == "tome"
    ).items()
    assert "visionzip" in omnitok("compress", "--methods", model=None).out


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--method", "nothing"], 2, "--method nothing is unknown; choose one of"),
        (["--method", "dicoke"], 2, "--method dicoke is unknown; did you mean 'dycoke'?"),
        (["--method", "visionzip"], 2, "needs attention, which no token file holds"),
        (["--set", "q=1"], 2, "dycoke has no such setting"),
        (["--method", "tome", "--set", "scope=both"], 3, "scope='both'"),
        (["--method", "tome", "--set", "metric=3"], 2, "tome has no such setting"),
        (["--method", "m3", "--set", "scale=0"], 2, "setting scale is 0; expected at least 1"),
        (["--set", "k=much"], 2, "setting k is 'much'; expected float"),
        (["--overlay", "a.mp4", "--source", "SOURCE"], 3, "leave --source out"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    omnitok, clips, tokens: Path, tmp_path: Path, words, status, message, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [str(clips("single.mp4")) if word == "SOURCE" else word for word in words]
    run = omnitok("compress", tokens, *words)
    assert run.status == status, run.err
    assert message in run.err
    assert "bug" not in run.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-o", "TOKENS", "--overwrite"], "would replace the tokens; give it another name"),
        (["-o", "link.safetensors", "--overwrite"], "would replace the tokens"),
        (["--overlay", "clip.mp4", "--source", "clip.mp4", "--overwrite"], "replace the source"),
        (["--overlay", "TOKENS", "--overwrite"], "would replace the tokens"),
        (["-o", "a.safetensors", "--overlay", "a.safetensors"], "would replace the output"),
        (["--overlay", "clip.mp4"], "clip.mp4 exists; pass --overwrite"),
        (["--overlay", "a.mp4", "--source", "none.mp4"], "none.mp4"),
        (["--overlay", "a.txt"], "unknown suffix '.txt'"),
        (["--model", "tiny-kl"], "load the tokenizer that made them"),
    ],
)
def test_nothing_that_is_read_or_there_is_replaced(
    omnitok, clips, tokens: Path, tmp_path: Path, words, message, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip.mp4").write_bytes(Path(clips("steady.mp4")).read_bytes())
    (tmp_path / "link.safetensors").symlink_to(tokens)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    model = {"model": None} if "--model" in words else {}
    words = [tokens if word == "TOKENS" else word for word in words]
    run = omnitok("compress", tokens, *words, **model)
    assert run.status == 3, run.err
    assert message in run.err
    assert "bug" not in run.err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_kept_output_says_that_there_is_no_overlay(omnitok, tokens: Path, tmp_path: Path) -> None:
    assert omnitok("compress", tokens).status == 0
    run = omnitok("compress", tokens, "--overlay", tmp_path / "shown.mp4")
    assert run.status == 0
    assert "pass --overwrite for the overlay as well" in run.err
    assert not (tmp_path / "shown.mp4").exists()


def test_stopping_while_it_writes_leaves_nothing(
    omnitok, tokens: Path, tmp_path: Path, monkeypatch
) -> None:
    from tools.commands.stopping import Stopped

    def stop(*_: object) -> None:
        raise Stopped(2)

    before = set(tmp_path.iterdir())
    for place in ("omnitok.token_file.os.fsync", "video.compress.files.to_rows"):
        with monkeypatch.context() as patched:
            patched.setattr(place, stop)
            assert omnitok("compress", tokens).status == 130
        assert set(tmp_path.iterdir()) == before


def test_the_overlay_holds_a_few_frames_at_a_time(
    omnitok, tokens: Path, tmp_path: Path, monkeypatch
) -> None:
    import weakref

    import video
    from omnitok.token_stream import TokenReader
    from video.compress import overlay

    alive: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
    most = [0]
    show = overlay.show_kept

    def spy(frame: torch.Tensor, *rest: object) -> torch.Tensor:
        alive.add(frame.untyped_storage())
        most[0] = max(most[0], len(alive))
        return show(frame, *rest)

    monkeypatch.setattr(overlay, "show_kept", spy)
    monkeypatch.setitem(TokenReader.__init__.__kwdefaults__, "groups", 1)  # 4 frames
    words = ("--overlay", tmp_path / "new" / "shown.mp4")
    assert omnitok("compress", tokens, *words).status == 0
    assert 0 < most[0] <= 2
    assert len(video.read(tmp_path / "new" / "shown.mp4").frames) > 8


def test_a_compact_file_is_not_compressed_again(omnitok, tokens: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.safetensors"
    assert omnitok("compress", tokens, "-o", small).status == 0
    run = omnitok("compress", small, "-o", tmp_path / "smaller.safetensors")
    assert run.status == 3
    assert "is a compact file" in run.err
    assert not (tmp_path / "smaller.safetensors").exists()


@pytest.mark.parametrize(
    "words", [["--budget", "0"], ["--budget", "1.5"], ["--budget", "nan"], ["--set", "k"]]
)
def test_budgets_and_settings_are_checked(omnitok, tokens: Path, words) -> None:
    with pytest.raises(SystemExit) as stopped:
        omnitok("compress", tokens, *words)
    assert stopped.value.code == 2


def test_the_result_is_the_same_twice(omnitok, tokens: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        omnitok("compress", tokens, "-o", tmp_path / f"{name}.safetensors", "--method", "tome")
    a, b = (tmp_path / f"{name}.safetensors" for name in ("a", "b"))
    assert a.read_bytes() == b.read_bytes()
    with TokenFile(a) as file:
        assert json.loads(json.dumps(file.facts))["plan"]["method"] == "tome"


@pytest.fixture
def judge(monkeypatch, tmp_path: Path) -> None:
    """Two judges only: one that looks for bright clips, one whose network is not there."""
    from tools.commands import compress_eval
    from tools.judge_labels import MobileNetLabel
    from tools.judges import Column, percent

    class Bright:
        name, empty = "brightness", "no light"
        columns = (Column("brighter", "got brighter", percent),)

        def __init__(self, device: str) -> None:
            assert device

        def compare(self, full, compact) -> dict[str, float]:
            assert full.dtype == compact.dtype == torch.uint8
            assert full.shape == compact.shape
            light = float(full.max()) > 64
            return {"brighter": float(compact.amax() > full.amax())} if light else {}

    monkeypatch.setenv("OMNITOK_FEATURES", str(tmp_path / "none"))
    monkeypatch.setattr(compress_eval, "judge_kinds", lambda: (Bright, MobileNetLabel))


def test_eval_compress_makes_a_table_and_a_plot(omnitok, clips, tmp_path: Path, judge) -> None:
    words = ("--budget", "0.25", "--budget", "1.0", "--method", "dycoke", "--method", "tome")
    words += ("--frames", "9", "--size", "48", "-o", tmp_path / "out")
    for model in (None, "tiny-kl"):
        run = omnitok(
            "eval-compress",
            clips("steady.mp4"),
            *words,
            "--json",
            *(("--model", model) if model else ()),
            **({} if model is None else {"model": None}),
        )
        assert run.status == 0, run.err
        rows = run.json["undone"]
        assert [(r["method"], r["budget"]) for r in rows] == [
            ("dycoke", 0.25),
            ("dycoke", 1.0),
            ("tome", 0.25),
            ("tome", 1.0),
        ]
        quarter, whole = rows[0], rows[1]
        assert quarter["kept"] == pytest.approx(0.25, abs=0.01)
        assert whole["kept"] == 1
        assert whole["psnr"] == 100  # nothing was lost
        assert quarter["psnr"] < 100
        assert whole["brighter"] == 0
        assert whole["num_judged"] == {"brighter": 1, "same_label": 0}
        assert quarter["same_label"] is None
        assert run.json["judges"]["brightness"] is None
        assert "python -m tools.feature_nets" in run.json["judges"]["MobileNetV2"]
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| dycoke | 0.25" in table
    header, *rows = (tmp_path / "out" / "table.csv").read_text().splitlines()
    assert header.startswith("method,budget,kept,seconds,psnr,source_psnr,brighter,same_label")
    assert [row.split(",")[:2] for row in rows[:2]] == [["dycoke", "0.25"], ["dycoke", "1.0"]]
    plot = (tmp_path / "out" / "plot.svg").read_text()
    assert plot.startswith("<svg")
    assert plot.count("<polyline") == 2


def test_eval_compress_says_what_judges_could_not_judge(
    omnitok, clips, tmp_path: Path, judge
) -> None:
    dark = tmp_path / "dark.png"
    Image.new("RGB", (48, 48)).save(dark)
    words = ("--budget", "0.5", "--method", "tome", "--frames", "5", "--size", "48")
    run = omnitok("eval-compress", clips("steady.mp4"), dark, *words, model="tiny-kl")
    assert run.status == 0, run.err
    head, _, row, *text = run.out.splitlines()
    assert "| got brighter | same label (MobileNetV2) |" in head
    assert row.split("|")[-2].strip() == "-"
    assert row.split("|")[-3].strip().endswith("%")
    assert "brightness: no light in 1 of 2 clips." in text
    assert any(line.startswith("No MobileNetV2: ") for line in text)
    alone = omnitok("eval-compress", dark, *words, model="tiny-kl")
    assert alone.out.splitlines()[2].split("|")[-3].strip() == "no light"


def test_eval_compress_runs_a_language_model(omnitok, clips, monkeypatch, judge) -> None:
    import transformers
    from llm_models import MAKERS

    tiny = MAKERS["llava_onevision"]()

    class Inputs(dict):
        def to(self, device: str) -> "Inputs":
            return self

    class Processor:
        def apply_chat_template(self, messages, add_generation_prompt: bool) -> str:
            return messages[0]["content"][1]["text"]

        def __call__(self, text, videos, return_tensors: str) -> Inputs:
            assert text == ["Why?"]
            assert videos[0].dtype == torch.uint8
            return Inputs(tiny.prompts([[5, 6], tiny.video(4), [7, 8]]))

    for name, made in (("AutoModelForImageTextToText", tiny.model), ("AutoProcessor", Processor())):
        monkeypatch.setattr(
            getattr(transformers, name), "from_pretrained", lambda *_, made=made, **__: made
        )
    words = ("--method", "fastv", "--method", "evs", "--budget", "0.25", "--frames", "5")
    run = omnitok(
        "eval-compress",
        clips("steady.mp4"),
        *words,
        "--llm",
        "some",
        "--question",
        "Why?",
        "--json",
    )
    assert run.status == 0, run.err
    rows = run.json["llm"]
    assert [r["method"] for r in rows] == ["none", "fastv", "evs"]
    assert [r["method"] for r in run.json["undone"]] == ["evs"]
    assert rows[0]["divergence"] == 0
    assert 0 < rows[2]["kept"] < rows[1]["kept"] < rows[0]["kept"] == 17
    assert (
        "first word"
        in omnitok(
            "eval-compress", clips("steady.mp4"), *words, "--llm", "some", "--question", "Why?"
        ).out
    )


def test_eval_compress_refuses_what_is_unknown(omnitok, clips, tmp_path: Path) -> None:
    run = omnitok("eval-compress", clips("steady.mp4"), "--method", "nothing")
    assert (run.status, "unknown" in run.err) == (2, True)
    run = omnitok("eval-compress", clips("steady.mp4"), "--llm", tmp_path / "nowhere")
    assert run.status == 2
    assert "cannot be loaded" in run.err
