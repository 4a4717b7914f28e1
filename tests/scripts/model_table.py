"""Print the README's tables of models: parameters and multiply-adds, counted here, and results, as the paper published them.

    python tests/scripts/model_table.py

Multiply-adds are those of the matrix products, convolutions and attention that one image takes (PyTorch's FlopCounterMode
on the meta device: nothing is computed). TAP is counted as we compute it, as one product with a (tokens × tokens) matrix.
"""

import timm
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import overfocus.models  # noqa: F401  registers the models
from overfocus.models import fan, fan_swin, rvt, segmentation

SOURCE = "Guo, Stutz, Schiele, Robustifying Token Attention for Vision Transformers, ICCV 2023"
CLASSIFICATION = """\
| released checkpoint | model | parameters, M | ImageNet, % | ImageNet-C, mCE | ImageNet-A, % | ImageNet-P, mFP |
|---|---|---|---|---|---|---|
| `tapadl_fan_base.pth.tar` | `tap_fan_base_16_p4_hybrid` | 50.7 | 84.3 | 43.7 | 42.3 | 29.2 |
| `tapadl_rvt_base.pth.tar` | `tap_rvt_base_plus` | 92.1 (89.4 counted here) | 83.1 | 44.7 | 32.7 | 29.6 |"""
SEGMENTATION = """\
| released checkpoint | model | Cityscapes, mIoU | Cityscapes-C, mIoU | ACDC, mIoU |
|---|---|---|---|---|
| `tapadl_fan_base_segmentation.pth` | `tap_fan_base_16_p4_hybrid_segformer` | 82.9 | 69.7 | 63.6 |"""


def main() -> None:
    """Print the tables as Markdown."""
    classifiers = {**fan.ARCHITECTURES, **fan_swin.ARCHITECTURES, **rvt.ARCHITECTURES}
    print("| model | parameters, M | GMACs | `tap_` model: parameters, M | GMACs |")
    print("|---|---|---|---|---|")
    for name in [*classifiers, *(f"{name}_segformer" for name in segmentation.OUT_BLOCKS)]:
        print(f"| `{name}` | {cost(name)} | {cost(f'tap_{name}')} |")
    print(f"\nPublished results of the released checkpoints, from the paper ({SOURCE}); not measured by us:\n")
    print(f"{CLASSIFICATION}\n\n{SEGMENTATION}")


def cost(name: str) -> str:
    """Parameters in millions and multiply-adds in billions at the model's own image size, as two cells of the table."""
    with torch.device("meta"):
        # Four branches also where the reference's model of that name has no TAP, so that the column says what TAP costs.
        model = timm.create_model(name, num_scales=4).eval()
        images = torch.zeros(1, *timm.models.get_pretrained_cfg(name).input_size)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(images)
    return f"{parameters / 1e6:.1f} | {counter.get_total_flops() / 2e9:.1f}"


if __name__ == "__main__":
    main()
