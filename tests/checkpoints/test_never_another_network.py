"""Every tensor of the trunk counts: it has its place in the model, or the file is refused, or `lenient` says what is missing."""

import argparse

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from overfocus import CheckpointError, load_model
from overfocus.checkpoints.build import build_empty, contradicted
from tests.scripts.layouts_made import SMALL, clip, compare, renamed, rotary_tables, without

IMAGES = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)


@pytest.fixture(scope="module")
def plain() -> nn.Module:
    torch.manual_seed(0)
    return VisionTransformer(**SMALL).eval()


def randomised(model: nn.Module) -> nn.Module:
    """Every parameter random, so that none is without effect."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator) + (parameter.ndim == 1) * 0.5)
    return model.eval()


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"init_values": 1e-5},
        {"qk_norm": True},
        {"init_values": 0.1, "qk_norm": True, "reg_tokens": 4},
        {"class_token": False, "global_pool": "avg"},
        {"class_token": False, "global_pool": "avg", "fc_norm": False},
        {"global_pool": "avg"},
        {"no_embed_class": True},
        {"no_embed_class": True, "reg_tokens": 2},
        {"pre_norm": True},
        {"qkv_bias": False},
        {"proj_bias": False},
        {"scale_attn_norm": True, "scale_mlp_norm": True},
        {"patch_size": 4},
        {"mlp_ratio": 3.0, "depth": 3},
        {"num_classes": 0},
        {"final_norm": False},
        {"global_pool": "map"},
        {"embed_dim": 384, "num_heads": 6, "depth": 1},
        {"in_chans": 1},
    ],
    ids=str,
)
def test_what_the_tensors_tell_is_built(arguments, write) -> None:
    model = randomised(VisionTransformer(**(SMALL | arguments)))
    loaded = load_model(write({"model": model.state_dict()}))
    assert (loaded.missing_keys, loaded.unexpected_keys, loaded.lenient) == ([], [], False)
    images = IMAGES[:, : loaded.input_size[0]]
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model(images), model(images), rtol=0, atol=0)
    assert any("assumed" in note and "heads" in note for note in loaded.notes)


@pytest.mark.parametrize("arguments", [{"init_values": 1e-5}, {"qk_norm": True}, {"reg_tokens": 4}, {"patch_size": 8}], ids=str)
@pytest.mark.parametrize("named", ["--model", "arch"])
def test_a_registered_name_gets_the_parts_that_its_tensors_show(arguments, named: str, write) -> None:
    model = randomised(timm.create_model("test_vit", **arguments))
    path = write({"state_dict": model.state_dict(), **({"arch": "test_vit"} if named == "arch" else {})})
    loaded = load_model(path, model="test_vit" if named == "--model" else None)
    images = torch.rand(1, *loaded.input_size)
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model(images), model(images), rtol=0, atol=0)
    assert any("as its tensors say" in note for note in loaded.notes)


KINDS = {
    "layer scale of one block": {"blocks.1.ls1.gamma": (192,)},
    "LoRA": {"blocks.0.attn.qkv.lora_A.weight": (4, 192), "blocks.0.attn.qkv.lora_B.weight": (576, 4)},
    "LoRA of another library": {"blocks.0.attn.qkv.linear_a_q.weight": (4, 192)},
    "adapter": {"blocks.0.adapter.down.weight": (2, 192), "blocks.0.adapter.up.weight": (192, 2)},
    "prompt tokens": {"prompt_embeddings": (1, 3, 192)},
    "scale and shift": {"blocks.0.ssf_scale_1": (192,), "blocks.0.ssf_shift_1": (192,)},
    "relative positions": {"blocks.0.attn.relative_position_bias_table": (49, 3)},
    "talking heads": {"blocks.0.attn.proj_l.weight": (3, 3), "blocks.0.attn.proj_w.weight": (3, 3)},
    "temperature of a head": {"blocks.0.attn.temperature": (3, 1, 1)},
    "gate": {"blocks.0.attn.gate": (1,)},
    "a norm more": {"blocks.0.norm3.weight": (192,), "blocks.0.norm3.bias": (192,)},
    "a second patch embedding": {"patch_embed2.proj.weight": (192, 3, 4, 4)},
    "another position table": {"pos_embed_spatial": (1, 16, 192)},
    "one value": {"alpha": ()},
    "rotary positions": {"rope.inv_freq": (32,)},
    "rotary tables of a block": {"blocks.0.attn.rope.freqs_cos": (16, 64)},
    "a mask": {"blocks.0.attn_mask": (17, 17)},
    "attention sink": {"blocks.0.attn.sink": (3,)},
    "attention over time": {"blocks.0.temporal_attn.qkv.weight": (576, 192)},
    "relative rows": {"blocks.0.attn.rel_pos_h": (7, 64)},
    "a pyramid": {"fpn1.0.weight": (192, 192, 2, 2)},
    "side information": {"sie_embed": (3, 1, 192)},
    "scales of a quantiser": {"blocks.0.attn.qkv.weight_fake_quant.scale": (1,)},
}


@pytest.mark.parametrize("asked", [None, "VisionTransformer"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("front", ["", "module.net."])
def test_parts_that_no_architecture_has_are_refused(kind: str, asked: str | None, front: str, plain, write) -> None:
    if asked and front:
        pytest.skip("the same path")
    more = {name: torch.rand(shape) for name, shape in KINDS[kind].items()}
    content = {"state_dict": {front + n: t for n, t in (plain.state_dict() | more).items()}, "args": {"model_kwargs": SMALL}}
    path = write(content)
    with pytest.raises(CheckpointError) as caught:
        load_model(path, model=asked, model_args=SMALL if asked else None)
    text = str(caught.value)
    assert "\n" not in text
    assert next(iter(more)) in text
    assert "--lenient" in text
    loaded = load_model(path, model=asked, model_args=SMALL if asked else None, lenient=True)
    assert loaded.lenient
    assert loaded.notes[0].startswith("LENIENT")
    assert next(iter(more)) in loaded.notes[0]
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model(IMAGES), plain(IMAGES), rtol=0, atol=0)


@pytest.mark.parametrize(
    "lost", ["norm.weight", "pos_embed", "cls_token", "blocks.1.norm2.bias", "blocks.0.attn.qkv.weight", "patch_embed.proj.bias"]
)
def test_every_tensor_of_the_trunk_must_be_there(lost: str, plain, write) -> None:
    state = {name: tensor for name, tensor in plain.state_dict().items() if name != lost}
    with pytest.raises(CheckpointError):
        load_model(write(state))
    with pytest.raises(CheckpointError, match="missing" if lost not in ("cls_token", "norm.weight") else "."):
        load_model(write(state), model="VisionTransformer", model_args=SMALL)


@pytest.mark.parametrize(
    "name",
    ["mask_token", "decoder_embed.weight", "decoder.blocks.0.attn.qkv.weight", "projector.0.weight", "head.mlp.0.weight",
     "predictor.0.weight", "lm_head.weight", "blocks.0.attn.relative_position_index", "dino_head.last_layer.weight_v"],
)  # fmt: skip
def test_what_cannot_change_the_encoder_is_left_out(name: str, plain, write) -> None:
    state = {key: tensor for key, tensor in plain.state_dict().items() if not key.startswith("head.")}
    loaded = load_model(write(state | {name: torch.ones(7, 192)}))
    assert not loaded.lenient
    assert loaded.num_classes == 0
    assert loaded.unexpected_keys == [name]
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model.forward_features(IMAGES), plain.forward_features(IMAGES), rtol=0, atol=0)


def test_heads_that_nothing_says_are_asked_for(write) -> None:
    model = randomised(VisionTransformer(**(SMALL | {"embed_dim": 96, "num_heads": 6})))
    path = write(model.state_dict())
    with pytest.raises(CheckpointError, match=r"--model-args num_heads=N \(it may be 1, 2, 3, 4, 6"):
        load_model(path)
    for said in ("num_heads=6", {"num_heads": 6}):
        loaded = load_model(path, model_args=said)
        with torch.inference_mode():
            torch.testing.assert_close(loaded.model(IMAGES), model(IMAGES), rtol=0, atol=0)
    loaded = load_model(write({"model": model.state_dict(), "args": argparse.Namespace(num_heads=6, lr=1)}))
    assert loaded.model.blocks[0].attn.num_heads == 6
    assert any("as the checkpoint's arguments say" in note for note in loaded.notes)


def scaled(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor + 1 for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    ("other", "first"),
    [
        ("teacher", "student"),
        ("model_ema", "model"),
        ("target_encoder", "online_encoder"),
        ("params_ema", "params"),
        ("ema.net", "net"),
    ],
)
def test_averaged_weights_of_equal_shapes_are_taken(other: str, first: str, plain, write) -> None:
    path = write({first: scaled(plain), other: plain.state_dict(), "epoch": 3})
    loaded = load_model(path)
    assert loaded.weights_entry == other
    assert first in loaded.notes[0]
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model(IMAGES), plain(IMAGES), rtol=0, atol=0)
    for options in ({"use_ema": False}, {"weights": first}):
        assert load_model(path, **options).weights_entry == first


def test_momentum_encoders_are_not_taken(plain, write) -> None:
    state = {f"base_encoder.{n}": t for n, t in plain.state_dict().items()}
    state |= {f"momentum_encoder.{n}": t for n, t in scaled(plain).items()}
    assert load_model(write(state)).weights_entry == "base_encoder"


def test_teacher_of_another_shape_is_no_average(plain, write) -> None:
    teacher = VisionTransformer(**(SMALL | {"depth": 3}))
    path = write({"student": plain.state_dict(), "teacher": teacher.state_dict()})
    with pytest.raises(CheckpointError, match=r"different shapes.*student.*--weights student"):
        load_model(path)
    assert len(load_model(path, weights="teacher").model.blocks) == 3
    with pytest.raises(CheckpointError, match="expected --weights to name one of student, teacher"):
        load_model(path, weights="pupil")


def test_two_networks_that_nothing_tells_apart(plain, write) -> None:
    path = write({"generator": plain.state_dict(), "critic": scaled(plain)})
    with pytest.raises(CheckpointError, match="holds 2 networks"):
        load_model(path)
    assert load_model(path, weights="generator").weights_entry == "generator"


@pytest.mark.parametrize(
    "front", ["encoder.", "trunk.", "base_model.model.", "_orig_mod.module.", "0.", "a.b.c.d.", "visual.trunk."]
)
@pytest.mark.parametrize("entry", [None, "params", "checkpoint.model", "generator"])
def test_any_prefix_and_entry(front: str, entry: str | None, plain, write) -> None:
    content: dict = {front + name: tensor for name, tensor in plain.state_dict().items()}
    for key in reversed(entry.split(".") if entry else []):
        content = {key: content}
    loaded = load_model(write(content))
    assert loaded.unexpected_keys == []
    assert loaded.num_classes == 5


@pytest.mark.parametrize(
    "arguments",
    ["depth=1000000000", "checkpoint_path=x.bin", "pretrained_cfg=x", "scriptable=true", "cache_dir=/tmp", "embed_dim=-1",
     "num_heads=nan", "num_heads", "norm_layer=os.system", "wings=2", "patch_size=1e9", "act_layer=" + "x" * 60],
)  # fmt: skip
def test_arguments_are_bounded(arguments: str, plain, write) -> None:
    with pytest.raises(CheckpointError, match="--model-args") as caught:
        load_model(write(plain.state_dict()), model_args=arguments)
    assert len(str(caught.value)) < 600


def relation(path, model: nn.Module, **options) -> tuple[float, list[str]]:
    """Largest difference of a loaded model's logits from another's, relative to the largest; and its notes."""
    loaded = load_model(path, **options)
    images = torch.rand(2, *loaded.input_size)
    with torch.inference_mode():
        expected, found = model(images), loaded.model(images)
    return float((expected - found).abs().max() / expected.abs().max()), list(loaded.notes)


@pytest.mark.parametrize(
    "place",
    [
        lambda name: f"attention.{name}",
        lambda name: f"norm.blocks.{name}",
        lambda name: f"transformer.{name}" if name.startswith("blocks") else name,
        lambda name: f"encoder.{name}" if not name.startswith(("norm", "head")) else name,
        lambda name: {"b": "body.layers.", "n": "out.", "h": "out."}.get(name[0], "embed.") + name,
    ],
    ids=["attention", "names of parts", "blocks apart", "norm and head apart", "three parts"],
)
def test_parts_behind_prefixes_of_their_own(place, plain, write) -> None:
    path = write({place(name): tensor for name, tensor in plain.state_dict().items()})
    assert relation(path, plain)[0] == 0


@pytest.mark.parametrize("name", ["feature_norm.weight", "side.0.weight", "final_layer_norm.bias"])
def test_what_stands_beside_an_encoder_and_may_change_it_is_refused(name: str, plain, write) -> None:
    path = write({f"net.{key}": tensor for key, tensor in plain.state_dict().items()} | {name: torch.ones(192)})
    with pytest.raises(CheckpointError, match=f"{name} beside net may change"):
        load_model(path)


@pytest.mark.parametrize(
    "more",
    [
        {"head.fc.weight": (5, 192), "head.fc.bias": (5,)},
        {"head.0.weight": (8, 192), "head.2.weight": (5, 8)},
        {"pre_logits.fc.weight": (192, 192), "head.weight": (5, 192), "head.bias": (5,)},
    ],
    ids=["deeper", "MLP", "layer before"],
)
def test_a_classifier_of_another_form_is_left_out_and_never_random(more, plain, write) -> None:
    state = {name: tensor for name, tensor in plain.state_dict().items() if not name.startswith("head.")}
    loaded = load_model(write(state | {name: torch.rand(shape) for name, shape in more.items()}))
    assert loaded.num_classes == 0
    assert any("left out" in note and "head" in note for note in loaded.notes)
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model.forward_features(IMAGES), plain.forward_features(IMAGES), rtol=0, atol=0)


def test_a_classifier_without_bias_has_none(write) -> None:
    model = randomised(VisionTransformer(**SMALL))
    path = write({name: tensor for name, tensor in model.state_dict().items() if name != "head.bias"})
    model.head.bias.data.zero_()
    far, notes = relation(path, model)
    assert far == 0
    assert any("without bias" in note for note in notes)


@pytest.mark.parametrize("size", [(16, 24), (16, 32), (48, 16)])
def test_tables_of_images_that_are_not_square(size, write) -> None:
    model = randomised(VisionTransformer(**(SMALL | {"img_size": size})))
    path = write(model.state_dict())
    assert relation(path, model, image_size=size)[0] == 0
    if size == (16, 32):  # 2 x 4 patches and a class token have as many rows as 3 x 3 patches
        assert any("3x3 patches" in note for note in load_model(path).notes)
    else:
        with pytest.raises(CheckpointError, match="--image-size HEIGHTxWIDTH"):
            load_model(path)


def test_the_teacher_of_a_distillation_is_no_average(plain, write) -> None:
    state = {f"model.{n}": t for n, t in plain.state_dict().items()} | {
        f"distiller.teacher.{n}": t for n, t in scaled(plain).items()
    }
    with pytest.raises(CheckpointError, match="--weights model"):
        load_model(write(state))


def test_networks_that_only_a_training_needs_are_not_asked_for(plain, write) -> None:
    path = write({"encoder": plain.state_dict(), "predictor": scaled(plain)})
    assert load_model(path).weights_entry == "encoder"


FIRST = "^(patch_embed|pos_embed|cls_token)"
ALIKE: dict[str, tuple[str, dict[str, tuple[int, ...]], str]] = {
    "T2T": (FIRST, {"tokens_to_token.attention1.qkv.weight": (192, 147), "tokens_to_token.project.weight": (192, 576)}, ""),
    "data2vec 2": (FIRST, {"modality_encoders.IMAGE.local_encoder.proj.weight": (192, 3, 8, 8)}, ""),
    "AIM": (FIRST, {"preprocessor.patchifier.proj.weight": (192, 3, 8, 8), "preprocessor.pos_embed": (1, 16, 192)}, ""),
    "RADIO": (FIRST, {"patch_generator.embedder.weight": (192, 192), "patch_generator.pos_embed": (1, 16, 192)}, ""),
    "MAE of videos": ("pos_embed", {"pos_embed_spatial": (1, 16, 192), "patch_embed.proj.weight": (192, 3, 2, 8, 8)}, ""),
    "one frame": ("", {"patch_embed.proj.weight": (192, 3, 1, 8, 8)}, ""),
    "ViTDet": (r"^norm\.", {"simfp_2.0.weight": (192, 96, 2, 2)}, ""),
    "ViTDet beside": (r"^norm\.", {"../simfp_2.0.weight": (192, 96, 2, 2)}, "attend in windows"),
    "tensor parallel": ("", {"blocks.0.attn.qkv.weight": (288, 192), "blocks.0.attn.qkv.bias": (288,)}, ""),
    "emptied by ZeRO-3": ("", {"blocks.0.attn.qkv.weight": (0,), "patch_embed.proj.weight": (0,)}, ""),
    "weight normalisation": (
        "qkv.weight", {f"blocks.0.attn.qkv.parametrizations.weight.original{n}": (576, m) for n, m in ((0, 1), (1, 192))}, ""
    ),
    "pruned by a mask": ("qkv.weight", {f"blocks.0.attn.qkv.weight_{n}": (576, 192) for n in ("orig", "mask")}, ""),
    "RMSNorm": (r"norm\d?\.bias", {}, "missing blocks.0.norm1.bias"),
    "SwiGLU in one tensor": ("", {f"blocks.{n}.mlp.fc2.weight": (192, 384) for n in (0, 1)}, "fc2.weight has shape"),
    "queries of full width": ("", {f"blocks.{n}.attn.{q}_norm.weight": (192,) for n in (0, 1) for q in "qk"}, ""),
    "table of two axes": ("", {"pos_embed": (17, 192)}, "pos_embed has shape"),
    "two last norms": ("", {"fc_norm.weight": (192,), "fc_norm.bias": (192,)}, "norm.weight"),
    "flattened by FSDP": (".", {"_flat_param": (999,), "blocks.0._fsdp_wrapped_module._flat_param": (99,)}, "flattened by FSDP"),
    "10 channels": ("", {"patch_embed.proj.weight": (192, 10, 8, 8)}, "takes 10 input channels"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ALIKE)
def test_networks_that_look_like_a_vision_transformer_are_refused(kind: str, plain, write) -> None:
    lost, more, words = ALIKE[kind]
    state = plain.state_dict() if not lost else without(plain.state_dict(), lost)
    state = {f"backbone.net.{name}": tensor for name, tensor in state.items()}
    state |= {f"backbone.net.{name}".replace("net.../", ""): torch.rand(shape) for name, shape in more.items()}
    path = write({"model": state})
    with pytest.raises(CheckpointError, match=words or "expected|no architecture|FSDP") as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["fc", "classifier", "linear", "mlp_head.1", "heads.head", "../fc", "../classifier.1", "../head"]
)
def test_one_linear_layer_behind_the_encoder_is_its_classifier(name: str, write) -> None:
    model = randomised(VisionTransformer(**SMALL))
    state = {f"net.{key}": tensor for key, tensor in renamed(model.state_dict(), ("^head", name)).items()}
    path = write({key.replace("net.../", ""): tensor for key, tensor in state.items()})
    far, notes = relation(path, model)
    assert far == 0
    assert name == "../head" or any(note.startswith("classifier: ") and name.strip("./") in note for note in notes)


@pytest.mark.parametrize("more", ["bottleneck.weight", "fc2.weight", "net.fc_out.weight"])
def test_a_classifier_with_something_before_it_is_not_taken(more: str, plain, write) -> None:
    state = {f"net.{key}": tensor for key, tensor in plain.state_dict().items() if not key.startswith("head")}
    path = write(state | {"fc.weight": torch.rand(7, 192), "fc.bias": torch.rand(7), more: torch.rand(192)})
    if more.startswith("net."):
        with pytest.raises(CheckpointError, match=r"fc_out\.weight"):
            load_model(path)
    else:
        loaded = load_model(path)
        assert loaded.num_classes == 0
        assert any("left out" in note and "fc" in note for note in loaded.notes)


@pytest.mark.parametrize(
    "said",
    [
        {"args": argparse.Namespace(model="mine", gp="avg", model_kwargs={"fc_norm": False})},
        {"args": argparse.Namespace(model_kwargs={"global_pool": "avg", "fc_norm": False, "num_heads": 6})},
        {"hyper_parameters": {"model_args": {"global_pool": "avg", "act_layer": "relu"}}},
    ],
    ids=["gp", "model_kwargs", "Lightning"],
)
def test_what_a_file_says_of_pooling_heads_and_activation_is_taken(said, write) -> None:
    arguments = {"global_pool": "avg", "fc_norm": False}
    arguments |= {"num_heads": 6} if "num_heads" in str(said) else {"act_layer": "relu"} if "relu" in str(said) else {}
    model = randomised(VisionTransformer(**(SMALL | arguments)))
    path = write({"state_dict": model.state_dict(), **said})
    assert relation(path, model)[0] == 0
    assumed = next((note for note in load_model(path).notes if note.startswith("assumed")), "")
    assert ("heads," in assumed) == ("num_heads" not in arguments)
    assert ("GELU" in assumed) == ("act_layer" not in arguments)
    assert any("the class token classified" in note for note in load_model(write(model.state_dict())).notes)


def test_buffers_of_another_network_are_seen() -> None:
    arguments = {"img_size": 64, "embed_dim": 24, "depths": (2,), "num_heads": (1,), "window_size": 8, "num_classes": 0}
    model = build_empty("swinv2_tiny_window8_256", arguments)[0]
    own = {name: tensor.clone() for name, tensor in model.named_buffers()}
    assert {name.rpartition(".")[2] for name in own} >= {"relative_coords_table", "relative_position_index"}
    assert contradicted(model, own) == []
    assert (
        contradicted(
            model, {name: tensor.half().float() if tensor.is_floating_point() else tensor for name, tensor in own.items()}
        )
        == []
    )
    other = dict(build_empty("swinv2_tiny_window8_256", arguments | {"pretrained_window_sizes": (4,)})[0].named_buffers())
    assert contradicted(model, other) == [name for name in own if name.endswith("relative_coords_table")]
    assert contradicted(model, {name: tensor.flip(-1) for name, tensor in own.items() if name.endswith("index")})


def test_rotary_tables_of_another_scale_are_seen() -> None:
    model = build_empty("eva02_tiny_patch14_224", {"depth": 1, "num_classes": 0})[0]
    tables = rotary_tables(model)
    assert contradicted(model, tables) == []
    assert contradicted(model, {name: tensor.roll(1, 0) for name, tensor in tables.items()}) == list(tables)
    assert contradicted(model, {"blocks.0.attn.k_bias": torch.zeros(192)}) == []
    assert contradicted(model, {"blocks.0.attn.k_bias": torch.ones(192)}) == ["blocks.0.attn.k_bias"]


@pytest.mark.slow
def test_a_file_with_such_buffers_is_refused(write) -> None:
    model = timm.create_model("eva02_tiny_patch14_224", num_classes=0)
    tables = {name: tensor.roll(1, 0) for name, tensor in rotary_tables(model).items()}
    path = write(model.state_dict() | tables)
    with pytest.raises(CheckpointError, match="has other values than eva02_tiny_patch14_224 computes"):
        load_model(path)
    assert load_model(path, lenient=True).lenient


def test_quick_gelu_of_a_clip_of_any_size_is_asked_for(write) -> None:
    pytest.importorskip("open_clip")
    model = clip(quick=True)
    front = "visual."
    path = write({name.removeprefix(front): tensor for name, tensor in model.state_dict().items() if name.startswith(front)})
    with pytest.raises(CheckpointError, match=r"act_layer=quick_gelu.*act_layer=gelu"):
        load_model(path)
    loaded = load_model(path, model_args="act_layer=quick_gelu")
    assert compare(model.encode_image)(loaded.model) < 1e-5
    assert loaded.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
