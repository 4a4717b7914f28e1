"""Folders of Hugging Face transformers, and modules of the user's own code."""

import copy
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from overfocus import CheckpointError, LoadedModel, load_model

transformers = pytest.importorskip("transformers")
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
PREPROCESSOR = {
    "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "size": {"shortest_edge": 40}, "resample": 3,
    "do_center_crop": True, "crop_size": {"height": 32, "width": 32}, "do_normalize": True,
}  # fmt: skip
IMAGES = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)


def saved(folder: Path, model: nn.Module, **options: object) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape))
    model.eval().save_pretrained(folder, **options)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return model


def said(loaded: LoadedModel) -> list[str]:
    """Notes; the lowest version of transformers has image processors that take other sizes."""
    return [note for note in loaded.notes if "itself cannot work with them" not in note]


def first(output: object) -> torch.Tensor:
    return output["logits"] if "logits" in output else output["last_hidden_state"]


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "20KB"}], ids=["one file", "sharded"])
def test_classifier(options, tmp_path: Path) -> None:
    config = transformers.ViTConfig(**TINY, id2label={0: "cat", 1: "dog", 2: "owl"})
    model = saved(tmp_path, transformers.ViTForImageClassification(config), **options)
    loaded = load_model(tmp_path)
    assert (loaded.name, loaded.num_classes, loaded.class_names) == ("ViTForImageClassification", 3, ["cat", "dog", "owl"])
    assert (loaded.input_size, loaded.mean, loaded.std) == ((3, 32, 32), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (loaded.interpolation, loaded.crop_pct, said(loaded), loaded.lenient) == ("bicubic", 0.8, [], False)
    with torch.inference_mode():
        torch.testing.assert_close(first(loaded.model(IMAGES)), first(model(IMAGES)))
    weights = next(tmp_path.glob("model*.safetensors"))
    assert load_model(weights).name == "ViTForImageClassification"


def test_folder_of_the_trainer(tmp_path: Path) -> None:
    """`checkpoint-500/`: what it needs to go on lies beside the weights and is not opened."""
    folder = tmp_path / "checkpoint-500"
    model = saved(folder, transformers.ViTForImageClassification(transformers.ViTConfig(**TINY, id2label={0: "cat", 1: "dog"})))
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_1.pth", "training_args.bin"):
        (folder / name).write_bytes(b"\x80\x02cos\nsystem\n(X\x04\x00\x00\x00exittR.")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 500, "log_history": []}))
    loaded = load_model(folder)
    assert (loaded.name, loaded.class_names, said(loaded)) == ("ViTForImageClassification", ["cat", "dog"], [])
    with torch.inference_mode():
        torch.testing.assert_close(first(loaded.model(IMAGES)), first(model(IMAGES)))


@pytest.mark.parametrize("kind", ["Dinov2", "Dinov2WithRegisters", "BeitFor", "DeiT"])
def test_other_encoders(kind: str, tmp_path: Path) -> None:
    name = kind.removesuffix("For")
    model = saved(tmp_path, getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**TINY)))
    loaded = load_model(tmp_path)
    with torch.inference_mode():
        torch.testing.assert_close(first(loaded.model(IMAGES)), first(model(IMAGES)))
    assert loaded.num_classes == 0


def test_image_tower_of_clip(tmp_path: Path) -> None:
    text = {key: value for key, value in TINY.items() if "size" not in key or key == "hidden_size"} | {"vocab_size": 50}
    config = transformers.CLIPConfig(text_config=text, vision_config=TINY, projection_dim=16)
    model = saved(tmp_path, transformers.CLIPModel(config))
    loaded = load_model(tmp_path)
    with torch.inference_mode():
        expected = model.vision_model(IMAGES).last_hidden_state
        torch.testing.assert_close(first(loaded.model(IMAGES)), expected)
    assert any("text model" in note for note in loaded.notes)


def test_masked_autoencoder_sees_every_patch(tmp_path: Path) -> None:
    model = saved(tmp_path, transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**TINY, decoder_hidden_size=32)))
    loaded = load_model(tmp_path)
    state = loaded.model.state_dict()
    weight = model.state_dict()["vit.embeddings.patch_embeddings.projection.weight"]
    torch.testing.assert_close(state["embeddings.patch_embeddings.projection.weight"], weight)
    with torch.inference_mode():
        assert first(loaded.model(IMAGES)).shape == (2, 17, 32)
        torch.testing.assert_close(first(loaded.model(IMAGES)), first(loaded.model(IMAGES)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_hidden_layers": 3}, "missing"),
        ({"num_hidden_layers": 1}, "no place for"),
        ({"num_hidden_layers": 10**9}, "refused, num_hidden_layers"),
        ({"hidden_size": 10**7}, "refused, hidden_size"),
        ({"quantization_config": {"load_in_8bit": True}}, "quantised"),
        ({"model_type": "no_such_model"}, "cannot load this no_such_model"),
        ({"model_type": "vit", "auto_map": {"AutoModel": "evil.Evil"}, "hidden_act": "no such"}, "cannot load"),
    ],
    ids=str,
)
def test_configurations_that_are_not_those_of_the_weights(change, words: str, tmp_path: Path) -> None:
    saved(tmp_path, transformers.ViTModel(transformers.ViTConfig(**TINY)))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    (tmp_path / "evil.py").write_text("raise SystemExit('code ran')")
    with pytest.raises(CheckpointError, match=words) as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)


PHOTOS = torch.linspace(-1, 1, 2 * 3 * 160 * 160).view(2, 3, 160, 160)
ADAPTERS = {
    "lora": ("LoraConfig", {"r": 4, "lora_alpha": 7, "target_modules": ["qkv", "proj"]}),
    "by expression": ("LoraConfig", {"r": 4, "target_modules": r".*blocks\.[01]\..*(qkv|fc1)"}),
    "rslora": ("LoraConfig", {"r": 4, "lora_alpha": 7, "target_modules": ["qkv"], "use_rslora": True}),
    "dora": ("LoraConfig", {"r": 4, "target_modules": ["qkv", "fc2"], "use_dora": True}),
    "ranks": (
        "LoraConfig", {"target_modules": ["qkv", "fc2"], "rank_pattern": {"blocks.0.attn.qkv": 2}, "alpha_pattern": {"fc2": 3}}
    ),
    "classifier": ("LoraConfig", {"r": 4, "target_modules": ["qkv"], "modules_to_save": ["head"]}),
    "convolution": ("LoraConfig", {"r": 4, "target_modules": ["patch_embed.proj"]}),
    "biases": ("LoraConfig", {"r": 4, "target_modules": ["qkv"], "bias": "all"}),
    "loha": ("LoHaConfig", {"r": 4, "alpha": 3, "target_modules": ["qkv"]}),
    "lokr": ("LoKrConfig", {"r": 4, "alpha": 3, "target_modules": ["qkv"]}),
    "ia3": ("IA3Config", {"target_modules": ["qkv", "fc2"], "feedforward_modules": ["fc2"]}),
}  # fmt: skip


def adapted(model: nn.Module, kind: str, folder: Path, **options: object) -> nn.Module:
    """A model with an adapter of random values, which is saved in a folder."""
    peft = pytest.importorskip("peft")
    name, settings = ADAPTERS[kind]
    model = peft.get_peft_model(model, getattr(peft, name)(**(settings | options))).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if re.search(
                r"lora_|hada_|lokr_|ia3_|modules_to_save|bias$" if kind == "biases" else r"lora_|hada_|lokr_|ia3_|modules_to", key
            ):
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapters_are_merged_into_their_base(kind: str, tmp_path: Path, vit: nn.Module, write) -> None:
    base = write({"arch": "test_vit", "state_dict": vit.state_dict()})
    original = copy.deepcopy(vit)
    if kind == "classifier":
        original.reset_classifier(7)
    with torch.inference_mode():
        expected = adapted(original, kind, tmp_path / "adapter")(PHOTOS)
        loaded = load_model(tmp_path / "adapter", model=str(base))
        torch.testing.assert_close(loaded.model(PHOTOS), expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(vit(PHOTOS)[:, :7], expected[:, :7], atol=1e-2)
    assert loaded.num_classes == expected.shape[1]
    assert "merged into" in loaded.notes[0]
    assert not any(re.search("lora|hada|lokr|ia3|base_layer", name) for name in loaded.model.state_dict())
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = f"../{base.name}"
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    assert load_model(next((tmp_path / "adapter").glob("adapter_model*"))).sha256 == loaded.sha256


FAN_IN = """
import torch, overfocus
from transformers.pytorch_utils import Conv1D
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.c_attn, self.out = torch.nn.Conv2d(3, 8, 4, 4), Conv1D(24, 8), torch.nn.Linear(8, 5)
    def forward(self, images):
        queries, keys, values = self.c_attn(self.stem(images).flatten(2).mT.contiguous()).chunk(3, -1)
        return self.out(torch.nn.functional.scaled_dot_product_attention(queries, keys, values).mean(1))
def make():
    torch.manual_seed(0)
    return overfocus.wrap(Net(), input_size=32)
"""


@pytest.mark.parametrize("bias", ["none", "all"])
def test_adapter_of_layers_that_keep_their_weights_transposed(bias: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`fan_in_fan_out`, as the Conv1D of GPT-2 and of ImageGPT asks for it."""
    (tmp_path / "fan_in.py").write_text(FAN_IN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    model = __import__("fan_in").make().model
    with torch.inference_mode():
        before = model(IMAGES)
        options = {"target_modules": ["c_attn"], "fan_in_fan_out": True, "bias": bias}
        expected = adapted(model, "lora" if bias == "none" else "biases", tmp_path / "adapter", **options)(IMAGES)
        loaded = load_model(tmp_path / "adapter", model="fan_in:make")
        torch.testing.assert_close(loaded.model(IMAGES), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(before, expected, atol=1e-2)
    sys.modules.pop("fan_in", None)


def test_adapter_of_a_classifier_on_a_base_without_one(tmp_path: Path) -> None:
    """As the hub has it: the base is a ViTModel, the adapter was trained on its ViTForImageClassification."""
    whole = saved(tmp_path / "whole", transformers.ViTForImageClassification(transformers.ViTConfig(**TINY)))
    whole.vit.save_pretrained(tmp_path / "base")
    options = {"target_modules": ["query"], "modules_to_save": ["classifier"], "alpha_pattern": {"vit.encoder.layer.0": 3}}
    names = [name for name, _ in whole.named_modules() if name.endswith(("query", "q_proj"))]
    options |= {"target_modules": names, "alpha_pattern": {names[0]: 3}}
    with torch.inference_mode():
        model = adapted(whole, "lora", tmp_path / "adapter", **options)
        expected = model.base_model.model.vit(IMAGES).last_hidden_state
        loaded = load_model(tmp_path / "adapter", model=str(tmp_path / "base"))
        torch.testing.assert_close(first(loaded.model(IMAGES)), expected, rtol=1e-4, atol=1e-4)
    assert any("classifier" in note and "left out" in note for note in loaded.notes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"peft_type": "PREFIX_TUNING"}, "of the kind PREFIX_TUNING"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"target_parameters": ["qkv.weight"]}, "target_parameters"),
        ({"r": 10**9}, "refused, r"),
        ({"lora_alpha": "exit()"}, "refused, lora_alpha"),
        ({"rank_pattern": {"(a+)+$": 3}}, "refused"),
        ({"base_model_name_or_path": None}, "name it with --model"),
        ({"base_model_name_or_path": "nowhere/nothing-0000"}, "whose base model cannot be loaded"),
        ({"base_model_name_or_path": "../adapter"}, "which is one itself"),
        ({"a_method_of_tomorrow": True}, "a_method_of_tomorrow"),
    ],
    ids=str,
)
def test_adapters_that_are_not_merged(change, words: str, tmp_path: Path, vit: nn.Module, write) -> None:
    base = write({"arch": "test_vit", "state_dict": vit.state_dict()})
    adapted(copy.deepcopy(vit), "lora", tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=words) as caught:
        load_model(tmp_path / "adapter", model=None if "base_model_name_or_path" in change else str(base))
    assert "\n" not in str(caught.value)


def test_adapter_of_another_model(tmp_path: Path, vit: nn.Module) -> None:
    saved(tmp_path / "base", transformers.ViTModel(transformers.ViTConfig(**TINY)))
    adapted(copy.deepcopy(vit), "lora", tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="is it an adapter of another model"):
        load_model(tmp_path / "adapter", model=str(tmp_path / "base"))
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="a PEFT adapter without its weights"):
        load_model(tmp_path / "adapter")


CODE = """
import torch, overfocus
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.mixer = torch.nn.Conv2d(3, 8, 4, 4), torch.nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = torch.nn.Linear(8, 5)
    def forward(self, images):
        tokens = self.stem(images).flatten(2).mT
        return self.out(self.mixer(tokens, tokens, tokens)[0].mean(1))
def make(): return overfocus.wrap(Net(), input_size=16, mean=(0.5,), std=(0.5,), class_names=list("abcde"))
def fails(): raise ValueError("no luck")
def number(): return 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "own_network.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("own_network", None)


@pytest.mark.parametrize("front", ["", "module.", "state.net."])
@pytest.mark.usefixtures("own")
def test_own_code(front: str, write) -> None:
    namespace: dict[str, Any] = {}
    exec(CODE, namespace)
    model = namespace["Net"]().eval()
    state = model.state_dict()
    path = write({front + name: tensor for name, tensor in state.items()})
    loaded = load_model(path, model="own_network:make")
    assert (loaded.found_by, loaded.input_size, loaded.class_names) == ("own code", (3, 16, 16), list("abcde"))
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(loaded.model(images), model(images))
    lacking = write({front + name: tensor for name, tensor in state.items() if name != "stem.bias"}, "lacking.pth")
    with pytest.raises(CheckpointError, match=r"missing stem\.bias"):
        load_model(lacking, model="own_network:make")
    assert load_model(lacking, model="own_network:make", lenient=True).lenient


@pytest.mark.usefixtures("own")
def test_a_classifier_of_own_code_is_never_random(tmp_path: Path, write) -> None:
    (tmp_path / "own_network.py").write_text(CODE.replace("self.out", "self.head"))
    state = {"stem.weight": torch.ones(8, 3, 4, 4), "stem.bias": torch.ones(8)}
    mixer = {f"mixer.{name}": tensor for name, tensor in nn.MultiheadAttention(8, 2).state_dict().items()}
    with pytest.raises(CheckpointError, match=r"missing head\.weight, head\.bias"):
        load_model(write(state | mixer | {"fc.weight": torch.ones(5, 8), "fc.bias": torch.ones(5)}), model="own_network:make")


_OWN = """import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.attn = nn.Conv2d(3, 8, 4, 4), nn.MultiheadAttention(8, 2, batch_first=True)
        self.tied, self.head = nn.Linear(8, 8), nn.Linear(8, 5)
        self.again = self.tied
        self.register_buffer("frequencies", torch.randn(8))

    def forward(self, images):
        tokens = self.again(self.tied(self.stem(images).flatten(2).mT)) * self.frequencies
        return self.head(self.attn(tokens, tokens, tokens, need_weights=False)[0].mean(1))

def make():
    import overfocus
    return overfocus.wrap(Net(), input_size=16, mean=(0.5,), std=(0.5,))
"""


@pytest.mark.usefixtures("own")
def test_buffers_and_tied_weights_of_own_code(tmp_path: Path, write) -> None:
    (tmp_path / "own_network.py").write_text(_OWN)
    namespace: dict[str, Any] = {}
    exec(_OWN, namespace)
    model, images = namespace["Net"]().eval(), torch.rand(2, 3, 16, 16)
    once = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("again")}
    loaded = load_model(write(once), model="own_network:make")
    torch.testing.assert_close(loaded.model(images), model(images))
    with pytest.raises(CheckpointError, match="missing frequencies"):
        load_model(write(dict(model.named_parameters())), model="own_network:make")
    with pytest.raises(CheckpointError, match=r"head\.weight has shape \(7, 8\), expected \(5, 8\)"):
        load_model(write(model.state_dict() | {"head.weight": torch.rand(7, 8)}), model="own_network:make")
    with pytest.raises(CheckpointError, match=r"no place for neck\.weight"):
        load_model(write(model.state_dict() | {"neck.weight": torch.rand(8, 8)}), model="own_network:make")


@pytest.mark.parametrize(
    ("spelling", "words"),
    [
        ("own_network:fails", "no luck"),
        ("own_network:number", "torch.nn.Module"),
        ("own_network:nothing", "nothing"),
        ("no_such_module:make", "no_such_module"),
    ],
)
@pytest.mark.usefixtures("own")
def test_own_code_that_gives_no_module(spelling: str, words: str, write) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        load_model(write({"stem.bias": torch.ones(8)}), model=spelling)
    assert "\n" not in str(caught.value)


def test_models_that_take_more_than_images_are_refused(tmp_path: Path) -> None:
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 99}
    transformers.BertModel(transformers.BertConfig(**small)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="BertModel, which takes input_ids"):
        load_model(tmp_path)
    videos = transformers.VideoMAEConfig(**TINY, num_frames=4, tubelet_size=2)
    transformers.VideoMAEModel(videos).save_pretrained(tmp_path / "videos")
    with pytest.raises(CheckpointError, match="VideoMAEModel, which takes videos of 4 frames"):
        load_model(tmp_path / "videos")


def test_nothing_of_transformers_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = {key: value for key, value in TINY.items() if "size" not in key or key == "hidden_size"} | {"vocab_size": 50}
    saved(tmp_path, transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=TINY, projection_dim=16)))
    capfd.readouterr()
    load_model(tmp_path)
    assert "".join(capfd.readouterr()) == ""


def photograph() -> Image.Image:
    noise = Image.fromarray(np.random.default_rng(3).integers(0, 256, (9, 7, 3), dtype=np.uint8))
    return noise.resize((300, 200), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("kind", "settings", "own"),
    [
        ("ViT", {"size": {"height": 32, "width": 32}}, False),
        ("CLIP", {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}, False),
        ("DeiT", {"size": {"height": 40, "width": 40}, "crop_size": {"height": 32, "width": 32}}, True),
        ("Levit", {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}, True),
        ("ConvNext", {"size": {"shortest_edge": 384}}, True),
        ("ViT", {"size": 32, "rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3}, False),
        ("ViT", {"size": 32, "do_rescale": False, "image_mean": [127.5] * 3, "image_std": [64.0] * 3}, False),
    ],
)  # fmt: skip
def test_images_are_prepared_as_the_folders_processor_does(kind: str, settings, own: bool, tmp_path: Path) -> None:
    saved(tmp_path, transformers.ViTModel(transformers.ViTConfig(**TINY)))
    processor = getattr(transformers, f"{kind}ImageProcessor")(**settings)
    processor.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    expected = processor(photograph(), return_tensors="pt")["pixel_values"][0]
    assert (loaded.preprocess(photograph()) - expected).abs().mean() < 0.01
    assert any("ImageProcessor of transformers" in note for note in loaded.notes) == own


def test_defaults_of_a_processor_are_those_of_its_class(tmp_path: Path) -> None:
    saved(tmp_path, transformers.ViTModel(transformers.ViTConfig(**TINY)))
    said = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    assert load_model(tmp_path).mean == pytest.approx((0.5, 0.5, 0.5), abs=1e-4)


@pytest.mark.parametrize("image_size", [None, 64])
def test_channels_that_a_processor_exchanges_are_refused(image_size, tmp_path: Path) -> None:
    saved(tmp_path, transformers.ViTModel(transformers.ViTConfig(**TINY)))
    transformers.MobileViTImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}).save_pretrained(
        tmp_path
    )
    with pytest.raises(CheckpointError, match=r"exchanges or mixes colour channels.*--model package\.module:factory"):
        load_model(tmp_path, image_size=image_size)


@pytest.mark.parametrize("size", [10**6, {"shortest_edge": 10**6}, {"height": "a", "width": 3}, {"shortest_edge": -1}])
def test_sizes_of_images_out_of_reason(size, tmp_path: Path) -> None:
    saved(tmp_path, transformers.ViTModel(transformers.ViTConfig(**TINY)))
    said = PREPROCESSOR | {"size": size, "do_center_crop": False}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    with pytest.raises(CheckpointError, match="the preprocessing is not usable"):
        load_model(tmp_path)
