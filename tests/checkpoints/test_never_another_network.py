"""Every tensor of the trunk counts: it has its place in the model, or the file is refused, or `lenient` says what is missing."""

import argparse

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from overfocus import CheckpointError, load_model
from overfocus.checkpoints.build import build_empty, contradicted
from overfocus.checkpoints.metadata import save_checkpoint
from overfocus.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from tests.scripts.layouts_made import (
    ALIKE,
    LEFT_OVER,
    PARTS,
    SMALL,
    alike,
    clip,
    compare,
    random_values,
    renamed,
    rotary_tables,
    shifted,
    vit,
)

IMAGES = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)


@pytest.fixture(scope="module")
def plain() -> nn.Module:
    torch.manual_seed(0)
    return VisionTransformer(**SMALL).eval()


@pytest.mark.parametrize("kind", PARTS)
def test_what_the_tensors_tell_is_built(kind: str, write) -> None:
    model = vit(**PARTS[kind])
    loaded = load_model(write({"model": model.state_dict()}))
    assert (loaded.missing_keys, loaded.unexpected_keys, loaded.lenient) == ([], [], False)
    images = IMAGES[:, : loaded.input_size[0]]
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model(images), model(images), rtol=0, atol=0)
    assert any("assumed" in note and "heads" in note for note in loaded.notes)


@pytest.mark.parametrize("arguments", [{"init_values": 1e-5}, {"qk_norm": True}, {"reg_tokens": 4}, {"patch_size": 8}], ids=str)
@pytest.mark.parametrize("named", ["--model", "arch"])
def test_a_registered_name_gets_the_parts_that_its_tensors_show(arguments, named: str, write) -> None:
    model = random_values(timm.create_model("test_vit", **arguments))
    path = write({"state_dict": model.state_dict(), **({"arch": "test_vit"} if named == "arch" else {})})
    loaded = load_model(path, model="test_vit" if named == "--model" else None)
    images = torch.rand(1, *loaded.input_size)
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model(images), model(images), rtol=0, atol=0)
    assert any("as its tensors say" in note for note in loaded.notes)


@pytest.mark.parametrize("asked", [None, "VisionTransformer"])
@pytest.mark.parametrize("kind", LEFT_OVER)
@pytest.mark.parametrize("front", ["", "module.net."])
def test_parts_that_no_architecture_has_are_refused(kind: str, asked: str | None, front: str, plain, write) -> None:
    if asked and front:
        pytest.skip("the same path")
    more = {name: torch.rand(shape) for name, shape in LEFT_OVER[kind].items()}
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
    model = vit(**{"embed_dim": 96, "num_heads": 6})
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
    path = write({first: shifted(plain.state_dict()), other: plain.state_dict(), "epoch": 3})
    loaded = load_model(path)
    assert loaded.weights_entry == other
    assert first in loaded.notes[0]
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model(IMAGES), plain(IMAGES), rtol=0, atol=0)
    for options in ({"use_ema": False}, {"weights": first}):
        assert load_model(path, **options).weights_entry == first


def test_momentum_encoders_are_not_taken(plain, write) -> None:
    state = {f"base_encoder.{n}": t for n, t in plain.state_dict().items()}
    state |= {f"momentum_encoder.{n}": t for n, t in shifted(plain.state_dict()).items()}
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
    path = write({"generator": plain.state_dict(), "critic": shifted(plain.state_dict())})
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
        {"head.weight": (5, 384), "head.bias": (5,)},
    ],
    ids=["deeper", "MLP", "layer before", "on two tokens"],
)
def test_a_classifier_of_another_form_is_left_out_and_never_random(more, plain, write) -> None:
    state = {name: tensor for name, tensor in plain.state_dict().items() if not name.startswith("head.")}
    loaded = load_model(write(state | {name: torch.rand(shape) for name, shape in more.items()}))
    assert loaded.num_classes == 0
    assert any("left out" in note and "head" in note for note in loaded.notes)
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model.forward_features(IMAGES), plain.forward_features(IMAGES), rtol=0, atol=0)


def test_a_classifier_without_bias_has_none(write) -> None:
    model = vit()
    path = write({name: tensor for name, tensor in model.state_dict().items() if name != "head.bias"})
    model.head.bias.data.zero_()
    far, notes = relation(path, model)
    assert far == 0
    assert any("without bias" in note for note in notes)


@pytest.mark.parametrize("size", [(16, 24), (16, 32), (48, 16)])
def test_tables_of_images_that_are_not_square(size, write) -> None:
    model = vit(**{"img_size": size})
    path = write(model.state_dict())
    assert relation(path, model, image_size=size)[0] == 0
    if size == (16, 32):  # 2 x 4 patches and a class token have as many rows as 3 x 3 patches
        assert any("3x3 patches" in note for note in load_model(path).notes)
    else:
        with pytest.raises(CheckpointError, match="--image-size HEIGHTxWIDTH"):
            load_model(path)


def test_the_teacher_of_a_distillation_is_no_average(plain, write) -> None:
    state = {f"model.{n}": t for n, t in plain.state_dict().items()} | {
        f"distiller.teacher.{n}": t for n, t in shifted(plain.state_dict()).items()
    }
    with pytest.raises(CheckpointError, match="--weights model"):
        load_model(write(state))


def test_networks_that_only_a_training_needs_are_not_asked_for(plain, write) -> None:
    path = write({"encoder": plain.state_dict(), "predictor": shifted(plain.state_dict())})
    assert load_model(path).weights_entry == "encoder"


@pytest.mark.parametrize("kind", ALIKE)
def test_networks_that_look_like_a_vision_transformer_are_refused(kind: str, plain, write) -> None:
    path = write({"model": alike(kind, plain.state_dict())})
    words = ALIKE[kind][2]
    with pytest.raises(CheckpointError, match=words or "expected|no architecture|FSDP") as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("front", ["", "module.net."])
@pytest.mark.parametrize(
    ("names", "mean", "std", "expected"),
    [
        (("normalize.mean", "normalize.std"), [[[0.5]], [[0.4]], [[0.3]]], [0.5, 0.25, 0.2], ((0.5, 0.4, 0.3), (0.5, 0.25, 0.2))),
        (("mu", "sigma"), [0.5] * 3, [0.25] * 3, ((0.5,) * 3, (0.25,) * 3)),
        (("net.pixel_mean", "net.pixel_std"), [127.5] * 3, [51.0] * 3, ((0.5,) * 3, (0.2,) * 3)),
        (("mean", "std"), [0.0] * 3, [1.0] * 3, None),
    ],
)
def test_a_network_that_normalises_its_input_itself(names, mean, std, expected, front: str, plain, write) -> None:
    constants = dict(zip(names, (torch.tensor(mean), torch.tensor(std)), strict=True))
    loaded = load_model(write({front + name: tensor for name, tensor in (plain.state_dict() | constants).items()}))
    assert (loaded.mean, loaded.std) == (expected or (IMAGENET_MEAN, IMAGENET_STD))
    assert any("normalises its input" in note for note in loaded.notes) == (expected is not None)


@pytest.mark.parametrize(
    "head",
    [
        {"arcface.weight": (7, 192)},
        {"bottom.0.weight": (64, 192), "logits.weight": (5, 64)},
        {"up.0.weight": (192, 64, 2, 2), "up.2.weight": (64, 1, 3, 3), "out.weight": (3, 64, 1, 1)},
    ],
)
def test_heads_of_any_name_beside_the_encoder_are_left_out(head, plain, write) -> None:
    state = {f"net.{name}": tensor for name, tensor in plain.state_dict().items() if not name.startswith("head.")}
    loaded = load_model(write(state | {name: torch.rand(shape) for name, shape in head.items()}))
    assert (loaded.lenient, loaded.unexpected_keys) == (False, list(head))


@pytest.mark.parametrize(
    "name", ["fc", "classifier", "linear", "mlp_head.1", "heads.head", "../fc", "../classifier.1", "../head"]
)
def test_one_linear_layer_behind_the_encoder_is_its_classifier(name: str, write) -> None:
    model = vit()
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
    model = vit(**arguments)
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


def test_maxvit_of_torchvision_is_torchvisions_own(tmp_path, write) -> None:
    maxvit = pytest.importorskip("torchvision.models.maxvit")
    model = random_values(maxvit.MaxVit((64, 64), 8, 2, [8, 16], [1, 2], 4, 0.0, num_classes=3))
    path = write(model.state_dict())
    assert load_model(path).input_size == (3, 16, 16)  # the smallest that its windows of 2 x 2 divide
    images = torch.rand(1, 3, 64, 64)
    loaded = load_model(path, image_size=64)
    save_checkpoint(loaded.model, tmp_path / "again.safetensors", architecture=loaded.name, model_args=loaded.model_args)
    with torch.inference_mode():
        for found in (loaded, load_model(tmp_path / "again.safetensors")):
            torch.testing.assert_close(found.model(images), model(images), rtol=0, atol=0)
        assert load_model(path, num_classes=0, image_size=64).model(images).shape == (1, 16)
    with pytest.raises(CheckpointError, match="not divisible by partition size 2"):
        load_model(path, image_size=50)


@pytest.mark.parametrize(
    ("rival", "arguments"),
    [
        ("vit_pe_spatial_tiny_patch16_512", {"pre_norm": True, "final_norm": False}),
        ("vit_pe_core_tiny_patch16_384", {"pre_norm": True, "global_pool": "map"}),
    ],
)
def test_rotary_positions_that_no_tensor_shows_are_asked_for(rival: str, arguments, write) -> None:
    size = {"embed_dim": 192, "depth": 12, "num_heads": 3, "num_classes": 3, "img_size": 64}
    plain = random_values(VisionTransformer(**size, **arguments))
    path = write(plain.state_dict())
    with pytest.raises(CheckpointError, match=f"choose --model {rival} or --model VisionTransformer"):
        load_model(path)
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(load_model(path, model="VisionTransformer").model(images), plain(images), rtol=0, atol=1e-5)
    assert type(load_model(path, model=rival).model).__name__ == "Eva"


@pytest.mark.parametrize("said", [True, False])
def test_rotary_positions_that_the_files_name_says(said: bool, tmp_path) -> None:
    path = tmp_path / ("rope_axial_ape_deit_small.pth" if said else "deit_small.pth")
    torch.save(random_values(timm.create_model("vit_small_patch16_rope_ape_224", num_classes=3)).state_dict(), path)
    loaded = load_model(path)
    assert ("rope" in loaded.name) == said
    assert any("rotary positions" in note for note in loaded.notes)


@pytest.mark.parametrize("kind", ["vit_pwee_patch16_reg1_gap_256", "vit_dpwee_patch16_reg1_gap_256"])
def test_blocks_of_other_classes(kind: str, write) -> None:
    if not timm.is_model(kind):
        pytest.skip("a later timm")
    assert load_model(write(timm.create_model(kind, num_classes=3).state_dict())).name == kind


_BETWEEN = {"weight": (192, 192), "bias": (192,)}


@pytest.mark.parametrize("front", ["", "model.net."])
@pytest.mark.parametrize("part", ["neck.0", "projector.2", "projection", "proj_head"])
def test_a_classifier_behind_a_part_that_is_left_out_is_left_out(part: str, front: str, plain, write) -> None:
    more = {f"{part}.{kind}": torch.rand(shape) for kind, shape in _BETWEEN.items()}
    path = write({front + name: tensor for name, tensor in (plain.state_dict() | more).items()})
    loaded = load_model(path)
    assert loaded.num_classes == 0
    assert any("the classifier is left out" in note and part in note for note in loaded.notes)
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model.forward_features(IMAGES), plain.forward_features(IMAGES), rtol=0, atol=0)


def test_a_classifier_beside_a_projection_that_it_does_not_read_stays(plain, write) -> None:
    loaded = load_model(
        write(plain.state_dict() | {"projector.0.weight": torch.rand(64, 192), "neck.weight": torch.rand(99, 64)})
    )
    assert loaded.num_classes == 5


@pytest.mark.parametrize(
    "said",
    [
        {"config": {"model": {"num_heads": 6, "pool": "mean"}, "decoder": {"num_heads": 8}}},
        {"hyper_parameters": {"net": {"kwargs": {"n_heads": "6", "pooling": "avg"}}}},
        {"model_config": {"heads": 6, "global_pool": "avg"}},
        {"args": argparse.Namespace(num_heads=6, decoder_num_heads=16, global_pool=True)},
        {"meta": {"cfg": "backbone=dict(type='VisionTransformer', arch=dict(num_heads=6))"}, "args": {"use_mean_pooling": True}},
    ],
)
def test_settings_are_found_wherever_they_stand(said, write) -> None:
    model = vit(num_heads=6, global_pool="avg", fc_norm=False)
    far, notes = relation(write({"state_dict": model.state_dict(), **said}), model)
    assert far == 0
    assert any("6 attention heads, as the checkpoint's arguments say" in note for note in notes)


def test_settings_that_contradict_each_other(plain, write) -> None:
    two = {"config": {"student": {"num_heads": 6}, "teacher": {"num_heads": 12}}}
    notes = load_model(write({"state_dict": plain.state_dict(), **two})).notes
    assert any("several numbers of attention heads (6, 12)" in note for note in notes)
    assert any("3 attention heads" in note for note in notes)
    model = timm.create_model("test_vit", num_heads=1)
    path = write({"state_dict": model.state_dict(), "args": argparse.Namespace(model="test_vit", num_heads=1)})
    with pytest.raises(CheckpointError, match="--model-args num_heads=2 or --model-args num_heads=1"):
        load_model(path)
    assert relation(path, model.eval(), model_args="num_heads=1")[0] == 0


@pytest.mark.parametrize("rows_first", [True, False])
def test_moco_v3_by_its_positions(rows_first: bool, write) -> None:
    model: nn.Module = vit(embed_dim=384, num_heads=12 if rows_first else 6, num_classes=0)
    axes = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    angles = [axis.reshape(-1, 1) / 10_000 ** (torch.arange(96) / 96) for axis in (axes if rows_first else axes[::-1])]
    table = torch.cat([function(angle) for angle in angles for function in (torch.sin, torch.cos)], 1)
    model.pos_embed.data = torch.cat([torch.zeros(1, 384), table])[None]
    loaded = load_model(write(model.state_dict()))
    assert loaded.model.blocks[0].attn.num_heads == model.blocks[0].attn.num_heads
    assert any(("MoCo v3" if rows_first else "assumed, because no tensor shows it: 6 attention heads") in n for n in loaded.notes)


def test_moco_v3_by_the_configuration_of_mmpretrain(write) -> None:
    text = "model = dict(backbone=dict(type='MoCoV3ViT', arch='mocov3-small'))"
    loaded = load_model(write({"state_dict": vit(embed_dim=384, num_heads=12).state_dict(), "meta": {"cfg": text}}))
    assert loaded.model.blocks[0].attn.num_heads == 12


def test_the_early_small_vision_transformer_is_asked_for(write) -> None:
    model = vit(embed_dim=768, depth=8, num_heads=8, mlp_ratio=3.0)
    with pytest.raises(CheckpointError, match="num_heads=N"):
        load_model(write(model.state_dict()))


@pytest.mark.parametrize("names", ["y_mean y_std", "target_mean target_std"])
def test_statistics_of_targets_are_not_those_of_the_input(names: str, plain, write) -> None:
    constants = dict(zip(names.split(), torch.tensor([[0.3], [0.4]]), strict=True))
    state = {f"net.{name}": tensor for name, tensor in plain.state_dict().items()}
    assert load_model(write(state | constants)).mean == IMAGENET_MEAN


def test_the_image_size_of_swin(write) -> None:
    arguments = {"embed_dim": 24, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8), "num_classes": 3}
    model: nn.Module = timm.create_model("swin_tiny_patch4_window7_224", img_size=448, **arguments)
    masks = {name: buffer for name, buffer in model.named_buffers() if name.endswith("attn_mask")}
    given = {"model": "swin_tiny_patch4_window7_224", "model_args": arguments | {"num_classes": 3}}
    assert load_model(write(model.state_dict() | masks), **given).input_size == (3, 448, 448)
    loaded = load_model(write(model.state_dict()), **given)
    assert loaded.input_size == (3, 224, 224)
    assert any("images of 224x224 pixels (--image-size" in note for note in loaded.notes)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"depth": 12}, "depth of 12, and it has the weights of 2"), ({"model": {"norm_first": False}}, "norms after each layer"),
     ({"post_norm": True}, "norms after each layer")],
)  # fmt: skip
def test_settings_that_contradict_the_tensors_are_refused(settings, words: str, plain, write) -> None:
    path = write({"state_dict": plain.state_dict(), "config": settings})
    with pytest.raises(CheckpointError, match=words):
        load_model(path)
    assert load_model(path, lenient=True).lenient
    fitting = {"depth": 2, "norm_first": True, "post_norm": False, "decoder": {"depth": 8}, "num_heads": 5}
    assert relation(write({"state_dict": plain.state_dict(), "config": fitting}), plain)[0] == 0


@pytest.mark.parametrize("front", ["", "model.clip."])
def test_clip_of_transformers_without_its_configuration(front: str, write) -> None:
    transformers = pytest.importorskip("transformers")
    settings = transformers.CLIPVisionConfig(
        hidden_size=192, intermediate_size=384, num_hidden_layers=2, num_attention_heads=3, image_size=32, patch_size=8
    )
    path = write({front + name: tensor for name, tensor in transformers.CLIPVisionModel(settings).state_dict().items()})
    with pytest.raises(CheckpointError, match="choose --model-args act_layer=quick_gelu"):
        load_model(path)
    assert load_model(path, model_args="act_layer=gelu").mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
