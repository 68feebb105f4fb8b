"""Learned resamplers against recorded outputs of the published modules."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from video.compress import learned
from video.compress.learned.vistog import isolated

TOLERANCE = 2e-4


class Case:
    """One recorded case: settings, weights, inputs and outputs."""

    def __init__(self, path: Path, name: str) -> None:
        with safe_open(path, "pt") as file:
            self.settings = json.loads(file.metadata()["params"])[name]
            start = f"{name}."
            tensors = {
                k[len(start) :]: file.get_tensor(k) for k in file.keys() if k.startswith(start)
            }
        self.weights = {k[5:]: v for k, v in tensors.items() if k.startswith("in.w.")}
        self.inputs = {
            k[3:]: v for k, v in tensors.items() if k.startswith("in.") and k[3:5] != "w."
        }
        self.outputs = {k[4:]: v for k, v in tensors.items() if k.startswith("out.")}

    def width(self, name: str, axis: int = 0) -> int:
        return self.weights[name].shape[axis]


@pytest.fixture
def case(golden: Path) -> Callable[[str, str], Case]:
    def read(file: str, name: str) -> Case:
        return Case(golden / "compression" / f"{file}.safetensors", name)

    return read


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)


def linear(case: Case, name: str) -> dict[str, Tensor]:
    """A dense layer of flax, whose kernels are [in, out]."""
    return {"weight": case.weights[f"{name}/kernel"].T, "bias": case.weights[f"{name}/bias"]}


def norm(case: Case, name: str) -> dict[str, Tensor]:
    return {"weight": case.weights[f"{name}/scale"], "bias": case.weights[f"{name}/bias"]}


def masking(case: Case, name: str, mlp: str = "token_masking") -> dict[str, dict[str, Tensor]]:
    """Norm and MLP of a TokenLearner."""
    return {
        "norm": norm(case, f"{name}LayerNorm_0"),
        "masking.0": linear(case, f"{name}{mlp}/Dense_0"),
        "masking.2": linear(case, f"{name}{mlp}/Dense_1"),
    }


def mlp(case: Case, number: int, to: str, prefix: str = "") -> dict[str, dict[str, Tensor]]:
    return {
        f"{to}.0": linear(case, f"{prefix}MlpBlock_{number}/Dense_0"),
        f"{to}.2": linear(case, f"{prefix}MlpBlock_{number}/Dense_1"),
    }


def under(name: str, parts: dict[str, Any]) -> dict[str, Any]:
    return {f"{name}.{key}": value for key, value in parts.items()}


def loaded(module: nn.Module, parts: dict[str, dict[str, Tensor]]) -> Any:
    module.load_state_dict({f"{a}.{b}": v for a, ws in parts.items() for b, v in ws.items()})
    return module.eval()


@pytest.mark.parametrize("name", ["token_learner_v1_sum", "token_learner_v1_mean"])
def test_token_learner_by_convolutions(case: Any, name: str) -> None:
    c = case("token_learner_ttm", name)
    module = learned.TokenLearnerConv(
        c.inputs["x0"].shape[-1],
        c.settings["num_tokens"],
        mean=not c.settings["use_sum_pooling"],
    )
    convs = {
        f"convs.{i}": {"weight": c.weights[f"Conv_{i}/kernel"].permute(3, 2, 0, 1)}
        for i in range(4)
    }
    loaded(module, {"norm": norm(c, "LayerNorm_0"), **convs})
    close(module(c.inputs["x0"]), c.outputs["y0"])


def test_token_learner_by_an_mlp(case: Any) -> None:
    c = case("token_learner_ttm", "token_learner_v11")
    width = c.inputs["x0"].shape[-1]
    module = learned.TokenLearner(width, c.settings["num_tokens"], c.settings["bottleneck_dim"])
    loaded(module, masking(c, ""))
    close(module(c.inputs["x0"]), c.outputs["y0"])
    plan = learned.weights_plan(module.weights(c.inputs["x0"]))
    close(plan.apply(c.inputs["x0"]), c.outputs["y0"])


def test_token_learner_by_attention(case: Any) -> None:
    c = case("token_learner_ttm", "token_learner_mha")
    width = c.inputs["x0"].shape[-1]
    module = learned.TokenLearnerAttention(width, c.settings["num_tokens"], c.settings["num_heads"])
    kernels = [c.weights[f"attn/{n}/kernel"].flatten(1).T for n in ("query", "key", "value")]
    biases = [c.weights[f"attn/{n}/bias"].flatten() for n in ("query", "key", "value")]
    attn = {
        "in_proj_weight": torch.cat(kernels),
        "in_proj_bias": torch.cat(biases),
        "out_proj.weight": c.weights["attn/out/kernel"].flatten(0, 1).T,
        "out_proj.bias": c.weights["attn/out/bias"],
    }
    module.load_state_dict({"tokens": c.weights["tokens"][0], **under("attn", attn)})
    close(module(c.inputs["x0"]), c.outputs["y0"])


def test_token_fuser(case: Any) -> None:
    c = case("token_learner_ttm", "token_fuser")
    module = learned.TokenFuser(
        c.inputs["x0"].shape[-1], c.inputs["x0"].shape[1], c.settings["bottleneck_dim"]
    )
    parts = {
        "norm_in": norm(c, "fuser_mix_norm1"),
        "mix": linear(c, "Dense_0"),
        "norm_out": norm(c, "fuser_mix_norm2"),
        **masking(c, ""),
    }
    loaded(module, parts)
    close(module(c.inputs["x0"], c.inputs["x1"]), c.outputs["y0"])


def test_add_erase_write(case: Any) -> None:
    c = case("token_learner_ttm", "add_erase_write")
    module = learned.AddEraseWrite(
        c.inputs["x0"].shape[-1],
        c.inputs["x1"].shape[1],
        c.settings["num_tokens"],
        c.settings["bottleneck_dim"],
    )
    parts = {
        "norm_where": norm(c, "LayerNorm_0"),
        "norm_erase": norm(c, "LayerNorm_1"),
        "norm_add": norm(c, "LayerNorm_2"),
        **mlp(c, 0, "where"),
        **mlp(c, 1, "erase_tokens"),
        **mlp(c, 2, "erase"),
        **mlp(c, 3, "add_tokens"),
        **mlp(c, 4, "add"),
    }
    loaded(module, parts)
    close(module(c.inputs["x0"], c.inputs["x1"]), c.outputs["y0"])


def turing(c: Case, prefix: str, width: int, hidden: int) -> learned.TokenTuringMachine:
    layers = c.settings["num_layers"]
    module = learned.TokenTuringMachine(
        width,
        c.settings["memory_size"],
        c.settings["process_size"],
        mlp_hidden=hidden,
        layers=layers,
    )
    parts = {
        **under("read", masking(c, f"{prefix}TokenLearnerModuleV11_0/")),
        **under("write", masking(c, f"{prefix}TokenLearnerModuleV11_1/")),
    }
    for i in range(layers + 1):
        parts[f"process.norms.{i}"] = norm(c, f"{prefix}LayerNorm_{i}")
    for i in range(layers):
        parts |= mlp(c, i, f"process.mlps.{i}", prefix)
    return loaded(module, parts)


def test_turing_machine_step(case: Any) -> None:
    c = case("token_learner_ttm", "ttm_unit_TL_mlp")
    module = turing(c, "", c.inputs["x0"].shape[-1], c.settings["mlp_dim"])
    memory, out = module.step(c.inputs["x0"], c.inputs["x1"])
    close(memory, c.outputs["y0"])
    close(out, c.outputs["y1"])


def test_turing_machine_over_a_video(case: Any) -> None:
    c = case("token_learner_ttm", "ttm_encoder_TL_mlp")
    hidden = c.width("unit_function/MlpBlock_0/Dense_0/kernel", 1)
    module = turing(c, "unit_function/", c.inputs["x0"].shape[-1], hidden)
    close(module(c.inputs["x0"]), c.outputs["y0"])


@pytest.mark.parametrize("name", ["token_learner_attn", "token_learner_per_frame"])
def test_attention_pool_of_blip3_video(case: Any, name: str) -> None:
    c = case("blip3_video", name)
    module = learned.AttentionPool(c.settings["dim"], c.width("mlp.3.weight"))
    module.load_state_dict(c.weights)
    close(module(c.inputs["x"]), c.outputs["y"])


@pytest.mark.parametrize(
    ("name", "result"),
    [("ttm_concat", "concat"), ("ttm_final", "final"), ("ttm_memory_pos", "memory")],
)
def test_turing_machine_of_blip3_video(case: Any, name: str, result: str) -> None:
    c = case("blip3_video", name)
    module = learned.VideoTuringMachine(
        c.settings["dim"],
        c.width("initial_memory"),
        c.width("ttm_unit.read_layer.mlp.3.weight"),
        c.width("ttm_unit.output_layer.mlp.3.weight"),
        result,
        positions="pos_emb.inv_freq" in c.weights,
    )
    made = module.state_dict().get("pos_emb.inv_freq")
    if made is not None:
        close(made, c.weights["pos_emb.inv_freq"])
    module.load_state_dict(c.weights)
    close(module(c.inputs["x"])[:, None], c.outputs["y"])


def test_grouped_turing_machine_of_blip3_video(case: Any) -> None:
    c = case("blip3_video", "grouped_ttm")
    groups, memory, width = c.weights["initial_memory"].shape
    module = learned.GroupedTuringMachine(width, groups, memory)
    module.load_state_dict(c.weights)
    close(module(c.inputs["x"])[:, None], c.outputs["y"])


@pytest.mark.parametrize("name", ["g8_s2", "g6_s3"])
def test_token_packer(case: Any, name: str) -> None:
    c = case("tokenpacker", name)
    module = learned.TokenPacker(
        c.width("q_proj_1.weight", 1),
        c.width("k_proj_1.0.weight", 1),
        c.width("q_proj_1.weight"),
        c.width("mlp.2.weight"),
        c.settings["scale_factor"],
        c.settings["num_heads"],
    )
    module.load_state_dict(c.weights)
    close(module(c.inputs["x"], c.inputs["x_multi"]), c.outputs["y"])


@pytest.mark.parametrize("name", ["grid2", "grid3"])
def test_compressor_of_llava_mini(case: Any, name: str) -> None:
    c = case("llava_mini_resampler", name)
    module = learned.MiniCompressor(
        c.width("query", 1), c.settings["grid_size"], c.settings["num_heads"]
    )
    close(module.pos_embed, c.weights["pos_embed"])
    module.load_state_dict(c.weights)
    y, attention = module(c.inputs["x"])
    close(y, c.outputs["y"])
    close(attention, c.outputs["attn"])


def test_published_sizes_have_the_published_shapes() -> None:
    with torch.device("meta"):
        packer = learned.TokenPacker()
        assert packer(torch.empty(1, 576, 1024), torch.empty(1, 576, 4096)).shape == (1, 144, 4096)
        pool = learned.AttentionPool(3072, 128)
        assert pool(torch.empty(1, 8 * 128, 3072)).shape == (1, 128, 3072)
        ttm = learned.VideoTuringMachine(64)
        assert ttm(torch.empty(1, 8, 128, 64)).shape == (1, 8 * 16, 64)


def test_modules_known_from_papers_keep_what_the_papers_say() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 64, 16)
    pvc = learned.ProgressiveCompressor(16, 24, 2, layers=2, shuffle=4)
    assert torch.equal(pvc.layers[0](x), x)  # starts as the identity
    for layer in pvc.layers:
        nn.init.normal_(layer.step[-1].weight)
    later = x.clone()
    later[:, 3] = 0
    assert pvc(x).shape == (2, 5, 4, 24)
    torch.testing.assert_close(pvc(x)[:, :3], pvc(later)[:, :3])  # no frame sees a later one
    assert (pvc(x)[:, 4] - pvc(later)[:, 4]).abs().max() > 1e-3

    flex = learned.TokenFlex(16, 24, counts=(4, 16))
    assert flex(x[:, 0]).shape == (2, 16, 24)
    assert {flex(x[:, 0]).shape[1] for _ in range(20)} == {4, 16}  # training draws
    assert flex.eval()(x[:, 0], 4).shape == (2, 4, 24)

    lookup = learned.LookupViT(16, 2, depth=2, num_tokens=9)
    assert lookup(x[:, 0]).shape == (2, 9, 16)
    assert lookup(x[:, 0], 25).shape == (2, 25, 16)

    grouping = learned.VisualGrouping(16, 5).eval()
    assigned = grouping.assign(x[:, 1, :5], x[:, 0])
    assert torch.equal(assigned.sum(1), torch.ones(2, 64))
    assert grouping(grouping.append(x[:, 0])).shape == (2, 5, 16)
    allowed = isolated(3, 2)
    assert not allowed[:3, 3:].any()
    assert allowed[3:].all()

    registers = learned.Registers(16, 4, layers=1)
    seen: list[int] = []

    def block(y: Tensor) -> Tensor:
        seen.append(y.shape[1])
        return y

    prompt = torch.cat([x[:, 0, :2], registers.append(x[:, 0, :10]), x[:, 0, :3]], dim=1)
    out = registers(prompt, 2, 10, [block, block])
    assert seen == [19, 9]
    assert torch.equal(out, torch.cat([prompt[:, :2], prompt[:, 12:]], dim=1))


def test_gradients_of_learned_modules_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 4, 8, dtype=torch.float64, requires_grad=True)
    for module in (
        learned.TokenLearner(8, 2, 4),
        learned.AttentionPool(8, 2),
        learned.TokenLearnerAttention(8, 2, 2),
    ):
        assert torch.autograd.gradcheck(module.double(), x)


def test_frames_that_are_no_squares_are_refused() -> None:
    with pytest.raises(ValueError, match="no square of whole 2 x 2"):
        learned.TokenPacker(8, 8, 8, 8, heads=2)(torch.zeros(1, 9, 8), torch.zeros(1, 9, 8))
    with pytest.raises(ValueError, match="no square"):
        learned.MiniCompressor(8, heads=2)(torch.zeros(1, 10, 8))
    with pytest.raises(ValueError, match="write='both'"):
        learned.TokenTuringMachine(8, 4, 2, write="both")
